"""Recipes in processes of their own, one or several, on the CPU."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def torchrun(num_processes: int) -> list[str]:
    """Return Python's arguments that start a script in several processes."""
    count = str(num_processes)
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count]


def options(settings: Mapping[str, Any]) -> list[str]:
    """Return settings by their names as words of a command line."""
    return [f"--{key}={value}" for key, value in settings.items()]


def cpu_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment, with the CPU chosen, one thread, and more variables."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | variables


def run_python(
    words: Sequence[str | Path],
    settings: Mapping[str, Any],
    *,
    timeout: float | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, whatever its exit code, and return what it wrote.

    Args:
        words: Its arguments, up to the settings.
        settings: Of a recipe, by name.
        timeout: Of the process, in seconds.
        **variables: Of its environment, beside `cpu_environment`.
    """
    return subprocess.run(
        [sys.executable, *words, *options(settings)],
        env=cpu_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
