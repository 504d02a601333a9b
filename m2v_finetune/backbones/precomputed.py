"""Stand-in for a backbone, for precomputed vectors."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from m2v_finetune.audio.frames import FrameGrid

MODEL_TYPE = "precomputed"
CLIP_GRID = FrameGrid(sample_rate=1, stride_samples=1, receptive_field_samples=1)
"""Grid of clips of unknown duration: a clip is one sample, one frame and one second."""


class PrecomputedBackbone(nn.Module):
    """Stand-in that returns its input vectors as the only hidden state, without layers.

    It has the interface of `Backbone`, and no weights.

    Attributes:
        network: Module without parameters.
        source: Human-readable description of the vectors.
        sample_rate: Sample rate of `CLIP_GRID`: a clip is a sample.
        hidden_size: Size of a vector.
        settings: Settings that mark a saved model as one without a backbone.
    """

    revision = None
    licence = ""
    sample_rate = CLIP_GRID.sample_rate
    frame_grid = CLIP_GRID
    frame_rate: Fraction = CLIP_GRID.frame_rate
    num_layers = 0
    num_hidden_states = 1
    normalize = False
    spec_augment = False
    frozen_depth = 0

    def __init__(self, hidden_size: int, *, source: str) -> None:
        super().__init__()
        self.network = nn.Identity()
        self.source = source
        self.hidden_size = hidden_size
        self.gradient_checkpointing = False
        self.settings: dict[str, Any] = {"model_type": MODEL_TYPE, "hidden_size": self.hidden_size}

    def frozen_modules(self) -> list[nn.Module]:
        """Return the module itself, which has no parameters."""
        return [self]

    def num_frames(self, num_samples: int) -> int:
        """Return the number of vectors of a window: one for each clip."""
        return self.frame_grid.num_frames(num_samples)

    def check_window(self, num_samples: int) -> None:
        """Raise ValueError where a window is not one clip."""
        if num_samples != 1:
            raise ValueError(f"a window of {num_samples} clips; vectors are read one by one")

    def prepare(self, vectors: Tensor) -> Tensor:
        """Return vectors (batch, hidden_size) as they are: the head standardises them."""
        return vectors

    def forward(self, vectors: Tensor) -> tuple[Tensor]:
        """Return the one hidden state, (batch, 1, hidden_size), of vectors (batch, hidden_size)."""
        return (vectors.unsqueeze(1),)

    def iterate_hidden_states(self, vectors: Tensor) -> Iterator[Tensor]:
        """Yield the output of `forward`."""
        yield from self(vectors)
