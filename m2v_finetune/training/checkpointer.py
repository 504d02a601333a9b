"""Checkpoints of a run: saving, resuming, and messages for disk errors."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

from m2v_finetune.errors import DISK_ERRORS, FULL_ERRORS, Stopped, UserError, disk_advice
from m2v_finetune.files import free_bytes
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.training.checkpoint import (
    RunState,
    checkpoint_bytes,
    load_checkpoint,
    save_checkpoint,
)
from m2v_finetune.training.checkpoint_files import find_common_checkpoint, step_of, tidy
from m2v_finetune.training.faults import DataError
from m2v_finetune.training.optimization import warn_of_new_schedule
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.run_progress import Progress

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saving and resuming of a run.

    Args:
        model: Model of the run.
        optimizer: Its optimizer.
        accelerator: Loss scaler and processes.
        folder: Run folder.
        num_kept: Number of checkpoints that stay.
        total_steps: Optimizer steps of all epochs.

    Attributes:
        last: Newest checkpoint; None before the first.

    Raises:
        UserError: The folder has checkpoints, and all are damaged.
    """

    def __init__(
        self,
        model: TaskModel | PretrainingModel,
        optimizer: torch.optim.Optimizer,
        *,
        accelerator: Accelerator,
        folder: RunFolder,
        num_kept: int,
        total_steps: int,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.folder = folder
        self.num_kept = num_kept
        self.total_steps = total_steps
        self.last: Path | None = find_common_checkpoint(folder.checkpoints)

    def resume(self, *, warmup_ratio: float) -> RunState | None:
        """Load the last checkpoint, and cut the log after it; None if the run starts at step 0.

        Args:
            warmup_ratio: Share of the steps in which learning rates rise, for the warning of a run that now
                has another number of steps.
        """
        is_main = self.accelerator.is_main_process
        if is_main:
            tidy(self.folder.checkpoints, self.last)
        if self.last is None:
            if is_main and self.folder.metrics.exists():
                logger.info("Starting at step 0: there is no checkpoint yet.")
                with self.explain_disk_error("The log"):
                    self.folder.cut_metrics(0)
            return None
        state = load_checkpoint(
            self.last, model=self.model, optimizer=self.optimizer, accelerator=self.accelerator
        )
        if is_main:
            with self.explain_disk_error("The log"):
                self.folder.cut_metrics(state.metrics_bytes)
        step = state.progress.step
        logger.info("Resuming after step %d of %d.", step, self.total_steps)
        if state.total_steps != self.total_steps:
            warn_of_new_schedule(
                step,
                old_steps=state.total_steps,
                new_steps=self.total_steps,
                warmup_ratio=warmup_ratio,
            )
        return state

    def save(
        self,
        progress: Progress,
        *,
        best: dict[str, torch.Tensor],
        unlogged_losses: Sequence[torch.Tensor],
        seconds: float,
        average: dict[str, torch.Tensor],
    ) -> None:
        """Write a checkpoint.

        Args:
            progress: Progress of the run.
            best: Trained tensors of the best epoch.
            unlogged_losses: Losses since the last logged step.
            seconds: Duration of the run until now.
            average: Moving average of the weights; empty for none.
        """
        needed = checkpoint_bytes(self.model, self.optimizer)
        with self.explain_disk_error(
            f"The checkpoint after step {progress.step}", needed_bytes=needed
        ):
            self.last = save_checkpoint(
                self.folder.checkpoints,
                model=self.model,
                optimizer=self.optimizer,
                accelerator=self.accelerator,
                run=RunState(
                    progress=progress,
                    best=best,
                    unlogged_losses=[float(loss) for loss in unlogged_losses],
                    metrics_bytes=self.folder.flush_metrics(),
                    total_steps=self.total_steps,
                    seconds=seconds,
                    average=average,
                ),
                keep=self.num_kept,
            )

    @contextmanager
    def explain_disk_error(self, what: str, *, needed_bytes: int | None = None) -> Iterator[None]:
        """Turn an error of the disk into a `UserError` that names the last checkpoint.

        Args:
            what: Subject of the message.
            needed_bytes: Size of the file, if it is known.
        """
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno not in DISK_ERRORS:
                raise  # of a tracker's network
            folder = self.folder.path
            is_full = error.errno in FULL_ERRORS
            needs = f" takes {needed_bytes:,} bytes and" if is_full and needed_bytes else ""
            where = folder if error.filename is None or is_full else error.filename
            free = f" Its disk has {free_bytes(folder):,} bytes free." if is_full else ""
            kept = (
                "There is no checkpoint yet"
                if self.last is None
                else f"The checkpoint after step {step_of(self.last)} is complete"
            )
            raise UserError(
                f"{what}{needs} cannot be written to {where}: {error.strerror or error}.{free} {kept}. "
                f"{disk_advice(error)} Then resume with:\n  {self.folder.resume_command()}",
                code="run-folder-disk",
            ) from error

    @contextmanager
    def explain_early_stop(self) -> Iterator[None]:
        """Turn a stop before the first step into an error that names the command to start again."""
        try:
            yield
        except DataError as fault:
            raise UserError(
                f"{fault}\nNothing was trained yet. Start again with:\n  {self.folder.resume_command()}",
                code=fault.code,
            ) from fault
        except Stopped as stopped:
            raise Stopped(stopped.signal_number, self.folder.resume_advice()) from None

    def stop_message(self, progress: Progress) -> str:
        """Return the message of a run that stops after it was saved."""
        return (
            f"Stopped after step {progress.step} of {self.total_steps}, which is saved. Resume with:\n"
            f"  {self.folder.resume_command()}"
        )

    def not_finite_error(self, what: str, progress: Progress) -> UserError:
        """Return the error of a run whose values are no longer finite.

        Args:
            what: Subject and verb of the message.
            progress: Progress of the run.
        """
        return UserError(
            f"{what} at step {progress.step}: training failed. Lower optimizer.learning_rate (and "
            f"backbone_learning_rate), or set training.mixed_precision to 'no'. {self.note}",
            code="training-not-finite",
        )

    @property
    def note(self) -> str:
        """Sentence about the last checkpoint, for messages."""
        if self.last is None:
            return "There is no checkpoint yet."
        return f"The last checkpoint is {self.last}."
