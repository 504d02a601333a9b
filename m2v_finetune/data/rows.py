"""Rows of a manifest's file, CSV or JSONL, with their line numbers."""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.data.values import named
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json

_SPACE_BEFORE_QUOTE = re.compile(r'(?:^|,)[ \t]+"')


def read_rows(path: Path, *, path_columns: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Read a manifest of any size; from a CSV every value is text.

    Args:
        path: A ``.csv`` or ``.jsonl`` file.
        path_columns: One of these a CSV has to have.

    Returns:
        Line number (from 1) and columns of each row.

    Raises:
        UserError: The file is missing, has another format than its suffix, or is not UTF-8 text.
    """
    if not path.is_file():
        raise UserError(
            f"There is no manifest at {path}. Give a .csv or .jsonl file.",
            code="manifest-not-found",
        )
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl"):
        raise UserError(
            f"{path} is not a manifest: the name must end in .csv or .jsonl.",
            code="manifest-unknown-format",
        )
    try:
        return list(_csv_rows(path, path_columns) if suffix == ".csv" else _jsonl_rows(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}).", code="manifest-unreadable"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error}). Save it as UTF-8.", code="manifest-not-utf8"
        ) from error
    except csv.Error as error:  # of the header
        raise _not_csv(path, 1, error) from error


def _csv_rows(path: Path, path_columns: Sequence[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield line and cells of each row; columns without a name, as spreadsheets leave them, are left out."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        has_spaces = any(_SPACE_BEFORE_QUOTE.search(line) for line in file)
        file.seek(0)
        # Strict: a quote that is not closed would take the lines behind it into one cell.
        reader = csv.DictReader(file, skipinitialspace=has_spaces, strict=True)
        names = [name.strip() for name in reader.fieldnames or []]
        header = [name for name in names if name]
        if any(len(name.splitlines()) > 1 for name in header):
            raise _not_csv(path, 1, csv.Error("a name of the header has a line break"))
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise UserError(
                f"{path.name}:1: the header names {', '.join(repeated)} more than once.",
                code="manifest-duplicate-column",
            )
        if header and not any(named(header, column) for column in path_columns):
            raise UserError(
                f"{path.name}:1: the header is {', '.join(header)}. One column must be "
                f"{' or '.join(map(repr, path_columns))}; columns are separated by commas.",
                code="manifest-no-path-column",
            )
        unnamed = [f"\0{number}" for number, name in enumerate(names) if not name]
        reader.fieldnames = [name or f"\0{number}" for number, name in enumerate(names)]
        for row in _strictly(reader, path):
            if None in row or None in row.values():
                raise UserError(
                    f"{path.name}:{reader.line_num}: this line has another number of cells than the header, "
                    f"{len(names)} ({', '.join(name or 'no name' for name in names)}). Put cells with a "
                    "comma in quotes.",
                    code="manifest-cell-count",
                )
            for name in unnamed:
                del row[name]
            yield reader.line_num, row


def _strictly(reader: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows; raise `UserError` with the first line of a row that is not CSV."""
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _not_csv(path, line, error) from error
        if row is None:
            return
        yield row


def _not_csv(path: Path, line: int, error: csv.Error) -> UserError:
    return UserError(
        f"{path.name}:{line}: the row that starts here is not CSV ({error}). Look for a quote that is not "
        'closed. A quote inside a cell is written twice: "a ""b"" c".',
        code="manifest-not-csv",
    )


def _jsonl_rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line, object_pairs_hook=_named_once)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path.name}:{number}: not JSON ({error}).", code="manifest-not-json"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f'{path.name}:{number}: not a JSON object, such as {{"path": ...}}.',
                    code="manifest-not-object",
                )
            yield number, row


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse one with a repeated key, of which only the last would count."""
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"it names {', '.join(repeated)} more than once")
    return dict(pairs)
