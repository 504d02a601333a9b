"""Base class of single-label classification tasks."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.calibration import TemperatureScaling, fit_temperature
from m2v_finetune.config.ranges import in_range
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track, as_labels, problem_list, require_column
from m2v_finetune.data.values import label_text
from m2v_finetune.errors import UserError
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.clips import ClipTask, EvaluatedClip, ProblemType, stack_evaluated
from m2v_finetune.tasks.label_names import assumed_labels, check_label_names, saved_labels
from m2v_finetune.tasks.losses import balanced_class_weights, class_loss
from m2v_finetune.tasks.task import Prediction


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Settings of the class labels.

    Args:
        label_column: Column with a track's class; the recipe's name if not given.
        labels: Classes; all that occur in the training split if not given.
        class_weight: Weight of a class in the loss. ``none`` is 1; ``balanced`` is inverse to the number of
            training tracks. Try ``balanced`` where macro F1 matters more than accuracy.
        label_smoothing: Share of the target that is spread over all classes, from 0 to below 1. 0.1 is
            usual; try it where labels are noisy: predictions are less confident.
    """

    label_column: str
    labels: list[str] | None = None
    class_weight: Literal["none", "balanced"] = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        in_range("task.label_smoothing", self.label_smoothing, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Classification(ClipTask):
    """Classification: one class of many for a track.

    Attributes:
        labels: Classes, in the order of the logits.
        label_column: Column of the manifest.
        class_weights: Weight of each class in the loss; empty for 1. Not saved with a model.
        label_smoothing: Share of the target that is spread over all classes.
        calibration: Calibration of the probabilities; None before it is fitted.
    """

    name: ClassVar[str]
    selection_metric: ClassVar[str] = "accuracy"
    problem_type: ClassVar[ProblemType | None] = "single_label_classification"
    metric_names: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy", "macro_f1": "macro F1"}

    labels: tuple[str, ...]
    label_column: str
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    calibration: TemperatureScaling | None = None

    @classmethod
    def from_tracks(
        cls, config: ClassificationConfig, splits: Mapping[str, Sequence[Track]]
    ) -> Self:
        """Make the task with the classes of the training tracks; check the class of every track.

        Raises:
            UserError: The column is in no track; a class of the config is on no training track; a track
                has no class, more than one, or an unknown one.
        """
        task = cls.from_training(config, splits["train"])
        task.check_labels([track for members in splits.values() for track in members])
        return task

    @classmethod
    def from_training(cls, config: Any, tracks: Sequence[Track]) -> Self:
        """Make the task with the classes of the training tracks that have one.

        Raises:
            UserError: The column, or a class of the config, is on no training track; or there is one class.
        """
        column = config.label_column
        require_column(tracks, column)
        in_training: Counter[str] = Counter()
        for track in tracks:
            with suppress(ValueError):  # listed by `label_problems`
                in_training[cls.read_label(track, column)] += 1
        labels = sort_labels(in_training)
        if config.labels is not None:
            labels = tuple(label_text(str(label)) for label in config.labels)
        if in_training:
            check_label_names(labels, in_training, column=column)
        if len(labels) == 1:
            raise UserError(
                f"The only class is '{labels[0]}' (task.labels, or the column '{column}' of the training "
                "tracks), so there is nothing to learn. In folders, a class is the folder below the splits "
                "or at the top; `m2v data check SOURCE` lists the labels that were found.",
                code="labels-single-class",
            )
        is_balanced = config.class_weight == "balanced" and bool(in_training)
        return cls(
            labels=labels,
            label_column=column,
            class_weights=balanced_class_weights(labels, in_training) if is_balanced else (),
            label_smoothing=config.label_smoothing,
        )

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """Make the task from its settings; assume classes that only tracks define."""
        labels = assumed_labels(config.labels)
        return cls(
            labels=labels,
            label_column=config.label_column,
            class_weights=(1.0,) * len(labels) if config.class_weight == "balanced" else (),
            label_smoothing=config.label_smoothing,
        )

    @classmethod
    def read_label(cls, track: Track, column: str) -> str:
        """Return a track's class.

        Raises:
            ValueError: There is no class, or more than one; the message quotes the cell.
        """
        label = as_label(track, column)
        if label is None:
            raise ValueError(f"one class is needed, found {track.columns.get(column)!r}")
        return label

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild the task from the result of `to_dict`; raise ValueError if it is not valid."""
        column = settings["label_column"]
        if not isinstance(column, str):
            raise ValueError(f"its label_column is {column!r}, not a name")
        return cls(
            labels=saved_labels(settings["labels"]),
            label_column=column,
            calibration=TemperatureScaling.from_dict(settings.get("calibration")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "label_column": self.label_column,
            **({} if self.calibration is None else {"calibration": self.calibration.to_dict()}),
        }

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Raise `UserError` that lists every track without exactly one of the classes."""
        require_column(tracks, self.label_column)
        problems = [problem for found in self.label_problems(tracks) for problem in found]
        if problems:
            raise UserError(
                problem_list(
                    f"Tracks whose {self.label_column} is not one of the classes",
                    problems,
                    f"Correct them, or skip these tracks with --data.on_bad_track skip. The classes "
                    f"are: {', '.join(self.labels)}. (If the split was made for you, another --run.seed "
                    "makes another one.)",
                ),
                code="labels-unusable",
            )

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the problem of each track's class; none for a known class."""
        return [self._label_problems(track) for track in tracks]

    def _label_problems(self, track: Track) -> list[str]:
        try:
            label = self.read_label(track, self.label_column)
        except ValueError as error:
            return [f"{track.origin}: {error}"]
        return [] if label in self.labels else [f"{track.origin}: unknown class '{label}'"]

    def targets(self, track: Track, label_transform: LabelTransform) -> NDArray[np.float32]:
        """Return the number of the track's class, ()."""
        label = self.read_label(track, self.label_column)
        return np.asarray(self.labels.index(label), dtype=np.float32)

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a waveform, and of the number of a class."""
        return (window.num_samples,), ()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (batch, num_outputs) and targets.

        Targets are classes (batch,), or after mixup probabilities (batch, num_outputs).
        """
        return class_loss(
            outputs,
            targets,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities of windows (batch, num_outputs)."""
        return outputs.softmax(dim=-1)

    def calibrate(self, evaluated: Sequence[EvaluatedClip]) -> Self:
        """Return the task with a temperature, fitted on validation tracks; without if they are few."""
        targets, scores = stack_evaluated(evaluated)
        return replace(self, calibration=fit_temperature(scores, targets.astype(int)))

    def decide(self, scores: Mapping[str, float]) -> list[str]:
        """Return the class of highest probability."""
        return [max(scores, key=lambda label: scores[label])]

    def compute_metrics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, float]:
        """Return the metrics of `metric_names` without intervals; nan where one does not exist."""
        metrics = self.summarize(evaluated, seed=0)["metrics"]
        return {
            name: math.nan if metrics[name]["value"] is None else metrics[name]["value"]
            for name in self.metric_names
        }

    def summarize(self, evaluated: Sequence[EvaluatedClip], *, seed: int) -> dict[str, Any]:
        """Return accuracy and macro F1 with intervals over tracks, per class, and the confusion matrix."""
        from m2v_finetune.metrics.multiclass import multiclass_report

        targets, scores = stack_evaluated(evaluated)
        return {
            **multiclass_report(targets.astype(int), scores, self.labels, seed=seed),
            "about_metrics": "Macro F1 is the mean over the classes.",
        }

    def statistics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, Statistic]:
        """Return accuracy and macro F1 as statistics of counts of draws."""
        from m2v_finetune.metrics.multiclass import multiclass_statistics

        targets, scores = stack_evaluated(evaluated)
        return multiclass_statistics(targets.astype(int), scores)

    def label_statistics(
        self, evaluated: Sequence[EvaluatedClip]
    ) -> dict[str, dict[str, Statistic]]:
        """Return the F1 of each class."""
        from m2v_finetune.metrics.multiclass import class_f1

        targets, scores = stack_evaluated(evaluated)
        return {
            label: {"f1": class_f1(targets.astype(int), scores, number)}
            for number, label in enumerate(self.labels)
        }

    def prediction_row(self, evaluated: EvaluatedClip) -> dict[str, str | float]:
        """Return target, prediction, and the probability of each class."""
        return {
            "label": self.labels[int(evaluated.target)],
            "prediction": self.labels[int(evaluated.scores.argmax())],
            **super().prediction_row(evaluated),
        }

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[EvaluatedClip],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot the confusion matrix."""
        from m2v_finetune.plotting.confusion import plot_confusion

        plot_confusion(
            np.array(results["confusion"]),
            self.labels,
            folder / "confusion.png",
            title=f"Confusion of {self.name}",
        )
        return {"confusion.png": "Confusion matrix of the test tracks"}


def as_label(track: Track, column: str) -> str | None:
    """Return the one class in a track's column, as text; None where there is none, or several.

    It is read as tags are (`values.as_texts`).

    >>> def track(cell):
    ...     return Track(
    ...         id="", path=Path(), split=None, columns={"c": cell}, origin="", folder=Path()
    ...     )
    >>> [as_label(track(cell), "c") for cell in (" jazz ", ["jazz"], 0, "", "jazz;rock")]
    ['jazz', 'jazz', '0', None, None]
    """
    try:
        labels = as_labels(track, column)
    except ValueError:
        return None
    return labels[0] if len(labels) == 1 else None


def sort_labels(labels: Mapping[str, int]) -> tuple[str, ...]:
    """Return labels in order: numbers by their value, then text.

    >>> sort_labels({"10": 1, "9": 1, "a": 1, "09": 1})
    ('09', '9', '10', 'a')
    """

    def order(label: str) -> tuple[bool, int, str, str]:
        digits = label.lstrip("0") if label.isdecimal() else label
        return (not label.isdecimal(), len(digits) if label.isdecimal() else 0, digits, label)

    return tuple(sorted(labels, key=order))
