"""One optimiser step: all that happens on the device between two readings of data."""

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
    """What one optimiser step did.

    Attributes:
        losses: Of each batch, scalars on the device.
        gradient_norm: Total norm of the gradients before clipping.
        is_skipped: Whether the norm was not finite, so that no weight was changed.
    """

    losses: list[Tensor]
    gradient_norm: float
    is_skipped: bool


class StepOutOfMemoryError(torch.OutOfMemoryError):
    """A step ran out of memory, on this process or on another.

    Attributes:
        processes: Where, from 1.
        is_undone: No weight has changed, so that the step can be taken again.
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
    """Change the weights once, by the mean gradient of some batches.

    Gradients do not outlive the step: it can be taken again, with other batches, where it raised.

    Processes exchange gradients once, after the last batch, and not within its backward pass: where one
    runs out of memory in there, the others would wait for it. So all of them leave the step together.

    Args:
        model: A `TaskModel`, or what Accelerate made of it.
        optimizer: Over its parameters.
        batches: Each the model's inputs and, last, its targets, all on the model's device; they are
            asked for one after the other.
        loss: Of the model's outputs, in float32, and the targets.
        gradient_accumulation_steps: How many batches there are.
        max_grad_norm: Gradients are scaled down to this total norm.
        scaler: Scales the loss up and gradients down again, for float16.
        autocast: Surrounds each pass through the network; what Accelerate prepared has its own inside.
        read_norm: Reads the gradient norm, the one synchronisation with the device. Tensors without
            values, by which memory is planned, need another.
        num_processes: That take the step together, each with its batches and its copy of the model; 1 where
            a sharded model exchanges its gradients itself.

    Raises:
        StepOutOfMemoryError: Memory ran out; the same on every process, unless weights were being changed.
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
            _sum_gradients(model)
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
                    ):  # else it would pass over all gradients, to change none
                        nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, total)
                    allocate_optimizer_state(optimizer)
            if not is_skipped:
                _change_weights(optimizer)
        except Exception:
            if scaler is not None:  # it would refuse to unscale again; its scale stays
                scaler.update(scaler.get_scale())
            raise
        if scaler is not None:
            scaler.update()
    finally:
        optimizer.zero_grad()
    return StepResult(losses=losses, gradient_norm=norm, is_skipped=is_skipped)


@contextmanager
def _together(num_processes: int, device: torch.device) -> Iterator[None]:
    """Let every process run out of memory where one does, so that none waits for another."""
    if num_processes == 1:
        try:
            with unified_out_of_memory():
                yield
        except torch.OutOfMemoryError as error:
            raise StepOutOfMemoryError([_own_number()], is_undone=True) from error
        return
    is_short = torch.zeros(num_processes, device=device)  # made before memory is short
    try:
        with unified_out_of_memory():
            yield
    except torch.OutOfMemoryError:
        is_short[dist.get_rank()] = 1
    dist.all_reduce(is_short)
    if is_short.any():
        numbers = (is_short.nonzero().flatten() + 1).tolist()
        raise StepOutOfMemoryError(numbers, is_undone=True)


def _sum_gradients(model: nn.Module) -> None:
    """Let every process have the sum of all gradients, in place: nothing is kept beside them."""
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
