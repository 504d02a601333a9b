"""Metrics of the pitch of single notes: accuracy, and accuracy within an octave class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from m2v_finetune.metrics.intervals import Statistic, mean_of_tracks
from m2v_finetune.metrics.multiclass import check_classes_and_scores, multiclass_report
from m2v_finetune.metrics.reports import with_interval

SEMITONES_PER_OCTAVE = 12


def pitch_class_accuracy(reference_pitches: ArrayLike, estimated_pitches: ArrayLike) -> float:
    """Share of the notes whose pitch is right up to octaves.

    Args:
        reference_pitches: (notes,) MIDI numbers, 60 for the middle C.
        estimated_pitches: (notes,) MIDI numbers.

    Returns:
        A value in [0, 1].

    Example:
        >>> pitch_class_accuracy([60, 61, 62, 63], [72, 61, 63, 27])
        0.75
    """
    difference = np.asarray(estimated_pitches) - np.asarray(reference_pitches)
    return float(np.mean(difference % SEMITONES_PER_OCTAVE == 0))


def pitch_report(
    references: ArrayLike, scores: ArrayLike, pitches: Sequence[int], *, seed: int = 0
) -> dict[str, Any]:
    """Report the accuracy of pitches, also within an octave class.

    Args:
        references: (tracks,) integer indices of the true classes.
        scores: (tracks, classes), finite; the higher, the likelier.
        pitches: MIDI number of each class, each once, in the order of the columns.
        seed: Seed of the bootstrap.

    Returns:
        The output of `multiclass_report` with the MIDI numbers as labels, and the metric
        `pitch_class_accuracy`: the share of the tracks whose predicted pitch is the true one or
        whole octaves away from it.

    Raises:
        ValueError: Errors of `multiclass_report`.
    """
    report = multiclass_report(references, scores, [str(pitch) for pitch in pitches], seed=seed)
    statistic = pitch_class_statistic(references, scores, pitches)
    num_tracks = len(np.asarray(references))
    report["metrics"]["pitch_class_accuracy"] = with_interval(statistic, num_tracks, seed=seed)
    return report


def pitch_class_statistic(
    references: ArrayLike, scores: ArrayLike, pitches: Sequence[int]
) -> Statistic:
    """Return the pitch class accuracy as a statistic of counts of draws; arguments of `pitch_report`."""
    classes, score_array = check_classes_and_scores(references, scores)
    pitch_classes = np.asarray(pitches) % SEMITONES_PER_OCTAVE
    return mean_of_tracks(pitch_classes[score_array.argmax(axis=1)] == pitch_classes[classes])
