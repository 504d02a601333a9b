"""Recipes in processes of their own, one or several, on the CPU."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.forked import Forked, run_forked


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


def run_recipe(
    words: Sequence[str | Path], settings: Mapping[str, Any], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as `run_python` does, but forked from a process that has imported the package."""
    return run_forked([*words, *options(settings)], environment=cpu_environment(**variables))


def run_ranks(
    num_processes: int,
    words: Sequence[str | Path],
    settings: Mapping[str, Any],
    *,
    timeout: float | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes, as torchrun does, but forked and with nobody who ends the others.

    Args:
        num_processes: Their number.
        words: Script and arguments, up to the settings.
        settings: Of a recipe, by name.
        timeout: Of each process, in seconds.
        **variables: Of their environment, beside `cpu_environment`.

    Returns:
        The first exit code that is not 0, and what all wrote.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = str(num_processes)
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count}
    common |= {"LOCAL_WORLD_SIZE": count} | variables
    ranks = [
        Forked(
            [*words, *options(settings)],
            environment=cpu_environment(**common, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(num_processes)
    ]
    try:
        outputs = [rank.communicate(timeout) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.returncode is None:
                rank.kill()
    codes = [rank.wait() for rank in ranks]
    stdout, stderr = map("".join, zip(*outputs, strict=True))
    return subprocess.CompletedProcess(list(words), next(filter(None, codes), 0), stdout, stderr)
