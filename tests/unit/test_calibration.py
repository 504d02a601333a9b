"""Calibration and thresholds, against reference implementations."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve, roc_auc_score
from support.clip_tracks import evaluated_clips

from m2v_finetune.calibration import (
    PlattScaling,
    TemperatureScaling,
    expected_calibration_error,
    fit_platt,
    fit_temperature,
    fit_thresholds,
    reliability,
)
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging


def drawn_classes(num_tracks, *, temperature=2.0, num_classes=4, seed=0):
    """Return logits that are too confident by a temperature, and classes drawn from the right ones."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((num_tracks, num_classes))
    right = torch.tensor(logits).softmax(dim=1).numpy()
    targets = np.array([rng.choice(num_classes, p=row) for row in right])
    return temperature * logits, targets


def drawn_tags(num_tracks, *, slope=2.0, intercept=1.0, seed=0):
    """Return logits whose right log odds are (logit - intercept) / slope, and tags drawn from these."""
    rng = np.random.default_rng(seed)
    odds = 1.5 * rng.standard_normal((num_tracks, 3))
    targets = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    return slope * odds + intercept, targets


def softmax(logits):
    return torch.tensor(logits).softmax(dim=1).numpy().astype(np.float32)


def sigmoid(logits):
    return torch.tensor(logits).sigmoid().numpy().astype(np.float32)


@pytest.mark.parametrize("scale_std", [0.5, np.inf])
def test_temperature_is_scipys_optimum(scale_std):
    logits, targets = drawn_classes(300)

    def objective(log_temperature):
        scaled = torch.tensor(logits) / np.exp(log_temperature)
        loss = F.cross_entropy(scaled, torch.tensor(targets), reduction="sum")
        return float(loss) + log_temperature**2 / (2 * scale_std**2)

    best = minimize_scalar(objective, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
    found = fit_temperature(softmax(logits), targets, scale_std=scale_std)
    assert found.temperature == pytest.approx(np.exp(best), rel=1e-5)
    assert found.temperature == pytest.approx(2.0, rel=0.15)  # the one it was drawn with


def test_platt_is_logistic_regression():
    logits, targets = drawn_tags(400)
    found, left_out = fit_platt(sigmoid(logits), targets, scale_std=np.inf, offset_std=np.inf)
    assert left_out == []
    for label in range(3):
        model = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, [label]], targets[:, label])
        assert found.slopes[label] == pytest.approx(model.coef_.item(), rel=1e-4)
        assert found.intercepts[label] == pytest.approx(model.intercept_.item(), abs=1e-4)


def test_priors_keep_few_tracks_near_no_change():
    logits, targets = drawn_classes(10, num_classes=2)
    is_right = logits.argmax(axis=1)  # without a prior, certainty would be best
    found = fit_temperature(softmax(logits), is_right)
    assert 0.2 < found.temperature < 1
    assert fit_temperature(softmax(logits[:9]), targets[:9]) is None
    logits, targets = drawn_tags(60)
    targets[:, 1] = 0
    targets[:4, 1] = 1
    platt, left_out = fit_platt(sigmoid(logits), targets)
    assert left_out == [1]
    assert (platt.slopes[1], platt.intercepts[1]) == (1.0, 0.0)
    assert platt.slopes[0] != 1.0
    assert fit_platt(sigmoid(logits[:9]), targets[:9])[1] == [0, 1, 2]


def test_scaling_probabilities_equals_scaling_logits():
    logits, _ = drawn_classes(50)
    scaling = TemperatureScaling(temperature=1.7)
    np.testing.assert_allclose(scaling.apply(softmax(logits)), softmax(logits / 1.7), atol=1e-6)
    platt = PlattScaling(slopes=(0.5, 2.0, 1.0, 1.0), intercepts=(1.0, -1.0, 0.0, 0.5))
    factors, summands = platt.scales(4)
    expected = sigmoid(logits * factors + summands)
    np.testing.assert_allclose(platt.apply(sigmoid(logits)), expected, atol=1e-6)
    certain = np.array([[0.0, 1.0, 0.0, 1.0]], np.float32)
    assert np.isfinite(platt.apply(certain)).all()
    assert np.isfinite(scaling.apply(certain)).all()


def test_order_does_not_change():
    logits, targets = drawn_classes(80)
    task = Genre(labels=("a", "b", "c", "d"), label_column="genre")
    evaluated = evaluated_clips(targets, softmax(logits))
    fitted = task.calibrate(evaluated)
    calibrated = [fitted.calibrated(one) for one in evaluated]
    assert fitted.compute_metrics(calibrated) == task.compute_metrics(evaluated)
    assert Genre.from_dict(fitted.to_dict()) == fitted
    logits, targets = drawn_tags(80)
    tagger = Tagging(labels=("a", "b", "c"), label_column="tags")
    evaluated = evaluated_clips(targets, sigmoid(logits))
    fitted = tagger.calibrate(evaluated)
    scores = np.stack([fitted.calibrated(one).scores for one in evaluated])
    assert roc_auc_score(targets, scores) == roc_auc_score(targets, sigmoid(logits))
    assert Tagging.from_dict(fitted.to_dict()) == fitted


def test_calibration_error_is_the_plain_formula():
    logits, targets = drawn_classes(500)
    probabilities = softmax(logits)
    confidences, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    edges = np.linspace(0, 1, 16)
    error = 0.0
    for low, high in pairwise(edges):
        inside = (confidences >= low) & (confidences < high)
        if inside.any():
            error += inside.mean() * abs(confidences[inside].mean() - is_right[inside].mean())
    bins = reliability(confidences, is_right)
    assert expected_calibration_error(bins) == pytest.approx(error, abs=1e-6)
    calibrated = fit_temperature(probabilities, targets).apply(probabilities)
    after = expected_calibration_error(reliability(calibrated.max(axis=1), is_right))
    assert after < error / 2
    assert expected_calibration_error(reliability(np.ones(3), np.ones(3))) == 0


@pytest.mark.parametrize("precision", [None, 0.8])
def test_thresholds_are_the_best_of_sklearns_curve(precision):
    logits, targets = drawn_tags(120)
    probabilities = sigmoid(logits)
    for label, limit in enumerate(fit_thresholds(probabilities, targets, precision=precision)):
        target, own = targets[:, label], probabilities[:, label]
        precisions, recalls, _ = precision_recall_curve(target, own)
        chosen = own >= limit
        found_precision = target[chosen].mean()
        found_recall = target[chosen].sum() / target.sum()
        if precision is None:
            f1 = 2 * precisions * recalls / np.maximum(precisions + recalls, 1e-12)
            found = 2 * found_precision * found_recall / (found_precision + found_recall)
            assert found == pytest.approx(f1.max())
        else:
            assert found_precision >= 0.8
            assert found_recall == pytest.approx(recalls[precisions >= 0.8].max())


def test_thresholds_of_few_tracks_and_of_a_precision_that_is_never_reached():
    logits, targets = drawn_tags(60)
    targets[:, 1] = 0
    targets[:4, 1] = 1
    targets[:, 2] = np.argsort(np.argsort(logits[:, 2])) < 30  # the wrong way round
    probabilities = sigmoid(logits)
    assert fit_thresholds(probabilities, targets, precision=None)[1] == 0.5
    thresholds = fit_thresholds(probabilities, targets, precision=0.9)
    assert thresholds[1:] == (0.9, None)
    task = Tagging(labels=("a", "b", "c"), label_column="tags", thresholds=thresholds)
    assert task.decide({"a": 1.0, "b": 0.9, "c": 1.0}) == ["a", "b"]
    assert Tagging.from_dict(task.to_dict()) == task
