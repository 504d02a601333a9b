"""Novelty of windows: distances of their features from those of the training windows."""

import torch
from torch import Tensor, nn

RATE = 0.05
"""Share of validation tracks above a bound, and so of false alarms on music like them."""
MIN_WINDOWS, MIN_TRACKS = 50, 20
"""Training windows and validation tracks below which nothing is fitted."""
MAX_WINDOWS = 1000
"""Number of training windows that a model keeps: 1 MB with 256 features."""
NEIGHBOUR = 5
"""Rank of the training window to which the distance of directions is measured."""
NUM_DISTANCES = 2
"""Number of distances of a window, and of columns behind its logits."""
LEAST_LENGTH = 1e-12
"""Least length of standardised features: windows that all equal the mean have 0."""
LEAST_VARIANCE = 1e-6
"""Least variance of standardised features in any direction: equal windows have none."""
LEAST_BOUND = 1e-2
"""Least bound of a distance: validation tracks that all equal the training tracks have a distance near 0."""


class Novelty(nn.Module):
    """Two distances of the head's input, averaged over frames, each relative to a bound.

    The first is that of its direction from the direction of the training window of rank `NEIGHBOUR`; it finds
    speech with filterbank-small. The second is the Mahalanobis distance from all training windows; it finds
    silence with every backbone (docs/probabilities.md).

    Source: Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022; Lee et al., A
    Simple Unified Framework for Detecting Out-of-Distribution Samples, arXiv 1807.03888, with one mean for
    all labels, and the covariance of Ledoit and Wolf (2004), which exists for few windows too.

    Args:
        size: Number of features.
        num_windows: Number of training windows.

    Attributes:
        mean: Mean of each feature over training windows, (size,).
        scale: Standard deviation of each, (size,); 1 where a feature is constant.
        windows: Directions of the training windows, of length 1, (num_windows, size).
        factor: Matrix L of the inverse covariance L @ L.T of standardised features, (size, size).
        bounds: Distances that count as 1, (2,).
    """

    mean: Tensor
    scale: Tensor
    windows: Tensor
    factor: Tensor
    bounds: Tensor

    def __init__(self, size: int, num_windows: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("windows", torch.zeros(num_windows, size))
        self.register_buffer("factor", torch.eye(size))
        self.register_buffer("bounds", torch.ones(NUM_DISTANCES))

    @classmethod
    def fit(cls, features: Tensor) -> "Novelty":
        """Return the novelty, with bounds of 1, for features of training windows, (windows, size)."""
        from sklearn.covariance import LedoitWolf

        rows = features.double().cpu()
        novelty = cls(rows.shape[1], len(rows))
        std = rows.std(dim=0, correction=0).float()
        novelty.mean.copy_(rows.mean(dim=0))
        novelty.scale.copy_(torch.where(std > 0, std, torch.ones_like(std)))
        standardised = (rows - rows.mean(dim=0)) / novelty.scale
        novelty.windows.copy_(_directions(standardised))
        covariance = LedoitWolf(assume_centered=True).fit(standardised.numpy()).covariance_
        variances, axes = torch.linalg.eigh(torch.from_numpy(covariance))
        novelty.factor.copy_(axes / variances.clamp(min=LEAST_VARIANCE).sqrt())
        return novelty

    def forward(self, features: Tensor) -> Tensor:
        """Return both distances of windows, (batch, 2), from features (batch, size): above 1 is unknown."""
        with torch.autocast(features.device.type, enabled=False):
            rows = (features.float() - self.mean) / self.scale
            cosines = _directions(rows) @ self.windows.T
            rank = min(NEIGHBOUR, len(self.windows))
            nearest = cosines.topk(rank, dim=-1).values[:, -1]
            distances = [
                (2 - 2 * nearest).clamp(min=0).sqrt(),
                torch.linalg.vector_norm(rows @ self.factor, dim=-1),
            ]
            return torch.stack(distances, dim=-1) / self.bounds

    def set_bounds(self, distances: Tensor) -> None:
        """Set the bounds so that a further track like these is above one in about `RATE` of the cases.

        Each distance gets the bound of its own first; then both are widened by one factor. As both are set by
        the same tracks, the rate is higher for few: of independent normal distances 9 % with 20 tracks, 6.6 %
        with 40, 5.6 % with 100.

        Source: split conformal prediction (Vovk et al.): of n distances the one of rank (n + 1)(1 - rate),
        rounded up.

        Args:
            distances: Distances of each validation track with bounds of 1, (tracks, 2), at least 20 tracks.
        """
        rank = -int(-(len(distances) + 1) * (1 - RATE) // 1)
        of_each = distances.double().sort(dim=0).values[rank - 1].clamp(min=LEAST_BOUND)
        largest = (distances / of_each).max(dim=1).values
        self.bounds.copy_(of_each * largest.sort().values[rank - 1].clamp(min=1))


def _directions(rows: Tensor) -> Tensor:
    return nn.functional.normalize(rows, dim=-1, eps=LEAST_LENGTH)
