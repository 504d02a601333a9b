"""Key: one of 24 for a track."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track, require_column
from m2v_finetune.labels.keys import KEYS, parse_key, transpose_key
from m2v_finetune.metrics.intervals import Statistic
from m2v_finetune.tasks.classification import Classification, as_label
from m2v_finetune.tasks.clips import EvaluatedClip, stack_evaluated
from m2v_finetune.tasks.task import Prediction

logger = logging.getLogger(__name__)

ABOUT_METRICS = (
    "The weighted score is that of mir_eval: 1 for the right key, 0.5 for one a perfect fifth above it, "
    "0.3 for the relative and 0.2 for the parallel key, else 0. (MIREX names no direction of the fifth; "
    "`error_kinds` in results.json counts those below apart.)"
)


@dataclass(frozen=True, kw_only=True)
class KeyConfig:
    """Settings of the key labels.

    Args:
        label_column: Column with a track's key, such as ``A minor``, ``Bb major`` or ``F#:min``.
    """

    label_column: str = "key"


@dataclass(frozen=True, kw_only=True)
class Key(Classification):
    """Key of a track. All 24 are classes, whichever occur."""

    name: ClassVar[str] = "key"
    settings_class: ClassVar[type[Any]] = KeyConfig
    selection_metric: ClassVar[str] = "mirex_score"
    metric_names: ClassVar[Mapping[str, str]] = {
        "mirex_score": "weighted score",
        "accuracy": "accuracy",
    }

    @classmethod
    def from_tracks(cls, config: Any, splits: Mapping[str, Sequence[Track]]) -> "Key":
        """Check the key of every track.

        Raises:
            UserError: The column is in no track, or lists each track without exactly one key.
        """
        task = cls.from_training(config, splits["train"])
        task.check_labels([track for members in splits.values() for track in members])
        return task

    @classmethod
    def from_training(cls, config: Any, tracks: Sequence[Track]) -> "Key":
        """Make the task from its settings, as the classes are known; `UserError` without the column."""
        column = config.label_column
        require_column(tracks, column)
        keys = set()
        for track in tracks:
            with suppress(ValueError):  # listed by `label_problems`
                keys.add(cls.read_label(track, column))
        if len(keys) == 1:
            logger.warning(
                "Every training track has the same %s, '%s': there is nothing to learn.",
                column,
                *keys,
            )
        return cls.from_settings(config)

    @classmethod
    def from_settings(cls, config: KeyConfig) -> "Key":
        """Make the task from its settings: the classes are known."""
        return cls(labels=KEYS, label_column=config.label_column)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Key":
        """Rebuild the task from the result of `to_dict`; raise ValueError if it is not valid."""
        task = super().from_dict(settings)
        if task.labels != KEYS:
            raise ValueError(f"its labels are not the {len(KEYS)} keys in their order")
        return task

    @classmethod
    def read_label(cls, track: Track, column: str) -> str:
        """Return a track's key, one of `KEYS`.

        Raises:
            ValueError: There is none, more than one, or one that is neither major nor minor.
        """
        text = as_label(track, column)
        if text is None:
            raise ValueError(f"one key is needed, found {track.columns.get(column)!r}")
        return parse_key(text)

    def targets(self, track: Track, label_transform: LabelTransform) -> NDArray[np.float32]:
        """Return the number of the track's key, (), transposed by the pitch shift of the window."""
        key = self.read_label(track, self.label_column)
        transposed = transpose_key(key, round(label_transform.semitones))
        return np.asarray(KEYS.index(transposed), dtype=np.float32)

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep a key: all but a pitch shift."""
        return frozenset(Effect) - {Effect.PITCH}

    def transformed_effects(self) -> frozenset[Effect]:
        """Return the pitch shift, which transposes the key."""
        return frozenset({Effect.PITCH})

    def summarize(self, evaluated: Sequence[EvaluatedClip], *, seed: int) -> dict[str, Any]:
        """Return weighted score and accuracy with intervals, the kinds of errors, and the confusion."""
        from m2v_finetune.metrics.key import key_report

        targets, scores = stack_evaluated(evaluated)
        report = key_report(targets.astype(int), scores, seed=seed)
        return {**report, "about_metrics": ABOUT_METRICS}

    def statistics(self, evaluated: Sequence[EvaluatedClip]) -> dict[str, Statistic]:
        """Return weighted score and accuracy as statistics of counts of draws."""
        from m2v_finetune.metrics.key import key_statistics

        targets, scores = stack_evaluated(evaluated)
        return key_statistics(targets.astype(int), scores)

    def plot(
        self,
        folder: Path,
        *,
        results: Mapping[str, Any],
        evaluated: Sequence[EvaluatedClip],
        tracks: Sequence[CheckedTrack],
        predict: Callable[[CheckedTrack], Prediction],
    ) -> dict[str, str]:
        """Plot the predictions on the circle of fifths, and the confusion matrix."""
        from m2v_finetune.plotting.keys import plot_key_errors

        plot_key_errors(np.array(results["confusion"]), folder / "key_errors.png")
        captions = super().plot(
            folder, results=results, evaluated=evaluated, tracks=tracks, predict=predict
        )
        return {"key_errors.png": "Predictions on the circle of fifths", **captions}
