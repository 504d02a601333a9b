"""Mixed precision by what the hardware computes in."""

from typing import Literal

import torch

BF16_CAPABILITY = (8, 0)


def choose_precision(
    setting: Literal["auto", "no", "fp16", "bf16"], *, capability: tuple[int, int] | None
) -> Literal["no", "fp16", "bf16"]:
    """Return the mixed precision to train in.

    Args:
        setting: ``auto``, or the user's choice.
        capability: Compute capability of the NVIDIA card, or None without one.

    Returns:
        For ``auto``: bf16 from capability 8.0 up, where the arithmetic exists; fp16 with loss scaling on
        older cards such as an RTX 2080 Ti (7.5); no mixed precision on CPU.
    """
    if setting != "auto":
        return setting
    if capability is None:
        return "no"
    return "bf16" if capability >= BF16_CAPABILITY else "fp16"


def card_capability() -> tuple[int, int] | None:
    """Return the compute capability of the current NVIDIA card, or None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None
