"""Run the tagging quickstart with every method of tuning.

    python benchmarks/tuning_methods.py [METHOD ...]

writes benchmarks/results/tuning_methods.json and the table of docs/tuning.md. Of each method:

- the metric of the validation tracks after some epochs of the quickstart with the method's default rate for
  the backbone and the quickstart's for the head. The backbone has RANDOM weights;
- seconds of an optimiser step, the fastest of some, on noise of the quickstart's batch;
- peak memory of a step: the bytes of all tensors that are alive at once (weights, gradients, optimiser and
  activations), counted operation by operation. It is no measure of the process, and what a kernel needs
  inside is not in it.
"""

import argparse
import json
import os
import platform
import runpy
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from m2v_finetune.config import RecipeConfig, TuningMethod
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.recipe import run_recipe
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.setup import count_parameters

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "tuning_methods.json"
PAGE = REPOSITORY / "docs" / "tuning.md"
NUM_EPOCHS = 2
NUM_STEPS = 5
NUM_TAGS = 24  # of the quickstart


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        weakref.finalize(storage, self.remove, key, num_bytes)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)

    def remove(self, key: int, num_bytes: int) -> None:
        self.seen.discard(key)
        self.live -= num_bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for one in tree_iter(output):
            if isinstance(one, torch.Tensor):
                self.add(one)
        return output


def main() -> None:
    """Run the methods asked for, or all, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", help="all if none")
    for method in parser.parse_args().methods or get_args(TuningMethod):
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(method, Path(folder) / "run")
        found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"methods": {}}
        found["methods"][method] = measured
        found |= {
            "task": "tagging",
            "backbone": "random-small, RANDOM WEIGHTS",
            "num_epochs": NUM_EPOCHS,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        }
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    shown = table(json.loads(RESULT.read_text())["methods"])
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- measured: begin -->\n")
    after = rest.partition("<!-- measured: end -->")[2]
    page = f"{before}<!-- measured: begin -->\n{shown}\n<!-- measured: end -->{after}"
    PAGE.write_text(page, encoding="utf-8")
    print(shown)


def measure(method: str, folder: Path) -> dict[str, Any]:
    """Return what a run and some steps of a method need and reach."""
    recipe = runpy.run_path(str(REPOSITORY / "recipes" / "tagging.py"), run_name="recipe")
    settings = {
        "tuning.method": method,
        "training.epochs": str(NUM_EPOCHS),
        "run.output_dir": str(folder),
    }
    config = parse_recipe(
        recipe["Config"],
        [word for key, value in settings.items() for word in (f"--{key}", value)],
        description="",
        quickstart=recipe["QUICKSTART"],
    )
    results = run_recipe(config, Tagging, config.task, is_search=True)
    model, seconds, peak_bytes = take_steps(config)
    name = results["selection_metric"]
    return {
        "trained_parameters": count_parameters(model, trained_only=True),
        "of_the_backbone": count_parameters(model.backbone, trained_only=True),
        "peak_bytes": peak_bytes,
        "seconds_a_step": round(seconds, 3),
        "metric": results["metric_names"][name],
        "validation": round(results["validation"][name], 4),
    }


def take_steps(config: RecipeConfig) -> tuple[TaskModel, float, int]:
    """Return the model, the seconds of the fastest optimiser step, and the peak bytes of one."""
    model = TaskModel.build(
        task=Tagging(labels=tuple(f"tag {i}" for i in range(NUM_TAGS)), label_column="tags"),
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=config.data.window_seconds,
    ).train()
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    optimizer = build_optimizer(model, config.optimizer)
    batch_size = config.training.per_device_batch_size

    def step() -> None:
        waveforms = 0.1 * torch.randn(batch_size, model.window_samples)
        targets = torch.randint(0, 2, (batch_size, NUM_TAGS)).float()
        model.task.loss(model(waveforms), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimiser's state
    seconds = []
    for _ in range(NUM_STEPS):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    counter = LiveBytes()
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor)
    for state in optimizer.state.values():
        for tensor in state.values():
            counter.add(tensor)
    with counter:
        step()
    return model, min(seconds), counter.peak


def table(methods: dict[str, Any]) -> str:
    """Return the measured values as a Markdown table."""
    lines = [
        "| method | trained in the backbone | trained in all | peak MB of tensors | seconds a step | "
        "validation ROC-AUC |",
        "|---|---|---|---|---|---|",
    ]
    for method in get_args(TuningMethod):
        row = methods[method]
        lines.append(
            f"| `{method}` | {row['of_the_backbone']:,} | {row['trained_parameters']:,} | "
            f"{row['peak_bytes'] / 1e6:.1f} | {row['seconds_a_step']:.2f} | {row['validation']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
