"""Metrics of piano transcription, of one track: notes and frames.

`m2v_finetune.metrics.reports.mean_report` averages them over tracks, which is how papers on MAESTRO
report them (Hawthorne et al., Enabling factorized piano music modeling and generation with the
MAESTRO dataset, ICLR 2019).

Where a track has no true and no estimated note its scores are nan; where it has only one of the two
they are 0, as in mir_eval.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

ONSET_TOLERANCE_SECONDS = 0.05
"""Maximum distance of an estimated onset from the true one. Source: MIREX, mir_eval."""

OFFSET_TOLERANCE_RATIO = 0.2
"""Share of a true note's duration by which its offset may be off, at least 50 ms. Source: mir_eval."""

LOWEST_PIANO_PITCH = 21
"""MIDI number of A0, the lowest of the 88 keys."""

NUM_PIANO_PITCHES = 88


def note_scores(
    reference_intervals: ArrayLike,
    reference_pitches: ArrayLike,
    estimated_intervals: ArrayLike,
    estimated_pitches: ArrayLike,
) -> dict[str, float]:
    """Score the notes of one track.

    An estimated note is correct if it has the pitch of a true note and its onset is within 50 ms;
    *with offset*, also its end must be within 50 ms or 20 % of the true duration, whichever is
    longer. Each note is matched once at most, so that as many as possible are.

    Source: `mir_eval.transcription.precision_recall_f1_overlap` (without offsets `offset_ratio` is
    None). MIDI numbers differ by 100 cents and mir_eval allows 50, so notes are matched one pitch
    after the other: the same number of matches, in memory that does not grow with the square of the
    number of notes.

    Args:
        reference_intervals: (notes, 2) true onsets and offsets in seconds; (0, 2) for none.
        reference_pitches: (notes,) true MIDI numbers, integers.
        estimated_intervals: (notes, 2) estimated onsets and offsets in seconds.
        estimated_pitches: (notes,) estimated MIDI numbers, integers.

    Returns:
        `note_precision`, `note_recall`, `note_f1`, `note_with_offset_precision`,
        `note_with_offset_recall` and `note_with_offset_f1`, all in [0, 1] or nan.

    Raises:
        ValueError: Numbers of intervals and pitches differ; or from mir_eval, where intervals are
            not (notes, 2), are negative, or do not end after they start.
    """
    from mir_eval import transcription, util

    true_intervals, true_pitches = _check_notes(reference_intervals, reference_pitches)
    intervals, pitches = _check_notes(estimated_intervals, estimated_pitches)
    scores: dict[str, float] = {}
    for name, offset_ratio in (("note", None), ("note_with_offset", OFFSET_TOLERANCE_RATIO)):
        num_matched = 0
        for pitch in np.intersect1d(true_pitches, pitches):
            is_true, is_estimated = true_pitches == pitch, pitches == pitch
            matches = transcription.match_notes(
                true_intervals[is_true],
                util.midi_to_hz(true_pitches[is_true]),
                intervals[is_estimated],
                util.midi_to_hz(pitches[is_estimated]),
                onset_tolerance=ONSET_TOLERANCE_SECONDS,
                offset_ratio=offset_ratio,
            )
            num_matched += len(matches)
        scores |= _scores_of_counts(name, num_matched, len(true_pitches), len(pitches))
    return scores


def frame_scores(reference_roll: ArrayLike, estimated_roll: ArrayLike) -> dict[str, float]:
    """Score which pitches sound, frame by frame.

    Source: precision, recall and F1 of all cells (frame, pitch) together, as scikit-learn's
    `f1_score` of the flattened rolls, and as `mir_eval.multipitch` on frames at the same times.

    Args:
        reference_roll: (frames, pitches) booleans, which pitches truly sound; `piano_roll` gives
            them from the notes' own times.
        estimated_roll: (frames, pitches) booleans at the same times.

    Returns:
        `frame_precision`, `frame_recall` and `frame_f1`, all in [0, 1] or nan.

    Raises:
        ValueError: The rolls differ in shape or are not boolean.

    Example:
        >>> frame_scores([[True, False], [True, False]], [[True, True], [False, False]])
        {'frame_precision': 0.5, 'frame_recall': 0.5, 'frame_f1': 0.5}
    """
    reference, estimate = np.asarray(reference_roll), np.asarray(estimated_roll)
    if reference.shape != estimate.shape or reference.dtype != bool or estimate.dtype != bool:
        raise ValueError(
            f"Rolls of shape {reference.shape} ({reference.dtype}) and {estimate.shape} "
            f"({estimate.dtype}): both must be booleans of one shape, (frames, pitches)."
        )
    return _scores_of_counts(
        "frame",
        int(np.count_nonzero(reference & estimate)),
        int(np.count_nonzero(reference)),
        int(np.count_nonzero(estimate)),
    )


def piano_roll(
    intervals: ArrayLike, pitches: ArrayLike, *, frame_rate_hz: float, num_frames: int
) -> NDArray[np.bool_]:
    """Return which of the 88 piano keys sound at the times of frames, by the exact times of the notes.

    Args:
        intervals: (notes, 2) onsets and offsets in seconds.
        pitches: (notes,) MIDI numbers from 21 (A0) to 108 (C8).
        frame_rate_hz: Frames a second; frame k is the instant k / `frame_rate_hz`.
        num_frames: Number of frames; notes after them are left out.

    Returns:
        (frames, 88) booleans: True from the onset on, up to but without the offset.

    Raises:
        ValueError: A pitch is none of the 88, or as `note_scores`.

    Example:
        >>> piano_roll([[0.1, 0.3]], [21], frame_rate_hz=10.0, num_frames=4)[:, 0].tolist()
        [False, True, True, False]
    """
    times, midi_numbers = _check_notes(intervals, pitches)
    keys = midi_numbers - LOWEST_PIANO_PITCH
    bad = midi_numbers[(keys < 0) | (keys >= NUM_PIANO_PITCHES)]
    if bad.size > 0:
        highest = LOWEST_PIANO_PITCH + NUM_PIANO_PITCHES - 1
        raise ValueError(
            f"The pitch {bad[0]} is not a piano key; they go from {LOWEST_PIANO_PITCH} to {highest}."
        )
    frame_times = np.arange(num_frames) / frame_rate_hz
    starts, stops = np.searchsorted(frame_times, times).T
    roll = np.zeros((num_frames, NUM_PIANO_PITCHES), dtype=bool)
    for key, start, stop in zip(keys, starts, stops, strict=True):
        roll[start:stop, key] = True
    return roll


def _check_notes(
    intervals: ArrayLike, pitches: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    from mir_eval import util

    times = np.asarray(intervals, np.float64)
    if times.size == 0:
        times = times.reshape(0, 2)
    util.validate_intervals(times)
    midi_numbers = np.asarray(pitches)
    if len(midi_numbers) != len(times):
        raise ValueError(f"{len(times)} intervals for {len(midi_numbers)} pitches of notes.")
    if midi_numbers.size > 0 and midi_numbers.dtype.kind not in "iu":
        raise ValueError(
            f"Pitches of type {midi_numbers.dtype}: they must be integer MIDI numbers."
        )
    return times, midi_numbers.astype(np.intp)


def _scores_of_counts(
    name: str, num_right: int, num_true: int, num_estimated: int
) -> dict[str, float]:
    """Precision, recall and F1; nan where nothing is true and nothing estimated, else 0 for 0 / 0."""
    if num_true == 0 and num_estimated == 0:
        return {f"{name}_precision": np.nan, f"{name}_recall": np.nan, f"{name}_f1": np.nan}
    return {
        f"{name}_precision": num_right / max(num_estimated, 1),
        f"{name}_recall": num_right / max(num_true, 1),
        f"{name}_f1": 2 * num_right / (num_true + num_estimated),
    }
