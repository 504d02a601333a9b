"""Measure on an NVIDIA card what `memory_table.py` planned: real steps, the allocator held to 11 GB.

    python benchmarks/verify_memory.py [CHECKPOINT ...]

For each cell of the table, in float16 and, where the card computes in it, bfloat16: two optimiser steps of
the planned batches with random weights and random windows; `torch.cuda.max_memory_allocated` of the second
is put beside the plan. Written to benchmarks/results/verify_memory.json with the card's name, cell by cell.
Without an NVIDIA card it says so and ends with exit code 2.
"""

import argparse
import gc
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from memory_table import CHECKPOINTS, MEMORY_BYTES, METHODS, TASK, WINDOWS_SECONDS, plan, settings

from m2v_finetune.errors import UserError, run_command
from m2v_finetune.model import TaskModel
from m2v_finetune.training.counted_step import DTYPES, Precision
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.plan import Split
from m2v_finetune.training.precision import BF16_CAPABILITY
from m2v_finetune.training.step import take_step

RESULT = Path(__file__).parent / "results" / "verify_memory.json"
NUM_STEPS = 2
MAX_DIFFERENCE = 0.1


def main() -> None:
    """Measure the cells asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="*", default=CHECKPOINTS)
    asked = parser.parse_args().checkpoints
    if not torch.cuda.is_available():
        raise UserError("There is no NVIDIA card that PyTorch can use, so nothing can be measured.")
    card = torch.cuda.get_device_properties(0)
    torch.cuda.set_per_process_memory_fraction(min(1.0, MEMORY_BYTES / card.total_memory))
    precisions: list[Precision] = ["fp16"]
    if torch.cuda.get_device_capability() >= BF16_CAPABILITY:
        precisions.append("bf16")
    rows = []
    for name, method, seconds, precision in product(asked, METHODS, WINDOWS_SECONDS, precisions):
        rows.append(measure(name, method, seconds, precision))
        print(json.dumps(rows[-1]), flush=True)
        found = {
            "card": card.name,
            "torch": torch.__version__,
            "memory_bytes": MEMORY_BYTES,
            "largest_difference": max(abs(row["difference"]) for row in rows),
            "cells": rows,
        }
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    outside = [row for row in rows if row["failed"] or abs(row["difference"]) > MAX_DIFFERENCE]
    if outside:
        raise UserError(
            f"{len(outside)} of {len(rows)} cells ran out of memory, or differ from the plan by more than "
            f"{MAX_DIFFERENCE:.0%}: {json.dumps(outside)}"
        )


def measure(checkpoint: str, method: str, seconds: float, precision: Precision) -> dict[str, Any]:
    """Take the steps of a cell; return the plan beside what was measured."""
    planned = plan(checkpoint, method, seconds, precision)
    assert planned.chosen is not None
    row = {
        "checkpoint": checkpoint,
        "method": method,
        "window_seconds": seconds,
        "precision": precision,
        "batch_size": planned.chosen.batch_size,
        "planned_bytes": planned.peak_bytes,
    }
    try:
        measured = take_steps(checkpoint, method, seconds, precision, planned.chosen)
    except torch.OutOfMemoryError:
        return row | {"failed": True, "measured_bytes": None, "difference": 0.0}
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return row | {
        "failed": False,
        "measured_bytes": measured,
        "difference": planned.peak_bytes / measured - 1,
    }


def take_steps(
    checkpoint: str, method: str, seconds: float, precision: Precision, split: Split
) -> int:
    """Take real steps; return the most bytes that PyTorch had allocated in the last one."""
    config = settings(checkpoint, method, seconds)
    torch.manual_seed(0)
    model = TaskModel.build(
        task=TASK,
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=seconds,
        with_weights=False,
    )
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    model.to("cuda").train()
    optimizer = build_optimizer(model, config.optimizer)
    # A third batch would need no more than the second.
    accumulation = min(2, split.accumulation)
    for _ in range(NUM_STEPS):
        torch.cuda.reset_peak_memory_stats()
        take_step(
            model,
            optimizer,
            (
                (
                    0.1 * torch.randn(split.batch_size, model.window_samples, device="cuda"),
                    torch.zeros(split.batch_size, TASK.num_outputs, device="cuda"),
                )
                for _ in range(accumulation)
            ),
            loss=TASK.loss,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=config.optimizer.max_grad_norm,
            # A fixed small scale: the first steps of a new scaler are skipped, and allocate no moments.
            scaler=torch.amp.GradScaler("cuda", init_scale=1.0) if precision == "fp16" else None,
            autocast=lambda: torch.autocast("cuda", DTYPES[precision]),
        )
    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    run_command(main)
