"""Peaks of activations, against scipy and against parabolas."""

import numpy as np
import pytest
import scipy.signal
from hypothesis import given
from hypothesis import strategies as st
from support.frames import peak_times

from m2v_finetune.decoding.peaks import find_peaks, refine_peaks

activations = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0]), min_size=1, max_size=30)


@given(values=activations, threshold=st.sampled_from([0.1, 0.5, 0.9]))
def test_peaks_are_scipys(values, threshold):
    # scipy counts no peaks at the ends, so the activation gets ends that are lower than any.
    padded = np.pad(np.array(values), 1, constant_values=-1.0)
    _, properties = scipy.signal.find_peaks(padded, height=threshold, plateau_size=1)
    expected = properties["left_edges"] - 1
    assert find_peaks(np.array(values), threshold).tolist() == expected.tolist()


@given(vertex=st.floats(2.51, 6.49), curvature=st.floats(0.01, 1.0))
def test_a_parabola_is_refined_to_its_vertex(vertex, curvature):
    activation = 1 - curvature * (np.arange(10) - vertex) ** 2
    assert refine_peaks(activation, find_peaks(activation, 0.0))[0] == pytest.approx(vertex)


@given(values=activations)
def test_refinement_stays_within_half_a_frame(values):
    frames = np.arange(len(values))
    shift = refine_peaks(np.array(values), frames) - frames
    assert np.abs(shift).max() <= 0.5


def test_an_event_between_two_frames_is_found_between_them():
    times = np.arange(10) * 0.02 + 0.0125
    activation = np.zeros(10)
    activation[3:7] = [0.25, 0.75, 0.75, 0.25]
    assert peak_times(activation, times) == pytest.approx([(times[4] + times[5]) / 2])


def test_peaks_at_the_ends_and_below_the_threshold():
    times = np.arange(7) / 50
    activation = np.array([0.9, 0.1, 0.4, 0.1, 0.6, 0.1, 0.7])
    assert peak_times(activation, times).tolist() == times[[0, 4, 6]].tolist()
    assert peak_times(activation, times, threshold=0.3).tolist() == times[[0, 2, 4, 6]].tolist()
