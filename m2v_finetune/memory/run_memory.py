"""Memory of a run at any split of its total batch."""

import math
from dataclasses import dataclass

from m2v_finetune.config import AnyRecipeConfig
from m2v_finetune.memory.counted_step import CountedRun, Machine
from m2v_finetune.memory.counting import LimitExceededError, Part, Timeline
from m2v_finetune.memory.gpu import CUBLAS_WORKSPACE_BYTES
from m2v_finetune.tasks import Task

MARGIN = 0.1
"""Share of a planned peak that must be free beside it: peaks are planned to within a tenth."""
CONTEXT_BYTES = 500 * 10**6
"""Least free memory on a GPU, for CUDA itself. A usual size, not measured here."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Batch size and accumulation of one process.

    Attributes:
        batch_size: Number of windows of a batch.
        accumulation: Number of batches of a step.
    """

    batch_size: int
    accumulation: int


def spare_bytes(peak_bytes: int, machine: Machine) -> int:
    """Return the memory that must be free beside a planned peak."""
    return max(math.ceil(MARGIN * peak_bytes), CONTEXT_BYTES if machine.on_gpu else 0)


def fits(peak_bytes: int, memory_bytes: int, machine: Machine) -> bool:
    """Return whether a planned peak leaves `spare_bytes` free."""
    return peak_bytes + spare_bytes(peak_bytes, machine) <= memory_bytes


class RunMemory:
    """Peaks of a run at any split; each batch size is counted once.

    Attributes:
        machine: Machine of the run.
    """

    def __init__(self, config: AnyRecipeConfig, task: Task | None, machine: Machine) -> None:
        self.machine = machine
        self._run = CountedRun(config, task, machine)
        self._steps: dict[int, Timeline] = {}
        self._evaluations: dict[int, Timeline] = {}

    def peak(self, split: Split) -> dict[Part, int]:
        """Return the bytes of an optimizer step at its peak, by part."""
        return self._peak(self._step(split, limit_bytes=math.inf))

    def peak_bytes(self, split: Split) -> int:
        """Return the bytes of an optimizer step at its peak."""
        return sum(self.peak(split).values())

    def step_fits(self, split: Split, memory_bytes: int) -> bool:
        """Return whether an optimizer step fits; the count ends early if it does not."""
        try:
            timeline = self._step(split, limit_bytes=self._limit_bytes(memory_bytes))
        except LimitExceededError:
            return False
        return fits(sum(self._peak(timeline).values()), memory_bytes, self.machine)

    def evaluation_peak(self, batch_size: int) -> dict[Part, int]:
        """Return the bytes of evaluation at its peak, by part, between steps."""
        return self._peak(self._evaluation(batch_size, limit_bytes=math.inf))

    def evaluation_fits(self, batch_size: int, memory_bytes: int) -> bool:
        """Return whether evaluation fits."""
        limit = self._limit_bytes(memory_bytes)
        try:
            timeline = self._evaluation(batch_size, limit_bytes=limit)
        except LimitExceededError:
            return False
        return fits(sum(self._peak(timeline).values()), memory_bytes, self.machine)

    def _step(self, split: Split, *, limit_bytes: float) -> Timeline:
        size = split.batch_size
        if size not in self._steps:
            self._steps[size] = self._run.step(size, limit_bytes=limit_bytes)
        one = self._steps[size]
        return one.accumulating() if split.accumulation > 1 else one

    def _evaluation(self, size: int, *, limit_bytes: float) -> Timeline:
        if size not in self._evaluations:
            self._evaluations[size] = self._run.evaluation(size, limit_bytes=limit_bytes)
        return self._evaluations[size]

    def _limit_bytes(self, memory_bytes: int) -> float:
        """Return an upper limit of all peaks that fit."""
        no_more = memory_bytes - spare_bytes(0, self.machine)
        return min(math.ceil(memory_bytes / (1 + MARGIN)), no_more)

    def _peak(self, timeline: Timeline) -> dict[Part, int]:
        peak = timeline.peak()
        if self.machine.on_gpu:
            peak["workspace"] += CUBLAS_WORKSPACE_BYTES
        return peak
