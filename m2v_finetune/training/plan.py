"""The memory that a run will take, before it takes it, and the batches that fit.

What is not counted: the CUDA context, work space of cuDNN, and memory that the allocator cannot use for
being in pieces. `spare_bytes` is for these.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from m2v_finetune.backbones import build_architecture
from m2v_finetune.config import (
    AnyRecipeConfig,
    OptimizerName,
    PretrainingConfig,
    RecipeConfig,
    TrainingConfig,
    TuningConfig,
    parse_bytes,
)
from m2v_finetune.errors import UserError
from m2v_finetune.tasks import Task
from m2v_finetune.training.counted_step import CountedRun, Machine, Precision
from m2v_finetune.training.counting import LimitExceededError, Part, Timeline
from m2v_finetune.training.gpu import CUBLAS_WORKSPACE_BYTES
from m2v_finetune.training.optimization import require_gpu

SMALLER_OPTIMIZERS: tuple[OptimizerName, ...] = ("adafactor", "adamw_8bit")
"""The first is for any machine, the second for CUDA cards."""
MARGIN = 0.1
"""Share of a planned peak that has to be free beside it: peaks are planned to within a tenth."""
CONTEXT_BYTES = 500 * 10**6
"""What CUDA itself takes of a card, where a tenth of the peak is less. A usual size, not measured here."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """How one process takes its share of a total batch.

    Attributes:
        batch_size: Windows at once.
        accumulation: Batches whose gradients make a step.
    """

    batch_size: int
    accumulation: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """A setting that would take less memory.

    Attributes:
        setting: As it is written on the command line.
        peak_bytes: With it, at a batch of one window.
        saved_bytes: By it.
    """

    setting: str
    peak_bytes: int
    saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a run will take.

    Attributes:
        machine: Where.
        configured: The split of the settings.
        peak: Its peak by part.
        memory_bytes: What there is; None where nobody said.
        chosen: The split with the largest batch that fits; None where none does, or nobody said what there
            is. The total batch is that of the settings.
        chosen_peak: Its peak by part.
        smallest_peak: That of one window at a time, where nothing fits.
        eval_batch_size: Windows at once for judging tracks: that of the settings, or what fits.
        eval_peak: What judging takes, by part, where it takes more windows at once than a step; else None, as
            it then takes less than a step.
        changes: What to switch on, where nothing fits.
        combined: All of it at once, where no single one is enough.
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
        """Of a step by the split that is used: the chosen one, or that of the settings."""
        return sum((self.chosen_peak or self.peak).values())

    def applied(self, training: TrainingConfig) -> TrainingConfig:
        """Return the settings with the chosen split.

        Raises:
            UserError: Nothing fits; it says what would.
        """
        if self.chosen is None:
            raise UserError(self.refusal())
        return replace(
            training,
            per_device_batch_size=self.chosen.batch_size,
            gradient_accumulation_steps=self.chosen.accumulation,
            eval_batch_size=self.eval_batch_size,
        )

    def summary(self) -> str:
        """Return the plan in a line, for the first log of a run."""
        peak = ", ".join(
            f"{part} {gigabytes(size)}" for part, size in (self.chosen_peak or self.peak).items()
        )
        asked = "" if self.memory_bytes is None else f" of {gigabytes(self.memory_bytes)}"
        was = f"{self.configured.batch_size} x {self.configured.accumulation}"
        evaluation = (
            "" if self.eval_peak is None else f"; judging {gigabytes(sum(self.eval_peak.values()))}"
        )
        return (
            f"{gigabytes(self.peak_bytes)}{asked} planned ({peak}){evaluation}; the settings have batches of "
            f"{was}"
        )

    def refusal(self) -> str:
        """Return why nothing fits, and what would."""
        assert self.smallest_peak is not None
        least = sum(self.smallest_peak.values())
        fitting = [change for change in self.changes if self.has_memory(change.peak_bytes)]
        combined = self.combined
        if fitting:
            advice = f"It would fit with one of these: {'; '.join(change.setting for change in fitting)}."
        elif combined is not None and self.has_memory(combined.peak_bytes):
            advice = (
                f"No single change is enough; all together take {gigabytes(combined.peak_bytes)}, which "
                f"fits: {combined.setting}. Some of them may do."
            )
        elif combined is not None:
            advice = (
                f"Not even all changes together are enough ({combined.setting}): they take "
                f"{gigabytes(combined.peak_bytes)}. Take a card with more memory, or halve windows and "
                "layers again."
            )
        else:
            advice = "Nothing that could be switched on takes less: take a card with more memory."
        return (
            f"Even one window at a time takes {gigabytes(least)}, and "
            f"{gigabytes(spare_bytes(least, self.machine))} have to be free beside it; the memory is "
            f"{gigabytes(self.memory_bytes or 0)}. {advice}"
        )

    def has_memory(self, peak_bytes: int) -> bool:
        """Tell whether a planned peak fits in what there is."""
        assert self.memory_bytes is not None
        return fits(peak_bytes, self.memory_bytes, self.machine)


def machine_of(accelerator: Accelerator) -> Machine:
    """Return what a run is on; what is neither a CPU nor a CUDA card is planned as a card."""
    return Machine(
        on_gpu=accelerator.device.type != "cpu",
        precision=cast(Precision, accelerator.mixed_precision),
        num_processes=accelerator.num_processes,
    )


def spare_bytes(peak_bytes: int, machine: Machine) -> int:
    """Return what has to be free beside a planned peak."""
    return max(math.ceil(MARGIN * peak_bytes), CONTEXT_BYTES if machine.on_gpu else 0)


def fits(peak_bytes: int, memory_bytes: int, machine: Machine) -> bool:
    """Tell whether a planned peak leaves `spare_bytes` free."""
    return peak_bytes + spare_bytes(peak_bytes, machine) <= memory_bytes


def gigabytes(number: int) -> str:
    """Return bytes in decimal gigabytes, or megabytes where they are few, as text."""
    return f"{number / 1e9:.2f} GB" if number >= 10**8 else f"{number / 1e6:.1f} MB"


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
        task: What is learned; None for pre-training.
        machine: Where.
        memory_bytes: What there is; without it no split is chosen.

    Raises:
        UserError: The optimiser does not run on the machine.
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
        chosen = _largest(memory, splits, configured, memory_bytes)
        if chosen is None:
            smallest = memory.peak(splits[-1])
            before = sum(smallest.values())
            changes = tuple(_changes(config, task, machine, before=before))
            if not any(fits(change.peak_bytes, memory_bytes, machine) for change in changes):
                combined = _combined(config, task, machine, changes, before=before)
        else:
            eval_batch_size = _eval_batch_size(
                memory, config.training.eval_batch_size, chosen.batch_size, memory_bytes
            )
    is_known = memory_bytes is None or chosen is not None  # which windows are judged at once
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
    """Return the batches that a run trains by, and the plan that they come from where ``run.memory`` asks.

    One process counts, and all have its plan.

    Raises:
        UserError: Nothing fits, or the optimiser does not run on the machine; the same on every process.
    """
    if config.run.memory is None:
        return config.training, None
    plan: MemoryPlan | None = None
    problem: str | None = None
    if accelerator.is_main_process:
        memory_bytes = parse_bytes("run.memory", config.run.memory)
        try:
            plan = plan_run(config, task, machine_of(accelerator), memory_bytes=memory_bytes)
        except UserError as error:
            problem = str(error)
    plan, problem = broadcast_object_list([plan, problem])
    if problem is not None:
        raise UserError(problem)
    assert plan is not None
    return plan.applied(config.training), plan


class RunMemory:
    """What a run takes at any split, each batch size counted once.

    Attributes:
        machine: Where.
    """

    def __init__(self, config: AnyRecipeConfig, task: Task | None, machine: Machine) -> None:
        self.machine = machine
        self._run = CountedRun(config, task, machine)
        self._steps: dict[int, Timeline] = {}
        self._evaluations: dict[int, Timeline] = {}

    def peak(self, split: Split) -> dict[Part, int]:
        """Return the bytes of an optimiser step at its worst moment, by part."""
        return self._peak(self._step(split, limit_bytes=math.inf))

    def peak_bytes(self, split: Split) -> int:
        """Return the bytes of an optimiser step at its worst moment."""
        return sum(self.peak(split).values())

    def step_fits(self, split: Split, memory_bytes: int) -> bool:
        """Tell whether an optimiser step fits; where it does not, it is counted no further than that."""
        try:
            timeline = self._step(split, limit_bytes=self._limit_bytes(memory_bytes))
        except LimitExceededError:
            return False
        return fits(sum(self._peak(timeline).values()), memory_bytes, self.machine)

    def evaluation_peak(self, batch_size: int) -> dict[Part, int]:
        """Return the bytes of judging so many windows at once, between steps, as `peak` does."""
        return self._peak(self._evaluation(batch_size, limit_bytes=math.inf))

    def evaluation_fits(self, batch_size: int, memory_bytes: int) -> bool:
        """Tell whether so many windows at once can be judged."""
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
        """Return what no peak that fits is above."""
        no_more = memory_bytes - spare_bytes(0, self.machine)
        return min(math.ceil(memory_bytes / (1 + MARGIN)), no_more)

    def _peak(self, timeline: Timeline) -> dict[Part, int]:
        peak = timeline.peak()
        if self.machine.on_gpu:
            peak["workspace"] += CUBLAS_WORKSPACE_BYTES
        return peak


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the largest first.

    >>> divisors(12)
    [12, 6, 4, 3, 2, 1]
    """
    return [size for size in range(number, 0, -1) if number % size == 0]


def _splits(configured: Split) -> Iterator[Split]:
    """Yield all splits of the same total batch, the largest batch first."""
    total = configured.batch_size * configured.accumulation
    for size in divisors(total):
        yield Split(batch_size=size, accumulation=total // size)


def _largest(
    memory: RunMemory, splits: Sequence[Split], configured: Split, memory_bytes: int
) -> Split | None:
    """Return the split with the largest batch that fits, or None.

    What is not kept from step to step grows almost in a line with the batch, which says where to look. What
    is returned was counted, and so was the next larger one, which does not fit.
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


def _eval_batch_size(memory: RunMemory, asked: int, trained: int, memory_bytes: int) -> int:
    """Return the windows at once for judging tracks: those of the settings, halved until they fit.

    As many fit as a step takes at once, which has to keep more.

    Args:
        memory: Of the run.
        asked: By the settings.
        trained: Windows at once of a step, which fits.
        memory_bytes: What there is.
    """
    size = asked
    while size > trained and not memory.evaluation_fits(size, memory_bytes):
        size //= 2
    return size


def _changes(
    config: AnyRecipeConfig, task: Task | None, machine: Machine, *, before: int
) -> Iterator[Change]:
    """Yield what would take less memory than ``before``, one window at a time."""
    for setting, change in _settings(config, machine).items():
        try:
            peak = _one_window_bytes(change(config), task, machine)
        except UserError:  # too few layers for the method, or windows too short for the network
            continue
        if peak < before:
            yield Change(setting=setting, peak_bytes=peak, saved_bytes=before - peak)


def _combined(
    config: AnyRecipeConfig,
    task: Task | None,
    machine: Machine,
    changes: Sequence[Change],
    *,
    before: int,
) -> Change | None:
    """Return some changes as one, or None where there are not several.

    Of several optimisers it is the first, which keeps the least.
    """
    chosen: dict[str, str] = {}
    for change in changes:
        chosen.setdefault(change.setting.split()[0], change.setting)
    if len(chosen) < 2:
        return None
    settings = _settings(config, machine)
    for setting in chosen.values():
        config = settings[setting](config)
    peak = _one_window_bytes(config, task, machine)
    return Change(setting=" ".join(chosen.values()), peak_bytes=peak, saved_bytes=before - peak)


def _one_window_bytes(config: AnyRecipeConfig, task: Task | None, machine: Machine) -> int:
    """Return the peak of a step that takes its total batch one window at a time."""
    training = config.training
    accumulation = training.per_device_batch_size * training.gradient_accumulation_steps
    split = Split(batch_size=1, accumulation=accumulation)
    return RunMemory(config, task, machine).peak_bytes(split)


def _settings(
    config: AnyRecipeConfig, machine: Machine
) -> dict[str, Callable[[Any], AnyRecipeConfig]]:
    """Return what may take less, as it is written on the command line, with what it changes."""

    def changed(section: str, **values: Any) -> Callable[[Any], AnyRecipeConfig]:
        return lambda one: replace(one, **{section: replace(getattr(one, section), **values)})

    settings = {}
    if not config.training.gradient_checkpointing:
        settings["--training.gradient_checkpointing true"] = changed(
            "training", gradient_checkpointing=True
        )
    if isinstance(config, PretrainingConfig):
        if config.pretrain.train_conv_encoder:
            settings["--pretrain.train_conv_encoder false"] = changed(
                "pretrain", train_conv_encoder=False
            )
    else:
        if config.tuning.train_conv_encoder:
            settings["--tuning.train_conv_encoder false"] = changed(
                "tuning", train_conv_encoder=False
            )
        layers = num_layers(config)
        if layers > 1:
            settings[f"--backbone.num_layers {layers // 2}"] = changed(
                "backbone", num_layers=layers // 2
            )
    assert config.data.window_seconds is not None
    seconds = config.data.window_seconds / 2
    shorter, hop = f"--data.window_seconds {seconds:g}", {}
    if isinstance(config, RecipeConfig) and config.data.hop_seconds is not None:
        hop = {"hop_seconds": config.data.hop_seconds / 2}
        shorter += f" --data.hop_seconds {hop['hop_seconds']:g}"
    settings[shorter] = changed("data", window_seconds=seconds, **hop)
    if config.optimizer.name == "adamw":
        for name in SMALLER_OPTIMIZERS if machine.on_gpu else SMALLER_OPTIMIZERS[:1]:
            settings[f"--optimizer.name {name}"] = changed("optimizer", name=name)
    if isinstance(config, RecipeConfig) and config.tuning.method == "top_layers":
        fewer = config.tuning.num_top_layers // 2
        if fewer:
            settings[f"--tuning.num_top_layers {fewer}"] = changed("tuning", num_top_layers=fewer)
    if isinstance(config, RecipeConfig) and config.tuning.method in ("full", "top_layers"):
        lora = TuningConfig(method="lora")
        settings[_as_words("tuning", config.tuning, lora)] = lambda one: replace(one, tuning=lora)
    return settings


def _as_words(section: str, before: TuningConfig, after: TuningConfig) -> str:
    """Return the changes of a section as they are written on the command line, the method first."""
    changed = {
        field.name: json.dumps(getattr(after, field.name)).strip('"')
        for field in fields(after)
        if getattr(before, field.name) != getattr(after, field.name)
    }
    return " ".join(f"--{section}.{name} {value}" for name, value in changed.items())


def num_layers(config: RecipeConfig) -> int:
    """Return how many transformer layers a run uses, so far as a layer weighting by number allows halving."""
    if isinstance(config.backbone.layer_weighting, int):
        return 0
    if config.backbone.num_layers is not None:
        return config.backbone.num_layers
    with torch.device("meta"):
        return build_architecture(
            config.backbone.source, revision=config.backbone.revision
        ).num_layers
