"""Dropout on a CPU with fewer random numbers.

PyTorch draws a number of its generator for each element, one after the other: a tenth to a fifth of the time
of a training step of music2vec's size in float32, a quarter to a third in bfloat16
(benchmarks/training_step.py). Here one 64-bit number decides about four elements, by 16 bits each.
"""

import torch
from torch import Tensor, nn

from m2v_finetune.backbones.cpu import has_own_way

VALUES = 2**16
"""Values of the bits of an element."""


class Dropout(nn.Dropout):
    """Dropout of PyTorch, with `drop` on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with dropped elements in training mode, else the input."""
        if self.training and has_own_way(input):
            return drop(input, self.p)
        return super().forward(input)


def drop(state: Tensor, probability: float) -> Tensor:
    """Return a state whose elements are zero by chance, and the others scaled so that its mean stays.

    Args:
        state: State of any shape on a CPU.
        probability: Probability that an element becomes zero, from 0 to 1; rounded to 1/65536.
    """
    num_dropped = round(probability * VALUES)
    if num_dropped in (0, VALUES):
        return state if num_dropped == 0 else state * 0
    factors = _kept(state.shape, num_dropped).to(state.dtype)
    return state * factors.mul_(VALUES / (VALUES - num_dropped))


def _kept(shape: torch.Size, num_dropped: int) -> Tensor:
    """Return which elements are kept: all but a share of ``num_dropped`` of `VALUES`, by chance."""
    count = shape.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return draws.view(torch.int16)[:count].view(shape) >= num_dropped - VALUES // 2


def use_own_dropout(network: nn.Module) -> None:
    """Replace each dropout of a network by `Dropout`, in place."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.Dropout:
            network.set_submodule(name, Dropout(module.p))
