"""Vectors of tracks from a table of `m2v embed`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.data.values import unprinted
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json

if TYPE_CHECKING:
    import pyarrow

CATALOGUE_FILE = "_catalogue.json"
"""Facts about a table, in its folder. Programs that read a folder of Parquet files skip names with _."""
METADATA_KEY = "m2v_finetune"
"""Key of the metadata of a Parquet file that has the content of _catalogue.json."""
Vectors = NDArray[np.float32]


def is_table(folder: Path) -> bool:
    """Return whether a folder has a table of `m2v predict` or `m2v embed`."""
    return (folder / CATALOGUE_FILE).is_file()


def identity_of(schema: "pyarrow.Schema") -> Any:
    """Return the identity of the table that a Parquet file was written for; None if another program wrote it.

    Raises:
        ValueError: The metadata of the file are damaged.
    """
    text = (schema.metadata or {}).get(METADATA_KEY.encode())
    try:
        return None if text is None else json.loads(text)["identity"]
    except (KeyError, TypeError) as error:
        raise ValueError("its metadata have no identity") from error


def require_own(schema: "pyarrow.Schema", identity: Any) -> None:
    """Raise ValueError if a Parquet file was written for a table of another identity."""
    if identity_of(schema) not in (identity, None):
        raise ValueError("it is of a table of another identity")


def read_table(
    folder: Path, files: Mapping[str, Path]
) -> tuple[dict[str, Vectors], dict[str, str]]:
    """Return the vectors of tracks, and the errors of tracks without one, by id.

    Args:
        folder: Folder of a table of embeddings.
        files: File of each track to read, by id.

    Returns:
        The vectors of each track, (count, size), in the order of time; and the errors, one for each track
        of which the table has another file. A file that is gone was moved: then the id alone counts.

    Raises:
        UserError: The table has no embeddings in Parquet, or a shard is of another table or cannot be read.
    """
    import pyarrow
    import pyarrow.compute
    from pyarrow import parquet

    facts = _facts(folder)
    vectors: dict[str, list[Any]] = {}
    errors: dict[str, str] = {}
    for shard in range(facts["num_shards"]):
        path = folder / f"part-{shard:05d}.parquet"
        try:
            with parquet.ParquetFile(path) as file:
                require_own(file.schema_arrow, facts.get("identity"))
                table = file.read(columns=["id", "path", "vector", "error"])
        except FileNotFoundError:
            continue  # no track belongs there, or it is not computed yet: such tracks have no vector
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read ({error}). Delete this file, and run m2v embed again.",
                code="vectors-table-unreadable",
            ) from error
        chosen = table.filter(pyarrow.array([name in files for name in table["id"].to_pylist()]))
        is_valid = chosen["error"].is_null()
        failed = chosen.filter(pyarrow.compute.invert(is_valid))
        errors |= zip(failed["id"].to_pylist(), failed["error"].to_pylist(), strict=True)
        usable = chosen.filter(is_valid)
        names = usable["id"].to_pylist()
        paths = dict(zip(names, usable["path"].to_pylist(), strict=True))
        others = {
            name: f"the row of this id is of another file, {path}"
            for name, path in paths.items()
            if _is_other(unprinted(path), files[name])
        }
        errors |= others
        numbers = usable["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows = numbers.astype(np.float32).reshape(len(names), -1) if names else []
        for name, vector in zip(names, rows, strict=True):
            if name in others:
                continue
            vectors.setdefault(name, []).append(vector)
    return {name: np.stack(rows) for name, rows in vectors.items()}, errors


def _is_other(path: str, file: Path) -> bool:
    """Return whether the path of a table and that of a track are two files."""
    there = Path(path)
    return path != str(file) and there.exists() and file.exists() and not there.samefile(file)


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / CATALOGUE_FILE
    try:
        facts = parse_json(path.read_bytes())
        kind, format, num_shards = facts["kind"], facts["format"], facts["num_shards"]
        if not isinstance(num_shards, int):
            raise ValueError("num_shards is no integer")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}).", code="vectors-table-unreadable"
        ) from error
    if (kind, format) != ("embeddings", "parquet"):
        raise UserError(
            f"{folder} has {kind} as {format}. --data.features needs the Parquet table of m2v embed.",
            code="vectors-not-embeddings",
        )
    return dict(facts)
