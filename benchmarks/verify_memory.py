"""Measure on an NVIDIA card what `memory_table.py` planned: real steps, the allocator held to 11 GB.

    python benchmarks/verify_memory.py [CHECKPOINT ...]

For each cell of the table, a probe of frames and pre-training, in float16 and, where the card computes in
it, bfloat16: two optimizer steps of the planned batches with random weights and random windows;
`torch.cuda.max_memory_allocated` of the second is put beside the plan. Written to
benchmarks/results/verify_memory.json with the card's name, cell by cell.
Without an NVIDIA card it says so and ends with exit code 2.
"""

import argparse
import gc
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from memory_table import (
    BEATS,
    CHECKPOINTS,
    MEMORY_BYTES,
    METHODS,
    TASK,
    WINDOWS_SECONDS,
    pretraining_settings,
    settings,
)

from m2v_finetune.config import PretrainingConfig, RecipeConfig
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import UserError, run_command
from m2v_finetune.memory.counted_step import DTYPES, Machine, Precision, model_without_weights
from m2v_finetune.memory.plan import plan_run
from m2v_finetune.memory.run_memory import Split
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.tasks import Task
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.precision import BF16_CAPABILITY
from m2v_finetune.training.step import take_step

RESULT = Path(__file__).parent / "results" / "verify_memory.json"
RUNS = (*METHODS, "probe of frames", "pre-training")
NUM_STEPS = 2
MAX_DIFFERENCE = 0.1


def main() -> None:
    """Measure the cells asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="*", default=CHECKPOINTS)
    asked = parser.parse_args().checkpoints
    if not torch.cuda.is_available():
        raise UserError("There is no NVIDIA card that PyTorch can use, so nothing can be measured.")
    gpu = torch.cuda.get_device_properties(0)
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_BYTES / gpu.total_memory))
    precisions: list[Precision] = ["fp16"]
    if torch.cuda.get_device_capability() >= BF16_CAPABILITY:
        precisions.append("bf16")
    rows: list[dict[str, Any]] = []
    for name, method, seconds, precision in product(asked, RUNS, WINDOWS_SECONDS, precisions):
        rows.append(measure(name, method, seconds, precision))
        print(json.dumps(rows[-1]), flush=True)
        differences = [abs(row["difference"]) for row in rows if row["difference"] is not None]
        found = {
            "card": gpu.name,
            "torch": torch.__version__,
            "memory_bytes": MEMORY_BYTES,
            "largest_difference": max(differences, default=None),
            "num_out_of_memory": len(rows) - len(differences),
            "cells": rows,
        }
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    outside = [
        row for row in rows if row["difference"] is None or abs(row["difference"]) > MAX_DIFFERENCE
    ]
    if outside:
        raise UserError(
            f"{len(outside)} of {len(rows)} cells ran out of memory, or differ from the plan by more than "
            f"{MAX_DIFFERENCE:.0%}: {json.dumps(outside)}"
        )


def run_of(
    checkpoint: str, method: str, seconds: float
) -> tuple[RecipeConfig | PretrainingConfig, Task | None]:
    """Return the settings of a cell, and its task."""
    if method == "pre-training":
        return pretraining_settings(checkpoint, seconds), None
    if method == "probe of frames":
        return settings(checkpoint, "probe", seconds), BEATS
    return settings(checkpoint, method, seconds), TASK


def measure(checkpoint: str, method: str, seconds: float, precision: Precision) -> dict[str, Any]:
    """Take the steps of a cell; return the plan beside what was measured."""
    config, task = run_of(checkpoint, method, seconds)
    machine = Machine(on_gpu=True, precision=precision)
    planned = plan_run(config, task, machine, memory_bytes=MEMORY_BYTES)
    row = {
        "checkpoint": checkpoint,
        "method": method,
        "window_seconds": seconds,
        "precision": precision,
        "batch_size": planned.chosen.batch_size if planned.chosen else None,
        "planned_bytes": planned.peak_bytes,
        "measured_bytes": None,
        "difference": None,
    }
    if planned.chosen is None:
        return row
    try:
        measured = take_steps(config, task, precision, planned.chosen)
    except torch.OutOfMemoryError:
        return row
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return row | {"measured_bytes": measured, "difference": planned.peak_bytes / measured - 1}


def take_steps(
    config: RecipeConfig | PretrainingConfig,
    task: Task | None,
    precision: Precision,
    split: Split,
    device: str = "cuda",
) -> int:
    """Take real steps; return the most bytes that PyTorch had allocated in the last one."""
    torch.manual_seed(0)
    model = model_without_weights(config, task).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(0.02 * torch.randn(tensor.shape, device=device))
    optimizer = build_optimizer(model, config.optimizer)
    # A third batch would need no more than the second.
    accumulation = min(2, split.accumulation)
    for _ in range(NUM_STEPS):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if isinstance(model, PretrainingModel):
            model.start_step(1)
        take_step(
            model,
            optimizer,
            (random_batch(model, split.batch_size, device) for _ in range(accumulation)),
            loss=(model if isinstance(model, PretrainingModel) else model.task).loss,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=config.optimizer.max_grad_norm,
            # A fixed small scale: the first steps of a new scaler are skipped, and allocate no moments.
            scaler=torch.amp.GradScaler(device, init_scale=1.0) if precision == "fp16" else None,
            autocast=lambda: torch.autocast(device, DTYPES[precision]),
        )
        if isinstance(model, PretrainingModel):
            model.end_step(0)
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def random_batch(
    model: TaskModel | PretrainingModel, batch_size: int, device: str
) -> list[torch.Tensor]:
    """Return windows of noise, and targets or masks."""
    if isinstance(model, PretrainingModel):
        shapes = [(batch_size, *shape) for shape, _ in model.batch_shapes()]
        types = [dtype for _, dtype in model.batch_shapes()]
        return [
            torch.rand(shape, device=device) < 0.5
            if dtype == torch.bool
            else (0.1 * torch.randn(shape, device=device)).to(dtype)
            for shape, dtype in zip(shapes, types, strict=True)
        ]
    window = Window(
        start_sample=0, num_samples=model.window_samples, grid=model.backbone.frame_grid
    )
    shapes = model.task.example_shapes(window)
    return [0.1 * torch.rand(batch_size, *shape, device=device) for shape in shapes]


if __name__ == "__main__":
    run_command(main)
