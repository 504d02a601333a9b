"""Transcription: the notes of a track, of the 88 pitches of a piano."""

import logging
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
from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track, problem_list
from m2v_finetune.decoding.notes import decode_notes
from m2v_finetune.decoding.targets import note_targets
from m2v_finetune.errors import UserError
from m2v_finetune.files import as_json
from m2v_finetune.labels.notes import PIANO_PITCHES, Notes, read_midi, write_midi
from m2v_finetune.metrics.transcription import frame_scores, note_scores, piano_roll
from m2v_finetune.tasks.frames import FrameTask, join_windows
from m2v_finetune.tasks.shown import Shown
from m2v_finetune.tasks.task import Prediction, WindowScores

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = PIANO_PITCHES
NUM_PITCHES = HIGHEST - LOWEST + 1
# Own choice: an onset is one frame of a note, and few pitches are active simultaneously.
POSITIVE_WEIGHT = 4.0
# Own choice: a note is decoded from the centre of its first frame to the end of its last one, so this
# leaves out notes of one frame at 50 Hz and of two at 75 Hz.
MIN_NOTE_SECONDS = 0.025
# The network outputs no velocities; a medium one is written.
WRITTEN_VELOCITY = 80
# Frames of the frame metric: instants, finer than those of any backbone.
EVALUATED_FRAME_RATE_HZ = 100.0
SHOWN_SECONDS = 10.0


@cache
def _read_notes(path: Path, sustain: bool) -> Notes:
    return read_midi(path, sustain=sustain, pitch_range=PIANO_PITCHES)


@dataclass(frozen=True, kw_only=True)
class TranscriptionConfig:
    """Settings of the note annotations and of decoding.

    Args:
        label_column: Column with the path of a track's MIDI file, relative to the manifest; its drums
            (channel 10) are not read.
        sustain: Whether the sustain pedal holds notes, as the published results on MAESTRO do.
        onset_threshold: Probability from which a peak is an onset; lower finds more notes, and more that
            are false.
        frame_threshold: Probability from which a pitch is active.
    """

    label_column: str = "notes"
    sustain: bool = True
    onset_threshold: float = 0.5
    frame_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("onset_threshold", "frame_threshold"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UserError(
                    f"task.{name} is {getattr(self, name)}; it must be between 0 and 1.",
                    code="threshold-out-of-range",
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class TranscriptionPrediction:
    """Notes of a track.

    Attributes:
        onsets_seconds: (notes,), ascending.
        offsets_seconds: (notes,).
        pitches: (notes,), MIDI numbers.
    """

    onsets_seconds: NDArray[np.float64]
    offsets_seconds: NDArray[np.float64]
    pitches: NDArray[np.intp]

    @property
    def intervals_seconds(self) -> NDArray[np.float64]:
        """Onset and offset of each note, (notes, 2)."""
        return np.stack([self.onsets_seconds, self.offsets_seconds], axis=-1)

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the number of notes, with a timeline all notes; or a line of JSON."""
        rows = [
            {"onset_seconds": round(start, 3), "offset_seconds": round(end, 3), "pitch": pitch}
            for (start, end), pitch in zip(
                self.intervals_seconds.tolist(), self.pitches.tolist(), strict=True
            )
        ]
        if kind == "json":
            return as_json({"path": str(path), "notes": rows})
        lines = [str(path), f"  {len(rows)} notes"]
        if timeline:
            lines += [
                f"  {r['onset_seconds']:8.3f} - {r['offset_seconds']:8.3f} s  {r['pitch']}"
                for r in rows
            ]
        return "\n".join(lines) + "\n"

    def show(self, path: Path) -> Shown:
        """Return the piano roll of the song."""
        from m2v_finetune.plotting.song import draw_piano_roll

        notes = (self.onsets_seconds, self.offsets_seconds, self.pitches)
        return Shown(
            text=f"**{len(self.pitches)} notes**",
            pictures={"Piano roll": draw_piano_roll(notes, inspect_audio(path).duration_seconds)},
        )

    def write(self, kind: str, destination: Path) -> None:
        """Write a MIDI file."""
        notes = Notes(
            onsets_seconds=self.onsets_seconds,
            offsets_seconds=self.offsets_seconds,
            pitches=self.pitches.astype(np.int64),
            velocities=np.full(len(self.pitches), WRITTEN_VELOCITY, dtype=np.int64),
        )
        write_midi(destination, notes)


@dataclass(frozen=True, kw_only=True)
class Transcription(FrameTask):
    """Onsets and sounding pitches at each frame, decoded to notes.

    Attributes:
        label_column: Column of the manifest.
        sustain: Whether the sustain pedal holds notes.
        onset_threshold: Probability from which a peak is an onset.
        frame_threshold: Probability from which a pitch is active.
    """

    name: ClassVar[str] = "transcription"
    settings_class: ClassVar[type[Any]] = TranscriptionConfig
    selection_metric: ClassVar[str] = "note_f1"
    formats: ClassVar[Mapping[str, str | None]] = {"text": None, "json": None, "midi": ".mid"}
    usage_example: ClassVar[str] = ".pitches"
    about_metrics: ClassVar[str] = (
        "The mean over tracks. A note is correct if its pitch is and its onset is within 50 ms, by "
        f"mir_eval; frames are {EVALUATED_FRAME_RATE_HZ:g} instants a second."
    )
    metric_names: ClassVar[Mapping[str, str]] = {
        "note_f1": "note-onset F1",
        "note_precision": "note-onset precision",
        "note_recall": "note-onset recall",
        "note_with_offset_f1": "note F1 with offsets",
        "frame_f1": "frame F1",
    }
    num_outputs: ClassVar[int] = 2 * NUM_PITCHES
    prior: ClassVar[float | None] = 0.02

    label_column: str
    sustain: bool
    onset_threshold: float = 0.5
    frame_threshold: float = 0.5

    def read(self, path: Path) -> Notes:
        """Read the notes of a file; the result is cached."""
        return _read_notes(path, self.sustain)

    def end_seconds(self, annotation: Notes) -> float:
        """Return the last time in an annotation."""
        return float(annotation.offsets_seconds.max(initial=0.0))

    def times_seconds(self, annotation: Notes) -> NDArray[np.float64]:
        """Return the onsets of the notes, (notes,)."""
        return annotation.onsets_seconds

    def frame_targets(
        self, track: Track, times_seconds: NDArray[np.float64], *, semitones: int
    ) -> NDArray[np.float32]:
        """Return onset roll and frame roll side by side, (frames, 2 * 88), of 0 and 1.

        Notes that a pitch shift moves off the keyboard are in neither.
        """
        notes = self.annotation(track)
        keys = notes.pitches + semitones - LOWEST
        is_key = (keys >= 0) & (keys < NUM_PITCHES)
        rolls = note_targets(
            notes.onsets_seconds[is_key],
            notes.offsets_seconds[is_key],
            keys[is_key],
            times_seconds,
            num_pitches=NUM_PITCHES,
        )
        return np.concatenate(rolls, axis=-1)

    def label_problems(self, tracks: Sequence[Track]) -> list[list[str]]:
        """Return the problems of each track's notes; log the notes that are left out."""
        found = super().label_problems(tracks)
        usable = [track for track, problems in zip(tracks, found, strict=True) if not problems]
        left_out = [line for track in usable for line in self.annotation(track).left_out]
        if left_out:
            what = "Notes of no length, and second onsets at one time, are left out"
            logger.warning(problem_list(what, left_out, "The others count.", limit=5))
        return found

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep notes as they are."""
        return frozenset(Effect) - {Effect.PITCH, Effect.TIME, Effect.SILENCE}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the effects that transform notes: shifts of pitch and changes of time."""
        return frozenset({Effect.PITCH, Effect.TIME})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of logits and rolls, both (batch, frames, 2 * 88)."""
        weight = outputs.new_full((), POSITIVE_WEIGHT)
        return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weight)

    def activate(self, outputs: Tensor) -> Tensor:
        """Return probabilities, (batch, frames, 2 * 88)."""
        return outputs.sigmoid()

    def predict(self, checked: CheckedTrack, windows: WindowScores) -> TranscriptionPrediction:
        """Aggregate the frames of all windows and decode them."""
        grid, rolls = join_windows(checked, windows)
        if len(rolls) == 1:  # shorter than any note
            return TranscriptionPrediction(
                onsets_seconds=np.zeros(0),
                offsets_seconds=np.zeros(0),
                pitches=np.zeros(0, np.intp),
            )
        onsets, offsets, keys = decode_notes(
            rolls[:, :NUM_PITCHES],
            rolls[:, NUM_PITCHES:],
            grid.times(len(rolls)),
            onset_threshold=self.onset_threshold,
            frame_threshold=self.frame_threshold,
            min_note_seconds=MIN_NOTE_SECONDS,
        )
        return TranscriptionPrediction(
            onsets_seconds=onsets, offsets_seconds=offsets, pitches=keys + LOWEST
        )

    def evaluate_track(
        self, checked: CheckedTrack, prediction: TranscriptionPrediction
    ) -> dict[str, float]:
        """Return the scores of a track against the annotated times."""
        reference = self.annotation(checked.track)
        true_intervals = np.stack([reference.onsets_seconds, reference.offsets_seconds], axis=-1)
        num_frames = int(checked.audio.duration_seconds * EVALUATED_FRAME_RATE_HZ)
        rolls = [
            piano_roll(
                intervals, pitches, frame_rate_hz=EVALUATED_FRAME_RATE_HZ, num_frames=num_frames
            )
            for intervals, pitches in (
                (true_intervals, reference.pitches),
                (prediction.intervals_seconds, prediction.pitches),
            )
        ]
        return {
            **note_scores(
                true_intervals, reference.pitches, prediction.intervals_seconds, prediction.pitches
            ),
            **frame_scores(*rolls),
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
        """Plot the notes of the first track, predicted and annotated."""
        from m2v_finetune.plotting.notes import plot_piano_roll

        checked = tracks[0]
        prediction = predict(checked)
        assert isinstance(prediction, TranscriptionPrediction)
        reference = self.annotation(checked.track)
        plot_piano_roll(
            (prediction.onsets_seconds, prediction.offsets_seconds, prediction.pitches),
            (reference.onsets_seconds, reference.offsets_seconds, reference.pitches),
            folder / "piano_roll.png",
            start_seconds=0.0,
            end_seconds=min(SHOWN_SECONDS, checked.audio.duration_seconds),
            title=f"Notes of {checked.track.id}",
        )
        return {"piano_roll.png": "Notes of the first seconds of a test track"}
