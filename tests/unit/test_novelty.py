"""Novelty against scikit-learn's distance, and its bound."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from m2v_finetune.model.novelty import Novelty


def test_novelty_is_the_mahalanobis_distance_of_sklearn():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    rows, others = (rng.standard_normal((n, 6)) @ mixing * 3 + 5 for n in (80, 10))
    novelty = Novelty(6)
    novelty.fit(torch.from_numpy(rows))
    scale = rows.std(axis=0)
    fitted = LedoitWolf().fit(rows / scale)
    expected = np.sqrt(fitted.mahalanobis(others / scale))
    found = novelty(torch.from_numpy(others).float())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_constant_features_and_few_windows_are_finite():
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    rows[:, 3] = 2.0
    novelty = Novelty(64)
    novelty.fit(rows)
    assert novelty(rows).isfinite().all()


@pytest.mark.parametrize("num_different", [1, 2, 3])
def test_windows_of_which_few_differ(num_different):
    """Equal windows have no variance, in any direction or in all but one."""
    rows = torch.randn(num_different, 128, generator=torch.Generator().manual_seed(0))
    novelty = Novelty(128)
    novelty.fit(rows.repeat(100, 1))
    assert novelty(rows).isfinite().all()
    other = torch.randn(1, 128, generator=torch.Generator().manual_seed(1))
    assert float(novelty(other)) > 10 * float(novelty(rows).max())


def test_validation_tracks_that_equal_the_training_tracks_are_known():
    row = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    novelty = Novelty(16)
    novelty.fit(row.repeat(60, 1))
    novelty.set_bound(novelty(row).repeat(20))
    assert float(novelty(row)) <= 1 < float(novelty(row + 0.1))


@pytest.mark.parametrize(("count", "rank"), [(20, 20), (39, 38), (99, 95), (199, 190)])
def test_bound_has_the_rate_of_false_alarms(count, rank):
    novelty = Novelty(2)
    novelty.set_bound(torch.arange(1, count + 1).float().flip(0))
    assert float(novelty.bound) == rank


def test_rate_of_new_tracks():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        novelty = Novelty(2)
        novelty.set_bound(torch.from_numpy(rng.standard_normal(40)))
        shares.append(
            float((torch.from_numpy(rng.standard_normal(500)) > novelty.bound).double().mean())
        )
    assert np.mean(shares) <= 0.05 + 0.004
    assert np.mean(shares) == pytest.approx(1 - 39 / 41, abs=0.006)
