"""What a run learns by and how it is judged, as the loop asks for it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.progress import Progress
from torch import Tensor

from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Inputs
from m2v_finetune.data.reading import WorkerError, read_batches, training_loader
from m2v_finetune.errors import Stopped
from m2v_finetune.model import NotFiniteError, TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.windows import FixedWindows
from m2v_finetune.training.evaluation import TOO_LITTLE_MEMORY, evaluate_tracks
from m2v_finetune.training.faults import BadTrackPolicy, gather_errors
from m2v_finetune.training.signals import Interruptible
from m2v_finetune.training.standardization import measure_standardization


class Objective(Protocol):
    """What the loop asks, beside running the model."""

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Of the validation metrics, for people."""
        ...

    @property
    def selection_metric(self) -> str | None:
        """The metric by which an epoch is the best; None where the last one always is."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch."""
        ...

    def start(
        self,
        batches: Iterable[Sequence[Tensor]],
        *,
        accelerator: Accelerator,
        bar: Progress,
        num_batches: int,
    ) -> None:
        """Measure what a new run has to know of its data before the first step.

        Args:
            batches: Of the first epoch, this process's share.
            accelerator: Knows the precision and the processes.
            bar: Shows how far it is.
            num_batches: Of ``batches``.
        """
        ...

    def evaluate(
        self,
        *,
        accelerator: Accelerator,
        batch_size: int,
        num_workers: int,
        bar: Progress,
        bad_track_policy: BadTrackPolicy,
        interruptible: Interruptible,
    ) -> dict[str, float]:
        """Return the validation metrics, the same on every process.

        Raises:
            Stopped: A process got a signal inside of ``interruptible``; the same on every process.
            NotFiniteError: What the model says is not finite.
            DataError: Data cannot be read any more.
        """
        ...

    def start_step(self) -> None:
        """Forget the batches of a step that was broken off, as it is taken again."""
        ...

    def end_step(self, num_updates: int) -> None:
        """Do what follows a change of the weights.

        Args:
            num_updates: How often they were changed before.
        """
        ...

    def pop_metrics(self) -> dict[str, Tensor]:
        """Return what is logged beside the loss: means since this was last asked, scalars."""
        ...

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Stop a run that its measures, means over all processes, show to have failed.

        Args:
            metrics: What `pop_metrics` returned.
            num_updates: How often the weights were changed.

        Raises:
            UserError: It has.
        """
        ...


@dataclass(frozen=True)
class TaskObjective:
    """The loss of a task, and its metrics of whole tracks.

    Attributes:
        model: What learns.
        validation: Tracks of the validation split.
        inputs: What reads their windows, in place of the task.
    """

    model: TaskModel
    validation: Sequence[CheckedTrack]
    inputs: Inputs | None = None

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Names for people."""
        return self.model.task.metric_names

    @property
    def selection_metric(self) -> str:
        """By the task."""
        return self.model.task.selection_metric

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the task's loss."""
        return self.model.task.loss(outputs, targets)

    def start(
        self,
        batches: Iterable[Sequence[Tensor]],
        *,
        accelerator: Accelerator,
        bar: Progress,
        num_batches: int,
    ) -> None:
        """Measure mean and deviation of what the head reads, where it standardises that."""
        measure_standardization(
            self.model, batches, accelerator=accelerator, bar=bar, num_batches=num_batches
        )

    def evaluate(
        self,
        *,
        accelerator: Accelerator,
        batch_size: int,
        num_workers: int,
        bar: Progress,
        bad_track_policy: BadTrackPolicy,
        interruptible: Interruptible,
    ) -> dict[str, float]:
        """Return the task's metrics of the validation tracks."""
        evaluated = evaluate_tracks(
            self.model,
            self.validation,
            accelerator=accelerator,
            batch_size=batch_size,
            num_workers=num_workers,
            bar=bar,
            bad_track_policy=bad_track_policy,
            split="validation",
            inputs=self.inputs,
            interruptible=interruptible,
        )
        return self.model.task.compute_metrics(evaluated)

    def start_step(self) -> None:
        """Nothing is kept of a batch."""

    def end_step(self, num_updates: int) -> None:
        """Nothing follows."""

    def pop_metrics(self) -> dict[str, Tensor]:
        """Nothing is logged beside the loss."""
        return {}

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Nothing to check."""


@dataclass(frozen=True)
class PretrainingObjective:
    """The loss at masked frames; validation is the same loss on windows and masks that never change.

    Attributes:
        model: What learns.
        validation: Windows that are held out.
    """

    model: PretrainingModel
    validation: FixedWindows

    @property
    def metric_names(self) -> Mapping[str, str]:
        """Names for people."""
        return self.model.metric_names

    @property
    def selection_metric(self) -> None:
        """None: the teacher moves, so losses of two epochs are not distances to the same thing."""
        return None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error at masked frames."""
        return self.model.loss(outputs, targets)

    def start(
        self,
        batches: Iterable[Sequence[Tensor]],
        *,
        accelerator: Accelerator,
        bar: Progress,
        num_batches: int,
    ) -> None:
        """Nothing to measure."""

    def evaluate(
        self,
        *,
        accelerator: Accelerator,
        batch_size: int,
        num_workers: int,
        bar: Progress,
        bad_track_policy: BadTrackPolicy,
        interruptible: Interruptible,
    ) -> dict[str, float]:
        """Return the means over the windows that are held out; each is heard by one process."""
        own = range(accelerator.process_index, len(self.validation), accelerator.num_processes)
        positions = [(0, number) for number in own]
        loader = training_loader(
            self.validation.masked,
            [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)],
            num_workers=num_workers,
            timeout_seconds=bad_track_policy.timeout_seconds,
            is_persistent=False,
        )

        def window_metrics(waveforms: Tensor, masks: Tensor) -> Tensor:
            """Return the values of each window, (batch, metrics)."""
            waveforms, masks = waveforms.to(accelerator.device), masks.to(accelerator.device)
            with torch.inference_mode(), accelerator.autocast():
                outputs = self.model(waveforms, masks)
            return torch.stack(self.model.window_metrics(outputs, masks), dim=1)

        self.model.eval()
        bar_task = bar.add_task("Judging windows", total=len(own))
        rows: list[list[float]] = []
        failure, stopped = None, None
        bad_tracks: dict[str, str] = {}
        try:
            with interruptible():
                for *parts, info in read_batches(loader):
                    bad_tracks |= info.bad_tracks
                    if not parts:
                        failure = "None of the windows that are held out can be read."
                        break
                    waveforms, masks, _ = parts
                    rows += self.model.micro_batcher.run(
                        window_metrics, [waveforms, masks]
                    ).tolist()
                    bar.advance(bar_task, len(waveforms))
        except Stopped as signalled:
            stopped = signalled
        except WorkerError as error:
            failure = str(error)
        except torch.OutOfMemoryError:
            failure = TOO_LITTLE_MEMORY
        bar.remove_task(bar_task)
        bad_track_policy.take(
            "validation", gather_errors(accelerator, failure, bad_tracks, stopped=stopped)
        )
        # In the order of the windows, so that the sums of one process and of two are the same.
        numbered = sorted(gather_object(list(zip(own, rows, strict=True))))
        values = (
            torch.tensor([row for _, row in numbered], dtype=torch.float64).mean(dim=0).tolist()
        )
        if not all(map(math.isfinite, values)):
            raise NotFiniteError("the music that is held out")
        return dict(zip(self.model.metric_names, values, strict=True))

    def start_step(self) -> None:
        """Forget the variances of a step that was broken off."""
        self.model.start_step()

    def end_step(self, num_updates: int) -> None:
        """Let the teacher follow."""
        self.model.end_step(num_updates)

    def pop_metrics(self) -> dict[str, Tensor]:
        """Return variances of targets and predictions."""
        return self.model.pop_metrics()

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Stop where the representations have collapsed."""
        self.model.check_collapse(metrics, num_updates=num_updates)
