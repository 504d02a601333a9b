"""Memory of one step of a run, counted on tensors without values.

Model, step and optimizer are those of training (`step.take_step`, `build_optimizer`); `counting` records
their allocations.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from m2v_finetune.backbones.cpu import as_elsewhere
from m2v_finetune.config import AnyRecipeConfig, PretrainingConfig, RecipeConfig
from m2v_finetune.data.loader import Window
from m2v_finetune.memory.counting import BLOCK_BYTES, FakeRecorder, Part, StorageRecorder, Timeline
from m2v_finetune.memory.fake_tensors import QuickFakeTensorMode
from m2v_finetune.memory.gpu import GpuKernels
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.building import build_pretraining_model
from m2v_finetune.pretraining.model import PretrainingModel, backbone_without_weights
from m2v_finetune.tasks import Task
from m2v_finetune.training.distillation import Loss, teacher_loss
from m2v_finetune.training.moving_average import MovingAverage
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

Precision = Literal["no", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Machine of a planned run.

    Attributes:
        on_gpu: Whether the device is a CUDA GPU, not a CPU.
        precision: Mixed precision of the run.
        num_processes: Number of devices that share a total batch.
    """

    on_gpu: bool
    precision: Precision
    num_processes: int = 1


class CountedRun:
    """Model of a run, to count the memory of its steps.

    Args:
        config: All settings.
        task: Task; None for pre-training.
        machine: Machine of the run.
    """

    def __init__(self, config: AnyRecipeConfig, task: Task | None, machine: Machine) -> None:
        self._config = config
        self._machine = machine
        self._fake_tensors = QuickFakeTensorMode()
        # Built on "meta": PEFT moves its new parameters, which fake tensors do not support.
        teacher = None
        if config.training.teacher is not None:
            teacher = TaskModel.from_pretrained(config.training.teacher).to("meta")
            teacher.requires_grad_(False)
            task = teacher.task  # the student has its outputs
        model = model_without_weights(config, task)
        with self._fake():
            self._model = model.to_empty(device="cpu")
            self._teacher = None if teacher is None else teacher.to_empty(device="cpu")

    def step(self, batch_size: int, *, limit_bytes: float = math.inf) -> Timeline:
        """Count an optimizer step of one batch, after earlier steps: the optimizer has its moments.

        Args:
            batch_size: Batch size in windows.
            limit_bytes: Limit of live bytes at which the count ends.

        Raises:
            LimitExceededError: The limit is exceeded.
        """
        recorder = FakeRecorder(limit_bytes=limit_bytes)
        model = self._model.train()
        with self._fake():
            optimizer = _optimizer(model, self._config)
            batch, beside = self._batch(batch_size), self._beside()
            if isinstance(model, PretrainingModel):
                # After the steps in which parts are frozen.
                model.start_step(sys.maxsize)
            with recorder:
                _note_beside(recorder, beside)
                record_step(
                    recorder,
                    model,
                    optimizer,
                    batch,
                    loss=self._loss(),
                    max_grad_norm=self._config.optimizer.max_grad_norm,
                    autocast=_autocast(self._machine),
                    read_norm=lambda norm: 1e9,  # large, so that clipping is counted
                )
        return self._timeline(recorder)

    def evaluation(self, batch_size: int, *, limit_bytes: float = math.inf) -> Timeline:
        """Count a forward pass of evaluation, between steps; arguments and errors are those of `step`."""
        recorder = FakeRecorder(limit_bytes=limit_bytes)
        model = self._model.train()
        with self._fake():
            optimizer = _optimizer(model, self._config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            with FakeRecorder():
                optimizer.step()
            optimizer.zero_grad()
            *inputs, targets = batch = _empty_batch(model.eval(), batch_size)
            beside = self._beside()
            with recorder:
                _note_beside(recorder, beside)
                _note_all(recorder, model, batch)
                _note_moments(recorder, optimizer)
                with torch.no_grad(), _autocast(self._machine)():
                    outputs = model(*inputs)
                    if isinstance(model, PretrainingModel):
                        model.window_metrics(outputs, targets)
        return self._timeline(recorder)

    def _batch(self, batch_size: int) -> list[Tensor]:
        """Return the tensors of a training batch; a student's targets are its waveforms."""
        batch = _empty_batch(self._model, batch_size)
        return batch if self._teacher is None else [batch[0], torch.empty_like(batch[0])]

    def _loss(self) -> Loss:
        if self._teacher is not None:
            temperature = self._config.training.temperature
            return teacher_loss(
                self._teacher, temperature=temperature, autocast=_autocast(self._machine)
            )
        model = self._model
        return model.loss if isinstance(model, PretrainingModel) else model.task.loss

    def _beside(self) -> dict[Part, list[Tensor]]:
        """Return the tensors of a run that model, optimizer and batch do not have."""
        teacher, decay = self._teacher, self._config.training.ema_decay
        weights = [] if teacher is None else [*teacher.parameters(), *teacher.buffers()]
        average = MovingAverage(self._model, decay).values.values()
        return {"weights": weights, "optimizer": list(average)}

    @contextmanager
    def _fake(self) -> Iterator[None]:
        """Use tensors without values, and on a GPU the memory of its kernels."""
        on_gpu = self._machine.on_gpu
        convolutions = as_elsewhere() if on_gpu else nullcontext()
        with self._fake_tensors, GpuKernels(on_gpu=on_gpu), convolutions:
            yield

    def _timeline(self, recorder: StorageRecorder) -> Timeline:
        return recorder.timeline(block_bytes=BLOCK_BYTES if self._machine.on_gpu else 1)


def record_step(
    recorder: StorageRecorder,
    model: TaskModel | PretrainingModel,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Tensor],
    *,
    loss: Loss,
    max_grad_norm: float,
    **others: Any,
) -> None:
    """Take an optimizer step, and record the part of each storage.

    Args:
        recorder: Active recorder.
        model: Model in training mode.
        optimizer: Optimizer of its parameters.
        batch: Inputs and targets.
        loss: Argument of `step.take_step`.
        max_grad_norm: Argument of `step.take_step`.
        others: Further arguments of `step.take_step`.
    """
    _note_all(recorder, model, batch)
    hooks = [
        parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda one: recorder.note(one.grad, "gradients")
        )
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        take_step(model, optimizer, [batch], loss=loss, max_grad_norm=max_grad_norm, **others)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(model, PretrainingModel):
        model.end_step(0)
    _note_moments(recorder, optimizer)


def _note_beside(recorder: StorageRecorder, beside: Mapping[Part, Sequence[Tensor]]) -> None:
    for part, tensors in beside.items():
        for tensor in tensors:
            recorder.note(tensor, part)


def _note_moments(recorder: StorageRecorder, optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                recorder.note(value, "optimizer")


def _note_all(recorder: StorageRecorder, model: nn.Module, batch: Sequence[Tensor]) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        recorder.note(tensor, "weights")
    for tensor in batch:
        recorder.note(tensor, "activations")


def model_without_weights(
    config: AnyRecipeConfig, task: Task | None
) -> TaskModel | PretrainingModel:
    """Return the model of a run on PyTorch's device "meta", in training mode.

    Args:
        config: All settings.
        task: Task; None for pre-training.
    """
    with torch.device("meta"):
        model: TaskModel | PretrainingModel
        if isinstance(config, PretrainingConfig):
            backbone = backbone_without_weights(config.backbone)
            model = build_pretraining_model(backbone, config)
        else:
            assert task is not None
            model = _task_model(config, task)
    model.backbone.gradient_checkpointing = config.training.gradient_checkpointing
    return model.train()


def _task_model(config: RecipeConfig, task: Task) -> TaskModel:
    assert config.data.window_seconds is not None
    return TaskModel.build(
        task=task,
        # SpecAugment's masks need values; they take a thousandth of the memory of the windows.
        backbone=replace(config.backbone, spec_augment=False),
        head=config.head,
        tuning=config.tuning,
        window_seconds=config.data.window_seconds,
        hop_seconds=config.data.hop_seconds,
        with_weights=False,
    )


def _empty_batch(model: TaskModel | PretrainingModel, batch_size: int) -> list[Tensor]:
    """Return inputs and targets of a batch, without values."""
    if isinstance(model, PretrainingModel):
        return [
            torch.empty(batch_size, *shape, dtype=dtype) for shape, dtype in model.batch_shapes()
        ]
    window = Window(
        start_sample=0, num_samples=model.window_samples, grid=model.backbone.frame_grid
    )
    return [torch.empty(batch_size, *shape) for shape in model.task.example_shapes(window)]


def _autocast(machine: Machine) -> Any:
    dtype = DTYPES.get(machine.precision)
    return nullcontext if dtype is None else partial(torch.autocast, "cpu", dtype)


def _optimizer(
    model: TaskModel | PretrainingModel, config: AnyRecipeConfig
) -> torch.optim.Optimizer:
    """Return the optimizer of a run."""
    name = config.optimizer.name
    if name in ("adamw_8bit", "paged_adamw_8bit"):
        return EightBitMoments(model.parameters(), is_paged=name == "paged_adamw_8bit")
    return build_optimizer(model, config.optimizer)


class EightBitMoments(torch.optim.Optimizer):
    """State of AdamW of bitsandbytes, without its kernels, which need a GPU.

    There are two moments with one byte per number and a scale for each 256; they are float32 for tensors of
    less than 4096 numbers. Paged moments count as nothing: they move to the GPU on demand. Source:
    bitsandbytes, Optimizer2State (min_8bit_size, blocksize).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, is_paged: bool) -> None:
        super().__init__([one for one in parameters if one.requires_grad], {"lr": 0.0})
        self.is_paged = is_paged

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Allocate the moments in the first step."""
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
