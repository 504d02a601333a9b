"""Tagging: any number of labels for a track, each with a probability."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.calibration import PlattScaling, fit_platt, fit_thresholds, saved_thresholds
from m2v_finetune.config.ranges import positive
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track, as_labels, problem_list, require_column
from m2v_finetune.data.values import label_text
from m2v_finetune.errors import UserError
from m2v_finetune.metrics.bootstrap import macro_statistics
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.clips import ClipTask, EvaluatedClip, ProblemType, stack_evaluated
from m2v_finetune.tasks.label_names import (
    assumed_labels,
    check_label_names,
    check_labels_vary,
    saved_labels,
)
from m2v_finetune.tasks.losses import balanced_pos_weights, tag_loss
from m2v_finetune.tasks.task import Prediction

# Words in a tag that make it false when a window is changed: MagnaTagATune has fast, slow, loud, quiet.
WORDS_CHANGED_BY = {
    Effect.TIME: {"fast", "slow", "uptempo", "downtempo", "tempo"},
    Effect.LEVEL: {"loud", "quiet", "soft"},
    Effect.PITCH: {"high", "low", "key"},
}


@dataclass(frozen=True, kw_only=True)
class TaggingConfig:
    """Settings of the tags.

    Args:
        label_column: Column with a track's labels: a JSON list, or in a CSV separated by ``;``.
        labels: Labels; all that occur in the training split if not given.
        ignore_unknown_labels: Whether to ignore the labels of tracks that are not among these.
        pos_weight: Weight of positive tracks in the loss. ``none`` is 1; ``balanced`` is the number of
            negative tracks divided by positive ones, for each label; or a number for all labels. Try
            ``balanced`` where rare labels matter; probabilities of rare labels are then too high.
        focal_gamma: Exponent of the focal loss, 0 (none) or at least 1: right and confident predictions count
            less. 2 is usual; try it where most labels are easy.
        threshold_precision: Least precision of a label's threshold on the validation tracks, above 0 to 1,
            for `m2v predict --decide`. Default: the threshold of highest F1. Try 0.9 where a wrong label
            costs more than a missing one.
    """

    label_column: str = "tags"
    labels: list[str] | None = None
    ignore_unknown_labels: bool = False
    pos_weight: Literal["none", "balanced"] | float = "none"
    focal_gamma: float = 0.0
    threshold_precision: float | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.threshold_precision is not None and not 0.0 < self.threshold_precision <= 1.0:
            raise UserError(
                f"task.threshold_precision is {self.threshold_precision}; it must be above 0 and at most 1.",
                code="settings-range",
            )
        if not isinstance(self.pos_weight, str):
            positive("task.pos_weight", self.pos_weight)
        if self.focal_gamma != 0 and not 1.0 <= self.focal_gamma < math.inf:
            raise UserError(
                f"task.focal_gamma is {self.focal_gamma}; it must be 0, or at least 1: below 1 the gradient "
                "of certain predictions is not finite.",
                code="settings-range",
            )


@dataclass(frozen=True, kw_only=True)
class Tagging(ClipTask):
    """Multi-label classification of tracks.

    Attributes:
        labels: Labels, in the order of the logits.
        label_column: Column of the manifest.
        ignores_unknown: Whether other labels of tracks are ignored.
        pos_weights: Weight of positives of each label in the loss; empty for 1. Not saved with a model.
        focal_gamma: Exponent of the focal loss.
        threshold_precision: Least precision of thresholds; that of highest F1 if None. Not saved with a
            model.
        calibration: Calibration of the probabilities; None before it is fitted.
        thresholds: Calibrated probability of each label from which a track has it, None for never; empty
            before they are fitted.
    """

    name: ClassVar[str] = "tagging"
    settings_class: ClassVar[type[Any]] = TaggingConfig
    selection_metric: ClassVar[str] = "roc_auc"
    problem_type: ClassVar[ProblemType | None] = "multi_label_classification"
    metric_names: ClassVar[Mapping[str, str]] = {
        "roc_auc": "ROC-AUC",
        "average_precision": "average precision",
    }

    labels: tuple[str, ...]
    label_column: str
    ignores_unknown: bool = False
    pos_weights: tuple[float, ...] = ()
    focal_gamma: float = 0.0
    threshold_precision: float | None = None
    calibration: PlattScaling | None = None
    thresholds: tuple[float | None, ...] = ()

    @classmethod
    def from_tracks(cls, config: TaggingConfig, splits: Mapping[str, Sequence[Track]]) -> "Tagging":
        """Make the task with the labels of the training tracks; check the labels of every track.

        Raises:
            UserError: The column is in no track; a label of the config is on no training track; a track
                has a label that is not in the config or not in training.
        """
        tracks = [track for members in splits.values() for track in members]
        task = cls.from_training(config, splits["train"])
        problems = [problem for found in task.label_problems(tracks) for problem in found]
        if problems:
            why = "not in task.labels" if config.labels is not None else "on no training track"
            raise UserError(
                problem_list(
                    f"Labels that cannot be used: they are not valid, or {why}",
                    problems,
                    "Correct them; or ignore unknown labels with --task.ignore_unknown_labels true; or skip "
                    "these tracks with --data.on_bad_track skip. "
                    "(If the split was made for you, another --run.seed makes another one.)",
                ),
                code="labels-unusable",
            )
        task.check_one_class(splits)
        return task

    @classmethod
    def from_training(cls, config: TaggingConfig, tracks: Sequence[Track]) -> "Tagging":
        """Make the task with the labels of the training tracks.

        Raises:
            UserError: There is none, or the column or a label of the config is on no training track.
        """
        require_column(tracks, config.label_column)
        in_training: Counter[str] = Counter()
        num_labelled = 0
        for track in tracks:
            with suppress(ValueError):  # listed by `label_problems`
                in_training.update(set(as_labels(track, config.label_column)))
                num_labelled += 1
        labels = tuple(sorted(in_training))
        if config.labels is not None:
            labels = tuple(map(label_text, config.labels))
        check_label_names(labels, in_training, column=config.label_column)
        return cls(
            labels=labels,
            label_column=config.label_column,
            ignores_unknown=config.ignore_unknown_labels,
            pos_weights=balanced_pos_weights(labels, in_training, num_labelled)
            if config.pos_weight == "balanced"
            else _equal_weights(config, labels),
            focal_gamma=config.focal_gamma,
            threshold_precision=config.threshold_precision,
        )

    def check_one_class(self, splits: Mapping[str, Sequence[Track]]) -> None:
        """Check that labels are on a part of the tracks of each split (`label_names.check_labels_vary`)."""
        check_labels_vary(
            self.labels,
            {
                name: [set(as_labels(track, self.label_column)) for track in tracks]
                for name, tracks in splits.items()
            },
        )

    @classmethod
    def from_settings(cls, config: TaggingConfig) -> "Tagging":
        """Make the task from its settings; assume labels that only tracks define."""
        labels = assumed_labels(config.labels)
        return cls(
            labels=labels,
            label_column=config.label_column,
            pos_weights=(1.0,) * len(labels)
            if config.pos_weight == "balanced"
            else _equal_weights(config, labels),
            focal_gamma=config.focal_gamma,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Tagging":
        """Rebuild the task from the result of `to_dict`; raise ValueError if it is not valid."""
        labels = saved_labels(settings["labels"])
        return cls(
            labels=labels,
            label_column=str(settings["label_column"]),
            calibration=PlattScaling.from_dict(settings.get("calibration"), len(labels)),
            thresholds=saved_thresholds(settings.get("thresholds"), len(labels)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "label_column": self.label_column,
            **({} if self.calibration is None else {"calibration": self.calibration.to_dict()}),
            **({"thresholds": list(self.thresholds)} if self.thresholds else {}),
        }

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Raise `UserError` where no track has labels, or one has a label that is not among these."""
        require_column(tracks, self.label_column)
        problems = [problem for found in self.label_problems(tracks) for problem in found]
        if problems:
            raise UserError(
                problem_list("Labels that are unknown to the model", problems, "Correct them."),
                code="labels-unusable",
            )

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the problems of each track: labels that are not valid, or unknown to the task."""
        known = set(self.labels)
        found = []
        for track in tracks:
            try:
                labels = as_labels(track, self.label_column)
            except ValueError as error:
                found.append([f"{track.origin}: {error}"])
                continue
            unknown = [] if self.ignores_unknown else [one for one in labels if one not in known]
            found.append([f"{track.origin}: unknown label '{label}'" for label in unknown])
        return found

    def targets(self, track: Track, label_transform: LabelTransform) -> NDArray[np.float32]:
        """Return (num_outputs,): 1 for each label of the track, else 0."""
        own = set(as_labels(track, self.label_column))
        return np.array([label in own for label in self.labels], dtype=np.float32)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects of augmentation that leave these labels valid.

        A label with a word for tempo, level or pitch excludes the effects that change it.
        """
        words = {word for label in self.labels for word in label.lower().replace("-", " ").split()}
        return frozenset(e for e in Effect if not words & WORDS_CHANGED_BY.get(e, set()))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of logits and targets, both (batch, num_outputs)."""
        return tag_loss(
            outputs, targets, pos_weights=self.pos_weights, focal_gamma=self.focal_gamma
        )

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities of windows (batch, num_outputs)."""
        return outputs.sigmoid()

    def calibrate(self, evaluated: Sequence[EvaluatedClip]) -> "Tagging":
        """Return the task with calibration and thresholds of each label, fitted on validation tracks."""
        targets, scores = stack_evaluated(evaluated)
        platt, left_out = fit_platt(scores, targets)
        calibrated = platt.apply(scores)
        return replace(
            self,
            calibration=None if len(left_out) == len(self.labels) else platt,
            thresholds=fit_thresholds(
                calibrated if len(left_out) < len(self.labels) else scores,
                targets,
                precision=self.threshold_precision,
            ),
        )

    def decide(self, scores: Mapping[str, float]) -> list[str] | None:
        """Return the labels whose probability is at least their threshold; None without thresholds."""
        if not self.thresholds:
            return None
        limits = zip(self.labels, self.thresholds, strict=True)
        return [label for label, limit in limits if limit is not None and scores[label] >= limit]

    def compute_metrics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, float]:
        """Return the metrics of `metric_names` without intervals; nan where one is undefined."""
        from m2v_finetune.metrics.multilabel import MultilabelAveragePrecision, MultilabelRocAuc

        targets, scores = stack_evaluated(evaluated)
        metrics = {"roc_auc": MultilabelRocAuc(), "average_precision": MultilabelAveragePrecision()}
        return {
            name: metric.compute(predictions=scores, references=targets)[name]
            for name, metric in metrics.items()
        }

    def summarize(self, evaluated: Sequence[EvaluatedClip], *, seed: int) -> dict[str, Any]:
        """Return metrics with intervals over tracks, per label, and the labels left out."""
        # Imported here: `evaluate` takes seconds, and prediction does without it.
        from m2v_finetune.metrics.multilabel import multilabel_report

        targets, scores = stack_evaluated(evaluated)
        report = multilabel_report(targets, scores, self.labels, seed=seed)
        return {**report, "about_metrics": "Each metric is the mean over labels."}

    def statistics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, Statistic]:
        """Return both macro metrics as statistics of counts of draws."""
        return macro_statistics(*stack_evaluated(evaluated))

    def label_statistics(
        self, evaluated: Sequence[EvaluatedClip]
    ) -> dict[str, dict[str, Statistic]]:
        """Return both metrics of each label."""
        targets, scores = stack_evaluated(evaluated)
        return {
            label: macro_statistics(targets[:, [column]], scores[:, [column]])
            for column, label in enumerate(self.labels)
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
        """Plot each metric of each label."""
        from m2v_finetune.plotting.labels import plot_per_label

        captions = {}
        for metric, name in self.metric_names.items():
            file_name = f"per_label_{metric}.png"
            plot_per_label(results["per_label"], folder / file_name, metric=metric, name=name)
            captions[file_name] = f"{name} of each label"
        return captions


def _equal_weights(config: TaggingConfig, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the number of ``task.pos_weight`` for each label; empty for ``none``."""
    return () if isinstance(config.pos_weight, str) else (config.pos_weight,) * len(labels)
