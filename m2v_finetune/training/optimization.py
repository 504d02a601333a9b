"""The optimiser and the course of its rates."""

import math
from dataclasses import replace
from typing import Any

import torch
from transformers.optimization import Adafactor

from m2v_finetune.config import OptimizerConfig, OptimizerName
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import unified_out_of_memory
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.tuning import Rates, default_rates, parameter_groups

# Source: data2vec (arXiv 2202.03555), the peak rate of its base model for audio.
PRETRAINING_LEARNING_RATE = 5e-4


def build_optimizer(
    model: TaskModel | PretrainingModel, config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return an optimiser over everything that learns; each group keeps its peak rate as ``peak_lr``.

    Args:
        model: On the device that it trains on.
        config: Which optimiser, and its rates.

    Raises:
        UserError: The optimiser is one of bitsandbytes, and there is none here, or no NVIDIA card.
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
        # The rates are those of the config, as for AdamW: not relative to the step or to the weights.
        return Adafactor(groups, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]
    return _bitsandbytes(config.name)(groups)  # type: ignore[no-any-return]


def peak_rates(model: TaskModel | PretrainingModel, config: OptimizerConfig) -> Rates:
    """Return the peak learning rates: those given, else by tuning method and size of the backbone."""
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
    """Raise `UserError` where an optimiser does not run."""
    if name in ("adamw_8bit", "paged_adamw_8bit") and not is_on_gpu:
        raise UserError(
            f"optimizer.name is {name}, which runs on NVIDIA cards only, and this run is on none. Set it to "
            "adamw, or to adafactor, which keeps less."
        )


def _bitsandbytes(name: OptimizerName) -> Any:
    """Return the class of an optimiser of bitsandbytes."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"optimizer.name is {name}, which needs bitsandbytes ({error}). Install it by `pip install "
            "'m2v-finetune[cuda]'`, or set optimizer.name to adafactor, which keeps little too."
        ) from error
    optimizers = bitsandbytes.optim
    return optimizers.AdamW8bit if name == "adamw_8bit" else optimizers.PagedAdamW8bit


def allocate_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Take the first step of a new optimiser at a rate of 0, and forget it: all that it keeps is made.

    By itself an optimiser makes what it keeps of a weight when it comes to it: if memory runs out then, the
    weights before it are changed. After this, its first step asks for nothing that was not just there.

    Args:
        optimizer: With the gradients of its parameters, finite.

    Raises:
        torch.OutOfMemoryError: The step does not fit; weights are as they were, and nothing is kept.
    """
    if optimizer.state:
        return
    learning_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        with unified_out_of_memory():
            optimizer.step()
    except torch.OutOfMemoryError:
        optimizer.state.clear()
        raise
    finally:
        for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = learning_rate
    for state in optimizer.state.values():
        for name, value in state.items():
            if name.startswith("qmap"):  # what the bytes of bitsandbytes' moments stand for
                continue
            if isinstance(value, torch.Tensor):
                value.zero_()
            else:
                state[name] = 0


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rate_factor(step: int, *, total_steps: int, warmup_ratio: float) -> float:
    """Return the share of the peak rate at an optimiser step.

    It rises linearly over the warm-up, reaching 1 at its end, then follows half a cosine to 0 at
    ``total_steps``. A function of the step alone, so there is no scheduler state to lose.

    Args:
        step: Optimiser steps done before this one.
        total_steps: Of the whole run.
        warmup_ratio: Share of the steps that belong to the warm-up.
    """
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
