"""bfloat16 on a CPU: only where the CPU is fast in it.

The vector instructions ``avx512_bf16`` alone do not tell: in bfloat16 the hidden states of music2vec's size
take 1.6 times as long as in float32 on an Intel Xeon, 0.5 times on AMD's Zen 4 and 0.3 times on Zen 5. A core
of these multiplies matrices at 187 and 500 GFLOP/s in bfloat16, and at 86 and 110 in float32. Source:
benchmarks/cpu_network.py.
"""

from typing import Literal

import torch

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


def has_fast_bfloat16() -> bool:
    """Return whether bfloat16 is faster than float32 here: by matrix units (AMX), or on AMD's Zen 4 and 5.

    These are the processors of AMD with ``avx512_bf16``. PyTorch's variable ``ATEN_CPU_CAPABILITY``, such as
    ``avx2``, hides the instructions.
    """
    found = torch.cpu.get_capabilities()
    is_of_amd = str(found.get("cpu_name", "")).startswith("AMD ")
    is_fast = bool(found.get("amx_bf16") or (is_of_amd and found.get("avx512_bf16")))
    return is_fast and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def uses_bfloat16(task: str) -> bool:
    """Return whether ``auto`` is bfloat16 for a task: the CPU is fast in it, and the task is in `TASKS`."""
    return task in TASKS and has_fast_bfloat16()


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
