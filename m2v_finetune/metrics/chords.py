"""Metrics of chords: weighted chord symbol recall by mir_eval, of a track and of a data set.

The recall of a data set is the mean over its tracks, weighted by the seconds of each that counted:
the share of all time that counts in which the estimate is right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from m2v_finetune.metrics.intervals import Statistic, mean_of_tracks
from m2v_finetune.metrics.reports import with_interval

VOCABULARIES = ("majmin", "root")
"""`majmin` compares major, minor and no chord; `root` the roots alone."""


def chord_scores(
    reference_intervals: ArrayLike,
    reference_labels: Sequence[str],
    estimated_intervals: ArrayLike,
    estimated_labels: Sequence[str],
) -> dict[str, float]:
    """Score the chords of one track.

    The estimate is cut to the span of the reference and filled with "N" where it has none. Time
    whose reference is outside the vocabulary (for `majmin` for example a suspended or diminished
    chord, for both "X") does not count.

    Source: `mir_eval.chord.evaluate` (Raffel et al., ISMIR 2014), and for the weighting by duration
    Pauwels and Peeters, Evaluating automatically estimated chord sequences, ICASSP 2013.

    Args:
        reference_intervals: (chords, 2) true starts and ends in seconds, in order and without gaps.
        reference_labels: (chords,) true labels in Harte's syntax, such as "A:min" or "N".
        estimated_intervals: (chords, 2) estimated starts and ends in seconds; (0, 2) for none.
        estimated_labels: (chords,) estimated labels.

    Returns:
        `majmin` and `root`, the shares of the time that counts in which the estimate is right, nan
        where none counts, and `majmin_seconds` and `root_seconds`, the time that counts.

    Raises:
        mir_eval.chord.InvalidChordException: A label is not a chord.

    Example:
        >>> chord_scores([[0, 2], [2, 4]], ["C:maj", "A:min"], [[0, 3], [3, 4]], ["C:maj", "A:maj"])
        {'majmin': 0.5, 'majmin_seconds': 4.0, 'root': 0.75, 'root_seconds': 4.0}
    """
    from mir_eval import chord, util

    reference = np.asarray(reference_intervals, np.float64)
    # A list of its own, as mir_eval may append to it.
    estimate, labels = util.adjust_intervals(
        np.asarray(estimated_intervals, np.float64),
        list(estimated_labels),
        reference.min(),
        reference.max(),
        chord.NO_CHORD,
        chord.NO_CHORD,
    )
    intervals, true_labels, labels = util.merge_labeled_intervals(
        reference, list(reference_labels), estimate, labels
    )
    durations = util.intervals_to_durations(intervals)
    scores: dict[str, float] = {}
    for name, compare in zip(VOCABULARIES, (chord.majmin, chord.root), strict=True):
        comparisons = compare(true_labels, labels)
        seconds = float(durations[comparisons >= 0].sum())
        recall = chord.weighted_accuracy(comparisons, durations) if seconds > 0 else np.nan
        scores |= {name: float(recall), f"{name}_seconds": seconds}
    return scores


def chord_report(per_track: Sequence[Mapping[str, float]], *, seed: int = 0) -> dict[str, Any]:
    """Report the weighted chord symbol recall of a data set, with intervals.

    Args:
        per_track: Output of `chord_scores` for each track.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values, None for an undefined value::

            {
                "metrics": {
                    "majmin": {"value": 0.62, "low": 0.60, "high": 0.64},
                    "root": {"value": 0.68, "low": 0.66, "high": 0.70},
                },
                "seconds": {"majmin": 41230.5, "root": 43012.0},  # time that counted
            }

        `low` and `high` are a 95 % bootstrap interval over tracks.

    Raises:
        ValueError: There is no track.
    """
    seconds = {name: [scores[f"{name}_seconds"] for scores in per_track] for name in VOCABULARIES}
    return {
        "metrics": {
            name: with_interval(statistic, len(per_track), seed=seed)
            for name, statistic in chord_statistics(per_track).items()
        },
        "seconds": {name: float(sum(values)) for name, values in seconds.items()},
    }


def chord_statistics(per_track: Sequence[Mapping[str, float]]) -> dict[str, Statistic]:
    """Return the recalls of `chord_report` as statistics of counts of draws."""
    return {
        name: mean_of_tracks(
            [scores[name] for scores in per_track],
            [scores[f"{name}_seconds"] for scores in per_track],
        )
        for name in VOCABULARIES
    }
