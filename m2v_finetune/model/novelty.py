"""Novelty of windows: distance of their features from those of the training windows."""

import torch
from torch import Tensor, nn

RATE = 0.05
"""Share of validation tracks above the bound, and so of false alarms on music like them."""
MIN_WINDOWS, MIN_TRACKS = 50, 20
"""Training windows and validation tracks below which nothing is fitted."""
LEAST_VARIANCE = 1e-6
"""Least variance of standardised features in any direction: equal windows have none."""
LEAST_BOUND = 1e-2
"""Least bound: validation tracks that all equal the training tracks have the distance 0."""


class Novelty(nn.Module):
    """Mahalanobis distance of the head's input, averaged over frames, relative to a bound.

    Source: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, arXiv
    1807.03888, with one mean for all labels, and the covariance of Ledoit and Wolf (2004), which exists for
    fewer windows than features too.

    Args:
        size: Number of features.

    Attributes:
        mean: Mean of each feature over training windows, (size,).
        factor: Matrix L of the inverse covariance L @ L.T, (size, size).
        bound: Distance that counts as 1, ().
    """

    mean: Tensor
    factor: Tensor
    bound: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))
        self.register_buffer("bound", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return the novelty of windows, (batch,), from features (batch, size): above 1 is unknown."""
        distances: Tensor = torch.linalg.vector_norm((features - self.mean) @ self.factor, dim=-1)
        return distances / self.bound

    def fit(self, features: Tensor) -> None:
        """Set mean and factor from features of training windows, (windows, size)."""
        from sklearn.covariance import LedoitWolf

        rows = features.double().cpu()
        scale = rows.std(dim=0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        standardised = (rows - rows.mean(dim=0)) / scale
        covariance = torch.from_numpy(
            LedoitWolf(assume_centered=True).fit(standardised.numpy()).covariance_
        )
        variances, directions = torch.linalg.eigh(covariance)
        self.mean.copy_(rows.mean(dim=0))
        factor = directions / variances.clamp(min=LEAST_VARIANCE).sqrt()
        self.factor.copy_(factor / scale[:, None])

    def set_bound(self, distances: Tensor) -> None:
        """Set the bound so that a further track like these is above it in at most `RATE` of the cases.

        Source: split conformal prediction (Vovk et al.): of n distances the one of rank (n + 1)(1 - rate),
        rounded up.

        Args:
            distances: Novelty of each validation track with a bound of 1, (tracks,), at least 20.
        """
        rank = -int(-(len(distances) + 1) * (1 - RATE) // 1)
        self.bound.copy_(distances.double().sort().values[rank - 1].clamp(min=LEAST_BOUND))
