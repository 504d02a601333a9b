"""Novelty against scikit-learn's distance, and its bound."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from m2v_finetune.model.novelty import Novelty


def rows_of(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_novelty_is_the_distance_of_sklearn():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    rows, others = (rng.standard_normal((n, 6)) @ mixing * 3 + 5 for n in (80, 10))
    scaler = StandardScaler().fit(rows)

    def lengths(features):
        return np.log(np.linalg.norm(scaler.transform(features), axis=1, keepdims=True))

    length_scaler = StandardScaler().fit(lengths(rows))

    def points(features):
        directions = normalize(scaler.transform(features))
        return np.hstack([directions, 0.3 * length_scaler.transform(lengths(features))])

    known = NearestNeighbors(n_neighbors=5).fit(points(rows))
    expected, _ = known.kneighbors(points(others))
    found = Novelty.fit(torch.from_numpy(rows))(torch.from_numpy(others).float())
    np.testing.assert_allclose(found, expected[:, -1], rtol=1e-4)


def test_constant_features_and_few_windows_are_finite():
    rows = rows_of(20, 64)
    rows[:, 3] = 2.0
    assert Novelty.fit(rows)(rows).isfinite().all()
    assert Novelty.fit(rows[:2])(rows).isfinite().all()


@pytest.mark.parametrize("num_different", [1, 2, 3])
def test_windows_of_which_few_differ(num_different):
    rows = rows_of(num_different, 128)
    novelty = Novelty.fit(rows.repeat(100, 1))
    found = novelty(rows)
    assert found.isfinite().all()
    novelty.set_bound(found.repeat(20))
    assert float(novelty(rows_of(1, 128, seed=1))) > 10


def test_validation_tracks_that_equal_the_training_tracks_are_known():
    row = rows_of(1, 16)
    novelty = Novelty.fit(row.repeat(60, 1))
    novelty.set_bound(novelty(row).repeat(20))
    assert float(novelty(row)) <= 1 < float(novelty(row + 0.1))


@pytest.mark.parametrize(("count", "rank"), [(20, 20), (39, 38), (99, 95), (199, 190)])
def test_bound_has_the_rate_of_false_alarms(count, rank):
    novelty = Novelty(2, 50)
    novelty.set_bound(torch.arange(1, count + 1).float().flip(0))
    assert float(novelty.bound) == rank


def test_rate_of_new_tracks():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        novelty = Novelty(2, 50)
        novelty.set_bound(torch.from_numpy(rng.standard_normal(40)))
        shares.append(
            float((torch.from_numpy(rng.standard_normal(500)) > novelty.bound).double().mean())
        )
    assert np.mean(shares) <= 0.05 + 0.004
    assert np.mean(shares) == pytest.approx(1 - 39 / 41, abs=0.006)
