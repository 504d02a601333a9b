"""Time the prediction of short notes and of a long song by the number of threads; machine idle and busy.

    python benchmarks/threads.py

writes benchmarks/results/threads.json. The network is `filterbank-small` with a head of random weights. On
the busy machine one other process computes without end. Each row has seconds of wall time and of CPU time,
the median of the rounds; all numbers of threads take turns in each round.
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
from pathlib import Path

import numpy as np
import soundfile
import torch

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre

RESULT = Path(__file__).parent / "results" / "threads.json"
RATE = 22_050


def build(window_seconds: float) -> TaskModel:
    """Return a model on the small backbone, with a new head."""
    torch.manual_seed(0)
    return TaskModel.build(
        task=Genre(labels=("a", "b"), label_column="genre"),
        backbone=BackboneConfig(source="filterbank-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=window_seconds,
    )


def write_noise(path: Path, seconds: float, seed: int) -> Path:
    """Write noise as WAV."""
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    soundfile.write(path, samples.astype(np.float32), RATE)
    return path


def measure(model: TaskModel, files: list[Path], num_threads: int) -> tuple[float, float]:
    """Predict files one after the other; return seconds of wall time and of CPU time."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)  # else the program chooses
    torch.set_num_threads(num_threads)
    start, start_cpu = time.monotonic(), time.process_time()
    for path in files:
        model.predict(path)
    return time.monotonic() - start, time.process_time() - start_cpu


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", type=int, default=100, help="number of notes of 1 s")
    parser.add_argument("--minutes", type=float, default=4.0, help="length of the song")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    counts = [1, len(os.sched_getaffinity(0))]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        notes = [write_noise(folder / f"{n}.wav", 1.0, n) for n in range(arguments.notes)]
        song = [write_noise(folder / "song.wav", 60 * arguments.minutes, 0)]
        for machine in ("idle", "one other process"):
            other = None
            if machine != "idle":
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            for work, model, files in (
                (f"{arguments.notes} notes of 1 s", build(1.0), notes),
                (f"a song of {arguments.minutes:g} min", build(5.0), song),
            ):
                measure(model, files[:1], 1)
                found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
                for _ in range(arguments.rounds):
                    for count in counts:
                        found[count].append(measure(model, files, count))
                for count, times in found.items():
                    walls, cpus = zip(*times, strict=True)
                    rows.append(
                        {
                            "machine": machine,
                            "work": work,
                            "threads": count,
                            "seconds": round(statistics.median(walls), 3),
                            "slowest_seconds": round(max(walls), 3),
                            "cpu_seconds": round(statistics.median(cpus), 3),
                        }
                    )
                    print(rows[-1], flush=True)
            if other is not None:
                other.kill()
    result = {
        "cores": counts[-1],
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
