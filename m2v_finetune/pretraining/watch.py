"""Statistics of the conv encoder's output, which show its collapse."""

import torch
from torch import Tensor

CONV_RANK, CONV_VARIANCE = "conv_rank", "conv_variance"
CONV_METRICS = {CONV_RANK: "rank of conv features", CONV_VARIANCE: "variance of conv features"}
"""Names of the columns of `conv_statistics`."""
MIN_CONV_RANK = 1.5
"""Rank below which the features are almost multiples of one vector."""
TINY = 1e-30


@torch.no_grad()
def conv_statistics(features: Tensor) -> Tensor:
    """Return rank and variance over time of each window's features, (batch, 2), in float32.

    The rank is the participation ratio of the eigenvalues of the covariance of channels over the frames
    of a window, (sum of eigenvalues)^2 / (sum of their squares): 1 if all features are multiples of one
    vector, and the number of channels if all vary alike without correlation; 0 for constant features. It
    needs no eigenvalues: the sums are the trace of the covariance, and its squared Frobenius norm. The
    variance is the mean over channels. Both are of single windows, so that their means do not depend on
    the division of a total batch.

    Args:
        features: Output of the conv encoder, (batch, channels, frames).

    Source: participation ratio as in Gao et al., "A theory of multineuronal dimensionality, dynamics and
    measurement" (bioRxiv 214262).
    """
    with torch.autocast(features.device.type, enabled=False):
        centred = features.float() - features.float().mean(dim=2, keepdim=True)
        variance = centred.square().mean(dim=(1, 2))
        # Of unit variance, so that squares of squares stay in the range of float32.
        scaled = centred * torch.rsqrt(variance + TINY).view(-1, 1, 1)
        if scaled.shape[1] > scaled.shape[2]:  # the smaller product has the same norm
            scaled = scaled.transpose(1, 2)
        gram = scaled @ scaled.transpose(1, 2)
        trace = scaled.square().sum(dim=(1, 2))
        rank = trace.square() / (gram.square().sum(dim=(1, 2)) + TINY)
    return torch.stack([rank, variance], dim=1)
