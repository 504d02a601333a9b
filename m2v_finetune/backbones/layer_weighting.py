"""One representation out of all hidden states: the learned weighting of layers."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

Weighting = Literal["softmax", "conv1d", "last"] | int


class LayerWeighting(nn.Module):
    """Combine hidden states into one, as a running sum: no stack of all states is ever made.

    Any time axis may be averaged before or after, with the same result: the combination is linear
    over layers and the same for every frame.

    Attributes:
        kind: ``softmax``, ``conv1d``, ``last``, or the number of one hidden state.
        layer_weights: What is learned, (num_hidden_states,); absent for ``last`` and a number.
        offset: What ``conv1d`` adds, a scalar; absent otherwise.

    Source: softmax as in SUPERB (arXiv 2105.01051); ``conv1d`` is torch.nn.Conv1d(num_hidden_states, 1,
    kernel_size=1) over the stacked states, as in the model card of m-a-p/music2vec-v1, with its
    initialisation.
    """

    def __init__(self, kind: Weighting, num_hidden_states: int) -> None:
        super().__init__()
        self.kind = kind
        self.num_hidden_states = num_hidden_states
        if kind == "softmax":
            self.layer_weights = nn.Parameter(torch.zeros(num_hidden_states))
        elif kind == "conv1d":
            bound = num_hidden_states**-0.5
            self.layer_weights = nn.Parameter(
                torch.empty(num_hidden_states).uniform_(-bound, bound)
            )
            self.offset = nn.Parameter(torch.empty(()).uniform_(-bound, bound))

    @property
    def chosen(self) -> int | None:
        """The number of the one hidden state in use; None where all are."""
        if self.kind in ("softmax", "conv1d"):
            return None
        return self.num_hidden_states - 1 if self.kind == "last" else int(self.kind)

    def weights(self) -> Tensor:
        """Return the weight of each hidden state, (num_hidden_states,)."""
        if self.kind == "softmax":
            return self.layer_weights.softmax(dim=0)
        if self.kind == "conv1d":
            return self.layer_weights
        return torch.eye(self.num_hidden_states)[self.chosen]

    def forward(self, hidden_states: Iterable[Tensor]) -> Tensor:
        """Return the combination.

        Args:
            hidden_states: `num_hidden_states` tensors of one shape, such as (batch, frames,
                hidden_size) or (batch, hidden_size).

        Returns:
            A tensor of that shape.
        """
        if self.chosen is not None:
            return next(state for i, state in enumerate(hidden_states) if i == self.chosen)
        weights = self.weights()
        combined = sum(
            weight * state for weight, state in zip(weights.unbind(), hidden_states, strict=True)
        )
        assert isinstance(combined, Tensor)
        return combined + self.offset if self.kind == "conv1d" else combined
