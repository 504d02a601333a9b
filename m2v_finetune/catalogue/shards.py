"""Folder of a table: _catalogue.json, and one file for each shard of the tracks.

    DIR/_catalogue.json
    DIR/part-00000.parquet
    DIR/part-00001.parquet ...

The shard of a track is decided by a hash of its id and the number of shards, which never changes. A file is
written under another name and renamed when it is complete: a file that is there has all its rows. The rows of
a file are sorted by id.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2v_finetune.catalogue.analysis import Analysis, Row
from m2v_finetune.catalogue.shard_files import READERS, as_cell, plain, write_parquet
from m2v_finetune.data.feature_tables import CATALOGUE_FILE, identity_of
from m2v_finetune.errors import DISK_ERRORS, UserError
from m2v_finetune.files import lock, parse_json, write_atomically, write_json

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1
LOCK_FILE = ".lock"
FORMATS = ("parquet", "jsonl", "csv")


def shard_of(track_id: str, num_shards: int) -> int:
    """Return the number of the shard of a track: BLAKE2b of its id, 8 bytes, modulo the number of shards.

    >>> [shard_of(name, 4) for name in ("a.mp3", "b.mp3", "c.mp3")]
    [0, 2, 0]
    """
    digest = hashlib.blake2b(track_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % num_shards


@dataclass(frozen=True, kw_only=True)
class TableFolder:
    """Folder of a table, locked by this process.

    Attributes:
        path: Folder.
        format: One of `FORMATS`.
        num_shards: Number of shards.
        schema: Columns.
        metadata: Content of _catalogue.json, kept in each Parquet file too.
    """

    path: Path
    format: str
    num_shards: int
    schema: "pyarrow.Schema"
    metadata: Mapping[str, Any]

    def file(self, shard: int) -> Path:
        """Return the path of a shard."""
        return self.path / f"part-{shard:05d}.{self.format}"

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> list[Row]:
        """Return rows of a shard, all columns if None; none where there is no file.

        Raises:
            UserError: The file cannot be read.
        """
        path = self.file(shard)
        if not path.exists():
            return []
        try:
            if self.format == "parquet":
                self._require_own(path)
            rows = READERS[self.format](path, columns)
            self.check_rows(shard, rows, columns)
        except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
            raise unreadable_shard(path, error) from error
        return rows

    def check_rows(self, shard: int, rows: Sequence[Row], columns: Sequence[str] | None) -> None:
        """Raise ValueError if rows are not those of a shard of this table."""
        needed = set(self.schema.names if columns is None else columns)
        ids = set()
        for row in rows:
            if not needed <= row.keys() or not isinstance(row["id"], str):
                raise ValueError("a row has other columns, or no id")
            if not isinstance(row.get("error"), str | None):
                raise ValueError("the error of a row is no text")
            ids.add(row["id"])
        if "time" not in self.schema.names and len(ids) < len(rows):
            raise ValueError("two rows have one id")
        if any(shard_of(name, self.num_shards) != shard for name in ids):
            raise ValueError("a row belongs to another shard")

    def _require_own(self, path: Path) -> None:
        """Raise ValueError if a Parquet file was written for another table."""
        from pyarrow import parquet

        with path.open("rb") as file:
            self.require_own_schema(parquet.read_schema(file))

    def require_own_schema(self, schema: "pyarrow.Schema") -> None:
        """Raise ValueError if the schema of a Parquet file is that of another table."""
        if identity_of(schema) != json.loads(json.dumps(self.metadata["identity"])):
            raise ValueError("it is of a table of another identity")

    def write_shard(self, shard: int, rows: Sequence[Row]) -> None:
        """Write the rows of a shard, sorted by id, under another name, and rename the file.

        Raises:
            UserError: The disk does not take it.
        """
        path = self.file(shard)
        ordered = sorted(rows, key=lambda row: row["id"])  # rows of one track stay in order
        with _disk_errors(path):
            write_atomically(path, lambda unfinished: self._write(unfinished, ordered))

    def _write(self, path: Path, rows: Sequence[Row]) -> None:
        if self.format == "parquet":
            write_parquet(path, rows, self.schema, self.metadata)
        elif self.format == "jsonl":
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(self.schema.names)
                writer.writerows([as_cell(row[name]) for name in self.schema.names] for row in rows)


def unreadable_shard(where: Path | str, error: Exception) -> UserError:
    """Return the error of a shard that is damaged."""
    return UserError(
        f"{where} cannot be read ({error}). Delete this file, and the same command computes it again.",
        code="catalogue-shard-unreadable",
    )


@contextmanager
def open_folder(
    path: Path,
    analysis: Analysis,
    *,
    format: str,
    num_shards: int,
    overwrite: bool,
) -> Iterator[TableFolder]:
    """Give a new folder, or one of a table of the same identity, locked for this process.

    Args:
        path: Folder, made if needed.
        analysis: What its rows are.
        format: One of `FORMATS`.
        num_shards: Number of shards of a new table.
        overwrite: Whether to delete a table that is there.

    Raises:
        UserError: The folder has another table, other files, or is in use; or it cannot be written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(
            f"--output {path} is a file. A table needs a folder.", code="output-is-file"
        )
    with _disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"The folder --output {path} cannot be made: {error.strerror}. Name another.",
                code="output-not-writable",
            ) from error
        try:
            locked = lock(path / LOCK_FILE)
        except BlockingIOError as error:
            raise UserError(
                f"{path} is in use by {error.strerror}. Wait for it, or name another --output.",
                code="output-locked",
            ) from error
    try:
        if overwrite:
            _delete_table(path)
        metadata = table_metadata(path, analysis, format=format, num_shards=num_shards)
        yield TableFolder(
            path=path,
            format=format,
            num_shards=metadata["num_shards"],
            schema=analysis.schema,
            metadata=metadata,
        )
    finally:
        os.close(locked)


def table_metadata(
    path: Path, analysis: Analysis, *, format: str, num_shards: int
) -> dict[str, Any]:
    """Return the content of _catalogue.json, after it was written or compared."""
    file = path / CATALOGUE_FILE
    now: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": analysis.kind,
        "format": format,
        "num_shards": num_shards,
        "identity": dict(analysis.identity),
        **analysis.facts,
    }
    if not file.exists():
        others = sorted(
            one.name for one in path.iterdir() if one.name != LOCK_FILE and not _is_unfinished(one)
        )
        if others:
            raise UserError(
                f"{path} has files, such as {others[0]}, but no {CATALOGUE_FILE}: it is no table of this "
                "command. Name another --output.",
                code="catalogue-folder-not-empty",
            )
        with _disk_errors(file):
            write_json(file, now)
        return now
    return {**now, "num_shards": _compare(file, now)}


def _is_unfinished(file: Path) -> bool:
    """Return whether a file is one that a killed process was writing."""
    return file.name == f".{CATALOGUE_FILE}.part" or file.match(".part-*.part")


def _compare(file: Path, now: Mapping[str, Any]) -> int:
    """Return the number of shards of a table that is there.

    Raises:
        UserError: It has another identity.
    """
    try:
        then = parse_json(file.read_bytes())
        num_shards = then["num_shards"]
        if not isinstance(num_shards, int) or num_shards < 1:
            raise ValueError("num_shards is no positive integer")
        compared = ("schema_version", "kind", "format", "identity")
        other = [name for name in compared if then.get(name) != now[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). Restore it; or start again with --overwrite, which deletes "
            "the table.",
            code="catalogue-unreadable",
        ) from error
    if other:
        what = ", ".join(
            difference for name in other for difference in _differences(then, now, name)
        )
        raise UserError(
            f"{file.parent} has a table that differs in {what}. One folder holds rows of one kind. Name "
            "another --output, or delete that table with --overwrite.",
            code="catalogue-other-table",
        )
    return num_shards


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> list[str]:
    """Return the settings that differ, with the value that was and the one that would be."""
    old, new = then.get(name), now[name]
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        return [f"{key} ({_short(old.get(key))}, now {_short(new.get(key))})" for key in names]
    return [f"{name} ({_short(old)}, now {_short(new)})"]


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return ", ".join(" ".join(str(part)[:12] for part in one.values()) for one in value)
    return str(value)[:60]


def _delete_table(path: Path) -> None:
    """Delete the files of a table, _catalogue.json last, and no other files.

    Raises:
        UserError: A file cannot be deleted.
    """
    with _disk_errors(path):
        if not (path / CATALOGUE_FILE).exists():
            return
        for format in FORMATS:
            for file in path.glob(f"part-*.{format}"):
                file.unlink()
        for file in filter(_is_unfinished, list(path.iterdir())):
            file.unlink()
        (path / CATALOGUE_FILE).unlink()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(
            f"{error.filename or path} cannot be written: {error.strerror}. The shards that are there are "
            "complete: when it is solved, the same command resumes.",
            code="output-not-writable",
        ) from error
