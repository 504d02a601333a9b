"""Structure: the sections of a song, such as verse and chorus."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.config.ranges import between_0_and_1
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track, require_column
from m2v_finetune.decoding.sections import boundary_targets, decode_sections
from m2v_finetune.decoding.targets import chord_targets
from m2v_finetune.files import as_json
from m2v_finetune.labels.problems import LabelError
from m2v_finetune.labels.sections import Sections, format_sections, read_sections
from m2v_finetune.metrics.sections import section_scores
from m2v_finetune.tasks.annotation_files import annotation_path, missing_annotation
from m2v_finetune.tasks.frames import FrameTask, join_windows
from m2v_finetune.tasks.label_names import assumed_labels, check_label_names, saved_labels
from m2v_finetune.tasks.shown import Shown
from m2v_finetune.tasks.task import Prediction, WindowScores

# Own choice: a target lasts about half a second, the smaller tolerance of the metrics.
BOUNDARY_STD_SECONDS = 0.25

_read_sections = cache(read_sections)


@dataclass(frozen=True, kw_only=True)
class StructureConfig:
    """Settings of the section annotations and of decoding.

    Args:
        label_column: Column with the path of a track's sections, relative to the manifest: a text file with
            a line for the start of each section, its time in seconds and its label, and a last line ``end``.
        labels: Labels of sections; all that occur in the training split if not given. Sections with other
            labels train the boundaries alone.
        boundary_threshold: Probability from which a peak is a boundary; lower finds more boundaries, and more
            that are false.
    """

    label_column: str = "sections"
    labels: list[str] | None = None
    boundary_threshold: float = 0.4

    def __post_init__(self) -> None:
        """Check the range."""
        between_0_and_1("task.boundary_threshold", self.boundary_threshold)


@dataclass(frozen=True, kw_only=True, eq=False)
class StructurePrediction:
    """Sections of a track.

    Attributes:
        sections: Sections from 0 to the end of the track.
        frame_times_seconds: (frames,).
        boundaries: Probability of a boundary, (frames,).
    """

    sections: Sections
    frame_times_seconds: NDArray[np.float64]
    boundaries: NDArray[np.float64]

    @property
    def segments(self) -> list[tuple[float, float, str]]:
        """Start and end in seconds, and label, of each section."""
        intervals = self.sections.intervals_seconds.tolist()
        return [(a, b, c) for (a, b), c in zip(intervals, self.sections.labels, strict=True)]

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the sections as human-readable lines, or as a line of JSON."""
        if kind == "json":
            rows = [
                {"start_seconds": round(start, 3), "end_seconds": round(end, 3), "label": label}
                for start, end, label in self.segments
            ]
            return as_json({"path": str(path), "sections": rows})
        lines = [f"  {start:8.2f} - {end:8.2f} s  {label}" for start, end, label in self.segments]
        return "\n".join([str(path), *lines]) + "\n"

    def show(self, path: Path) -> Shown:
        """Return the sections along the song."""
        from m2v_finetune.plotting.song import draw_structure

        names = list(dict.fromkeys(self.sections.labels))
        return Shown(
            text=f"**{len(self.sections.labels)} sections, {len(names)} different labels**",
            pictures={"Sections along the song": draw_structure(self.segments, names)},
        )

    def write(self, kind: str, destination: Path) -> None:
        """Write a text file of starts and labels."""
        destination.write_text(format_sections(self.sections), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class StructureAnalysis(FrameTask):
    """Boundaries of sections, and their label, at each frame.

    Attributes:
        labels: Labels of sections, in the order of the logits.
        label_column: Column of the manifest.
        boundary_threshold: Probability from which a peak is a boundary.
    """

    name: ClassVar[str] = "structure"
    settings_class: ClassVar[type[Any]] = StructureConfig
    selection_metric: ClassVar[str] = "boundary_f1_05"
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "txt": ".txt"}
    usage_example: ClassVar[str] = ".segments"
    about_metrics: ClassVar[str] = (
        "The mean over tracks, by mir_eval. Boundaries count within 0.5 or 3 s; the start and the end of a "
        "track are boundaries too. Pairwise F1 is of pairs of frames with the same label, whatever its name."
    )
    metric_names: ClassVar[Mapping[str, str]] = {
        "boundary_f1_05": "boundary F-measure within 0.5 s",
        "boundary_precision_05": "boundary precision within 0.5 s",
        "boundary_recall_05": "boundary recall within 0.5 s",
        "boundary_f1_3": "boundary F-measure within 3 s",
        "boundary_precision_3": "boundary precision within 3 s",
        "boundary_recall_3": "boundary recall within 3 s",
        "pairwise_f1": "pairwise F-measure of labels",
    }
    num_binary: ClassVar[int | None] = 1

    labels: tuple[str, ...]
    label_column: str
    boundary_threshold: float = 0.4

    @classmethod
    def from_tracks(cls, config: Any, splits: Mapping[str, Sequence[Track]]) -> Self:
        """Make the task with the labels of the training tracks; check every track's annotation."""
        task = cls.from_training(config, splits["train"])
        task.check_labels([track for members in splits.values() for track in members])
        return task

    @classmethod
    def from_training(cls, config: Any, tracks: Sequence[Track]) -> Self:
        """Make the task with the labels of the training tracks that have a usable annotation.

        Raises:
            UserError: The column, or a label of the settings, is on no training track.
        """
        column = config.label_column
        require_column(tracks, column)
        in_training: Counter[str] = Counter()
        for track in tracks:
            if missing_annotation(track, column) is None:
                with suppress(LabelError):  # listed by `label_problems`
                    in_training.update(set(_read_sections(annotation_path(track, column)).labels))
        labels = tuple(sorted(in_training))
        if config.labels is not None:
            labels = tuple(str(label).lower() for label in config.labels)
        if in_training:
            check_label_names(labels, in_training, column=column)
        return cls(labels=labels, label_column=column, boundary_threshold=config.boundary_threshold)

    @classmethod
    def from_settings(cls, config: Any) -> Self:
        """Make the task from its settings; assume labels that only tracks define."""
        return cls(
            labels=assumed_labels(config.labels),
            label_column=config.label_column,
            boundary_threshold=config.boundary_threshold,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild the task from the result of `to_dict`; raise KeyError or ValueError if it is not valid."""
        return super().from_dict({**settings, "labels": saved_labels(settings["labels"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are saved with a model."""
        return {**super().to_dict(), "labels": list(self.labels)}

    @property
    def num_outputs(self) -> int:
        """Number of logits of a frame: a boundary, and each label."""
        return 1 + len(self.labels)

    def read(self, path: Path) -> Sections:
        """Read the sections of a file; the result is cached."""
        return _read_sections(path)

    def end_seconds(self, annotation: Sections) -> float:
        """Return the last time in an annotation."""
        return float(annotation.borders_seconds[-1])

    def times_seconds(self, annotation: Sections) -> NDArray[np.float64]:
        """Return the starts of the sections, (sections,)."""
        return annotation.borders_seconds[:-1]

    def frame_targets(
        self, track: Track, times_seconds: NDArray[np.float64], *, semitones: int
    ) -> NDArray[np.float32]:
        """Return the boundary target of each frame and the number of its label, (frames, 2).

        The boundaries are those between two sections. Labels count from 1; 0 is none of `labels`.
        """
        sections = self.annotation(track)
        numbers = [
            (start, end, self.labels.index(label) + 1 if label in self.labels else 0)
            for (start, end), label in zip(
                sections.intervals_seconds.tolist(), sections.labels, strict=True
            )
        ]
        boundaries = boundary_targets(
            sections.borders_seconds[1:-1], times_seconds, std_seconds=BOUNDARY_STD_SECONDS
        )
        labels = chord_targets(numbers, times_seconds, outside=0).astype(np.float32)
        return np.stack([boundaries, labels], axis=-1)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep the times of sections: all but changes of time."""
        return frozenset(Effect) - {Effect.TIME}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effect that moves sections in time."""
        return frozenset({Effect.TIME})

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a waveform, and of a boundary target and a label for each frame."""
        return (window.num_samples,), (window.grid.num_frames(window.num_samples), 2)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over windows of the losses of boundaries and of labels.

        The loss of boundaries is the mean binary cross-entropy of all frames; that of labels is the mean
        cross-entropy of the frames with one. Each window counts the same, so that a batch may be divided.

        Args:
            outputs: Logits, (batch, frames, 1 + labels).
            targets: (batch, frames, 2), as `frame_targets` returns them.
        """
        boundaries = F.binary_cross_entropy_with_logits(
            outputs[..., 0], targets[..., 0], reduction="none"
        ).mean(dim=1)
        numbers = targets[..., 1].long() - 1
        of_frames = F.cross_entropy(
            outputs[..., 1:].transpose(1, 2), numbers, ignore_index=-1, reduction="none"
        )
        labels = of_frames.sum(dim=1) / (numbers >= 0).sum(dim=1).clamp(min=1)
        return (boundaries + labels).mean()

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of a boundary and of each label, (batch, frames, 1 + labels)."""
        return torch.cat([outputs[..., :1].sigmoid(), outputs[..., 1:].softmax(dim=-1)], dim=-1)

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> StructurePrediction:
        """Aggregate the frames of all windows and decode them."""
        grid, scores = join_windows(checked, windows)
        times = grid.times(len(scores))
        borders, numbers = decode_sections(
            scores[:, 0],
            scores[:, 1:],
            times,
            checked.audio.duration_seconds,
            threshold=self.boundary_threshold,
        )
        labels = tuple(self.labels[number] for number in numbers)
        return StructurePrediction(
            sections=Sections(borders_seconds=borders, labels=labels),
            frame_times_seconds=times,
            boundaries=scores[:, 0],
        )

    def evaluate_track(
        self, checked: CheckedTrack, prediction: StructurePrediction
    ) -> dict[str, float]:
        """Return the scores of a track against the annotated times and labels."""
        reference = self.annotation(checked.track)
        return section_scores(
            reference.intervals_seconds,
            reference.labels,
            prediction.sections.intervals_seconds,
            prediction.sections.labels,
        )

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[dict[str, float]],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot the sections of the first track, predicted and annotated."""
        from m2v_finetune.plotting.sections import plot_sections

        checked = tracks[0]
        prediction = predict(checked)
        assert isinstance(prediction, StructurePrediction)
        reference = self.annotation(checked.track)
        intervals = reference.intervals_seconds.tolist()
        plot_sections(
            prediction.segments,
            [(a, b, c) for (a, b), c in zip(intervals, reference.labels, strict=True)],
            prediction.boundaries,
            prediction.frame_times_seconds,
            folder / "structure.png",
            title=f"Structure of {checked.track.id}",
        )
        return {"structure.png": "Sections of a test track, and the probability of a boundary"}
