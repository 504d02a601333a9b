"""Passes through a network that learns nothing from them, in pieces that the device bears."""

import gc
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class Pieces:
    """Runs batches whole as long as memory suffices, then in halves, quarters and so on.

    Nothing is lost or repeated but the piece that failed, as such a pass changes nothing.

    Attributes:
        size: Windows that the device bears at once; None while that is not known.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def run(self, function: Callable[..., Tensor], parts: Sequence[Tensor]) -> Tensor:
        """Return ``function(*parts)``.

        Args:
            function: Takes tensors (batch, ...) and returns one; each window by itself.
            parts: Its inputs.

        Raises:
            torch.OutOfMemoryError: A single window does not fit.
        """
        while True:
            size = min(self.size or len(parts[0]), len(parts[0]))
            try:
                pieces = zip(*(torch.split(part, size) for part in parts), strict=True)
                return torch.cat([function(*piece) for piece in pieces])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self.size = size // 2
            logger.warning(
                "%d windows at once ran out of memory outside of training. Going on with %d at once; the "
                "results are the same.",
                size,
                self.size,
            )
            free_memory()


def free_memory() -> None:
    """Give back what a failed pass left: tensors in cycles, and blocks that the allocator keeps.

    To be called outside of the handler of its error, whose traceback holds its tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
