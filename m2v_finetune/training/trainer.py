"""The trainer of every recipe: epochs, steps, validation, and the best weights."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import torch

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.config import OptimizerConfig, TrainingConfig
from m2v_finetune.data.cached_windows import CachedWindows
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.reading import training_loader
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.model import NotFiniteError, TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.replay import PretrainingWindows
from m2v_finetune.threads import choose_threads, intra_op_threads
from m2v_finetune.training.batches import training_batches
from m2v_finetune.training.checkpoint import copy_trained
from m2v_finetune.training.checkpointer import Checkpointer
from m2v_finetune.training.faults import DataError, StepReader
from m2v_finetune.training.moving_average import MovingAverage
from m2v_finetune.training.objective import Objective
from m2v_finetune.training.oom_retry import OutOfMemoryRetryError, PlannedMemory
from m2v_finetune.training.optimization import build_optimizer, learning_rate_factor
from m2v_finetune.training.precision import prepare_model
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_log import RunLog
from m2v_finetune.training.run_progress import FitResult, Progress
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.solved_head import fit_solved_head, require_solvable
from m2v_finetune.training.step import StepResult
from m2v_finetune.training.step_policy import StepPolicy

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=TaskModel | PretrainingModel)

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Gets the number of an epoch, from 1, and its validation metrics."""

# Float16's first loss scale, 65536, is halved by each: after twenty it is below a tenth.
MAX_SKIPPED_IN_A_ROW = 20


class Trainer(Generic[Model]):
    """Training loop with validation, early stopping, checkpoints, and selection of the best weights.

    Every epoch ends with validation. At the end the model has the weights of the epoch with the highest
    `selection_metric` of the objective, or those of the last epoch if there is no such metric. If the run
    folder has a checkpoint, the run resumes from it, to the bit.

    Args:
        model: Model with tuning and head; moved to the run's device.
        windows: Windows of the training split.
        loss: Loss function of the model's outputs, in float32, and the targets; a mean over windows.
        objective: Validation.
        run: Processes, folder, seed and policy for bad tracks.
        training: Epochs, batches, early stopping.
        optimization: Optimizer and learning-rate schedule.
        num_workers: Number of processes that read audio.
        plan: Planned memory, if ``run.memory`` is set.
        on_epoch: Function that gets the number of an epoch, from 1, and its validation metrics, before it is
            saved. It may raise.

    Attributes:
        batches: Order of the windows.
        average: Moving average of the weights.
        optimizer: Optimizer of the trainable parameters.
        total_steps: Optimizer steps of all epochs.
        progress: Progress of the run.
        best: Trained tensors of the best epoch.
        checkpoints: Saving and resuming.
        steps: Taking of steps.
        num_threads: Number of intra-op threads of the training.
        log: Log of the run.

    Raises:
        UserError: The folder has checkpoints, and all are damaged.
    """

    def __init__(
        self,
        model: Model,
        windows: TrainingWindows | CachedWindows | PretrainingWindows,
        *,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        objective: Objective,
        run: Run,
        training: TrainingConfig,
        optimization: OptimizerConfig,
        num_workers: int,
        plan: PlannedMemory | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> None:
        accelerator = run.accelerator
        self.model = model
        self.objective = objective
        self.run = run
        self.accelerator = accelerator
        self.training = training
        self.optimization = optimization
        self.num_workers = num_workers
        self.plan = plan
        self.on_epoch = on_epoch
        if isinstance(model, TaskModel) and model.head_config.is_solved:
            require_solvable(model)
            model.layer_weighting.requires_grad_(False)  # features are fixed
        classes: Sequence[int] = ()
        if isinstance(windows, TrainingWindows | CachedWindows):
            classes = windows.item_classes
        self.batches = training_batches(len(windows), training, run, item_classes=classes)
        self.loader = training_loader(
            windows,
            self.batches,
            num_workers=num_workers,
            timeout_seconds=run.bad_tracks.timeout_seconds,
        )
        self.total_steps = training.epochs * self.batches.steps_per_epoch
        prepare_model(
            model,
            accelerator,
            gradient_checkpointing=training.gradient_checkpointing,
            compile_layers=training.compile,
        )
        self.average = MovingAverage(model, training.ema_decay)
        self.optimizer = build_optimizer(model, optimization)
        self.steps = StepPolicy(
            model,
            self.optimizer,
            loss=loss,
            objective=objective,
            reader=StepReader(
                self.loader, accelerator=accelerator, bad_track_policy=run.bad_tracks
            ),
            accelerator=accelerator,
            training=training,
            optimization=optimization,
            plan=plan,
        )
        is_cached = isinstance(windows, CachedWindows)
        self.num_threads = choose_threads(
            model, without=model.backbone.frozen_modules() if is_cached else ()
        )
        self.log = RunLog(
            accelerator=accelerator,
            folder=run.folder,
            timer=self.steps.timer,
            num_epochs=training.epochs,
            num_workers=num_workers,
            reads_audio=not (is_cached or isinstance(model.backbone, PrecomputedBackbone)),
            is_compiled=training.compile,
        )
        self.checkpoints = Checkpointer(
            model,
            self.optimizer,
            accelerator=accelerator,
            folder=run.folder,
            num_kept=run.settings.keep_checkpoints,
            total_steps=self.total_steps,
        )
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self._earlier_seconds, self._start_time = 0.0, time.monotonic()

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint; None before the first."""
        return self.checkpoints.last

    def fit(self) -> FitResult:
        """Train; or solve the head, if its kind is logistic or ridge (`solved_head.fit_solved_head`).

        Raises:
            Stopped: A signal arrived; a checkpoint was saved.
            UserError: Training failed: the gradients of many steps in a row, or the outputs for the
                validation tracks, are not finite. Or the disk refuses to write. Or data can no longer be
                read; then all steps before are saved.
        """
        if isinstance(self.model, TaskModel) and self.model.head_config.is_solved:
            return fit_solved_head(self)  # type: ignore[arg-type]
        self._resume()
        progress = self.progress
        with (
            intra_op_threads(self.num_threads),
            stop_on_signals(announce=self.run.is_main_process) as self.stop,
            progress_bar(self.accelerator) as self.bar,
        ):
            if self.checkpoint is None:
                self._start()
            self.log.start_bar(self.bar, total_steps=self.total_steps)
            while not progress.is_finished(self.training):
                if progress.step_in_epoch < self.batches.steps_per_epoch:
                    self._train_epoch()
                self._evaluate_epoch()
                self._save()
                self._stop_if_asked()
        self.model.load_state_dict(self.best, strict=False)
        if progress.epoch < self.training.epochs:
            logger.info(
                "Stopped early: validation did not improve for %d epochs.",
                progress.epochs_without_improvement,
            )
        return progress.result(seconds=self._seconds())

    def _train_epoch(self) -> None:
        progress = self.progress
        self.batches.epoch, self.batches.first_step = progress.epoch, progress.step_in_epoch
        self.model.train()
        batches = self.steps.reader.read()
        while progress.step_in_epoch < self.batches.steps_per_epoch:
            with self.steps.timer.step():
                result = self._train_step(batches)
            self.log.report_compilation()
            if not result.is_skipped:
                self.average.update(progress.num_updates)
                self.objective.end_step(progress.num_updates)
            progress.count_step(is_skipped=result.is_skipped)
            if result.is_skipped:
                self.log.warn_skipped(progress, result.gradient_norm)
            else:  # steps have equal weight, whatever the number of their batches
                self.log.losses.append(torch.stack(result.losses).mean())
            is_last = progress.step_in_epoch == self.batches.steps_per_epoch
            if is_last or progress.step % self.training.log_every_steps == 0:
                self._log_step(result.gradient_norm)
            self.log.update_bar(progress.step)
            if progress.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                self._stop_skipping()
            if is_last:
                return
            self._stop_if_asked(save=True)
            if progress.step % self.run.settings.checkpoint_every_steps == 0:
                self._save()

    def _train_step(self, batches: Iterator[list[torch.Tensor]]) -> StepResult:
        """Take a step; if it fails, save the run before it and stop."""
        try:
            return self.steps.take(
                batches,
                number=self.progress.step + 1,
                learning_rate_factor=learning_rate_factor(
                    self.progress.step,
                    total_steps=self.total_steps,
                    warmup_ratio=self.optimization.warmup_ratio,
                ),
            )
        except DataError as fault:
            self._save_and_stop(fault)
        except OutOfMemoryRetryError as error:
            if error.is_undone:
                self._save_and_stop(error)
            raise UserError(f"{error} {self.checkpoints.note}", code=error.code) from error

    def _log_step(self, gradient_norm: float) -> None:
        has_loss = bool(self.log.losses)  # else all steps were skipped
        with self.checkpoints.explain_disk_error("The log"):
            metrics = self.log.log_step(
                self.progress,
                gradient_norm=gradient_norm,
                metrics=self.objective.pop_metrics(),
                learning_rates={
                    group["name"]: group["lr"] for group in self.optimizer.param_groups
                },
            )
        if has_loss:
            self.objective.check_collapse(metrics, num_updates=self.progress.num_updates)

    def _evaluate_epoch(self) -> None:
        """Validate, keep the weights if they are the best, and end the epoch."""
        progress, objective = self.progress, self.objective
        values = self._validate()
        selection, names = objective.selection_metric, objective.metric_names
        self.log.warn_undefined(values, selection=selection, metric_names=names)
        is_best = progress.end_epoch(values, selection_metric=selection)
        if is_best:
            with self.average.applied():
                self.best = copy_trained(self.model)
        with self.checkpoints.explain_disk_error("The log"):
            self.log.log_epoch(
                progress,
                values,
                metric_names=names,
                is_best=is_best and selection is not None,
            )
        if self.on_epoch is not None:
            self.on_epoch(progress.epoch, values)

    def _validate(self) -> dict[str, float]:
        try:
            with self.average.applied():  # ends before an error saves the run
                return self.objective.evaluate(
                    self.run,
                    batch_size=self.training.eval_batch_size,
                    num_workers=self.num_workers,
                    bar=self.bar,
                    interruptible=self.stop.interruptible,
                )
        except Stopped:
            self._stop(save=True)
        except DataError as fault:
            self._save_and_stop(fault)
        except NotFiniteError as error:
            message = "The output for the validation tracks is not finite"
            raise self.checkpoints.not_finite_error(message, self.progress) from error

    def _start(self) -> None:
        """Measure the statistics of the training windows that a new run needs."""
        self.batches.epoch, self.batches.first_step = 0, 0
        reader = self.steps.reader
        with self.checkpoints.explain_early_stop():
            with self.stop.interruptible():
                self.objective.start(
                    reader.read(),
                    accelerator=self.accelerator,
                    bar=self.bar,
                    num_batches=len(self.batches),
                )
            reader.sync()
        # The start may have set weights.
        self.average = MovingAverage(self.model, self.average.decay)

    def _resume(self) -> None:
        resumed = self.checkpoints.resume(warmup_ratio=self.optimization.warmup_ratio)
        if resumed is None:
            return
        self.progress, self.best = resumed.progress, resumed.best
        self._earlier_seconds = resumed.seconds
        self.average.load(resumed.average)
        self.run.bad_tracks.found = self.progress.bad_tracks
        device = self.accelerator.device
        self.log.losses = [torch.tensor(x, device=device) for x in resumed.unlogged_losses]

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._start_time

    def _save(self) -> None:
        self.progress.bad_tracks = self.run.bad_tracks.found
        self.checkpoints.save(
            self.progress,
            best=self.best,
            unlogged_losses=self.log.losses,
            seconds=self._seconds(),
            average=self.average.values,
        )

    def _stop_if_asked(self, *, save: bool = False) -> None:
        if self.stop.is_set_on_any_process(self.accelerator):
            self._stop(save=save)

    def _stop(self, *, save: bool) -> NoReturn:
        if save:
            self._save()
        raise Stopped(self.stop.number, self.checkpoints.stop_message(self.progress))

    def _save_and_stop(self, fault: UserError) -> NoReturn:
        self._save()
        message = f"{fault}\n{self.checkpoints.stop_message(self.progress)}"
        raise UserError(message, code=fault.code) from fault

    def _stop_skipping(self) -> NoReturn:
        """Save the run before steps that changed no weight, and stop."""
        self.progress.skipped_in_a_row = 0  # a resumed run may try as many again
        self._save()
        message = f"The gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row are not finite"
        raise self.checkpoints.not_finite_error(message, self.progress)
