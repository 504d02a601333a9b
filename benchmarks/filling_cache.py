"""Time the computing of a feature cache, in this checkout and an older one.

    git worktree add /tmp/before COMMIT
    python benchmarks/filling_cache.py --before /tmp/before

Each command trains a probe by `recipes/tagging.py` for one epoch on clips of the quickstart, on a network of
music2vec's size with RANDOM weights, with a new cache. The seconds are those that its log states for the
computing of all splits. This checkout runs in float32, and where the CPU is fast in bfloat16 in that too.
Sides take turns; the machine should be idle. Medians, quartiles and range go to
benchmarks/results/filling_cache.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from probe_cache import random_backbone, write_manifest
from songs import command_variables, environment, spread
from training_step import processor

from m2v_finetune.cpu_precision import has_fast_bfloat16

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "filling_cache.json"
GOAL = 4.0
"""In bfloat16, where the CPU is fast in it."""
WINDOW_SECONDS = 5.0
LINE = re.compile(r"Cached (\d+) windows of the split '\w+' in ([\d.]+) s")


def main() -> None:
    """Fill caches in turns, and write what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="an older checkout")
    parser.add_argument("--tracks", type=int, default=36, help="of training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = os.getloadavg()
    ways = {"before": (arguments.before.resolve(), "no"), "now, float32": (REPOSITORY, "no")}
    if has_fast_bfloat16():
        ways["now, bfloat16"] = (REPOSITORY, "auto")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    windows = set()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        backbone = random_backbone(folder / "backbone")
        write_manifest(folder / "manifest.jsonl", arguments.tracks)
        for number in range(arguments.rounds):
            for name, (checkout, precision) in ways.items():
                run = folder / f"{name.replace(', ', '-')}-{number}"
                count, taken = fill(checkout, precision, folder / "manifest.jsonl", backbone, run)
                windows.add(count)
                seconds[name].append(taken)
                print(f"{name}: {count} windows in {taken:.1f} s", flush=True)
    [count] = windows
    found: dict[str, Any] = {name: spread(taken) for name, taken in seconds.items()}
    result = {
        "network": "music2vec-v1, RANDOM WEIGHTS",
        "windows": f"{count} of {WINDOW_SECONDS:g} s",
        "goal_in_bfloat16": GOAL,
        "processor": processor(),
        "seconds": found,
        "times_as_fast": {
            name: round(found["before"]["median"] / one["median"], 2) for name, one in found.items()
        },
        "load_average": {"before": load, "after": os.getloadavg()},
        "environment": environment(),
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def fill(
    checkout: Path, precision: str, manifest: Path, backbone: Path, run: Path
) -> tuple[int, float]:
    """Return the number of windows that a command cached, and the seconds."""
    settings = {
        "data.source": manifest,
        "data.window_seconds": WINDOW_SECONDS,
        "data.num_workers": 1,
        "data.num_variants": 2,
        "backbone.source": backbone,
        "training.epochs": 1,
        "training.mixed_precision": precision,
        "cache.use": "on",
        "cache.folder": run.with_name(f"{run.name}-cache"),
        "run.output_dir": run,
    }
    done = subprocess.run(
        [
            sys.executable,
            str(checkout / "recipes" / "tagging.py"),
            *(f"--{key}={value}" for key, value in settings.items()),
        ],
        cwd=checkout,
        env=command_variables(PYTHONPATH=str(checkout), ACCELERATE_USE_CPU="true"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = LINE.findall(done.stderr.replace("\n", " ") + done.stdout.replace("\n", " "))
    assert lines, done.stderr
    return sum(int(count) for count, _ in lines), sum(float(taken) for _, taken in lines)


if __name__ == "__main__":
    main()
