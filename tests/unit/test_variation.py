"""How much outputs vary: the numbers against numpy's, and what is called hardly anything."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from m2v_finetune.variation import (
    MIN_STD,
    MIN_TRACKS,
    OutputVariation,
    explain_constant_outputs,
    outputs_hardly_vary,
)


def counted(batches):
    variation = OutputVariation()
    for batch in batches:
        variation.add(torch.from_numpy(batch))
    return variation


@pytest.mark.parametrize("shape", [(24, 5), (24, 7, 5)], ids=["windows", "frames"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_deviations_are_those_of_all_rows(shape, offset):
    outputs = np.random.default_rng(0).standard_normal(shape) * [1, 2, 3, 0.5, 0] + offset
    expected = outputs.reshape(-1, 5).std(axis=0)
    for sizes in ([24], [1] * 24, [5, 19], [16, 8]):
        variation = counted(np.split(outputs, np.cumsum(sizes)[:-1]))
        assert variation.num_rows == outputs[..., 0].size
        np.testing.assert_allclose(variation.stds, expected, atol=1e-8)


def test_processes_together_count_what_one_counts():
    outputs = np.random.default_rng(1).standard_normal((30, 4)) + np.arange(30)[:, None]
    together = OutputVariation()
    for own in (outputs[:7], outputs[7:7], outputs[7:]):
        together.merge(counted([own] if len(own) else []))
    np.testing.assert_allclose(together.stds, outputs.std(axis=0))


def test_stems_are_left_out():
    variation = counted([np.zeros((2, 4, 2, 100))])
    assert variation.num_rows == 0
    assert not outputs_hardly_vary(variation, num_tracks=100)


@pytest.mark.parametrize(
    ("stds", "num_tracks", "expected"),
    [
        ([0.0], MIN_TRACKS, True),
        ([0.19, 0.05], 1000, True),
        ([0.19, 0.05], MIN_TRACKS - 1, False),
        ([0.21, 0.0], 1000, False),  # one label of many is told apart
        ([3.0] * 50, MIN_TRACKS, False),
    ],
)
def test_what_hardly_varies(stds, num_tracks, expected):
    rows = np.array([[-1.0], [1.0]]) * stds  # of exactly these deviations
    assert outputs_hardly_vary(counted([rows]), num_tracks=num_tracks) is expected


@pytest.mark.slow
def test_the_least_deviation_is_what_its_reason_states():
    """Labels drawn by a logit of that deviation: the share of their variance, and the ROC-AUC."""
    rng = np.random.default_rng(0)
    for mean in (0.0, -2.0):
        logits = mean + MIN_STD * rng.standard_normal(2_000_000)
        probabilities = 1 / (1 + np.exp(-logits))
        labels = rng.random(len(logits)) < probabilities
        assert probabilities.var() / labels.var() < 0.0101
        expected = norm.cdf(MIN_STD / np.sqrt(2))
        assert roc_auc_score(labels, logits) == pytest.approx(expected, abs=0.002)
        assert expected == pytest.approx(0.556, abs=5e-4)


@pytest.mark.parametrize(
    ("is_probe", "is_standardized", "named"),
    [
        (True, False, "head.standardize"),
        (True, True, "training.epochs"),
        (False, False, "training.epochs"),
    ],
)
def test_the_advice_names_two_settings(is_probe, is_standardized, named):
    variation = counted([np.array([[0.0], [0.03]])])
    advice = explain_constant_outputs(
        variation, num_tracks=60, is_probe=is_probe, is_standardized=is_standardized
    )
    assert named in advice
    assert "optimizer.learning_rate" in advice
    assert "60" in advice
    assert "0.015" in advice
