"""Take steps with every method of tuning, then run the tagging quickstart with it.

    python benchmarks/tuning_methods.py [METHOD ...] [--epochs N]

writes benchmarks/results/tuning_methods.json and the table of docs/tuning.md. Of each method, first:

- CPU seconds of an optimiser step on one thread, the fastest of some, on noise of the quickstart's batch;
- peak memory of a step: the bytes of all tensors that are alive at once (weights, gradients, optimiser and
  activations), counted operation by operation. It is no measure of the process, and what a kernel needs
  inside is not in it;

and then the metric of the validation tracks after some epochs of the quickstart, with the method's default
rate for the backbone and the quickstart's for the head. The backbone has RANDOM weights.
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
    """Measure the methods asked for, or all, and write what was found as it is found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", help="all if none")
    parser.add_argument("--epochs", type=int, default=5, help="of a run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = arguments.methods or get_args(TuningMethod)
    for method in methods:
        write(method, take_steps(settings(method)))
    for method in methods:
        write(method, run(method, arguments.epochs))
    print(table(json.loads(RESULT.read_text())["methods"]))


def write(method: str, measured: dict[str, Any]) -> None:
    """Add what was measured to the results and the page."""
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"methods": {}}
    found["methods"].setdefault(method, {}).update(measured)
    found |= {
        "task": "tagging",
        "backbone": "random-small, RANDOM WEIGHTS",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- measured: begin -->\n")
    after = rest.partition("<!-- measured: end -->")[2]
    shown = table(found["methods"])
    page = f"{before}<!-- measured: begin -->\n{shown}\n<!-- measured: end -->{after}"
    PAGE.write_text(page, encoding="utf-8")


def settings(method: str, **more: str) -> RecipeConfig:
    """Return the quickstart's settings with a method."""
    recipe = runpy.run_path(str(REPOSITORY / "recipes" / "tagging.py"), run_name="recipe")
    given = {"tuning.method": method, **more}
    return parse_recipe(
        recipe["Config"],
        [word for key, value in given.items() for word in (f"--{key}", value)],
        description="",
        quickstart=recipe["QUICKSTART"],
    )


def run(method: str, num_epochs: int) -> dict[str, Any]:
    """Return what validation says of a run."""
    with tempfile.TemporaryDirectory() as folder:
        more = {"training.epochs": str(num_epochs), "run.output_dir": f"{folder}/run"}
        config = settings(method, **more)
        results = run_recipe(config, Tagging, config.task, is_search=True)
    name = results["selection_metric"]
    return {
        "metric": results["metric_names"][name],
        "validation": round(results["validation"][name], 4),
        "num_epochs": num_epochs,
    }


def take_steps(config: RecipeConfig) -> dict[str, Any]:
    """Return the weights that learn, and what an optimiser step needs."""
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
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    counter = LiveBytes()
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor)
    for state in optimizer.state.values():
        for tensor in state.values():
            counter.add(tensor)
    with counter:
        step()
    return {
        "trained_parameters": count_parameters(model, trained_only=True),
        "of_the_backbone": count_parameters(model.backbone, trained_only=True),
        "peak_bytes": counter.peak,
        "cpu_seconds_a_step": round(min(seconds), 3),
    }


def table(methods: dict[str, Any]) -> str:
    """Return the measured values as a Markdown table."""
    lines = [
        "| method | trained in the backbone | trained in all | peak MB of tensors | CPU seconds a step | "
        "validation ROC-AUC | after epochs |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in get_args(TuningMethod):
        if method not in methods:
            continue
        row = methods[method]
        reached = (
            f"{row['validation']:.3f} | {row['num_epochs']}" if "validation" in row else "- | -"
        )
        lines.append(
            f"| `{method}` | {row['of_the_backbone']:,} | {row['trained_parameters']:,} | "
            f"{row['peak_bytes'] / 1e6:.1f} | {row['cpu_seconds_a_step']:.2f} | {reached} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
