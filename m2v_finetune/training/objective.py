"""Objectives of the trainer: validation of a task, and of pre-training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.progress import Progress
from torch import Tensor

from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Inputs
from m2v_finetune.data.reading import training_loader
from m2v_finetune.data.workers import WorkerError, read_batches
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.model import NotFiniteError, TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.replay import PretrainingWindows
from m2v_finetune.training.evaluation import TOO_LITTLE_MEMORY, evaluate_tracks
from m2v_finetune.training.faults import gather_errors
from m2v_finetune.training.run import Run
from m2v_finetune.training.signals import Interruptible
from m2v_finetune.training.standardization import measure_standardization


class Objective(ABC):
    """Validation and step callbacks of a run; the loss is an argument of the trainer."""

    @property
    @abstractmethod
    def metric_names(self) -> Mapping[str, str]:
        """Human-readable names of the validation metrics."""

    @property
    @abstractmethod
    def selection_metric(self) -> str | None:
        """Metric that selects the best epoch; None if the last epoch is the best."""

    @abstractmethod
    def evaluate(
        self,
        run: Run,
        *,
        batch_size: int,
        num_workers: int,
        bar: Progress,
        interruptible: Interruptible,
    ) -> dict[str, float]:
        """Return the validation metrics, the same on every process.

        Args:
            run: Processes, and the policy for bad tracks.
            batch_size: Windows of a batch.
            num_workers: Number of processes that read audio.
            bar: Progress bar.
            interruptible: Context in which a signal raises `Stopped`.

        Raises:
            Stopped: A process received a signal; the same on every process.
            NotFiniteError: The outputs of the model are not finite.
            DataError: Data can no longer be read.
        """

    def start(  # noqa: B027 (most objectives measure nothing)
        self,
        batches: Iterable[Sequence[Tensor]],
        *,
        accelerator: Accelerator,
        bar: Progress,
        num_batches: int,
    ) -> None:
        """Measure statistics of the data before the first step of a new run.

        Args:
            batches: Batches of the first epoch, the share of this process.
            accelerator: Precision and processes.
            bar: Progress bar.
            num_batches: Number of ``batches``.
        """

    def start_step(self, number: int) -> None:  # noqa: B027
        """Forget the batches of a step that failed, before it is taken again.

        Args:
            number: Number of the step, from 1.
        """

    def end_step(self, num_updates: int) -> None:  # noqa: B027
        """Act on a change of the weights.

        Args:
            num_updates: Number of changes before.
        """

    def pop_metrics(self) -> dict[str, Tensor]:
        """Return scalars to log beside the loss: means since the last call."""
        return {}

    def check_collapse(  # noqa: B027
        self, metrics: Mapping[str, float], *, num_updates: int
    ) -> None:
        """Stop a run whose metrics show that it failed.

        Args:
            metrics: Means of `pop_metrics` over all processes.
            num_updates: Number of changes of the weights.

        Raises:
            UserError: The run failed.
        """


@dataclass(frozen=True)
class TaskObjective(Objective):
    """Metrics of a task over tracks.

    Attributes:
        model: Model to train.
        validation: Tracks of the validation split.
        inputs: Function that reads a window; that of the task if None.
    """

    model: TaskModel
    validation: Sequence[CheckedTrack]
    inputs: Inputs | None = None

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Human-readable names of the validation metrics."""
        return self.model.task.metric_names

    @property
    def selection_metric(self) -> str:
        """The task's metric."""
        return self.model.task.selection_metric

    def start(
        self,
        batches: Iterable[Sequence[Tensor]],
        *,
        accelerator: Accelerator,
        bar: Progress,
        num_batches: int,
    ) -> None:
        """Measure mean and standard deviation of the head's input, if the head standardises it."""
        measure_standardization(
            self.model, batches, accelerator=accelerator, bar=bar, num_batches=num_batches
        )

    def evaluate(
        self,
        run: Run,
        *,
        batch_size: int,
        num_workers: int,
        bar: Progress,
        interruptible: Interruptible,
    ) -> dict[str, float]:
        """Return the task's metrics of the validation tracks."""
        evaluated = evaluate_tracks(
            self.model,
            self.validation,
            accelerator=run.accelerator,
            batch_size=batch_size,
            num_workers=num_workers,
            bar=bar,
            bad_track_policy=run.bad_tracks,
            split="validation",
            inputs=self.inputs,
            interruptible=interruptible,
        )
        return self.model.task.compute_metrics(evaluated.own)


@dataclass(frozen=True)
class PretrainingObjective(Objective):
    """Validation of pre-training: its loss on windows and masks that never change.

    Attributes:
        model: Model to train.
        validation: Windows of the validation split, of which those of epoch 0 are evaluated.
    """

    model: PretrainingModel
    validation: PretrainingWindows

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Human-readable names of the validation metrics."""
        return self.model.metric_names

    @property
    def selection_metric(self) -> None:
        """None: the teacher changes, so the losses of two epochs cannot be compared."""
        return None

    def evaluate(
        self,
        run: Run,
        *,
        batch_size: int,
        num_workers: int,
        bar: Progress,
        interruptible: Interruptible,
    ) -> dict[str, float]:
        """Return the means over the validation windows; each is evaluated by one process."""
        accelerator = run.accelerator
        own = range(accelerator.process_index, len(self.validation), accelerator.num_processes)
        positions = [(0, number) for number in own]
        loader = training_loader(
            self.validation,
            [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)],
            num_workers=num_workers,
            timeout_seconds=run.bad_tracks.timeout_seconds,
            is_persistent=False,
        )

        def window_metrics(*parts: Tensor) -> Tensor:
            """Return the values of each window, (batch, metrics)."""
            *inputs, targets = (part.to(accelerator.device) for part in parts)
            with torch.inference_mode(), accelerator.autocast():
                outputs = self.model(*inputs)
            with torch.inference_mode():
                return self.model.window_metrics(outputs.float(), targets)

        self.model.eval()
        bar_task = bar.add_task("Evaluating windows", total=len(own))
        rows: list[list[float]] = []
        failure: str | UserError | None = None
        stopped = None
        bad_tracks: dict[str, str] = {}
        try:
            with interruptible():
                for *parts, info in read_batches(loader):
                    bad_tracks |= info.bad_tracks
                    if not parts:
                        failure = "None of the validation windows can be read."
                        break
                    rows += self.model.micro_batcher.run(window_metrics, parts).tolist()
                    bar.advance(bar_task, len(parts[0]))
        except Stopped as signalled:
            stopped = signalled
        except WorkerError as error:
            failure = error
        except torch.OutOfMemoryError:
            failure = TOO_LITTLE_MEMORY
        bar.remove_task(bar_task)
        run.bad_tracks.take(
            "validation", gather_errors(accelerator, failure, bad_tracks, stopped=stopped)
        )
        # In the order of the windows, so that the sums of one process and of two are the same.
        numbered = sorted(gather_object(list(zip(own, rows, strict=True))))
        values = (
            torch.tensor([row for _, row in numbered], dtype=torch.float64).mean(dim=0).tolist()
        )
        if not all(map(math.isfinite, values)):
            raise NotFiniteError("the validation music")
        return dict(zip(self.model.metric_names, values, strict=True))

    def start_step(self, number: int) -> None:
        """Forget what was measured in a step that failed."""
        self.model.start_step(number)

    def end_step(self, num_updates: int) -> None:
        """Update a teacher, and count the step."""
        self.model.end_step(num_updates)

    def pop_metrics(self) -> dict[str, Tensor]:
        """Return what the model watches."""
        return self.model.pop_metrics()

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Raise `UserError` if the representations have collapsed."""
        self.model.check_collapse(metrics, num_updates=num_updates)
