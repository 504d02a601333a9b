"""Folders named by labels or splits: ``<label>/<file>``, or ``<split>/<label>/<file>``."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.data.folder_layout import (
    Layout,
    find_layout,
    refuse_folds,
    refuse_splits_below,
)
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
    Track,
    problem_list,
    tracks_from_rows,
)
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError

logger = logging.getLogger(__name__)


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
    layout = find_layout(files, folder, has_labels=label_column is not None)
    notes = content.notes() + refuse_splits_below(files, layout, folder)
    notes += refuse_folds(files, layout, folder)
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
