"""Metrics of one class a track equal scikit-learn; keys equal mir_eval; pitches know octaves."""

import json
import warnings

import evaluate
import numpy as np
import pytest
from mir_eval.key import weighted_score
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score
from support.messages import fails

from m2v_finetune.metrics.intervals import bootstrap_interval, mean_of_tracks, resample_counts
from m2v_finetune.metrics.key import KEY_RELATION_SCORES, key_relation, key_report
from m2v_finetune.metrics.multiclass import (
    Accuracy,
    MacroF1,
    check_classes_and_scores,
    macro_f1,
    multiclass_report,
)
from m2v_finetune.metrics.pitch import pitch_class_accuracy, pitch_report

TONICS = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
KEYS = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS]


def draw_data(num_tracks=150, num_classes=5, *, seed=0):
    rng = np.random.default_rng(seed)
    references = rng.integers(num_classes, size=num_tracks)
    scores = rng.normal(size=(num_tracks, num_classes))
    scores[np.arange(num_tracks), references] += 1.0
    return references, scores


def f1_by_scikit_learn(references, predictions, **arguments):
    labels = np.unique(references)
    return f1_score(
        references, predictions, labels=labels, average="macro", zero_division=0, **arguments
    )


def test_metrics_equal_scikit_learn_and_combine():
    references, scores = draw_data()
    predictions = scores.argmax(axis=1)
    combined = evaluate.combine([Accuracy(), MacroF1()])
    for start in range(0, len(references), 40):
        batch = slice(start, start + 40)
        combined.add_batch(predictions=predictions[batch], references=references[batch])
    assert combined.compute() == {
        "accuracy": accuracy_score(references, predictions),
        "macro_f1": f1_score(references, predictions, average="macro"),
    }


def test_macro_f1_is_over_the_classes_in_the_references():
    references, predictions = [0, 0, 1, 1], [0, 3, 1, 1]
    value = MacroF1().compute(predictions=predictions, references=references)["macro_f1"]
    assert value == pytest.approx((2 / 3 + 1) / 2)
    # scikit-learn's default would count the class 3, which is only predicted.
    assert f1_score(references, predictions, average="macro") == pytest.approx((2 / 3 + 1) / 3)


@pytest.mark.parametrize("metric_class", [Accuracy, MacroF1])
def test_probabilities_are_refused_as_classes(metric_class):
    with fails(ValueError, "continuous"):
        metric_class().compute(predictions=[0.2, 0.7], references=[0, 1])


@pytest.mark.parametrize("metric_class", [Accuracy, MacroF1])
def test_metric_leaves_no_files(metric_class, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    metric_class().compute(predictions=[0, 1], references=[0, 1])
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


@pytest.mark.parametrize("num_tracks", [6, 80])
def test_macro_f1_of_resamples_equals_scikit_learn(num_tracks):
    references, scores = draw_data(num_tracks)
    predictions = scores.argmax(axis=1)
    counts = np.concatenate(list(resample_counts(num_tracks, seed=0, num_resamples=20)))
    drawn = [np.repeat(np.arange(num_tracks), row) for row in counts]
    if num_tracks == 6:
        assert len({len(np.unique(references[tracks])) for tracks in drawn}) > 1
    expected = [f1_by_scikit_learn(references[tracks], predictions[tracks]) for tracks in drawn]
    assert macro_f1(references, predictions, 5)(counts) == pytest.approx(expected, abs=1e-12)


def test_report_holds_values_intervals_labels_and_confusion():
    references, scores = draw_data()
    references[references == 3] = 0
    scores[:, 4] -= 100  # never predicted
    predictions = scores.argmax(axis=1)
    labels = ["blues", "jazz", "metal", "polka", "rock"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = multiclass_report(references, scores, labels, seed=2)

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["metrics", "per_label", "confusion", "labels_left_out"]
    assert report["labels_left_out"] == ["polka"]
    assert report["confusion"] == confusion_matrix(references, predictions).tolist()
    values = {
        "accuracy": accuracy_score(references, predictions),
        "macro_f1": f1_by_scikit_learn(references, predictions),
    }
    for name, value in values.items():
        entry = report["metrics"][name]
        assert entry["value"] == pytest.approx(value, abs=1e-12)
        assert entry["low"] < entry["value"] < entry["high"]
    low, high = bootstrap_interval(mean_of_tracks(predictions == references), 150, seed=2)
    assert (report["metrics"]["accuracy"]["low"], report["metrics"]["accuracy"]["high"]) == (
        low, high,
    )  # fmt: skip

    precision = precision_score(references, predictions, labels=[1], average=None)[0]
    jazz = report["per_label"]["jazz"]
    assert jazz["precision"] == pytest.approx(precision)
    assert jazz["recall"] == pytest.approx(np.mean(predictions[references == 1] == 1))
    assert jazz["f1"] == pytest.approx(
        f1_score(references, predictions, labels=[1], average=None)[0]
    )
    assert jazz["num_positive"] == (references == 1).sum()
    assert report["per_label"]["polka"]["recall"] is None
    assert report["per_label"]["polka"]["f1"] is None
    assert report["per_label"]["polka"]["precision"] == 0.0
    rock = report["per_label"]["rock"]
    assert (rock["recall"], rock["precision"], rock["f1"]) == (0.0, None, 0.0)
    f1_values = [label["f1"] for label in report["per_label"].values() if label["f1"] is not None]
    assert report["metrics"]["macro_f1"]["value"] == pytest.approx(np.mean(f1_values))


@pytest.mark.parametrize(
    ("references", "scores", "named"),
    [
        ([0, 1], [[0.1, 0.2]], ("(2,)", "(1, 2)")),
        ([[0]], [[0.1]], ("(1, 1)", "(tracks, classes)")),
        (np.zeros(0, int), np.zeros((0, 2)), ("(0, 2)",)),
        ([0.0, 1.0], [[0.1, 0.2], [0.3, 0.4]], ("float64",)),
        ([0, 2], [[0.1, 0.2], [0.3, 0.4]], ("reference", 2, 0, 1)),
        ([0, -1], [[0.1, 0.2], [0.3, 0.4]], ("reference", 1, "-1")),
        ([0, 1], [[0.1, 0.2], [np.nan, 0.4]], ("score", 1, 0, "nan")),
    ],
)
def test_bad_input_is_refused_with_what_was_found(references, scores, named):
    with fails(ValueError, *named):
        check_classes_and_scores(references, scores)


@pytest.mark.parametrize(("labels", "named"), [(["a"], (1, 2)), (["a", "a"], ("a",))])
def test_report_refuses_labels_that_do_not_fit(labels, named):
    with fails(ValueError, *named):
        multiclass_report([0, 1], [[0.1, 0.2], [0.3, 0.4]], labels)


def test_key_scores_equal_mir_eval_for_all_pairs():
    pairs = [(reference, estimate) for reference in range(24) for estimate in range(24)]
    for reference, estimate in pairs:
        score = KEY_RELATION_SCORES[key_relation(reference, estimate)]
        assert score == weighted_score(KEYS[reference], KEYS[estimate]), (reference, estimate)
    kinds = [key_relation(*pair) for pair in pairs]
    assert {kind: kinds.count(kind) for kind in KEY_RELATION_SCORES} == {
        "correct": 24, "fifth": 24, "relative": 24, "parallel": 24, "fifth below": 24, "other": 456,
    }  # fmt: skip


def test_key_relations_do_not_change_under_transposition():
    for reference in range(24):
        for estimate in range(24):
            for semitones in (1, 5, 11):
                moved = [12 * (key // 12) + (key + semitones) % 12 for key in (reference, estimate)]
                assert key_relation(*moved) == key_relation(reference, estimate)


@pytest.mark.parametrize("pair", [(-1, 0), (0, 24)])
def test_key_out_of_range_is_refused(pair):
    with fails(ValueError, *(key for key in pair if key), 23):
        key_relation(*pair)


def test_key_report_equals_mir_eval():
    references, scores = draw_data(300, 24)
    estimates = scores.argmax(axis=1)
    report = key_report(references, scores, seed=1)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    expected = [
        weighted_score(KEYS[reference], KEYS[estimate])
        for reference, estimate in zip(references, estimates, strict=True)
    ]
    assert report["metrics"]["mirex_score"]["value"] == pytest.approx(np.mean(expected))
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(references == estimates))
    assert list(report["metrics"]) == ["mirex_score", "accuracy"]
    for entry in report["metrics"].values():
        assert entry["low"] < entry["value"] < entry["high"]
    assert sum(kind["count"] for kind in report["error_kinds"].values()) == 300
    assert sum(kind["share"] for kind in report["error_kinds"].values()) == pytest.approx(1)
    assert report["error_kinds"]["correct"]["count"] == (references == estimates).sum()
    assert np.shape(report["confusion"]) == (24, 24)
    assert np.trace(report["confusion"]) == (references == estimates).sum()


def test_key_report_refuses_another_number_of_classes():
    with fails(ValueError, 12, 24):
        key_report([0], np.zeros((1, 12)))


def test_pitch_class_accuracy_counts_octaves():
    references, scores = draw_data(200, 40)
    pitches = list(range(30, 70))
    estimated = np.array(pitches)[scores.argmax(axis=1)]
    true = np.array(pitches)[references]
    report = pitch_report(references, scores, pitches)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    value = report["metrics"]["pitch_class_accuracy"]["value"]
    assert value == pytest.approx(np.mean(true % 12 == estimated % 12))
    assert value == pytest.approx(pitch_class_accuracy(true, estimated))
    assert value > report["metrics"]["accuracy"]["value"] == np.mean(true == estimated)
    assert list(report["per_label"])[:2] == ["30", "31"]
    assert pitch_class_accuracy([60, 60, 60], [48, 72, 67]) == pytest.approx(2 / 3)
