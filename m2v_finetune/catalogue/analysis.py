"""What is computed for each track of a catalogue: passes of networks over windows, and the rows from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.windows import window_starts
from m2v_finetune.catalogue.items import Item
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window

if TYPE_CHECKING:
    import pyarrow

Array = NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions of the windows of a track.

    Attributes:
        grid: Sample rate, and positions of the frames of a window.
        window_samples: Length of a window.
        hop_samples: Distance of windows.
        on_frames: Start windows at frames of one grid over the track.
    """

    grid: FrameGrid
    window_samples: int
    hop_samples: int
    on_frames: bool = False

    def windows(self, num_samples: int) -> list[Window]:
        """Return the windows of a track of a length in samples, as `TrackWindows` has them."""
        starts = window_starts(
            num_samples,
            self.window_samples,
            self.hop_samples,
            multiple_of=self.grid.stride_samples if self.on_frames else 1,
        )
        return [
            Window(start_sample=start, num_samples=self.window_samples, grid=self.grid)
            for start in starts
        ]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Pass of a backbone over windows, for one output or several.

    Attributes:
        layout: Index of the layout of its windows.
        network: Network that decides device and number of threads.
        compute: Function from waveforms (batch, window_samples), on the device, to the outputs, (batch, ...)
            each.
    """

    layout: int
    network: nn.Module
    compute: Callable[[Tensor], list[Tensor]]


class Analysis(Protocol):
    """Passes and rows of a table.

    Attributes:
        kind: ``predictions`` or ``embeddings``.
        identity: All that decides the content of the rows, as plain data for _catalogue.json. A table of
            another identity is refused.
        facts: Facts for _catalogue.json that may change from run to run.
        schema: Columns, from ``id`` on.
        constants: Columns with one value in all rows.
        layouts: Layouts of windows, each read once.
        passes: Passes over the windows.
    """

    kind: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    schema: "pyarrow.Schema"
    constants: dict[str, Any]
    layouts: list[Layout]
    passes: list[Pass]

    def rows(
        self,
        item: Item,
        checked: CheckedTrack,
        windows: Sequence[Sequence[Window]],
        outputs: Sequence[Sequence[Sequence[Array]]],
    ) -> list[Row]:
        """Return the rows of a track, without ``id``, ``path``, ``duration`` and constant columns.

        Args:
            item: Track.
            checked: The same with the length of its audio.
            windows: Windows of each layout, in order.
            outputs: Outputs of the windows, by pass, window and output of the pass.
        """
