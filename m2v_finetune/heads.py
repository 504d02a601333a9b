"""Task heads: what reads the weighted hidden states."""

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Pooling = Literal["mean", "mean_std", "attention"]
Kind = Literal["mlp", "linear"]
STANDARD_DEVIATION_EPSILON = 1e-5


class AttentionPooling(nn.Module):
    """A weighted mean over frames whose weights are learned.

    Source: the self-attention pooling of SUPERB's speaker baselines (Safari et al., arXiv 2008.01077):
    softmax over frames of a linear score.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return (batch, hidden_size) from (batch, frames, hidden_size)."""
        weights = self.score(features).softmax(dim=1)
        pooled: Tensor = (weights * features).sum(dim=1)
        return pooled


class ClipHead(nn.Module):
    """One vector of logits for a window: pooling over frames, then a linear layer or an MLP.

    The MLP with one hidden layer of 512 and dropout is the published probe (MARBLE, arXiv 2306.10548).

    Args:
        input_size: Width of a frame.
        num_outputs: Width of the logits.
        pooling: ``mean``, ``mean_std`` or ``attention``.
        kind: ``mlp`` or ``linear``.
        hidden_size: Width of the MLP's hidden layer.
        dropout: Probability before each linear layer.

    Raises:
        ValueError: There is no such pooling or kind.
    """

    def __init__(
        self,
        *,
        input_size: int,
        num_outputs: int,
        pooling: Pooling = "mean",
        kind: Kind = "mlp",
        hidden_size: int = 512,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling) or kind not in get_args(Kind):
            raise ValueError(f"no head has pooling {pooling!r} and kind {kind!r}")
        self.pooling = pooling
        if pooling == "attention":
            self.attention = AttentionPooling(input_size)
        pooled_size = 2 * input_size if pooling == "mean_std" else input_size
        if kind == "mlp":
            self.layers = nn.Sequential(
                nn.Dropout(dropout),
                nn.Linear(pooled_size, hidden_size),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden_size, num_outputs),
            )
        else:
            self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(pooled_size, num_outputs))

    def before_weighting(self, hidden_states: Iterable[Tensor]) -> Iterator[Tensor]:
        """Average each hidden state over time where that may come first.

        The mean over frames and the weighted sum over layers commute, so averaging each state as it
        comes keeps (batch, hidden_size) of it in place of (batch, frames, hidden_size).
        """
        for state in hidden_states:
            yield state.mean(dim=1, keepdim=True) if self.pooling == "mean" else state

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, num_outputs) from weighted states (batch, frames, hidden_size)."""
        if self.pooling == "attention":
            return self.layers(self.attention(features))  # type: ignore[no-any-return]
        pooled = features.mean(dim=1)
        if self.pooling == "mean_std":
            variance = features.var(dim=1, correction=0)
            # The epsilon keeps the gradient of the root finite where all frames are the same.
            pooled = torch.cat([pooled, (variance + STANDARD_DEVIATION_EPSILON).sqrt()], dim=-1)
        return self.layers(pooled)  # type: ignore[no-any-return]
