"""What a page shows of a prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

PREVIEW_SAMPLE_RATE = 16_000
"""Sample rate of the waveforms in pictures, in Hz."""


Sound: TypeAlias = "tuple[int, NDArray[np.float32]]"
"""Sample rate in Hz, and samples of full scale [-1, 1], (samples,) or (samples, channels)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A prediction as a page shows it, from top to bottom.

    Attributes:
        text: Answer in one sentence or a short table, in Markdown.
        scores: Probability of each label, to be ranked; None where labels are not ranked.
        pictures: Pictures, (height, width, 3), by caption.
        sounds: Sounds to play, by caption.
    """

    text: str
    scores: Mapping[str, float] | None = None
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    sounds: Mapping[str, Sound] = field(default_factory=dict)


def escaped(label: str) -> str:
    """Return a label as text of Markdown, without markup of its own."""
    return "".join(f"&#{ord(one)};" if one in "\\`*_{}[]<>()#+!|&$~\n" else one for one in label)
