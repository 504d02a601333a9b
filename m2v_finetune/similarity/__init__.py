"""Nearest tracks in a table of embeddings: exact search, an approximate index, and playlists."""

from m2v_finetune.similarity.nearest import SimilarTrack, query_file, similar_tracks
from m2v_finetune.similarity.playlist import check_playlist, write_playlist
from m2v_finetune.similarity.table import VectorTable

__all__ = [
    "SimilarTrack",
    "VectorTable",
    "check_playlist",
    "query_file",
    "similar_tracks",
    "write_playlist",
]
