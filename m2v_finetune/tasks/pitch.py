"""Pitch: the MIDI number of a single note."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.config.ranges import in_range
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Augment, Window, load_waveform
from m2v_finetune.data.manifest import Track
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.classification import Classification, as_label
from m2v_finetune.tasks.clips import Array, EvaluatedClip, stack_evaluated

MIDI_PITCHES = range(128)


@dataclass(frozen=True, kw_only=True)
class PitchConfig:
    """Settings of the pitch labels.

    Args:
        label_column: Column with a note's pitch, a MIDI number from 0 to 127.
        labels: Pitches; all that occur in the training split if not given.
        class_weight: Weight of a class in the loss. ``none`` is 1; ``balanced`` is inverse to the number of
            training tracks. Try ``balanced`` where macro F1 matters more than accuracy.
        label_smoothing: Share of the target that is spread over all classes, from 0 to below 1. 0.1 is
            usual; try it where labels are noisy: predictions are less confident.
    """

    label_column: str = "pitch"
    labels: list[int] | None = None
    class_weight: Literal["none", "balanced"] = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        in_range("task.label_smoothing", self.label_smoothing, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Pitch(Classification):
    """Pitch of a note, of NSynth's 112 (MIDI 9 to 120) or your own."""

    name: ClassVar[str] = "pitch"
    settings_class: ClassVar[type[Any]] = PitchConfig
    metric_names: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "pitch_class_accuracy": "accuracy within an octave class",
        "macro_f1": "macro F1",
    }

    @classmethod
    def from_settings(cls, config: PitchConfig) -> "Pitch":
        """Make the task from its settings; where they name no pitches, all are assumed."""
        labels = tuple(str(pitch) for pitch in config.labels or MIDI_PITCHES)
        return cls(
            labels=labels,
            label_column=config.label_column,
            class_weights=(1.0,) * len(labels) if config.class_weight == "balanced" else (),
            label_smoothing=config.label_smoothing,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Pitch":
        """Rebuild the task from the result of `to_dict`; raise ValueError if it is not valid."""
        task = super().from_dict(settings)
        if not set(task.labels) <= set(map(str, MIDI_PITCHES)):
            raise ValueError(f"its labels are {list(task.labels)}, not MIDI numbers")
        return task

    @classmethod
    def read_label(cls, track: Track, column: str) -> str:
        """Return a track's pitch without leading zeros.

        Raises:
            ValueError: There is none, more than one, or one that is no MIDI number.
        """
        label = as_label(track, column)
        digits = (label or "none").lstrip("0") or "0"
        if digits not in map(str, MIDI_PITCHES):
            given = track.columns.get(column)
            raise ValueError(
                f"a MIDI number from 0 to {MIDI_PITCHES[-1]} is needed, found {given!r}"
            )
        return digits

    def targets(self, track: Track, label_transform: LabelTransform) -> NDArray[np.float32]:
        """Return the number of the class, (), transposed by the pitch shift of the window."""
        return np.asarray(
            self.labels.index(self._transposed(track, label_transform)), dtype=np.float32
        )

    def load_waveform(
        self, checked: CheckedTrack, window: Window, augment: Augment | None
    ) -> tuple[Array, LabelTransform]:
        """Return the augmented waveform of a window, and the transform of its label.

        A window is not augmented where the pitch shift would leave the classes.
        """
        samples, label_transform = load_waveform(checked, window, augment)
        if self._transposed(checked.track, label_transform) not in self.labels:
            return load_waveform(checked, window, None)
        return samples, label_transform

    def _transposed(self, track: Track, label_transform: LabelTransform) -> str:
        return str(
            int(self.read_label(track, self.label_column)) + round(label_transform.semitones)
        )

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep a pitch: all but a pitch shift."""
        return frozenset(Effect) - {Effect.PITCH}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the pitch shift, which transposes the label."""
        return frozenset({Effect.PITCH})

    def summarize(self, evaluated: Sequence[EvaluatedClip], *, seed: int) -> dict[str, Any]:
        """Return accuracy, also within an octave class, with intervals, and the confusion matrix."""
        from m2v_finetune.metrics.pitch import pitch_report

        targets, scores = stack_evaluated(evaluated)
        pitches = [int(label) for label in self.labels]
        report = pitch_report(targets.astype(int), scores, pitches, seed=seed)
        about = "Within an octave class, a prediction whole octaves away counts as correct."
        return {**report, "about_metrics": about}

    def statistics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, Statistic]:
        """Return accuracy, macro F1 and pitch class accuracy as statistics of counts of draws."""
        from m2v_finetune.metrics.pitch import pitch_class_statistic

        targets, scores = stack_evaluated(evaluated)
        pitches = [int(label) for label in self.labels]
        return {
            **super().statistics(evaluated),
            "pitch_class_accuracy": pitch_class_statistic(targets.astype(int), scores, pitches),
        }
