"""Base class of clip-level tasks: the prediction for a track is the mean over its windows."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.calibration import Calibration
from m2v_finetune.config import HeadConfig, HeadKind
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Augment, Window, load_waveform, read_window
from m2v_finetune.data.manifest import Track
from m2v_finetune.heads import ClipHead, Head
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.clip_prediction import ClipPrediction, WindowPrediction
from m2v_finetune.tasks.task import Task, WindowScores

Array = NDArray[np.float32]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
POOLING_NAMES = {
    "mean": "the mean",
    "mean_std": "mean and standard deviation",
    "attention": "a learned weighted mean",
}


@dataclass(frozen=True, kw_only=True)
class EvaluatedClip:
    """Targets and scores of a track.

    Attributes:
        target: Output of `targets` of the task.
        scores: Track-level scores, (num_outputs,).
        distances: Distances of the track, as in its prediction.
        timeline: Windows of the track, for a report: each with the label of highest score, or with all
            numbers of a regression; empty for tracks of one window.
    """

    target: Array
    scores: Array
    distances: tuple[float, ...] = ()
    timeline: tuple[WindowPrediction, ...] = ()

    @property
    def novelty(self) -> float | None:
        """Largest distance; None without any."""
        return max(self.distances, default=None)


class ClipTask(ABC):
    """Base class of tasks with one prediction for a track.

    A subclass adds its labels, loss and metrics (`task.Task` documents the interface).

    Attributes:
        problem_type: Meaning of the logits, as transformers names it: ``activate`` is their softmax, their
            sigmoid, or in a regression a scale and shift of each. None for any other, which transformers
            cannot express.
        calibration: Calibration of the probabilities, fitted after training; None where there is none.
        thresholds: Probability of each label from which a track has it; empty where there are none.
    """

    head_kind: ClassVar[HeadKind] = "linear"
    pipeline_tag: ClassVar[str] = "audio-classification"
    hop_fraction: ClassVar[float] = 1.0
    sample_rate: ClassVar[int | None] = None
    on_frames: ClassVar[bool] = False
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "csv": None}
    usage_example: ClassVar[str] = ".top(5)"
    problem_type: ClassVar[ProblemType | None] = None
    calibration: Calibration | None = None
    thresholds: tuple[float | None, ...] = ()

    labels: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """Number of logits."""
        return len(self.labels)

    @abstractmethod
    def targets(self, track: Track, label_transform: LabelTransform) -> Array:
        """Return the targets of any window of a track, after the label transform of augmentation."""

    def build_head(self, config: HeadConfig, *, hidden_size: int, grid: FrameGrid) -> Head:
        """Return a head with one output vector for each window.

        Raises:
            UserError: A size is set of a hidden layer that the head does not have.
        """
        config.require_hidden_layer()
        return ClipHead(
            input_size=hidden_size,
            num_outputs=self.num_outputs,
            pooling=config.pooling,
            kind=config.kind,
            hidden_size=config.hidden_size,
            dropout=config.dropout,
            standardize=config.standardize,
        )

    def describe_head(self, config: HeadConfig) -> str:
        """Return a description of the head, for the model card."""
        kind = (
            f"MLP with one hidden layer of {config.hidden_size}"
            if config.kind == "mlp"
            else "linear"
        )
        pooling = POOLING_NAMES[config.pooling]
        standardised = ", standardised" if config.standardize else ""
        return (
            f"{kind}, dropout {config.dropout:g}, over {pooling} of a window's frames{standardised}"
        )

    def transformed_effects(self) -> frozenset[Effect]:
        """Return no effect; a task whose labels can be transformed overrides this."""
        return frozenset()

    def example(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, ...]:
        """Return the augmented waveform of a window, and its transformed targets."""
        samples, label_transform = self.load_waveform(checked, window, augment)
        return samples, self.window_targets(checked, window, label_transform)

    def load_waveform(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, LabelTransform]:
        """Return the augmented waveform of a window, and the transform of its labels."""
        return load_waveform(checked, window, augment)

    def window_targets(
        self, checked: CheckedTrack, window: Window, label_transform: LabelTransform
    ) -> Array:
        """Return the targets of a window: those of its track."""
        return self.targets(checked.track, label_transform)

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a waveform, and of a number for each output."""
        return (window.num_samples,), (self.num_outputs,)

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Return the waveform of a window."""
        return (read_window(checked, window),)

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> ClipPrediction:
        """Return the mean over windows of the scores of each label, and those of each window, calibrated."""
        spans, outputs = zip(*windows, strict=True)
        stacked = np.stack(outputs)
        stacked, novelty = stacked[:, : self.num_outputs], stacked[:, self.num_outputs :]
        distances = tuple(map(float, novelty.mean(axis=0)))
        mean, rows = self._calibrated(stacked.mean(axis=0)), self._calibrated(stacked)
        end_of_track = checked.audio.duration_seconds
        timeline = [
            WindowPrediction(
                start_seconds=span.start_seconds,
                end_seconds=min(span.start_seconds + span.duration_seconds, end_of_track),
                scores=dict(zip(self.labels, row.tolist(), strict=True)),
            )
            for span, row in zip(spans, rows, strict=True)
        ]
        scores = dict(zip(self.labels, mean.tolist(), strict=True))
        decided = self.decide(scores)
        if decided is not None and max(distances, default=0.0) > 1:
            decided = []
        return ClipPrediction(
            scores=scores, timeline=timeline, decided=decided, distances=distances
        )

    def _calibrated(self, scores: Array) -> Array:
        return scores if self.calibration is None else self.calibration.apply(scores)

    def decide(self, scores: Mapping[str, float]) -> list[str] | None:
        """Return the labels of a track from its calibrated scores; None where nothing is decided."""
        return None

    def calibrate(self, evaluated: Sequence[EvaluatedClip]) -> Self:
        """Return the task with calibration and thresholds, fitted on validation tracks.

        Args:
            evaluated: The tracks, evaluated without calibration.
        """
        return self

    def calibrated(self, evaluated: EvaluatedClip) -> EvaluatedClip:
        """Return a track that was evaluated without calibration, with calibrated scores."""
        return replace(evaluated, scores=self._calibrated(evaluated.scores))

    def evaluate_track(self, checked: CheckedTrack, prediction: ClipPrediction) -> EvaluatedClip:
        """Return the targets of a track with its scores."""
        return EvaluatedClip(
            target=self.targets(checked.track, IDENTITY),
            scores=np.array(list(prediction.scores.values()), dtype=np.float32),
            distances=prediction.distances,
            timeline=prediction.short_timeline(),
        )

    def statistics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, Statistic]:
        """Return no statistic: a task defines those of its metrics."""
        return {}

    def label_statistics(
        self, evaluated: Sequence[EvaluatedClip]
    ) -> dict[str, dict[str, Statistic]]:
        """Return no statistic of labels; a task that has some overrides this."""
        return {}

    def prediction_row(self, evaluated: EvaluatedClip) -> dict[str, str | float]:
        """Return the score of each label."""
        return dict(zip(self.labels, evaluated.scores.tolist(), strict=True))


def stack_evaluated(evaluated: Sequence[EvaluatedClip]) -> tuple[Array, Array]:
    """Return targets (tracks, ...) and scores (tracks, num_outputs)."""
    return np.stack([one.target for one in evaluated]), np.stack([one.scores for one in evaluated])


def has_labels(task_class: type[Task]) -> bool:
    """Return whether the label column of a task has names of labels: no numbers, and no files."""
    return issubclass(task_class, ClipTask) and task_class.problem_type != "regression"
