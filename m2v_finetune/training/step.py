"""Optimizer step: forward and backward passes, exchange of gradients, and weight update."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m2v_finetune.micro_batching import unified_out_of_memory
from m2v_finetune.training.optimization import allocate_optimizer_state


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of an optimizer step.

    Attributes:
        losses: Losses of the batches, scalars on the device.
        gradient_norm: Total norm of the gradients before clipping.
        is_skipped: Whether the norm was not finite, so that no weight was updated.
    """

    losses: list[Tensor]
    gradient_norm: float
    is_skipped: bool


class StepOutOfMemoryError(torch.OutOfMemoryError):
    """Out-of-memory error of a step, on this process or on another.

    Attributes:
        processes: Numbers of the processes that ran out of memory, from 1.
        is_undone: Whether no weight was updated, so that the step can be repeated.
    """

    def __init__(self, processes: Sequence[int], *, is_undone: bool) -> None:
        super().__init__(f"out of memory on process {', '.join(map(str, processes))}")
        self.processes = tuple(processes)
        self.is_undone = is_undone


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[Tensor]],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    gradient_accumulation_steps: int = 1,
    max_grad_norm: float,
    scaler: torch.amp.GradScaler | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    read_norm: Callable[[Tensor], float] = float,
    num_processes: int = 1,
) -> StepResult:
    """Update the weights once, by the mean gradient of the batches.

    Gradients are freed at the end: after an error the step can be repeated with other batches.

    Processes exchange gradients once, after the last batch, and not within its backward pass: if one ran
    out of memory in it, the others would wait. So all of them leave the step together.

    Args:
        model: Model, such as a `TaskModel`, also as prepared by Accelerate.
        optimizer: Optimizer of its parameters.
        batches: Inputs and targets of each batch, on the model's device; read one after the other.
        loss: Loss function of the model's outputs, in float32, and the targets.
        gradient_accumulation_steps: Number of batches.
        max_grad_norm: Largest total norm of the gradients, which are clipped to it.
        scaler: Loss scaler, for float16.
        autocast: Context of each forward pass; a model prepared by Accelerate has its own.
        read_norm: Function that reads the gradient norm, the only synchronisation with the device. Memory
            planning needs another one, as its tensors have no values.
        num_processes: Number of processes in the step, each with its batches and its copy of the model; 1
            if a sharded model exchanges its gradients itself.

    Raises:
        StepOutOfMemoryError: Memory ran out; the same on every process, unless weights were being updated.
    """
    losses = []
    device = next(model.parameters()).device
    try:
        with _together(num_processes, device):
            for *inputs, targets in batches:
                with autocast():
                    outputs = model(*inputs)
                value = loss(outputs.float(), targets)
                losses.append(value.detach())
                share = value / (gradient_accumulation_steps * num_processes)
                (share if scaler is None else scaler.scale(share)).backward()  # type: ignore[no-untyped-call]
        if num_processes > 1:
            sum_gradients(model)
        if scaler is not None:
            scaler.unscale_(optimizer)
        try:
            with _together(num_processes, device):
                gradients = [one.grad for one in model.parameters() if one.grad is not None]
                total = nn.utils.get_total_norm(gradients)
                norm = read_norm(total)
                is_skipped = not math.isfinite(norm)
                if not is_skipped:
                    if (
                        norm > max_grad_norm
                    ):  # else clipping would process all gradients without effect
                        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, total)
                    allocate_optimizer_state(optimizer)
            if not is_skipped:
                _change_weights(optimizer)
        except Exception:
            if scaler is not None:  # resets it, as it refuses to unscale twice; its scale stays
                scaler.update(scaler.get_scale())
            raise
        if scaler is not None:
            scaler.update()
    finally:
        optimizer.zero_grad()
    return StepResult(losses=losses, gradient_norm=norm, is_skipped=is_skipped)


@contextmanager
def _together(num_processes: int, device: torch.device) -> Iterator[None]:
    """Raise an out-of-memory error of one process on all of them, so that none waits for another."""
    if num_processes == 1:
        try:
            with unified_out_of_memory():
                yield
        except torch.OutOfMemoryError as error:
            raise StepOutOfMemoryError([_own_number()], is_undone=True) from error
        return
    is_short = torch.zeros(num_processes, device=device)  # allocated before memory runs out
    try:
        with unified_out_of_memory():
            yield
    except torch.OutOfMemoryError:
        is_short[dist.get_rank()] = 1
    dist.all_reduce(is_short)
    if is_short.any():
        numbers = (is_short.nonzero().flatten() + 1).tolist()
        raise StepOutOfMemoryError(numbers, is_undone=True)


def sum_gradients(model: nn.Module) -> None:
    """Sum the gradients over all processes, in place, without further memory.

    All exchanges are under way at once. Buckets, and an exchange within the backward pass, gain little:
    docs/several-gpus.md has the measurement.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for exchange in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        exchange.wait()


def _change_weights(optimizer: torch.optim.Optimizer) -> None:
    try:
        with unified_out_of_memory():
            optimizer.step()
    except torch.OutOfMemoryError as error:
        raise StepOutOfMemoryError([_own_number()], is_undone=False) from error


def _own_number() -> int:
    return dist.get_rank() + 1 if dist.is_initialized() else 1
