"""Approximate nearest vectors by cosine: an index of usearch, built once for a table and kept.

It is a graph of near vectors (HNSW) on the vectors as the table has them, so that its candidates are
ordered by exact cosines. It may miss some of the nearest vectors; benchmarks/similar.py measures how many.

Source: Malkov and Yashunin 2018, "Efficient and robust approximate nearest neighbor search using hierarchical
navigable small world graphs".
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from m2v_finetune.audio.resample_cache import data_cache_folder
from m2v_finetune.errors import UserError
from m2v_finetune.files import file_identity, write_atomically
from m2v_finetune.similarity.exact import Candidates, ordered
from m2v_finetune.similarity.table import Vectors, VectorTable

CONNECTIVITY = 16
"""Neighbours of a vector in the graph."""
EXPANSION = 128
"""Candidates that are looked at while the graph is built."""
SEARCH_EXPANSION = 1024
"""Candidates that are looked at in a search, at least."""


def nearest_approximate(table: VectorTable, queries: Vectors, count: int) -> list[Candidates]:
    """Return nearly the nearest vectors of each query; arguments are those of `nearest_exact`.

    The first call for a table builds the index, in the folder of `data_cache_folder`.

    Raises:
        UserError: usearch is not installed.
    """
    index = open_index(table)
    index.expansion_search = max(SEARCH_EXPANSION, 2 * count)
    found = []
    for query in queries:
        if not len(index):  # usearch does not search an empty graph
            found.append(
                ordered(query, np.empty(0, np.int64), np.empty((0, table.size), np.float32), count)
            )
            continue
        rows = index.search(query, min(count, len(index))).keys.astype(np.int64)
        vectors = np.asarray(index.get(rows.astype(np.uint64)), np.float32)
        found.append(ordered(query, rows, vectors.reshape(-1, table.size), count))
    return found


def open_index(table: VectorTable) -> Any:
    """Return the index of a table as a memory map, built if it is not there.

    Raises:
        UserError: usearch is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        raise UserError(
            f"{table.folder} has {table.num_rows:,} vectors. To search so many, an index of usearch is used, "
            "which is not installed. Install the extra: pip install 'm2v-finetune[similar]'.",
            code="extra-missing",
        ) from error
    path = index_path(table)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        index = _build(table, Index)
        write_atomically(path, index.save)
    return Index.restore(path, view=True)


def index_path(table: VectorTable) -> Path:
    """Return the path of the index of a table; another one after a file of the table has changed."""
    digest = hashlib.sha256(f"{CONNECTIVITY} {EXPANSION}".encode())
    for file in table.files:
        digest.update(file_identity(file).encode())
    return data_cache_folder() / "similar" / f"{digest.hexdigest()[:32]}.usearch"


def _build(table: VectorTable, kind: Any) -> Any:
    index = kind(
        ndim=table.size,
        metric="cos",
        dtype={"float16": "f16", "float32": "f32"}[table.dtype],
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION,
    )
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as progress:
        task = progress.add_task("Building the index, once for this table", total=table.num_rows)
        for batch in table.batches():
            index.add(batch.rows.astype(np.uint64), batch.vectors)
            progress.update(task, completed=int(batch.rows[-1]) + 1 if len(batch.rows) else None)
        progress.update(task, completed=table.num_rows)
    return index
