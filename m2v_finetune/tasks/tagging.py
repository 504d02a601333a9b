"""Tagging: any number of labels for a track, each with a probability."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.data.manifest import Track, as_labels, problem_list
from m2v_finetune.errors import UserError

# Words in a tag that make it false when a window is changed: MagnaTagATune has fast, slow, loud, quiet.
WORDS_MOVED_BY = {
    Effect.TIME: {"fast", "slow", "uptempo", "downtempo", "tempo"},
    Effect.LEVEL: {"loud", "quiet", "soft"},
    Effect.PITCH: {"high", "low", "key"},
}


@dataclass(frozen=True, kw_only=True)
class TaggingConfig:
    """What is learned from which labels.

    Args:
        label_column: The column that lists a track's labels: a JSON list, or in a CSV separated by ``;``.
        labels: The labels to learn; all that occur in the training split if not given.
        ignore_unknown_labels: Go on where a track has a label that is not among these, without it.
    """

    label_column: str = "tags"
    labels: list[str] | None = None
    ignore_unknown_labels: bool = False


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """Multi-label classification of tracks.

    Attributes:
        labels: In the order of the logits.
        label_column: The manifest's column.
    """

    name: ClassVar[str] = "tagging"
    selection_metric: ClassVar[str] = "roc_auc"
    metric_names: ClassVar[Mapping[str, str]] = {
        "roc_auc": "ROC-AUC",
        "average_precision": "average precision",
    }

    labels: tuple[str, ...]
    label_column: str

    @property
    def num_outputs(self) -> int:
        """Width of the logits."""
        return len(self.labels)

    @classmethod
    def from_tracks(cls, config: TaggingConfig, splits: Mapping[str, Sequence[Track]]) -> "Tagging":
        """Find the labels, and check those of every track.

        Raises:
            UserError: The column is in no track; a label of the config is on no training track; a track
                has a label that cannot be learned, because it is not in the config or not in training.
        """
        column = config.label_column
        tracks = [track for members in splits.values() for track in members]
        if not any(column in track.columns for track in tracks):
            found = ", ".join(sorted(tracks[0].columns)) or "none"
            raise UserError(
                f"No track has a column '{column}'. There are: {found}. Name the one with the labels by "
                "--task.label_column."
            )
        in_training = Counter(
            label for track in splits["train"] for label in set(as_labels(track, column))
        )
        labels = tuple(sorted(in_training)) if config.labels is None else tuple(config.labels)
        if len(labels) < 1 or len(set(labels)) < len(labels):
            raise UserError(
                f"The labels to learn are {list(labels)}. There must be at least one, and none twice "
                f"(task.labels, or the column '{column}' of the training tracks)."
            )
        nowhere = [label for label in labels if not in_training[label]]
        if nowhere:
            raise UserError(
                problem_list(
                    "Labels of task.labels that no training track has",
                    nowhere,
                    f"Remove or correct them. The training tracks have: {', '.join(sorted(in_training))}.",
                )
            )
        task = cls(labels=labels, label_column=column)
        unknown = task.unknown_labels(tracks)
        if unknown and not config.ignore_unknown_labels:
            why = "not in task.labels" if config.labels is not None else "on no training track"
            raise UserError(
                problem_list(
                    f"Labels that cannot be learned, as they are {why}",
                    unknown,
                    "Correct them, or go on without them by --task.ignore_unknown_labels true. (If the split "
                    "was made for you, another --run.seed makes another one.)",
                )
            )
        return task

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Tagging":
        """Rebuild the task from what `to_dict` returned; ValueError if that is not what it is."""
        labels = settings["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"its labels are {labels!r}, not a list of names")
        if not labels or len(set(labels)) < len(labels):
            raise ValueError("its labels are none, or one stands there twice")
        return cls(labels=tuple(labels), label_column=settings["label_column"])

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved with a model."""
        return {"name": self.name, "labels": list(self.labels), "label_column": self.label_column}

    def unknown_labels(self, tracks: Sequence[Track]) -> list[str]:
        """Return a line for each label of a track that is not among those of the task."""
        known = set(self.labels)
        return [
            f"{track.origin}: unknown label '{label}'"
            for track in tracks
            for label in as_labels(track, self.label_column)
            if label not in known
        ]

    def targets(self, track: Track) -> NDArray[np.float32]:
        """Return (num_outputs,): 1 for each label of the track, else 0."""
        own = set(as_labels(track, self.label_column))
        return np.array([label in own for label in self.labels], dtype=np.float32)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects of augmentation under which these labels stay true.

        A label with a word for tempo, level or pitch forbids what would change it.
        """
        words = {word for label in self.labels for word in label.lower().replace("-", " ").split()}
        return frozenset(e for e in Effect if not words & WORDS_MOVED_BY.get(e, set()))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of logits and targets, both (batch, num_outputs)."""
        return F.binary_cross_entropy_with_logits(logits, targets)

    def scores(self, logits: Tensor) -> Tensor:
        """Return probabilities of windows (batch, num_outputs)."""
        return logits.sigmoid()

    def aggregate(self, window_scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a track's scores (num_outputs,): the mean over its windows (windows, num_outputs)."""
        mean: NDArray[np.float32] = window_scores.mean(axis=0)
        return mean

    def values(self, targets: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[str, float]:
        """Return the metrics of `metric_names` without intervals; nan where none can be computed."""
        from m2v_finetune.metrics.multilabel import MultilabelAveragePrecision, MultilabelRocAuc

        metrics = {"roc_auc": MultilabelRocAuc(), "average_precision": MultilabelAveragePrecision()}
        return {
            name: metric.compute(predictions=scores, references=targets)[name]
            for name, metric in metrics.items()
        }

    def report(
        self, targets: NDArray[np.float32], scores: NDArray[np.float32], *, seed: int
    ) -> dict[str, Any]:
        """Return metrics with intervals over tracks, per label, and the labels left out.

        Args:
            targets: (tracks, num_outputs), 0 or 1.
            scores: (tracks, num_outputs).
            seed: Of the bootstrap.
        """
        # Imported here: `evaluate` takes seconds, and prediction does without it.
        from m2v_finetune.metrics.multilabel import multilabel_report

        return multilabel_report(targets, scores, self.labels, seed=seed)

    def prediction(
        self, window_scores: NDArray[np.float32], windows: Sequence[tuple[float, float]]
    ) -> "TagPrediction":
        """Return what is known of a track.

        Args:
            window_scores: (windows, num_outputs).
            windows: Begin and end of each window, in seconds.
        """
        track = self.aggregate(window_scores)
        return TagPrediction(
            tags=dict(zip(self.labels, track.tolist(), strict=True)),
            timeline=[
                TagWindow(
                    start_seconds=start,
                    end_seconds=end,
                    tags=dict(zip(self.labels, row.tolist(), strict=True)),
                )
                for (start, end), row in zip(windows, window_scores, strict=True)
            ],
        )


@dataclass(frozen=True, kw_only=True)
class TagWindow:
    """The tags of one window.

    Attributes:
        start_seconds: Its begin in the track.
        end_seconds: Its end.
        tags: Probability of each label.
    """

    start_seconds: float
    end_seconds: float
    tags: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TagPrediction:
    """The tags of a track.

    Attributes:
        tags: Probability of each label.
        timeline: The same for each window, in order.
    """

    tags: dict[str, float]
    timeline: list[TagWindow]

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the labels of highest probability, best first."""
        return sorted(self.tags.items(), key=lambda item: -item[1])[:count]
