"""Chords of a track from the class probabilities of its frames."""

import numpy as np
from numpy.typing import NDArray


def decode_chords(
    log_probabilities: NDArray[np.floating],
    frame_times_seconds: NDArray[np.float64],
    duration_seconds: float,
    *,
    self_transition: float,
) -> list[tuple[float, float, int]]:
    """Return the most likely sequence of chords under a model in which chords last.

    A hidden Markov model with one state a class: from a frame to the next the chord stays with
    probability `self_transition`, and changes to each other one with the same probability.

    Args:
        log_probabilities: Shape (frames, classes), at least one frame and two classes.
        frame_times_seconds: Times of the frames, ascending, shape (frames,).
        duration_seconds: Length of the track.
        self_transition: Below 1 and at least 1 / classes, with which nothing is smoothed.

    Returns:
        Segments (start in seconds, end in seconds, class), in order. They tile the track from 0 to
        `duration_seconds`; between frames of different classes the border is half-way. Neighbours
        have different classes.

    Raises:
        ValueError: `self_transition` is out of range.

    Source: Viterbi decoding with a self-transition, as in Cho and Bello, "On the Relative Importance
    of Individual Components of Chord Recognition Systems", IEEE/ACM TASLP 2014.
    """
    classes = _most_likely_classes(log_probabilities, self_transition)
    changes = np.flatnonzero(np.diff(classes)) + 1
    inner = (frame_times_seconds[changes - 1] + frame_times_seconds[changes]) / 2
    borders = [0.0, *inner.tolist(), duration_seconds]
    firsts = [0, *changes.tolist()]
    return [
        (start, end, int(classes[first]))
        for start, end, first in zip(borders[:-1], borders[1:], firsts, strict=True)
    ]


def _most_likely_classes(
    log_probabilities: NDArray[np.floating], self_transition: float
) -> NDArray[np.intp]:
    """Return the Viterbi path, shape (frames,)."""
    num_frames, num_classes = log_probabilities.shape
    if not 1 / num_classes <= self_transition < 1:
        raise ValueError(
            f"self_transition={self_transition} must be at least 1/{num_classes} and below 1"
        )
    log_stay = np.log(self_transition)
    log_change = np.log((1 - self_transition) / (num_classes - 1))
    scores = log_probabilities[0].astype(np.float64)
    came_from = np.empty((num_frames, num_classes), dtype=np.intp)
    own = np.arange(num_classes)
    for frame in range(1, num_frames):
        # All changes cost the same, so the best one starts at the best class.
        best = int(scores.argmax())
        change, stay = scores[best] + log_change, scores + log_stay
        came_from[frame] = np.where(stay >= change, own, best)
        scores = np.maximum(stay, change) + log_probabilities[frame]
    path = np.empty(num_frames, dtype=np.intp)
    path[-1] = scores.argmax()
    for frame in range(num_frames - 1, 0, -1):
        path[frame - 1] = came_from[frame, path[frame]]
    return path
