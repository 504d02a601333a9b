"""The training loop of every recipe."""

import gc
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from m2v_finetune.backbones import Backbone
from m2v_finetune.config import OptimizerConfig, TrainingConfig
from m2v_finetune.data.loader import TrainingBatches, TrainingWindows
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.data.reading import Notes, WorkerError, read_batches, training_loader
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.model import NotFiniteError, TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.windows import MaskedWindows
from m2v_finetune.training.checkpoint import Progress, load_best, load_last, save_best, save_last
from m2v_finetune.training.faults import DataError, DataWatch, agree
from m2v_finetune.training.objective import Objective
from m2v_finetune.training.optimization import build_optimizer, rate_factor, set_rates
from m2v_finetune.training.plan import MemoryPlan, divisors, gigabytes
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.run_folder import RunFolder, json_number
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.step import StepResult, take_step

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=TaskModel | PretrainingModel)

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
    """

    best_epoch: int
    best_values: dict[str, float]
    num_epochs: int
    num_steps: int
    num_skipped_steps: int


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
        seed: Of the order of windows.
        plan: What the run was expected to take, where that was asked for.
        watch: What to do about tracks that can no longer be read; to stop if None.
    """

    def __init__(
        self,
        model: Model,
        *,
        windows: TrainingWindows | MaskedWindows,
        objective: Objective,
        accelerator: Accelerator,
        training: TrainingConfig,
        optimization: OptimizerConfig,
        folder: RunFolder,
        num_workers: int,
        seed: int,
        plan: MemoryPlan | None = None,
        watch: DataWatch | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.accelerator = accelerator
        self.training = training
        self.optimization = optimization
        self.folder = folder
        self.num_workers = num_workers
        self.watch = watch or DataWatch()
        self.batches = TrainingBatches(
            num_items=len(windows),
            per_device_batch_size=training.per_device_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            seed=seed,
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
            timeout_seconds=self.watch.timeout_seconds,
        )
        self.total_steps = training.epochs * self.batches.steps_per_epoch
        model.backbone.gradient_checkpointing = training.gradient_checkpointing
        if training.compile:
            assert isinstance(
                model.backbone, Backbone
            )  # vectors have no layers; settings refuse that
            model.backbone.compile_layers()
        self.wrapped = accelerator.prepare(model)
        self.optimizer = build_optimizer(model, optimization)
        self.optimizer.register_step_pre_hook(self._note_weights_change)
        self.plan = plan
        self.device_batch_size = training.per_device_batch_size
        self.progress = Progress()
        self.losses: list[torch.Tensor] = []  # of the steps since the last line of the log
        self.bad_tracks: dict[str, str] = {}  # found here, and not yet told to other processes
        self.heard: list[list[str]] = []  # tracks of each batch of the step, on this process

    def run(self) -> FitResult:
        """Train.

        Raises:
            Stopped: A signal arrived; a checkpoint was saved.
            UserError: Learning has failed: many steps in a row had gradients that are not finite, or what
                the model says of the validation tracks is not. Or data cannot be read any more, and what was
                done before is saved.
        """
        self._resume()
        progress = self.progress
        with stop_on_signals() as self.stop, progress_bar(self.accelerator) as self.bar:
            if not self.folder.has_checkpoint:
                self.batches.epoch, self.batches.first_step = 0, 0
                self.objective.begin(
                    self._read(),
                    accelerator=self.accelerator,
                    bar=self.bar,
                    num_batches=len(self.batches),
                )
            self.bar_task = self.bar.add_task("Training", total=self.total_steps)
            while not progress.is_finished:
                self._train_epoch()
                self._judge_epoch()
                self._save()
                if not progress.is_finished:
                    self._stop_if_asked()
        self.accelerator.wait_for_everyone()
        load_best(self.model, self.folder.checkpoints)
        assert progress.best_epoch is not None
        if progress.epoch < self.training.epochs:
            logger.info(
                "Stopped early: validation did not improve for %d epochs.",
                self.training.early_stopping_patience,
            )
        return FitResult(
            best_epoch=progress.best_epoch,
            best_values=progress.best_values,
            num_epochs=progress.epoch,
            num_steps=progress.step,
            num_skipped_steps=progress.num_skipped_steps,
        )

    def _train_epoch(self) -> None:
        progress = self.progress
        self.batches.epoch, self.batches.first_step = progress.epoch, progress.step_in_epoch
        self.wrapped.train()
        batches = self._read()
        while progress.step_in_epoch < self.batches.steps_per_epoch:
            result = self._step_or_stop(batches)
            if not result.is_skipped:
                self.objective.end_step()
            progress.step += 1
            progress.step_in_epoch += 1
            self._count(result)
            is_last = progress.step_in_epoch == self.batches.steps_per_epoch
            if is_last or progress.step % self.training.log_every_steps == 0:
                self._log_step(result.gradient_norm)
            self.bar.update(self.bar_task, completed=progress.step)
            if not is_last:
                self._stop_if_asked(save=True)

    def _read(self) -> Iterator[list[torch.Tensor]]:
        """Yield tensors, and keep what is noted of them.

        Raises:
            DataError: Nothing can be read, or a worker failed.
        """
        try:
            for *parts, notes in read_batches(self.loader):
                assert isinstance(notes, Notes)
                self.bad_tracks |= notes.bad_tracks
                if not parts:
                    said = "Windows cannot be read, and none that were tried in their places can"
                    advice = "Is a drive missing?"
                    raise DataError(problem_list(said, list(notes.bad_tracks.values()), advice))
                self.heard.append(notes.track_ids)
                yield parts
        except WorkerError as error:
            raise DataError(str(error)) from error

    def _read_step(self, batches: Iterator[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
        """Return the batches of a step, once the processes have told each other of faults.

        So no process waits for the gradients of one that has stopped.
        """
        self.heard = []
        failure, parts = None, []
        try:
            parts = list(islice(batches, self.training.gradient_accumulation_steps))
        except DataError as fault:
            failure = str(fault)
        told, self.bad_tracks = self.bad_tracks, {}
        self.watch.take("train", agree(self.accelerator, failure, told))
        return parts

    def _step_or_stop(self, batches: Iterator[list[torch.Tensor]]) -> StepResult:
        """Take a step; where its data cannot be read or learned, save what was before it and stop."""
        before = _random_state()
        try:
            result = self._train_step(batches)
            if result.is_skipped:
                self._name_not_finite(result)
        except DataError as fault:
            _set_random_state(before)
            self._save_and_stop(fault)
        return result

    def _name_not_finite(self, result: StepResult) -> None:
        """Say which batch and tracks made a step's gradients not finite.

        Raises:
            DataError: training.on_nonfinite is ``stop``. Under float16 that counts where a loss is not finite
                alone: gradients that overflow are how the loss scale is found.
        """
        # Where memory ran out, a batch was divided.
        losses = torch.stack(result.losses).view(len(self.heard), -1).sum(dim=1)
        is_finite = torch.isfinite(losses).tolist()
        has_bad_loss = not all(is_finite)
        named = [
            f"batch {number} of process {self.accelerator.process_index + 1}: {', '.join(tracks)}"
            for number, (tracks, is_good) in enumerate(zip(self.heard, is_finite, strict=True), 1)
            if not (has_bad_loss and is_good)
        ]
        told = gather_object([(has_bad_loss, named)])
        has_bad_loss = any(is_bad for is_bad, _ in told)
        # Where some losses are not finite, they are what to look at.
        named = [line for is_bad, lines in told if is_bad or not has_bad_loss for line in lines]
        what = "loss" if has_bad_loss else "gradient"
        said = f"The {what} of step {self.progress.step + 1} is not finite"
        if self.training.on_nonfinite == "stop" and (
            has_bad_loss or self.accelerator.scaler is None
        ):
            raise DataError(
                problem_list(
                    f"{said}, and no weight was changed",
                    named,
                    "Listen to these tracks, or lower optimizer.learning_rate. To leave such steps out, set "
                    "training.on_nonfinite to skip.",
                )
            )
        logger.warning("%s. %s", said, "; ".join(named))

    def _save_and_stop(self, fault: UserError) -> NoReturn:
        self._save()
        raise UserError(
            f"{fault}\nStopped after step {self.progress.step} of {self.total_steps}, which is saved. Go on "
            f"with:\n  {self.folder.resume_command()}"
        ) from fault

    def _train_step(self, batches: Iterator[list[torch.Tensor]]) -> StepResult:
        """Take one optimiser step over as many batches as it accumulates.

        Where memory runs out, the same step is taken with the same windows in smaller batches.
        """
        factor = rate_factor(
            self.progress.step,
            total_steps=self.total_steps,
            warmup_ratio=self.optimization.warmup_ratio,
        )
        set_rates(self.optimizer, factor)
        parts = self._read_step(batches)
        random_state = _random_state()
        while True:
            try:
                return self._try_step(parts)
            except torch.OutOfMemoryError:
                _set_random_state(random_state)
                self._take_smaller_batches()
            # Outside of the handler, so that nothing of the step that failed is held by its traceback.
            _free_memory()

    def _try_step(self, parts: list[list[torch.Tensor]]) -> StepResult:
        """Take one optimiser step over the batches of the loader, in those that the device bears."""
        size, device = self.device_batch_size, self.accelerator.device
        accumulated = self.training.per_device_batch_size // size * len(parts)
        self.weights_change = False
        return take_step(
            self.wrapped,
            self.optimizer,
            (
                [part.to(device, non_blocking=True) for part in smaller]
                for batch in parts
                for smaller in zip(*(torch.split(part, size) for part in batch), strict=True)
            ),
            loss=self.objective.loss,
            gradient_accumulation_steps=accumulated,
            max_grad_norm=self.optimization.max_grad_norm,
            scaler=self.accelerator.scaler,
        )

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
        if progress.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            said = f"The gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row are not finite"
            raise UserError(self._failed(said))

    def _note_weights_change(self, *_: Any) -> None:
        self.weights_change = True

    def _take_smaller_batches(self) -> None:
        """Halve what the device sees at once, and say so.

        Raises:
            UserError: It sees a single window, or the step cannot be repeated; what was learned is saved
                where it is whole.
        """
        size, training = self.device_batch_size, self.training
        share = training.gradient_accumulation_steps * training.per_device_batch_size
        what = self._out_of_memory()
        smaller = max((one for one in divisors(size) if one <= size // 2), default=None)
        advice = (
            "`m2v plan` says what takes less: gradient checkpointing, fewer layers, shorter windows, "
            "another tuning.method."
        )
        if self.weights_change:
            raise UserError(
                f"{what} The weights were being changed already, so the step cannot be repeated. {advice} "
                f"The last checkpoint, if there is one, is in {self.folder.checkpoints}."
            )
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"{what} With several processes none can change its batches alone. Go on with "
                f"--training.per_device_batch_size {smaller or 1} and "
                f"--training.gradient_accumulation_steps {share // (smaller or 1)}. {advice} The last "
                f"checkpoint, if there is one, is in {self.folder.checkpoints}."
            )
        if smaller is None:
            self._save()
            raise UserError(
                f"{what} There is nothing to divide. {advice} The {self.progress.step} steps before are "
                f"saved in {self.folder.checkpoints}."
            )
        self.device_batch_size = smaller
        logger.warning(
            "%s Going on with batches of %d, %d of them accumulated: a total batch of %d as before. The "
            "step is taken again; nothing is lost.",
            what,
            smaller,
            share // smaller,
            self.batches.total_batch_size,
        )

    def _out_of_memory(self) -> str:
        """Return what happened, what was planned, and what was measured where that is possible."""
        planned = f"; {gigabytes(self.plan.peak_bytes)} were planned" if self.plan else ""
        measured = (
            f"; {gigabytes(torch.cuda.max_memory_allocated())} were in use at most"
            if torch.cuda.is_available()
            else ""
        )
        return (
            f"Step {self.progress.step + 1} ran out of memory with batches of "
            f"{self.device_batch_size}{planned}{measured}."
        )

    def _log_step(self, gradient_norm: float) -> None:
        none = torch.tensor(math.nan, device=self.accelerator.device)  # all were skipped
        mean = torch.stack(self.losses).mean() if self.losses else none
        loss = float(self.accelerator.reduce(mean, reduction="mean"))
        self.losses = []
        measures = {
            name: float(self.accelerator.reduce(value, reduction="mean"))
            for name, value in self.objective.take_measures().items()
        }
        values = {"loss": loss, "gradient_norm": gradient_norm, **measures}
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        line = {k: json_number(v) for k, v in values.items()}
        skipped = {"num_skipped_steps": self.progress.num_skipped_steps}
        self._log({**line, **skipped, "learning_rates": rates}, tracked={**values, **skipped})
        self.objective.check_measures(measures)
        epoch = f"Epoch {self.progress.epoch + 1} of {self.training.epochs}, loss {loss:.4f}"
        self.bar.update(self.bar_task, description=epoch)

    def _failed(self, what: str) -> str:
        return (
            f"{what} at step {self.progress.step}: learning has failed. Lower optimizer.learning_rate (and "
            "backbone_learning_rate), or set training.mixed_precision to 'no'. The last checkpoint, if there "
            f"is one, is in {self.folder.checkpoints}."
        )

    def _judge_epoch(self) -> None:
        """Judge what is held out, keep the weights if they are the best, end the epoch."""
        progress, objective = self.progress, self.objective
        try:
            values = objective.judge(
                accelerator=self.accelerator,
                batch_size=self.training.eval_batch_size,
                num_workers=self.num_workers,
                bar=self.bar,
                watch=self.watch,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Judging tracks ran out of memory with {self.training.eval_batch_size} windows at once. "
                "Lower training.eval_batch_size. The last checkpoint, if there is one, is in "
                f"{self.folder.checkpoints}."
            ) from error
        except DataError as fault:
            self._save_and_stop(fault)
        except NotFiniteError as error:
            said = "What the model says of the validation tracks is not finite"
            raise UserError(self._failed(said)) from error
        selection = objective.selection_metric
        if selection is not None and math.isnan(values[selection]):
            logger.warning(
                "The validation tracks do not give %s a value, so no epoch can be called the best: the last "
                "one is kept. Give the validation split more tracks.",
                objective.metric_names[selection],
            )
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
            if self.accelerator.is_main_process:
                save_best(self.model, self.folder.checkpoints)
        else:
            progress.epochs_without_improvement += 1
        progress.is_finished = (
            progress.epoch >= self.training.epochs
            or progress.epochs_without_improvement >= self.training.early_stopping_patience
        )
        self._log(
            {"validation": {k: json_number(v) for k, v in values.items()}},
            tracked={f"validation/{k}": v for k, v in values.items()},
        )
        logger.info(
            "Epoch %d of %d: validation %s%s",
            progress.epoch,
            self.training.epochs,
            ", ".join(f"{objective.metric_names[name]} {v:.4f}" for name, v in values.items()),
            ", the best so far" if is_best and selection is not None else "",
        )

    def _log(self, line: dict[str, Any], *, tracked: dict[str, float]) -> None:
        self.accelerator.log(tracked, step=self.progress.step)
        if self.accelerator.is_main_process:
            # The epoch that the steps belong to: `progress.epoch` epochs are complete.
            epoch = self.progress.epoch + (self.progress.step_in_epoch > 0)
            self.folder.log({"step": self.progress.step, "epoch": epoch, **line})

    def _resume(self) -> None:
        if not self.folder.has_checkpoint:
            if self.accelerator.is_main_process:
                self.folder.cut_metrics(0)  # of a run that was killed before its first checkpoint
            return
        self.progress, metrics_bytes = load_last(
            self.folder.checkpoints,
            model=self.model,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
        )
        self.watch.found = self.progress.bad_tracks
        device = self.accelerator.device
        self.losses = [torch.tensor(x, device=device) for x in self.progress.unlogged_losses]
        if self.accelerator.is_main_process:
            self.folder.cut_metrics(metrics_bytes)
        logger.info("Going on after step %d of %d.", self.progress.step, self.total_steps)

    def _save(self) -> None:
        self.progress.unlogged_losses = [float(loss) for loss in self.losses]
        self.progress.bad_tracks = self.watch.found
        save_last(
            self.folder.checkpoints,
            model=self.model,
            optimizer=self.optimizer,
            accelerator=self.accelerator,
            progress=self.progress,
            metrics_bytes=self.folder.metrics_bytes(),
        )

    def _stop_if_asked(self, *, save: bool = False) -> None:
        if not self.stop.is_agreed(self.accelerator):
            return
        if save:
            self._save()
        raise Stopped(
            self.stop.number,
            f"Stopped after step {self.progress.step} of {self.total_steps}, which is saved. Go on with:\n"
            f"  {self.folder.resume_command()}",
        )


def _random_state() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what a step draws from: dropout on the CPU and on the card."""
    card = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), card


def _set_random_state(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    cpu, card = state
    torch.set_rng_state(cpu)
    if card is not None:
        torch.cuda.set_rng_state(card)


def _free_memory() -> None:
    """Give back what a failed step left: tensors in cycles, and blocks that the allocator keeps."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
