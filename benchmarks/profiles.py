"""Which operations take the time, for the result files of benchmarks."""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

NUM_LISTED_OPERATIONS = 12


def profiler(device: torch.device) -> profile:
    """Return a profiler of operations on the device."""
    on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    return profile(activities=[ProfilerActivity.CPU, *on_gpu])


def operations(profiled: profile, device: torch.device) -> list[dict[str, Any]]:
    """Return the operations that took most time."""
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    of = "self_device_time_total" if device.type == "cuda" else key
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, of))
    return [
        {"name": e.key, "calls": e.count, "milliseconds": round(getattr(e, of) / 1e3, 1)}
        for e in events[:NUM_LISTED_OPERATIONS]
    ]
