"""Time training steps and predictions with freed memory kept, and given back, as by default.

    python benchmarks/freed_memory.py

Networks have the size of music2vec-v1 and RANDOM weights: a full step of 2 windows of 5 s with the conv
encoder frozen, and with it trained; a LoRA step; a prediction of 8 windows, also by MERT-v1-95M's size. Both
ways run in turns, each in a process of its own (own_process.py), on the cores of the machine, which should be
idle. benchmarks/results/freed_memory.json has seconds by the clock and of the processor, pages that the
system cleared, and the largest resident memory of each process.
"""

import argparse
import json
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from own_process import OwnProcess
from songs import environment, spread

from m2v_finetune.config import BackboneConfig, HeadConfig, OptimizerConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

RESULT = Path(__file__).parent / "results" / "freed_memory.json"
WAYS = {"kept": True, "given back": False}
CASES = {
    "full": TuningConfig(method="full"),
    "full, conv encoder trained": TuningConfig(method="full", train_conv_encoder=True),
    "lora": TuningConfig(method="lora"),
    "prediction": TuningConfig(method="probe"),
    "prediction, MERT-v1-95M": TuningConfig(method="probe"),
}


def side(case: str) -> dict[str, Callable[[], Any]]:
    """Return a step or a prediction, and what the process used."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Genre(labels=tuple(map(str, range(10))), label_column="genre"),
        backbone=BackboneConfig(source="MERT-v1-95M" if "MERT" in case else "music2vec-v1"),
        head=HeadConfig(dropout=0.0),
        tuning=CASES[case],
        window_seconds=5.0,
        with_weights=False,
    )
    is_training = not case.startswith("prediction")
    num_windows = 2 if is_training else 8
    model.train(is_training)
    waveforms = 0.1 * torch.randn(num_windows, model.window_samples)
    targets = torch.randint(0, 10, (num_windows,))
    optimizer = build_optimizer(model, OptimizerConfig())

    def train() -> None:
        take_step(
            model, optimizer, iter([[waveforms, targets]]), loss=model.task.loss, max_grad_norm=1.0
        )

    def predict() -> None:
        with torch.inference_mode():
            model.score(waveforms)

    return {"run": train if is_training else predict, "used": used}


def used() -> dict[str, int]:
    """Return the pages that the system cleared for this process, and its largest resident memory."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak_kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    return {"pages": found.ru_minflt, "peak_bytes": int(peak_kib) * 1024}


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Run both ways in turns."""
    found: dict[str, Any] = {}
    clock: dict[str, list[float]] = {way: [] for way in WAYS}
    processor: dict[str, list[float]] = {way: [] for way in WAYS}
    pages: dict[str, list[int]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        processes = {
            way: stack.enter_context(OwnProcess(side, case, keeps_memory=kept))
            for way, kept in WAYS.items()
        }
        for number in range(rounds + 2):
            for way, process in processes.items():
                _, _, before = process.run("used")
                seconds, of_processor, _ = process.run("run")
                _, _, after = process.run("used")
                if number >= 2:
                    clock[way].append(seconds)
                    processor[way].append(of_processor)
                    pages[way].append(after["pages"] - before["pages"])
        for way, process in processes.items():
            found[way] = {
                "seconds": spread(clock[way]),
                "processor_seconds": spread(processor[way]),
                "pages_cleared": max(pages[way]),
                "peak_bytes": process.run("used")[2]["peak_bytes"],
            }
    medians = [found[way]["seconds"]["median"] for way in WAYS]
    peaks = [found[way]["peak_bytes"] for way in WAYS]
    return found | {
        "times_as_fast": round(medians[1] / medians[0], 2),
        "times_the_peak": round(peaks[0] / peaks[1], 3),
    }


def main() -> None:
    """Measure each case, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = os.getloadavg()
    before = json.loads(arguments.result.read_text("utf-8")) if arguments.result.is_file() else {}
    cases = before.get("cases", {})
    for case in arguments.cases:
        cases[case] = measure(case, arguments.rounds)
        print(
            case, {key: cases[case][key] for key in ("times_as_fast", "times_the_peak")}, flush=True
        )
    result = {
        "networks": "music2vec-v1's size, or the one that is named; RANDOM WEIGHTS",
        "cases": cases,
        "load_average": {"before": load, "after": os.getloadavg()},
        "environment": environment(),
    }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
