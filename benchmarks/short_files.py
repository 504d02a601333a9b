"""Time `m2v predict` over 500 notes of 1 s, in this checkout and another one; machine idle and one core busy.

    git worktree add /tmp/before COMMIT
    python benchmarks/short_files.py --before /tmp/before

The model is `filterbank-small` of this checkout with a head of random weights, saved by each checkout. Each
command is a process of its own; all take turns in each round, first on the idle machine, then beside a
process that computes without end. The seconds of the same command for one note, its start-up, are
subtracted, by the clock and of processor time. Medians, quartiles and range go to
benchmarks/results/short_files.json.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from songs import command_variables, environment, spread
from threads import write_noise

REPOSITORY = Path(__file__).parents[1]
BACKBONE = REPOSITORY / "m2v_finetune" / "backbones" / "filterbank_small"
RESULT = REPOSITORY / "benchmarks" / "results" / "short_files.json"
MAIN = "import sys; from m2v_finetune.cli import main; main(sys.argv[1:])"
SAVE = """
import sys, torch
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
torch.manual_seed(0)
TaskModel.build(
    task=Genre(labels=("a", "b"), label_column="genre"),
    backbone=BackboneConfig(source=sys.argv[2]),
    head=HeadConfig(),
    tuning=TuningConfig(method="probe"),
    window_seconds=1.0,
).save_pretrained(sys.argv[1])
"""
BUSY = "while True: sum(range(1000000))"


def main() -> None:
    """Run all commands in turns, and write what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="an older checkout")
    parser.add_argument("--notes", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = os.getloadavg()
    rows: dict[str, Any] = {}
    of_processor: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for count in (1, arguments.notes):
            (folder / f"{count}").mkdir()
            for number in range(count):
                write_noise(folder / f"{count}" / f"{number:03}.wav", 1.0, number)
        checkouts = {"before": arguments.before.resolve(), "now": REPOSITORY}
        for name, checkout in checkouts.items():
            run(checkout, SAVE, [str(folder / f"model-{name}"), str(BACKBONE)])
        ways = {
            "before, a file of results": ("before", False),
            "now, a file of results": ("now", False),
            "now, a folder of tables": ("now", True),
        }
        for machine in ("idle", "one core busy"):
            busy = subprocess.Popen([sys.executable, "-c", BUSY]) if machine != "idle" else None
            taken: dict[str, list[float]] = {name: [] for name in ways}
            used: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(arguments.rounds):
                for name, (checkout, is_table) in ways.items():
                    one, all_notes = (
                        predict(checkouts[checkout], folder, checkout, count, is_table=is_table)
                        for count in (1, arguments.notes)
                    )
                    taken[name].append(round(all_notes[0] - one[0], 2))
                    used[name].append(round(all_notes[1] - one[1], 2))
                print(machine, number, {name: one[-1] for name, one in taken.items()}, flush=True)
            rows[machine] = {name: spread(seconds) for name, seconds in taken.items()}
            of_processor[machine] = {name: spread(seconds) for name, seconds in used.items()}
            if busy is not None:
                busy.kill()
                busy.wait()
    result = {
        "notes": arguments.notes,
        "seconds": rows,
        "processor_seconds": of_processor,
        "load_average": {"before": load, "after": os.getloadavg()},
        "environment": environment(),
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def predict(
    checkout: Path, folder: Path, model: str, count: int, *, is_table: bool
) -> tuple[float, float]:
    """Return the seconds of a command by the clock, and of processor time."""
    output = folder / ("tables" if is_table else "out.csv")
    notes = folder / f"{count}"
    sources = [str(notes)] if is_table else [str(path) for path in sorted(notes.iterdir())]
    seconds = run(
        checkout,
        MAIN,
        ["predict", str(folder / f"model-{model}"), *sources, "--output", str(output)],
    )
    if is_table:
        shutil.rmtree(output)
    else:
        assert len(output.read_text().splitlines()) == count + 1
        output.unlink()
    return seconds


def run(checkout: Path, code: str, words: list[str]) -> tuple[float, float]:
    """Run Python in a checkout; return the seconds by the clock, and of processor time."""
    start, start_used = time.perf_counter(), processor_seconds()
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=checkout,
        env=command_variables(PYTHONPATH=str(checkout)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start, processor_seconds() - start_used


def processor_seconds() -> float:
    """Return the processor time of all processes that this one waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
