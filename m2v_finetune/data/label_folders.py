"""Folders named by labels or splits: ``<label>/<file>``, or ``<split>/<label>/<file>``."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
_NO_WORD = re.compile(r"[-._ 0-9]+")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Meaning of the levels of folders.

    Attributes:
        depth: Folders above all others, such as ``data``, that mean nothing.
        splits: Split that each folder below them names; none where they name labels.
        has_labels: True if the next folder names a label.
    """

    depth: int
    splits: Mapping[str, str]
    has_labels: bool

    @property
    def least_parts(self) -> int:
        """Folders and file name of a track, at least."""
        return self.depth + bool(self.splits) + self.has_labels + 1

    def split(self, parts: Sequence[str]) -> str | None:
        """Return the split of a file, by its folders and name."""
        return self.splits[parts[self.depth]] if self.splits else None

    def label(self, parts: Sequence[str]) -> str | None:
        """Return the label of a file, by its folders and name."""
        return parts[self.depth + bool(self.splits)] if self.has_labels else None


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
        UserError: There is no audio in such folders; folders have names of splits beside others; or a file
            has names with different labels or splits, by links.
    """
    read_elsewhere = [DATASET_INFO_NAME, *(["README.md"] if is_foreign else [])]
    content = find_audio(folder, read_elsewhere=read_elsewhere)
    every = sorted({*missing, *(name for names in content.names.values() for name in names)})
    layout = _layout(
        [name.split("/") for name in every], folder, has_labels=label_column is not None
    )
    notes = content.notes()
    if not is_foreign:
        every, twice = _one_name_each(content, layout, folder)
        notes += twice
    rows: list[tuple[int, dict[str, Any]]] = []
    loose = []
    for name in every:
        parts = name.split("/")
        if len(parts) < layout.least_parts:
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
        raise UserError("\n".join([_nothing(folder, label_column), *notes]), code="folder-no-audio")
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
    top = {parts[0] for parts in files if len(parts) > 1}
    depth = 0
    if len(top) == 1 and not _splits_of(top):
        inner = {parts[1] for parts in files if len(parts) > 2 + has_labels}
        if len(set(_splits_of(inner).values())) > 1:
            top, depth = inner, 1
    splits = _splits_of(top)
    others = sorted(top - splits.keys())
    is_meant = any(name.strip().lower() in SPLIT_WORDS for name in splits)
    if others and (is_meant or len(set(splits.values())) > 1):
        raise UserError(
            f"In {printable(str(folder))} folders with names of splits ({some_of(sorted(splits))}) are "
            f"beside others ({some_of(others)}). {LAYOUTS}.",
            code="folder-mixed-splits",
        )
    if splits and not is_meant and len(set(splits.values())) == 1:
        splits = {}  # one label with such a word in it, or several
    if has_labels and not splits:
        _refuse_splits_below_labels(files, folder)
    return Layout(depth=depth, splits=splits, has_labels=has_labels)


def _splits_of(names: Collection[str]) -> dict[str, str]:
    """Return the splits that folders name: by ``train`` and, as for the Hub, ``train_set`` or ``test-1``."""
    found = {}
    for name in names:
        words = [word for word in _NO_WORD.split(name.strip().lower()) if word]
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if len(splits) == 1:
            found[name] = splits.pop()
    return found


def _refuse_splits_below_labels(files: Sequence[Sequence[str]], folder: Path) -> None:
    """Refuse ``jazz/train/song.mp3`` beside ``jazz/test/``, where the splits would be passed over."""
    below: dict[str, set[str]] = {}
    for parts in files:
        if len(parts) > 2:
            below.setdefault(parts[0], set()).add(parts[1])
    for label, names in below.items():
        splits = {SPLIT_WORDS.get(name.strip().lower()) for name in names}
        if None not in splits and len(splits) > 1:
            raise UserError(
                f"In {printable(str(folder))} the folder {printable(label)} holds folders with names of "
                f"splits ({some_of(sorted(names))}). {LAYOUTS}.",
                code="folder-splits-below-labels",
            )


def _one_name_each(
    content: FolderContent, layout: Layout, folder: Path
) -> tuple[list[str], list[str]]:
    """Return one name of each file, and a note on those that have several.

    Raises:
        UserError: The names of a file have different labels or splits.
    """
    chosen, twice, problems = [], [], []
    for names in content.names.values():
        first = names[0]
        chosen.append(first)
        if len(names) == 1:
            continue
        locations = [name.split("/") for name in names]
        locations = [parts for parts in locations if len(parts) >= layout.least_parts]
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
    level = layout.least_parts - 1
    bare = {name for name in content.folders if name and name.count("/") < level} - of_audio
    return sorted(name for name in bare if not bare.intersection(_above(name)))


def _above(name: str) -> list[str]:
    """Return the folders that a name is in.

    >>> _above("a/b/c")
    ['a', 'a/b']
    """
    return [name[:location] for location, letter in enumerate(name) if letter == "/"]


def _nothing(folder: Path, label_column: str | None) -> str:
    manifests = ", ".join(MANIFEST_NAMES)
    holds = f"The folder {printable(str(folder))} holds no manifest ({manifests}) and no audio"
    if label_column is None:
        return f"{holds} ({', '.join(sorted(AUDIO_SUFFIXES))})."
    return f"{holds} in folders named by label, such as {printable(str(folder / 'jazz' / 'song.mp3'))}."
