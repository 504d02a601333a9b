"""Beats: beats, downbeats and tempo of a track."""

import math
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
from m2v_finetune.audio.clicks import add_clicks
from m2v_finetune.audio.decode import read_audio, read_excerpt
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track
from m2v_finetune.decoding.beats import decode_beats
from m2v_finetune.decoding.targets import beat_targets
from m2v_finetune.files import as_json
from m2v_finetune.labels.beats import Beats, format_beats, read_beats
from m2v_finetune.metrics.beats import beat_scores, tempo_from_beats, tempo_scores
from m2v_finetune.tasks.frames import FrameTask, join_windows
from m2v_finetune.tasks.shown import PREVIEW_SAMPLE_RATE, Shown
from m2v_finetune.tasks.task import Prediction, WindowScores

# A beat's neighbours count half, which is about the precision of annotations (20 ms at 50 Hz).
NEIGHBOURS = 1
# About one frame in 25 has a beat, so it weighs more than a frame without.
POSITIVE_WEIGHT = 5.0
SHOWN_SECONDS = 10.0
CLICKS_SAMPLE_RATE = 44_100

_read_beats = cache(read_beats)


@dataclass(frozen=True, kw_only=True)
class BeatsConfig:
    """Settings of the beat annotations.

    Args:
        label_column: Column with the path of a track's ``.beats`` file, relative to the manifest: a
            line a beat, its time in seconds and its position in the bar (1 is the downbeat). Without
            positions downbeats are neither trained nor evaluated.
    """

    label_column: str = "beats"


@dataclass(frozen=True, kw_only=True, eq=False)
class BeatsPrediction:
    """Beats of a track.

    Attributes:
        times_seconds: (beats,), ascending.
        positions: (beats,), in the bar; 1 is the downbeat.
        tempo_bpm: Tempo of the median interval; nan for fewer than two beats.
        frame_times_seconds: (frames,).
        activations: (frames, 2), the probabilities of a beat and of a downbeat.
    """

    times_seconds: NDArray[np.float64]
    positions: NDArray[np.intp]
    tempo_bpm: float
    frame_times_seconds: NDArray[np.float64]
    activations: NDArray[np.float64]

    @property
    def downbeats_seconds(self) -> NDArray[np.float64]:
        """Times of the downbeats, (downbeats,)."""
        downbeats: NDArray[np.float64] = self.times_seconds[self.positions == 1]
        return downbeats

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return human-readable text, or a line of JSON; a timeline adds the beats to the text."""
        if kind == "json":
            return as_json(
                {
                    "path": str(path),
                    "tempo_bpm": round(self.tempo_bpm, 3)
                    if math.isfinite(self.tempo_bpm)
                    else None,
                    "beats_seconds": self.times_seconds.round(3).tolist(),
                    "positions": self.positions.tolist(),
                }
            )
        lines = [str(path), f"  {self._summary()}"]
        if timeline:
            pairs = zip(self.times_seconds, self.positions, strict=True)
            lines += [f"  {time:8.3f}  {position}" for time, position in pairs]
        return "\n".join(lines) + "\n"

    def _summary(self) -> str:
        tempo = f"{self.tempo_bpm:.1f} bpm" if math.isfinite(self.tempo_bpm) else "no tempo"
        counts = f"{len(self.times_seconds)} beats, {len(self.downbeats_seconds)} downbeats"
        return f"{tempo}, {counts}"

    def show(self, path: Path) -> Shown:
        """Return the beats over the waveform, and the song with a click at each beat."""
        from m2v_finetune.plotting.song import draw_beats

        picture = draw_beats(
            read_audio(path, sample_rate=PREVIEW_SAMPLE_RATE),
            PREVIEW_SAMPLE_RATE,
            self.times_seconds,
            self.downbeats_seconds,
        )
        clicks = add_clicks(
            read_audio(path, sample_rate=CLICKS_SAMPLE_RATE),
            CLICKS_SAMPLE_RATE,
            self.times_seconds,
            self.positions == 1,
        )
        return Shown(
            text=f"**{self._summary()}**",
            pictures={"Beats over the waveform": picture},
            sounds={"The song with a click at each beat": (CLICKS_SAMPLE_RATE, clicks)},
        )

    def write(self, kind: str, destination: Path) -> None:
        """Write a ``.beats`` file."""
        destination.write_text(format_beats(self.times_seconds, self.positions), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class BeatTracking(FrameTask):
    """Beats and downbeats at frames, decoded to times; the tempo follows from them.

    Attributes:
        label_column: Column of the manifest.
    """

    name: ClassVar[str] = "beats"
    settings_class: ClassVar[type[Any]] = BeatsConfig
    selection_metric: ClassVar[str] = "f_measure"
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "beats": ".beats"}
    usage_example: ClassVar[str] = ".tempo_bpm"
    about_metrics: ClassVar[str] = (
        "Beats count within 70 ms; the first seconds count too. CMLt and AMLt are the continuity scores of "
        "mir_eval. The tempo is that of the median interval between beats, right within 4 %; accuracy 2 "
        "also takes its double, triple, half and third."
    )
    metric_names: ClassVar[Mapping[str, str]] = {
        "f_measure": "beat F-measure",
        "cmlt": "beat CMLt",
        "amlt": "beat AMLt",
        "downbeat_f_measure": "downbeat F-measure",
        "downbeat_cmlt": "downbeat CMLt",
        "downbeat_amlt": "downbeat AMLt",
        "tempo_accuracy_1": "tempo accuracy 1",
        "tempo_accuracy_2": "tempo accuracy 2",
    }
    num_outputs: ClassVar[int] = 2

    label_column: str

    def read(self, path: Path) -> Beats:
        """Read the beats of a file; the result is cached."""
        return _read_beats(path)

    def end_seconds(self, annotation: Beats) -> float:
        """Return the last time in an annotation."""
        return float(annotation.times_seconds.max(initial=0.0))

    def times_seconds(self, annotation: Beats) -> NDArray[np.float64]:
        """Return the times of the beats, (beats,)."""
        return annotation.times_seconds

    def frame_targets(
        self, track: Track, times_seconds: NDArray[np.float64], *, semitones: int
    ) -> NDArray[np.float32]:
        """Return 1 at the frame of a beat and of a downbeat, 0.5 beside it, else 0; (frames, 2).

        Where downbeats are not annotated their column is nan.
        """
        beats = self.annotation(track)
        downbeats = beats.downbeats_seconds
        columns = [
            np.full(len(times_seconds), np.nan, dtype=np.float32)
            if events is None
            else beat_targets(events, times_seconds, width_frames=NEIGHBOURS)
            for events in (beats.times_seconds, downbeats)
        ]
        return np.stack(columns, axis=-1)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep the times of beats: all but changes of time."""
        return frozenset(Effect) - {Effect.TIME}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effect that moves beats in time."""
        return frozenset({Effect.TIME})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over windows of the mean binary cross-entropy of annotated frames.

        Beats weigh more. Each window counts the same, so that a batch may be divided.

        Args:
            outputs: Logits, (batch, frames, 2).
            targets: (batch, frames, 2), nan where there is no annotation.
        """
        known = ~targets.isnan()
        # A weight of zero and not a selection: its size would have to be read from the device.
        of_frames = F.binary_cross_entropy_with_logits(
            outputs,
            targets.nan_to_num(),
            weight=known.to(outputs.dtype),
            pos_weight=outputs.new_full((), POSITIVE_WEIGHT),
            reduction="none",
        )
        return (of_frames.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)).mean()

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities, (batch, frames, 2)."""
        return outputs.sigmoid()

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> BeatsPrediction:
        """Aggregate the frames of all windows and decode them."""
        grid, activations = join_windows(checked, windows)
        times = grid.times(len(activations))
        beats, positions = decode_beats(
            activations[:, 0], activations[:, 1], times, grid.frame_rate
        )
        return BeatsPrediction(
            times_seconds=beats,
            positions=positions,
            tempo_bpm=tempo_from_beats(beats),
            frame_times_seconds=times,
            activations=activations,
        )

    def evaluate_track(
        self, checked: CheckedTrack, prediction: BeatsPrediction
    ) -> dict[str, float]:
        """Return the scores of a track against the annotated times; nan without annotation."""
        reference = self.annotation(checked.track)
        scores = beat_scores(reference.times_seconds, prediction.times_seconds)
        downbeats = reference.downbeats_seconds
        of_downbeats = beat_scores(
            np.zeros(0) if downbeats is None else downbeats, prediction.downbeats_seconds
        )
        return {
            **scores,
            **{f"downbeat_{name}": score for name, score in of_downbeats.items()},
            **tempo_scores(tempo_from_beats(reference.times_seconds), prediction.tempo_bpm),
        }

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[dict[str, float]],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot activations and beats over the waveform of the first track."""
        from m2v_finetune.plotting.beats import plot_beats

        checked = tracks[0]
        prediction = predict(checked)
        assert isinstance(prediction, BeatsPrediction)
        reference = self.annotation(checked.track)
        shown = min(SHOWN_SECONDS, checked.audio.duration_seconds)
        plot_beats(
            read_excerpt(
                checked.track.path,
                sample_rate=PREVIEW_SAMPLE_RATE,
                start_sample=0,
                num_samples=round(shown * PREVIEW_SAMPLE_RATE),
            ),
            PREVIEW_SAMPLE_RATE,
            prediction.frame_times_seconds,
            prediction.activations[:, 0],
            prediction.activations[:, 1],
            prediction.times_seconds,
            prediction.downbeats_seconds,
            reference.times_seconds,
            reference.downbeats_seconds,
            folder / "beats.png",
            title=f"Beats of {checked.track.id}",
        )
        return {"beats.png": "Predicted beats in the first seconds of a test track"}
