"""Notes from activations of known notes, judged by mir_eval."""

import mir_eval
import numpy as np
import pytest

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.decoding.notes import decode_notes
from m2v_finetune.decoding.targets import note_targets

TIMES = np.arange(100) / 50 + 0.01246875


def decode(onsets, frames, times=TIMES, min_note_seconds=0.0, **thresholds):
    return decode_notes(onsets, frames, times, min_note_seconds=min_note_seconds, **thresholds)


def rolls(*, onsets=(), frames=()):
    """Rolls of two pitches: (frame, pitch, value) of onsets, (first, stop, pitch) of frames."""
    onset_roll, frame_roll = np.zeros((100, 2)), np.zeros((100, 2))
    for frame, pitch, value in onsets:
        onset_roll[frame, pitch] = value
    for first, stop, pitch in frames:
        frame_roll[first:stop, pitch] = 1
    return onset_roll, frame_roll


def hertz(pitches):
    return mir_eval.util.midi_to_hz(np.asarray(pitches) + 21)


@pytest.mark.parametrize("sample_rate", [16000, 24000])
@pytest.mark.parametrize("seed", range(3))
def test_known_notes_come_back_from_perfect_activations(sample_rate, seed):
    """Chords, long notes, and one pitch repeated every 100 ms without a rest."""
    generator = np.random.default_rng(seed)
    grid = FrameGrid(sample_rate=sample_rate, stride_samples=320, receptive_field_samples=400)
    times = grid.times(grid.num_frames(12 * sample_rate))
    repeated = 0.137 + 0.1 * np.arange(100)
    onsets = [*repeated]
    offsets = [*(repeated + 0.1)]
    pitches = [40] * 100
    for pitch in [*range(20), *range(60, 88)]:
        starts = generator.uniform(0.1, 0.9) + np.arange(10)
        onsets += [*starts]
        offsets += [*(starts + generator.uniform(0.05, 0.9, size=10))]
        pitches += [pitch] * 10
    onset_roll, frame_roll = note_targets(onsets, offsets, pitches, times)
    found = decode(onset_roll, frame_roll, times)
    assert len(found[0]) == len(onsets)
    reference = np.column_stack([onsets, offsets]), hertz(pitches)
    estimate = np.column_stack(found[:2]), hertz(found[2])
    scores = mir_eval.transcription.precision_recall_f1_overlap(
        *reference, *estimate, onset_tolerance=0.021, offset_ratio=None
    )
    assert scores[2] == 1.0
    with_offsets = mir_eval.transcription.precision_recall_f1_overlap(
        *reference, *estimate, offset_ratio=0.2
    )
    assert with_offsets[2] == 1.0
    assert (np.diff(found[0]) >= 0).all()


def test_a_new_onset_ends_the_note():
    onsets, offsets, pitches = decode(
        *rolls(onsets=[(10, 0, 1.0), (20, 0, 1.0)], frames=[(10, 30, 0)])
    )
    assert onsets == pytest.approx(TIMES[[10, 20]])
    assert offsets == pytest.approx([TIMES[20], TIMES[29] + 0.01])
    assert pitches.tolist() == [0, 0]


def test_the_onset_is_between_frames_by_its_neighbours():
    onsets, _, _ = decode(
        *rolls(onsets=[(9, 1, 0.2), (10, 1, 0.8), (11, 1, 0.6)], frames=[(10, 30, 1)])
    )
    # The parabola through 0.2, 0.8 and 0.6 has its vertex at (0.2 - 0.6) / (2 * -0.8) = 0.25.
    assert onsets == pytest.approx([TIMES[10] + 0.25 * 0.02])


def test_frames_without_an_onset_are_no_note():
    assert decode(*rolls(onsets=[(10, 0, 0.4)], frames=[(10, 30, 0)]))[0].shape == (0,)


def test_an_onset_without_frames_is_a_note_of_one_frame_unless_notes_must_be_longer():
    onset_roll, frame_roll = rolls(onsets=[(10, 0, 1.0), (50, 1, 1.0)], frames=[(50, 60, 1)])
    onsets, offsets, _ = decode(onset_roll, frame_roll)
    assert onsets[0] == TIMES[10]
    assert offsets[0] == pytest.approx(TIMES[10] + 0.01)
    onsets, _, pitches = decode(onset_roll, frame_roll, min_note_seconds=0.05)
    assert onsets.tolist() == [TIMES[50]]
    assert pitches.tolist() == [1]


def test_a_pause_ends_the_note_for_good():
    _, offsets, _ = decode(*rolls(onsets=[(10, 0, 1.0)], frames=[(10, 20, 0), (22, 30, 0)]))
    assert offsets == pytest.approx([TIMES[19] + 0.01])


def test_a_note_may_last_to_the_end_of_the_track():
    _, offsets, _ = decode(*rolls(onsets=[(10, 0, 1.0)], frames=[(10, 100, 0)]))
    assert offsets == pytest.approx([TIMES[99] + 0.01])


def test_thresholds():
    onset_roll, frame_roll = rolls(onsets=[(10, 0, 0.4)], frames=[(10, 30, 0)])
    frame_roll[20:30] *= 0.3
    _, offsets, _ = decode(onset_roll, frame_roll, onset_threshold=0.3)
    assert offsets == pytest.approx([TIMES[19] + 0.01])
    _, offsets, _ = decode(onset_roll, frame_roll, onset_threshold=0.3, frame_threshold=0.2)
    assert offsets == pytest.approx([TIMES[29] + 0.01])


def test_notes_come_in_order_of_onset_then_pitch():
    onset_roll, frame_roll = rolls(onsets=[(30, 0, 1.0), (10, 1, 1.0), (30, 1, 1.0)])
    onsets, _, pitches = decode(onset_roll, frame_roll)
    assert onsets.tolist() == TIMES[[10, 30, 30]].tolist()
    assert pitches.tolist() == [1, 0, 1]
