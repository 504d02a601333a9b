"""Trainable weighting of the hidden states of all layers."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

Weighting = Literal["softmax", "conv1d", "last"] | int
StatesAbove = Callable[[int, Tensor], Iterable[Tensor]]
"""Function that returns the hidden states above one, from the index and value of that one."""


class LayerWeighting(nn.Module):
    """Combine hidden states into one, as a running sum: no stack of all states is ever made.

    Any time axis may be averaged before or after, with the same result: the combination is linear
    over layers and the same for every frame.

    Attributes:
        kind: ``softmax``, ``conv1d``, ``last``, or the index of one hidden state.
        layer_weights: Trainable weights, (num_hidden_states,); absent for ``last`` and a number.
        offset: Trainable offset of ``conv1d``, a scalar; absent otherwise.

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
    def selected_layer(self) -> int | None:
        """Index of the single hidden state in use; None if all are in use."""
        if self.kind in ("softmax", "conv1d"):
            return None
        return self.num_hidden_states - 1 if self.kind == "last" else int(self.kind)

    def weights(self) -> Tensor:
        """Return the weight of each hidden state, (num_hidden_states,)."""
        if self.kind == "softmax":
            return self.layer_weights.softmax(dim=0)
        if self.kind == "conv1d":
            return self.layer_weights
        return torch.eye(self.num_hidden_states)[self.selected_layer]

    def forward(self, hidden_states: Iterable[Tensor]) -> Tensor:
        """Return the combination.

        Args:
            hidden_states: `num_hidden_states` tensors of one shape, such as (batch, frames,
                hidden_size) or (batch, hidden_size).

        Returns:
            A tensor of that shape.
        """
        if self.selected_layer is not None:
            return next(state for i, state in enumerate(hidden_states) if i == self.selected_layer)
        return self._sum(zip(self.weights().unbind(), hidden_states, strict=True))

    def checkpointed(self, first: Tensor, depth: int, states_above: StatesAbove) -> Tensor:
        """Return the output of `forward` for all hidden states, without keeping those of frozen layers.

        Args:
            first: Hidden state 0.
            depth: Index of the last hidden state of the frozen layers, from 1.
            states_above: Function that computes states; further calls return the same values.
        """
        weights = self.weights()
        combined, last = FrozenSum.apply(weights[: depth + 1], first, states_above)  # type: ignore[no-untyped-call]
        above = zip(weights[depth + 1 :].unbind(), states_above(depth, last), strict=True)
        return self._sum(above, initial=combined)

    def _sum(
        self, weighted: Iterable[tuple[Tensor, Tensor]], *, initial: Tensor | None = None
    ) -> Tensor:
        """Return the sum of states times their weights, added to ``initial``, which it overwrites."""
        for weight, state in weighted:
            # In place, as no gradient needs the sum: one product is allocated, not one for each state.
            initial = weight * state if initial is None else initial.addcmul_(state, weight)
        assert initial is not None
        return initial + self.offset if self.kind == "conv1d" else initial


class FrozenSum(torch.autograd.Function):
    """Weighted sum of hidden states of frozen layers, of which only the first is kept.

    The gradient of a weight is the sum over all numbers of its state times the gradient of the sum. For it
    the states are computed again in the backward pass, one after the other.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, first: Tensor, states_above: StatesAbove
    ) -> tuple[Tensor, Tensor]:
        """Return the sum, and the last of the states.

        Args:
            ctx: Context of autograd.
            weights: Weights of the states, (states,), at least 2.
            first: Hidden state 0.
            states_above: Argument of `LayerWeighting.checkpointed`.
        """
        ctx.save_for_backward(first)
        ctx.states_above, ctx.num_states = states_above, len(weights)
        device = first.device.type
        ctx.autocast = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }
        combined = weights[0] * first
        state = first
        for weight, state in zip(weights[1:].unbind(), _frozen_states(ctx, first), strict=True):
            combined.addcmul_(state, weight)
        ctx.mark_non_differentiable(state)
        return combined, state

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the weights."""
        (first,) = ctx.saved_tensors
        of_sum = gradients[0].flatten()
        found = [torch.dot(of_sum, first.flatten())]
        with torch.autocast(**ctx.autocast):
            for state in _frozen_states(ctx, first):
                found.append(torch.dot(of_sum, state.flatten()))
        return torch.stack(found), None, None


def _frozen_states(ctx: Any, first: Tensor) -> Iterator[Tensor]:
    """Yield the states above the first, up to the last of the frozen layers."""
    return islice(ctx.states_above(0, first), ctx.num_states - 1)
