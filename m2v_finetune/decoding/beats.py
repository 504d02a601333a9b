"""Beats and their positions in the bar, from frame probabilities.

Two steps, each an exact Viterbi search. The first finds beats in the bar-pointer model: a pointer
runs through each beat at one tempo and the tempo may change at beats. Between beats nothing is
decided, so the search goes from beat to beat: its state is (frame of a beat, interval to the next
one), and the frames between are a difference of cumulative sums. That is the same best path as over
all positions in a beat, at a fraction of the work. The second step counts: given the beats, which
are downbeats. The published model does both together; separate steps are simpler and faster, at the price
that downbeats cannot correct beats.

Source: Krebs, Böck and Widmer, "An Efficient State-Space Model for Joint Tempo and Meter Tracking",
ISMIR 2015; Böck, Krebs and Widmer, "Joint Beat and Downbeat Tracking with Recurrent Neural Networks",
ISMIR 2016. The constants below are the defaults of madmom, except where stated.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.decoding.peaks import refine_peaks, times_at

# The grid of beat intervals: madmom's models were made for 100 frames a second. On 50, the fastest
# tempi would be 7 % apart, and each change between two of them would cost more than it should.
LEAST_GRID_RATE_HZ = 100
# How strongly the tempo holds: a change by the ratio r has a probability that falls as exp(-100 |r - 1|).
TEMPO_CHANGE_RATE = 100.0
# A beat is expected in the first sixteenth of its interval.
BEAT_PARTS = 16
# A track has beats from the first to the last frame that reaches this.
ACTIVITY_THRESHOLD = 0.05
# Own choice: no frame is more certain than this, so that one missed beat does not decide a track.
LEAST_PROBABILITY = 0.01
# Own choice: how often a bar is followed by a bar of another length. It also lets the count recover
# where a beat is missing or too much.
METRE_CHANGE_PROBABILITY = 0.01


def decode_beats(
    beat_probabilities: NDArray[np.floating],
    downbeat_probabilities: NDArray[np.floating],
    frame_times_seconds: NDArray[np.float64],
    frame_rate: Fraction,
    *,
    min_bpm: float = 55.0,
    max_bpm: float = 215.0,
    beats_per_bar: Sequence[int] = (3, 4),
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the beats of a track.

    Args:
        beat_probabilities: In [0, 1], shape (frames,); downbeats are beats.
        downbeat_probabilities: In [0, 1], shape (frames,).
        frame_times_seconds: Times of the frames, shape (frames,).
        frame_rate: Frames a second, exact.
        min_bpm: Slowest tempo.
        max_bpm: Fastest tempo.
        beats_per_bar: Lengths of bars that may occur, each at least 2.

    Returns:
        Times in seconds, ascending and finer than the frames, and positions in the bar, where 1 is
        the downbeat; both of shape (beats,). No beats where no frame reaches `ACTIVITY_THRESHOLD`.

    Raises:
        ValueError: No interval of the grid is between the slowest and the fastest tempo.
    """
    frames = track_beats(beat_probabilities, frame_rate, min_bpm=min_bpm, max_bpm=max_bpm)
    positions = refine_peaks(beat_probabilities, frames)
    at_beats = downbeat_probabilities[_with_neighbours(frames, len(downbeat_probabilities))]
    bar_positions = count_bars(at_beats.max(axis=-1, initial=0.0), beats_per_bar)
    return times_at(positions, frame_times_seconds), bar_positions


def track_beats(
    probabilities: NDArray[np.floating], frame_rate: Fraction, *, min_bpm: float, max_bpm: float
) -> NDArray[np.intp]:
    """Return the frames of the beats, ascending, shape (beats,); see `decode_beats`."""
    active = np.flatnonzero(probabilities >= ACTIVITY_THRESHOLD)
    if not len(active):
        return np.zeros(0, dtype=np.intp)
    first, last = int(active[0]), int(active[-1])
    factor = max(1, math.ceil(LEAST_GRID_RATE_HZ / frame_rate))
    intervals = _intervals(frame_rate * factor, min_bpm, max_bpm)
    steps = np.arange((last - first) * factor + 1) / factor
    fine = np.interp(steps, np.arange(last - first + 1), probabilities[first : last + 1])
    # Silence as long as a beat, so that the first beat starts in the track and not before it.
    silence = _beat_steps(int(intervals[-1]))
    beats = []
    for start, interval in best_beats(np.pad(fine, (silence, 0)), intervals):
        # The beat is at the peak in the first part of its interval.
        low, end = start - silence, start - silence + _beat_steps(interval)
        if end > 0:
            low = max(0, low)
            beats.append(first + (low + int(fine[low:end].argmax())) // factor)
    frames = np.asarray(beats, dtype=np.intp)
    around = _with_neighbours(frames, len(probabilities))
    highest: NDArray[np.intp] = around[
        np.arange(len(frames)), probabilities[around].argmax(axis=-1)
    ]
    return highest


def count_bars(
    downbeat_probabilities: NDArray[np.floating], beats_per_bar: Sequence[int]
) -> NDArray[np.intp]:
    """Return the position in the bar of each beat, from 1, by a Viterbi search.

    States are the positions in bars of each length. Counting is certain within a bar; after its last
    beat comes a bar of the same length, or rarely (`METRE_CHANGE_PROBABILITY`) of another one. The
    track may start and end anywhere in a bar.

    Args:
        downbeat_probabilities: Probabilities of the beats, in [0, 1], shape (beats,).
        beats_per_bar: Lengths of bars that may occur.

    Returns:
        Positions, shape (beats,).
    """
    positions = np.concatenate([np.arange(1, length + 1) for length in beats_per_bar])
    starts = np.flatnonzero(positions == 1)
    ends = starts + np.asarray(beats_per_bar) - 1
    change = METRE_CHANGE_PROBABILITY / max(1, len(starts) - 1)
    transition = np.full((len(starts), len(starts)), np.log(change))
    np.fill_diagonal(transition, np.log1p(-METRE_CHANGE_PROBABILITY))

    clipped = np.clip(downbeat_probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    observed = np.where(positions == 1, np.log(clipped)[:, None], np.log1p(-clipped)[:, None])
    came_from = np.tile(np.arange(len(positions)) - 1, (len(observed), 1))
    scores = np.zeros(len(positions))
    for beat, observation in enumerate(observed):
        if beat:
            at_end = scores[ends][:, None] + transition
            came_from[beat, starts] = ends[at_end.argmax(axis=0)]
            scores = scores[came_from[beat]]
            scores[starts] = at_end.max(axis=0)
        scores = scores + observation
    path = np.zeros(len(observed), dtype=np.intp)
    state = int(scores.argmax())
    for beat in range(len(observed) - 1, -1, -1):
        path[beat] = positions[state]
        state = int(came_from[beat, state])
    return path


def _intervals(grid_rate: Fraction, min_bpm: float, max_bpm: float) -> NDArray[np.intp]:
    """Return the beat intervals between two tempi in steps of the grid, ascending."""
    shortest = math.ceil(60 * grid_rate / Fraction(max_bpm))
    longest = math.floor(60 * grid_rate / Fraction(min_bpm))
    if longest < shortest:
        raise ValueError(
            f"no beat interval of integer steps of {float(1 / grid_rate):.3g} s is between "
            f"min_bpm={min_bpm} and max_bpm={max_bpm}; widen the range"
        )
    return np.arange(shortest, longest + 1)


def _beat_steps(interval: int) -> int:
    """Return the number of steps of an interval that may hold its beat."""
    return math.ceil(interval / BEAT_PARTS)


def best_beats(
    probabilities: NDArray[np.float64], intervals: NDArray[np.intp]
) -> list[tuple[int, int]]:
    """Return (start step, interval) of each beat on the best path, in order.

    The track may start and end anywhere in a beat, all positions are equally likely; a beat that
    starts before the track is not returned.

    Args:
        probabilities: Probability of a beat at each step of the grid, shape (steps,).
        intervals: Possible intervals of a beat, in steps, ascending, shape (intervals,).
    """
    beat_steps = np.asarray([_beat_steps(interval) for interval in intervals.tolist()])
    columns = np.arange(len(intervals))
    ratios = intervals[:, None] / intervals
    change = np.exp(-TEMPO_CHANGE_RATE * np.abs(ratios - 1))
    # Row: interval of the next beat; column: of the one before.
    log_change = np.log(change / change.sum(axis=0))

    # The longest interval before and after the track has no evidence; steps count from its start.
    margin = int(intervals[-1])
    end = margin + len(probabilities)
    clipped = np.clip(probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    in_beat = _cumulative(np.pad(np.log(clipped), margin))
    between = _cumulative(np.pad(np.log1p(-clipped) - np.log(BEAT_PARTS - 1), margin))

    def score(starts: NDArray[np.intp]) -> NDArray[np.float64]:
        """Log-likelihood of the frames of a beat of each interval, (..., intervals)."""
        middles = starts + beat_steps
        scores: NDArray[np.float64] = (
            in_beat[middles] - in_beat[starts] + between[starts + intervals] - between[middles]
        )
        return scores

    # best[step % margin, i]: the best path up to a beat of interval i that starts at the step. Only
    # the last longest interval of it is needed. Zeros: paths start before the track.
    best = np.zeros((margin, len(intervals)))
    came_from = np.empty(
        (len(probabilities), len(intervals)), dtype=np.min_scalar_type(len(intervals))
    )
    # Within a shortest interval no beat follows another, so these steps are computed together.
    for first in range(margin, end, int(intervals[0])):
        steps = np.arange(first, min(end, first + int(intervals[0])))
        starts = steps[:, None] - intervals
        before = best[starts % margin, columns] + score(starts)
        arrived = log_change + before[:, None, :]
        chosen = arrived.argmax(axis=-1)
        came_from[steps - margin] = chosen
        best[steps % margin] = np.take_along_axis(arrived, chosen[..., None], axis=-1)[..., 0]

    starts = np.arange(end - margin, end)[:, None]
    totals = np.where(
        starts + intervals >= end, best[starts[:, 0] % margin] + score(starts), -np.inf
    )
    row, column = np.unravel_index(int(totals.argmax()), totals.shape)
    step = int(starts[row, 0])
    beats = []
    while step >= margin:
        beats.append((step - margin, int(intervals[column])))
        column = came_from[step - margin, column]
        step -= int(intervals[column])
    return beats[::-1]


def _with_neighbours(frames: NDArray[np.intp], num_frames: int) -> NDArray[np.intp]:
    """Return each frame with the one before and after it, shape (frames, 3)."""
    around: NDArray[np.intp] = np.clip(frames[:, None] + np.array([-1, 0, 1]), 0, num_frames - 1)
    return around


def _cumulative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sums of all leading parts, shape (values + 1,)."""
    return np.concatenate([[0.0], np.cumsum(values)])
