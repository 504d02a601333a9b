"""bfloat16 on a CPU: where the CPU has matrix units for it.

Without them bfloat16 is slower than float32, also with the vector instructions ``avx512_bf16``: the hidden
states of music2vec's size take 1.6 times as long. Source: benchmarks/cpu_network.py.
"""

from typing import Literal

import torch

MATRIX_UNITS = "amx_bf16"
"""Name of the matrix units in `torch.cpu.get_capabilities`."""
TASKS = frozenset(
    {
        "beats",
        "chords",
        "emotion",
        "genre",
        "instrument",
        "key",
        "melody",
        "pitch",
        "separation",
        "singer",
        "structure",
        "tagging",
        "technique",
        "transcription",
    }
)
"""Tasks whose metric moves by at most 0.01 in bfloat16. Source: benchmarks/precision.py."""

PrecisionSetting = Literal["auto", "float32", "bfloat16"]

InferencePrecision = Literal["float32", "bfloat16"]


def has_matrix_units() -> bool:
    """Return whether this CPU has matrix units for bfloat16.

    PyTorch's variable ``ATEN_CPU_CAPABILITY``, such as ``avx2``, hides them.
    """
    is_used = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return is_used and bool(torch.cpu.get_capabilities().get(MATRIX_UNITS))


def uses_bfloat16(task: str) -> bool:
    """Return whether ``auto`` is bfloat16 for a task: matrix units, and the task is in `TASKS`."""
    return task in TASKS and has_matrix_units()


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
