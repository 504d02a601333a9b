"""Joining windows: what agrees comes out as it is, and nothing is kept longer than needed."""

import doctest
import importlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.messages import fails

from m2v_finetune.audio.windows import window_starts
from m2v_finetune.decoding.joining import FrameJoiner, OverlapAdd, triangle


@pytest.mark.parametrize(("module", "examples"), [("joining", 4), ("peaks", 2)])
def test_the_examples_of_the_docstrings_run(module, examples):
    results = doctest.testmod(importlib.import_module(f"m2v_finetune.decoding.{module}"))
    assert results.attempted == examples
    assert results.failed == 0


@given(length=st.integers(1, 50))
def test_the_triangle_is_positive_symmetric_and_highest_in_the_middle(length):
    weights = triangle(length)
    assert weights.shape == (length,)
    assert weights.min() == 1
    assert (weights == weights[::-1]).all()
    assert (np.diff(weights[: (length + 1) // 2]) == 1).all()


@st.composite
def layouts(draw):
    """A track's length, a window's length no longer than it, and starts that cover the track."""
    length = draw(st.integers(1, 60))
    window = draw(st.integers(1, length))
    hop = draw(st.integers(1, window))
    return length, window, window_starts(length, window, hop)


# -- frames ---------------------------------------------------------------------------------------


@given(layout=layouts(), seed=st.integers(0, 100))
def test_windows_cut_from_one_track_join_to_it(layout, seed):
    length, window, starts = layout
    track = np.random.default_rng(seed).normal(size=(length, 3))
    joiner = FrameJoiner(length, 3)
    for start in reversed(starts):
        joiner.add(start, track[start : start + window])
    np.testing.assert_allclose(joiner.result(), track, rtol=1e-12, atol=1e-12)


def test_one_window_alone_is_itself():
    scores = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    joiner = FrameJoiner(7, 2)
    joiner.add(0, scores)
    np.testing.assert_allclose(joiner.result(), scores, rtol=1e-15)


def test_the_middle_of_a_window_counts_more_than_its_border():
    joiner = FrameJoiner(6, 1)
    joiner.add(0, np.zeros((4, 1)))
    joiner.add(2, np.ones((4, 1)))
    # Weights at frames 2 and 3: 2 and 1 of the first window, 1 and 2 of the second.
    np.testing.assert_allclose(joiner.result()[:, 0], [0, 0, 1 / 3, 2 / 3, 1, 1])


def test_frames_past_the_end_of_a_padded_track_are_left_out():
    joiner = FrameJoiner(3, 1)
    joiner.add(0, np.arange(5.0)[:, None])
    assert joiner.result()[:, 0].tolist() == [0, 1, 2]


def test_a_frame_in_no_window_is_an_error():
    joiner = FrameJoiner(5, 1)
    joiner.add(0, np.zeros((2, 1)))
    joiner.add(4, np.zeros((1, 1)))
    with fails(ValueError, "2 of 5", 2):
        joiner.result()


# -- audio ----------------------------------------------------------------------------------------


def join(starts, window, track):
    """Cut windows from a track, join them, and return the chunks."""
    adder = OverlapAdd(num_samples=track.shape[-1])
    chunks = [adder.add(start, track[..., start : start + window]) for start in starts]
    return [*chunks, adder.finish()]


@given(layout=layouts(), seed=st.integers(0, 100))
def test_identity_windows_give_the_signal(layout, seed):
    length, window, starts = layout
    track = np.random.default_rng(seed).uniform(-1, 1, size=(4, 2, length)).astype(np.float32)
    chunks = join(starts, window, track)
    joined = np.concatenate(chunks, axis=-1)
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined, track, rtol=0, atol=1e-6)
    # Each chunk ends where the next window starts: it is not held back.
    assert [chunk.shape[-1] for chunk in chunks] == [0, *np.diff([*starts, length])]


def test_long_windows_give_the_signal_in_single_precision():
    length, window = 400_001, 150_000
    track = np.random.default_rng(0).uniform(-1, 1, size=(1, 2, length)).astype(np.float32)
    joined = np.concatenate(join(window_starts(length, window, 60_000), window, track), axis=-1)
    np.testing.assert_allclose(joined, track, rtol=0, atol=1e-6)


def test_windows_cross_fade():
    adder = OverlapAdd(num_samples=6)
    first = adder.add(0, np.zeros((1, 1, 4)))
    second = adder.add(2, np.ones((1, 1, 4)))
    joined = np.concatenate([first, second, adder.finish()], axis=-1)[0, 0]
    np.testing.assert_allclose(joined, [0, 0, 1 / 3, 2 / 3, 1, 1])


def test_samples_past_the_end_of_a_padded_track_are_left_out():
    adder = OverlapAdd(num_samples=3)
    adder.add(0, np.arange(5.0)[None, None])
    np.testing.assert_allclose(adder.finish()[0, 0], [0, 1, 2])


def test_memory_does_not_grow_with_the_track():
    window, hop, num_windows = 10_000, 5_000, 60
    ones = np.ones((2, 1, window), dtype=np.float32)
    adder = OverlapAdd(num_samples=hop * (num_windows - 1) + window)
    tracemalloc.start()
    peaks = []
    for index in range(num_windows):
        tracemalloc.reset_peak()
        adder.add(index * hop, ones)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert max(peaks[2:]) < 1.05 * peaks[2]
    assert max(peaks) < 6 * ones.nbytes < hop * num_windows * 2 * 4


def test_windows_out_of_order_or_with_a_gap_are_errors():
    adder = OverlapAdd(num_samples=100)
    adder.add(0, np.ones((1, 1, 10)))
    adder.add(5, np.ones((1, 1, 10)))
    with fails(ValueError, 4, 5):
        adder.add(4, np.ones((1, 1, 10)))
    with fails(ValueError, 16, 15):
        adder.add(16, np.ones((1, 1, 10)))
    with fails(ValueError, 15, 100):
        adder.finish()
