"""Optimizer and learning-rate schedule."""

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from m2v_finetune.config import OptimizerConfig, OptimizerName
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import unified_out_of_memory
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.tuning import Rates, default_rates, parameter_groups

logger = logging.getLogger(__name__)

# Source: data2vec (arXiv 2202.03555), the peak rate of its base model for audio.
PRETRAINING_LEARNING_RATE = 5e-4


def build_optimizer(
    model: TaskModel | PretrainingModel, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return an optimizer over all trainable parameters; each group keeps its peak rate as ``peak_lr``.

    Args:
        model: Model on the training device.
        config: Settings of the optimizer and its rates.

    Raises:
        UserError: The optimizer needs bitsandbytes or an NVIDIA GPU, and it is missing.
    """
    learning_rates = peak_rates(model, config)
    groups = parameter_groups(
        model.backbone,
        [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if not name.startswith("backbone.")
        ],
        learning_rate=learning_rates.head,
        backbone_learning_rate=learning_rates.backbone,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    for group in groups:
        group["peak_lr"] = group["lr"]
    require_gpu(config.name, is_on_gpu=next(model.parameters()).is_cuda)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if config.name == "adafactor":
        from transformers.optimization import Adafactor

        # The rates are those of the config, as for AdamW: not relative to the step or to the weights.
        return Adafactor(groups, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]
    return _bitsandbytes(config.name)(groups)  # type: ignore[no-any-return]


def peak_rates(model: TaskModel | PretrainingModel, config: OptimizerConfig) -> Rates:
    """Return peak learning rates: from the settings, else by tuning method and size of the backbone."""
    learning_rates = default_rates(model.tuning.method, model.backbone)
    return Rates(
        head=config.learning_rate or learning_rates.head,
        backbone=config.backbone_learning_rate or learning_rates.backbone,
    )


def with_pretraining_rates(config: OptimizerConfig) -> OptimizerConfig:
    """Return the settings of a pre-training run with its rates filled in: one for all parameters."""
    learning_rate = config.learning_rate or PRETRAINING_LEARNING_RATE
    backbone_rate = config.backbone_learning_rate or learning_rate
    return replace(config, learning_rate=learning_rate, backbone_learning_rate=backbone_rate)


def require_gpu(name: OptimizerName, *, is_on_gpu: bool) -> None:
    """Raise `UserError` if an optimizer needs a GPU and there is none."""
    if name in ("adamw_8bit", "paged_adamw_8bit") and not is_on_gpu:
        raise UserError(
            f"optimizer.name is {name}, which needs an NVIDIA GPU, and this run has none. Set it to "
            "adamw, or to adafactor, which has a smaller state.",
            code="optimizer-needs-gpu",
        )


def _bitsandbytes(name: OptimizerName) -> Any:
    """Return the class of an optimizer of bitsandbytes."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"optimizer.name is {name}, which needs bitsandbytes ({error}). Install it with `pip install "
            "'m2v-finetune[cuda]'`, or set optimizer.name to adafactor, which has a small state too.",
            code="optimizer-not-installed",
        ) from error
    optimizers = bitsandbytes.optim
    return optimizers.AdamW8bit if name == "adamw_8bit" else optimizers.PagedAdamW8bit


def allocate_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the state of weights that have none, by a step with a rate of 0 whose moments are reset.

    An optimizer allocates the state of a weight when it first updates it: if memory runs out then, the
    weights before it are changed. After this call, the next step allocates no more than this one did. That is
    the first step, and later the first one in which frozen weights are trained.

    Args:
        optimizer: Optimizer whose parameters have finite gradients, or none while they are frozen.

    Raises:
        torch.OutOfMemoryError: The step does not fit; weights are unchanged, and no state is new.
    """
    gradients = {
        parameter: parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    }
    new = [parameter for parameter in gradients if parameter not in optimizer.state]
    if not new:
        return
    for parameter in gradients.keys() - set(new):
        parameter.grad = None
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        with unified_out_of_memory():
            optimizer.step()
    except torch.OutOfMemoryError:
        for parameter in new:
            optimizer.state.pop(parameter, None)
        raise
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = learning_rate
    for parameter in new:
        state = optimizer.state[parameter]
        for name, value in state.items():
            if name.startswith("qmap"):  # the values of the bytes of bitsandbytes' moments
                continue
            if isinstance(value, torch.Tensor):
                value.zero_()
            else:
                state[name] = 0


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def warn_of_new_schedule(step: int, *, old_steps: int, new_steps: int, warmup_ratio: float) -> None:
    """Warn that the schedule of a resumed run has another length.

    Args:
        step: Number of steps before the resume.
        old_steps: Steps of the schedule until now.
        new_steps: Steps of the schedule from now on.
        warmup_ratio: Share of warm-up steps.
    """
    old, new = (
        learning_rate_factor(step, total_steps=total, warmup_ratio=warmup_ratio)
        for total in (old_steps, new_steps)
    )
    logger.warning(
        "The learning-rate schedule now spans %d steps (was %d): the multiplier at step %d changes from %.3g "
        "to %.3g. The run will end with other weights than one that started with %d steps.",
        new_steps,
        old_steps,
        step,
        old,
        new,
        new_steps,
    )


def learning_rate_factor(step: int, *, total_steps: int, warmup_ratio: float) -> float:
    """Return the learning-rate multiplier at an optimizer step.

    It rises linearly over the warm-up, reaching 1 at its end, then follows half a cosine to 0 at
    ``total_steps``. It is a function of the step alone, without scheduler state.

    Args:
        step: Number of earlier optimizer steps.
        total_steps: Number of steps of the schedule.
        warmup_ratio: Share of warm-up steps.
    """
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
