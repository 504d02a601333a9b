"""bfloat16 on a CPU: only where the CPU is fast in it.

The vector instructions ``avx512_bf16`` alone do not tell: by them the hidden states of music2vec's size take
1.6 times as long as in float32 on an Intel Xeon, and 0.3 times on an AMD EPYC of the Zen 5 generation, which
multiplies matrices at 500 GFLOP/s a core. Source: benchmarks/cpu_network.py.
"""

from typing import Literal

import torch

FAST_CPUS = (("amx_bf16",), ("avx512_bf16", "avx512_vp2intersect"))
"""Names in `torch.cpu.get_capabilities` by which fast CPUs are known: matrix units (AMX), or AMD's Zen 5.

No other generation has both names of the latter.
"""
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
    """Return whether bfloat16 is faster than float32 on this CPU: one of `FAST_CPUS`.

    PyTorch's variable ``ATEN_CPU_CAPABILITY``, such as ``avx2``, hides them.
    """
    is_used = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    capabilities = torch.cpu.get_capabilities()
    return is_used and any(all(capabilities.get(name) for name in names) for names in FAST_CPUS)


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
