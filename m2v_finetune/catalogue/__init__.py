"""Tables of predictions and embeddings for a catalogue of any size: computed in shards, resumed by id."""

from m2v_finetune.catalogue.analysis import Analysis, Layout, Pass
from m2v_finetune.catalogue.embeddings import Embeddings, load_network
from m2v_finetune.catalogue.predictions import NamedModel, Predictions, model_name
from m2v_finetune.catalogue.run import SHARD_TRACKS, CatalogueSummary, run_catalogue
from m2v_finetune.catalogue.sources import Item, Sources, read_items
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
