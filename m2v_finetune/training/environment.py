"""Environment of a run: versions, machine, and the launcher of its processes."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "m2v-finetune",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "soundfile",
    "soxr",
)


def describe_environment(
    *, num_processes: int = 1, num_threads: int = 1, precision: str = "no"
) -> dict[str, Any]:
    """Return versions, machine, processes, threads, precision and start; no names of users, hosts, tokens."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "num_processes": num_processes,
        "num_threads": num_threads,
        "mixed_precision": precision,
        "packages": {name: version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def launcher() -> str:
    """Return the command that starts a script in the current number of processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return "accelerate launch --num_processes 1"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    device = "ACCELERATE_USE_CPU=true " if os.environ.get("ACCELERATE_USE_CPU") else ""
    if here == processes:
        return f"{device}torchrun --standalone --nproc_per_node {processes}"
    # On each machine; the user knows the address of the first.
    machines = f"--nnodes {processes // here} --rdzv_backend c10d --rdzv_endpoint HOST:29500"
    return f"{device}torchrun {machines} --nproc_per_node {here}"
