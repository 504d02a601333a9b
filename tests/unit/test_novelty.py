"""Novelty against scikit-learn's distances, and its bounds."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from m2v_finetune.model.novelty import Novelty


def rows_of(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_distances_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6))
    rows, others = (rng.standard_normal((n, 6)) @ mixing * 3 + 5 for n in (80, 10))
    scaler = StandardScaler().fit(rows)
    directions, own = (normalize(scaler.transform(one)) for one in (rows, others))
    nearest, _ = NearestNeighbors(n_neighbors=5).fit(directions).kneighbors(own)
    covariance = LedoitWolf().fit(scaler.transform(rows))
    mahalanobis = np.sqrt(covariance.mahalanobis(scaler.transform(others)))
    found = Novelty.fit(torch.from_numpy(rows))(torch.from_numpy(others).float())
    expected = np.stack([nearest[:, -1], mahalanobis], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_distances_are_in_float32_under_autocast():
    novelty, rows = Novelty.fit(rows_of(60, 32)), rows_of(5, 32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = novelty(rows)
    assert torch.equal(found, novelty(rows))


def test_constant_features_and_few_windows_are_finite():
    rows = rows_of(20, 64)
    rows[:, 3] = 2.0
    assert Novelty.fit(rows)(rows).isfinite().all()
    assert Novelty.fit(rows[:2])(rows).isfinite().all()


@pytest.mark.parametrize("num_different", [1, 2, 3])
def test_windows_of_which_few_differ(num_different):
    """Equal windows have no variance, in any direction or in all but one."""
    rows = rows_of(num_different, 128)
    novelty = Novelty.fit(rows.repeat(100, 1))
    found = novelty(rows)
    assert found.isfinite().all()
    novelty.set_bounds(found.repeat(20, 1))
    assert float(novelty(rows_of(1, 128, seed=1)).max()) > 10


def test_validation_tracks_that_equal_the_training_tracks_are_known():
    row = rows_of(1, 16)
    novelty = Novelty.fit(row.repeat(60, 1))
    novelty.set_bounds(novelty(row).repeat(20, 1))
    assert novelty.bounds.min() == pytest.approx(0.01)
    assert float(novelty(row).max()) <= 1 < float(novelty(row + 0.1).max())


def test_each_distance_finds_what_the_other_does_not():
    """A window far along the direction of a training window, and one between the directions of all."""
    angles = torch.arange(200) % 3 * (2 * torch.pi / 3)
    rows = 0.2 * rows_of(200, 4) + 1
    rows[:, :2] += torch.stack([angles.cos(), angles.sin()], dim=1)
    novelty = Novelty.fit(rows[:150])
    novelty.set_bounds(novelty(rows[150:]))
    far = novelty(novelty.mean + 9 * (rows[:1] - novelty.mean))
    assert float(far[0, 0]) < 1 < float(far[0, 1])
    between = novelty(torch.tensor([[0.0, 1.0, 1.0, 1.0]]))
    assert float(between[0, 1]) < 1 < float(between[0, 0])


@pytest.mark.parametrize(("count", "rank"), [(20, 20), (39, 38), (99, 95), (199, 190)])
def test_bounds_have_the_rate_of_false_alarms(count, rank):
    novelty = Novelty(2, 50)
    values = torch.arange(1, count + 1).float().flip(0)
    novelty.set_bounds(torch.stack([values, values / 8], dim=1))
    assert novelty.bounds.tolist() == [rank, rank / 8]


def test_rate_of_new_tracks():
    """One distance is constant, so the other decides."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        novelty = Novelty(2, 50)
        seen = torch.from_numpy(rng.standard_normal(40) + 9)
        novelty.set_bounds(torch.stack([seen, torch.ones(40)], dim=1))
        new = torch.from_numpy(rng.standard_normal(500) + 9)
        shares.append(float((new > novelty.bounds[0]).double().mean()))
    assert np.mean(shares) <= 0.05 + 0.004
    assert np.mean(shares) == pytest.approx(1 - 39 / 41, abs=0.006)


def test_rate_of_new_tracks_with_two_distances():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        novelty = Novelty(2, 50)
        seen, new = (torch.from_numpy(rng.standard_normal((n, 2)) + 9) for n in (100, 500))
        novelty.set_bounds(seen)
        shares.append(float((new > novelty.bounds).any(dim=1).double().mean()))
    assert 0.04 < np.mean(shares) < 0.065
