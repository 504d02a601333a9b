"""Levels of folders: the one that names splits, and the one that names labels."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m2v_finetune.data.folders import some_of
from m2v_finetune.data.manifest import SPLIT_WORDS
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError

LAYOUTS = (
    "Splits are folders above labels, such as train/jazz/song.mp3 beside validation/jazz/ and test/jazz/, "
    "and then all folders beside them are splits; or there are labels alone, such as jazz/song.mp3. Move the "
    "folders, or write a manifest, which may have labels of any name"
)
_FOLD = re.compile(r"(?i)(fold|part|split|set|cv)[-_. ]?[0-9]+")
# Separators within a name, as on the Hub. Source: `datasets.data_files.NON_WORDS_CHARS`.
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


def find_layout(files: Sequence[Sequence[str]], folder: Path, *, has_labels: bool) -> Layout:
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


def refuse_splits_below(files: Sequence[Sequence[str]], layout: Layout, folder: Path) -> list[str]:
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


def refuse_folds(files: Sequence[Sequence[str]], layout: Layout, folder: Path) -> list[str]:
    """Refuse ``fold1/jazz/song.mp3`` beside ``fold2/jazz/``, where the folds would be the labels.

    Returns:
        A note where folders of other names hold folders of the same names.

    Raises:
        UserError: They are numbered folds.
    """
    level = layout.label_level
    if level is None or any(len(parts) == level + 2 for parts in files):
        return []
    below: dict[str, set[str]] = {}
    for parts in files:
        if len(parts) > level + 2:  # others are beside the folders
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
