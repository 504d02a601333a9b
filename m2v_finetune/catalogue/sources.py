"""Tracks of a catalogue, from files, folders, manifests, Parquet files and lists of paths."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.stores import is_url, remote_items
from m2v_finetune.data.folders import find_audio
from m2v_finetune.data.manifest import PATH_COLUMNS, problem_list
from m2v_finetune.data.paths import absolute, path_problem
from m2v_finetune.data.rows import read_rows
from m2v_finetune.data.values import as_text, is_missing, named, printable
from m2v_finetune.errors import UserError
from m2v_finetune.path_hints import did_you_mean

STANDARD_INPUT = "-"
MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")


class Sources(NamedTuple):
    """Result of `read_items`.

    Attributes:
        items: Tracks, sorted by id, each id once.
        num_repeated: Number of times that a track was named again, by the same id and path.
        notes: Lines about things in folders that are not read.
    """

    items: list[Item]
    num_repeated: int
    notes: list[str]


def is_list(source: str) -> bool:
    """Return whether a source stands for any number of tracks: no audio file by its name."""
    if source == STANDARD_INPUT or is_url(source):
        return True
    path = Path(source)
    return path.is_dir() or path.suffix.lower() in MANIFEST_SUFFIXES


def read_items(
    sources: Sequence[str], *, standard_input: BinaryIO, allow_outside: bool = False
) -> Sources:
    """Return the tracks of sources. No audio is read.

    Args:
        sources: Audio files; folders, whose audio is found at any depth; manifests, ``.csv``, ``.jsonl`` or
            ``.parquet``, with a column ``path`` or ``file_name`` and an optional ``id``; or ``-`` for paths
            on standard input, one a line, or separated by NUL; or addresses such as ``s3://bucket/prefix``.
        standard_input: Where ``-`` reads.
        allow_outside: Let relative paths of a manifest lead out of its folder.

    Raises:
        UserError: A source does not exist or cannot be read, there is no track, or two have one id.
    """
    notes: list[str] = []
    paths: dict[str, str] = {}
    problems: list[str] = []
    num_repeated = 0
    for source in sources:
        for item in _items_of(source, standard_input, notes, allow_outside=allow_outside):
            path = paths.setdefault(item.id, item.path)
            if path is item.path:
                continue
            if path == item.path:
                num_repeated += 1
            else:
                problems.append(f"{item.id}: {printable(path)} and {printable(item.path)}")
    if problems:
        raise UserError(
            problem_list(
                "Ids that two tracks have",
                problems,
                "Give each track an id of its own, in a column 'id' of a manifest.",
            ),
            code="catalogue-duplicate-id",
        )
    if not paths:
        raise UserError(
            f"There is no track in {', '.join(map(printable, sources))}. "
            + "".join(f"{note}. " for note in notes)
            + "Name files, folders with audio, manifests, or - for a list.",
            code="catalogue-empty",
        )
    return Sources(sorted(Item(*pair) for pair in paths.items()), num_repeated, notes)


def _items_of(
    source: str, standard_input: BinaryIO, notes: list[str], *, allow_outside: bool
) -> Iterator[Item]:
    if source == STANDARD_INPUT:
        yield from map(_file, _listed(standard_input.read()))
        return
    if is_url(source):
        yield from remote_items(source, notes)
        return
    path = Path(source)
    if path.is_dir():
        found = find_audio(path)
        notes += [f"{printable(source)}: {line}" for line in found.notes()]
        for names in found.names.values():
            yield Item(printable(names[0]), absolute(path / names[0]))
    elif path.suffix.lower() in MANIFEST_SUFFIXES:
        yield from _items_of_table(path, allow_outside=allow_outside)
    elif not os.path.lexists(path):
        raise UserError(
            f"There is no file or folder {printable(source)}.{did_you_mean(path.absolute())}",
            code="catalogue-source-missing",
        )
    else:
        yield _file(source)


def _file(path: str) -> Item:
    if is_url(path):
        return Item(printable(path), path)
    return Item(printable(path), absolute(path))


def _listed(content: bytes) -> Iterator[str]:
    """Yield the paths of a list, with NUL between them as of ``find -print0``, or one a line."""
    separator = b"\0" if b"\0" in content else b"\n"
    for line in content.split(separator):
        written = line.removesuffix(b"\r") if separator == b"\n" else line
        if written:
            yield os.fsdecode(written)


def _items_of_table(path: Path, *, allow_outside: bool) -> Iterator[Item]:
    """Yield the tracks of a manifest, and report every row without a legal path."""
    name = printable(path.name)
    rows: Iterable[tuple[int, Mapping[str, Any]]]
    if path.suffix.lower() == ".parquet":
        rows = _parquet_rows(path)
    else:
        rows = read_rows(path, path_columns=PATH_COLUMNS)
    problems = []
    for line, row in rows:
        cells = (row[found] for column in PATH_COLUMNS if (found := named(row, column)))
        written = next((cell for cell in cells if not is_missing(cell)), None)
        if not isinstance(written, str):
            problems.append(f"{name}:{line}: no path; a column 'path' or 'file_name' has it")
            continue
        problem = (
            None
            if is_url(written)
            else path_problem(written, path.parent, "any" if allow_outside else "own")
        )
        own_id = row.get(named(row, "id") or "")
        if problem:
            problems.append(f"{name}:{line}: {printable(problem)}")
        elif not isinstance(own_id, str | int | float | None):
            problems.append(f"{name}:{line}: the id {own_id!r} is neither text nor a number")
        else:
            yield Item(
                printable(written) if own_id is None or is_missing(own_id) else as_text(own_id),
                written if is_url(written) else absolute(path.parent / written),
            )
    if problems:
        raise UserError(
            problem_list(f"{name} has lines that cannot be used", problems, "Correct these lines."),
            code="manifest-bad-lines",
        )


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number, from 1, and the columns for path and id of each row.

    Raises:
        UserError: The file is missing, no Parquet, or has no column of paths.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no manifest at {path}.", code="manifest-not-found") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as Parquet ({error}).", code="manifest-not-parquet"
        ) from error
    with file:
        columns = file.schema_arrow.names
        wanted = [found for one in (*PATH_COLUMNS, "id") if (found := named(columns, one))]
        if not any(named(wanted, column) for column in PATH_COLUMNS):
            raise UserError(
                f"{path.name} has the columns {', '.join(columns)}. One must be "
                f"{' or '.join(map(repr, PATH_COLUMNS))}.",
                code="manifest-no-path-column",
            )
        number = 0
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield number, row
