"""The manifest: one line a track, as CSV or JSONL (docs/data-formats.md).

Only two columns mean something here: ``path`` (or ``file_name``), and ``split``, which may be
absent. Every other column is kept as it was written, and belongs to the task that reads it.
"""

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any, Literal

from m2v_finetune.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
PATH_COLUMNS = ("path", "file_name")
MANIFEST_NAMES = ("manifest.jsonl", "manifest.csv", "metadata.jsonl", "metadata.csv")
DATASET_INFO_NAME = "dataset.json"
MAX_LISTED_PROBLEMS = 50

PathRule = Literal["any", "own", "foreign"]
"""Where paths of a manifest may lead: anywhere; not out of its folder, unless they are absolute (a manifest
of one's own); or never out of it, by links neither (a data set of the Hub)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One music file and what is written about it.

    Attributes:
        id: Unique name of the track; the path as the manifest writes it, unless there is a column ``id``.
        path: The audio file, absolute.
        split: ``train``, ``validation``, ``test``, or None where the manifest has no split.
        columns: All other columns, by name; from a CSV every value is a string.
        origin: Where the track was read, for messages, such as ``songs.csv:12``.
        folder: What paths in its columns are relative to: the manifest's folder.
        path_rule: Where these paths may lead.
    """

    id: str
    path: Path
    split: str | None
    columns: Mapping[str, Any]
    origin: str
    folder: Path
    path_rule: PathRule = "own"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What the model card says of the data: read from ``dataset.json`` beside a manifest.

    Attributes:
        name: Short name; for a data set of the Hub its id.
        title: Name for people.
        licence: SPDX identifier or a sentence; empty when unknown.
        citation: BibTeX or a reference; empty when unknown.
        homepage: Address; empty when unknown.
    """

    name: str
    title: str = ""
    licence: str = ""
    citation: str = ""
    homepage: str = ""


def path_problem(written: str, folder: Path, rule: PathRule) -> str | None:
    """Return what is wrong where a path of a manifest leads out of its folder against the rule.

    Args:
        written: The path as the manifest has it.
        folder: The manifest's.
        rule: What may be.

    >>> path_problem("a/../b.wav", Path("/music"), "own")
    >>> path_problem("../b.wav", Path("/music"), "own")[:45]
    "'../b.wav' leads out of the folder /music. Se"
    >>> path_problem("/b.wav", Path("/music"), "foreign")
    "'/b.wav' leads out of the folder /music, as no path of a data set of the Hub may"
    """
    if rule == "any" or (rule == "own" and PurePath(written).is_absolute()):
        return None
    said = f"'{written}' leads out of the folder {folder}"
    is_inside = _is_inside(os.path.normpath(folder / written), os.path.normpath(folder))
    if rule == "own":
        advice = "Set data.allow_outside if it may, or write an absolute path"
        return None if is_inside else f"{said}. {advice}"
    # The cache of the Hub links its files from the folder `blobs` beside `snapshots`.
    roots = [folder, folder.parent.parent / "blobs"]
    real = os.path.realpath(folder / written)
    is_real = any(_is_inside(real, os.path.realpath(root)) for root in roots)
    return None if is_inside and is_real else f"{said}, as no path of a data set of the Hub may"


def _is_inside(path: str, root: str) -> bool:
    return PurePath(path).is_relative_to(root)


def problem_list(
    title: str, problems: Sequence[str], advice: str, *, limit: int | None = MAX_LISTED_PROBLEMS
) -> str:
    """Return one message that lists the problems, all or the first ``limit``, and what to do."""
    listed = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > len(listed):
        listed.append(f"  - and {len(problems) - len(listed)} more")
    return "\n".join([f"{title} ({len(problems)}):", *listed, advice])


def read_manifest(
    path: Path, *, allow_outside: bool = False, is_foreign: bool = False
) -> list[Track]:
    """Read a manifest of any size; audio paths are relative to its folder.

    Args:
        path: A ``.csv`` or ``.jsonl`` file.
        allow_outside: Let relative paths lead out of its folder.
        is_foreign: Somebody else wrote it: no path may lead out of its folder.

    Raises:
        UserError: The file is missing, is not what its name says, has no path column, or has lines
            with an unknown split, a path twice or out of the folder, or a track in two splits. All such
            lines are listed.
    """
    if not path.is_file():
        raise UserError(f"There is no manifest at {path}. Give a .csv or .jsonl file.")
    suffix = path.suffix.lower()
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if suffix not in readers:
        raise UserError(f"{path} is no manifest: the name must end in .csv or .jsonl.")
    try:
        rows = list(readers[suffix](path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise UserError(
            f"{path} is not CSV ({error}). Look for a quote that is not closed."
        ) from error
    own_rule: PathRule = "any" if allow_outside else "own"
    return tracks_from_rows(
        rows,
        folder=path.parent,
        name=path.name,
        path_rule="foreign" if is_foreign else own_rule,
    )


def tracks_from_rows(
    rows: Iterable[tuple[int, dict[str, Any]]],
    *,
    folder: Path,
    name: str,
    path_rule: PathRule = "own",
) -> list[Track]:
    """Make tracks of numbered rows, and report every row that cannot be one.

    Args:
        rows: Line number and columns.
        folder: What relative paths are relative to.
        name: The manifest's name, for messages.
        path_rule: Where paths may lead.

    Raises:
        UserError: There is no row; or lists all rows without a path, with an unknown split, or with a
            path or an id that another row has.
    """
    tracks: list[Track] = []
    problems: list[str] = []
    seen_paths: dict[Path, Track] = {}
    seen_ids: dict[str, Track] = {}
    for line, row in rows:
        origin = f"{name}:{line}"
        columns = dict(row)
        written = next((columns.pop(key) for key in PATH_COLUMNS if columns.get(key)), None)
        if not isinstance(written, str):
            problems.append(
                f"{origin}: no path; a column 'path' or 'file_name' names the audio file"
            )
            continue
        out = path_problem(written, folder, path_rule)
        if out is not None:
            problems.append(f"{origin}: {out}")
            continue
        split = columns.pop("split", None) or None
        if split is not None:
            split = SPLIT_ALIASES.get(str(split).lower(), str(split).lower())
            if split not in SPLITS:
                problems.append(f"{origin}: split '{row['split']}' is none of {', '.join(SPLITS)}")
                continue
        track = Track(
            id=str(columns.pop("id", None) or written),
            path=Path(os.path.abspath(folder / written)),  # noqa: PTH100 (resolve() is slow for many)
            split=split,
            columns=columns,
            origin=origin,
            folder=folder,
            path_rule=path_rule,
        )
        twin = seen_paths.setdefault(track.path, track)
        namesake = seen_ids.setdefault(track.id, track)
        if twin is not track and twin.split != split:
            problems.append(
                f"{origin}: '{written}' is in two splits: {split} here, {twin.split} at {twin.origin}"
            )
        elif twin is not track:
            problems.append(f"{origin}: duplicate path '{written}', already at {twin.origin}")
        elif namesake is not track:
            problems.append(f"{origin}: duplicate id '{track.id}', already at {namesake.origin}")
        tracks.append(track)
    if not tracks and not problems:
        raise UserError(f"{name} lists no track. It needs one line a track.")
    if problems:
        raise UserError(
            problem_list(f"{name} has lines that cannot be used", problems, "Correct these lines.")
        )
    with_split = [track for track in tracks if track.split is not None]
    if with_split and len(with_split) < len(tracks):
        bare = next(track for track in tracks if track.split is None)
        raise UserError(
            f"{name} gives a split for {len(with_split)} of {len(tracks)} tracks; the first "
            f"without is at {bare.origin}. Give every track one, or none (then one is made for you)."
        )
    return tracks


def read_dataset_info(folder: Path, *, name: str) -> DatasetInfo:
    """Read ``dataset.json`` of a folder; without one, only the name is known.

    Raises:
        UserError: The file is no JSON object, or has a key that `DatasetInfo` does not know.
    """
    path = folder / DATASET_INFO_NAME
    if not path.is_file():
        return DatasetInfo(name=name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return DatasetInfo(**content)
    except (ValueError, TypeError, RecursionError) as error:
        legal = ", ".join(field.name for field in fields(DatasetInfo))
        raise UserError(
            f"{path} cannot be used ({error}). It is a JSON object of {legal}."
        ) from error


def require_column(tracks: Sequence[Track], column: str) -> None:
    """Raise `UserError` where no track has a column."""
    if not any(column in track.columns for track in tracks):
        found = ", ".join(sorted(tracks[0].columns)) or "none"
        raise UserError(
            f"No track has a column '{column}'. There are: {found}. Name the one with the labels by "
            "--task.label_column."
        )


def as_labels(track: Track, column: str) -> list[str]:
    """Return the labels in a track's column: a JSON list as it is, a string split at ``;``.

    Raises:
        UserError: The column holds something else than text, or a list of texts.

    >>> columns = {"t": "rock; pop ;"}
    >>> track = Track(id="a", path=Path(), split=None, columns=columns, origin="", folder=Path())
    >>> as_labels(track, "t")
    ['rock', 'pop']
    """
    value = track.columns.get(column)
    if value is None:
        return []
    parts = value if isinstance(value, list | tuple) else [value]
    wrong = [part for part in parts if not isinstance(part, str)]
    if wrong:
        raise UserError(
            f"{track.origin}: the column '{column}' holds {wrong[0]!r}, which is no text. Labels are text; "
            "put numbers in quotes."
        )
    labels = parts if parts is value else value.split(";")
    return [label.strip() for label in labels if label.strip()]


def _csv_rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        header = [name.strip() for name in reader.fieldnames or []]
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise UserError(
                f"{path.name}:1: the header names {', '.join(repeated)} more than once."
            )
        if header and not set(header) & set(PATH_COLUMNS):
            raise UserError(
                f"{path.name}:1: the header is {', '.join(header)}. One column must be 'path' or "
                "'file_name'; columns are separated by commas."
            )
        reader.fieldnames = header
        for row in reader:
            if None in row or None in row.values():
                raise UserError(
                    f"{path.name}:{reader.line_num}: this line has not as many cells as the header "
                    f"({', '.join(reader.fieldnames or [])}). Put cells with a comma in quotes."
                )
            yield reader.line_num, row


def _jsonl_rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_named_once)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path.name}:{number}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise UserError(
                    f'{path.name}:{number}: not a JSON object, such as {{"path": ...}}.'
                )
            yield number, row


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, and refuse one of whose values the last alone would count."""
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"it names {', '.join(repeated)} more than once")
    return dict(pairs)
