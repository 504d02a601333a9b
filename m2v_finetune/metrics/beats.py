"""Metrics of beats, downbeats and tempo, of one track; `mean_report` averages them over tracks."""

import numpy as np
from numpy.typing import ArrayLike

F_MEASURE_WINDOW_SECONDS = 0.07
"""Maximum distance of an estimated beat from the true one. Source: Davies et al. (2009), mir_eval."""

TEMPO_TOLERANCE = 0.04
"""Share of the true tempo by which an estimate may be off. Source: Gouyon et al. (2006)."""


def beat_scores(
    reference_times: ArrayLike, estimated_times: ArrayLike, *, skip_seconds: float = 0.0
) -> dict[str, float]:
    """Score the beats of one track, or in the same way its downbeats.

    Source: mir_eval.beat; Davies, Degara and Plumbley, Evaluation Methods for Musical Audio Beat
    Tracking Algorithms (2009). Like that paper, mir_eval allows the off-beat, double and half tempo in
    AMLt; madmom allows triple tempo and a third of it as well.

    The beats of the first seconds count by default, as in madmom: skipping them would leave out most
    of a short clip. `mir_eval.beat.evaluate` and the evaluation of Beat This (Foscarin et al., ISMIR
    2024) leave out the first 5 seconds; compare with them by `skip_seconds=5`.

    Args:
        reference_times: (beats,) true times in seconds, increasing.
        estimated_times: (beats,) estimated times in seconds, increasing.
        skip_seconds: Beats before this time, true and estimated, are left out.

    Returns:
        All in [0, 1], or nan where there is nothing to score:

        - `f_measure`: of beats within 70 ms, each matched once.
        - `cmlt`: share of beats that are continuous at the correct metrical level (CMLt).
        - `amlt`: the same at any of the allowed metrical levels (AMLt).

        Without a true beat all are nan; with one true beat `cmlt` and `amlt` are, as there is no
        interval. Without an estimated beat all defined scores are 0.

    Raises:
        ValueError: From mir_eval, where times do not increase, are not one-dimensional, or exceed
            30,000 seconds.

    Example:
        >>> beat_scores([1.0, 1.5, 2.0, 2.5], [1.01, 1.51, 2.01, 2.51])
        {'f_measure': 1.0, 'cmlt': 1.0, 'amlt': 1.0}
    """
    from mir_eval import beat

    reference = beat.trim_beats(np.asarray(reference_times, np.float64), skip_seconds)
    estimate = beat.trim_beats(np.asarray(estimated_times, np.float64), skip_seconds)
    if len(reference) == 0:
        return {"f_measure": np.nan, "cmlt": np.nan, "amlt": np.nan}
    scores = {"f_measure": 0.0, "cmlt": 0.0, "amlt": 0.0}
    if len(estimate) > 0:
        scores["f_measure"] = beat.f_measure(reference, estimate, F_MEASURE_WINDOW_SECONDS)
    if len(estimate) > 1 and len(reference) > 1:
        _, cmlt, _, amlt = beat.continuity(reference, estimate)
        scores |= {"cmlt": float(cmlt), "amlt": float(amlt)}
    if len(reference) == 1:
        scores |= {"cmlt": np.nan, "amlt": np.nan}
    return scores


def tempo_scores(reference_bpm: float, estimated_bpm: float) -> dict[str, float]:
    """Score the tempo of one track.

    Source: Gouyon et al., An experimental comparison of audio tempo induction algorithms, IEEE
    Transactions on Audio, Speech, and Language Processing 14(5), 2006.

    Args:
        reference_bpm: True tempo in beats a minute; nan if it is unknown.
        estimated_bpm: Estimated tempo in beats a minute; nan if there is none.

    Returns:
        `tempo_accuracy_1`: 1 if the estimate is within 4 % of the true tempo, else 0.
        `tempo_accuracy_2`: 1 if it is within 4 % of the true tempo or of its double, triple, half
        or third, else 0. Both are nan without a true tempo and 0 without an estimate.

    Example:
        >>> tempo_scores(120.0, 61.0)
        {'tempo_accuracy_1': 0.0, 'tempo_accuracy_2': 1.0}
    """
    if np.isnan(reference_bpm):
        return {"tempo_accuracy_1": np.nan, "tempo_accuracy_2": np.nan}
    targets = reference_bpm * np.array([1.0, 2.0, 3.0, 1 / 2, 1 / 3])
    is_hit = np.abs(estimated_bpm - targets) / targets <= TEMPO_TOLERANCE  # never for nan
    return {"tempo_accuracy_1": float(is_hit[0]), "tempo_accuracy_2": float(is_hit.any())}


def tempo_from_beats(times: ArrayLike) -> float:
    """Tempo of beats in beats a minute: 60 over the median interval.

    Args:
        times: (beats,) times in seconds, strictly increasing.

    Returns:
        The tempo, nan for fewer than two beats.

    Example:
        >>> tempo_from_beats([0.0, 0.5, 1.0, 1.6])
        120.0
    """
    intervals = np.diff(np.asarray(times, np.float64))
    return float(60 / np.median(intervals)) if len(intervals) > 0 else float("nan")
