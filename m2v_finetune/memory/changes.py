"""Changes of a run's settings that reduce its memory."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from m2v_finetune.backbones import build_architecture
from m2v_finetune.config import (
    AnyRecipeConfig,
    OptimizerName,
    PretrainingConfig,
    RecipeConfig,
    TuningConfig,
)
from m2v_finetune.errors import UserError
from m2v_finetune.memory.counted_step import Machine
from m2v_finetune.memory.run_memory import RunMemory, Split
from m2v_finetune.tasks import Task

SMALLER_OPTIMIZERS: tuple[OptimizerName, ...] = ("adafactor", "adamw_8bit")
"""The first is for any machine, the second for CUDA GPUs."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Change of a setting that reduces memory.

    Attributes:
        setting: Command-line options.
        peak_bytes: Peak after the change, for a batch of one window.
        saved_bytes: Reduction of the peak.
    """

    setting: str
    peak_bytes: int
    saved_bytes: int


def smaller_settings(
    config: AnyRecipeConfig, task: Task | None, machine: Machine, *, before: int
) -> Iterator[Change]:
    """Yield the changes whose peak for a batch of one window is below ``before``."""
    for setting, change in _settings(config, machine).items():
        try:
            peak = one_window_bytes(change(config), task, machine)
        except UserError:  # too few layers for the method, or windows too short for the network
            continue
        if peak < before:
            yield Change(setting=setting, peak_bytes=peak, saved_bytes=before - peak)


def combine_changes(
    config: AnyRecipeConfig,
    task: Task | None,
    machine: Machine,
    changes: Sequence[Change],
    *,
    before: int,
) -> Change | None:
    """Return several changes as one; None if there is only one.

    Of several optimizers the first is used, which has the smallest state.
    """
    chosen: dict[str, str] = {}
    for change in changes:
        chosen.setdefault(change.setting.split()[0], change.setting)
    if len(chosen) < 2:
        return None
    settings = _settings(config, machine)
    for setting in chosen.values():
        config = settings[setting](config)
    peak = one_window_bytes(config, task, machine)
    return Change(setting=" ".join(chosen.values()), peak_bytes=peak, saved_bytes=before - peak)


def one_window_bytes(config: AnyRecipeConfig, task: Task | None, machine: Machine) -> int:
    """Return the peak of a step with batches of one window."""
    training = config.training
    accumulation = training.per_device_batch_size * training.gradient_accumulation_steps
    split = Split(batch_size=1, accumulation=accumulation)
    return RunMemory(config, task, machine).peak_bytes(split)


def _settings(
    config: AnyRecipeConfig, machine: Machine
) -> dict[str, Callable[[Any], AnyRecipeConfig]]:
    """Return changes that may reduce memory, by their command-line options."""

    def changed(section: str, **values: Any) -> Callable[[Any], AnyRecipeConfig]:
        return lambda one: replace(one, **{section: replace(getattr(one, section), **values)})

    settings = {}
    if not config.training.gradient_checkpointing:
        settings["--training.gradient_checkpointing true"] = changed(
            "training", gradient_checkpointing=True
        )
    if isinstance(config, PretrainingConfig):
        section = "masked_prediction" if config.objective == "masked_prediction" else "pretrain"
        if getattr(config, section).train_conv_encoder:
            settings[f"--{section}.train_conv_encoder false"] = changed(
                section, train_conv_encoder=False
            )
    else:
        if config.tuning.train_conv_encoder:
            settings["--tuning.train_conv_encoder false"] = changed(
                "tuning", train_conv_encoder=False
            )
        layers = num_layers(config)
        if layers > 1:
            settings[f"--backbone.num_layers {layers // 2}"] = changed(
                "backbone", num_layers=layers // 2
            )
    assert config.data.window_seconds is not None
    seconds = config.data.window_seconds / 2
    shorter, hop = f"--data.window_seconds {seconds:g}", {}
    if isinstance(config, RecipeConfig) and config.data.hop_seconds is not None:
        hop = {"hop_seconds": config.data.hop_seconds / 2}
        shorter += f" --data.hop_seconds {hop['hop_seconds']:g}"
    settings[shorter] = changed("data", window_seconds=seconds, **hop)
    if config.optimizer.name == "adamw":
        for name in SMALLER_OPTIMIZERS if machine.on_gpu else SMALLER_OPTIMIZERS[:1]:
            settings[f"--optimizer.name {name}"] = changed("optimizer", name=name)
    if isinstance(config, RecipeConfig) and config.tuning.method == "top_layers":
        fewer = config.tuning.num_top_layers // 2
        if fewer:
            settings[f"--tuning.num_top_layers {fewer}"] = changed("tuning", num_top_layers=fewer)
    if isinstance(config, RecipeConfig) and config.tuning.method in ("full", "top_layers"):
        lora = TuningConfig(method="lora")
        settings[_as_words("tuning", config.tuning, lora)] = lambda one: replace(one, tuning=lora)
    return settings


def _as_words(section: str, before: TuningConfig, after: TuningConfig) -> str:
    """Return the changes of a section as command-line options, the method first."""
    changed = {
        field.name: json.dumps(getattr(after, field.name)).strip('"')
        for field in fields(after)
        if getattr(before, field.name) != getattr(after, field.name)
    }
    return " ".join(f"--{section}.{name} {value}" for name, value in changed.items())


def num_layers(config: RecipeConfig) -> int:
    """Return the number of transformer layers of a run; 0 if the layer weighting forbids to halve it."""
    if isinstance(config.backbone.layer_weighting, int):
        return 0
    if config.backbone.num_layers is not None:
        return config.backbone.num_layers
    with torch.device("meta"):
        return build_architecture(
            config.backbone.source, revision=config.backbone.revision
        ).num_layers
