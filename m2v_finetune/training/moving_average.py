"""Exponential moving average of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Average of the trainable parameters over the steps of a run.

    Source of the smaller decay in the first steps: `tf.train.ExponentialMovingAverage` with
    ``num_updates``: min(decay, (1 + n) / (10 + n)) after n steps.

    Args:
        model: Model of the run, on its device; the average starts at its weights.
        decay: Weight of the average so far, from 0 to below 1; with 0 nothing is averaged.

    Attributes:
        values: Average of each parameter, by name; empty where nothing is averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if decay > 0 and parameter.requires_grad
        }
        self.values = {name: one.detach().clone() for name, one in self._parameters.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Move the average towards the weights.

        Args:
            num_updates: Number of earlier updates.
        """
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Continue from the average of a checkpoint."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in place of the weights of the model, within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            trained = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(trained)
