"""Training targets: events at the exact times of frames. The inverse of decoding.

Times are never rounded before they meet the frames of a window: an event belongs to the frame whose
centre is nearest, and a segment to the frames whose centres are in it. Windows of one track whose
starts are on the grid therefore agree on every frame that they share.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEIGHBOUR_TARGET = 0.5


def nearest_frames(
    times_seconds: ArrayLike, frame_times_seconds: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Return the frames of a window's grid whose centres are nearest.

    Args:
        times_seconds: Shape (events,).
        frame_times_seconds: Times of the window's frames, evenly spaced, at least two.

    Returns:
        Frames, counted from the window's first one and continued on either side of the window:
        below 0 before it, from ``len(frame_times_seconds)`` on after it; shape (events,).
    """
    first, last = frame_times_seconds[0], frame_times_seconds[-1]
    frames = (np.asarray(times_seconds, dtype=np.float64) - first) / (last - first)
    nearest: NDArray[np.intp] = np.rint(frames * (len(frame_times_seconds) - 1)).astype(np.intp)
    return nearest


def beat_targets(
    times_seconds: ArrayLike, frame_times_seconds: NDArray[np.float64], *, width_frames: int
) -> NDArray[np.float32]:
    """Return 1 at the frame of each beat and 0.5 at its neighbours.

    Args:
        times_seconds: Beats of the track, or downbeats; those outside the window have no effect on
            it, except by a neighbour inside.
        frame_times_seconds: Times of the window's frames, evenly spaced, at least two.
        width_frames: Neighbours on each side that count as half a beat; 0 for none.

    Returns:
        Targets, shape (frames,).

    Source: neighbours of 0.5, one on each side, in Davies, Böck and Fuentes, "Tempo, Beat and Downbeat
    Estimation", tutorial at ISMIR 2021.
    """
    frames = nearest_frames(times_seconds, frame_times_seconds)
    targets = np.zeros(len(frame_times_seconds), dtype=np.float32)
    for shift in (*range(-width_frames, 0), *range(1, width_frames + 1)):
        targets[_inside(frames + shift, len(targets))] = NEIGHBOUR_TARGET
    targets[_inside(frames, len(targets))] = 1.0
    return targets


def chord_targets(
    segments: Sequence[tuple[float, float, int]],
    frame_times_seconds: NDArray[np.float64],
    *,
    outside: int,
) -> NDArray[np.int64]:
    """Return the class at each frame's centre.

    Args:
        segments: (start in seconds, end in seconds, class), in order, without overlap. The end is
            not part of the segment.
        frame_times_seconds: Times of the frames, shape (frames,).
        outside: Value of frames in no segment.

    Returns:
        Classes, shape (frames,).
    """
    targets = np.full(len(frame_times_seconds), outside, dtype=np.int64)
    for start, end, label in segments:
        first, stop = np.searchsorted(frame_times_seconds, (start, end))
        targets[first:stop] = label
    return targets


def note_targets(
    onsets_seconds: ArrayLike,
    offsets_seconds: ArrayLike,
    pitches: ArrayLike,
    frame_times_seconds: NDArray[np.float64],
    *,
    num_pitches: int = 88,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the onsets and the active frames of notes as rolls of 0 and 1.

    Args:
        onsets_seconds: Shape (notes,).
        offsets_seconds: Shape (notes,), each after its onset.
        pitches: Pitch indices from 0 to ``num_pitches - 1``, shape (notes,).
        frame_times_seconds: Times of the window's frames, evenly spaced, at least two.
        num_pitches: Columns of the rolls; a piano has 88.

    Returns:
        The onset roll, 1 at the frame nearest to each onset, and the frame roll, 1 from there to the
        last frame whose centre is before the offset; each of shape (frames, num_pitches). A note
        has at least the frame of its onset; one that started before the window has no onset in it.

    Source: the two targets of Hawthorne et al., "Onsets and Frames", arXiv 1710.11153; their onsets
    last 32 ms, which is one of their frames.
    """
    num_frames = len(frame_times_seconds)
    first_frames = nearest_frames(onsets_seconds, frame_times_seconds)
    stops = np.searchsorted(frame_times_seconds, np.asarray(offsets_seconds, dtype=np.float64))
    onset_roll = np.zeros((num_frames, num_pitches), dtype=np.float32)
    frame_roll = np.zeros_like(onset_roll)
    for first, stop, pitch in zip(
        first_frames.tolist(), stops.tolist(), np.asarray(pitches).tolist(), strict=True
    ):
        frame_roll[max(0, first) : max(0, first + 1, stop), pitch] = 1.0
        if 0 <= first < num_frames:
            onset_roll[first, pitch] = 1.0
    return onset_roll, frame_roll


def _inside(frames: NDArray[np.intp], num_frames: int) -> NDArray[np.intp]:
    """Return the frames that a window has."""
    return frames[(frames >= 0) & (frames < num_frames)]
