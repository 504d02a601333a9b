"""bfloat16 on a CPU: where the CPU has units for matrix products in it.

Without these units bfloat16 is computed in float32, with conversions: slower, and no more exact.
"""

from typing import Literal

import torch

UNITS = ("amx_bf16", "avx512_bf16")
"""Names of the units in `torch.cpu.get_capabilities`, the faster ones first."""
TASKS = frozenset(
    {
        "beats",
        "chords",
        "emotion",
        "genre",
        "instrument",
        "key",
        "pitch",
        "singer",
        "tagging",
        "technique",
        "transcription",
    }
)
"""Tasks whose metric moves by at most 0.01 in bfloat16. Source: benchmarks/precision.py."""

PrecisionSetting = Literal["auto", "float32", "bfloat16"]

InferencePrecision = Literal["float32", "bfloat16"]


def bfloat16_units() -> list[str]:
    """Return the units of this CPU for matrix products in bfloat16; an empty list if it has none.

    PyTorch's variable ``ATEN_CPU_CAPABILITY``, such as ``avx2``, hides them.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return []
    capabilities = torch.cpu.get_capabilities()
    return [name for name in UNITS if capabilities.get(name)]


def uses_bfloat16(task: str) -> bool:
    """Return whether ``auto`` is bfloat16 for a task: this CPU has units, and the task is in `TASKS`."""
    return task in TASKS and bool(bfloat16_units())


def inference_precision(
    setting: PrecisionSetting, *, task: str, device: torch.device
) -> InferencePrecision:
    """Return the precision to predict in.

    Args:
        setting: Setting; ``auto`` is bfloat16 on a CPU by `uses_bfloat16`, else float32.
        task: Name of the task.
        device: Device of the model.
    """
    if setting != "auto":
        return setting
    return "bfloat16" if device.type == "cpu" and uses_bfloat16(task) else "float32"
