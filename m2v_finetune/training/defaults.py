"""Defaults of settings that depend on the training tracks.

benchmarks/defaults.py compares them with other settings (docs/defaults.md).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from m2v_finetune.backbones import build_architecture
from m2v_finetune.config import WINDOW_SECONDS, RecipeConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_tracks import Splits, shared_tracks
from m2v_finetune.tuning import is_small

MIN_WINDOW_SECONDS = 1.0
SHORT_TRACKS = 0.1
"""Largest share of training tracks that are shorter than a window, and padded."""
STEPS_PER_EPOCH = 32
"""Least number of optimizer steps of an epoch."""
NUM_VARIANTS = (4, 16)
"""Least and largest number of different windows of a track with the feature cache."""


def complete_settings(config: RecipeConfig, splits: Splits, run: Run) -> RecipeConfig:
    """Return the settings with defaults for training windows and trainable parameters.

    Args:
        config: All settings.
        splits: Tracks by split, at least one to train on. Those of `run_tracks.shared_tracks` decide the
            length of the window, or without such the training tracks.
        run: Run, with the number of processes.

    Raises:
        UserError: ``data.hop_seconds`` is longer than the default window.
    """
    data, training, tracks = config.data, config.training, splits["train"]
    if data.window_seconds is None and data.features is None:
        seen = shared_tracks(splits, config, run) or tracks
        data = replace(data, window_seconds=choose_window_seconds(seen))
    if data.windows_per_track is None:
        total_batch = (
            training.per_device_batch_size
            * training.gradient_accumulation_steps
            * run.num_processes
        )
        data = replace(data, windows_per_track=choose_windows_per_track(len(tracks), total_batch))
    return complete_tuning(replace(config, data=data))


def complete_tuning(config: RecipeConfig) -> RecipeConfig:
    """Return the settings with the default of ``tuning.train_conv_encoder`` for the backbone's size.

    Raises:
        UserError: The backbone cannot be found.
    """
    tuning = config.tuning
    if tuning.method != "full" or tuning.train_conv_encoder is not None:
        return config
    with torch.device("meta"):
        backbone = build_architecture(config.backbone.source, revision=config.backbone.revision)
    return replace(config, tuning=replace(tuning, train_conv_encoder=is_small(backbone)))


def choose_window_seconds(tracks: Sequence[CheckedTrack]) -> float:
    """Return the longest window, in seconds, that only few tracks are shorter than.

    Args:
        tracks: Training tracks, at least one.

    Returns:
        A multiple of 0.1 from `MIN_WINDOW_SECONDS` to `WINDOW_SECONDS`.
    """
    durations = sorted(checked.audio.duration_seconds for checked in tracks)
    shortest = durations[int(SHORT_TRACKS * len(durations))]
    # Rounded down; 1e-9 keeps 2.3 from becoming 2.2.
    rounded = math.floor(shortest * 10 + 1e-9) / 10
    return min(WINDOW_SECONDS, max(MIN_WINDOW_SECONDS, rounded))


def choose_windows_per_track(num_tracks: int, total_batch_size: int) -> int:
    """Return the number of windows per track for an epoch of at least `STEPS_PER_EPOCH` optimizer steps.

    >>> [choose_windows_per_track(num_tracks, 16) for num_tracks in (60, 300, 3000)]
    [9, 2, 1]
    """
    return max(1, math.ceil(STEPS_PER_EPOCH * total_batch_size / num_tracks))


def choose_num_variants(tracks: Sequence[CheckedTrack], window_seconds: float) -> int:
    """Return the number of different windows of a track in the feature cache.

    Args:
        tracks: Training tracks, at least one.
        window_seconds: Length of a window.
    """
    duration = statistics.median(checked.audio.duration_seconds for checked in tracks)
    least, most = NUM_VARIANTS
    return min(most, max(least, math.ceil(duration / window_seconds)))
