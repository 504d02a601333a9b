"""Choice of mixed precision by the hardware."""

from typing import Literal

import torch

from m2v_finetune.errors import UserError

BF16_CAPABILITY = (8, 0)


def choose_precision(
    setting: Literal["auto", "no", "fp16", "bf16"], *, capability: tuple[int, int] | None
) -> Literal["no", "fp16", "bf16"]:
    """Return the mixed precision to train in.

    Args:
        setting: Precision of the settings, or ``auto``.
        capability: Compute capability of the NVIDIA GPU, or None without one.

    Returns:
        For ``auto``: bf16 from capability 8.0 up, where the arithmetic exists; fp16 with loss scaling on
        older GPUs such as an RTX 2080 Ti (7.5); no mixed precision on CPU.

    Raises:
        UserError: The hardware does not support the precision.
    """
    if setting == "fp16" and capability is None:
        raise UserError(
            "training.mixed_precision is fp16, which needs an NVIDIA GPU, and this run has "
            "none. Set it to no, or to auto.",
            code="precision-needs-gpu",
        )
    if setting == "bf16" and capability is not None and capability < BF16_CAPABILITY:
        raise UserError(
            "training.mixed_precision is bf16, but this GPU has compute capability "
            f"{'.'.join(map(str, capability))}, and bfloat16 needs 8.0. Set it to fp16, or to auto.",
            code="precision-unsupported",
        )
    if setting != "auto":
        return setting
    if capability is None:
        return "no"
    return "bf16" if capability >= BF16_CAPABILITY else "fp16"


def gpu_capability() -> tuple[int, int] | None:
    """Return the compute capability of the current NVIDIA GPU, or None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None
