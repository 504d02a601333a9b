"""Checkpoints of a run: what was trained, the best of it, the optimiser, the random states, the place.

A checkpoint is a folder of ``checkpoints/``. It is written under a temporary name, flushed to the disk and
renamed, and a manifest with the size and the SHA-256 of each file is compared when it is read: one that has
its name is whole, or is found to be damaged. Files hold tensors and plain numbers alone, and are read
without executing anything.
"""

import hashlib
import json
import logging
import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.files import UNFINISHED, flush_folder
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.training.sharding import load_optimizer_state, optimizer_state

logger = logging.getLogger(__name__)

AnyModel = TaskModel | PretrainingModel

STATE_FILE = "state.pt"
BEST_FILE = "best.safetensors"
MANIFEST_FILE = "manifest.json"
DAMAGED = "damaged-{name}"


@dataclass(kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        epoch: Epochs complete, their validation included; also the number, from 0, of the one under way.
        step_in_epoch: Optimiser steps done in the epoch under way.
        step: Optimiser steps done in all.
        best_values: Validation metrics of the best epoch so far; empty before the first.
        best_epoch: The epoch that reached it, from 1.
        epochs_without_improvement: Since then.
        num_skipped_steps: Of `step`, those that changed no weight, as their gradients were not finite.
        skipped_in_a_row: How many of the last steps those are.
        bad_tracks: Tracks that were skipped since the run began, and why, by split and id.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_values: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    num_skipped_steps: int = 0
    skipped_in_a_row: int = 0
    bad_tracks: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a checkpoint holds beside model, optimiser, scaler and random states.

    Attributes:
        progress: Where the run is.
        best: What was trained, at the best epoch so far, on the CPU; empty before the first.
        unlogged_losses: Of this process, since the last logged step.
        metrics_bytes: Length of metrics.jsonl.
        total_steps: For which the course of the rates was laid out.
    """

    progress: Progress
    best: dict[str, Tensor]
    unlogged_losses: list[float]
    metrics_bytes: int
    total_steps: int


def save_checkpoint(
    folder: Path,
    *,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    run: RunState,
    keep: int,
) -> Path:
    """Write all that a later process needs to go on as if nothing had happened; then delete old ones.

    Called by every process; the main one writes.

    Args:
        folder: ``checkpoints/`` of the run.
        model: Not wrapped.
        optimizer: The torch optimiser.
        accelerator: Knows the loss scaler and the processes.
        run: What is to be known then.
        keep: How many checkpoints stay. Each has the best weights at its time, so that they always stay.

    Returns:
        The checkpoint.

    Raises:
        OSError: It cannot be written. The earlier ones are as they were, and nothing of it is left.
    """
    progress = run.progress
    path = folder / f"epoch-{progress.epoch:05d}-step-{progress.step:08d}"
    of_processes = gather_object(
        [{"random": get_random_state(), "unlogged_losses": run.unlogged_losses}]
    )
    of_optimizer = optimizer_state(optimizer)
    if path.is_dir() or not accelerator.is_main_process:
        return path  # of a run that stops where it has just saved
    state = {
        "trained": model.trained_tensors(),
        "optimizer": of_optimizer,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "processes": of_processes,
        "progress": asdict(progress),
        "metrics_bytes": run.metrics_bytes,
        "total_steps": run.total_steps,
    }
    unfinished = folder / UNFINISHED.format(name=path.name)
    try:
        unfinished.mkdir()
        files = {
            STATE_FILE: _write(unfinished / STATE_FILE, lambda file: torch.save(state, file)),
            BEST_FILE: _write(unfinished / BEST_FILE, lambda file: file.write(save(run.best))),
        }
        text = json.dumps({"files": files}, indent=2) + "\n"
        _write(unfinished / MANIFEST_FILE, lambda file: file.write(text.encode()))
        flush_folder(unfinished)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    flush_folder(folder)
    for old in checkpoints_in(folder)[:-keep]:
        # Under its own name half of it could be taken for damaged.
        shutil.rmtree(old.rename(folder / UNFINISHED.format(name=old.name)))
    return path


def load_checkpoint(
    path: Path,
    *,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> RunState:
    """Bring back what `save_checkpoint` wrote, random states included.

    Raises:
        UserError: The checkpoint belongs to another model, or to another version of the program.
    """
    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        trained = state["trained"]
        expected = {name: tensor.shape for name, tensor in model.trained_tensors().items()}
        if {name: tensor.shape for name, tensor in trained.items()} != expected:
            raise UserError(
                f"{path} belongs to a model that trained other tensors. Resume with the settings that the "
                "run began with (config.yaml in its folder)."
            )
        model.load_state_dict(trained, strict=False)
        load_optimizer_state(optimizer, state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        # With more processes than before, the new ones start from the first one's random state.
        index = accelerator.process_index
        own = state["processes"][index if index < len(state["processes"]) else 0]
        run = RunState(
            progress=Progress(**state["progress"]),
            best=load_file(path / BEST_FILE),
            unlogged_losses=own["unlogged_losses"],
            metrics_bytes=int(state["metrics_bytes"]),
            total_steps=int(state["total_steps"]),
        )
        set_random_state(own["random"])
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{path} cannot be resumed from ({error}).") from error
    return run


def copy_trained(model: AnyModel) -> dict[str, Tensor]:
    """Return what was trained, copied to the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.trained_tensors().items()
    }


def checkpoint_bytes(model: AnyModel, optimizer: torch.optim.Optimizer) -> int:
    """Return about how many bytes a checkpoint takes: what was trained twice, and the optimiser."""
    of_optimizer = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    trained = list(model.trained_tensors().values())
    return sum(value.numel() * value.element_size() for value in 2 * trained + of_optimizer)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last."""
    return sorted(folder.glob("epoch-*-step-*"))


def step_of(checkpoint: Path) -> int:
    """Return the optimiser steps that were done, as its name says."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, and name the damaged ones that are newer.

    Returns:
        None where there is no checkpoint.

    Raises:
        UserError: There are checkpoints, and all are damaged.
    """
    problems: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        problem = _damage(path)
        if problem is None:
            for damaged in problems:
                logger.warning("A checkpoint is damaged and not used: %s", damaged)
            return path
        problems.append(f"{path}: {problem}")
    if problems:
        raise UserError(
            problem_list(
                "The run cannot go on, as all of its checkpoints are damaged",
                problems,
                "Begin again in another --run.output_dir. If a copy or a disk did this, check both.",
            )
        )
    return None


def agreed_checkpoint(folder: Path) -> Path | None:
    """Return what `find_checkpoint` returns, after all processes found the same.

    Raises:
        UserError: On every process: one found none that is whole, or another one than the first process.
    """
    checkpoint, problem, digest = None, None, None
    try:
        checkpoint = find_checkpoint(folder)
        if checkpoint is not None:
            digest = hashlib.sha256((checkpoint / MANIFEST_FILE).read_bytes()).hexdigest()
    except UserError as error:
        problem = str(error)
    name = None if checkpoint is None else checkpoint.name
    told = gather_object([(name, digest, problem)])
    for _, _, theirs in told:
        if theirs is not None:
            raise UserError(theirs)
    others = [number for number, one in enumerate(told, start=1) if one != told[0]]
    if others:
        first, other = told[0], told[others[0] - 1]
        raise UserError(
            f"The processes do not see the same run in {folder}: process 1 of {len(told)} would go on from "
            f"{first[0] or 'the beginning'}, process {others[0]} from {other[0] or 'the beginning'}"
            f"{' of other content' if other[0] == first[0] else ''}. Every machine has to see the run "
            "folder: give --run.output_dir as a full path on a drive that all share."
        )
    return checkpoint


def tidy(folder: Path, checkpoint: Path | None) -> None:
    """Remove what a killed process left half-written, and rename checkpoints that are damaged.

    Args:
        folder: ``checkpoints/`` of the run.
        checkpoint: What `find_checkpoint` returned: those that are newer are damaged.
    """
    for left in folder.glob(UNFINISHED.format(name="*")):
        shutil.rmtree(left)
    for path in reversed(checkpoints_in(folder)):
        if path == checkpoint:
            return
        aside = folder / DAMAGED.format(name=path.name)
        with suppress(FileNotFoundError):
            shutil.rmtree(aside)
        path.rename(aside)
        logger.warning("It is now %s, and can be deleted.", aside)


class _SummedFile:
    """Writes to a file, and knows the size and the SHA-256 of what it wrote.

    Attributes:
        error: What the disk answered; torch.save tells of it in words of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sum = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sum.update(data)
        self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


def _write(path: Path, write: Callable[[Any], object]) -> dict[str, Any]:
    """Write a file, flush it to the disk, and return what the manifest says of it."""
    with path.open("wb") as file:
        summed = _SummedFile(file)
        try:
            write(summed)
        except RuntimeError:
            if summed.error is not None:
                raise summed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": summed.num_bytes, "sha256": summed.sum.hexdigest()}


def _read_manifest(checkpoint: Path) -> Mapping[str, Mapping[str, Any]]:
    files: dict[str, dict[str, Any]] = json.loads((checkpoint / MANIFEST_FILE).read_bytes())[
        "files"
    ]
    return {
        name: {"bytes": said["bytes"], "sha256": said["sha256"]} for name, said in files.items()
    }


def _damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint; None where it is as it was written."""
    try:
        files = _read_manifest(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST_FILE} is missing or damaged"
    if files.keys() != {STATE_FILE, BEST_FILE}:
        return f"its {MANIFEST_FILE} is damaged"
    for name, said in files.items():
        try:
            size = (checkpoint / name).stat().st_size
            if size != said["bytes"]:
                return f"{name} has {size} bytes, and {MANIFEST_FILE} says {said['bytes']}"
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                    return f"{name} is not what {MANIFEST_FILE} says (SHA-256)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def get_random_state() -> dict[str, Any]:
    """Return what a step draws from: dropout on CPU and card, masks of SpecAugment in numpy."""
    version, keys, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    name, words, position, has_gauss, cached = state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(keys), gauss],
        "numpy": [str(name), torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Bring back what `get_random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
