"""Checkpoints of a run: what was trained, the optimiser, the random states, and the place in the data.

They hold tensors and plain numbers alone, and are read without executing anything.
"""

import os
import pickle
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel

AnyModel = TaskModel | PretrainingModel

LAST_FILE = "last.pt"
BEST_FILE = "best.safetensors"


@dataclass(kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch: Epochs complete; also the number, from 0, of the one under way.
        step_in_epoch: Optimiser steps done in the epoch under way.
        step: Optimiser steps done in all.
        best_values: Validation metrics of the best epoch so far; empty before the first.
        best_epoch: The epoch that reached it, from 1.
        epochs_without_improvement: Since then.
        unlogged_losses: Of the batches since the last logged step, on the main process.
        num_skipped_steps: Of `step`, those that changed no weight, as their gradients were not finite.
        skipped_in_a_row: How many of the last steps those are.
        bad_tracks: Tracks that were skipped since the run began, and why, by split and id.
        is_finished: Whether training is over.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_values: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    unlogged_losses: list[float] = field(default_factory=list)
    num_skipped_steps: int = 0
    skipped_in_a_row: int = 0
    bad_tracks: dict[str, dict[str, str]] = field(default_factory=dict)
    is_finished: bool = False


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write`` with a temporary name, flush it to disk, and give it its name: all or nothing."""
    unfinished = path.with_name(f".{path.name}.part")
    write(unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)


def save_best(model: AnyModel, folder: Path) -> None:
    """Write what was trained as the best so far."""
    tensors = {name: value.cpu().contiguous() for name, value in model.trained_tensors().items()}
    write_atomically(folder / BEST_FILE, lambda path: save_file(tensors, path))


def load_best(model: AnyModel, folder: Path) -> None:
    """Bring back what `save_best` wrote."""
    model.load_state_dict(load_file(folder / BEST_FILE), strict=False)


def save_last(
    folder: Path,
    *,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    progress: Progress,
    metrics_bytes: int,
) -> None:
    """Write all that a later process needs to go on as if nothing had happened.

    Called by every process; the main one writes.

    Args:
        folder: ``checkpoints/`` of the run.
        model: Not wrapped.
        optimizer: The torch optimiser.
        accelerator: Knows the loss scaler and the processes.
        progress: Where the run is.
        metrics_bytes: Length of metrics.jsonl now; what a killed run wrote after it is cut off.
    """
    random_states = gather_object([_random_state()])
    if not accelerator.is_main_process:
        return
    content = {
        "trained": model.trained_tensors(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "random_states": random_states,
        "progress": asdict(progress),
        "metrics_bytes": metrics_bytes,
    }
    write_atomically(folder / LAST_FILE, lambda path: torch.save(content, path))


def load_last(
    folder: Path,
    *,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> tuple[Progress, int]:
    """Bring back what `save_last` wrote, random states included.

    Returns:
        Where the run is, and the length of metrics.jsonl at that point.

    Raises:
        UserError: The checkpoint is damaged or belongs to another model.
    """
    path = folder / LAST_FILE
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        trained = content["trained"]
        expected = {name: tensor.shape for name, tensor in model.trained_tensors().items()}
        if {name: tensor.shape for name, tensor in trained.items()} != expected:
            raise UserError(
                f"{path} belongs to a model that trained other tensors. Resume with the settings that the "
                "run began with (config.yaml in its folder)."
            )
        model.load_state_dict(trained, strict=False)
        optimizer.load_state_dict(content["optimizer"])
        if accelerator.scaler is not None and content["scaler"] is not None:
            accelerator.scaler.load_state_dict(content["scaler"])
        states = content["random_states"]
        progress = Progress(**content["progress"])
        metrics_bytes = int(content["metrics_bytes"])
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} is damaged and cannot be resumed from ({error}).") from error
    # With more processes than before, the new ones start from the first one's random state.
    index = accelerator.process_index
    _set_random_state(states[index] if index < len(states) else states[0])
    return progress, metrics_bytes


def _random_state() -> dict[str, Any]:
    version, keys, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, words, position, has_gauss, cached = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(keys), gauss],
        "numpy": [str(name), torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
