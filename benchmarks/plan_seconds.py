"""Time `m2v plan` as a whole command: what it takes to know the memory of a run before it starts.

    python benchmarks/plan_seconds.py [--repeats N]

Each command runs in a process of its own, imports included. Written to benchmarks/results/plan_seconds.json:
medians by the clock and by the time that the processor worked, versions and machine; and a table in
docs/memory.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from memory_table import PAGE, replaced
from songs import command_variables, environment

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "plan_seconds.json"
COMMANDS = {
    "the quickstart's probe": ["configs/tagging/quickstart.yaml"],
    "music2vec-v1, LoRA": ["configs/tagging/magnatagatune-lora.yaml"],
    "music2vec-v1, full": ["configs/tagging/magnatagatune-full.yaml"],
    "MERT-v1-330M, LoRA, 30 s": [
        "configs/tagging/magnatagatune-lora.yaml",
        *("--backbone.source", "MERT-v1-330M", "--data.window_seconds", "30"),
    ],
    "MERT-v1-330M, full, 30 s": [
        "configs/tagging/magnatagatune-full.yaml",
        *("--backbone.source", "MERT-v1-330M", "--data.window_seconds", "30"),
    ],
}


def main() -> None:
    """Run all commands in turns, and write what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, settings in COMMANDS.items():
            taken[name].append(run(settings))
            print(name, *(f"{seconds:.1f} s" for seconds in taken[name][-1]), flush=True)
    found: dict[str, Any] = {
        "commands": {
            name: {
                "median_seconds": round(statistics.median(wall for wall, _ in times), 2),
                "median_processor_seconds": round(statistics.median(cpu for _, cpu in times), 2),
                "count": len(times),
            }
            for name, times in taken.items()
        },
        "load_average_after": os.getloadavg(),
        "environment": environment(),
    }
    arguments.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(
        replaced(PAGE.read_text(encoding="utf-8"), "seconds", table(found)), encoding="utf-8"
    )


def table(found: dict[str, Any]) -> str:
    """Return the table of docs/memory.md."""
    rows = [
        f"| {name} | {one['median_seconds']:.0f} s |" for name, one in found["commands"].items()
    ]
    return "\n".join(["| `m2v plan --memory 11GB` of | takes |", "|---|---|", *rows])


def run(settings: list[str]) -> tuple[float, float]:
    """Return the seconds of a plan, by the clock and by the processor."""
    program = "import sys; from m2v_finetune.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "plan", "--memory", "11GB", "--config", *settings]
    start_time, before = time.perf_counter(), _processor_seconds()
    subprocess.run(
        command,
        check=True,
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        env=command_variables(),
    )
    return time.perf_counter() - start_time, _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
