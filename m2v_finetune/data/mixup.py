"""Mixup: a training window is a weighted mean of two, and so are their targets."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.manifest import Track
from m2v_finetune.errors import UserError


class PartnerError(UserError):
    """Window to mix in that cannot be read.

    Attributes:
        track: Its track.
    """

    def __init__(self, track: Track, reason: str) -> None:
        super().__init__(reason)
        self.track = track


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Mixes each window with another of the same epoch.

    Partner and share are drawn from (seed, epoch, index of the window), so neither workers, processes nor a
    resume change them.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization (2018): a share from Beta(alpha, alpha).

    Attributes:
        alpha: Parameter of the beta distribution, above 0.
        num_outputs: Number of classes. A class becomes probabilities of all classes.
        seed: Seed of the run.
    """

    alpha: float
    num_outputs: int
    seed: int

    def __call__(
        self,
        position: tuple[int, int],
        *,
        num_items: int,
        read: Callable[[tuple[int, int]], tuple[Tensor, ...]],
        track_of: Callable[[int, int], Track],
    ) -> tuple[Tensor, ...]:
        """Return the mixed inputs and targets of an item.

        Args:
            position: Epoch and index of the item.
            num_items: Number of items of an epoch.
            read: Function that reads inputs and targets of an item.
            track_of: Function that returns the track of an item in an epoch.

        Raises:
            PartnerError: The partner cannot be read.
        """
        epoch, index = position
        generator = draw_generator(self.seed, epoch, str(index), "mixup")
        share = float(generator.beta(self.alpha, self.alpha))
        partner = int(generator.integers(num_items))
        own = self._with_probabilities(read(position))
        try:
            other = self._with_probabilities(read((epoch, partner)))
        except (UserError, OSError) as error:
            raise PartnerError(track_of(partner, epoch), str(error)) from error
        return tuple(share * one + (1 - share) * two for one, two in zip(own, other, strict=True))

    def _with_probabilities(self, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        *inputs, targets = parts
        if targets.ndim == 0:
            one_hot = np.zeros(self.num_outputs, dtype=np.float32)
            one_hot[int(targets)] = 1.0
            targets = torch.from_numpy(one_hot)
        return *inputs, targets
