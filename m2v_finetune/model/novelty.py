"""Novelty of windows: distance of their features from those of the training windows."""

import torch
from torch import Tensor, nn

RATE = 0.05
"""Share of validation tracks above the bound, and so of false alarms on music like them."""
MIN_WINDOWS, MIN_TRACKS = 50, 20
"""Training windows and validation tracks below which nothing is fitted."""
MAX_WINDOWS = 1000
"""Number of training windows that a model keeps: 1 MB with 256 features."""
NEIGHBOUR = 5
"""Rank of the training window to which the distance is measured."""
LENGTH_WEIGHT = 0.3
"""Weight of a standard deviation of the lengths, where directions are vectors of length 1.

Own choice: of 0, 0.15, 0.3 and 0.5 the least with which pink noise was a tenth or more above the bound on
each hidden state of filterbank-small.
"""
LEAST_LENGTH = 1e-6
"""Least length: windows that are all equal have 0."""
LEAST_BOUND = 1e-2
"""Least bound: validation tracks that all equal the training tracks have a distance near 0."""


class Novelty(nn.Module):
    """Distance of the head's input, averaged over frames, from that of a near training window.

    Features are standardised, and compared by direction and by length. The distance is that of the training
    window of rank `NEIGHBOUR`, relative to a bound.

    Source: Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022, for directions.
    The length is added because noise may have the direction of a training window.

    Args:
        size: Number of features.
        num_windows: Number of training windows.

    Attributes:
        mean: Mean of each feature over training windows, (size,).
        scale: Standard deviation of each, (size,); 1 where a feature is constant.
        lengths: Mean and standard deviation of the logarithm of the length of standardised features, (2,).
        windows: Points of the training windows, (num_windows, size + 1).
        bound: Distance that counts as 1, ().
    """

    mean: Tensor
    scale: Tensor
    lengths: Tensor
    windows: Tensor
    bound: Tensor

    def __init__(self, size: int, num_windows: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("lengths", torch.tensor([0.0, 1.0]))
        self.register_buffer("windows", torch.zeros(num_windows, size + 1))
        self.register_buffer("bound", torch.ones(()))

    @classmethod
    def fit(cls, features: Tensor) -> "Novelty":
        """Return the novelty, with a bound of 1, for features of training windows, (windows, size)."""
        novelty = cls(features.shape[1], len(features))
        rows = features.double().cpu()
        novelty.mean.copy_(rows.mean(dim=0))
        novelty.scale.copy_(_std(rows))
        lengths = novelty._standardised(rows)[1]
        novelty.lengths.copy_(torch.cat([lengths.mean(dim=0), _std(lengths)]))
        novelty.windows.copy_(novelty._points(rows.float()))
        return novelty

    def forward(self, features: Tensor) -> Tensor:
        """Return the novelty of windows, (batch,), from features (batch, size): above 1 is unknown."""
        points = self._points(features)
        squares = points.square().sum(dim=-1, keepdim=True) + self.windows.square().sum(dim=-1)
        distances = squares - 2 * points @ self.windows.T
        rank = min(NEIGHBOUR, len(self.windows))
        nearest = distances.topk(rank, dim=-1, largest=False).values[:, -1]
        return nearest.clamp(min=0).sqrt() / self.bound

    def _points(self, features: Tensor) -> Tensor:
        """Return the points that are compared, (batch, size + 1): directions, and weighted lengths."""
        directions, lengths = self._standardised(features)
        mean, scale = self.lengths
        return torch.cat([directions, LENGTH_WEIGHT * (lengths - mean) / scale], dim=-1)

    def _standardised(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return directions (batch, size) and logarithms of lengths (batch, 1) of standardised features."""
        rows = (features - self.mean) / self.scale
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp(min=LEAST_LENGTH)
        return rows / lengths, lengths.log()

    def set_bound(self, distances: Tensor) -> None:
        """Set the bound so that a further track like these is above it in at most `RATE` of the cases.

        Source: split conformal prediction (Vovk et al.): of n distances the one of rank (n + 1)(1 - rate),
        rounded up.

        Args:
            distances: Novelty of each validation track with a bound of 1, (tracks,), at least 20.
        """
        rank = -int(-(len(distances) + 1) * (1 - RATE) // 1)
        self.bound.copy_(distances.double().sort().values[rank - 1].clamp(min=LEAST_BOUND))


def _std(rows: Tensor) -> Tensor:
    """Return the standard deviation of each column; 1 where it is constant."""
    std = rows.std(dim=0, correction=0)
    return torch.where(std > 0, std, torch.ones_like(std))
