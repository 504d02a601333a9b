"""Melody: the pitch of the main melody along a track."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.config.ranges import between_0_and_1
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.decoding.melody import (
    BINS_PER_OCTAVE,
    LOWEST_BIN_HZ,
    NUM_BINS,
    TARGET_STD_BINS,
    decode_melody,
)
from m2v_finetune.files import as_json
from m2v_finetune.labels.melody import Melody, format_melody, read_melody
from m2v_finetune.metrics.melody import melody_scores
from m2v_finetune.tasks.frames import FrameTask, join_windows
from m2v_finetune.tasks.shown import Shown
from m2v_finetune.tasks.task import Prediction, WindowScores

SHOWN_SECONDS = 10.0

_read_melody = cache(read_melody)


@dataclass(frozen=True, kw_only=True)
class MelodyConfig:
    """Settings of the melody annotations and of decoding.

    Args:
        label_column: Column with the path of a track's melody, relative to the manifest: a text file with a
            line for each time in seconds and frequency in Hz, or a MIDI file with a track ``melody``.
        voicing_threshold: Probability from which there is a melody; lower finds more of it, and more where
            there is none.
    """

    label_column: str = "melody"
    voicing_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check the range."""
        between_0_and_1("task.voicing_threshold", self.voicing_threshold)


@dataclass(frozen=True, kw_only=True, eq=False)
class MelodyPrediction:
    """Melody of a track.

    Attributes:
        times_seconds: Times of the frames, (frames,).
        frequencies_hz: Fundamental frequency, (frames,); negative where there is no melody: a guess.
        voicing: Probability of a melody, (frames,).
    """

    times_seconds: NDArray[np.float64]
    frequencies_hz: NDArray[np.float64]
    voicing: NDArray[np.float64]

    @property
    def is_voiced(self) -> NDArray[np.bool_]:
        """Whether a frame has a melody, (frames,)."""
        found: NDArray[np.bool_] = self.frequencies_hz > 0
        return found

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the range of the melody, with a timeline each frame; or a line of JSON."""
        voiced = self.frequencies_hz.clip(min=0)
        if kind == "json":
            return as_json(
                {
                    "path": str(path),
                    "times_seconds": self.times_seconds.round(3).tolist(),
                    "frequencies_hz": voiced.round(2).tolist(),
                }
            )
        lines = [str(path), f"  {self._summary()}"]
        if timeline:
            pairs = zip(self.times_seconds, voiced, strict=True)
            lines += [f"  {time:8.3f}  {hz:8.2f} Hz" for time, hz in pairs]
        return "\n".join(lines) + "\n"

    def _summary(self) -> str:
        voiced = self.frequencies_hz[self.is_voiced]
        if not len(voiced):
            return "no melody"
        share = len(voiced) / len(self.frequencies_hz)
        return f"melody in {share:.0%} of the time, {voiced.min():.1f} to {voiced.max():.1f} Hz"

    def show(self, path: Path) -> Shown:
        """Return the pitch along the song."""
        from m2v_finetune.plotting.song import draw_melody

        return Shown(
            text=f"**{self._summary()}**",
            pictures={
                "Melody": draw_melody(self.times_seconds, self.frequencies_hz.clip(min=0)),
            },
        )

    def write(self, kind: str, destination: Path) -> None:
        """Write a CSV file of times and frequencies."""
        text = format_melody(self.times_seconds, self.frequencies_hz)
        destination.write_text(text, encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class MelodyExtraction(FrameTask):
    """Voicing, and pitch in bins of 20 cents, at each frame.

    Attributes:
        label_column: Column of the manifest.
        voicing_threshold: Probability from which there is a melody.
    """

    name: ClassVar[str] = "melody"
    settings_class: ClassVar[type[Any]] = MelodyConfig
    selection_metric: ClassVar[str] = "overall_accuracy"
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "f0": ".csv"}
    usage_example: ClassVar[str] = ".frequencies_hz"
    about_metrics: ClassVar[str] = (
        "The mean over tracks, by mir_eval, at the annotated times. A pitch is right within 50 cents; raw "
        "accuracies also count the guessed pitch of frames without melody. Lower is better for false alarms."
    )
    metric_names: ClassVar[Mapping[str, str]] = {
        "overall_accuracy": "overall accuracy",
        "raw_pitch_accuracy": "raw pitch accuracy",
        "raw_chroma_accuracy": "raw chroma accuracy",
        "voicing_recall": "voicing recall",
        "voicing_false_alarm": "voicing false alarm",
    }
    num_outputs: ClassVar[int] = 1 + NUM_BINS
    num_binary: ClassVar[int | None] = 1

    label_column: str
    voicing_threshold: float = 0.5

    def read(self, path: Path) -> Melody:
        """Read the melody of a file; the result is cached."""
        return _read_melody(path)

    def end_seconds(self, annotation: Melody) -> float:
        """Return the last time in an annotation."""
        return float(annotation.times_seconds[-1])

    def times_seconds(self, annotation: Melody) -> NDArray[np.float64]:
        """Return the times with a melody, (times,)."""
        return annotation.times_seconds[annotation.frequencies_hz > 0]

    def frame_targets(
        self, track: Track, times_seconds: NDArray[np.float64], *, semitones: int
    ) -> NDArray[np.float32]:
        """Return the frequency of the melody in Hz at each frame, (frames,), 0 where there is none."""
        frequencies = self.annotation(track).at(times_seconds)
        shifted: NDArray[np.float32] = (frequencies * 2.0 ** (semitones / 12)).astype(np.float32)
        return shifted

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep the melody as it is."""
        return frozenset(Effect) - {Effect.PITCH, Effect.TIME, Effect.SILENCE}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effects that transform the melody: shifts of pitch and changes of time."""
        return frozenset({Effect.PITCH, Effect.TIME})

    def example_shapes(self, window: Window) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a waveform, and of a frequency for each frame."""
        return (window.num_samples,), (window.grid.num_frames(window.num_samples),)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over windows of the losses of voicing and of pitch.

        The loss of voicing is the mean binary cross-entropy of all frames; that of pitch is the mean
        cross-entropy of the frames with a melody, against a Gaussian around its pitch. A pitch outside the
        bins has no loss. Each window counts the same, so that a batch may be divided.

        Args:
            outputs: Logits, (batch, frames, 1 + `NUM_BINS`).
            targets: Frequencies in Hz, (batch, frames), 0 where there is no melody.
        """
        is_voiced = targets > 0
        voicing = F.binary_cross_entropy_with_logits(
            outputs[..., 0], is_voiced.to(outputs.dtype), reduction="none"
        ).mean(dim=1)
        bins = torch.arange(NUM_BINS, device=targets.device, dtype=targets.dtype)
        position = BINS_PER_OCTAVE * (targets.clamp(min=1.0) / LOWEST_BIN_HZ).log2()
        weights = torch.exp(-0.5 * ((bins - position[..., None]) / TARGET_STD_BINS).square())
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1.0)
        of_frames = -(weights * outputs[..., 1:].log_softmax(dim=-1)).sum(dim=-1) * is_voiced
        pitch = of_frames.sum(dim=1) / is_voiced.sum(dim=1).clamp(min=1)
        return (voicing + pitch).mean()

    def activate(self, outputs: Tensor) -> Tensor:
        """Return the probabilities of a melody and of each bin, (batch, frames, 1 + `NUM_BINS`)."""
        return torch.cat([outputs[..., :1].sigmoid(), outputs[..., 1:].softmax(dim=-1)], dim=-1)

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> MelodyPrediction:
        """Aggregate the frames of all windows and decode them."""
        grid, scores = join_windows(checked, windows)
        frequencies = decode_melody(scores[:, 0], scores[:, 1:], threshold=self.voicing_threshold)
        return MelodyPrediction(
            times_seconds=grid.times(len(scores)),
            frequencies_hz=frequencies,
            voicing=scores[:, 0],
        )

    def evaluate_track(
        self, checked: CheckedTrack, prediction: MelodyPrediction
    ) -> dict[str, float]:
        """Return the scores of a track at the annotated times; nan where undefined."""
        reference = self.annotation(checked.track).until(checked.audio.duration_seconds)
        return melody_scores(
            reference.times_seconds,
            reference.frequencies_hz,
            prediction.times_seconds,
            prediction.frequencies_hz,
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
        """Plot the melody of the first track, predicted and annotated."""
        from m2v_finetune.plotting.melody import plot_melody

        checked = tracks[0]
        prediction = predict(checked)
        assert isinstance(prediction, MelodyPrediction)
        reference = self.annotation(checked.track)
        plot_melody(
            (prediction.times_seconds, prediction.frequencies_hz.clip(min=0)),
            (reference.times_seconds, reference.frequencies_hz.clip(min=0)),
            folder / "melody.png",
            end_seconds=min(SHOWN_SECONDS, checked.audio.duration_seconds),
            title=f"Melody of {checked.track.id}",
        )
        return {"melody.png": "Melody of the first seconds of a test track"}
