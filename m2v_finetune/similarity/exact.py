"""Exact nearest vectors by cosine, in one pass over a table."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.similarity.table import Rows, Vectors, VectorTable

MARGIN = 32
"""Vectors kept beyond those asked for: float32 decides who is kept, float64 the order."""


class Candidates(NamedTuple):
    """Nearest vectors of a query, the nearest first; of equal ones the first row first.

    Attributes:
        rows: Numbers of their rows, (count,).
        cosines: (count,), float64.
        vectors: (count, size).
    """

    rows: Rows
    cosines: NDArray[np.float64]
    vectors: Vectors


def nearest_exact(table: VectorTable, queries: Vectors, count: int) -> list[Candidates]:
    """Return the nearest vectors of each query, of all in the table.

    Args:
        table: Table.
        queries: (queries, size), finite and not zero.
        count: Number of vectors for each query.

    Returns:
        ``count`` vectors for each query, fewer if the table has fewer.
    """
    kept = count + MARGIN
    units = np.stack([unit(query).astype(np.float32) for query in queries])
    empty = np.empty(0, np.int64), np.empty(0, np.float32), np.empty((0, table.size), np.float32)
    best = [empty for _ in queries]
    for batch in table.batches():
        cosines = (units @ batch.vectors.T) / batch.norms
        for number, of_query in enumerate(cosines):
            rows, known, vectors = best[number]
            found = np.arange(len(of_query))
            if len(known) == kept:
                found = np.flatnonzero(of_query > known.min())
            if len(found) > kept:
                found = found[np.argpartition(-of_query[found], kept - 1)[:kept]]
            if not len(found):
                continue
            known = np.concatenate([known, of_query[found]])
            rows = np.concatenate([rows, batch.rows[found]])
            vectors = np.concatenate([vectors, batch.vectors[found]])
            order = np.lexsort((rows, -known))[:kept]
            best[number] = rows[order], known[order], vectors[order]
    return [
        ordered(query, rows, vectors, count)
        for query, (rows, _, vectors) in zip(queries, best, strict=True)
    ]


def ordered(query: Vectors, rows: Rows, vectors: Vectors, count: int) -> Candidates:
    """Return the nearest of some vectors, by cosines in float64.

    Args:
        query: (size,).
        rows: Numbers of the rows of the vectors, (vectors,).
        vectors: (vectors, size), finite and not zero.
        count: Number of them to return.
    """
    wide = vectors.astype(np.float64)
    cosines = (wide * unit(query)).sum(axis=1) / np.linalg.norm(wide, axis=1)
    order = np.lexsort((rows, -cosines))[:count]
    return Candidates(rows[order], cosines[order], vectors[order])


def unit(vector: Vectors) -> NDArray[np.float64]:
    """Return a vector of norm 1 in its direction, in float64."""
    wide = vector.astype(np.float64)
    return wide / np.linalg.norm(wide)
