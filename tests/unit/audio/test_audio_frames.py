"""The grid of frames: counts and centres, against the arithmetic of the layers themselves."""

import doctest
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2v_finetune.audio import frames
from m2v_finetune.audio.frames import FrameGrid

# The convolutions of wav2vec 2.0, HuBERT and data2vec audio.
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
layers = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4)


def test_the_examples_of_the_docstrings_run():
    results = doctest.testmod(frames)
    assert results.attempted == 4
    assert results.failed == 0


@pytest.mark.parametrize(("sample_rate", "frame_rate"), [(16000, 50), (24000, 75)])
def test_the_published_networks_have_50_and_75_frames_a_second(sample_rate, frame_rate):
    grid = FrameGrid.from_convolutions(sample_rate=sample_rate, kernels=KERNELS, strides=STRIDES)
    assert (grid.stride_samples, grid.receptive_field_samples) == (320, 400)
    assert grid.frame_rate == Fraction(frame_rate)
    assert grid.times(3).tolist() == [
        199.5 / sample_rate,
        519.5 / sample_rate,
        839.5 / sample_rate,
    ]


def test_a_frame_rate_need_not_be_whole():
    grid = FrameGrid(sample_rate=22050, stride_samples=320, receptive_field_samples=400)
    assert grid.frame_rate == Fraction(2205, 32)


@given(convolutions=layers, num_samples=st.integers(0, 5000))
def test_frames_are_counted_as_the_layers_count_them(convolutions, num_samples):
    kernels, strides = zip(*convolutions, strict=True)
    grid = FrameGrid.from_convolutions(sample_rate=16000, kernels=kernels, strides=strides)
    expected = num_samples
    for kernel, stride in convolutions:
        expected = max(0, (expected - kernel) // stride + 1)
    assert grid.num_frames(num_samples) == expected


@given(convolutions=layers, frame=st.integers(0, 5))
def test_a_time_is_the_centre_of_what_the_frame_sees(convolutions, frame):
    kernels, strides = zip(*convolutions, strict=True)
    grid = FrameGrid.from_convolutions(sample_rate=1000, kernels=kernels, strides=strides)
    first = last = frame
    for kernel, stride in reversed(convolutions):
        first, last = first * stride, last * stride + kernel - 1
    assert grid.times(frame + 1)[-1] == pytest.approx((first + last) / 2 / 1000, abs=1e-12)


@given(first_frame=st.integers(0, 10**6), frame=st.integers(0, 100))
def test_windows_on_the_stride_share_the_times_of_the_track(first_frame, frame):
    grid = FrameGrid(sample_rate=24000, stride_samples=320, receptive_field_samples=400)
    of_window = grid.times(frame + 1, start_sample=320 * first_frame)[frame]
    expected = Fraction(2 * 320 * (first_frame + frame) + 399, 2 * 24000)
    assert of_window == float(expected)


def test_no_frame_fits_a_short_window():
    grid = FrameGrid(sample_rate=16000, stride_samples=320, receptive_field_samples=400)
    assert [grid.num_frames(n) for n in (0, 399, 400, 719, 720)] == [0, 0, 1, 1, 2]
    assert grid.times(0).shape == (0,)
    assert grid.times(0).dtype == np.float64
