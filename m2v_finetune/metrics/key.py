"""Metrics of musical keys: the MIREX weighted score, accuracy, and which errors are made.

A key is an index from 0 to 23: the pitch class of its tonic (0 for C, 11 for B), plus 12 if it is
minor.

The weighted score has the definition of `mir_eval.key.weighted_score`: a fifth counts half only if
the *estimate is a perfect fifth above* the reference (G major for C major), not if it is a fifth
below (F major for C major). MIREX's table speaks of a "perfect fifth" without a direction, and some
evaluations count both; the errors a fifth below are reported apart, so that each such track adds
0.5 / tracks to the score under that reading.

Source: mir_eval 0.8 (Raffel et al., ISMIR 2014); weights by the MIREX Audio Key Detection task.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import confusion_matrix

from m2v_finetune.metrics.intervals import Statistic, mean_of_tracks
from m2v_finetune.metrics.multiclass import check_classes_and_scores
from m2v_finetune.metrics.reports import with_interval

NUM_KEYS = 24

KEY_RELATION_SCORES = {
    "correct": 1.0,
    "fifth": 0.5,
    "relative": 0.3,
    "parallel": 0.2,
    "fifth below": 0.0,
    "other": 0.0,
}
"""Weight of an estimate in the score, by its relation to the reference."""


def key_relation(reference: int, estimate: int) -> str:
    """Name how an estimated key relates to the reference.

    Args:
        reference: True key, 0 to 23.
        estimate: Estimated key, 0 to 23.

    Returns:
        A name in `KEY_RELATION_SCORES`: "correct"; "fifth" (same mode, a perfect fifth above);
        "relative" (the other mode with the same signature); "parallel" (the other mode on the same
        tonic); "fifth below" (same mode, a perfect fifth below); or "other".

    Raises:
        ValueError: A key is outside 0 to 23.

    Example:
        >>> key_relation(0, 7), key_relation(0, 5), key_relation(0, 21)
        ('fifth', 'fifth below', 'relative')
    """
    for key in (reference, estimate):
        if not 0 <= key < NUM_KEYS:
            raise ValueError(f"The key {key} is outside 0 (C major) to {NUM_KEYS - 1} (B minor).")
    reference_is_minor, reference_tonic = divmod(reference, 12)
    estimate_is_minor, estimate_tonic = divmod(estimate, 12)
    semitones_up = (estimate_tonic - reference_tonic) % 12
    if reference_is_minor == estimate_is_minor:
        return {0: "correct", 7: "fifth", 5: "fifth below"}.get(semitones_up, "other")
    relative_semitones_up = 3 if reference_is_minor else 9
    return {0: "parallel", relative_semitones_up: "relative"}.get(semitones_up, "other")


def key_report(references: ArrayLike, scores: ArrayLike, *, seed: int = 0) -> dict[str, Any]:
    """Report the weighted score and the accuracy of keys, with intervals, and the kinds of errors.

    The estimated key of a track is the one with the highest score.

    Args:
        references: (tracks,) true keys, 0 to 23.
        scores: (tracks, 24), finite; the higher, the likelier.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values::

            {
                "metrics": {
                    "mirex_score": {"value": 0.66, "low": 0.63, "high": 0.69},
                    "accuracy": {"value": 0.58, "low": 0.54, "high": 0.62},
                },
                "error_kinds": {
                    "correct": {"count": 350, "share": 0.58},
                    "fifth": ..., "relative": ..., "parallel": ..., "fifth below": ..., "other": ...
                },
                "confusion": [[number of tracks, ...], ...],  # (24, 24): rows true keys, columns estimates
            }

        `low` and `high` are a 95 % bootstrap interval over tracks.

    Raises:
        ValueError: The scores do not have 24 columns, or the references and scores are not as
            `check_classes_and_scores` wants them.
    """
    keys, score_array = check_classes_and_scores(references, scores)
    if score_array.shape[1] != NUM_KEYS:
        raise ValueError(f"Scores of {score_array.shape[1]} classes: there are {NUM_KEYS} keys.")
    estimates = score_array.argmax(axis=1)
    relations = _relations(keys, estimates)
    return {
        "metrics": {
            name: with_interval(statistic, len(keys), seed=seed)
            for name, statistic in key_statistics(keys, score_array).items()
        },
        "error_kinds": {
            kind: {"count": relations.count(kind), "share": relations.count(kind) / len(keys)}
            for kind in KEY_RELATION_SCORES
        },
        "confusion": confusion_matrix(keys, estimates, labels=np.arange(NUM_KEYS)).tolist(),
    }


def key_statistics(references: ArrayLike, scores: ArrayLike) -> dict[str, Statistic]:
    """Return weighted score and accuracy as statistics of counts of draws; arguments of `key_report`."""
    keys, score_array = check_classes_and_scores(references, scores)
    estimates = score_array.argmax(axis=1)
    points = [KEY_RELATION_SCORES[relation] for relation in _relations(keys, estimates)]
    return {"mirex_score": mean_of_tracks(points), "accuracy": mean_of_tracks(keys == estimates)}


def _relations(keys: NDArray[np.intp], estimates: NDArray[np.intp]) -> list[str]:
    return [key_relation(int(key), int(one)) for key, one in zip(keys, estimates, strict=True)]
