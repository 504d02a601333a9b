"""Helpers of the reports of all metrics: values with their intervals, as JSON values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m2v_finetune.metrics.intervals import Statistic, bootstrap_interval, mean_of_tracks


def none_if_nan(value: float) -> float | None:
    """Return a value for JSON: None instead of nan."""
    return None if math.isnan(value) else float(value)


def with_interval(statistic: Statistic, num_tracks: int, *, seed: int) -> dict[str, float | None]:
    """Value of a statistic and its 95 % bootstrap interval over tracks.

    Args:
        statistic: Statistic of counts of draws (`m2v_finetune.metrics.intervals`).
        num_tracks: Number of tracks, at least 1.
        seed: Seed of the bootstrap.

    Returns:
        `{"value": ..., "low": ..., "high": ...}`, None for undefined values.

    Raises:
        ValueError: There is no track.
    """
    low, high = bootstrap_interval(statistic, num_tracks, seed=seed)
    value = float(statistic(np.ones((1, num_tracks), dtype=np.int32))[0])
    return {"value": none_if_nan(value), "low": none_if_nan(low), "high": none_if_nan(high)}


def mean_report(
    per_track: Sequence[Mapping[str, float]], names: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Report the mean over tracks of scores that each track has by itself.

    Args:
        per_track: Scores of each track by name. A score that a track does not have is nan, such
            as that of downbeats where none are annotated.
        names: Names of the scores to report.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values, None for a score that no track has::

            {
                "metrics": {name: {"value": 0.88, "low": 0.86, "high": 0.90}, ...},
                "num_tracks": {name: number of tracks that have the score, ...},
            }

        `value` is the mean over those tracks, `low` and `high` a 95 % bootstrap interval.

    Raises:
        ValueError: There is no track.
    """
    columns = {name: np.array([scores[name] for scores in per_track], float) for name in names}
    return {
        "metrics": {
            name: with_interval(mean_of_tracks(values), len(per_track), seed=seed)
            for name, values in columns.items()
        },
        "num_tracks": {
            name: int(np.count_nonzero(~np.isnan(values))) for name, values in columns.items()
        },
    }
