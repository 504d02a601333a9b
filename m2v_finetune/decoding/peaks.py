"""Peaks of an activation, finer than the frames that it is sampled at."""

import numpy as np
from numpy.typing import NDArray


def find_peaks(activation: NDArray[np.floating], threshold: float) -> NDArray[np.intp]:
    """Return the frames where an activation has a local maximum.

    A plateau counts once, at its first frame; the ends of the activation count as falling.

    >>> find_peaks(np.array([0.9, 0.1, 0.3, 0.1, 0.7, 0.7]), 0.5).tolist()
    [0, 4]

    Args:
        activation: Shape (frames,).
        threshold: Least value of a peak.

    Returns:
        Frames, ascending, shape (peaks,).
    """
    before = np.concatenate([[-np.inf], activation[:-1]])
    after = np.concatenate([activation[1:], [-np.inf]])
    # A rise makes a peak if the next change after it, past any plateau, is a fall.
    change = np.flatnonzero(activation != after)
    next_change = change[np.searchsorted(change, np.arange(len(activation)))]
    falls = after[next_change] < activation
    return np.flatnonzero((activation > before) & falls & (activation >= threshold))


def refine_peaks(activation: NDArray[np.floating], peaks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the positions of peaks between frames, by a parabola through each and its neighbours.

    >>> refine_peaks(np.array([0.0, 0.6, 1.0, 0.8, 0.0]), np.array([2])).round(3).tolist()
    [2.167]

    Args:
        activation: Shape (frames,).
        peaks: Frames, shape (peaks,).

    Returns:
        Positions in frames, at most half a frame from `peaks`, shape (peaks,). A frame at an end of
        the activation, or one that is lower than a neighbour, stays where it is.

    Source: J. O. Smith, Spectral Audio Signal Processing, "Quadratic Interpolation of Spectral Peaks".
    """
    inner = (peaks > 0) & (peaks < len(activation) - 1)
    middle = peaks[inner]
    left, top, right = (activation[middle + shift].astype(np.float64) for shift in (-1, 0, 1))
    curvature = left - 2 * top + right
    is_peak = (top >= left) & (top >= right) & (curvature < 0)
    shift = np.divide(left - right, 2 * curvature, out=np.zeros(len(middle)), where=is_peak)
    positions = peaks.astype(np.float64)
    positions[inner] += shift
    return positions


def times_at(
    positions: NDArray[np.float64], frame_times_seconds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the times of positions between frames, in seconds.

    Args:
        positions: In frames, shape (positions,).
        frame_times_seconds: Times of the frames, shape (frames,).
    """
    return np.interp(positions, np.arange(len(frame_times_seconds)), frame_times_seconds)
