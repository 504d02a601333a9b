"""Chords: major and minor triads, and none, along a track."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.decoding.chords import decode_chords
from m2v_finetune.decoding.targets import chord_targets
from m2v_finetune.files import as_json
from m2v_finetune.labels.chords import (
    CHORDS,
    NO_CHORD,
    UNKNOWN_CHORD,
    Segment,
    format_lab,
    read_lab,
    to_majmin,
    transpose_chord,
    write_lab,
)
from m2v_finetune.metrics.chords import chord_report, chord_scores, chord_statistics
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.frames import FrameTask, join_windows
from m2v_finetune.tasks.shown import Shown
from m2v_finetune.tasks.task import Prediction, WindowScores

# Frames outside the 25 classes: neither trained nor evaluated.
IGNORED = -1
# Own choice: at 50 frames a second a chord changes about once in two seconds, one frame of a hundred.
SELF_TRANSITION = 0.99
LEAST_PROBABILITY = 1e-7
SHOWN_SECONDS = 30.0

_read_lab = cache(read_lab)


@dataclass(frozen=True, kw_only=True)
class ChordsConfig:
    """Settings of the chord annotations.

    Args:
        label_column: Column with the path of a track's ``.lab`` file, relative to the manifest: a
            line a chord, with its start and end in seconds and its label.
    """

    label_column: str = "chords"


@dataclass(frozen=True, kw_only=True, eq=False)
class ChordsPrediction:
    """Chords of a track.

    Attributes:
        segments: Segments from 0 to the end of the track, without gaps, with labels of
            `labels.chords.CHORDS`.
        frame_times_seconds: (frames,).
        probabilities: (frames, 25), of each chord.
    """

    segments: list[Segment]
    frame_times_seconds: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the segments as human-readable lines, or as a line of JSON."""
        if kind == "json":
            chords = [
                {
                    "start_seconds": round(s.start_seconds, 3),
                    "end_seconds": round(s.end_seconds, 3),
                    "label": s.label,
                }
                for s in self.segments
            ]
            return as_json({"path": str(path), "chords": chords})
        lines = format_lab(self.segments).expandtabs(12).splitlines()
        return "\n".join([str(path), *(f"  {line}" for line in lines)]) + "\n"

    def show(self, path: Path) -> Shown:
        """Return the segments along the song."""
        from m2v_finetune.plotting.song import draw_chords

        segments = [(s.start_seconds, s.end_seconds, s.label) for s in self.segments]
        names = {label for *_, label in segments} - {NO_CHORD}
        return Shown(
            text=f"**{len(segments)} segments, {len(names)} different chords**",
            pictures={
                "Chords along the song: colours by the circle of fifths; light is major, dark minor, "
                "grey none": draw_chords(segments)
            },
        )

    def write(self, kind: str, destination: Path) -> None:
        """Write a ``.lab`` file."""
        write_lab(destination, self.segments)


@dataclass(frozen=True, kw_only=True)
class ChordRecognition(FrameTask):
    """Chord recognition: one of 25 chords at each frame, decoded to segments.

    Attributes:
        label_column: Column of the manifest.
    """

    name: ClassVar[str] = "chords"
    settings_class: ClassVar[type[Any]] = ChordsConfig
    selection_metric: ClassVar[str] = "majmin"
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "lab": ".lab"}
    usage_example: ClassVar[str] = ".segments"
    about_metrics: ClassVar[str] = (
        "The share of the time in which the chord is correct, over all tracks, by mir_eval. Time whose "
        "true chord is neither a major nor a minor triad, with or without more notes above, does not "
        "count."
    )
    metric_names: ClassVar[Mapping[str, str]] = {
        "majmin": "weighted chord symbol recall, major and minor",
        "root": "weighted chord symbol recall, root",
    }
    num_outputs: ClassVar[int] = len(CHORDS)
    num_binary: ClassVar[int | None] = 0
    silence: ClassVar[float] = CHORDS.index(NO_CHORD)

    label_column: str

    def read(self, path: Path) -> list[Segment]:
        """Read the chords of a file; the result is cached."""
        return _read_lab(path)

    def end_seconds(self, annotation: list[Segment]) -> float:
        """Return the last time in an annotation."""
        return float(annotation[-1].end_seconds)

    def times_seconds(self, annotation: list[Segment]) -> NDArray[np.float64]:
        """Return the starts of the segments, and the end of the last one, (segments + 1,)."""
        starts = [segment.start_seconds for segment in annotation]
        return np.array([*starts, annotation[-1].end_seconds])

    def frame_targets(
        self, track: Track, times_seconds: NDArray[np.float64], *, semitones: int
    ) -> NDArray[np.float32]:
        """Return the class of each frame, (frames,), -1 where the chord is outside the classes."""
        segments = self.annotation(track)
        classes = [
            (s.start_seconds, s.end_seconds, _class_of(transpose_chord(s.label, semitones)))
            for s in segments
        ]
        return chord_targets(classes, times_seconds, outside=IGNORED).astype(np.float32)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep chords as they are."""
        return frozenset(Effect) - {Effect.PITCH, Effect.TIME, Effect.SILENCE}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effects that transform chords: shifts of pitch and changes of time."""
        return frozenset({Effect.PITCH, Effect.TIME})

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a waveform, and of the number of a class for each frame."""
        return (window.num_samples,), (window.grid.num_frames(window.num_samples),)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over windows of the mean cross-entropy of frames that have a class.

        A window without such a frame has a loss of 0. Each window counts the same, so that a batch may be
        divided.

        Args:
            outputs: Logits, (batch, frames, 25).
            targets: Classes, (batch, frames), -1 for frames that do not count.
        """
        classes = targets.long()
        of_frames = F.cross_entropy(
            outputs.transpose(1, 2), classes, ignore_index=IGNORED, reduction="none"
        )
        return (of_frames.sum(dim=1) / (classes != IGNORED).sum(dim=1).clamp(min=1)).mean()

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities, (batch, frames, 25)."""
        return outputs.softmax(dim=-1)

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> ChordsPrediction:
        """Aggregate the frames of all windows and decode them."""
        grid, probabilities = join_windows(checked, windows)
        times = grid.times(len(probabilities))
        segments = decode_chords(
            np.log(probabilities.clip(min=LEAST_PROBABILITY)),
            times,
            checked.audio.duration_seconds,
            self_transition=SELF_TRANSITION,
        )
        return ChordsPrediction(
            segments=[
                Segment(start_seconds=start, end_seconds=end, label=CHORDS[number])
                for start, end, number in segments
            ],
            frame_times_seconds=times,
            probabilities=probabilities,
        )

    def evaluate_track(
        self, checked: CheckedTrack, prediction: ChordsPrediction
    ) -> dict[str, float]:
        """Return recalls and the seconds that count, against the annotated times."""
        reference = without_gaps(self.annotation(checked.track))
        return chord_scores(*_as_arrays(reference), *_as_arrays(prediction.segments))

    def compute_metrics(self, evaluated: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Return both recalls, weighted by the seconds that count; nan where none do."""
        found = {}
        for name in self.metric_names:
            seconds = np.array([one[f"{name}_seconds"] for one in evaluated])
            right = np.nansum([one[name] * one[f"{name}_seconds"] for one in evaluated])
            found[name] = float(right / seconds.sum()) if seconds.any() else float("nan")
        return found

    def summarize(self, evaluated: Sequence[Mapping[str, float]], *, seed: int) -> dict[str, Any]:
        """Return both recalls with intervals, and the seconds that counted."""
        report = chord_report(evaluated, seed=seed)
        return {
            "metrics": report["metrics"],
            "scored_seconds": report["seconds"],
            "about_metrics": self.about_metrics,
        }

    def statistics(self, evaluated: Sequence[Mapping[str, float]]) -> dict[str, Statistic]:
        """Return both recalls as statistics of counts of draws."""
        return chord_statistics(evaluated)

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[Mapping[str, float]],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot the chords of the first track, predicted and annotated."""
        from m2v_finetune.plotting.chords import plot_chords

        checked = tracks[0]
        prediction = predict(checked)
        assert isinstance(prediction, ChordsPrediction)
        reference = self.annotation(checked.track)
        plot_chords(
            [(s.start_seconds, s.end_seconds, s.label) for s in prediction.segments],
            [(s.start_seconds, s.end_seconds, s.label) for s in reference],
            prediction.probabilities,
            prediction.frame_times_seconds,
            folder / "chords.png",
            names=CHORDS,
            end_seconds=min(SHOWN_SECONDS, checked.audio.duration_seconds),
            title=f"Chords of {checked.track.id}",
        )
        return {"chords.png": "Chords of the first seconds of a test track"}


def without_gaps(segments: Sequence[Segment]) -> list[Segment]:
    """Fill the time between segments with ``X``: an unknown chord, which does not count."""
    filled: list[Segment] = []
    for segment in segments:
        if filled and filled[-1].end_seconds < segment.start_seconds:
            filled.append(
                Segment(
                    start_seconds=filled[-1].end_seconds,
                    end_seconds=segment.start_seconds,
                    label=UNKNOWN_CHORD,
                )
            )
        filled.append(segment)
    return filled


def _class_of(label: str) -> int:
    triad = to_majmin(label)
    return IGNORED if triad is None else CHORDS.index(triad)


def _as_arrays(segments: Sequence[Segment]) -> tuple[NDArray[np.float64], list[str]]:
    intervals = np.array([(s.start_seconds, s.end_seconds) for s in segments])
    return intervals, [s.label for s in segments]
