"""The training loop of every recipe."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from m2v_finetune.backbones import Backbone, PrecomputedBackbone
from m2v_finetune.config import OptimizerConfig, RunConfig, TrainingConfig
from m2v_finetune.data.feature_store import CachedWindows
from m2v_finetune.data.loader import TrainingBatches, TrainingWindows
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.data.reading import training_loader
from m2v_finetune.errors import DISK_ERRORS, Stopped, UserError
from m2v_finetune.model import NotFiniteError, TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.windows import MaskedWindows
from m2v_finetune.training.checkpoint import (
    Progress,
    RunState,
    checkpoint_bytes,
    copy_trained,
    load_checkpoint,
    save_checkpoint,
)
from m2v_finetune.training.checkpoint_files import find_common_checkpoint, step_of, tidy
from m2v_finetune.training.faults import BadTrackPolicy, DataError, StepReader
from m2v_finetune.training.objective import Objective
from m2v_finetune.training.oom_retry import OutOfMemoryRetry, OutOfMemoryRetryError
from m2v_finetune.training.optimization import (
    build_optimizer,
    learning_rate_factor,
    set_learning_rates,
)
from m2v_finetune.training.plan import MemoryPlan
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.random_state import get_random_state, set_random_state
from m2v_finetune.training.run_folder import RunFolder, free_bytes, json_number
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.step import StepResult, take_step
from m2v_finetune.training.step_timer import StepTimer

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=TaskModel | PretrainingModel)

DEFAULT_PATIENCE = 5
"""Epochs without a better validation metric; see `TrainingConfig.early_stopping_patience`."""
# Float16's first loss scale, 65536, is halved by each: after twenty it is below a tenth.
MAX_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How training ended.

    Attributes:
        best_epoch: The epoch whose weights the model has now, from 1.
        best_values: Its metrics of the validation tracks; nan where one never existed.
        num_epochs: Epochs trained.
        num_steps: Optimiser steps done.
        num_skipped_steps: Of those, the ones whose gradients were not finite, so that no weight changed.
        seconds: That it took; of earlier processes of the run, until their last checkpoint.
    """

    best_epoch: int
    best_values: dict[str, float]
    num_epochs: int
    num_steps: int
    num_skipped_steps: int
    seconds: float = field(compare=False)


class TrainingLoop(Generic[Model]):
    """Trains until the epochs are done or validation no longer improves, and keeps the best weights.

    After every epoch what is held out is judged; the model ends with the weights of the epoch in which
    the objective's `selection_metric` was highest, or of the last one where there is none.

    Args:
        model: Tuned and headed; moved to the accelerator's device.
        windows: Of the training split.
        objective: Loss and validation.
        accelerator: Knows device, precision, accumulation and processes.
        training: Epochs, batches, early stopping.
        optimization: Rates and their course.
        folder: Takes metrics.jsonl and checkpoints; where it has a checkpoint, the run goes on from it.
        num_workers: Processes that read audio.
        run: Seed of the order of windows; when checkpoints are written, and how many stay.
        plan: What the run was expected to take, where that was asked for.
        bad_track_policy: What to do about tracks that can no longer be read; to stop if None.

    Attributes:
        checkpoint: The last one; None before the first.

    Raises:
        UserError: The folder has checkpoints, and all are damaged.
    """

    def __init__(
        self,
        model: Model,
        *,
        windows: TrainingWindows | CachedWindows | MaskedWindows,
        objective: Objective,
        accelerator: Accelerator,
        training: TrainingConfig,
        optimization: OptimizerConfig,
        folder: RunFolder,
        num_workers: int,
        run: RunConfig,
        plan: MemoryPlan | None = None,
        bad_track_policy: BadTrackPolicy | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.accelerator = accelerator
        self.training = training
        self.optimization = optimization
        self.folder = folder
        self.num_workers = num_workers
        self.settings = run
        self.bad_track_policy = bad_track_policy or BadTrackPolicy()
        self.batches = TrainingBatches(
            num_items=len(windows),
            per_device_batch_size=training.per_device_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=run.seed,
        )
        if len(windows) < self.batches.total_batch_size:
            logger.warning(
                "A total batch holds %d windows, but an epoch only %d: they are repeated to fill it. Lower "
                "training.per_device_batch_size or gradient_accumulation_steps.",
                self.batches.total_batch_size,
                len(windows),
            )
        self.loader = training_loader(
            windows,
            self.batches,
            num_workers=num_workers,
            timeout_seconds=self.bad_track_policy.timeout_seconds,
        )
        self.total_steps = training.epochs * self.batches.steps_per_epoch
        model.backbone.gradient_checkpointing = training.gradient_checkpointing
        if training.compile:
            assert isinstance(
                model.backbone, Backbone
            )  # vectors have no layers; settings refuse that
            model.backbone.compile_layers()
        # For its device and precision; gradients of processes are exchanged by `take_step`.
        accelerator.prepare_model(model, evaluation_mode=True)
        if accelerator.num_processes > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                broadcast(tensor.data)
        self.optimizer = build_optimizer(model, optimization)
        self.plan = plan
        self.oom_retry = OutOfMemoryRetry(
            training=training,
            accelerator=accelerator,
            plan=plan,
        )
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.losses: list[torch.Tensor] = []  # of the steps since the last line of the log
        self.reader = StepReader(
            self.loader, accelerator=accelerator, bad_track_policy=self.bad_track_policy
        )
        self.timer = StepTimer()
        self.earlier_seconds, self.start_time = 0.0, time.monotonic()
        self.is_wait_reported = self.is_warm_up_reported = False
        self.reads_audio = not (
            isinstance(windows, CachedWindows) or isinstance(model.backbone, PrecomputedBackbone)
        )
        self.checkpoint: Path | None = find_common_checkpoint(folder.checkpoints)

    def run(self) -> FitResult:
        """Train.

        Raises:
            Stopped: A signal arrived; a checkpoint was saved.
            UserError: Learning has failed: many steps in a row had gradients that are not finite, or what
                the model says of the validation tracks is not. Or the disk does not take what is written. Or
                data cannot be read any more, and what was done before is saved.
        """
        self._resume()
        progress = self.progress
        is_main = self.accelerator.is_main_process
        with (
            stop_on_signals(announce=is_main) as self.stop,
            progress_bar(self.accelerator) as self.bar,
        ):
            if self.checkpoint is None:
                self._start()
            self.bar_task = self.bar.add_task("Training", total=self.total_steps)
            while not self._is_finished():
                if progress.step_in_epoch < self.batches.steps_per_epoch:
                    self._train_epoch()
                self._evaluate_epoch()
                self._save()
                self._stop_if_asked()
        self.model.load_state_dict(self.best, strict=False)
        assert progress.best_epoch is not None
        if progress.epoch < self.training.epochs:
            logger.info(
                "Stopped early: validation did not improve for %d epochs.",
                progress.epochs_without_improvement,
            )
        return FitResult(
            best_epoch=progress.best_epoch,
            best_values=progress.best_values,
            num_epochs=progress.epoch,
            num_steps=progress.step,
            num_skipped_steps=progress.num_skipped_steps,
            seconds=self._seconds(),
        )

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.start_time

    def _is_finished(self) -> bool:
        """Tell from the settings, which may have changed since the last checkpoint."""
        progress, training = self.progress, self.training
        patience, first_epoch = training.early_stopping_patience, 0
        if patience is None:
            patience, first_epoch = DEFAULT_PATIENCE, math.ceil(training.epochs / 2)
        is_patience_over = progress.epochs_without_improvement >= patience
        return progress.epoch >= training.epochs or (
            is_patience_over and progress.epoch >= first_epoch
        )

    def _start(self) -> None:
        """Measure what a new run has to know of its data."""
        self.batches.epoch, self.batches.first_step = 0, 0
        try:
            with self.stop.interruptible():
                self.objective.start(
                    self.reader.read(),
                    accelerator=self.accelerator,
                    bar=self.bar,
                    num_batches=len(self.batches),
                )
            self.reader.sync()
        except DataError as fault:
            raise UserError(
                f"{fault}\nNothing was learned yet. Begin again with:\n  {self.folder.resume_command()}"
            ) from fault
        except Stopped as stopped:
            raise Stopped(stopped.signal_number, self.folder.resume_advice()) from None

    def _train_epoch(self) -> None:
        progress = self.progress
        self.batches.epoch, self.batches.first_step = progress.epoch, progress.step_in_epoch
        self.model.train()
        batches = self.reader.read()
        while progress.step_in_epoch < self.batches.steps_per_epoch:
            with self.timer.step():
                result = self._train_step(batches)
            self._report_warm_up()
            if not result.is_skipped:
                self.objective.end_step(self._num_updates())
            progress.step += 1
            progress.step_in_epoch += 1
            self._count(result)
            is_last = progress.step_in_epoch == self.batches.steps_per_epoch
            if is_last or progress.step % self.training.log_every_steps == 0:
                self._log_step(result.gradient_norm)
            self.bar.update(self.bar_task, completed=progress.step)
            if progress.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                self._stop_skipping()
            if is_last:
                return
            self._stop_if_asked(save=True)
            if progress.step % self.settings.checkpoint_every_steps == 0:
                self._save()

    def _report_warm_up(self) -> None:
        """Say once what the first steps took where code was made of the layers."""
        if (
            not self.training.compile
            or self.is_warm_up_reported
            or len(self.timer.first_seconds) < 2
        ):
            return
        self.is_warm_up_reported = True
        logger.info(
            "The first step took %.1f s, compiling the layers included; the second took %.2f s.",
            *self.timer.first_seconds,
        )

    def _num_updates(self) -> int:
        """Return how often the weights were changed."""
        return self.progress.step - self.progress.num_skipped_steps

    def _train_step(self, batches: Iterator[list[torch.Tensor]]) -> StepResult:
        """Take a step; where that cannot be, save what was before it and stop."""
        random_state = get_random_state()
        try:
            with self.timer.reading():
                parts = self.reader.read_step(batches, self.training.gradient_accumulation_steps)
            set_learning_rates(
                self.optimizer, self._learning_rate_factor(total_steps=self.total_steps)
            )
            result = self.oom_retry.take(self._take_step, parts, number=self.progress.step + 1)
            if result.is_skipped:
                self._name_not_finite(result)
        except DataError as fault:
            set_random_state(random_state)
            self._save_and_stop(fault)
        except OutOfMemoryRetryError as error:
            if error.is_undone:
                set_random_state(random_state)
                self._save_and_stop(error)
            raise UserError(f"{error} {self._kept()}") from error
        return result

    def _take_step(self, batches: Iterator[list[torch.Tensor]], num_batches: int) -> StepResult:
        """Take one optimiser step over batches."""
        self.objective.start_step()
        return take_step(
            self.model,
            self.optimizer,
            batches,
            loss=self.objective.loss,
            gradient_accumulation_steps=num_batches,
            max_grad_norm=self.optimization.max_grad_norm,
            scaler=self.accelerator.scaler,
            num_processes=self.accelerator.num_processes,
        )

    def _name_not_finite(self, result: StepResult) -> None:
        """Say which batches and tracks made a step's gradients not finite.

        Raises:
            DataError: training.on_nonfinite is ``stop``. Under float16 that counts where a loss is not finite
                alone: gradients that overflow are how the loss scale is found.
        """
        is_loss, named = self.reader.not_finite(result.losses)
        message = f"The {'loss' if is_loss else 'gradient'} of step {self.progress.step + 1} is not finite"
        is_fault = is_loss or self.accelerator.scaler is None
        if self.training.on_nonfinite == "stop" and is_fault:
            raise DataError(
                problem_list(
                    f"{message}, and no weight was changed",
                    named,
                    "Listen to these tracks, or lower optimizer.learning_rate. To leave such steps out, set "
                    "training.on_nonfinite to skip.",
                )
            )
        logger.warning("%s. %s", message, "; ".join(named))

    def _count(self, result: StepResult) -> None:
        """Keep the losses of a step, or count it as skipped.

        Gradients are summed over processes before their norm is taken, so that all skip the same steps.
        """
        progress = self.progress
        if not result.is_skipped:
            # The mean of each step: steps weigh the same, into however many batches they were divided.
            self.losses.append(torch.stack(result.losses).mean())
            progress.skipped_in_a_row = 0
            return
        progress.num_skipped_steps += 1
        progress.skipped_in_a_row += 1
        scaler = self.accelerator.scaler
        logger.warning(
            "Step %d changed nothing: its gradient norm is %s%s. Skipped so far: %d.",
            progress.step,
            result.gradient_norm,
            "" if scaler is None else f", and the loss is now scaled by {scaler.get_scale():g}",
            progress.num_skipped_steps,
        )

    def _stop_skipping(self) -> NoReturn:
        """Save what was learned before steps that changed nothing, and stop.

        Raises:
            UserError: Says so.
        """
        self.progress.skipped_in_a_row = 0  # a run that goes on may try as many again
        self._save()
        message = f"The gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row are not finite"
        raise UserError(self._failed(message))

    def _log_step(self, gradient_norm: float) -> None:
        is_known = bool(self.losses)  # else all were skipped
        none = torch.tensor(math.nan, device=self.accelerator.device)
        mean = torch.stack(self.losses).mean() if is_known else none
        self.losses = []
        local_metrics = self.objective.pop_metrics()
        # Read from the device at once.
        means = self.accelerator.reduce(
            torch.stack([mean, *local_metrics.values()]), reduction="mean"
        )
        loss, *others = means.tolist()
        metrics = dict(zip(local_metrics, others, strict=True))
        values = {"loss": loss, "gradient_norm": gradient_norm, **metrics}
        learning_rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        line = {k: json_number(v) for k, v in values.items()}
        skipped = {"num_skipped_steps": self.progress.num_skipped_steps}
        # For trackers alone: metrics.jsonl of equal runs are equal, and their times are not.
        wait = {"time/waiting_for_data": self.timer.take_line().share}
        self._log(
            {**line, **skipped, "learning_rates": learning_rates},
            tracked={**values, **skipped, **wait},
        )
        if is_known:
            self.objective.check_collapse(metrics, num_updates=self._num_updates())
        epoch = f"Epoch {self.progress.epoch + 1} of {self.training.epochs}, loss {loss:.4f}"
        self.bar.update(self.bar_task, description=epoch)

    def _failed(self, what: str) -> str:
        return (
            f"{what} at step {self.progress.step}: learning has failed. Lower optimizer.learning_rate (and "
            f"backbone_learning_rate), or set training.mixed_precision to 'no'. {self._kept()}"
        )

    def _kept(self) -> str:
        """Return what there is to go on from."""
        if self.checkpoint is None:
            return "There is no checkpoint yet."
        return f"The last checkpoint is {self.checkpoint}."

    def _evaluate(self) -> dict[str, float]:
        """Return the metrics of what is held out."""
        try:
            return self.objective.evaluate(
                accelerator=self.accelerator,
                batch_size=self.training.eval_batch_size,
                num_workers=self.num_workers,
                bar=self.bar,
                bad_track_policy=self.bad_track_policy,
                interruptible=self.stop.interruptible,
            )
        except Stopped:
            self._stop(save=True)
        except DataError as fault:
            self._save_and_stop(fault)
        except NotFiniteError as error:
            message = "What the model says of the validation tracks is not finite"
            raise UserError(self._failed(message)) from error

    def _evaluate_epoch(self) -> None:
        """Judge what is held out, keep the weights if they are the best, end the epoch."""
        progress, objective = self.progress, self.objective
        values = self._evaluate()
        selection = objective.selection_metric
        if selection is not None and math.isnan(values[selection]):
            logger.warning(
                "The validation tracks do not give %s a value, so no epoch can be called the best: the last "
                "one is kept. Give the validation split more tracks.",
                objective.metric_names[selection],
            )
        for name, value in values.items():
            if math.isnan(value) and name != selection:
                message = "The validation tracks do not give %s a value, so it is left out."
                logger.warning(message, objective.metric_names[name])
        progress.epoch += 1
        progress.step_in_epoch = 0
        if selection is None:
            is_best = True
        else:
            best = progress.best_values.get(selection, math.nan)
            # A metric that does not exist (one class only) is kept until there is one that does.
            is_best = math.isnan(best) or values[selection] > best
        if is_best:
            progress.best_values, progress.best_epoch = values, progress.epoch
            progress.epochs_without_improvement = 0
            self.best = copy_trained(self.model)
        else:
            progress.epochs_without_improvement += 1
        self._log(
            {"validation": {k: json_number(v) for k, v in values.items()}},
            tracked={f"validation/{k}": v for k, v in values.items()},
        )
        wait = self.timer.take_epoch()
        logger.info(
            "Epoch %d of %d: validation %s%s; waited for data in %.0f %% of the steps' time",
            progress.epoch,
            self.training.epochs,
            ", ".join(f"{objective.metric_names[name]} {v:.4f}" for name, v in values.items()),
            ", the best so far" if is_best and selection is not None else "",
            100 * wait.share,
        )
        if self.timer.run.is_significant and self.reads_audio and not self.is_wait_reported:
            self._advise_on_data_wait()

    def _advise_on_data_wait(self) -> None:
        """Say once what makes data come sooner."""
        self.is_wait_reported = True
        logger.warning(
            "The steps wait for audio. What helps: decode the set once by `m2v data convert SOURCE`, unless "
            "that is done; raise data.num_workers, now %d, where cores are free (this machine has %s); where "
            "the backbone or its lower part is frozen, keep what that says by cache.use.",
            self.num_workers,
            os.cpu_count(),
        )

    def _log(self, line: dict[str, Any], *, tracked: dict[str, float]) -> None:
        with self._disk("The log", needed_bytes=None):
            self.accelerator.log(tracked, step=self.progress.step)
            if self.accelerator.is_main_process:
                # The epoch that the steps belong to: `progress.epoch` epochs are complete.
                epoch = self.progress.epoch + (self.progress.step_in_epoch > 0)
                self.folder.log({"step": self.progress.step, "epoch": epoch, **line})

    def _resume(self) -> None:
        if self.accelerator.is_main_process:
            tidy(self.folder.checkpoints, self.checkpoint)
        if self.checkpoint is None:
            if self.accelerator.is_main_process and self.folder.metrics.exists():
                logger.info("Going on from the beginning: there is no checkpoint yet.")
                with self._disk("The log", needed_bytes=None):
                    self.folder.cut_metrics(0)
            return
        resumed = load_checkpoint(
            self.checkpoint,
            model=self.model,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
        )
        self.progress, self.best = resumed.progress, resumed.best
        self.earlier_seconds = resumed.seconds
        self.bad_track_policy.found = self.progress.bad_tracks
        device = self.accelerator.device
        self.losses = [torch.tensor(x, device=device) for x in resumed.unlogged_losses]
        if self.accelerator.is_main_process:
            with self._disk("The log", needed_bytes=None):
                self.folder.cut_metrics(resumed.metrics_bytes)
        step = self.progress.step
        logger.info("Going on after step %d of %d.", step, self.total_steps)
        if resumed.total_steps != self.total_steps:
            logger.warning(
                "From here on the rates follow a course of %d steps; until now it was one of %d. After step "
                "%d they are %.3g of their peaks in place of %.3g. The run will end elsewhere than one that "
                "began with %d steps.",
                self.total_steps,
                resumed.total_steps,
                step,
                self._learning_rate_factor(total_steps=self.total_steps),
                self._learning_rate_factor(total_steps=resumed.total_steps),
                self.total_steps,
            )

    def _learning_rate_factor(self, *, total_steps: int) -> float:
        return learning_rate_factor(
            self.progress.step,
            total_steps=total_steps,
            warmup_ratio=self.optimization.warmup_ratio,
        )

    def _save(self) -> None:
        self.progress.bad_tracks = self.bad_track_policy.found
        needed = checkpoint_bytes(self.model, self.optimizer)
        with self._disk(f"The checkpoint after step {self.progress.step}", needed_bytes=needed):
            self.checkpoint = save_checkpoint(
                self.folder.checkpoints,
                model=self.model,
                optimizer=self.optimizer,
                accelerator=self.accelerator,
                run=RunState(
                    progress=self.progress,
                    best=self.best,
                    unlogged_losses=[float(loss) for loss in self.losses],
                    metrics_bytes=self.folder.flush_metrics(),
                    total_steps=self.total_steps,
                    seconds=self._seconds(),
                ),
                keep=self.settings.keep_checkpoints,
            )

    @contextmanager
    def _disk(self, what: str, *, needed_bytes: int | None) -> Iterator[None]:
        """Name what the disk does not take, and what is there in its place."""
        try:
            yield
        except OSError as error:
            if error.filename is None and error.errno not in DISK_ERRORS:
                raise  # of a tracker's network
            folder = self.folder.path
            needs = "" if needed_bytes is None else f" takes {needed_bytes:,} bytes and"
            kept = (
                "There is no checkpoint yet"
                if self.checkpoint is None
                else f"The checkpoint after step {step_of(self.checkpoint)} is complete"
            )
            raise UserError(
                f"{what}{needs} cannot be written to {folder}: {error.strerror or error}. Its disk has "
                f"{free_bytes(folder):,} bytes free. {kept}. Fix the disk, then resume with:\n"
                f"  {self.folder.resume_command()}"
            ) from error

    def _stop_if_asked(self, *, save: bool = False) -> None:
        if self.stop.is_set_on_any_process(self.accelerator):
            self._stop(save=save)

    def _stop(self, *, save: bool) -> NoReturn:
        if save:
            self._save()
        raise Stopped(self.stop.number, self._stopped())

    def _save_and_stop(self, fault: UserError) -> NoReturn:
        self._save()
        raise UserError(f"{fault}\n{self._stopped()}") from fault

    def _stopped(self) -> str:
        return (
            f"Stopped after step {self.progress.step} of {self.total_steps}, which is saved. Go on with:\n"
            f"  {self.folder.resume_command()}"
        )
