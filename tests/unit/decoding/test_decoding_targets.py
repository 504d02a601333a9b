"""Targets: exact by the centres of frames, the same in every window, and decoded to what they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frames import GRID, peak_times

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.decoding.beats import decode_beats
from m2v_finetune.decoding.chords import decode_chords
from m2v_finetune.decoding.notes import decode_notes
from m2v_finetune.decoding.targets import (
    beat_targets,
    chord_targets,
    nearest_frames,
    note_targets,
)

grids = st.sampled_from([16000, 24000]).map(
    lambda rate: FrameGrid(sample_rate=rate, stride_samples=320, receptive_field_samples=400)
)
TIMES = GRID.times(50)


def events(least_gap_seconds):
    """Random times with gaps between them, from half a second on."""
    gaps = st.lists(st.floats(least_gap_seconds, 0.6), min_size=1, max_size=15)
    return gaps.map(lambda values: 0.5 + np.cumsum(values))


# -- beats ----------------------------------------------------------------------------------------


def test_a_beat_goes_to_the_nearest_centre_with_softer_neighbours():
    # The borders between frames lie half-way: 10 and 11 meet at 0.22246875 s.
    border = (TIMES[10] + TIMES[11]) / 2
    for beat, frame in ((border - 1e-9, 10), (border + 1e-9, 11)):
        expected = np.zeros(50)
        expected[frame - 1 : frame + 2] = [0.5, 1, 0.5]
        targets = beat_targets([beat], TIMES, width_frames=1)
        assert targets.dtype == np.float32
        assert targets.tolist() == expected.tolist()


def test_neighbours_do_not_cover_beats():
    targets = beat_targets(TIMES[[10, 11]], TIMES, width_frames=2)
    assert targets[8:14].tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5]
    assert beat_targets(TIMES[[10]], TIMES, width_frames=0).sum() == 1


def test_no_beats():
    assert beat_targets([], TIMES, width_frames=1).tolist() == [0] * 50


@given(grid=grids, beats=events(0.03), first=st.integers(0, 300), width=st.integers(0, 2))
def test_beat_targets_of_a_window_are_those_of_the_track_cut(grid, beats, first, width):
    of_track = beat_targets(beats, grid.times(700), width_frames=width)
    window = grid.times(60, start_sample=first * grid.stride_samples)
    of_window = beat_targets(beats, window, width_frames=width)
    assert of_window.tolist() == of_track[first : first + 60].tolist()


@given(grid=grids, beats=events(0.08))
def test_beats_come_back_from_their_targets(grid, beats):
    times = grid.times(800)
    found = peak_times(beat_targets(beats, times, width_frames=1), times)
    assert found.shape == beats.shape
    assert np.abs(found - beats).max() <= 0.5 / grid.frame_rate + 1e-9


@settings(max_examples=15, deadline=None)
@given(
    grid=grids, bpm=st.floats(60, 200), start=st.floats(0.05, 0.5), metre=st.sampled_from([3, 4])
)
def test_steady_beats_come_back_through_the_decoder(grid, bpm, start, metre):
    times = grid.times(800)
    beats = np.arange(start, times[-1], 60 / bpm)
    found, positions = decode_beats(
        beat_targets(beats, times, width_frames=1),
        beat_targets(beats[::metre], times, width_frames=1),
        times,
        grid.frame_rate,
    )
    assert found.shape == beats.shape
    assert np.abs(found - beats).max() <= 0.5 / grid.frame_rate + 1e-9
    assert positions.tolist() == [i % metre + 1 for i in range(len(beats))]


# -- chords ---------------------------------------------------------------------------------------


def test_a_frame_has_the_chord_of_its_centre():
    segments = [(0.0, TIMES[10], 3), (TIMES[10], TIMES[20] + 1e-9, 24), (TIMES[30], 0.9, 0)]
    targets = chord_targets(segments, TIMES, outside=-100)
    assert targets.dtype == np.int64
    last = int(np.sum(TIMES < 0.9))
    expected = [3] * 10 + [24] * 11 + [-100] * 9 + [0] * (last - 30) + [-100] * (50 - last)
    assert targets.tolist() == expected


@settings(max_examples=40)
@given(grid=grids, borders=events(0.05), seed=st.integers(0, 100))
def test_chords_come_back_from_their_targets(grid, borders, seed):
    times = grid.times(grid.num_frames(12 * grid.sample_rate))
    labels = np.random.default_rng(seed).integers(0, 25, size=len(borders) + 1)
    edges = [0.0, *borders.tolist(), 12.0]
    segments = [*zip(edges[:-1], edges[1:], labels.tolist(), strict=True)]
    merged = [s for i, s in enumerate(segments) if i == 0 or s[2] != segments[i - 1][2]]
    targets = chord_targets(segments, times, outside=-100)
    log_probabilities = np.log(np.where(np.eye(25)[targets] > 0, 0.99, 0.01 / 24))
    found = decode_chords(log_probabilities, times, 12.0, self_transition=0.5)
    assert [label for _, _, label in found] == [label for _, _, label in merged]
    for (start, _, _), (expected, _, _) in zip(found, merged, strict=True):
        assert abs(start - expected) <= 0.5 / grid.frame_rate + 1e-9
    assert found[-1][1] == 12.0


# -- notes ----------------------------------------------------------------------------------------


def test_a_note_is_active_from_its_onset_to_the_last_centre_before_its_offset():
    onset_roll, frame_roll = note_targets([0.2], [TIMES[20]], [39], TIMES)
    assert onset_roll.shape == frame_roll.shape == (50, 88)
    assert np.argwhere(onset_roll).tolist() == [[9, 39]]
    assert np.argwhere(frame_roll).tolist() == [[frame, 39] for frame in range(9, 20)]


@pytest.mark.parametrize(("onset", "frame"), [(0.2, 9), (0.203, 10)])
def test_the_shortest_note_has_one_frame(onset, frame):
    """Also where it ends before the centre of its frame."""
    onset_roll, frame_roll = note_targets([onset], [onset + 1e-4], [0], TIMES)
    assert np.argwhere(onset_roll).tolist() == np.argwhere(frame_roll).tolist() == [[frame, 0]]


def test_notes_that_reach_into_a_window_or_out_of_it():
    window = GRID.times(20, start_sample=320 * 10)
    onset_roll, frame_roll = note_targets(
        [0.0, 0.5, 0.1, 2.0], [0.3, 3.0, 0.15, 2.5], [0, 1, 2, 3], window, num_pitches=4
    )
    assert np.argwhere(onset_roll).tolist() == [[14, 1]]
    assert frame_roll.sum(axis=0).tolist() == [np.sum(window < 0.3), 6, 0, 0]


@given(grid=grids, onsets=events(0.08), first=st.integers(0, 300), length=st.floats(0.01, 3))
def test_note_targets_of_a_window_are_those_of_the_track_cut(grid, onsets, first, length):
    notes = onsets, onsets + length, np.arange(len(onsets))
    of_track = note_targets(*notes, grid.times(1000))
    of_window = note_targets(*notes, grid.times(60, start_sample=first * grid.stride_samples))
    for track_roll, window_roll in zip(of_track, of_window, strict=True):
        assert (window_roll == track_roll[first : first + 60]).all()


@settings(max_examples=40)
@given(grid=grids, onsets=events(0.08), share=st.floats(0.3, 1.0), seed=st.integers(0, 100))
def test_notes_come_back_from_their_targets(grid, onsets, share, seed):
    """Three pitches, so that repeated notes with and without a rest between them occur."""
    times = grid.times(800)
    pitches = np.random.default_rng(seed).integers(0, 3, size=len(onsets))
    offsets = onsets + share * np.diff(onsets, append=onsets[-1] + 0.2)
    rolls = note_targets(onsets, offsets, pitches, times, num_pitches=3)
    found = decode_notes(*rolls, times, min_note_seconds=0.0)
    assert found[2].tolist() == pitches.tolist()
    frame = 1 / float(grid.frame_rate) + 1e-9
    assert np.abs(found[0] - onsets).max() <= frame / 2
    # A rest shorter than a frame may lie between two centres: the note then lasts to the next one.
    assert np.abs(found[1] - offsets).max() <= frame


def test_frames_are_counted_beyond_the_window():
    assert nearest_frames([TIMES[0] - 0.02, TIMES[49] + 0.04], TIMES).tolist() == [-1, 51]
    assert nearest_frames([], TIMES).shape == (0,)


def test_a_pitch_out_of_range_is_an_error():
    with pytest.raises(IndexError):
        note_targets([0.2], [0.4], [88], TIMES)
