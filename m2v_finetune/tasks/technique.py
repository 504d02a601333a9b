"""Singing technique."""

from dataclasses import dataclass
from typing import Any, ClassVar

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.tasks.classification import Classification, ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class TechniqueConfig(ClassificationConfig):
    """Settings of the technique labels.

    Args:
        label_column: Column with a recording's technique.
        labels: Techniques; all that occur in the training split if not given.
    """

    label_column: str = "technique"


@dataclass(frozen=True, kw_only=True)
class Technique(Classification):
    """Singing technique of a recording, such as VocalSet's ten.

    The score is of the whole recording, not of its chunks: MARBLE's published figures differ in this.
    """

    name: ClassVar[str] = "technique"
    settings_class: ClassVar[type[Any]] = TechniqueConfig

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep a technique as it is.

        Vibrato and trill are rates in time, breath and belt are timbre and level.
        """
        return frozenset(Effect) - {Effect.TIMBRE, Effect.TIME, Effect.LEVEL}
