"""Instrument: the family of the instrument that plays a note."""

from dataclasses import dataclass
from typing import Any, ClassVar

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.tasks.classification import Classification, ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class InstrumentConfig(ClassificationConfig):
    """Settings of the instrument labels.

    Args:
        label_column: Column with a track's instrument.
        labels: Instruments; all that occur in the training split if not given.
    """

    label_column: str = "instrument"


@dataclass(frozen=True, kw_only=True)
class Instrument(Classification):
    """Instrument of a recording of one, such as NSynth's eleven families."""

    name: ClassVar[str] = "instrument"
    settings_class: ClassVar[type[Any]] = InstrumentConfig

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep the sound of the instrument.

        A shift of pitch moves formants, and a stretch of time attack and decay.
        """
        return frozenset(Effect) - {Effect.TIMBRE, Effect.PITCH, Effect.TIME}
