"""Tables of predictions and embeddings for a catalogue of any size: computed in shards, resumed by id."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2v_finetune.catalogue.analysis import Analysis, Layout, Pass
    from m2v_finetune.catalogue.embeddings import Embeddings, load_network
    from m2v_finetune.catalogue.items import Item
    from m2v_finetune.catalogue.predictions import NamedModel, Predictions, model_name
    from m2v_finetune.catalogue.run import SHARD_TRACKS, CatalogueSummary, run_catalogue
    from m2v_finetune.catalogue.sources import Sources, read_items
    from m2v_finetune.catalogue.tracks import track_rows

__all__ = [
    "SHARD_TRACKS",
    "Analysis",
    "CatalogueSummary",
    "Embeddings",
    "Item",
    "Layout",
    "NamedModel",
    "Pass",
    "Predictions",
    "Sources",
    "load_network",
    "model_name",
    "read_items",
    "run_catalogue",
    "track_rows",
]

_NAMES = {
    "analysis": ("Analysis", "Layout", "Pass"),
    "embeddings": ("Embeddings", "load_network"),
    "items": ("Item",),
    "predictions": ("NamedModel", "Predictions", "model_name"),
    "run": ("SHARD_TRACKS", "CatalogueSummary", "run_catalogue"),
    "sources": ("Sources", "read_items"),
    "tracks": ("track_rows",),
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: files are found and checked without torch."""
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
