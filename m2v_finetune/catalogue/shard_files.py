"""Rows of a shard in its file: Parquet, JSONL or CSV."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2v_finetune.catalogue.analysis import Row
from m2v_finetune.data.feature_tables import METADATA_KEY
from m2v_finetune.files import parse_json

if TYPE_CHECKING:
    import pyarrow


def write_parquet(
    path: Path, rows: Sequence[Row], schema: "pyarrow.Schema", metadata: Mapping[str, Any]
) -> None:
    """Write rows as Parquet with the metadata of the table."""
    import pyarrow
    from pyarrow import parquet

    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if pyarrow.types.is_string(field.type):
            values = [as_cell(value) for value in values]
        columns.append(pyarrow.array(values, type=field.type))
    described = schema.with_metadata({METADATA_KEY: json.dumps(metadata)})
    table = pyarrow.Table.from_arrays(columns, schema=described)
    # A dictionary of the numbers of vectors saves nothing, and makes float16 five times slower to read.
    texts = [field.name for field in schema if pyarrow.types.is_string(field.type)]
    with path.open("wb") as file:  # pyarrow takes no names that are not UTF-8
        parquet.write_table(table, file, compression="zstd", use_dictionary=texts)


def as_cell(value: Any) -> Any:
    """Return a value for a cell of text: lists and objects as JSON."""
    value = plain(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def plain(value: Any) -> Any:
    """Return arrays as lists, also inside a row."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _read_parquet(path: Path, columns: Sequence[str] | None) -> list[Row]:
    from pyarrow import parquet

    with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
        rows: list[Row] = file.read(columns=columns).to_pylist()
    return rows


def _read_jsonl(path: Path, columns: Sequence[str] | None) -> list[Row]:
    rows = [parse_json(line) for line in path.read_bytes().splitlines()]
    return rows if columns is None else [{name: row[name] for name in columns} for row in rows]


def _read_csv(path: Path, columns: Sequence[str] | None) -> list[Row]:
    text = path.read_bytes().decode("utf-8")
    limit = csv.field_size_limit(len(text) + 1)  # cells with notes are long
    try:
        names, *cells = csv.reader(io.StringIO(text, newline=""), strict=True)
    finally:
        csv.field_size_limit(limit)
    if not text.endswith("\r\n") or any(len(row) != len(names) for row in cells):
        raise ValueError("its last row, or another, is not complete")
    rows = [dict(zip(names, (cell or None for cell in row), strict=True)) for row in cells]
    return rows if columns is None else [{name: row[name] for name in columns} for row in rows]


READERS: dict[str, Callable[[Path, Sequence[str] | None], list[Row]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
}
