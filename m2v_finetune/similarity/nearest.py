"""The tracks that are nearest to a track: what `m2v similar` prints."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2v_finetune.errors import UserError
from m2v_finetune.similarity.exact import Candidates, nearest_exact, unit
from m2v_finetune.similarity.index import nearest_approximate
from m2v_finetune.similarity.query import embed_query
from m2v_finetune.similarity.table import TrackNames, Vectors, VectorTable

EXACT_ROWS = 1_000_000
"""Rows of a table from which the approximate index is used."""


@dataclass(frozen=True, kw_only=True)
class SimilarTrack:
    """Track of a table that is near to a query.

    Attributes:
        id: Id.
        path: Path or address of its file, as the table has it.
        duration: Length in seconds; None if it is not known.
        cosine: Cosine of its vector and that of the query, from -1 to 1.
    """

    id: str
    path: str
    duration: float | None
    cosine: float


def similar_tracks(
    table: VectorTable | str | Path,
    query: str | Path | Vectors,
    *,
    top: int = 10,
    max_cosine: float | None = None,
    approximate: bool | None = None,
) -> list[SimilarTrack]:
    """Return the tracks of a table that are nearest to a track by cosine, the nearest first.

    The track itself is left out, and so is a second row of a file. Of equal cosines the first row of the
    table comes first. Rows without a vector, or with one that is zero or not finite, are left out.

    Args:
        table: Table of `m2v embed`, or its folder.
        query: Id or path of a track in the table, another audio file, or a vector of the table's kind,
            (size,). A file is embedded with the backbone that the table names.
        top: Number of tracks.
        max_cosine: Leave out duplicates and other versions of a recording: tracks whose cosine with the
            query, or with a track listed before, is above this; none if None.
        approximate: Whether to search by the approximate index; if None, from a million rows on.

    Raises:
        UserError: The table or the query cannot be used, or the index needs an extra that is not installed.
    """
    if top < 1:
        raise UserError(f"top is {top}. It is the number of tracks, 1 or more.", code="similar-top")
    if max_cosine is not None and not -1 <= max_cosine <= 1:
        raise UserError(
            f"The greatest cosine is {max_cosine:g}. It is from -1 to 1, such as 0.99.",
            code="similar-max-cosine",
        )
    table = table if isinstance(table, VectorTable) else VectorTable.open(table)
    vector, row = query_vector(table, query)
    if approximate is None:
        approximate = table.num_rows >= EXACT_ROWS
    search = nearest_approximate if approximate else nearest_exact
    own = None if row is None else table.names([row])[0]
    if own is None and not isinstance(query, np.ndarray):
        own = TrackNames(str(query), str(query), None)
    count = top + 8
    while True:
        [found] = search(table, vector[None], count)
        chosen = _choose(found, table, vector, own=own, own_row=row, top=top, max_cosine=max_cosine)
        if len(chosen) == top or len(found.rows) < count:
            return chosen
        count *= 4


def query_file(table: VectorTable, query: str) -> tuple[str, float | None]:
    """Return the path of a query, and its length in seconds if the table has it."""
    row = table.find(query)
    if row is None:
        return query, None
    [names] = table.names([row])
    return names.path, names.duration


def query_vector(table: VectorTable, query: str | Path | Vectors) -> tuple[Vectors, int | None]:
    """Return the vector of a query, (size,), and its row if the table has it.

    Raises:
        UserError: There is no such track or file, or its vector cannot be compared.
    """
    if isinstance(query, np.ndarray):
        row, vector, name = None, query.astype(np.float32), "the query"
    else:
        name = str(query)
        row = table.find(name)
        found = embed_query(table, name) if row is None else table.vector(row)
        if found is None:
            raise UserError(
                f"{name} has no vector in {table.folder} that can be compared: its file could not be read, "
                "or the vector is zero or not finite. Choose another track.",
                code="similar-query-without-vector",
            )
        vector = found
    if vector.shape != (table.size,):
        raise UserError(
            f"The vector of {name} has the shape {vector.shape}; those of {table.folder} have "
            f"({table.size},).",
            code="similar-query-shape",
        )
    norm = np.linalg.norm(vector.astype(np.float64))
    if not np.isfinite(norm) or norm == 0:
        raise UserError(
            f"The vector of {name} is zero or not finite, so it has no cosine. Choose another track.",
            code="similar-query-without-vector",
        )
    return vector, row


def _choose(
    found: Candidates,
    table: VectorTable,
    query: Vectors,
    *,
    own: TrackNames | None,
    own_row: int | None,
    top: int,
    max_cosine: float | None,
) -> list[SimilarTrack]:
    """Return the first tracks that are none of the query, of one file, or of one recording."""
    seen_paths = set() if own is None else {_as_file(own.path)}
    seen_units = [unit(query)]
    chosen: list[SimilarTrack] = []
    for number, names in enumerate(table.names(found.rows.tolist())):
        if len(chosen) == top:
            break
        path, direction = _as_file(names.path), unit(found.vectors[number])
        is_version = max_cosine is not None and bool(
            (np.stack(seen_units) @ direction > max_cosine).any()
        )
        if int(found.rows[number]) == own_row or path in seen_paths or is_version:
            continue
        seen_paths.add(path)
        seen_units.append(direction)
        chosen.append(SimilarTrack(**names._asdict(), cosine=float(found.cosines[number])))
    return chosen


def _as_file(path: str) -> str:
    """Return a path by which a file is recognised, whatever its links; an address as it is."""
    return path if "://" in path else os.path.realpath(path)
