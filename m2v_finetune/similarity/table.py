"""Table of embeddings, as `m2v embed` writes it: Parquet files with a vector for each track.

    DIR/_catalogue.json       identity of the vectors: weights, layer, pooling, windows
    DIR/part-00000.parquet    id, path, duration, vector, error
    DIR/part-00001.parquet    ...

Rows are numbered over the files in the order of their names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.data.feature_tables import CATALOGUE_FILE, require_own
from m2v_finetune.data.paths import absolute
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json

if TYPE_CHECKING:
    import pyarrow

FILES = "part-*.parquet"
COLUMNS = ("id", "path", "duration", "vector")
DTYPES = ("float16", "float32")
BATCH_NUMBERS = 1 << 24
"""Numbers of the vectors that are in memory at a time: 64 MiB in float32."""

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


class VectorBatch(NamedTuple):
    """Vectors that can be compared: finite, and not all zero.

    Attributes:
        rows: Numbers of their rows, ascending, (count,).
        vectors: (count, size).
        norms: Euclidean norms, (count,).
    """

    rows: Rows
    vectors: Vectors
    norms: Vectors


class TrackNames(NamedTuple):
    """Names of a track.

    Attributes:
        id: Id.
        path: Path or address of its file, as the table has it.
        duration: Length in seconds; None if it is not known.
    """

    id: str
    path: str
    duration: float | None


@dataclass(frozen=True, kw_only=True)
class VectorTable:
    """Table of embeddings.

    Attributes:
        folder: Folder of the table.
        files: Its Parquet files.
        starts: Number of the first row of each file, and the number of rows.
        size: Numbers of a vector.
        dtype: One of `DTYPES`.
        metadata: Content of _catalogue.json.
    """

    folder: Path
    files: Sequence[Path]
    starts: Sequence[int]
    size: int
    dtype: str
    metadata: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> "VectorTable":
        """Read the header of a table, and no vectors.

        Raises:
            UserError: It is no such table, or its files do not belong together.
        """
        from pyarrow import parquet

        folder = Path(folder)
        files = sorted(folder.glob(FILES))
        if not files:
            raise UserError(
                f"{folder} has no table of embeddings (no {FILES}). Write one with "
                f"`m2v embed BACKBONE MUSIC --output {folder}`.",
                code="vectors-no-table",
            )
        metadata = _read_metadata(folder / CATALOGUE_FILE)
        sizes, counts = {}, []
        for file in files:
            try:
                with parquet.ParquetFile(file) as opened:
                    require_own(opened.schema_arrow, metadata.get("identity"))
                    counts.append(opened.metadata.num_rows)
                    sizes[file] = _vector_type(opened.schema_arrow, file)
            except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
                raise UserError(
                    f"{file} cannot be read ({error}). Delete it, and the command that wrote the table "
                    "computes it again.",
                    code="vectors-unreadable",
                ) from error
        other = next((file for file in files if sizes[file] != sizes[files[0]]), None)
        if other is not None:
            raise UserError(
                f"{other} has vectors of {sizes[other]}, but {files[0]} of {sizes[files[0]]}. Keep files of "
                "one `m2v embed` in a folder.",
                code="vectors-other-size",
            )
        size, dtype = sizes[files[0]]
        return cls(
            folder=folder,
            files=files,
            starts=[0, *accumulate(counts)],
            size=size,
            dtype=dtype,
            metadata=metadata,
        )

    @property
    def num_rows(self) -> int:
        """Number of rows, with those of files that could not be read."""
        return self.starts[-1]

    def batches(self) -> Iterator[VectorBatch]:
        """Yield all vectors that can be compared, in float32, at most `BATCH_NUMBERS` numbers at a time."""
        from pyarrow import parquet

        batch_rows = max(1, BATCH_NUMBERS // self.size)
        for file, start in zip(self.files, self.starts, strict=False):
            with parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_rows, columns=["vector"]):
                    yield _comparable(batch.column(0), start, self.size)
                    start += batch.num_rows

    def find(self, name: str) -> int | None:
        """Return the number of the row with an id, else of one with that path; None if there is none."""
        import pyarrow.compute as pc
        from pyarrow import parquet

        by_path = None
        name = printable(name)  # as a table has it
        paths = {name, printable(absolute(name))}
        for file, start in zip(self.files, self.starts, strict=False):
            found = parquet.read_table(file, columns=["id", "path"])
            row = pc.index(found.column("id"), name).as_py()
            if row >= 0:
                return start + int(row)
            for path in paths if by_path is None else ():
                row = pc.index(found.column("path"), path).as_py()
                by_path = start + int(row) if row >= 0 else by_path
        return by_path

    def vector(self, row: int) -> Vectors | None:
        """Return the vector of a row, (size,); None if it has none that can be compared."""
        found = self._take([row], ["vector"]).column("vector").combine_chunks()
        batch = _comparable(found, row, self.size)
        return batch.vectors[0] if len(batch.rows) else None

    def names(self, rows: Sequence[int]) -> list[TrackNames]:
        """Return the names of rows, in the given order."""
        found = self._take(sorted(rows), ["id", "path", "duration"]).to_pylist()
        by_row = dict(zip(sorted(rows), found, strict=True))
        return [TrackNames(**by_row[row]) for row in rows]

    def _take(self, rows: Sequence[int], columns: list[str]) -> "pyarrow.Table":
        """Return columns of rows, which ascend; row groups without one of them are not read."""
        import pyarrow
        from pyarrow import parquet

        parts = []
        for file, (start, end) in zip(self.files, pairwise(self.starts), strict=True):
            wanted = [row - start for row in rows if start <= row < end]
            if not wanted:
                continue
            with parquet.ParquetFile(file) as opened:
                first = 0
                for number in range(opened.num_row_groups):
                    last = first + opened.metadata.row_group(number).num_rows
                    inside = [row - first for row in wanted if first <= row < last]
                    if inside:
                        parts.append(opened.read_row_group(number, columns=columns).take(inside))
                    first = last
        return pyarrow.concat_tables(parts)


def _vector_type(schema: "pyarrow.Schema", file: Path) -> tuple[int, str]:
    """Return size and precision of the vectors of a file.

    Raises:
        UserError: It has no vector for each track.
    """
    import pyarrow

    missing = [name for name in COLUMNS if name not in schema.names]
    if missing:
        raise UserError(
            f"{file} has no column {', '.join(missing)}. A table of embeddings has the columns "
            f"{', '.join(COLUMNS)}. Write it with `m2v embed`.",
            code="vectors-missing-column",
        )
    if "time" in schema.names:
        raise UserError(
            f"{file} has a vector for each window. Nearest tracks need one for each track: write another "
            "table with `m2v embed --pool track`.",
            code="vectors-of-windows",
        )
    kind = schema.field("vector").type
    precision = {pyarrow.float16(): "float16", pyarrow.float32(): "float32"}
    if not pyarrow.types.is_fixed_size_list(kind) or kind.value_type not in precision:
        raise UserError(
            f"The column vector of {file} is {kind}; it has to be a list of fixed size, of "
            f"{' or '.join(DTYPES)}. Write a table with one vector for each track with `m2v embed`.",
            code="vectors-other-type",
        )
    return kind.list_size, precision[kind.value_type]


def _comparable(column: "pyarrow.FixedSizeListArray", start: int, size: int) -> VectorBatch:
    """Return the vectors of a column that are there, finite and not zero."""
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    flat = column.filter(column.is_valid()).flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(-1, size).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1)
    is_usable = np.isfinite(norms) & (norms > 0)
    rows = start + np.flatnonzero(is_there)
    if is_usable.all():
        return VectorBatch(rows, vectors, norms)
    return VectorBatch(rows[is_usable], vectors[is_usable], norms[is_usable])


def _read_metadata(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}, which names the backbone of the vectors, cannot be read ({error}). Restore it, or "
            "write the table again with `m2v embed --overwrite`.",
            code="vectors-no-identity",
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no object. Restore it.", code="vectors-no-identity")
    return content
