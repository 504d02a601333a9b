"""Retry of an optimizer step in smaller batches after an out-of-memory error."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from m2v_finetune.config import TrainingConfig
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import free_memory
from m2v_finetune.training.random_state import get_random_state, set_random_state
from m2v_finetune.training.sizes import divisors, gigabytes
from m2v_finetune.training.step import StepOutOfMemoryError, StepResult

logger = logging.getLogger(__name__)

TakeStep = Callable[[Iterator[list[Tensor]], int], StepResult]
"""Function that takes an optimizer step over batches, from the batches and their number."""

ADVICE = (
    "`m2v plan` lists settings that need less: gradient checkpointing, fewer layers, shorter windows, "
    "another tuning.method."
)


class OutOfMemoryRetryError(UserError):
    """A step ran out of memory and cannot be taken in smaller batches.

    Attributes:
        is_undone: Whether the weights are those before the step, so that they can be saved.
    """

    code = "step-out-of-memory"

    def __init__(self, message: str, *, is_undone: bool) -> None:
        super().__init__(message)
        self.is_undone = is_undone


class PlannedMemory(Protocol):
    """Planned memory of a run: a `memory.plan.MemoryPlan`."""

    @property
    def peak_bytes(self) -> int:
        """Peak of a step."""
        ...

    def summary(self) -> str:
        """Return the plan in a line."""
        ...


class OutOfMemoryRetry:
    """Retry of steps in smaller batches; the first batch size is that of the settings.

    Args:
        training: Settings of batches.
        accelerator: Accelerator of the run.
        plan: Memory plan of the run, if there is one.

    Attributes:
        size: Batch size on a device.
    """

    def __init__(
        self,
        *,
        training: TrainingConfig,
        accelerator: Accelerator,
        plan: PlannedMemory | None,
    ) -> None:
        self.size = training.per_device_batch_size
        self._training = training
        self._accelerator = accelerator
        self._plan = plan

    def take(self, step: TakeStep, parts: Sequence[Sequence[Tensor]], *, number: int) -> StepResult:
        """Take a step; if memory runs out, repeat it with the same windows in smaller batches.

        Args:
            step: Function that takes it, and leaves no gradient if it raises.
            parts: Batches of the step, as read.
            number: Number of the step, from 1.

        Raises:
            OutOfMemoryRetryError: The step cannot be divided, or not be repeated.
        """
        random_state = get_random_state()
        while True:
            try:
                return step(self._divided(parts), self._num_micro_batches * len(parts))
            except StepOutOfMemoryError as error:
                self._halve(number, error)
            # Outside of the handler, so that its traceback references no tensors of the failed step.
            set_random_state(random_state)
            free_memory()

    @property
    def _num_micro_batches(self) -> int:
        """Number of micro-batches of a batch of the settings."""
        return self._training.per_device_batch_size // self.size

    def _divided(self, parts: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """Yield batches of `size` on the device, one after the other."""
        device = self._accelerator.device
        for batch in parts:
            for smaller in zip(*(torch.split(part, self.size) for part in batch), strict=True):
                yield [part.to(device, non_blocking=True) for part in smaller]

    def _halve(self, number: int, error: StepOutOfMemoryError) -> None:
        """Halve the batch size of every device, with a warning; the same on every process.

        Raises:
            OutOfMemoryRetryError: The batch size is 1 already, or the step cannot be repeated.
        """
        share = self._training.gradient_accumulation_steps * self._training.per_device_batch_size
        what = self._what(number, error)
        smaller = max((one for one in divisors(self.size) if one <= self.size // 2), default=None)
        if not error.is_undone:
            raise OutOfMemoryRetryError(
                f"{what} The weights were already being updated, so the step cannot be repeated. {ADVICE}",
                is_undone=False,
            )
        if smaller is None:
            raise OutOfMemoryRetryError(
                f"{what} The batch cannot be divided further. {ADVICE}", is_undone=True
            )
        self.size = smaller
        logger.warning(
            "%s Continuing with batches of %d, %d of them accumulated: a total batch of %d as before. The "
            "step is repeated; nothing is lost.",
            what,
            smaller,
            share // smaller,
            share * self._accelerator.num_processes,
        )

    def _what(self, number: int, error: StepOutOfMemoryError) -> str:
        """Return a description of the fault, with planned and measured memory if known."""
        num_processes = self._accelerator.num_processes
        where = (
            f" on process {', '.join(map(str, error.processes))} of {num_processes}"
            if num_processes > 1
            else ""
        )
        planned = f"; {gigabytes(self._plan.peak_bytes)} were planned" if self._plan else ""
        measured = (
            f"; {gigabytes(torch.cuda.max_memory_allocated())} were in use at most"
            if torch.cuda.is_available()
            else ""
        )
        return f"Step {number} ran out of memory{where} with batches of {self.size}{planned}{measured}."
