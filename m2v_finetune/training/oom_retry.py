"""Where a step runs out of memory: the same step again, in smaller batches."""

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
"""Takes an optimiser step over batches, of which there are so many."""

ADVICE = (
    "`m2v plan` says what takes less: gradient checkpointing, fewer layers, shorter windows, another "
    "tuning.method."
)


class OutOfMemoryRetryError(UserError):
    """A step ran out of memory and cannot be taken in smaller batches.

    Attributes:
        is_undone: Nothing of it is left, so that what was learned before it can be saved.
    """

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
    """Takes steps in batches that the device bears, of the size of the settings as long as that goes.

    Args:
        training: Batches of the settings.
        accelerator: Knows the processes.
        plan: What the run was expected to take, where that was asked for.

    Attributes:
        size: Windows that the device sees at once.
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
        """Take a step; where memory runs out, take it again with the same windows in smaller batches.

        Args:
            step: Takes it, and leaves no gradient where it raises.
            parts: Its batches, as they were read.
            number: Of the step, from 1.

        Raises:
            OutOfMemoryRetryError: It cannot be divided, or not be repeated.
        """
        random_state = get_random_state()
        while True:
            try:
                return step(self._divided(parts), self._num_micro_batches * len(parts))
            except StepOutOfMemoryError as error:
                self._halve(number, error)
            # Outside of the handler, so that nothing of the step that failed is held by its traceback.
            set_random_state(random_state)
            free_memory()

    @property
    def _num_micro_batches(self) -> int:
        """How many pieces a batch of the settings is taken in."""
        return self._training.per_device_batch_size // self.size

    def _divided(self, parts: Sequence[Sequence[Tensor]]) -> Iterator[list[Tensor]]:
        """Yield batches of `size` on the device, one after the other."""
        device = self._accelerator.device
        for batch in parts:
            for smaller in zip(*(torch.split(part, self.size) for part in batch), strict=True):
                yield [part.to(device, non_blocking=True) for part in smaller]

    def _halve(self, number: int, error: StepOutOfMemoryError) -> None:
        """Halve what each device sees at once, and say so; the same on every process.

        Raises:
            OutOfMemoryRetryError: It sees a single window, or the step cannot be repeated.
        """
        share = self._training.gradient_accumulation_steps * self._training.per_device_batch_size
        what = self._what(number, error)
        smaller = max((one for one in divisors(self.size) if one <= self.size // 2), default=None)
        if not error.is_undone:
            raise OutOfMemoryRetryError(
                f"{what} The weights were being changed already, so the step cannot be repeated. {ADVICE}",
                is_undone=False,
            )
        if smaller is None:
            raise OutOfMemoryRetryError(
                f"{what} There is nothing to divide. {ADVICE}", is_undone=True
            )
        self.size = smaller
        logger.warning(
            "%s Going on with batches of %d, %d of them accumulated: a total batch of %d as before. The "
            "step is taken again; nothing is lost.",
            what,
            smaller,
            share // smaller,
            share * self._accelerator.num_processes,
        )

    def _what(self, number: int, error: StepOutOfMemoryError) -> str:
        """Return what happened, what was planned, and what was measured where that is possible."""
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
