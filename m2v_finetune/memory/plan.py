"""Memory plan of a run, and the batches that fit.

The plan does not count the CUDA context, the workspace of cuDNN, and fragmented memory.
`run_memory.spare_bytes` is reserved for these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from m2v_finetune.config import AnyRecipeConfig, TrainingConfig, parse_bytes
from m2v_finetune.errors import UserError
from m2v_finetune.memory.changes import Change, combine_changes, smaller_settings
from m2v_finetune.memory.counted_step import Machine, Precision
from m2v_finetune.memory.counting import Part
from m2v_finetune.memory.run_memory import RunMemory, Split, fits, spare_bytes
from m2v_finetune.tasks import Task
from m2v_finetune.training.optimization import require_gpu
from m2v_finetune.training.sizes import divisors, gigabytes


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Planned memory of a run.

    Attributes:
        machine: Machine of the run.
        configured: Split of the settings.
        peak: Its peak by part.
        memory_bytes: Available memory; None if it is not given.
        chosen: Split with the largest batch that fits; None if none fits, or the available memory is not
            given. The total batch is that of the settings.
        chosen_peak: Its peak by part.
        smallest_peak: Peak of batches of one window, if nothing fits.
        eval_batch_size: Batch size of evaluation: that of the settings, or one that fits.
        eval_peak: Peak of evaluation by part, if its batches are larger than those of a step; else None, as
            it then takes less than a step.
        changes: Changes of settings that reduce memory, if nothing fits.
        combined: All changes together, if no single one is enough.
    """

    machine: Machine
    configured: Split
    peak: dict[Part, int]
    memory_bytes: int | None
    chosen: Split | None
    chosen_peak: dict[Part, int] | None
    smallest_peak: dict[Part, int] | None
    eval_batch_size: int
    eval_peak: dict[Part, int] | None
    changes: tuple[Change, ...]
    combined: Change | None

    @property
    def peak_bytes(self) -> int:
        """Peak of a step with the chosen split, or with that of the settings."""
        return sum((self.chosen_peak or self.peak).values())

    def applied(self, training: TrainingConfig) -> TrainingConfig:
        """Return the settings with the chosen split.

        Raises:
            UserError: Nothing fits; the message names settings that would.
        """
        if self.chosen is None:
            raise UserError(self.refusal(), code="memory-too-small")
        return replace(
            training,
            per_device_batch_size=self.chosen.batch_size,
            gradient_accumulation_steps=self.chosen.accumulation,
            eval_batch_size=self.eval_batch_size,
        )

    def summary(self) -> str:
        """Return the plan in one line, for the run summary."""
        peak = ", ".join(
            f"{part} {gigabytes(size)}" for part, size in (self.chosen_peak or self.peak).items()
        )
        available = "" if self.memory_bytes is None else f" of {gigabytes(self.memory_bytes)}"
        was = f"{self.configured.batch_size} x {self.configured.accumulation}"
        evaluation = (
            ""
            if self.eval_peak is None
            else f"; evaluation {gigabytes(sum(self.eval_peak.values()))}"
        )
        return (
            f"{gigabytes(self.peak_bytes)}{available} planned ({peak}){evaluation}; the settings have "
            f"batches of {was}"
        )

    def refusal(self) -> str:
        """Return the reason why nothing fits, and settings that would."""
        assert self.smallest_peak is not None
        least = sum(self.smallest_peak.values())
        fitting = [change for change in self.changes if self.has_memory(change.peak_bytes)]
        combined = self.combined
        if fitting:
            advice = f"It would fit with one of these: {'; '.join(change.setting for change in fitting)}."
        elif combined is not None and self.has_memory(combined.peak_bytes):
            advice = (
                f"No single change is enough; all together take {gigabytes(combined.peak_bytes)}, which "
                f"fits: {combined.setting}. Some of them may be enough."
            )
        elif combined is not None:
            advice = (
                f"Not even all changes together are enough ({combined.setting}): they take "
                f"{gigabytes(combined.peak_bytes)}. Use a GPU with more memory, or halve windows and "
                "layers again."
            )
        else:
            advice = "No setting takes less: use a GPU with more memory."
        return (
            f"Even a batch of one window takes {gigabytes(least)}, and "
            f"{gigabytes(spare_bytes(least, self.machine))} must be free beside it; the memory is "
            f"{gigabytes(self.memory_bytes or 0)}. {advice}"
        )

    def has_memory(self, peak_bytes: int) -> bool:
        """Return whether a planned peak fits into the available memory."""
        assert self.memory_bytes is not None
        return fits(peak_bytes, self.memory_bytes, self.machine)


def machine_of(accelerator: Accelerator) -> Machine:
    """Return the machine of a run; a device that is neither a CPU nor a CUDA GPU is planned as a GPU."""
    return Machine(
        on_gpu=accelerator.device.type != "cpu",
        precision=cast(Precision, accelerator.mixed_precision),
        num_processes=accelerator.num_processes,
    )


def plan_run(
    config: AnyRecipeConfig,
    task: Task | None,
    machine: Machine,
    *,
    memory_bytes: int | None = None,
) -> MemoryPlan:
    """Plan the memory of a run.

    Args:
        config: All settings; a task's own are in ``task``.
        task: Task; None for pre-training.
        machine: Machine of the run.
        memory_bytes: Available memory; if None, no split is chosen.

    Raises:
        UserError: The optimizer does not run on the machine.
    """
    require_gpu(config.optimizer.name, is_on_gpu=machine.on_gpu)
    memory = RunMemory(config, task, machine)
    configured = Split(
        batch_size=config.training.per_device_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
    )
    splits = list(_splits(configured))
    chosen: Split | None = None
    smallest: dict[Part, int] | None = None
    changes: tuple[Change, ...] = ()
    combined: Change | None = None
    eval_batch_size = config.training.eval_batch_size
    if memory_bytes is not None:
        chosen = largest_split(memory, splits, configured, memory_bytes)
        if chosen is None:
            smallest = memory.peak(splits[-1])
            before = sum(smallest.values())
            changes = tuple(smaller_settings(config, task, machine, before=before))
            if not any(fits(change.peak_bytes, memory_bytes, machine) for change in changes):
                combined = combine_changes(config, task, machine, changes, before=before)
        else:
            eval_batch_size = _eval_batch_size(
                memory, config.training.eval_batch_size, chosen.batch_size, memory_bytes
            )
    is_known = memory_bytes is None or chosen is not None  # the batch size of evaluation
    is_larger = eval_batch_size > (chosen or configured).batch_size
    return MemoryPlan(
        machine=machine,
        configured=configured,
        peak=memory.peak(configured),
        memory_bytes=memory_bytes,
        chosen=chosen,
        chosen_peak=None if chosen is None else memory.peak(chosen),
        smallest_peak=smallest,
        eval_batch_size=eval_batch_size,
        eval_peak=memory.evaluation_peak(eval_batch_size) if is_known and is_larger else None,
        changes=changes,
        combined=combined,
    )


def planned_training(
    config: AnyRecipeConfig, task: Task | None, accelerator: Accelerator
) -> tuple[TrainingConfig, MemoryPlan | None]:
    """Return the batches of a run, and their plan if ``run.memory`` is set.

    The main process plans for all.

    Raises:
        UserError: Nothing fits, or the optimizer does not run on the machine; the same on every process.
    """
    if config.run.memory is None:
        return config.training, None
    plan: MemoryPlan | None = None
    problem: UserError | None = None
    if accelerator.is_main_process:
        memory_bytes = parse_bytes("run.memory", config.run.memory)
        try:
            plan = plan_run(config, task, machine_of(accelerator), memory_bytes=memory_bytes)
        except UserError as error:
            problem = error
    plan, problem = broadcast_object_list([plan, problem])
    if problem is not None:
        raise UserError(str(problem), code=problem.code)
    assert plan is not None
    return plan.applied(config.training), plan


def _splits(configured: Split) -> Iterator[Split]:
    """Yield all splits of the same total batch, the largest batch first."""
    total = configured.batch_size * configured.accumulation
    for size in divisors(total):
        yield Split(batch_size=size, accumulation=total // size)


def largest_split(
    memory: RunMemory, splits: Sequence[Split], configured: Split, memory_bytes: int
) -> Split | None:
    """Return the split with the largest batch that fits, or None.

    The first guess is linear in the batch, but for weights, gradients and optimizer. Then the result is
    counted, and so is the next larger split, which does not fit.
    """
    of_configured = memory.peak(configured)
    kept = sum(of_configured[part] for part in ("weights", "gradients", "optimizer"))
    slope = (sum(of_configured.values()) - kept) / configured.batch_size

    def may_fit(split: Split) -> bool:
        return fits(round(kept + slope * split.batch_size), memory_bytes, memory.machine)

    index = 0
    while index < len(splits) - 1 and not may_fit(splits[index]):
        index += 1
    while index < len(splits) and not memory.step_fits(splits[index], memory_bytes):
        index += 1
    if index == len(splits):
        return None
    while index > 0 and memory.step_fits(splits[index - 1], memory_bytes):
        index -= 1
    return splits[index]


def _eval_batch_size(memory: RunMemory, configured: int, trained: int, memory_bytes: int) -> int:
    """Return the batch size of evaluation: that of the settings, halved until it fits.

    The batch of a step always fits, as a step takes more memory.

    Args:
        memory: Memory of the run.
        configured: Batch size of the settings.
        trained: Batch size of a step, which fits.
        memory_bytes: Available memory.
    """
    size = configured
    while size > trained and not memory.evaluation_fits(size, memory_bytes):
        size //= 2
    return size
