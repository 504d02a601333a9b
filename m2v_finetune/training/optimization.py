"""The optimiser and the course of its rates."""

import math

import torch

from m2v_finetune.config import OptimizerConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tuning import METHODS, parameter_groups


def build_optimizer(model: TaskModel, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over everything that learns; each group keeps its peak rate as ``peak_lr``."""
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
    return torch.optim.AdamW(groups)


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
