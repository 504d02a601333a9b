"""The tagging metrics equal scikit-learn, work as evaluate modules and leave no files."""

import json
import math
import warnings

import evaluate
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from support.messages import fails

from m2v_finetune.metrics.bootstrap import bootstrap_intervals
from m2v_finetune.metrics.multilabel import (
    MultilabelAveragePrecision,
    MultilabelRocAuc,
    multilabel_report,
)

METRICS = [
    (MultilabelRocAuc, "roc_auc", roc_auc_score),
    (MultilabelAveragePrecision, "average_precision", average_precision_score),
]
each_metric = pytest.mark.parametrize(
    ("metric_class", "name", "score_function"), METRICS, ids=[name for _, name, _ in METRICS]
)


def draw_data(num_tracks=120, num_labels=5, *, seed=0):
    rng = np.random.default_rng(seed)
    references = rng.random((num_tracks, num_labels)) < 0.3
    return references.astype(int), rng.normal(size=references.shape) + references


@each_metric
@pytest.mark.parametrize("has_ties", [False, True], ids=["no ties", "many ties"])
def test_metric_equals_scikit_learn_to_the_bit(metric_class, name, score_function, has_ties):
    references, scores = draw_data()
    if has_ties:
        scores = np.round(scores)
    result = metric_class().compute(predictions=scores, references=references)
    per_label = score_function(references, scores, average=None)
    assert result == {
        name: score_function(references, scores, average="macro"),
        f"{name}_per_label": per_label.tolist(),
    }


@each_metric
def test_scores_keep_differences_that_float32_would_lose(metric_class, name, score_function):
    references = np.array([[0], [1]])
    scores = np.array([[0.5], [0.5 + 1e-12]])
    assert np.float32(scores[0, 0]) == np.float32(scores[1, 0])
    assert metric_class().compute(predictions=scores, references=references)[name] == 1.0
    assert metric_class().compute(predictions=scores[::-1], references=references)[name] == (
        score_function(references, scores[::-1])
    )


@each_metric
def test_order_of_tracks_does_not_matter(metric_class, name, score_function):
    references, scores = draw_data()
    order = np.random.default_rng(1).permutation(len(references))
    metric = metric_class()  # used twice: nothing of the first time may stay in it
    in_order = metric.compute(predictions=scores, references=references)
    assert metric.compute(predictions=scores[order], references=references[order]) == in_order


@each_metric
def test_perfect_predictions_give_one(metric_class, name, score_function):
    references, _ = draw_data()
    result = metric_class().compute(predictions=references, references=references)
    assert result == {name: 1.0, f"{name}_per_label": [1.0] * 5}


@each_metric
def test_labels_of_one_class_are_nan_and_left_out_of_the_mean(metric_class, name, score_function):
    references, scores = draw_data()
    references[:, 1] = 0
    references[:, 3] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = metric_class().compute(predictions=scores, references=references)
        alone = metric_class().compute(
            predictions=scores[:, [1, 3]], references=references[:, [1, 3]]
        )
    others = [0, 2, 4]
    assert result[name] == score_function(references[:, others], scores[:, others])
    assert [math.isnan(value) for value in result[f"{name}_per_label"]] == [
        False, True, False, True, False,
    ]  # fmt: skip
    assert math.isnan(alone[name])
    assert all(math.isnan(value) for value in alone[f"{name}_per_label"])


def test_batches_combine():
    references, scores = draw_data()
    combined = evaluate.combine([MultilabelRocAuc(), MultilabelAveragePrecision()])
    for start in range(0, len(references), 50):
        batch = slice(start, start + 50)
        combined.add_batch(predictions=scores[batch], references=references[batch])
    result = combined.compute()
    assert result == {
        "roc_auc": roc_auc_score(references, scores),
        "roc_auc_per_label": roc_auc_score(references, scores, average=None).tolist(),
        "average_precision": average_precision_score(references, scores),
        "average_precision_per_label": average_precision_score(
            references, scores, average=None
        ).tolist(),
    }


@each_metric
def test_metric_leaves_no_files(metric_class, name, score_function, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", cache)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    metric = metric_class()
    assert metric.compute(predictions=[[0.1], [0.9]], references=[[0], [1]])[name] == 1.0
    assert not cache.exists()
    assert list(temporary.iterdir()) == []


@each_metric
@pytest.mark.parametrize(
    ("references", "scores", "named"),
    [
        ([[0], [2]], [[0.1], [0.2]], ("reference", 1, 0, "2.0")),
        ([[0], [0.5]], [[0.1], [0.2]], ("reference", 1, 0, "0.5")),
        ([[0], [1]], [[0.1], [float("nan")]], ("score", 1, 0, "nan")),
        ([[0, 1]], [[0.1]], ("(1, 2)", "(1, 1)")),
        ([[0, 1], [1]], [[0.1, 0.2], [0.3, 0.4]], ("references",)),
        ([[0], [1]], [[0.1]], ("predictions", 1, 2)),
    ],
)
def test_bad_input_is_refused(metric_class, name, score_function, references, scores, named):
    with fails(ValueError, *named):
        metric_class().compute(predictions=scores, references=references)


def test_report_holds_values_intervals_and_labels():
    references, scores = draw_data(num_labels=4)
    references[:, 2] = 0
    report = multilabel_report(references, scores, ["guitar", "piano", "theremin", "voice"], seed=3)

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["metrics", "per_label", "labels_left_out"]
    assert report["labels_left_out"] == ["theremin"]
    assert report["per_label"]["theremin"] == {
        "roc_auc": None, "average_precision": None, "num_positive": 0,
    }  # fmt: skip
    assert report["per_label"]["piano"] == {
        "roc_auc": roc_auc_score(references[:, 1], scores[:, 1]),
        "average_precision": average_precision_score(references[:, 1], scores[:, 1]),
        "num_positive": references[:, 1].sum(),
    }
    kept = [0, 1, 3]
    intervals = bootstrap_intervals(references, scores, seed=3)
    for _, name, score_function in METRICS:
        low, high = intervals[name]
        value = score_function(references[:, kept], scores[:, kept])
        assert report["metrics"][name] == {"value": value, "low": low, "high": high}
        assert low < value < high


def test_report_without_any_label_of_two_classes_is_null():
    report = multilabel_report([[0, 1], [0, 1]], [[0.1, 0.2], [0.3, 0.4]], ["a", "b"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["labels_left_out"] == ["a", "b"]
    assert [label["num_positive"] for label in report["per_label"].values()] == [0, 2]
    nothing = {"value": None, "low": None, "high": None}
    assert report["metrics"] == {"roc_auc": nothing, "average_precision": nothing}


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (["a"], (1, 2)),
        (["a", "a"], ("a",)),
    ],
)
def test_report_refuses_labels_that_do_not_fit(labels, named):
    with fails(ValueError, *named):
        multilabel_report([[0, 1], [1, 0]], [[0.1, 0.2], [0.3, 0.4]], labels)
