"""Time the start of commands in this checkout and another one, beside the imports that they need in any case.

    git worktree add /tmp/before COMMIT
    python benchmarks/start_up.py --before /tmp/before

Each command is a process of its own; all take turns in each round, in both checkouts. Median, quartiles and
range of seconds, by the clock and of the processor, go to benchmarks/results/start_up.json. Other work on the
machine changes those of the processor less.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from songs import command_variables, environment, spread
from threads import build, write_noise

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "start_up.json"
MAIN = "import sys; from m2v_finetune.cli import main; main(sys.argv[1:])"
CONFIG = "configs/tagging/magnatagatune-probe.yaml"
COMMANDS: dict[str, list[str]] = {
    "m2v --help": ["--help"],
    "m2v plan": ["plan", "--config", CONFIG],
    "m2v plan, a wrong setting": ["plan", "--config", CONFIG, "--training.epoch", "3"],
    "m2v predict, a file of 1 s": ["predict", "{folder}/model", "{folder}/note.wav"],
    "m2v predict, no such file": ["predict", "{folder}/model", "{folder}/none.wav"],
}
LIBRARIES = {
    "import torch": "import torch",
    "import of a network of transformers": "from transformers import Data2VecAudioModel",
}


def main() -> None:
    """Run all commands in turns, and write what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="another checkout, such as an older one")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    checkouts = {"now": REPOSITORY}
    if arguments.before is not None:
        checkouts["before"] = arguments.before.resolve()
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {}
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(1.0).save_pretrained(folder / "model")
        write_noise(folder / "note.wav", 1.0, 0)
        for number in range(arguments.rounds + 1):
            found = {
                **{name: {"now": run(REPOSITORY, code, [])} for name, code in LIBRARIES.items()},
                **{
                    name: {
                        when: run(checkout, MAIN, [word.format(folder=folder) for word in words])
                        for when, checkout in checkouts.items()
                    }
                    for name, words in COMMANDS.items()
                },
            }
            if number == 0:  # fills the caches of files
                continue
            for name, seconds in found.items():
                for when, both in seconds.items():
                    taken.setdefault(name, {}).setdefault(when, []).append(both)
                print(name, seconds, flush=True)
    result: dict[str, Any] = {
        "seconds": {
            name: {
                when: {
                    "by the clock": spread([clock for clock, _ in times]),
                    "of the processor": spread([processor for _, processor in times]),
                }
                for when, times in sides.items()
            }
            for name, sides in taken.items()
        },
        "load_average": {"before": load, "after": os.getloadavg()},
        "environment": environment(),
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run(checkout: Path, code: str, words: list[str]) -> tuple[float, float]:
    """Return the seconds of a process by the clock and of the processor."""
    start, before = time.perf_counter(), processor_seconds()
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=checkout,
        env=command_variables(PYTHONPATH=str(checkout)),
        capture_output=True,
    )
    assert done.returncode in (0, 2), done.stderr.decode()
    return round(time.perf_counter() - start, 2), round(processor_seconds() - before, 2)


def processor_seconds() -> float:
    """Return the seconds that the processor worked for the processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
