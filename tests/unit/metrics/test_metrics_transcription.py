"""Note scores equal mir_eval, frame scores equal scikit-learn and mir_eval."""

import math
import warnings

import mir_eval
import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score
from support.messages import fails

from m2v_finetune.metrics.transcription import frame_scores, note_scores, piano_roll

NO_NOTES = np.zeros((0, 2)), np.zeros(0, int)


def draw_notes(rng, num_notes=60):
    onsets = rng.uniform(0, 6, num_notes)
    durations = rng.uniform(0.05, 1.0, num_notes)
    return np.stack([onsets, onsets + durations], axis=1), rng.integers(60, 66, num_notes)


def disturb(rng, intervals, pitches):
    """Notes near the true ones: some missing, some an octave off, some late, some doubled."""
    kept = rng.random(len(pitches)) > 0.2
    onsets = np.maximum(intervals[kept, 0] + rng.normal(scale=0.04, size=kept.sum()), 0)
    offsets = onsets + np.diff(intervals[kept]).ravel() * rng.uniform(0.7, 1.3, kept.sum())
    moved = pitches[kept] + 12 * (rng.random(kept.sum()) < 0.1)
    times = np.stack([onsets, offsets], axis=1)
    return np.concatenate([times, times[:5] + 0.01]), np.concatenate([moved, moved[:5]])


@pytest.mark.parametrize("seed", range(15))
def test_note_scores_equal_mir_eval(seed):
    rng = np.random.default_rng(seed)
    intervals, pitches = draw_notes(rng)
    estimated_intervals, estimated_pitches = disturb(rng, intervals, pitches)
    scores = note_scores(intervals, pitches, estimated_intervals, estimated_pitches)
    notes = (
        intervals,
        mir_eval.util.midi_to_hz(pitches),
        estimated_intervals,
        mir_eval.util.midi_to_hz(estimated_pitches),
    )
    for name, offset_ratio in (("note", None), ("note_with_offset", 0.2)):
        precision, recall, f1, _ = mir_eval.transcription.precision_recall_f1_overlap(
            *notes, offset_ratio=offset_ratio
        )
        assert scores[f"{name}_precision"] == pytest.approx(precision)
        assert scores[f"{name}_recall"] == pytest.approx(recall)
        assert scores[f"{name}_f1"] == pytest.approx(f1)
    assert 0 < scores["note_with_offset_f1"] < scores["note_f1"] < 1


def test_perfect_notes_give_one_and_a_semitone_off_gives_none():
    intervals, pitches = draw_notes(np.random.default_rng(0))
    assert set(note_scores(intervals, pitches, intervals, pitches).values()) == {1.0}
    assert set(note_scores(intervals, pitches, intervals, pitches + 7).values()) == {0.0}


def test_onset_decides_within_50_ms():
    note = [[1.0, 2.0]], [60]
    assert note_scores(*note, [[1.05, 2.0]], [60])["note_f1"] == 1.0
    assert note_scores(*note, [[1.051, 2.0]], [60])["note_f1"] == 0.0
    late_offset = note_scores(*note, [[1.0, 2.3]], [60])
    assert (late_offset["note_f1"], late_offset["note_with_offset_f1"]) == (1.0, 0.0)


def test_tracks_without_notes_are_defined_and_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both_empty = note_scores(*NO_NOTES, [], [])
        none_found = note_scores([[0.0, 1.0]], [60], *NO_NOTES)
        all_wrong = note_scores(*NO_NOTES, [[0.0, 1.0]], [60])
    assert len(both_empty) == 6
    assert all(math.isnan(score) for score in both_empty.values())
    assert set(none_found.values()) == set(all_wrong.values()) == {0.0}


def test_ten_thousand_notes_need_no_square_of_memory():
    rng = np.random.default_rng(0)
    onsets = np.sort(rng.uniform(0, 1800, 10_000))
    intervals = np.stack([onsets, onsets + 0.2], axis=1)
    pitches = rng.integers(21, 109, 10_000)
    assert note_scores(intervals, pitches, intervals, pitches)["note_f1"] == 1.0


@pytest.mark.parametrize(
    ("intervals", "pitches", "named"),
    [
        ([[0.0, 1.0]], [60, 61], (1, 2)),
        ([[0.0, 1.0]], [60.5], ("float64", "MIDI")),
        ([[1.0, 1.0]], [60], ("positive",)),
        ([[-1.0, 1.0]], [60], ("Negative",)),
        ([0.0, 1.0], [60, 61], ("n-by-2",)),
    ],
)
def test_bad_notes_are_refused(intervals, pitches, named):
    with fails(ValueError, *named):
        note_scores([[0.0, 1.0]], [60], intervals, pitches)


@pytest.mark.parametrize("seed", range(5))
def test_frame_scores_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    reference = rng.random((200, 88)) < 0.05
    estimate = reference ^ (rng.random(reference.shape) < 0.03)
    flat = reference.ravel(), estimate.ravel()
    assert frame_scores(reference, estimate) == {
        "frame_precision": pytest.approx(precision_score(*flat)),
        "frame_recall": pytest.approx(recall_score(*flat)),
        "frame_f1": pytest.approx(f1_score(*flat)),
    }


def test_frames_of_notes_equal_mir_eval_at_the_same_times():
    rng = np.random.default_rng(0)
    intervals, pitches = draw_notes(rng)
    estimate = disturb(rng, intervals, pitches)
    rolls = [
        piano_roll(*notes, frame_rate_hz=75.0, num_frames=600)
        for notes in ((intervals, pitches), estimate)
    ]
    times = np.arange(600) / 75.0
    frequencies = mir_eval.util.midi_to_hz(np.arange(21, 109))
    pitches_of_frames = [[frequencies[row] for row in roll] for roll in rolls]
    expected = mir_eval.multipitch.evaluate(
        times, pitches_of_frames[0], times, pitches_of_frames[1]
    )
    scores = frame_scores(*rolls)
    assert 0.2 < scores["frame_f1"] < 1
    assert scores["frame_precision"] == pytest.approx(expected["Precision"])
    assert scores["frame_recall"] == pytest.approx(expected["Recall"])


def test_empty_rolls_are_defined():
    silence, note = np.zeros((4, 88), bool), np.ones((4, 88), bool)
    assert all(math.isnan(score) for score in frame_scores(silence, silence).values())
    assert set(frame_scores(silence, note).values()) == {0.0}
    assert set(frame_scores(note, silence).values()) == {0.0}


@pytest.mark.parametrize(
    ("reference", "estimate"),
    [(np.zeros((2, 88), bool), np.zeros((3, 88), bool)), (np.zeros((2, 88)), np.zeros((2, 88)))],
)
def test_rolls_that_do_not_fit_are_refused(reference, estimate):
    with fails(ValueError, reference.shape, estimate.dtype):
        frame_scores(reference, estimate)


def test_piano_roll_is_true_from_onset_up_to_offset():
    roll = piano_roll([[0.2, 0.6], [0.0, 9.0]], [21, 108], frame_rate_hz=5.0, num_frames=5)
    assert roll.shape == (5, 88)
    assert roll[:, 0].tolist() == [False, True, True, False, False]
    assert roll[:, 87].all()
    assert roll.sum() == 7


@pytest.mark.parametrize("pitch", [20, 109])
def test_piano_roll_refuses_what_is_no_key(pitch):
    with fails(ValueError, pitch, 21, 108):
        piano_roll([[0.0, 1.0]], [pitch], frame_rate_hz=50.0, num_frames=50)
