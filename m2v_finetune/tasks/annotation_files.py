"""Annotation files that a column of the manifest names."""

import os
from pathlib import Path

from m2v_finetune.data.manifest import Track
from m2v_finetune.data.paths import path_problem
from m2v_finetune.data.values import is_missing
from m2v_finetune.path_hints import did_you_mean


def annotation_path(track: Track, column: str) -> Path:
    """Return the annotation file of a track."""
    return track.folder / str(track.columns[column])


def missing_annotation(track: Track, column: str) -> str | None:
    """Return the reason why a track's column names no annotation file; None if it does."""
    written = track.columns.get(column)
    if not isinstance(written, str) or is_missing(written):
        return f"no path in the column '{column}', but {written!r}"
    if outside := path_problem(written, track.folder, track.path_rule):
        return outside
    path = track.folder / written
    if os.path.isfile(path):  # noqa: PTH113 (false for names that are too long, too)
        return None
    return f"there is no file {path}.{did_you_mean(path.absolute())}"
