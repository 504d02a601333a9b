"""Chords from frames: segments that tile the track, and the best path of the model."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import fails

from m2v_finetune.decoding.chords import decode_chords

TIMES = np.arange(200) / 50 + 0.01246875


def certain(classes, num_classes=25, probability=0.9):
    """Log probabilities of frames whose class is nearly certain."""
    rest = (1 - probability) / (num_classes - 1)
    probabilities = np.full((len(classes), num_classes), rest)
    probabilities[np.arange(len(classes)), classes] = probability
    return np.log(probabilities)


def decode(log_probabilities, self_transition=0.9, duration_seconds=4.1):
    return decode_chords(
        log_probabilities,
        TIMES[: len(log_probabilities)],
        duration_seconds,
        self_transition=self_transition,
    )


def test_segments_tile_the_track_with_borders_half_way_between_frames():
    segments = decode(certain([3] * 50 + [24] * 100 + [0] * 50))
    middles = (TIMES[49] + TIMES[50]) / 2, (TIMES[149] + TIMES[150]) / 2
    assert segments == [
        (0.0, middles[0], 3),
        (middles[0], middles[1], 24),
        (middles[1], 4.1, 0),
    ]
    assert all(type(value) is float for segment in segments for value in segment[:2])
    assert all(type(segment[2]) is int for segment in segments)


def test_a_chord_of_one_frame_is_smoothed_away_and_one_that_lasts_is_not():
    blip = certain([3] * 50 + [7] + [3] * 50, probability=0.6)
    assert [label for _, _, label in decode(blip, self_transition=0.99)] == [3]
    assert [label for _, _, label in decode(blip, self_transition=1 / 25)] == [3, 7, 3]
    lasting = certain([3] * 50 + [7] * 20 + [3] * 50, probability=0.6)
    assert [label for _, _, label in decode(lasting, self_transition=0.99)] == [3, 7, 3]


def test_one_frame_is_the_whole_track():
    assert decode(certain([5]), duration_seconds=0.04) == [(0.0, 0.04, 5)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("self_transition", [1 / 3, 0.6, 0.9])
def test_the_path_is_the_best_of_all(seed, self_transition):
    probabilities = np.random.default_rng(seed).dirichlet([0.5] * 3, size=7)
    change = (1 - self_transition) / 2

    def score(path):
        observed = np.log(probabilities[np.arange(7), path]).sum()
        steps = [self_transition if a == b else change for a, b in itertools.pairwise(path)]
        return observed + np.log(steps).sum()

    best = max(itertools.product(range(3), repeat=7), key=score)
    segments = decode(np.log(probabilities), self_transition)
    expected = [label for label, _ in itertools.groupby(best)]
    assert [label for _, _, label in segments] == expected


@given(
    seed=st.integers(0, 1000), num_frames=st.integers(1, 60), self_transition=st.floats(0.05, 0.99)
)
def test_any_frames_give_segments_without_gaps(seed, num_frames, self_transition):
    probabilities = np.random.default_rng(seed).dirichlet([0.3] * 25, size=num_frames)
    segments = decode(np.log(probabilities + 1e-9), self_transition)
    assert segments[0][0] == 0.0
    assert segments[-1][1] == 4.1
    for (_, end, label), (start, _, next_label) in itertools.pairwise(segments):
        assert end == start
        assert label != next_label
    assert all(start < end for start, end, _ in segments)


@pytest.mark.parametrize("self_transition", [0.0, 0.039, 1.0])
def test_a_transition_out_of_range_is_an_error(self_transition):
    with fails(ValueError, f"self_transition={self_transition}", "1/25"):
        decode(certain([1, 2]), self_transition)
