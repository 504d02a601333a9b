"""Checkpoints of a run: what was trained, the best of it, the optimiser, the random states, the place.

A checkpoint is a folder of ``checkpoints/``. It is written under a temporary name, flushed to the disk and
renamed, and a manifest with the size and the SHA-256 of each file is compared when it is read: one that has
its name is whole, or is found to be damaged. Files hold tensors and plain numbers alone, and are read
without executing anything.
"""

import hashlib
import json
import logging
import math
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
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

# Of a tensor in a file, and of random states, progress and manifest: generously.
HEADER_BYTES, OTHER_BYTES = 512, 100_000
STATE_FILE = "state.pt"
BEST_FILE = "best.safetensors"
MANIFEST_FILE = "manifest.json"
DAMAGED = "damaged-{name}"

_STATE_KEYS = {
    *("trained", "optimizer", "scaler", "processes", "progress", "metrics_bytes", "total_steps"),
    "seconds",
}
_SCALER_KEYS = {
    *("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"),
}


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
        seconds: That the run took until now.
    """

    progress: Progress
    best: dict[str, Tensor]
    unlogged_losses: list[float]
    metrics_bytes: int
    total_steps: int
    seconds: float


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
        "seconds": run.seconds,
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
        UserError: The checkpoint belongs to another model, or is not what this version of the program wrote.
            Then nothing of it was loaded.
    """
    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        best = load_file(path / BEST_FILE)
        is_of_another_model = _check_content(state, best, model=model, optimizer=optimizer)
        if is_of_another_model:
            raise UserError(
                f"{path} belongs to a model that trained other tensors. Resume with the settings that the "
                "run began with (config.yaml in its folder)."
            )
        model.load_state_dict(state["trained"], strict=False)
        load_optimizer_state(optimizer, state["optimizer"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        # With more processes than before, the new ones start from the first one's random state.
        index = accelerator.process_index
        own = state["processes"][index if index < len(state["processes"]) else 0]
        run = RunState(
            progress=Progress(**state["progress"]),
            best=best,
            unlogged_losses=own["unlogged_losses"],
            metrics_bytes=state["metrics_bytes"],
            total_steps=state["total_steps"],
            seconds=state["seconds"],
        )
        set_random_state(own["random"])
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path} cannot be resumed from: it is not what this version of the program wrote ({error}). "
            "Go on with the version that wrote it, or from another checkpoint."
        ) from error
    return run


def _check_content(
    state: Any, best: Mapping[str, Tensor], *, model: AnyModel, optimizer: torch.optim.Optimizer
) -> bool:
    """Compare the types and shapes of what a checkpoint holds with what is written now.

    Returns:
        Whether it is the checkpoint of a model that trains other tensors.

    Raises:
        ValueError: It is not what this program writes; names the part.
    """
    wanted = model.trained_tensors()
    _require(isinstance(state, dict) and state.keys() == _STATE_KEYS, "state")
    trained = state["trained"]
    _require(
        isinstance(trained, dict) and all(isinstance(v, Tensor) for v in trained.values()),
        "trained",
    )
    if {k: v.shape for k, v in trained.items()} != {k: v.shape for k, v in wanted.items()}:
        return True
    _require(_same_structure(trained, wanted), "trained")
    _require(not best or _same_structure(best, wanted), BEST_FILE)
    _check_optimizer(state["optimizer"], optimizer)
    scaler = state["scaler"]
    _require(
        scaler is None or (isinstance(scaler, dict) and scaler.keys() == _SCALER_KEYS), "scaler"
    )
    _require(all(_is_number(value) for value in (scaler or {}).values()), "scaler")
    processes = state["processes"]
    _require(isinstance(processes, list) and bool(processes), "processes")
    for own in processes:
        _require(isinstance(own, dict) and own.keys() == {"random", "unlogged_losses"}, "processes")
        losses = own["unlogged_losses"]
        _require(
            isinstance(losses, list) and all(isinstance(loss, float) for loss in losses), "losses"
        )
        _check_random_state(own["random"])
    _check_progress(state["progress"])
    for name in ("metrics_bytes", "total_steps"):
        _require(_is_count(state[name]), name)
    _require(_is_number(state["seconds"]) and state["seconds"] >= 0, "seconds")
    return False


def _check_optimizer(given: Any, optimizer: torch.optim.Optimizer) -> None:
    """Compare the state of an optimiser with what this one can take; raise a ValueError."""
    own = optimizer.state_dict()
    _require(isinstance(given, dict) and given.keys() == own.keys(), "optimizer")
    groups = given["param_groups"]
    _require(_same_structure(groups, own["param_groups"]), "optimizer.param_groups")
    for group, own_group in zip(groups, own["param_groups"], strict=True):
        # All but the rate, which each step sets, follows from settings that a resumed run may not change.
        _require({**group, "lr": own_group["lr"]} == own_group, "optimizer.param_groups")
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    state = given["state"]
    _require(isinstance(state, dict), "optimizer.state")
    for number, moments in state.items():
        what = f"optimizer.state of {number!r}"
        _require(_is_count(number) and number < len(parameters), what)
        _require(isinstance(moments, dict), what)
        shape = tuple(parameters[number].shape)
        legal = _moments_of(type(optimizer).__name__, shape)
        _require(moments.keys() >= legal.keys(), what)
        for name, value in moments.items():
            if isinstance(value, Tensor):
                is_legal = bool(value.isfinite().all()) and legal.get(name) in (
                    None,
                    tuple(value.shape),
                )
            else:
                is_legal = legal.get(name) in (None, ()) and _is_number(value)
            _require(is_legal, f"{what}: {name}")


def _moments_of(optimizer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return what an optimiser keeps of a parameter, and in which shape."""
    if optimizer == "AdamW":
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    if optimizer == "Adafactor":
        factors = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:]}
        return {"step": (), "RMS": (), **(factors if len(shape) > 1 else {"exp_avg_sq": shape})}
    return {"step": (), "state1": shape, "state2": shape}  # bitsandbytes, beside tables of its own


def _check_random_state(given: Any) -> None:
    """Compare random states with those of this process; raise a ValueError."""
    own = get_random_state()
    _require(isinstance(given, dict) and given.keys() == own.keys(), "random")
    _require(isinstance(given["python"], list) and len(given["python"]) == 3, "random.python")
    left = given["python"][2]  # normal numbers are drawn in pairs
    _require(left is None or isinstance(left, float), "random.python")
    _require(_same_structure(given["python"][:2], own["python"][:2]), "random.python")
    _require(_same_structure(given["torch"], own["torch"]), "random.torch")
    _require(_same_structure(given["numpy"], own["numpy"]), "random.numpy")
    version, (*words, position), _ = given["python"]
    _require(version == own["python"][0] and _is_mersenne_twister(words, position), "random.python")
    name, numpy_words, numpy_position = given["numpy"][:3]
    _require(name == own["numpy"][0], "random.numpy")
    _require(_is_mersenne_twister(numpy_words.tolist(), numpy_position), "random.numpy")
    cuda_state = given["cuda"]
    _require(
        cuda_state is None or (isinstance(cuda_state, Tensor) and cuda_state.dtype == torch.uint8),
        "random.cuda",
    )


def _is_mersenne_twister(words: Sequence[int], position: int) -> bool:
    """Tell whether this can be the state of a Mersenne Twister: 32-bit words, and the place among them."""
    return all(0 <= word < 1 << 32 for word in words) and 0 <= position <= len(words)


def _check_progress(given: Any) -> None:
    """Compare a `Progress` as a dictionary with what one can be; raise a ValueError."""
    own = asdict(Progress())
    _require(isinstance(given, dict) and given.keys() == own.keys(), "progress")
    for name, value in given.items():
        if name == "best_values":
            is_legal = isinstance(value, dict) and all(
                isinstance(metric, str) and isinstance(number, float)
                for metric, number in value.items()
            )
        elif name == "bad_tracks":
            is_legal = isinstance(value, dict) and all(
                isinstance(tracks, dict)
                and all(isinstance(text, str) for pair in tracks.items() for text in pair)
                for tracks in value.values()
            )
        else:
            is_legal = _is_count(value) or (name == "best_epoch" and value is None)
        _require(is_legal, f"progress.{name}")


def _same_structure(given: Any, own: Any) -> bool:
    """Tell whether one value is made as another: types, keys, lengths, shapes; and all tensors are finite."""
    if isinstance(own, Tensor):
        return (
            isinstance(given, Tensor)
            and (given.shape, given.dtype) == (own.shape, own.dtype)
            and bool(given.isfinite().all())
        )
    if type(given) is not type(own):
        return False
    if isinstance(own, dict):
        return given.keys() == own.keys() and all(
            _same_structure(given[name], own[name]) for name in own
        )
    if isinstance(own, list | tuple):
        return len(given) == len(own) and all(map(_same_structure, given, own))
    return not isinstance(given, float) or math.isfinite(given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _require(is_legal: bool, part: str) -> None:
    if not is_legal:
        raise ValueError(part)


def copy_trained(model: AnyModel) -> dict[str, Tensor]:
    """Return what was trained, copied to the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.trained_tensors().items()
    }


def checkpoint_bytes(model: AnyModel, optimizer: torch.optim.Optimizer) -> int:
    """Return how many bytes a checkpoint takes, or a little more: what was trained twice, the optimiser."""
    of_optimizer = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    saved = 2 * list(model.trained_tensors().values()) + of_optimizer
    content = sum(value.numel() * value.element_size() for value in saved)
    return content + HEADER_BYTES * len(saved) + OTHER_BYTES


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last; copies of them by other names are none."""
    return sorted(
        path
        for path in folder.glob("epoch-*-step-*")
        if re.fullmatch(r"epoch-\d+-step-\d+", path.name)
    )


def step_of(checkpoint: Path) -> int:
    """Return the optimiser steps that were done, as its name says."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, and name the damaged ones that are newer.

    Returns:
        None where there is no checkpoint.

    Raises:
        UserError: There are checkpoints, and all are damaged.
    """
    problems: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        problem = _validate(path)
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


def find_common_checkpoint(folder: Path) -> Path | None:
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
    gathered = gather_object([(name, digest, problem)])
    for _, _, theirs in gathered:
        if theirs is not None:
            raise UserError(theirs)
    others = [number for number, one in enumerate(gathered, start=1) if one != gathered[0]]
    if others:
        first, other = gathered[0], gathered[others[0] - 1]
        raise UserError(
            f"The processes do not see the same run in {folder}: process 1 of {len(gathered)} would go on "
            f"from {first[0] or 'the beginning'}, process {others[0]} from {other[0] or 'the beginning'}"
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
        _remove(left)
    for path in reversed(checkpoints_in(folder)):
        if path == checkpoint:
            return
        aside = folder / DAMAGED.format(name=path.name)
        with suppress(FileNotFoundError):
            _remove(aside)
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
        name: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in files.items()
    }


def _validate(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint; None where it is as it was written."""
    try:
        files = _read_manifest(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST_FILE} is missing or damaged"
    if files.keys() != {STATE_FILE, BEST_FILE}:
        return f"its {MANIFEST_FILE} is damaged"
    for name, entry in files.items():
        try:
            size = (checkpoint / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, and {MANIFEST_FILE} says {entry['bytes']}"
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
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
