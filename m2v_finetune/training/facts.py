"""Facts of a finished training run. Its settings may leave some of them open, and a run may change them."""

import math
from typing import Any

from m2v_finetune.data.cached_windows import CachedWindows
from m2v_finetune.model import TaskModel
from m2v_finetune.training.run_progress import FitResult
from m2v_finetune.training.trainer import Trainer


def training_facts(trainer: Trainer[TaskModel], fitted: FitResult) -> dict[str, Any]:
    """Return the facts of the training for results.json and the model card, as plain data.

    Args:
        trainer: Trainer after `Trainer.fit`.
        fitted: Result of `Trainer.fit`.
    """
    model, accelerator, batches = trainer.model, trainer.accelerator, trainer.batches
    optimization = trainer.optimization
    device_batch_size = trainer.steps.oom_retry.size  # less than in the settings if memory ran out
    return {
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "num_processes": batches.num_processes,
        "optimizer": optimization.name,
        "weight_decay": optimization.weight_decay,
        "max_grad_norm": optimization.max_grad_norm,
        "peak_learning_rates": peak_learning_rates(trainer),
        "solved_by": fitted.solved_by,
        "penalty": fitted.penalty,
        "layer_decay": optimization.layer_decay,
        "num_warmup_steps": math.ceil(optimization.warmup_ratio * trainer.total_steps),
        "num_scheduled_steps": trainer.total_steps,
        "max_epochs": trainer.training.epochs,
        "stopped_early": fitted.num_epochs < trainer.training.epochs,
        "device_batch_size": device_batch_size,
        "num_accumulated": batches.total_batch_size // (device_batch_size * batches.num_processes),
        "total_batch_size": batches.total_batch_size,
        "tuning": model.tuning.used(),
        "layer_weighting": model.layer_weighting.kind,
        "spec_augment": model.backbone.spec_augment,
        **_windows(trainer),
    }


def peak_learning_rates(trainer: Trainer[Any]) -> dict[str, float]:
    """Return the highest learning rate of the trained ``backbone`` and of each other part, by name."""
    learning_rates: dict[str, float] = {}
    for group in trainer.optimizer.param_groups:
        part = "backbone" if group["name"].startswith("backbone") else group["name"].split(",")[0]
        learning_rates[part] = max(learning_rates.get(part, 0.0), group["peak_lr"])
    return learning_rates


def _windows(trainer: Trainer[TaskModel]) -> dict[str, Any]:
    dataset: Any = trainer.loader.dataset
    stored = dataset.windows
    windows = stored.windows if isinstance(stored, CachedWindows) else stored
    lengths = [
        checked.audio.num_samples(windows.grid.sample_rate) - windows.window_samples
        for checked in windows.tracks
    ]
    return {
        "window_seconds": trainer.model.window_seconds,
        "windows_per_track": windows.windows_per_track,
        "num_variants": windows.num_variants,
        "num_longer_tracks": sum(length > 0 for length in lengths),
        "num_shorter_tracks": sum(length < 0 for length in lengths),
    }
