"""Forward passes without gradients, in micro-batches that fit in memory."""

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
"""Texts of plain RuntimeErrors of PyTorch when memory runs out."""

logger = logging.getLogger(__name__)


class MicroBatcher:
    """Runs complete batches while memory suffices, then halves, quarters and so on.

    Only the micro-batch that failed is repeated, as such a pass changes no state.

    Attributes:
        size: Micro-batch size that fits in memory; None while unknown.
    """

    def __init__(self) -> None:
        self.size: int | None = None

    def run(self, function: Callable[..., Tensor], parts: Sequence[Tensor]) -> Tensor:
        """Return ``function(*parts)``.

        Args:
            function: Function of tensors (batch, ...) that returns one; windows are independent.
            parts: Inputs of the function.

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
                "A batch of %d windows ran out of memory outside of training. Continuing with %d; the "
                "results are the same.",
                size,
                self.size,
            )
            free_memory()


@contextmanager
def unified_out_of_memory() -> Iterator[None]:
    """Raise `torch.OutOfMemoryError` for every error of memory, not only of CUDA's allocator.

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
    """Free the memory of a failed pass: tensors in reference cycles, and cached blocks of the allocator.

    Call it outside of the handler of the error, whose traceback references the tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
