"""Forward passes without gradients, in micro-batches that fit in memory."""

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from m2v_finetune.threads import choose_threads, intra_op_threads

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

_ALONE = threading.RLock()
"""Held by the thread that computes after memory ran out."""


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

        Several threads may call it. After the first error one at a time computes, as batches that are
        computed at once share the memory.

        Args:
            function: Function of tensors (batch, ...) that returns one; windows are independent.
            parts: Inputs of the function.

        Raises:
            torch.OutOfMemoryError: A single window does not fit.
        """
        count = len(parts[0])
        if self.size is None:
            with suppress(torch.OutOfMemoryError):
                return _in_parts(function, parts, count)
            with _ALONE:
                self._lower(count, max(1, count // 2))
        with _ALONE:
            while True:
                size = min(self.size or count, count)
                try:
                    return _in_parts(function, parts, size)
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                self._lower(size, size // 2)

    def _lower(self, failed: int, size: int) -> None:
        """Set a smaller size, unless another thread has set one as small."""
        if self.size is None or size < self.size:
            self.size = size
            if size < failed:
                logger.warning(
                    "A batch of %d windows ran out of memory outside of training. Continuing with %d; the "
                    "results are the same.",
                    failed,
                    size,
                )
        free_memory()


def _in_parts(function: Callable[..., Tensor], parts: Sequence[Tensor], size: int) -> Tensor:
    """Return the outputs of micro-batches as one."""
    micro_batches = zip(*(torch.split(part, size) for part in parts), strict=True)
    with unified_out_of_memory():
        return torch.cat([function(*micro_batch) for micro_batch in micro_batches])


class ForwardPass:
    """Forward pass of a network without gradients: on its device, with its threads, in batches that fit.

    Prediction, embeddings and the feature cache compute with it.

    Args:
        network: Network that decides device and number of threads.
        function: Function from tensors (batch, ...) on the device to one (batch, ...); windows are
            independent.
        autocast: Context of each call.
        micro_batcher: Batch size that fits; a new one if None.
        stays_on_device: Whether the output stays on the device, where it may not be computed yet.
    """

    def __init__(
        self,
        network: nn.Module,
        function: Callable[..., Tensor],
        *,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        micro_batcher: MicroBatcher | None = None,
        stays_on_device: bool = False,
    ) -> None:
        self.device = device_of(network)
        self.num_threads = choose_threads(network)
        self.function = function
        self.autocast = autocast
        self.micro_batcher = micro_batcher or MicroBatcher()
        self.stays_on_device = stays_on_device

    def __call__(self, *parts: Tensor) -> Tensor:
        """Return the output of the function in float32.

        Raises:
            torch.OutOfMemoryError: A single window does not fit.
        """
        return self.micro_batcher.run(self._compute, parts)

    def _compute(self, *parts: Tensor) -> Tensor:
        with intra_op_threads(self.num_threads), torch.inference_mode(), self.autocast():
            output = self.function(*(part.to(self.device, non_blocking=True) for part in parts))
            return output.float() if self.stays_on_device else output.float().cpu()


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network; the CPU for one without weights, which ONNX Runtime runs."""
    return next((one.device for one in network.parameters()), torch.device("cpu"))


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
