"""One optimiser step: all that happens on the device between two readings of data."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


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
) -> StepResult:
    """Change the weights once, by the mean gradient of some batches.

    Gradients do not outlive the step: it can be taken again, with other batches, where it raised.

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
    """
    losses = []
    try:
        for number, (*inputs, targets) in enumerate(batches, start=1):
            with _without_exchange(model, is_last=number == gradient_accumulation_steps):
                with autocast():
                    outputs = model(*inputs)
                value = loss(outputs.float(), targets)
                losses.append(value.detach())
                share = value / gradient_accumulation_steps
                (share if scaler is None else scaler.scale(share)).backward()  # type: ignore[no-untyped-call]
        if scaler is not None:
            scaler.unscale_(optimizer)
        try:
            gradients = [one.grad for one in model.parameters() if one.grad is not None]
            total = nn.utils.get_total_norm(gradients)
            norm = read_norm(total)
            is_skipped = not math.isfinite(norm)
            if not is_skipped:
                if norm > max_grad_norm:  # else it would pass over all gradients, to change none
                    nn.utils.clip_grads_with_norm_(model.parameters(), max_grad_norm, total)
                optimizer.step()
        except Exception:
            if scaler is not None:  # it would refuse to unscale again; its scale stays
                scaler.update(scaler.get_scale())
            raise
        if scaler is not None:
            scaler.update()
    finally:
        optimizer.zero_grad()
    return StepResult(losses=losses, gradient_norm=norm, is_skipped=is_skipped)


def _without_exchange(model: nn.Module, *, is_last: bool) -> AbstractContextManager[Any]:
    """Keep processes from exchanging gradients until the last batch of a step."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()
