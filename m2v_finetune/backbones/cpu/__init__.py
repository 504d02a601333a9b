"""Whether parts of a network compute in ways of their own on a CPU: conv encoder, attention, dropout."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_is_on = True


def has_own_way(tensor: Tensor) -> bool:
    """Return whether a tensor is on a CPU, and no model is being exported or compiled."""
    return _is_on and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


@contextmanager
def as_elsewhere() -> Iterator[None]:
    """Compute as on other devices, within a block: to count the memory of a GPU on tensors of a CPU."""
    global _is_on
    before, _is_on = _is_on, False
    try:
        yield
    finally:
        _is_on = before
