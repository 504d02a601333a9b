"""Beat and tempo scores equal mir_eval and are right on clicks of a known tempo."""

import math
import warnings

import mir_eval
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2v_finetune.metrics.beats import beat_scores, tempo_from_beats, tempo_scores

beat_times = st.lists(st.integers(0, 3000), min_size=2, max_size=40, unique=True).map(
    lambda hundredths: np.sort(np.array(hundredths) / 100)
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of mir_eval's other metrics
@settings(max_examples=100, deadline=None)
@given(reference=beat_times, estimate=beat_times, skip_seconds=st.sampled_from([0.0, 5.0]))
def test_scores_equal_mir_eval(reference, estimate, skip_seconds):
    scores = beat_scores(reference, estimate, skip_seconds=skip_seconds)
    kept = [times[times >= skip_seconds] for times in (reference, estimate)]
    if min(len(times) for times in kept) < 2:
        return  # mir_eval gives 0 for what has no value; see the test below
    expected = mir_eval.beat.evaluate(reference, estimate, min_beat_time=skip_seconds)
    assert scores == {
        "f_measure": expected["F-measure"],
        "cmlt": expected["Correct Metric Level Total"],
        "amlt": expected["Any Metric Level Total"],
    }


def test_noisy_beats_equal_mir_eval():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        reference = np.arange(0, 30, 60 / rng.uniform(60, 180))
        estimate = np.sort(reference[rng.random(len(reference)) > 0.1] + rng.normal(scale=0.05))
        estimate = estimate[estimate > 0]
        scores = beat_scores(reference, estimate, skip_seconds=5)
        expected = mir_eval.beat.evaluate(reference, estimate)  # which leaves out 5 s by itself
        assert scores["f_measure"] == expected["F-measure"]
        assert scores["cmlt"] == expected["Correct Metric Level Total"]
        seen.add(scores["f_measure"])
    assert len(seen) > 5


def test_a_tap_at_half_tempo_is_right_at_another_level_only():
    clicks = np.arange(0.2, 20, 0.5)
    assert beat_scores(clicks, clicks + 0.06) == {"f_measure": 1.0, "cmlt": 1.0, "amlt": 1.0}
    half = beat_scores(clicks, clicks[::2])
    assert (half["f_measure"], half["cmlt"], half["amlt"]) == (pytest.approx(2 / 3), 0.0, 1.0)
    assert beat_scores(clicks, clicks + 0.08)["f_measure"] < 0.1


def test_first_seconds_count_unless_they_are_skipped():
    clicks = np.arange(0.0, 8.0, 0.5)
    late = clicks[clicks >= 5]
    assert beat_scores(clicks, late)["f_measure"] < 0.6
    assert beat_scores(clicks, late, skip_seconds=5.0)["f_measure"] == 1.0


@pytest.mark.parametrize(
    ("reference", "estimate", "expected"),
    [
        ([], [], (math.nan, math.nan, math.nan)),
        ([], [1.0, 2.0], (math.nan, math.nan, math.nan)),
        ([1.0, 2.0], [], (0.0, 0.0, 0.0)),
        ([1.0], [], (0.0, math.nan, math.nan)),
        ([1.0], [1.0, 2.0], (2 / 3, math.nan, math.nan)),
        ([1.0, 2.0], [1.0], (2 / 3, 0.0, 0.0)),
    ],
)
def test_few_beats_are_defined_and_do_not_warn(reference, estimate, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = beat_scores(reference, estimate)
    assert tuple(scores.values()) == pytest.approx(expected, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(reference=st.floats(30, 300), estimate=st.floats(30, 300))
def test_tempo_scores_equal_mir_eval(reference, estimate):
    def is_hit(target):
        tempi = np.array([target, 0.0]), 1.0, np.array([estimate, 0.0])
        return mir_eval.tempo.detection(*tempi, tol=0.04)[1]

    factors = (1, 2, 3, 1 / 2, 1 / 3)
    assert tempo_scores(reference, estimate) == {
        "tempo_accuracy_1": float(is_hit(reference)),
        "tempo_accuracy_2": float(any(is_hit(reference * factor) for factor in factors)),
    }


@pytest.mark.parametrize(
    ("estimate", "accuracy_1", "accuracy_2"),
    [(120, 1, 1), (124.7, 1, 1), (115.3, 1, 1), (125, 0, 0), (240, 0, 1), (249, 0, 1), (360, 0, 1),
     (60, 0, 1), (40, 0, 1), (80, 0, 0), (180, 0, 0), (480, 0, 0), (math.nan, 0, 0)],
)  # fmt: skip
def test_tempo_accuracy_allows_four_per_cent_and_other_levels(estimate, accuracy_1, accuracy_2):
    scores = tempo_scores(120.0, estimate)
    assert (scores["tempo_accuracy_1"], scores["tempo_accuracy_2"]) == (accuracy_1, accuracy_2)


def test_tempo_without_reference_has_no_score():
    assert all(math.isnan(score) for score in tempo_scores(math.nan, 120.0).values())


@pytest.mark.parametrize("bpm", [60.0, 97.5, 180.0])
def test_tempo_of_clicks_is_theirs(bpm):
    clicks = 0.3 + np.arange(20) * 60 / bpm
    assert tempo_from_beats(clicks) == pytest.approx(bpm)
    with_a_gap = np.delete(clicks, [7, 8])
    assert tempo_from_beats(with_a_gap) == pytest.approx(bpm)


@pytest.mark.parametrize("times", [[], [1.0]])
def test_fewer_than_two_beats_have_no_tempo(times):
    assert math.isnan(tempo_from_beats(times))
