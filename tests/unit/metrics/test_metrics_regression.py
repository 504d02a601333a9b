"""Metrics of regression equal scikit-learn, also in every resample of their intervals."""

import json
import math
import warnings

import evaluate
import numpy as np
import pytest
from sklearn.metrics import r2_score, root_mean_squared_error
from support.messages import fails

from m2v_finetune.metrics.intervals import resample_counts
from m2v_finetune.metrics.regression import (
    R2,
    RootMeanSquaredError,
    _r2,
    _root_mean_squared_error,
    check_targets,
    regression_report,
)


def draw_data(num_tracks=80, *, seed=0):
    """Two targets, the second far from zero and small in range, as a year or a loudness is."""
    rng = np.random.default_rng(seed)
    references = rng.normal(size=(num_tracks, 2)) * [1.0, 0.01] + [0.0, 1000.0]
    return references, references + rng.normal(size=references.shape) * [0.5, 0.004]


def test_metrics_equal_scikit_learn_and_combine():
    references, predictions = draw_data()
    combined = evaluate.combine([R2(), RootMeanSquaredError()])
    for start in range(0, 80, 30):
        batch = slice(start, start + 30)
        combined.add_batch(predictions=predictions[batch], references=references[batch])
    raw = {"multioutput": "raw_values"}
    result = combined.compute()
    assert sorted(result) == ["r2", "r2_per_target", "rmse_per_target"]
    # Sums are taken in another order: equal but for the last digit.
    assert result["r2"] == pytest.approx(r2_score(references, predictions), rel=1e-12)
    per_target = r2_score(references, predictions, **raw)
    assert result["r2_per_target"] == pytest.approx(per_target, rel=1e-12)
    per_target = root_mean_squared_error(references, predictions, **raw)
    assert result["rmse_per_target"] == pytest.approx(per_target, rel=1e-12)


def test_target_of_equal_references_has_no_r2():
    references, predictions = draw_data()
    references[:, 1] = 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = R2().compute(predictions=predictions, references=references)
        one_track = R2().compute(predictions=[[1.0]], references=[[2.0]])
        report = regression_report(references, predictions, ["arousal", "valence"])
    assert math.isnan(result["r2_per_target"][1])
    assert result["r2"] == result["r2_per_target"][0]
    assert result["r2"] == pytest.approx(r2_score(references[:, 0], predictions[:, 0]))
    assert math.isnan(one_track["r2"])
    assert report["metrics"]["r2_valence"] == {"value": None, "low": None, "high": None}
    assert report["metrics"]["r2"] == report["metrics"]["r2_arousal"]


def test_report_equals_scikit_learn_in_value_and_resamples():
    references, predictions = draw_data()
    report = regression_report(references, predictions, ["arousal", "valence"], seed=3)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["metrics"]) == [
        "r2", "r2_arousal", "r2_valence", "rmse_arousal", "rmse_valence",
    ]  # fmt: skip

    def by_scikit_learn(tracks):
        reference, values = references[tracks], predictions[tracks]
        raw = {"multioutput": "raw_values"}
        return [
            r2_score(reference, values),
            *r2_score(reference, values, **raw),
            *root_mean_squared_error(reference, values, **raw),
        ]

    values = by_scikit_learn(np.arange(80))
    for entry, value in zip(report["metrics"].values(), values, strict=True):
        assert entry["value"] == pytest.approx(value, rel=1e-9)
        assert entry["low"] < entry["value"] < entry["high"]

    counts = next(resample_counts(80, seed=3, num_resamples=40))
    resamples = np.array([by_scikit_learn(np.repeat(np.arange(80), row)) for row in counts])
    columns = list(zip(references.T, predictions.T, strict=True))
    r2 = [_r2(*column)(counts) for column in columns]
    rmse = [_root_mean_squared_error(*column)(counts) for column in columns]
    expected = resamples.T
    np.testing.assert_allclose([np.mean(r2, axis=0), *r2, *rmse], expected, rtol=1e-7)


def test_resamples_of_one_track_are_left_out():
    references, predictions = draw_data(9)
    for column in zip(references.T, predictions.T, strict=True):
        assert np.isnan(_r2(*column)(9 * np.eye(9, dtype=np.int32))).all()
    # With two tracks half of the resamples draw one of them twice and have no R2.
    report = regression_report([[1000.1], [1000.3]], [[1000.1], [1000.2]], ["year"])
    assert report["metrics"]["r2_year"]["low"] == pytest.approx(0.5)
    assert report["metrics"]["r2_year"]["high"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("references", "predictions", "named"),
    [
        ([[1.0]], [[1.0, 2.0]], ("(1, 1)", "(1, 2)")),
        ([1.0], [1.0], ("(1,)", "(tracks, targets)")),
        (np.zeros((0, 1)), np.zeros((0, 1)), ("(0, 1)", "(tracks, targets)")),
        ([[1.0], [np.nan]], [[1.0], [2.0]], ("reference", 1, 0, "nan")),
        ([[1.0]], [[np.inf]], ("prediction", 0, "inf")),
    ],
)
def test_bad_input_is_refused_with_what_was_found(references, predictions, named):
    with fails(ValueError, *named):
        check_targets(references, predictions)


@pytest.mark.parametrize("names", [["arousal"], ["arousal", "arousal"]])
def test_report_refuses_names_that_do_not_fit(names):
    with fails(ValueError, ", ".join(names), 2):
        regression_report([[1.0, 2.0]], [[1.0, 2.0]], names)
