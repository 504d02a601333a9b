"""Count the largest memory of a training step on a CPU, in this checkout and an older one.

    git worktree add /tmp/before COMMIT
    python benchmarks/step_memory.py --before /tmp/before

The bytes are those that `m2v plan` counts for a CPU: a step of the real network on tensors without values.
The network has the size of music2vec-v1, a batch 8 windows of 5 s. Written to
benchmarks/results/step_memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from songs import environment

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "step_memory.json"
COUNT = """
import json
from m2v_finetune.config import (
    BackboneConfig, DataConfig, RecipeConfig, TrainingConfig, TuningConfig,
)
from m2v_finetune.memory.counted_step import Machine
from m2v_finetune.memory.run_memory import RunMemory, Split
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig

found = {}
for method in ("full", "lora"):
    for checkpointing in (False, True):
        for precision in ("no", "bf16"):
            config = RecipeConfig(
                data=DataConfig(source="none", window_seconds=5.0),
                backbone=BackboneConfig(source="music2vec-v1"),
                tuning=TuningConfig(method=method),
                training=TrainingConfig(
                    per_device_batch_size=8, gradient_checkpointing=checkpointing
                ),
            )
            machine = Machine(on_gpu=False, precision=precision)
            memory = RunMemory(config, Tagging.from_settings(TaggingConfig()), machine)
            name = method + (", checkpointed" if checkpointing else "")
            name += ", bfloat16" if precision == "bf16" else ""
            found[name] = memory.peak_bytes(Split(batch_size=8, accumulation=1))
print(json.dumps(found))
"""


def main() -> None:
    """Count in both checkouts, and write the bytes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="an older checkout")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    before, now = (count(checkout) for checkout in (arguments.before.resolve(), REPOSITORY))
    result = {
        "network": "music2vec-v1",
        "batch": "8 windows of 5 s",
        "bytes": {name: {"before": before[name], "now": now[name]} for name in now},
        "change": {name: round(now[name] / before[name] - 1, 4) for name in now},
        "environment": environment(),
    }
    print(json.dumps(result["change"], indent=2))
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def count(checkout: Path) -> dict[str, int]:
    """Return the bytes of each kind of step in a checkout."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
