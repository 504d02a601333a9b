"""Tuning methods: the trainable parameters of a backbone, added modules, learning rates."""

from m2v_finetune.tuning.default_rates import Rates, default_rates, is_small
from m2v_finetune.tuning.learning_rates import parameter_groups
from m2v_finetune.tuning.methods import (
    LORA_TARGETS,
    METHODS,
    Method,
    apply_tuning,
    describe_tuning,
    merge_adapters,
    trained_parts,
)

__all__ = [
    "LORA_TARGETS",
    "METHODS",
    "Method",
    "Rates",
    "apply_tuning",
    "default_rates",
    "describe_tuning",
    "is_small",
    "merge_adapters",
    "parameter_groups",
    "trained_parts",
]
