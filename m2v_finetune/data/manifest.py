"""Manifest: one line a track, as CSV or JSONL (docs/data-formats.md).

Only two columns mean something here: ``path`` (or ``file_name``), and ``split``, which may be
absent. Every other column is kept as it was written, and belongs to the task that reads it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from m2v_finetune.data.paths import PathRule, path_problem
from m2v_finetune.data.rows import read_rows
from m2v_finetune.data.values import as_text, as_texts, is_missing, named, printable
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that a word names; the words are those of the Hub (`datasets.data_files.SPLIT_KEYWORDS`)."""
PATH_COLUMNS = ("path", "file_name")
MANIFEST_NAMES = ("manifest.jsonl", "manifest.csv", "metadata.jsonl", "metadata.csv")
DATASET_INFO_NAME = "dataset.json"
MAX_LISTED_PROBLEMS = 50


class RowError(ValueError):
    """Row of a manifest that cannot be a track.

    Attributes:
        code: Kind of the error, as of a `UserError`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """Music file, with its split and its columns in the manifest.

    Attributes:
        id: Unique name of the track, printable; the path as the manifest writes it, unless there is a
            column ``id``.
        path: Audio file, absolute.
        split: ``train``, ``validation``, ``test``, or None where the manifest has no split.
        columns: All other columns, by name; from a CSV every value is a string.
        origin: Source of the track, for messages, such as ``songs.csv:12``.
        folder: Folder of the manifest, the base of relative paths in the columns.
        path_rule: Rule for these paths.
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
    """Facts about the data for the model card, read from ``dataset.json`` beside a manifest.

    Attributes:
        name: Short name; for a data set of the Hub its id.
        title: Human-readable name.
        licence: SPDX identifier or a sentence; empty when unknown.
        citation: BibTeX or a reference; empty when unknown.
        homepage: Address; empty when unknown.
    """

    name: str
    title: str = ""
    licence: str = ""
    citation: str = ""
    homepage: str = ""


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
        is_foreign: Somebody else wrote it: no path may lead out of its folder, and lines that name one
            file, or have one id, are tracks of their own.

    Raises:
        UserError: The file is missing, has another format than its suffix, has no path column, or has lines
            with an unknown split, a path twice or out of the folder, or a track in two splits. All such
            lines are listed.
    """
    rows = read_rows(path, path_columns=PATH_COLUMNS)
    own_rule: PathRule = "any" if allow_outside else "own"
    return tracks_from_rows(
        rows,
        folder=path.parent,
        name=printable(path.name),
        path_rule="foreign" if is_foreign else own_rule,
    )


def tracks_from_rows(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    folder: Path,
    name: str,
    path_rule: PathRule = "own",
) -> list[Track]:
    """Make tracks of numbered rows, and report every row that cannot be one.

    In a data set of the Hub (``foreign``) two rows may name one file, or have one id: they are two tracks,
    and the number of its row makes the id of the second one unique.

    Args:
        rows: Line number and columns.
        folder: Base of relative paths.
        name: Name of the manifest, for messages.
        path_rule: Rule for paths.

    Raises:
        UserError: There is no row; or two columns have one name; or lists all rows without a path, with an
            unknown split, or, but in a data set of the Hub, with a path or an id that another row has.
    """
    rows = list(rows)
    blank = _blank_namesakes([row for _, row in rows], name)
    tracks: list[Track] = []
    problems: list[tuple[str, str]] = []  # code and text
    seen_paths: dict[Path, Track] = {}
    seen_ids: dict[str, Track] = {}
    for line, row in rows:
        own = {column: value for column, value in row.items() if column not in blank}
        try:
            written, columns = _written_path(own, folder, path_rule)
            track = _track(written, columns, f"{name}:{line}", folder, path_rule)
        except RowError as error:
            problems.append((error.code, f"{name}:{line}: {error}"))
            continue
        if path_rule == "foreign":
            while track.id in seen_ids:
                track = replace(track, id=f"{track.id}#{line}")
            seen_ids[track.id] = track
        else:
            twin = seen_paths.setdefault(track.path, track)
            namesake = seen_ids.setdefault(track.id, track)
            problems += _repeated(track, written, twin, namesake)
        tracks.append(track)
    if not tracks and not problems:
        raise UserError(f"{name} lists no track. It needs one line a track.", code="manifest-empty")
    if problems:
        codes = {code for code, _ in problems}
        raise UserError(
            problem_list(
                f"{name} has lines that cannot be used",
                [problem for _, problem in problems],
                "Correct these lines.",
            ),
            code=codes.pop() if len(codes) == 1 else "manifest-bad-lines",
        )
    with_split = [track for track in tracks if track.split is not None]
    if with_split and len(with_split) < len(tracks):
        bare = next(track for track in tracks if track.split is None)
        raise UserError(
            f"{name} gives a split for {len(with_split)} of {len(tracks)} tracks; the first "
            f"without is at {bare.origin}. Give every track one, or none (then a split is made).",
            code="manifest-partial-split",
        )
    return tracks


def _blank_namesakes(rows: Sequence[Mapping[str, Any]], name: str) -> set[str]:
    """Return columns without a value that have the name of another one, but for case and spaces around it.

    Raises:
        UserError: Such columns have values: only one of them would count.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    namesakes: dict[str, list[str]] = {}
    for column in columns:
        namesakes.setdefault(column.strip().lower(), []).append(column)
    blank: set[str] = set()
    for members in namesakes.values():
        if len(members) == 1:
            continue
        filled = [one for one in members if not all(is_missing(row.get(one)) for row in rows)]
        if len(filled) > 1:
            raise UserError(
                f"{name} has the columns {' and '.join(map(repr, filled))}, which differ in upper and lower "
                "case or in spaces only, and each has values. Remove or rename all but one.",
                code="manifest-duplicate-column",
            )
        blank |= set(members) - set(filled or members[:1])
    return blank


def _written_path(
    row: Mapping[str, Any], folder: Path, path_rule: PathRule
) -> tuple[str, dict[str, Any]]:
    """Return the path that a row writes, and its other columns; `RowError` if there is no legal path."""
    columns = dict(row)
    cells = (_pop(columns, name) for name in PATH_COLUMNS)
    written = next((cell for cell in cells if not is_missing(cell)), None)
    if written is None:
        raise RowError(
            "manifest-no-path", "no path; a column 'path' or 'file_name' names the audio file"
        )
    if not isinstance(written, str):
        raise RowError("manifest-bad-path", f"the path is {written!r}, which is not text")
    if outside := path_problem(written, folder, path_rule):
        raise RowError("manifest-path-outside", printable(outside))
    return written, columns


def _track(
    written: str, columns: dict[str, Any], origin: str, folder: Path, path_rule: PathRule
) -> Track:
    """Make a track of a path and the other columns; `RowError` with the reason if impossible."""
    split, own_id = _pop(columns, "split"), _pop(columns, "id")
    if not isinstance(own_id, str | int | float | None):
        raise RowError(
            "manifest-bad-id", f"the id is {own_id!r}, which is neither text nor a number"
        )
    return Track(
        id=printable(written) if own_id is None or is_missing(own_id) else as_text(own_id),
        path=Path(os.path.abspath(folder / written)),  # noqa: PTH100 (resolve() is slow for many)
        split=None if is_missing(split) else _split_named(split),
        columns=columns,
        origin=origin,
        folder=folder,
        path_rule=path_rule,
    )


def _pop(columns: dict[str, Any], name: str) -> Any:
    """Take a column out, whatever its upper and lower case; None where there is none."""
    found = named(columns, name)
    return None if found is None else columns.pop(found)


def _split_named(value: Any) -> str:
    """Return the split that a cell names; `RowError` where it names none."""
    split = SPLIT_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if split is None:
        raise RowError(
            "manifest-unknown-split",
            f"split {value!r} is none of {', '.join(SPLITS)} (nor {', '.join(SPLIT_WORDS)})",
        )
    return split


def _repeated(track: Track, written: str, twin: Track, namesake: Track) -> list[tuple[str, str]]:
    """Return code and text of the problem if another track has this path (``twin``) or id (``namesake``)."""
    name = printable(written)
    if twin is not track and twin.split != track.split:
        problem = f"'{name}' is in two splits: {track.split} here, {twin.split} at {twin.origin}"
        return [("manifest-two-splits", f"{track.origin}: {problem}")]
    if twin is not track:
        problem = (
            f"duplicate path '{name}', already at {twin.origin}; a track has one line, with its labels as "
            "'rock;pop' or as a JSON list"
        )
        return [("manifest-duplicate-path", f"{track.origin}: {problem}")]
    if namesake is not track:
        problem = f"duplicate id '{track.id}', already at {namesake.origin}"
        return [("manifest-duplicate-id", f"{track.origin}: {problem}")]
    return []


def read_dataset_info(folder: Path, *, name: str) -> DatasetInfo:
    """Read ``dataset.json`` of a folder; without one, only the name is known.

    Raises:
        UserError: The file is not a JSON object of text, or has a key that `DatasetInfo` does not know.
    """
    path = folder / DATASET_INFO_NAME
    if not path.is_file():
        return DatasetInfo(name=name)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        info = DatasetInfo(**{key: value for key, value in content.items() if value is not None})
        if not all(isinstance(value, str) for value in asdict(info).values()):
            raise ValueError("a value is not text")
        return info
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        legal = ", ".join(field.name for field in fields(DatasetInfo))
        raise UserError(
            f"{path} cannot be used ({error}). It is a JSON object of {legal}.",
            code="dataset-info-invalid",
        ) from error


def require_column(tracks: Sequence[Track], column: str) -> None:
    """Raise `UserError` where no track has a column."""
    if not any(column in track.columns for track in tracks):
        found = ", ".join(sorted(tracks[0].columns)) or "none"
        raise UserError(
            f"No track has a column '{column}'. There are: {found}. Name the one with the labels by "
            f"--task.label_column of a run, or rename it to '{column}'.",
            code="manifest-no-label-column",
        )


def as_labels(track: Track, column: str) -> list[str]:
    """Return the labels in a track's column: a list as it is, text split at ``;``, a number as its text.

    Raises:
        ValueError: The column holds something else, such as an object; the message names it.

    >>> columns = {"t": "rock; pop ;"}
    >>> track = Track(id="a", path=Path(), split=None, columns=columns, origin="", folder=Path())
    >>> as_labels(track, "t")
    ['rock', 'pop']
    """
    try:
        return as_texts(track.columns.get(column))
    except ValueError as error:
        raise ValueError(f"the column '{column}' holds {error}") from error
