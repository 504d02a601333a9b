"""Transform of pitch and time by which labels follow the augmented sound."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LabelTransform:
    """Transform of pitch and time that augmentation applied, for labels.

    Attributes:
        semitones: Pitch shift, upwards.
        rate: Speed factor.
        offset_seconds: Delay, after the change of speed.
        source_start_seconds: Start of the part of the original window that is still inside.
        source_end_seconds: End of that part.
    """

    semitones: float = 0.0
    rate: float = 1.0
    offset_seconds: float = 0.0
    source_start_seconds: float = 0.0
    source_end_seconds: float = math.inf

    def times(self, times_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the new times of events of the window, in seconds from its start.

        >>> LabelTransform(rate=2.0, offset_seconds=0.5).times(np.array([0.0, 1.0])).tolist()
        [0.5, 1.0]
        """
        return times_seconds / self.rate + self.offset_seconds

    def sources(self, times_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the times in the original window that correspond to new times.

        >>> LabelTransform(rate=2.0, offset_seconds=0.5).sources(np.array([0.5, 1.0])).tolist()
        [0.0, 1.0]
        """
        return (times_seconds - self.offset_seconds) * self.rate

    def is_inside(self, sources_seconds: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which times of the original window are still inside, not shifted over an edge.

        A later transform may shift the time back, but not the sound.

        >>> LabelTransform(source_start_seconds=0.5).is_inside(np.array([0.0, 1.0])).tolist()
        [False, True]
        """
        return (self.source_start_seconds <= sources_seconds) & (
            sources_seconds < self.source_end_seconds
        )

    def then(self, transform: Any, *, num_samples: int, sample_rate: int) -> "LabelTransform":
        """Return this transform followed by that of an audiomentations transform that was just applied."""
        drawn = transform.parameters
        if not drawn["should_apply"]:
            return self
        rate = float(drawn.get("rate", 1.0))
        transformed = LabelTransform(
            semitones=self.semitones + float(drawn.get("num_semitones", 0.0)),
            rate=self.rate * rate,
            offset_seconds=self.offset_seconds / rate
            + _shift_samples(transform, num_samples, sample_rate) / sample_rate,
        )
        start, end = transformed.sources(np.array([0.0, num_samples / sample_rate])).tolist()
        return replace(
            transformed,
            source_start_seconds=max(self.source_start_seconds, start),
            source_end_seconds=min(self.source_end_seconds, end),
        )


IDENTITY = LabelTransform()
"""Transform without any change."""


def _shift_samples(transform: Any, num_samples: int, sample_rate: int) -> int:
    """Return the shift in samples by audiomentations' Shift; 0 for another transform."""
    amount = transform.parameters.get("shift_amount", 0)
    unit = {"samples": 1, "fraction": num_samples, "seconds": sample_rate}
    return round(amount * unit[transform.shift_unit]) if amount else 0
