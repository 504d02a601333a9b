"""The memory that a run will take, before it takes it: one optimiser step on tensors without values.

The model is built by the code that trains it, the step is `step.take_step`, the optimiser that of
`build_optimizer`; `counting` notes what they allocate.

What is not counted: the CUDA context (0.3 to 0.6 GB outside of PyTorch), work space of cuDNN, and memory
that the allocator cannot use for being in pieces. `MARGIN` is for these.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from rich.console import Group
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from m2v_finetune.backbones import bare_backbone
from m2v_finetune.config import OptimizerName, RecipeConfig, TrainingConfig, TuningConfig
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import Task
from m2v_finetune.training.card import CUBLAS_WORKSPACE_BYTES, CardKernels
from m2v_finetune.training.counting import (
    BLOCK_BYTES,
    PARTS,
    FakeRecorder,
    Part,
    StorageRecorder,
    Timeline,
)
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

Precision = Literal["no", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
SMALLER_OPTIMIZERS: tuple[OptimizerName, ...] = ("adafactor", "adamw_8bit")
"""The first is for any machine, the second for CUDA cards."""
MARGIN = 0.1
"""Share of a planned peak that has to be free beside it: peaks are planned to within a tenth."""
MEANING: dict[Part, str] = {
    "weights": "parameters and buffers, in float32",
    "gradients": "of what learns, in float32",
    "optimizer": "moments and what else the optimiser keeps",
    "activations": "what forward keeps for backward, the windows and half-precision weights included",
    "workspace": "all else: intermediate results, layers computed again, cuBLAS",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run is planned for.

    Attributes:
        on_card: A CUDA card; else a CPU.
        precision: Mixed precision of the run.
        num_processes: Devices that share a total batch.
    """

    on_card: bool
    precision: Precision
    num_processes: int = 1


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
        smallest_peak: That of one window at a time.
        eval_batch_size: Windows at once for judging tracks: that of the settings, or what fits.
        changes: What to switch on, where nothing fits.
    """

    machine: Machine
    configured: Split
    peak: dict[Part, int]
    memory_bytes: int | None
    chosen: Split | None
    chosen_peak: dict[Part, int] | None
    smallest_peak: dict[Part, int]
    eval_batch_size: int
    changes: tuple[Change, ...]

    @property
    def peak_bytes(self) -> int:
        """Of the split that is used: the chosen one, or that of the settings."""
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
        return f"{gigabytes(self.peak_bytes)}{asked} planned ({peak}); the settings have batches of {was}"

    def refusal(self) -> str:
        """Return why nothing fits, and what would."""
        assert self.memory_bytes is not None
        least = sum(self.smallest_peak.values())
        fitting = [change for change in self.changes if fits(change.peak_bytes, self.memory_bytes)]
        advice = (
            f"It would fit with one of these: {'; '.join(change.setting for change in fitting)}."
            if fitting
            else "No single change is enough: combine them ("
            + "; ".join(change.setting for change in self.changes)
            + "), or take a card with more memory."
        )
        return (
            f"Even one window at a time takes {gigabytes(least)}, and {MARGIN:.0%} of it have to be free "
            f"beside it; the memory is {gigabytes(self.memory_bytes)}. {advice}"
        )


def machine_of(accelerator: Accelerator) -> Machine:
    """Return what a run is on; what is neither a CPU nor a CUDA card is planned as a card."""
    return Machine(
        on_card=accelerator.device.type != "cpu",
        precision=cast(Precision, accelerator.mixed_precision),
        num_processes=accelerator.num_processes,
    )


def fits(peak_bytes: int, memory_bytes: int) -> bool:
    """Tell whether a planned peak leaves `MARGIN` free."""
    return peak_bytes * (1 + MARGIN) <= memory_bytes


def gigabytes(number: int) -> str:
    """Return bytes in decimal gigabytes, or megabytes where they are few, as text."""
    return f"{number / 1e9:.2f} GB" if number >= 10**8 else f"{number / 1e6:.1f} MB"


def plan_run(
    config: RecipeConfig, task: Task, machine: Machine, *, memory_bytes: int | None = None
) -> MemoryPlan:
    """Plan the memory of a run.

    Args:
        config: All settings; the task's own are in ``task``.
        task: What is learned.
        machine: Where.
        memory_bytes: What there is; without it no split is chosen.
    """
    memory = StepMemory(config, task, machine)
    configured = Split(
        batch_size=config.training.per_device_batch_size,
        accumulation=config.training.gradient_accumulation_steps,
    )
    splits = list(_splits(configured))
    smallest = memory.peak(splits[-1])
    chosen: Split | None = None
    changes: tuple[Change, ...] = ()
    eval_batch_size = config.training.eval_batch_size
    if memory_bytes is not None:
        chosen = _largest(memory, splits, configured, memory_bytes)
        eval_batch_size = _eval_batch_size(config, task, machine, memory_bytes)
        if chosen is None:
            changes = tuple(_changes(config, task, machine, before=sum(smallest.values())))
    return MemoryPlan(
        machine=machine,
        configured=configured,
        peak=memory.peak(configured),
        memory_bytes=memory_bytes,
        chosen=chosen,
        chosen_peak=None if chosen is None else memory.peak(chosen),
        smallest_peak=smallest,
        eval_batch_size=eval_batch_size,
        changes=changes,
    )


class StepMemory:
    """The memory of a run's optimiser step at any split, each batch size counted once."""

    def __init__(self, config: RecipeConfig, task: Task, machine: Machine) -> None:
        self._machine = machine
        self._count = cache(partial(count_step, config, task, machine))

    def peak(self, split: Split) -> dict[Part, int]:
        """Return the bytes of a step at its worst moment, by part."""
        timeline: Timeline = self._count(split.batch_size)
        peak = (timeline.accumulating() if split.accumulation > 1 else timeline).peak()
        if self._machine.on_card:
            peak["workspace"] += CUBLAS_WORKSPACE_BYTES
        if self._machine.num_processes > 1:
            # DistributedDataParallel's buckets are a second copy (its gradient_as_bucket_view is off).
            peak["workspace"] += timeline.bytes_of("gradients")
        return peak

    def peak_bytes(self, split: Split) -> int:
        """Return the bytes of a step at its worst moment."""
        return sum(self.peak(split).values())


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
    memory: StepMemory, splits: Sequence[Split], configured: Split, memory_bytes: int
) -> Split | None:
    """Return the split with the largest batch that fits, or None.

    Memory grows almost linearly with the batch: a line through two batch sizes says where to look.
    """
    one = splits[-1]
    if not fits(memory.peak_bytes(one), memory_bytes):
        return None
    other = configured if configured.batch_size > 1 else splits[0]
    slope = (memory.peak_bytes(other) - memory.peak_bytes(one)) / max(1, other.batch_size - 1)

    def seems_to_fit(split: Split) -> bool:
        guessed = memory.peak_bytes(one) + slope * (split.batch_size - 1)
        return fits(round(guessed), memory_bytes)

    # From where the line ends, first down to what fits, then up: memory bends upwards, so that between its
    # ends the line lies above it. What is chosen was counted.
    place = next(place for place, split in enumerate(splits) if seems_to_fit(split))
    while not fits(memory.peak_bytes(splits[place]), memory_bytes):
        place += 1
    while place > 0 and fits(memory.peak_bytes(splits[place - 1]), memory_bytes):
        place -= 1
    return splits[place]


def _eval_batch_size(config: RecipeConfig, task: Task, machine: Machine, memory_bytes: int) -> int:
    """Return the windows at once for judging tracks: those of the settings, halved until they fit."""
    size = config.training.eval_batch_size
    while size > 1 and not fits(
        sum(count_evaluation(config, task, machine, size).peak().values()), memory_bytes
    ):
        size //= 2
    return size


def _changes(
    config: RecipeConfig, task: Task, machine: Machine, *, before: int
) -> Iterator[Change]:
    """Yield what would take less memory than ``before``, one window at a time."""
    backbone, data, training, tuning = (
        config.backbone,
        config.data,
        config.training,
        config.tuning,
    )
    changed: dict[str, RecipeConfig] = {}
    if not training.gradient_checkpointing:
        changed["--training.gradient_checkpointing true"] = replace(
            config, training=replace(training, gradient_checkpointing=True)
        )
    if tuning.train_conv_encoder:
        changed["--tuning.train_conv_encoder false"] = replace(
            config, tuning=replace(tuning, train_conv_encoder=False)
        )
    layers = num_layers(config)
    if layers > 1:
        changed[f"--backbone.num_layers {layers // 2}"] = replace(
            config, backbone=replace(backbone, num_layers=layers // 2)
        )
    shorter = replace(data, window_seconds=data.window_seconds / 2, hop_seconds=None)
    changed[f"--data.window_seconds {shorter.window_seconds:g}"] = replace(config, data=shorter)
    if config.optimizer.name == "adamw":
        for name in SMALLER_OPTIMIZERS if machine.on_card else SMALLER_OPTIMIZERS[:1]:
            changed[f"--optimizer.name {name}"] = replace(
                config, optimizer=replace(config.optimizer, name=name)
            )
    if tuning.method == "full":
        changed["--tuning.method lora"] = replace(config, tuning=TuningConfig(method="lora"))
    accumulation = training.per_device_batch_size * training.gradient_accumulation_steps
    split = Split(batch_size=1, accumulation=accumulation)
    for setting, other in changed.items():
        peak = StepMemory(other, task, machine).peak_bytes(split)
        if peak < before:
            yield Change(setting=setting, peak_bytes=peak, saved_bytes=before - peak)


def num_layers(config: RecipeConfig) -> int:
    """Return how many transformer layers a run uses, so far as a layer weighting by number allows halving."""
    if isinstance(config.backbone.layer_weighting, int):
        return 0
    if config.backbone.num_layers is not None:
        return config.backbone.num_layers
    with torch.device("meta"):
        return bare_backbone(config.backbone.source, revision=config.backbone.revision).num_layers


def count_step(config: RecipeConfig, task: Task, machine: Machine, batch_size: int) -> Timeline:
    """Count an optimiser step of one batch.

    What it is counted for: the step after others, so the optimiser has its moments.
    """
    recorder = FakeRecorder()
    with _fake(machine):
        model = _empty_model(config, task)
        optimizer = _optimizer(model, config, machine)
        with recorder:
            record_step(
                recorder,
                model,
                optimizer,
                _empty_batch(model, batch_size),
                max_grad_norm=config.optimizer.max_grad_norm,
                autocast=_autocast(machine),
                read_norm=lambda norm: 1.0,
            )
    return recorder.timeline(block_bytes=BLOCK_BYTES if machine.on_card else 1)


def record_step(
    recorder: StorageRecorder,
    model: TaskModel,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Tensor],
    *,
    max_grad_norm: float,
    **others: Any,
) -> None:
    """Take an optimiser step, and tell a recorder which storages are what.

    Args:
        recorder: Is active.
        model: In training mode.
        optimizer: Of its parameters.
        batch: Inputs, and last targets.
        max_grad_norm: As `step.take_step` takes it.
        others: As `step.take_step` takes them.
    """
    _note_all(recorder, model, batch)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda one: recorder.note(one.grad, "gradients")
            )
    take_step(
        model, optimizer, [batch], loss=model.task.loss, max_grad_norm=max_grad_norm, **others
    )
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                recorder.note(value, "optimizer")


def count_evaluation(
    config: RecipeConfig, task: Task, machine: Machine, batch_size: int
) -> Timeline:
    """Count a forward pass for judging tracks, beside what the optimiser keeps."""
    recorder = FakeRecorder()
    with _fake(machine):
        model = _empty_model(config, task).eval()
        *inputs, _ = batch = _empty_batch(model, batch_size)
        with recorder:
            _note_all(recorder, model, batch)
            for parameter in model.parameters():
                if parameter.requires_grad:  # AdamW's two moments
                    moments = torch.empty_like(parameter), torch.empty_like(parameter)
                    for moment in moments:
                        recorder.note(moment, "optimizer")
            with torch.no_grad(), _autocast(machine)():
                model(*inputs)
    return recorder.timeline(block_bytes=BLOCK_BYTES if machine.on_card else 1)


def _note_all(recorder: StorageRecorder, model: TaskModel, batch: Sequence[Tensor]) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        recorder.note(tensor, "weights")
    for tensor in batch:
        recorder.note(tensor, "activations")


@contextmanager
def _fake(machine: Machine) -> Iterator[None]:
    """Let tensors have no values, and on a card keep what it would keep."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        CardKernels(on_card=machine.on_card),
    ):
        yield


def _empty_model(config: RecipeConfig, task: Task) -> TaskModel:
    """Build the model of a run without weights, in training mode; to call where tensors are fake."""
    # Built on "meta", as PEFT moves what it makes, which fake tensors do not bear.
    with unset_fake_temporarily(), torch.device("meta"):
        model = TaskModel.build(
            task=task,
            # SpecAugment's masks are drawn by their values; they take a thousandth of the windows.
            backbone=replace(config.backbone, spec_augment=False),
            head=config.head,
            tuning=config.tuning,
            window_seconds=config.data.window_seconds,
            hop_seconds=config.data.hop_seconds,
            with_weights=False,
        )
    model.to_empty(device="cpu")
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    return model.train()


def _empty_batch(model: TaskModel, batch_size: int) -> list[Tensor]:
    window = Window(
        start_sample=0, num_samples=model.window_samples, grid=model.backbone.frame_grid
    )
    return [torch.empty(batch_size, *shape) for shape in model.task.example_shapes(window)]


def _autocast(machine: Machine) -> Any:
    dtype = DTYPES.get(machine.precision)
    return nullcontext if dtype is None else partial(torch.autocast, "cpu", dtype)


def _optimizer(model: TaskModel, config: RecipeConfig, machine: Machine) -> torch.optim.Optimizer:
    """Return the optimiser of a run as it is on the machine."""
    name = config.optimizer.name
    if name in ("adamw_8bit", "paged_adamw_8bit"):
        return EightBitMoments(model.parameters(), is_paged=name == "paged_adamw_8bit")
    optimizer = build_optimizer(model, config.optimizer)
    if machine.on_card and isinstance(optimizer, torch.optim.AdamW):
        # Built of CPU tensors; on a card `build_optimizer` asks for the fused kernel.
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


class EightBitMoments(torch.optim.Optimizer):
    """What AdamW of bitsandbytes keeps, without its kernels, which need a card.

    Two moments of a byte a number with a scale for each 256, in float32 for tensors of less than 4096
    numbers; nothing on the card where they are paged, as they move there by need. Source: bitsandbytes,
    Optimizer2State (min_8bit_size, blocksize).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, is_paged: bool) -> None:
        super().__init__([one for one in parameters if one.requires_grad], {})
        self.is_paged = is_paged

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the moments, the first time."""
        for group in self.param_groups:
            for one in group["params"]:
                if not self.state[one] and not self.is_paged:
                    is_small = one.numel() < 4096
                    dtype = torch.float32 if is_small else torch.uint8
                    for number in (1, 2):
                        self.state[one][f"state{number}"] = torch.empty_like(one, dtype=dtype)
                        if not is_small:
                            scales = torch.empty(-(-one.numel() // 256), device=one.device)
                            self.state[one][f"absmax{number}"] = scales


def show_plan(plan: MemoryPlan, *, assumed: str = "") -> Group:
    """Return the plan as tables and sentences for people."""
    machine = plan.machine
    split, peak = plan.chosen or plan.configured, plan.chosen_peak or plan.peak
    columns = {f"{split.batch_size} x {split.accumulation}": peak}
    if split != plan.configured:
        configured = plan.configured
        columns = {
            f"settings: {configured.batch_size} x {configured.accumulation}": plan.peak,
            **{f"fits: {name}": value for name, value in columns.items()},
        }
    table = Table(title="Peak memory of a step, windows x accumulation", title_justify="left")
    table.add_column("part")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("what it is")
    for part in PARTS:
        table.add_row(part, *(gigabytes(peak[part]) for peak in columns.values()), MEANING[part])
    table.add_section()
    table.add_row(
        "peak", *(gigabytes(sum(peak.values())) for peak in columns.values()), "at its worst moment"
    )
    lines = [
        f"Counted for {'a CUDA card' if machine.on_card else 'a CPU'} in "
        f"{'float32' if machine.precision == 'no' else machine.precision}.{assumed}",
    ]
    if plan.memory_bytes is not None:
        lines.append(_verdict(plan))
    parts: list[Any] = [table, *lines]
    if plan.changes:
        parts.append(_changes_table(plan))
    return Group(*parts)


def _verdict(plan: MemoryPlan) -> str:
    assert plan.memory_bytes is not None
    if plan.chosen is None:
        return plan.refusal()
    total = plan.chosen.batch_size * plan.chosen.accumulation * plan.machine.num_processes
    return (
        f"In {gigabytes(plan.memory_bytes)} fits, with {MARGIN:.0%} of the peak to spare: "
        f"--training.per_device_batch_size {plan.chosen.batch_size} "
        f"--training.gradient_accumulation_steps {plan.chosen.accumulation} "
        f"--training.eval_batch_size {plan.eval_batch_size} (a total batch of {total}, as the settings say)."
    )


def _changes_table(plan: MemoryPlan) -> Table:
    assert plan.memory_bytes is not None
    table = Table(title="What would take less, one window at a time", title_justify="left")
    table.add_column("setting")
    table.add_column("saves", justify="right")
    table.add_column("peak", justify="right")
    table.add_column("fits")
    for change in plan.changes:
        table.add_row(
            change.setting,
            gigabytes(change.saved_bytes),
            gigabytes(change.peak_bytes),
            "yes" if fits(change.peak_bytes, plan.memory_bytes) else "no",
        )
    return table
