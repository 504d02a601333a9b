"""Singer identification."""

from dataclasses import dataclass
from typing import Any, ClassVar

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.tasks.classification import Classification, ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class SingerConfig(ClassificationConfig):
    """Settings of the singer labels.

    Args:
        label_column: Column with a recording's singer.
        labels: Singers; all that occur in the training split if not given.
    """

    label_column: str = "singer"


@dataclass(frozen=True, kw_only=True)
class Singer(Classification):
    """Singer of a recording, such as VocalSet's twenty.

    The score is of the whole recording, not of its chunks: MARBLE's published figures differ in this.
    """

    name: ClassVar[str] = "singer"
    settings_class: ClassVar[type[Any]] = SingerConfig

    def allowed_effects(self) -> frozenset[Effect]:
        """Return the effects that keep a voice as it is: a pitch shift would move its formants."""
        return frozenset(Effect) - {Effect.TIMBRE, Effect.PITCH}
