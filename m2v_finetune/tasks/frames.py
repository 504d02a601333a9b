"""Base class of frame-level tasks: frame scores are joined over windows, then decoded."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.config import HeadConfig, HeadKind
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.folders import MAX_NAMES
from m2v_finetune.data.loader import Augment, Window, load_waveform, read_window
from m2v_finetune.data.manifest import Track, require_column
from m2v_finetune.decoding.joining import FrameJoiner
from m2v_finetune.errors import AudioError, UserError
from m2v_finetune.heads import FrameHead, Head
from m2v_finetune.labels.problems import LabelError
from m2v_finetune.metrics.intervals import Statistic, mean_of_tracks
from m2v_finetune.metrics.reports import mean_report
from m2v_finetune.tasks.annotation_files import annotation_path, missing_annotation
from m2v_finetune.tasks.task import WindowScores

Array = NDArray[np.float32]
# Annotations of real data end a little after the audio, where silence was cut or a last chord rang on: up to
# this share of the audio, at least what rounding explains, and never more than some seconds.
OVERHANG_SHARE = 0.05
ROUNDING_SECONDS = 0.1
OVERHANG_SECONDS = 5.0

logger = logging.getLogger(__name__)


class FrameTask(ABC):
    """Base class of tasks with a prediction for each frame.

    A subclass adds its annotations, targets, loss, decoding and metrics (`task.Task` documents the
    interface). Each track has an annotation file, whose path is in a column of the manifest.

    Attributes:
        name: Name, as in `task.Task`.
        label_column: Column of the manifest with the paths of annotations.
        about_metrics: Definition of the metrics, for results.json and the model card.
        prior: Approximate rate of positive outputs, where few are positive.
        num_binary: Number of first outputs that are probabilities of their own, while the others are one
            distribution; None if all are.
        silence: Target of frames that augmentation has silenced.
    """

    head_kind: ClassVar[HeadKind] = "mlp"
    pipeline_tag: ClassVar[str] = "audio-classification"
    hop_fraction: ClassVar[float] = 0.5
    name: ClassVar[str]
    sample_rate: ClassVar[int | None] = None
    on_frames: ClassVar[bool] = True
    prior: ClassVar[float | None] = None
    num_binary: ClassVar[int | None] = None
    silence: ClassVar[float] = 0.0
    about_metrics: ClassVar[str]
    metric_names: ClassVar[Mapping[str, str]]

    label_column: str

    @classmethod
    def from_tracks(cls, config: Any, splits: Mapping[str, Sequence[Track]]) -> Self:
        """Make the task from its settings, which are its attributes; check every track's annotation.

        Raises:
            UserError: Lists every unusable annotation, with file and line.
        """
        task = cls.from_settings(config)
        task.check_labels([track for members in splits.values() for track in members])
        return task

    @classmethod
    def from_training(cls, config: Any, tracks: Sequence[Track]) -> Self:
        """Make the task from its settings. `UserError` where no track has the column."""
        require_column(tracks, config.label_column)
        return cls.from_settings(config)

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """Make the task from its settings, which are its attributes."""
        return cls(**asdict(config))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild the task from the result of `to_dict`; raise KeyError or ValueError if it is not valid."""
        if not isinstance(settings["label_column"], str):
            raise ValueError(f"its label_column is {settings['label_column']!r}, not a name")
        return cls(**{field.name: settings[field.name] for field in fields(cast(Any, cls))})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model."""
        return {"name": self.name, **asdict(cast(Any, self))}

    def check_labels(self, tracks: Sequence[Track]) -> None:
        """Raise `LabelError` with file and line of everything that cannot be used in annotations."""
        require_column(tracks, self.label_column)
        problems = [problem for found in self.label_problems(tracks) for problem in found]
        if problems:
            raise LabelError(
                f"Annotations of the column '{self.label_column}' cannot be used",
                list(dict.fromkeys(problems)),  # tracks may share a file
                "The column holds the path of a file, relative to the manifest's folder. Correct these "
                "lines, or skip these tracks with --data.on_bad_track skip.",
                code="labels-unusable",
            )

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the problems of each track's annotation, with file and line.

        An annotation that ends long after the audio belongs to another file, or is in another unit. A
        warning counts times that are only a little behind the end.
        """
        with ThreadPoolExecutor() as pool:
            checked = list(pool.map(self._check_annotation, tracks))
        late = [problem for _, problem in checked if problem]
        if late:
            logger.warning(
                "%d of %d annotations have times behind the end of their audio. They are not trained on, and "
                "evaluation counts them: %s",
                len(late),
                len(tracks),
                "; ".join(late[:MAX_NAMES]) + ("; ..." if len(late) > MAX_NAMES else ""),
            )
        return [problems for problems, _ in checked]

    def _check_annotation(self, track: Track) -> tuple[list[str], str | None]:
        """Return the problems of an annotation, and a description of times a little behind the end."""
        if missing := missing_annotation(track, self.label_column):
            return [f"{track.origin}: {missing}"], None
        path = annotation_path(track, self.label_column)
        try:
            annotation = self.read(path)
            duration = inspect_audio(track.path).duration_seconds
        except LabelError as error:
            return list(error.problems), None
        except AudioError:
            return [], None  # the check of the audio lists it, or skips the track
        times, end = self.times_seconds(annotation), self.end_seconds(annotation)
        overhang = times.max(initial=0.0) - duration
        allowed = max(ROUNDING_SECONDS, min(OVERHANG_SECONDS, OVERHANG_SHARE * duration))
        num_behind = np.count_nonzero(times > duration)
        behind = f"{num_behind} of {len(times)} times are behind the end"
        if overhang > allowed or end > duration + OVERHANG_SECONDS:
            ends = f"{path}: ends at {end:.3f} s, but {track.path} ends at {duration:.3f} s"
            return [f"{ends}; {behind}" if num_behind else ends], None
        return [], f"{path}: {behind}" if overhang > ROUNDING_SECONDS else None

    def annotation(self, track: Track) -> Any:
        """Return the annotation of a track."""
        return self.read(annotation_path(track, self.label_column))

    @abstractmethod
    def read(self, path: Path) -> Any:
        """Read an annotation; the result is cached."""

    @abstractmethod
    def end_seconds(self, annotation: Any) -> float:
        """Return the last time in an annotation."""

    @abstractmethod
    def times_seconds(self, annotation: Any) -> NDArray[np.float64]:
        """Return the times in an annotation that are in the audio, (times,); not ends, which may ring on."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of logits of a frame."""

    @abstractmethod
    def frame_targets(
        self, track: Track, times_seconds: NDArray[np.float64], *, semitones: int
    ) -> Array:
        """Return the targets of frames.

        Args:
            track: Track with an annotation.
            times_seconds: Centres of the frames in the track, evenly spaced, (frames,).
            semitones: Pitch shift in semitones.

        Returns:
            The targets, (frames, ...).
        """

    def build_head(self, config: HeadConfig, *, hidden_size: int, grid: FrameGrid) -> Head:
        """Return a head with an output vector for each frame.

        Raises:
            UserError: The settings request a pooling of frames, which this head does not have.
        """
        if config.pooling != HeadConfig().pooling:
            raise UserError(
                f"head.pooling is '{config.pooling}', but this task pools no frames. Remove it.",
                code="head-unsupported-setting",
            )
        if config.is_solved:
            raise UserError(
                f"head.kind is '{config.kind}', which is for tasks with one prediction a track. Set it to "
                "linear or mlp.",
                code="head-unsupported-setting",
            )
        config.require_hidden_layer()
        return FrameHead(
            input_size=hidden_size,
            num_outputs=self.num_outputs,
            kind=config.kind,
            hidden_size=config.hidden_size,
            dropout=config.dropout,
            standardize=config.standardize,
            prior=self.prior,
        )

    def describe_head(self, config: HeadConfig) -> str:
        """Return a description of the head, for the model card."""
        is_mlp = config.kind == "mlp"
        kind = f"MLP with one hidden layer of {config.hidden_size}" if is_mlp else "linear"
        standardised = ", standardised" if config.standardize else ""
        return f"{kind}, dropout {config.dropout:g}, at each frame{standardised}"

    def example(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, ...]:
        """Return the augmented waveform of a window, and the transformed targets of its frames."""
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
        """Return the targets of the frames of a window, after the label transform of augmentation."""
        times = label_transform.sources(window.frame_times_seconds)
        targets = self.frame_targets(
            checked.track, window.start_seconds + times, semitones=round(label_transform.semitones)
        )
        is_inside = label_transform.is_inside(times) & (times < window.duration_seconds)
        targets[~is_inside] = self.silence
        return targets

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a waveform, and of a number for each output of each frame."""
        return (window.num_samples,), (window.grid.num_frames(window.num_samples), self.num_outputs)

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Return the waveform of a window."""
        return (read_window(checked, window),)

    def compute_metrics(self, evaluated: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return the mean of each metric over the tracks that have it; nan where none has."""
        columns = {name: [one[name] for one in evaluated] for name in self.metric_names}
        return {
            name: float(torch.tensor(column, dtype=torch.float64).nanmean())
            for name, column in columns.items()
        }

    def summarize(self, evaluated: Sequence[Mapping[str, float]], *, seed: int) -> dict[str, Any]:
        """Return the mean of each metric with an interval, and how many tracks have it."""
        report = mean_report(evaluated, list(self.metric_names), seed=seed)
        return {
            "metrics": report["metrics"],
            "num_scored_tracks": report["num_tracks"],
            "about_metrics": self.about_metrics,
        }

    def statistics(self, evaluated: Sequence[Mapping[str, float]]) -> dict[str, Statistic]:
        """Return the mean of each metric as a statistic of counts of draws."""
        return {
            name: mean_of_tracks([one[name] for one in evaluated]) for name in self.metric_names
        }

    def label_statistics(
        self, evaluated: Sequence[Mapping[str, float]]
    ) -> dict[str, dict[str, Statistic]]:
        """Return no statistic of labels."""
        return {}

    def prediction_row(self, evaluated: Mapping[str, float]) -> dict[str, str | float]:
        """Return the scores of a track."""
        return dict(evaluated)


def join_windows(
    checked: CheckedTrack, windows: WindowScores
) -> tuple[FrameGrid, NDArray[np.float64]]:
    """Join the frames of a track's windows, cross-faded where they overlap.

    Args:
        checked: Checked track.
        windows: Windows with scores (frames, num_outputs); they start at frames of one grid.

    Returns:
        The grid of the track's frames, and their scores, (frames, num_outputs).
    """
    joiner: FrameJoiner | None = None
    end_frame = 0
    for window, scores in windows:
        grid = window.grid
        first_frame = window.start_sample // grid.stride_samples
        if joiner is None:
            num_samples = checked.audio.num_samples(grid.sample_rate)
            # The last window starts at a frame, so less than a stride of samples may remain after it.
            num_trailing = max(0, num_samples - window.num_samples) % grid.stride_samples
            num_frames = max(1, grid.num_frames(num_samples - num_trailing))
            joiner = FrameJoiner(num_frames, scores.shape[-1])
        if first_frame > end_frame:
            # A frame across the border of two adjacent windows is in neither; it copies the next one.
            joiner.add(end_frame, scores[:1].repeat(first_frame - end_frame, axis=0))
        joiner.add(first_frame, scores)
        end_frame = first_frame + len(scores)
    assert joiner is not None
    return grid, joiner.result()
