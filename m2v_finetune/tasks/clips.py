"""Base class of clip-level tasks: the prediction for a track is the mean over its windows."""

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.decode import read_audio
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.calibration import Calibration
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Augment, Window, load_waveform, read_window
from m2v_finetune.data.manifest import Track, problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.heads import ClipHead, Head
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.shown import PREVIEW_SAMPLE_RATE, Shown, escaped
from m2v_finetune.tasks.task import ASSUMED_OUTPUTS, WindowScores

Array = NDArray[np.float32]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
SHOWN_LABELS = 8
POOLING_NAMES = {
    "mean": "the mean",
    "mean_std": "mean and standard deviation",
    "attention": "a learned weighted mean",
}


@dataclass(frozen=True, kw_only=True)
class WindowPrediction:
    """Prediction for one window.

    Attributes:
        start_seconds: Start in the track.
        end_seconds: End in the track.
        scores: Score of each label.
    """

    start_seconds: float
    end_seconds: float
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ClipPrediction:
    """Track-level prediction: a score for each label.

    Attributes:
        scores: Score of each label: a probability, or in a regression a number in the unit of the data.
        timeline: Scores of each window, in order.
        is_ranking: Whether text shows the best labels first; else it shows all labels.
        decided: Labels of the track: those above their threshold, or the one of highest probability; None
            where nothing is decided.
    """

    scores: dict[str, float]
    timeline: list[WindowPrediction]
    is_ranking: bool = True
    decided: list[str] | None = None

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the labels of highest score, best first."""
        return _best(self.scores, count)

    @property
    def label(self) -> str:
        """Label of highest score."""
        return self.top(1)[0][0]

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the prediction as human-readable text, a line of JSON, or lines of CSV."""
        if kind == "json":
            return self._json(path, timeline=timeline)
        if kind == "csv":
            return self._csv(path, timeline=timeline, is_first=is_first)
        lines = [str(path)]
        lines += [f"  {score:.3f}  {label}" for label, score in self._shown(self.scores, top)]
        for window in self.timeline if timeline else []:
            shown = ", ".join(
                f"{label} {score:.3f}" for label, score in self._shown(window.scores, top)
            )
            lines.append(f"  {window.start_seconds:8.2f} - {window.end_seconds:8.2f} s  {shown}")
        return "\n".join(lines) + "\n"

    def render_decided(self, kind: str, *, path: Path, is_first: bool) -> str:
        """Return the decided labels as human-readable text, a line of JSON, or a line of CSV.

        Raises:
            ValueError: Nothing is decided.
        """
        if self.decided is None:
            raise ValueError("the model has no thresholds")
        if kind == "json":
            return (
                json.dumps({"path": str(path), "labels": self.decided}, ensure_ascii=False) + "\n"
            )
        if kind == "text":
            return f"{path}: {', '.join(self.decided) or 'none'}\n"
        text = io.StringIO()
        rows = [["path", "labels"], [str(path), ";".join(self.decided)]]
        csv.writer(text).writerows(rows if is_first else rows[1:])
        return text.getvalue()

    def write(self, kind: str, destination: Path) -> None:
        """Raise ValueError: all formats are printed."""
        raise ValueError(f"{kind} has no file of its own")

    def show(self, path: Path) -> Shown:
        """Return the ranked labels, or all numbers, and their time line over the waveform."""
        from m2v_finetune.plotting.song import draw_timeline

        drawn = [label for label, _ in self._shown(self.scores, SHOWN_LABELS)]
        picture = draw_timeline(
            read_audio(path, sample_rate=PREVIEW_SAMPLE_RATE),
            PREVIEW_SAMPLE_RATE,
            [*(window.start_seconds for window in self.timeline), self.timeline[-1].end_seconds],
            {label: [window.scores[label] for window in self.timeline] for label in drawn},
            is_probability=self.is_ranking,
        )
        rows = [f"| {escaped(label)} | {score:.3f} |" for label, score in self.scores.items()]
        text = "\n".join(["| | mean of the song |", "|---|---|", *rows])
        if self.is_ranking:
            text = f"Highest score: **{escaped(self.label)}**"
        return Shown(
            text=text,
            scores=self.scores if self.is_ranking else None,
            pictures={"Time line: the score of each window": picture},
        )

    def _shown(self, scores: Mapping[str, float], top: int) -> list[tuple[str, float]]:
        return _best(scores, top) if self.is_ranking else list(scores.items())

    def _json(self, path: Path, *, timeline: bool) -> str:
        content: dict[str, object] = {"path": str(path), "scores": self.scores}
        if timeline:
            content["timeline"] = [vars(window) for window in self.timeline]
        return json.dumps(content, ensure_ascii=False) + "\n"

    def _csv(self, path: Path, *, timeline: bool, is_first: bool) -> str:
        text = io.StringIO()
        writer = csv.writer(text)
        if timeline:
            header = ["path", "start_seconds", "end_seconds", *self.scores]
            rows = [
                [
                    path,
                    f"{window.start_seconds:.3f}",
                    f"{window.end_seconds:.3f}",
                    *_digits(window.scores.values()),
                ]
                for window in self.timeline
            ]
        else:
            header = ["path", *self.scores]
            rows = [[path, *_digits(self.scores.values())]]
        writer.writerows([header, *rows] if is_first else rows)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class EvaluatedClip:
    """Targets and scores of a track.

    Attributes:
        target: Output of `targets` of the task.
        scores: Track-level scores, (num_outputs,).
    """

    target: Array
    scores: Array


class ClipTask(ABC):
    """Base class of tasks with one prediction for a track.

    A subclass adds its labels, loss and metrics (`task.Task` documents the interface).

    Attributes:
        problem_type: Meaning of the logits, as transformers names it: ``activate`` is their softmax, their
            sigmoid, or in a regression a scale and shift of each. None for any other, which transformers
            cannot express.
        calibration: Calibration of the probabilities, fitted after training; None where there is none.
    """

    pipeline_tag: ClassVar[str] = "audio-classification"
    hop_fraction: ClassVar[float] = 1.0
    sample_rate: ClassVar[int | None] = None
    on_frames: ClassVar[bool] = False
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "csv": None}
    usage_example: ClassVar[str] = ".top(5)"
    problem_type: ClassVar[ProblemType | None] = None
    calibration: Calibration | None = None

    labels: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        """Number of logits."""
        return len(self.labels)

    @abstractmethod
    def targets(self, track: Track, label_transform: LabelTransform) -> Array:
        """Return the targets of any window of a track, after the label transform of augmentation."""

    def build_head(self, config: HeadConfig, *, hidden_size: int, grid: FrameGrid) -> Head:
        """Return a head with one output vector for each window."""
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
        return ClipPrediction(scores=scores, timeline=timeline, decided=self.decide(scores))

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


def check_label_names(
    labels: Sequence[str], in_training: Mapping[str, int], *, column: str
) -> None:
    """Check the labels of the task.

    Args:
        labels: Labels of ``task.labels``, or all of the training tracks.
        in_training: Number of training tracks with each label.
        column: Column of the manifest, for messages.

    Raises:
        UserError: There is no label, one occurs twice, or no training track has one of them.
    """
    if len(labels) < 1 or len(set(labels)) < len(labels):
        raise UserError(
            f"The labels are {list(labels)}. There must be at least one, and no duplicates "
            f"(task.labels, or the column '{column}' of the training tracks).",
            code="labels-not-distinct",
        )
    nowhere = [label for label in labels if not in_training.get(label)]
    if nowhere:
        raise UserError(
            problem_list(
                "Labels of task.labels that no training track has",
                nowhere,
                f"Remove or correct them. The training tracks have: {', '.join(sorted(in_training))}.",
            ),
            code="labels-not-in-training",
        )


def assumed_labels(labels: Sequence[str] | None) -> tuple[str, ...]:
    """Return the labels of the settings, or placeholders where only the data define them."""
    return tuple(labels or map(str, range(ASSUMED_OUTPUTS)))


def saved_labels(labels: Any) -> tuple[str, ...]:
    """Return the labels of a saved task; raise ValueError if they are not valid."""
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"its labels are {labels!r}, not a list of names")
    if not labels or len(set(labels)) < len(labels):
        raise ValueError("its labels are empty or not distinct")
    return tuple(labels)


def _best(scores: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: -item[1])[:count]


def _digits(scores: Iterable[float]) -> list[str]:
    return [f"{score:.7g}" for score in scores]
