"""Sections of a track from the boundary and label probabilities of its frames, and boundary targets."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_SECTION_SECONDS = 1.0
"""Own choice: of two peaks that are nearer than this, the higher one is a boundary."""


def boundary_targets(
    times_seconds: ArrayLike, frame_times_seconds: NDArray[np.float64], *, std_seconds: float
) -> NDArray[np.float32]:
    """Return a Gaussian around each boundary, 1 at its time.

    Args:
        times_seconds: Boundaries, (boundaries,).
        frame_times_seconds: Centres of the frames, (frames,).
        std_seconds: Standard deviation of the Gaussian.

    Returns:
        Targets, (frames,).

    Source: targets that are spread in time, Ullrich, Schlüter and Grill, "Boundary Detection in Music
    Structure Analysis using Convolutional Neural Networks", ISMIR 2014.
    """
    times = np.asarray(times_seconds, dtype=np.float64)
    if not times.size:
        return np.zeros(len(frame_times_seconds), dtype=np.float32)
    distances = np.abs(frame_times_seconds[:, None] - times).min(axis=1)
    targets: NDArray[np.float32] = np.exp(-0.5 * (distances / std_seconds) ** 2).astype(np.float32)
    return targets


def decode_sections(
    boundaries: NDArray[np.floating],
    labels: NDArray[np.floating],
    frame_times_seconds: NDArray[np.float64],
    duration_seconds: float,
    *,
    threshold: float,
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the sections of a track.

    Args:
        boundaries: Probability of a boundary, (frames,).
        labels: Probability of each label, (frames, labels).
        frame_times_seconds: Centres of the frames, evenly spaced, (frames,).
        duration_seconds: Length of the track.
        threshold: Probability from which a peak is a boundary.

    Returns:
        Borders in seconds from 0 to the end of the track, (sections + 1,), and the label of each section,
        (sections,): the one with the highest mean probability.
    """
    from scipy.signal import find_peaks

    peaks = np.zeros(0, dtype=np.intp)
    if len(frame_times_seconds) > 1:
        hop_seconds = frame_times_seconds[1] - frame_times_seconds[0]
        distance = max(1, round(MIN_SECTION_SECONDS / hop_seconds))
        peaks, _ = find_peaks(boundaries, height=threshold, distance=distance)
    times = frame_times_seconds[peaks]
    firsts = [0, *peaks.tolist()]
    stops = [*peaks.tolist(), len(labels)]
    numbers = [
        labels[first:stop].mean(axis=0).argmax() for first, stop in zip(firsts, stops, strict=True)
    ]
    return np.array([0.0, *times, duration_seconds]), np.array(numbers, dtype=np.intp)
