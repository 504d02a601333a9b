"""Folders named by labels or splits: ``<label>/<file>``, or ``<split>/<label>/<file>``."""

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from m2v_finetune.data.folders import (
    AUDIO_SUFFIXES,
    FolderContent,
    count_of,
    find_audio,
    some_of,
)
from m2v_finetune.data.manifest import (
    DATASET_INFO_NAME,
    MANIFEST_NAMES,
    SPLIT_WORDS,
    Track,
    problem_list,
    tracks_from_rows,
)
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError

logger = logging.getLogger(__name__)

LAYOUTS = (
    "Splits are folders above labels, such as train/jazz/song.mp3 beside validation/jazz/ and test/jazz/, "
    "and then all folders beside them are splits; or there are labels alone, such as jazz/song.mp3. Move the "
    "folders, or write a manifest, which may have labels of any name"
)
# Separators within a name, as on the Hub. Source: `datasets.data_files.NON_WORDS_CHARS`.
_FOLD = re.compile(r"(?i)(fold|part|split|set|cv)[-_. ]?[0-9]+")
_NO_WORD = re.compile(r"[-._ 0-9]+")
_NEW_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Words that change nothing beside the name of a split: ``train_set``, ``testData``, ``valset``.
_SET_WORDS = ("dataset", "data", "set", "split")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Meaning of the levels of folders, counted from 0.

    Attributes:
        split_level: Level of the folders that name splits; None where there are none.
        splits: Split that each of these folders names.
        label_level: Level of the folders that name labels; None where no labels are needed.
    """

    split_level: int | None
    splits: Mapping[str, str]
    label_level: int | None

    @property
    def num_folders(self) -> int:
        """Number of folders that a track is in, at least."""
        return 1 + max(-1 if x is None else x for x in (self.split_level, self.label_level))

    def split(self, parts: Sequence[str]) -> str | None:
        """Return the split of a file, by its folders and name."""
        return None if self.split_level is None else self.splits[parts[self.split_level]]

    def label(self, parts: Sequence[str]) -> str | None:
        """Return the label of a file, by its folders and name."""
        return None if self.label_level is None else parts[self.label_level]


def read_label_folders(
    folder: Path,
    label_column: str | None,
    *,
    missing: Sequence[str] = (),
    is_foreign: bool = False,
) -> list[Track]:
    """Make a track of each audio file; other files are counted and named in the log.

    Args:
        folder: Folder to search.
        label_column: Column under which labels are filed; None where none are needed: then audio may
            be at any depth.
        missing: Files that should be there; they are tracks like the others.
        is_foreign: True for a data set of the Hub, where a file may have several names.

    Raises:
        UserError: There is no audio in such folders; folders have names of splits beside others, or below
            labels; or a file has names with different labels or splits, by links.
    """
    read_elsewhere = [DATASET_INFO_NAME, *(["README.md"] if is_foreign else [])]
    content = find_audio(folder, read_elsewhere=read_elsewhere)
    every = sorted({*missing, *(name for names in content.names.values() for name in names)})
    files = [name.split("/") for name in every]
    layout = _layout(files, folder, has_labels=label_column is not None)
    notes = content.notes() + _refuse_splits_below(files, layout, folder)
    notes += _refuse_folds(files, layout, folder)
    if not is_foreign:
        every, twice = _one_name_each(content, layout, folder)
        notes += twice
    rows: list[tuple[int, dict[str, Any]]] = []
    loose = []
    for name in every:
        parts = name.split("/")
        if len(parts) <= layout.num_folders:
            loose.append(name)
            continue
        row: dict[str, Any] = {"path": name}
        if label_column is not None:
            row[label_column] = [printable(layout.label(parts) or "")]
        if layout.splits:
            row["split"] = layout.split(parts)
        rows.append((len(rows) + 1, row))
    if loose:
        beside = "folders of labels" if label_column is not None else "folders of splits"
        notes.append(
            f"{count_of(len(loose), 'audio file')} beside {beside} not read: {some_of(loose)}"
        )
    if label_column is not None and (bare := _without_audio(content, layout)):
        notes.append(f"{count_of(len(bare), 'folder')} without audio, so no label: {some_of(bare)}")
    if not rows:
        nothing = _nothing(folder, label_column, layout)
        raise UserError("\n".join([nothing, *notes]), code="folder-no-audio")
    for note in notes:
        logger.warning("%s: %s", printable(str(folder)), note)
    return tracks_from_rows(
        rows,
        folder=folder,
        name=printable(str(folder)),
        path_rule="foreign" if is_foreign else "own",
    )


def _layout(files: Sequence[Sequence[str]], folder: Path, *, has_labels: bool) -> Layout:
    """Find out which folders name splits and which labels; UserError where that is ambiguous."""
    level = _level_of_choice(files, 0)
    splits = _splits_at(_names(files, level), folder)
    if not splits:
        return Layout(split_level=None, splits={}, label_level=level if has_labels else None)
    if not has_labels:
        return Layout(split_level=level, splits=splits, label_level=None)
    label_level = _level_of_choice(files, level + 1)
    labels = _names(files, label_level)
    # Labels may have any names, but not where a level of splits may be meant.
    if _splits_at(labels, folder) and _names(files, label_level + 1):
        raise UserError(
            f"In {printable(str(folder))} folders with names of splits ({some_of(sorted(labels))}) are in "
            f"folders of splits ({some_of(sorted(splits))}), and hold more folders. {LAYOUTS}.",
            code="folder-splits-below-splits",
        )
    return Layout(split_level=level, splits=splits, label_level=label_level)


def _names(files: Sequence[Sequence[str]], level: int) -> set[str]:
    """Return the names of the folders at a level."""
    return {parts[level] for parts in files if len(parts) > level + 1}


def _level_of_choice(files: Sequence[Sequence[str]], first: int) -> int:
    """Return the level, from ``first``, below folders that hold all the others and no audio themselves.

    Such a folder names no label. Where there is no level with several folders, it is the first.
    """
    level = first
    while True:
        names = _names(files, level)
        if len(names) > 1 or any(map(_split_meant, names)):
            return level
        if not names or any(len(parts) == level + 2 for parts in files):
            return first
        level += 1


def _splits_at(names: set[str], folder: Path) -> dict[str, str]:
    """Return the splits that the folders of a level name; none where they name something else.

    Raises:
        UserError: Some of them name splits, and others do not.
    """
    splits = _splits_of(names)
    others = sorted(names - splits.keys())
    is_meant = any(map(_split_meant, splits)) or len(set(splits.values())) > 1
    if others and is_meant:
        raise UserError(
            f"In {printable(str(folder))} folders with names of splits ({some_of(sorted(splits))}) are "
            f"beside others ({some_of(others)}). {LAYOUTS}.",
            code="folder-mixed-splits",
        )
    return splits if is_meant else {}  # else labels with such a word in them


def _splits_of(names: Collection[str]) -> dict[str, str]:
    """Return the splits that folders name: by ``train`` and, as for the Hub, ``my train`` or ``test-1``."""
    found = {}
    for name in names:
        splits = {split for word in _words(name) if (split := _split_word(word))}
        if len(splits) == 1:
            found[name] = splits.pop()
    return found


@cache
def _split_meant(name: str) -> str | None:
    """Return the split that a folder names by its complete name; None where it may be something else.

    >>> [_split_meant(name) for name in ("Train", "valset", "test_set 1", "evalData", "test tone")]
    ['train', 'validation', 'test', 'test', None]
    """
    splits = {_split_word(word) for word in _words(name) if word not in _SET_WORDS}
    return splits.pop() if len(splits) == 1 else None


def _words(name: str) -> list[str]:
    words = _NO_WORD.split(_NEW_WORD.sub(" ", name.strip()).lower())
    return [word for word in words if word]


def _split_word(word: str) -> str | None:
    found = (SPLIT_WORDS.get(word.removesuffix(end)) for end in ("", *_SET_WORDS))
    return next((split for split in found if split), None)


def _refuse_splits_below(files: Sequence[Sequence[str]], layout: Layout, folder: Path) -> list[str]:
    """Refuse ``jazz/train/song.mp3`` beside ``jazz/test/``, where the splits would be passed over.

    One folder of such a name, such as an album ``Test``, is not refused.

    Returns:
        A note on that folder.

    Raises:
        UserError: Folders at any depth below the labels have names of splits, beside others or not.
    """
    below: dict[tuple[str, ...], dict[str, str]] = {}
    outer: dict[tuple[str, ...], str | None] = {}
    for parts in files:
        for level in range(layout.num_folders, len(parts) - 1):
            if split := _split_meant(parts[level]):
                above = tuple(parts[:level])
                below.setdefault(above, {})[parts[level]] = split
                outer[above] = layout.split(parts)
    found = {
        above: names for above, names in below.items() if set(names.values()) != {outer[above]}
    }
    several = [above for above, names in found.items() if len(set(names.values())) > 1]
    if layout.label_level is not None and len(found) > 1:
        several = list(found)
    if several:
        names = {name for above in several for name in found[above]}
        holders = some_of(["/".join(above) or "." for above in several])
        raise UserError(
            f"In {printable(str(folder))} folders ({holders}) hold folders with names of splits "
            f"({some_of(sorted(names))}). {LAYOUTS}.",
            code="folder-splits-below-labels",
        )
    lone = ["/".join([*above, name]) for above, names in found.items() for name in names]
    return [f"{printable(name)} has the name of a split, and names none there" for name in lone]


def _refuse_folds(files: Sequence[Sequence[str]], layout: Layout, folder: Path) -> list[str]:
    """Refuse ``fold1/jazz/song.mp3`` beside ``fold2/jazz/``, where the folds would be the labels.

    Returns:
        A note where folders of other names hold folders of the same names.

    Raises:
        UserError: They are numbered folds.
    """
    level = layout.label_level
    if level is None or any(len(parts) <= level + 2 for parts in files if len(parts) > level):
        return []
    below: dict[str, set[str]] = {}
    for parts in files:
        if len(parts) > level:
            below.setdefault(parts[level], set()).add(parts[level + 1])
    inner = next(iter(below.values()), set())
    if len(below) < 2 or len(inner) < 2 or any(names != inner for names in below.values()):
        return []
    outer = (
        f"{some_of(sorted(below))} all hold folders of the same names ({some_of(sorted(inner))})"
    )
    if all(map(_FOLD.fullmatch, below)):
        raise UserError(
            f"In {printable(str(folder))} {outer}, so they are no labels. Write a manifest with the labels, "
            f"and a column that names the folds. {LAYOUTS}.",
            code="folder-folds",
        )
    return [f"{outer}: the outer ones are the labels"]


def _names_of_files(content: FolderContent) -> list[list[str]]:
    """Return the names of each file, whether symbolic or hard links."""
    files: dict[str | tuple[int, int], list[str]] = {}
    for real, names in content.names.items():
        try:
            status = os.stat(real)  # noqa: PTH116 (of text)
        except OSError:  # its check reports the same
            files[real] = names
            continue
        key = (status.st_dev, status.st_ino) if status.st_nlink > 1 else real
        files.setdefault(key, []).extend(names)
    return list(files.values())


def _one_name_each(
    content: FolderContent, layout: Layout, folder: Path
) -> tuple[list[str], list[str]]:
    """Return one name of each file, and a note on those that have several.

    Raises:
        UserError: The names of a file have different labels or splits.
    """
    chosen, twice, problems = [], [], []
    for names in _names_of_files(content):
        first = names[0]
        chosen.append(first)
        if len(names) == 1:
            continue
        locations = [name.split("/") for name in names]
        locations = [parts for parts in locations if len(parts) > layout.num_folders]
        if len({(layout.split(parts), layout.label(parts)) for parts in locations}) > 1:
            problems.append(" and ".join(printable(name) for name in names))
        elif locations:
            chosen[-1] = "/".join(locations[0])
        twice.append(first)
    if problems:
        raise UserError(
            problem_list(
                f"Files in {printable(str(folder))} have names with different labels or splits, by links",
                problems,
                "Remove all names but one. A track of several labels needs a manifest.",
            ),
            code="folder-conflicting-links",
        )
    notes = [
        f"{count_of(len(twice), 'file')} with several names, by links, read once: {some_of(twice)}"
    ]
    return sorted(chosen), notes if twice else []


def _without_audio(content: FolderContent, layout: Layout) -> list[str]:
    """Return the folders at the levels of splits and labels in which no audio is."""
    of_audio = {
        above for names in content.names.values() for name in names for above in _above(name)
    }
    bare = {
        name for name in content.folders if name and name.count("/") < layout.num_folders
    } - of_audio
    return sorted(name for name in bare if not bare.intersection(_above(name)))


def _above(name: str) -> list[str]:
    """Return the folders that a name is in.

    >>> _above("a/b/c")
    ['a', 'a/b']
    """
    return [name[:location] for location, letter in enumerate(name) if letter == "/"]


def _nothing(folder: Path, label_column: str | None, layout: Layout) -> str:
    manifests = ", ".join(MANIFEST_NAMES)
    holds = f"The folder {printable(str(folder))} holds no manifest ({manifests}) and no audio"
    if label_column is None:
        return f"{holds} ({', '.join(sorted(AUDIO_SUFFIXES))})."
    if layout.splits:
        splits = sorted(layout.splits)
        example = printable(str(folder / splits[0] / "jazz" / "song.mp3"))
        return (
            f"{holds} in folders named by label. Its folders {some_of(splits)} have names of splits, so "
            f"labels are the folders in them, such as {example}."
        )
    return f"{holds} in folders named by label, such as {printable(str(folder / 'jazz' / 'song.mp3'))}."
