"""Passes through a network that learns nothing from them, in pieces that the device bears."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
"""What a plain RuntimeError of PyTorch says where memory ran out."""

logger = logging.getLogger(__name__)


class MicroBatcher:
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
                micro_batches = zip(*(torch.split(part, size) for part in parts), strict=True)
                with unified_out_of_memory():
                    return torch.cat([function(*micro_batch) for micro_batch in micro_batches])
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


@contextmanager
def unified_out_of_memory() -> Iterator[None]:
    """Let `torch.OutOfMemoryError` be raised by whatever ran out of memory, not by CUDA's allocator alone.

    Raises:
        torch.OutOfMemoryError: Memory ran out.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


def free_memory() -> None:
    """Give back what a failed pass left: tensors in cycles, and blocks that the allocator keeps.

    To be called outside of the handler of its error, whose traceback holds its tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
