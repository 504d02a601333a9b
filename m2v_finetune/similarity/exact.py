"""Exact nearest vectors by cosine, in one pass over a table."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.similarity.table import Rows, Vectors, VectorTable


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
    units = np.stack([unit(query).astype(np.float32) for query in queries])
    # Bound of the error of a cosine in float32: of its rounded factors and its sum.
    error = (table.size + 8) * np.finfo(np.float32).eps
    none = Candidates(np.empty(0, np.int64), np.empty(0), np.empty((0, table.size), np.float32))
    best = [none for _ in queries]
    for batch in table.batches():
        cosines = (units @ batch.vectors.T) / batch.norms
        for number, (query, of_query) in enumerate(zip(queries, cosines, strict=True)):
            rows, known, vectors = best[number]
            found = np.arange(len(of_query))
            if len(known) == count:
                found = np.flatnonzero(of_query >= known.min() - error)
            if len(found) > count:
                # At least `count` vectors reach the lowest of the best in float32, less the error.
                lowest = np.partition(of_query[found], -count)[-count]
                found = found[of_query[found] >= lowest - 2 * error]
            if len(found):
                rows = np.concatenate([rows, batch.rows[found]])
                vectors = np.concatenate([vectors, batch.vectors[found]])
                best[number] = ordered(query, rows, vectors, count)
    return best


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
