"""Genre: one of many for a track."""

from dataclasses import dataclass
from typing import Any, ClassVar

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.tasks.classification import Classification, ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class GenreConfig(ClassificationConfig):
    """Settings of the genre labels.

    Args:
        label_column: Column with a track's genre.
        labels: Genres; all that occur in the training split if not given.
    """

    label_column: str = "genre"


@dataclass(frozen=True, kw_only=True)
class Genre(Classification):
    """Genre of a track, of GTZAN's ten or your own."""

    name: ClassVar[str] = "genre"
    settings_class: ClassVar[type[Any]] = GenreConfig

    def allowed_effects(self) -> frozenset[Effect]:
        """Return all effects: none of them changes the genre."""
        return frozenset(Effect)
