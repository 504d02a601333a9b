"""The optimiser and the course of its rates."""

import math
from typing import Any

import torch
from transformers.optimization import Adafactor

from m2v_finetune.config import OptimizerConfig, OptimizerName
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.tuning import METHODS, parameter_groups


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
    method = METHODS[model.tuning.method]
    groups = parameter_groups(
        model.backbone,
        [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if not name.startswith("backbone.")
        ],
        learning_rate=config.learning_rate or method.learning_rate,
        backbone_learning_rate=config.backbone_learning_rate or method.backbone_learning_rate,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    for group in groups:
        group["peak_lr"] = group["lr"]
    is_on_card = next(model.parameters()).is_cuda
    if config.name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if config.name == "adafactor":
        # The rates are those of the config, as for AdamW: not relative to the step or to the weights.
        return Adafactor(groups, scale_parameter=False, relative_step=False)  # type: ignore[no-any-return]
    return _bitsandbytes(config.name, is_on_card=is_on_card)(groups)  # type: ignore[no-any-return]


def _bitsandbytes(name: OptimizerName, *, is_on_card: bool) -> Any:
    """Return the class of an optimiser of bitsandbytes."""
    if not is_on_card:
        raise UserError(
            f"optimizer.name is {name}, which runs on NVIDIA cards only, and this run is on none. Set it to "
            "adamw, or to adafactor, which keeps less."
        )
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"optimizer.name is {name}, which needs bitsandbytes ({error}). Install it by `pip install "
            "'m2v-finetune[cuda]'`, or set optimizer.name to adafactor, which keeps little too."
        ) from error
    optimizers = bitsandbytes.optim
    return optimizers.AdamW8bit if name == "adamw_8bit" else optimizers.PagedAdamW8bit


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let a new AdamW make its moments, all of them, before it changes a weight.

    By itself it makes those of a parameter group when it comes to the group: if memory runs out then, the
    weights of the groups before are changed. Other optimisers are left alone: what they keep is small.

    Args:
        optimizer: With the gradients of its parameters.

    Raises:
        torch.OutOfMemoryError: They do not fit; none of them is left.
    """
    if not isinstance(optimizer, torch.optim.AdamW) or optimizer.state:
        return
    try:
        for group in optimizer.param_groups:
            optimizer._init_group(group, [], [], [], [], [], [])  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        optimizer.state.clear()
        raise


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to its peak times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def rate_factor(step: int, *, total_steps: int, warmup_ratio: float) -> float:
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
