"""Train for thousands of steps on CPU, and watch the memory and the open files of the run.

    python benchmarks/long_run.py [--steps 5000]

starts the tagging recipe on the quickstart data with random-small, LoRA and two workers, as a process of
its own, and looks at it and its workers every few seconds: memory that is theirs alone (USS) and open
files. Of the samples after the first fifth, the median of the last third may be at most 5 % above that of
the first third. Writes benchmarks/results/long_run.json; exit code 1 where a limit is broken.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "long_run.json"
NUM_WORKERS = 2
STEPS_PER_EPOCH = 27  # 216 training tracks of the quickstart, 8 at a time
WARM_UP = 0.2
LIMIT = 0.05


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The run at one moment.

    Attributes:
        step: Optimizer steps done.
        main_bytes: Memory of the training process alone.
        worker_bytes: Memory of its workers alone, in all.
        open_files: File descriptors of all of them.
    """

    step: int
    main_bytes: int
    worker_bytes: int
    open_files: int


def look(process: psutil.Process, step: int) -> Sample | None:
    """Return a sample; None while tracks are judged, when there are more workers, or it ends."""
    try:
        workers = process.children(recursive=True)
        if len(workers) != NUM_WORKERS:
            return None
        return Sample(
            step=step,
            main_bytes=process.memory_full_info().uss,
            worker_bytes=sum(worker.memory_full_info().uss for worker in workers),
            open_files=process.num_fds() + sum(worker.num_fds() for worker in workers),
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def last_step(metrics: Path) -> int:
    """Return the last step that the run has logged."""
    if not metrics.is_file():
        return 0
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


def watch(num_steps: int, every_seconds: float, folder: Path) -> tuple[list[Sample], int]:
    """Run the recipe to its end; return what was seen, and the steps that were done."""
    settings = {
        "backbone.source": "random-small",
        "tuning.method": "lora",
        "data.source": "quickstart",
        "data.window_seconds": 1,
        "data.num_workers": NUM_WORKERS,
        "training.per_device_batch_size": 8,
        "training.epochs": -(-num_steps // STEPS_PER_EPOCH),
        "training.early_stopping_patience": 10**6,
        "run.output_dir": folder,
    }
    command = [sys.executable, REPOSITORY / "recipes" / "tagging.py"]
    command += [f"--{key}={value}" for key, value in settings.items()]
    samples = []
    with (
        (folder.parent / "output.txt").open("wb") as output,
        subprocess.Popen(list(map(str, command)), stdout=output, stderr=output) as running,
    ):
        process = psutil.Process(running.pid)
        while running.poll() is None:
            time.sleep(every_seconds)
            step = last_step(folder / "metrics.jsonl")
            sample = look(process, step) if step else None
            if sample is not None:
                samples.append(sample)
    if running.returncode:
        sys.exit((folder.parent / "output.txt").read_text(encoding="utf-8")[-3000:])
    return samples, last_step(folder / "metrics.jsonl")


def growth(values: list[int]) -> float:
    """Return by which share the last third of values is above the first, by medians."""
    third = len(values) // 3
    start, end = statistics.median(values[:third]), statistics.median(values[-third:])
    return end / start - 1


def evaluate(samples: list[Sample], num_steps: int) -> dict[str, Any]:
    """Return how memory and open files grew after the warm-up."""
    kept = [sample for sample in samples if sample.step >= WARM_UP * num_steps]
    if len(kept) < 12:
        sys.exit(f"Only {len(kept)} samples: take more steps, or look more often (--every).")
    grown = {
        name: growth([getattr(sample, name) for sample in kept])
        for name in ("main_bytes", "worker_bytes", "open_files")
    }
    return {
        "growth": grown,
        "limit": LIMIT,
        "is_flat": all(value <= LIMIT for value in grown.values()),
        "num_samples": len(kept),
        "first": asdict(kept[0]),
        "last": asdict(kept[-1]),
    }


def main() -> None:
    """Run, judge, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    start_time = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        samples, steps = watch(arguments.steps, arguments.every, Path(folder) / "run")
    result = {
        "environment": {
            "python": platform.python_version(),
            "processor": platform.processor() or platform.machine(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "psutil")},
        },
        "steps": steps,
        "seconds": round(time.monotonic() - start_time),
        "num_workers": NUM_WORKERS,
        "num_cpus": os.cpu_count(),
        **evaluate(samples, steps),
        "samples": [asdict(sample) for sample in samples[:: max(1, len(samples) // 200)]],
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "samples"}, indent=2))
    sys.exit(0 if result["is_flat"] else 1)


if __name__ == "__main__":
    main()
