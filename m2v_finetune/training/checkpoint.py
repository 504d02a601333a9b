"""Checkpoints of a run: trained and best weights, optimizer, loss scale, random states and progress."""

import json
import pickle
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from m2v_finetune.errors import UserError
from m2v_finetune.files import UNFINISHED, flush_folder
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.training.checkpoint_files import (
    BEST_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    checkpoints_in,
    write_flushed,
)
from m2v_finetune.training.random_state import get_random_state, set_random_state
from m2v_finetune.training.run_progress import Progress

AnyModel = TaskModel | PretrainingModel

FORMAT_VERSION = 1
"""Of the content of a checkpoint; another one is refused."""
STATE_KEYS = {
    *("format_version", "trained", "optimizer", "scaler", "processes", "progress"),
    *("metrics_bytes", "total_steps", "seconds"),
}
"""Entries of the state file."""
# Of a tensor in a file, and of random states, progress and manifest: generously.
HEADER_BYTES, OTHER_BYTES = 512, 100_000


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Content of a checkpoint beside model, optimizer, scaler and random states.

    Attributes:
        progress: Progress of the run.
        best: Trained tensors of the best epoch so far, on the CPU; empty before the first.
        unlogged_losses: Losses of this process since the last logged step.
        metrics_bytes: Length of metrics.jsonl.
        total_steps: Length of the learning-rate schedule.
        seconds: Duration of the run until now.
        average: Moving average of the weights; empty for none.
    """

    progress: Progress
    best: dict[str, Tensor]
    unlogged_losses: list[float]
    metrics_bytes: int
    total_steps: int
    seconds: float
    average: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    *,
    model: AnyModel,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    run: RunState,
    keep: int,
) -> Path:
    """Write all that a later process needs to resume exactly; then delete old checkpoints.

    Called by every process; the main one writes.

    Args:
        folder: ``checkpoints/`` of the run.
        model: Not wrapped.
        optimizer: Optimizer of the run.
        accelerator: Loss scaler and processes.
        run: State of the run.
        keep: Number of checkpoints that stay. Each has the best weights of its time, so none are lost.

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
    if path.is_dir() or not accelerator.is_main_process:
        return path  # of a run that stops where it has just saved
    state = {
        "format_version": FORMAT_VERSION,
        "trained": model.trained_tensors(),
        "optimizer": optimizer.state_dict(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "processes": of_processes,
        "progress": asdict(progress),
        "metrics_bytes": run.metrics_bytes,
        "total_steps": run.total_steps,
        "seconds": run.seconds,
        **({"average": run.average} if run.average else {}),
    }
    unfinished = folder / UNFINISHED.format(name=path.name)
    try:
        unfinished.mkdir()
        files = {
            STATE_FILE: write_flushed(
                unfinished / STATE_FILE, lambda file: torch.save(state, file)
            ),
            BEST_FILE: write_flushed(
                unfinished / BEST_FILE, lambda file: file.write(save(run.best))
            ),
        }
        text = json.dumps({"files": files}, indent=2) + "\n"
        write_flushed(unfinished / MANIFEST_FILE, lambda file: file.write(text.encode()))
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
    """Restore model, optimizer, loss scale and random states from a checkpoint; return the rest.

    The files are as they were written: `find_checkpoint` compared their hashes.

    Raises:
        UserError: Another version of the program wrote it, or it belongs to another model.
    """
    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        best = load_file(path / BEST_FILE)
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError) as error:
        raise _other_version(path, str(error)) from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise _other_version(path, f"its format is not {FORMAT_VERSION}")
    if state.keys() - {"average"} != STATE_KEYS:
        raise _other_version(path, f"{STATE_FILE} has other entries")
    own_shapes = {name: value.shape for name, value in model.trained_tensors().items()}
    shapes = {name: value.shape for name, value in state["trained"].items()}
    if shapes != own_shapes:
        raise UserError(
            f"{path} belongs to a model that trained other tensors. Resume with the settings of the run "
            "(config.yaml in its folder).",
            code="checkpoint-other-model",
        )
    model.load_state_dict(state["trained"], strict=False)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:  # other groups of parameters
        raise _other_version(path, str(error)) from error
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    # With more processes than before, the new ones start from the first one's random state.
    index = accelerator.process_index
    own = state["processes"][index if index < len(state["processes"]) else 0]
    set_random_state(own["random"])
    return RunState(
        progress=Progress(**state["progress"]),
        best=best,
        unlogged_losses=own["unlogged_losses"],
        metrics_bytes=state["metrics_bytes"],
        total_steps=state["total_steps"],
        seconds=state["seconds"],
        average=state.get("average", {}),
    )


def _other_version(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be resumed from: this version of the program did not write it ({reason}). Resume "
        "with the version that wrote it, or from another checkpoint.",
        code="checkpoint-other-version",
    )


def copy_trained(model: AnyModel) -> dict[str, Tensor]:
    """Return copies of the trained tensors on the CPU."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.trained_tensors().items()
    }


def checkpoint_bytes(model: AnyModel, optimizer: torch.optim.Optimizer) -> int:
    """Return an upper estimate of a checkpoint's size: trained tensors twice, the optimizer's state."""
    of_optimizer = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    saved = 2 * list(model.trained_tensors().values()) + of_optimizer
    content = sum(value.numel() * value.element_size() for value in saved)
    return content + HEADER_BYTES * len(saved) + OTHER_BYTES
