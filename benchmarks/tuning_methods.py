"""Take steps with every method of tuning, then run the tagging quickstart with it.

    python benchmarks/tuning_methods.py [METHOD ...] [--epochs N]

writes benchmarks/results/tuning_methods.json and the table of docs/tuning.md. Of each method, first:

- CPU seconds of an optimizer step on one thread, the fastest of some, on noise of the quickstart's batch;
- peak memory of a step: the bytes of all tensors alive at once, counted as `m2v plan` counts them, but on
  real ones. It is no measure of the process, and what a kernel needs inside is not in it;

and then the metric of the validation tracks after some epochs of the quickstart, with the method's default
rate for the backbone and the quickstart's for the head. The backbone is filterbank-small, as that of the
quickstart.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch

from m2v_finetune.config import RecipeConfig, TuningMethod
from m2v_finetune.memory.counted_step import record_step
from m2v_finetune.memory.counting import StorageRecorder
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import train_task
from m2v_finetune.settings import read_config
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.sizes import count_parameters
from m2v_finetune.training.step import take_step

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "tuning_methods.json"
PAGE = REPOSITORY / "docs" / "tuning.md"
BACKBONE = "filterbank-small"
NUM_STEPS = 5
NUM_TAGS = 24  # of the quickstart


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
        "backbone": settings(method).backbone.source,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- measured: begin -->\n")
    after = rest.partition("<!-- measured: end -->")[2]
    shown = table(found["methods"])
    page = f"{before}<!-- measured: begin -->\n{shown}\n<!-- measured: end -->{after}"
    PAGE.write_text(page, encoding="utf-8")


def settings(method: str, **more: str) -> RecipeConfig:
    """Return the quickstart's settings with a method, on `BACKBONE`."""
    given = {"backbone.source": BACKBONE, "tuning.method": method, **more}
    config: RecipeConfig = read_config(
        "tagging", [word for key, value in given.items() for word in (f"--{key}", value)]
    )
    return config


def run(method: str, num_epochs: int) -> dict[str, Any]:
    """Return what validation says of a run."""
    with tempfile.TemporaryDirectory() as folder:
        more = {"training.epochs": str(num_epochs), "run.output_dir": f"{folder}/run"}
        config = settings(method, **more)
        results = train_task(config, Tagging, is_search=True).results
    name = results["selection_metric"]
    return {
        "metric": results["metric_names"][name],
        "validation": round(results["validation"][name], 4),
        "num_epochs": num_epochs,
    }


def build(config: RecipeConfig) -> TaskModel:
    """Return the model of a run, in training mode."""
    model = TaskModel.build(
        task=Tagging(labels=tuple(f"tag {i}" for i in range(NUM_TAGS)), label_column="tags"),
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=config.data.window_seconds,
    ).train()
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    return model


def take_steps(config: RecipeConfig) -> dict[str, Any]:
    """Return the weights that learn, and what an optimizer step needs."""
    model = build(config)
    optimizer = build_optimizer(model, config.optimizer)
    batch_size = config.training.per_device_batch_size
    batch = [
        0.1 * torch.randn(batch_size, model.window_samples),
        torch.randint(0, 2, (batch_size, NUM_TAGS)).float(),
    ]
    max_grad_norm = config.optimizer.max_grad_norm
    seconds = []
    for _ in range(NUM_STEPS + 1):  # the first makes what the optimizer keeps
        start_time = time.process_time()
        take_step(model, optimizer, [batch], loss=model.task.loss, max_grad_norm=max_grad_norm)
        seconds.append(time.process_time() - start_time)
    with StorageRecorder() as recorder:
        record_step(
            recorder,
            model,
            optimizer,
            batch,
            loss=model.task.loss,
            max_grad_norm=max_grad_norm,
        )
    return {
        "trained_parameters": count_parameters(model, trained_only=True),
        "of_the_backbone": count_parameters(model.backbone, trained_only=True),
        "peak_bytes": sum(recorder.timeline().peak().values()),
        "cpu_seconds_a_step": round(min(seconds[1:]), 3),
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
