"""Vector of a file that is not in a table: embedded as the table was."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2v_finetune.data.feature_tables import CATALOGUE_FILE
from m2v_finetune.errors import UserError
from m2v_finetune.similarity.table import Vectors, VectorTable

if TYPE_CHECKING:
    from m2v_finetune.catalogue.embeddings import Embeddings

BATCH_SIZE = 16


def embed_query(table: VectorTable, path: str) -> Vectors:
    """Return the vector of an audio file, (size,), by the network, layers and windows of a table.

    Raises:
        UserError: The file cannot be read, or the network that the table names cannot be loaded or has other
            weights now.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{path} is no id and no path in {table.folder}, and there is no such file. Give the id or path "
            "of a track of the table, or an audio file.",
            code="similar-query-missing",
        )
    embeddings = _embeddings_of(table)
    from m2v_finetune.catalogue.items import Item
    from m2v_finetune.catalogue.tracks import track_rows

    absolute = str(Path(path).absolute())
    [track] = track_rows(embeddings, [Item(path, absolute)], batch_size=BATCH_SIZE)
    [row] = track.rows
    if row["error"]:
        raise UserError(
            f"{path} cannot be embedded: {row['error']}", code="similar-query-unreadable"
        )
    vector: Vectors = np.asarray(row["vector"], np.float32)
    return vector


def _embeddings_of(table: VectorTable) -> "Embeddings":
    """Return what computed a table.

    Raises:
        UserError: It cannot be built, or would give other vectors.
    """
    file = table.folder / CATALOGUE_FILE
    identity: dict[str, Any] = table.metadata.get("identity") or {}
    try:
        source, layer = table.metadata["source"], identity["layer"]
        window_seconds = identity["window_samples"] / identity["sample_rate"]
        precision = identity["precision"]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{file} does not describe how its vectors were computed ({error!r}). Give the id of a track of "
            "the table, or write the table again with `m2v embed`.",
            code="vectors-no-identity",
        ) from error
    import torch

    from m2v_finetune.catalogue.embeddings import Embeddings, load_network
    from m2v_finetune.model import TaskModel

    network = load_network(source)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    embeddings = Embeddings(
        source,
        network,
        layer=layer if isinstance(layer, int) else None,
        precision=precision,
        window_seconds=None if isinstance(network, TaskModel) else window_seconds,
    )
    other = sorted(
        name
        for name in {*identity, *embeddings.identity}
        if identity.get(name) != embeddings.identity.get(name)
    )
    if other:
        raise UserError(
            f"{source}, which {file} names, has another {', '.join(other)} now than when the table was "
            "written, so its vectors cannot be compared. Restore that network; or write the table again with "
            f"`m2v embed {source} ... --output DIR`.",
            code="similar-other-network",
        )
    return embeddings
