"""Emotion, and any other regression: numbers for a track, such as valence and arousal."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track, problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.labels.problems import parse_number
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.clip_prediction import ClipPrediction
from m2v_finetune.tasks.clips import ClipTask, EvaluatedClip, ProblemType, stack_evaluated
from m2v_finetune.tasks.label_names import saved_labels
from m2v_finetune.tasks.task import Prediction, WindowScores


@dataclass(frozen=True, kw_only=True)
class EmotionConfig:
    """Settings of the regression targets.

    Args:
        target_columns: Columns with a track's numbers, in any unit.
    """

    target_columns: list[str] = field(default_factory=lambda: ["arousal", "valence"])

    def __post_init__(self) -> None:
        """Check that there are columns, without duplicates."""
        if not self.target_columns or len(set(self.target_columns)) < len(self.target_columns):
            raise UserError(
                f"task.target_columns is {self.target_columns}. Name one column or more, without duplicates.",
                code="target-columns-not-distinct",
            )

    @property
    def label_column(self) -> str:
        """First column."""
        return self.target_columns[0]


@dataclass(frozen=True, kw_only=True)
class Emotion(ClipTask):
    """Regression of a track's numbers: standardised in training, predicted in the units of the data.

    Attributes:
        labels: Columns, in the order of the outputs.
        means: Mean of each column over the training tracks.
        stds: Standard deviation of each column over the training tracks.
    """

    name: ClassVar[str] = "emotion"
    settings_class: ClassVar[type[Any]] = EmotionConfig
    selection_metric: ClassVar[str] = "r2"
    usage_example: ClassVar[str] = ".scores"
    problem_type: ClassVar[ProblemType | None] = "regression"

    labels: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @classmethod
    def from_tracks(cls, config: EmotionConfig, splits: Mapping[str, Sequence[Track]]) -> "Emotion":
        """Make the task with mean and std of the training tracks; check the numbers of every track.

        Raises:
            UserError: A column is in no track, or constant; or lists each cell that is not a number.
        """
        unscaled = cls.from_settings(config)
        unscaled.check_labels([track for members in splits.values() for track in members])
        return cls.from_training(config, splits["train"])

    @classmethod
    def from_training(cls, config: EmotionConfig, tracks: Sequence[Track]) -> "Emotion":
        """Make the task with mean and std of the training tracks that have all numbers.

        Raises:
            UserError: A column is in no track, or constant.
        """
        unscaled = cls.from_settings(config)
        unscaled.require_columns(tracks)
        labels = unscaled.labels
        rows = [_numbers(track, labels) for track in tracks]
        rows = [row for row in rows if np.isfinite(row).all()]
        if not rows:
            return unscaled  # `label_problems` lists all of them
        values = np.stack(rows)
        spans = np.ptp(values, axis=0)  # the std of equal numbers may be rounded to more than 0
        constant = [label for label, span in zip(labels, spans, strict=True) if span == 0]
        if constant:
            raise UserError(
                f"All training tracks have the same {', '.join(constant)}, so there is nothing to train on. "
                "Remove it from task.target_columns.",
                code="targets-constant",
            )
        return cls(
            labels=labels,
            means=tuple(values.mean(axis=0).tolist()),
            stds=tuple(values.std(axis=0).tolist()),
        )

    @classmethod
    def from_settings(cls, config: EmotionConfig) -> "Emotion":
        """Make the task from its settings; mean and std are not known."""
        labels = tuple(config.target_columns)
        return cls(labels=labels, means=(0.0,) * len(labels), stds=(1.0,) * len(labels))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Emotion":
        """Rebuild the task from the result of `to_dict`; raise ValueError if it is not valid."""
        labels = saved_labels(settings["labels"])
        means, stds = (tuple(map(float, settings[key])) for key in ("means", "stds"))
        is_finite = all(map(math.isfinite, means + stds))
        if not len(labels) == len(means) == len(stds) or not is_finite or min(stds) <= 0:
            raise ValueError("its means and stds are not those of its labels")
        return cls(labels=labels, means=means, stds=stds)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "means": list(self.means),
            "stds": list(self.stds),
        }

    @property
    def label_column(self) -> str:
        """First column."""
        return self.labels[0]

    @property
    def metric_names(self) -> Mapping[str, str]:
        """R2 as a mean and of each column; the root mean squared error of each column in its own unit."""
        return {
            "r2": "R2, mean" if len(self.labels) > 1 else "R2",
            **{f"r2_{label}": f"R2 of {label}" for label in self.labels},
            **{f"rmse_{label}": f"RMSE of {label}" for label in self.labels},
        }

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Raise `UserError` that lists every cell that is not a finite number."""
        self.require_columns(tracks)
        problems = [problem for found in self.label_problems(tracks) for problem in found]
        if problems:
            raise UserError(
                problem_list(
                    "Tracks without a number in a target column",
                    problems,
                    "Correct them, or skip these tracks with --data.on_bad_track skip.",
                ),
                code="labels-unusable",
            )

    def require_columns(self, tracks: Sequence[Track]) -> None:
        """Raise `UserError` where no track has a column."""
        found = sorted({column for track in tracks for column in track.columns})
        missing = [label for label in self.labels if label not in found]
        if missing:
            raise UserError(
                f"No track has a column {', '.join(map(repr, missing))}. There are: "
                f"{', '.join(found) or 'none'}. Name those with the numbers by --task.target_columns of a "
                "run, or rename them.",
                code="column-missing",
            )

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the cells of each track that are not finite numbers."""
        return [
            [
                f"{track.origin}: {label} is {track.columns.get(label)!r}, which is not a finite number"
                for label in self.labels
                if not math.isfinite(_number(track.columns.get(label)))
            ]
            for track in tracks
        ]

    def targets(self, track: Track, label_transform: LabelTransform) -> NDArray[np.float32]:
        """Return the track's numbers in their own units, (num_outputs,)."""
        return _numbers(track, self.labels).astype(np.float32)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep emotions: all but changes of tempo, level and pitch."""
        return frozenset(Effect) - {Effect.TIME, Effect.LEVEL, Effect.PITCH}

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of standardised numbers.

        Args:
            outputs: (batch, num_outputs), standardised.
            targets: (batch, num_outputs), in their own units.
        """
        # By column, with plain numbers: a tensor of them would synchronise the device.
        columns = zip(targets.unbind(dim=-1), self.means, self.stds, strict=True)
        standardised = torch.stack([(of - mean) / std for of, mean, std in columns], dim=-1)
        return F.mse_loss(outputs, standardised)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the numbers of windows in their own units, (batch, num_outputs)."""
        return outputs * outputs.new_tensor(self.stds) + outputs.new_tensor(self.means)

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> ClipPrediction:
        """Return the mean over windows of each number, and those of each window."""
        return replace(super().predict(checked, windows), is_ranking=False)

    def compute_metrics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, float]:
        """Return R2, as a mean and of each column, without intervals; nan where one is undefined."""
        metrics = self.summarize(evaluated, seed=0)["metrics"]
        return {
            name: math.nan if metrics[name]["value"] is None else metrics[name]["value"]
            for name in self.metric_names
            if name.startswith("r2")
        }

    def summarize(self, evaluated: Sequence[EvaluatedClip], *, seed: int) -> dict[str, Any]:
        """Return R2 and root mean squared error of each column, with intervals over tracks."""
        from m2v_finetune.metrics.regression import regression_report

        targets, scores = stack_evaluated(evaluated)
        about = (
            "R2 is the share of the variance that is explained; RMSE is in the data's own units."
        )
        return {
            **regression_report(targets, scores, self.labels, seed=seed),
            "about_metrics": about,
        }

    def statistics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, Statistic]:
        """Return the metrics as statistics of counts of draws."""
        from m2v_finetune.metrics.regression import regression_statistics

        return regression_statistics(*stack_evaluated(evaluated), self.labels)

    def prediction_row(self, evaluated: EvaluatedClip) -> dict[str, str | float]:
        """Return target and prediction of each column."""
        reference = dict(zip(self.labels, evaluated.target.tolist(), strict=True))
        return {
            **{f"true_{name}": value for name, value in reference.items()},
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
        """Plot predictions over targets."""
        from m2v_finetune.plotting.regression import plot_regression

        targets, scores = stack_evaluated(evaluated)
        plot_regression(targets, scores, self.labels, folder / "regression.png")
        return {"regression.png": "Predictions over targets"}


def _numbers(track: Track, labels: Sequence[str]) -> NDArray[np.float64]:
    return np.array([_number(track.columns.get(label)) for label in labels])


def _number(cell: Any) -> float:
    """Return a cell as a number; nan if it is not a number."""
    if isinstance(cell, bool):
        return math.nan
    try:
        return parse_number(cell) if isinstance(cell, str) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan
