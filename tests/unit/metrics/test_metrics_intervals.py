"""Bootstrap intervals of any statistic: the statistics are right, and the intervals cover."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import fails

from m2v_finetune.metrics import intervals
from m2v_finetune.metrics.intervals import (
    bootstrap_interval,
    mean_of_statistics,
    mean_of_tracks,
    median_of_tracks,
    resample_counts,
)
from m2v_finetune.metrics.multiclass import macro_f1
from m2v_finetune.metrics.regression import regression_report
from m2v_finetune.metrics.reports import mean_report

values_and_counts = st.lists(
    st.tuples(st.one_of(st.just(math.nan), st.floats(-100, 100)), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(tracks=values_and_counts)
def test_statistics_equal_numpy_on_repeated_tracks(tracks):
    values, counts = (np.array(column) for column in zip(*tracks, strict=True))
    drawn = np.repeat(values, counts)
    drawn = drawn[~np.isnan(drawn)]
    expected = (np.mean(drawn), np.median(drawn)) if len(drawn) else (math.nan, math.nan)
    for statistic, value in zip((mean_of_tracks, median_of_tracks), expected, strict=True):
        result = statistic(values)(counts[np.newaxis].astype(np.int32))
        assert result == pytest.approx([value], abs=1e-9, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(tracks=values_and_counts, seed=st.integers(0, 1000))
def test_weighted_mean_equals_numpy(tracks, seed):
    values, counts = (np.array(column) for column in zip(*tracks, strict=True))
    weights = np.random.default_rng(seed).integers(0, 3, len(values)).astype(float)
    result = mean_of_tracks(values, weights)(counts[np.newaxis].astype(np.int32))
    kept = ~np.isnan(values) & (counts * weights > 0)
    expected = (
        np.average(values[kept], weights=(counts * weights)[kept]) if kept.any() else math.nan
    )
    assert result == pytest.approx([expected], abs=1e-9, nan_ok=True)


def test_mean_of_statistics_leaves_out_those_without_a_value():
    counts = np.array([[1, 1, 1], [2, 1, 0], [0, 0, 3]], dtype=np.int32)
    statistics = [mean_of_tracks([1.0, 4.0, 7.0]), mean_of_tracks([10.0, 10.0, math.nan])]
    assert mean_of_statistics(statistics)(counts) == pytest.approx([7.0, 6.0, 7.0])
    assert math.isnan(mean_of_statistics([mean_of_tracks([math.nan])])(np.ones((1, 1), int))[0])


def test_draws_are_the_same_for_every_statistic_and_chunk_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    interval = bootstrap_interval(mean_of_tracks(values), 50, seed=4)
    assert interval != bootstrap_interval(mean_of_tracks(values), 50, seed=5)
    shifted = bootstrap_interval(mean_of_tracks(values + 1), 50, seed=4)
    assert shifted == pytest.approx([end + 1 for end in interval], abs=1e-12)
    monkeypatch.setattr(intervals, "_CHUNK_WEIGHTS", 7 * 50)
    assert bootstrap_interval(mean_of_tracks(values), 50, seed=4) == interval
    chunks = list(resample_counts(50, seed=4, num_resamples=16))
    assert [len(chunk) for chunk in chunks] == [7, 7, 2]
    assert all((chunk.sum(axis=1) == 50).all() for chunk in chunks)


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.95, 177, 199), (0.8, 140, 176)])
def test_interval_of_a_mean_covers_the_true_value_about_as_often_as_it_states(
    confidence, low, high
):
    # Of 200 samples, 95 % are 190 and 80 % are 160, with standard deviations of 3.1 and 5.7; a
    # percentile interval of 50 skewed values falls short by one or two per cent.
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).gamma(4.0, size=50)
        ends = bootstrap_interval(
            mean_of_tracks(values), 50, num_resamples=200, confidence=confidence, seed=seed
        )
        covered += ends[0] <= 4.0 <= ends[1]
    assert low <= covered <= high


def test_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_interval(mean_of_tracks(values), 2000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.08)
    assert low < values.mean() < high


def test_resamples_without_a_value_are_left_out():
    values = [1.0, math.nan, math.nan]  # 8 of 27 resamples do not draw the first track
    assert bootstrap_interval(mean_of_tracks(values), 3) == (1.0, 1.0)
    ends = bootstrap_interval(mean_of_tracks([math.nan]), 1)
    assert all(math.isnan(end) for end in ends)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_tracks": 0}, ("num_tracks", 0)),
        ({"num_tracks": 2, "num_resamples": 0}, ("num_resamples", 0)),
        ({"num_tracks": 2, "confidence": 95}, ("confidence", 95)),
    ],
)
def test_settings_out_of_range_are_refused(arguments, named):
    with fails(ValueError, *named):
        bootstrap_interval(mean_of_tracks([1.0, 2.0]), **arguments)


def test_a_thousand_tracks_take_about_a_second(record_property):
    rng = np.random.default_rng(0)
    classes, predictions = rng.integers(10, size=(2, 1000))
    reference = rng.normal(size=(1000, 2))
    started = time.perf_counter()
    bootstrap_interval(macro_f1(classes, predictions, 10), 1000)
    regression_report(
        reference, reference + rng.normal(size=reference.shape), ["arousal", "valence"]
    )
    mean_report([{"a": value} for value in rng.normal(size=1000)], ["a"])
    seconds = time.perf_counter() - started
    record_property("seconds of 7 intervals over 1000 tracks", round(seconds, 2))
    assert seconds < 10  # about 0.3 on one idle core


def test_mean_report_leaves_out_tracks_without_a_score():
    per_track = [
        {"beat": 0.5, "downbeat": math.nan, "tempo": math.nan},
        {"beat": 1.0, "downbeat": 0.25, "tempo": math.nan},
        {"beat": 0.0, "downbeat": 0.75, "tempo": math.nan},
    ]
    report = mean_report(per_track, ["beat", "downbeat", "tempo"], seed=1)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["num_tracks"] == {"beat": 3, "downbeat": 2, "tempo": 0}
    assert report["metrics"]["beat"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert report["metrics"]["downbeat"] == {"value": 0.5, "low": 0.25, "high": 0.75}
    assert report["metrics"]["tempo"] == {"value": None, "low": None, "high": None}


def test_mean_report_of_no_track_is_refused():
    with fails(ValueError, "num_tracks", 0):
        mean_report([], ["beat"])
