"""Plan five checkpoints x three methods x two windows for a card of 11 GB, and transformers beside it.

    python benchmarks/memory_table.py

writes benchmarks/results/memory_table.json and the tables of docs/memory.md. Nothing is measured on a
card: each number is counted from an optimizer step on tensors without values, as `m2v plan` does
(`verify_memory.py` measures). Settings are the program's defaults, in float16 as an RTX 2080 Ti computes.

The other program is `Data2VecAudioForSequenceClassification(use_weighted_layer_sum=True)` with the defaults
of transformers' Trainer: everything learns, float32, fused AdamW, no gradient checkpointing, batches of 8.
Two of its defaults are off, which take next to no memory: SpecAugment, whose masks are drawn by value, and
LayerDrop, with which that head fails when a layer is dropped.

Beside the cells: pre-training by its defaults, and a probe of frames whose layer weights are learned from
states that are computed again (`training.gradient_checkpointing`) or kept, with the arithmetic of a step as
torch.utils.flop_counter counts it.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Data2VecAudioConfig, Data2VecAudioForSequenceClassification

from m2v_finetune.config import (
    BackboneConfig,
    DataConfig,
    HeadConfig,
    InitialBackboneConfig,
    PretrainingConfig,
    RecipeConfig,
    TrainingConfig,
    TuningConfig,
    UnlabelledDataConfig,
)
from m2v_finetune.memory.counted_step import Machine
from m2v_finetune.memory.counting import BLOCK_BYTES, FakeRecorder
from m2v_finetune.memory.gpu import CUBLAS_WORKSPACE_BYTES, GpuKernels
from m2v_finetune.memory.plan import plan_run
from m2v_finetune.memory.run_memory import RunMemory, Split
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.beats import BeatsConfig, BeatTracking
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.step import take_step

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "memory_table.json"
PAGE = REPOSITORY / "docs" / "memory.md"
MEMORY_BYTES = 11 * 10**9
TOTAL_BATCH_SIZE = 32
CHECKPOINTS = ("music2vec-v1", "MERT-v0", "MERT-v0-public", "MERT-v1-95M", "MERT-v1-330M")
METHODS = ("probe", "lora", "full")
WINDOWS_SECONDS = (5.0, 30.0)
PRETRAINED = ("music2vec-v1", "MERT-v1-330M")
TRAINER_BATCH_SIZE = 8
GPU = Machine(on_gpu=True, precision="fp16")
TASK = Tagging.from_settings(TaggingConfig(labels=[str(label) for label in range(50)]))
BEATS = BeatTracking.from_settings(BeatsConfig())


def main() -> None:
    """Count all cells, write the result and the page."""
    cells = [
        {"checkpoint": name, "method": method, "window_seconds": seconds}
        | cell(_twin(name), method, seconds)
        for name in CHECKPOINTS
        for method in METHODS
        for seconds in WINDOWS_SECONDS
    ]
    found = {
        "memory_bytes": MEMORY_BYTES,
        "total_batch_size": TOTAL_BATCH_SIZE,
        "precision": "fp16",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cells": cells,
        "pretraining": pretraining(),
        "frames_of_a_probe": frames_of_a_probe(),
        "beside_transformers": beside_transformers(),
    }
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables(found).items():
        page = replaced(page, name, text)
    PAGE.write_text(page, encoding="utf-8")


def settings(
    checkpoint: str,
    method: str,
    seconds: float,
    *,
    batch_size: int = TOTAL_BATCH_SIZE,
    **tuning: Any,
) -> RecipeConfig:
    """Return the settings of a cell."""
    return RecipeConfig(
        data=DataConfig(source="none", window_seconds=seconds),
        backbone=BackboneConfig(source=checkpoint),
        head=HeadConfig(kind="mlp", standardize=False),
        tuning=TuningConfig(method=method, **tuning),  # type: ignore[arg-type]
        training=TrainingConfig(per_device_batch_size=batch_size),
    )


@cache
def cell(checkpoint: str, method: str, seconds: float) -> dict[str, Any]:
    """Plan a cell; return what the result says of it."""
    print(f"{checkpoint}, {method}, {seconds:g} s", flush=True)
    return planned(settings(checkpoint, method, seconds), TASK)


def planned(config: RecipeConfig | PretrainingConfig, task: Task | None) -> dict[str, Any]:
    """Plan a run; return what the result says of it."""
    plan = plan_run(config, task, GPU, memory_bytes=MEMORY_BYTES)
    one_window = Split(batch_size=1, accumulation=TOTAL_BATCH_SIZE)
    return {
        "one_window_bytes": RunMemory(config, task, GPU).peak_bytes(one_window),
        "batch_size": plan.chosen.batch_size if plan.chosen else None,
        "accumulation": plan.chosen.accumulation if plan.chosen else None,
        "peak_bytes": plan.peak_bytes if plan.chosen else None,
        "parts_bytes": plan.chosen_peak,
    }


def pretraining_settings(checkpoint: str, seconds: float) -> PretrainingConfig:
    """Return the settings of pre-training."""
    return PretrainingConfig(
        data=UnlabelledDataConfig(source="none", window_seconds=seconds),
        backbone=InitialBackboneConfig(source=checkpoint),
        training=TrainingConfig(per_device_batch_size=TOTAL_BATCH_SIZE),
    )


def pretraining() -> list[dict[str, Any]]:
    """Plan pre-training, from checkpoints."""
    rows = []
    for name in PRETRAINED:
        for seconds in WINDOWS_SECONDS:
            print(f"{name}, pre-training, {seconds:g} s", flush=True)
            rows.append(
                {"checkpoint": name, "method": "pre-training", "window_seconds": seconds}
                | planned(pretraining_settings(name, seconds), None)
            )
    return rows


def frames_of_a_probe() -> list[dict[str, Any]]:
    """Count a step of a probe for beats on music2vec, with and without checkpointing."""
    rows = []
    for seconds in WINDOWS_SECONDS:
        print(f"frames of a probe, {seconds:g} s", flush=True)
        peaks, operations = {}, {}
        for checkpointing in (False, True):
            config = settings("music2vec-v1", "probe", seconds)
            config = replace(
                config, training=replace(config.training, gradient_checkpointing=checkpointing)
            )
            split = Split(batch_size=TOTAL_BATCH_SIZE, accumulation=1)
            memory = RunMemory(config, BEATS, GPU)
            peaks[str(checkpointing).lower()] = memory.peak_bytes(split)
            operations[str(checkpointing).lower()] = step_operations(config, BEATS)
        rows.append(
            {
                "window_seconds": seconds,
                "batch_size": TOTAL_BATCH_SIZE,
                "peak_bytes_by_checkpointing": peaks,
                "operations_of_a_window_by_checkpointing": operations,
            }
        )
    return rows


def step_operations(config: RecipeConfig, task: BeatTracking) -> int:
    """Count the floating point operations of a pass forward and back of one window."""
    with torch.device("meta"):
        model = TaskModel.build(
            task=task,
            backbone=config.backbone,
            head=config.head,
            tuning=config.tuning,
            window_seconds=config.data.window_seconds,
            with_weights=False,
        ).train()
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, model.window_samples)).sum().backward()
    return counter.get_total_flops()


def beside_transformers() -> list[dict[str, Any]]:
    """Count music2vec's architecture trained fully by either program, at the Trainer's batch size."""
    rows = []
    for seconds in WINDOWS_SECONDS:
        print(f"transformers, {seconds:g} s", flush=True)
        theirs = {
            "float32, the default": transformers_bytes(seconds, None),
            "fp16=True": transformers_bytes(seconds, torch.float16),
        }
        for trains_conv in (False, True):
            config = settings(
                "music2vec-v1",
                "full",
                seconds,
                batch_size=TRAINER_BATCH_SIZE,
                train_conv_encoder=trains_conv,
            )
            ours = RunMemory(config, TASK, GPU).peak_bytes(
                Split(batch_size=TRAINER_BATCH_SIZE, accumulation=1)
            )
            rows.append(
                {
                    "window_seconds": seconds,
                    "trains_conv_encoder": trains_conv,
                    "peak_bytes": ours,
                    "transformers_peak_bytes": theirs,
                }
            )
    return rows


class Logits(nn.Module):
    """transformers' classifier, returning what take_step wants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor) -> Tensor:
        """Return logits (batch, labels)."""
        logits: Tensor = self.model(input_values).logits
        return logits


def transformers_bytes(seconds: float, dtype: torch.dtype | None) -> int:
    """Count a step of transformers' own classifier with its Trainer's defaults."""
    config = Data2VecAudioConfig(
        use_weighted_layer_sum=True,
        num_labels=TASK.num_outputs,
        layerdrop=0.0,
        mask_time_prob=0.0,
    )
    with torch.device("meta"):
        model = Logits(Data2VecAudioForSequenceClassification(config)).train()
    recorder = FakeRecorder()
    with FakeTensorMode(allow_non_fake_inputs=True), GpuKernels():
        model.to_empty(device="cpu")
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        with recorder:
            for tensor in (*model.parameters(), *model.buffers()):
                recorder.note(tensor, "weights")
            batch = (
                torch.empty(TRAINER_BATCH_SIZE, round(16000 * seconds)),
                torch.zeros(TRAINER_BATCH_SIZE, dtype=torch.long),
            )
            take_step(
                model,
                optimizer,
                [batch],
                loss=F.cross_entropy,
                max_grad_norm=1.0,
                autocast=lambda: torch.autocast("cpu", dtype, enabled=dtype is not None),
                read_norm=lambda norm: 1.0,
            )
            for state in optimizer.state.values():
                for tensor in state.values():
                    recorder.note(tensor, "optimizer")
    return sum(recorder.timeline(block_bytes=BLOCK_BYTES).peak().values()) + CUBLAS_WORKSPACE_BYTES


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Return the tables of docs/memory.md by name."""
    lines = [
        "| checkpoint | tuning | window | one window at a time | largest batch x accumulation | peak |",
        "|---|---|---|---|---|---|",
    ]
    for cell in found["cells"] + found["pretraining"]:
        batch = f"{cell['batch_size']} x {cell['accumulation']}" if cell["batch_size"] else "none"
        peak = _gigabytes(cell["peak_bytes"]) if cell["peak_bytes"] else "-"
        lines.append(
            f"| {cell['checkpoint']} | {cell['method']} | {cell['window_seconds']:g} s | "
            f"{_gigabytes(cell['one_window_bytes'])} | {batch} | {peak} |"
        )
    ratios = [
        "| window | conv encoder | this program | transformers, float32 | ratio | transformers, fp16 "
        "| ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for beside in found["beside_transformers"]:
        ours = beside["peak_bytes"]
        theirs = beside["transformers_peak_bytes"].values()
        ratios.append(
            f"| {beside['window_seconds']:g} s | "
            f"{'trained' if beside['trains_conv_encoder'] else 'frozen, the default'} | {_gigabytes(ours)} | "
            + " | ".join(f"{_gigabytes(other)} | {other / ours:.1f}" for other in theirs)
            + " |"
        )
    frames = [
        "| window | states kept | states computed again | operations of a step |",
        "|---|---|---|---|",
    ]
    for probed in found["frames_of_a_probe"]:
        kept, recomputed = map(_gigabytes, probed["peak_bytes_by_checkpointing"].values())
        operations = probed["operations_of_a_window_by_checkpointing"]
        frames.append(
            f"| {probed['window_seconds']:g} s | {kept} | {recomputed} | "
            f"x {operations['true'] / operations['false']:.2f} |"
        )
    return {
        "cells": "\n".join(lines),
        "frames": "\n".join(frames),
        "transformers": "\n".join(ratios),
    }


def replaced(page: str, name: str, table: str) -> str:
    """Return a page with a table put between its marks."""
    start_marker, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    before, _, rest = page.partition(start_marker)
    _, _, after = rest.partition(end)
    return f"{before}{start_marker}{table}{end}{after}"


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def _twin(name: str) -> str:
    """Return the checkpoint that a checkpoint shares its architecture with, so that it is counted once."""
    return "MERT-v0" if name == "MERT-v0-public" else name


if __name__ == "__main__":
    main()
