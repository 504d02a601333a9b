"""Settings and files that decide the features of a window: the content of cache keys."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2v_finetune.backbones.network_parts import NAMES
from m2v_finetune.config import RecipeConfig
from m2v_finetune.files import file_identity
from m2v_finetune.model import FeatureLayout, TaskModel

FORMAT_VERSION = 1
"""Raise it if a change of the code changes the features of the same settings."""


def describe_features(
    model: TaskModel, layout: FeatureLayout, *, mixed_precision: str
) -> dict[str, Any]:
    """Return the weights, settings and layout that decide the features of a window."""
    backbone = model.backbone
    return {
        "format_version": FORMAT_VERSION,
        "weights": model.base_fingerprint,
        "network": {k: v for k, v in backbone.settings.items() if k not in NAMES},
        "num_layers": backbone.num_layers,
        "normalize": backbone.normalize,
        "sample_rate": backbone.sample_rate,
        "window_samples": model.window_samples,
        "layout": asdict(layout),
        "mixed_precision": mixed_precision,
    }


def describe_augmentation(config: RecipeConfig, model: TaskModel) -> dict[str, Any] | None:
    """Return the augmentation of the training windows with its files; None where there is none."""
    transforms = config.augmentation.transforms
    if not transforms:
        return None
    return {
        "transforms": transforms,
        "files": [file_identity(file) for file in files_named(transforms)],
        # A task defines the transform of its labels, and so the allowed augmentation.
        "task": model.task.to_dict(),
    }


def as_json(content: Any) -> Any:
    """Return plain data after a round trip through JSON: tuples are lists, and keys are text."""
    return json.loads(json.dumps(content))


def files_named(transforms: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Return the files in the settings of transforms, such as impulse responses."""
    named = [Path(value) for one in transforms for value in one.values() if isinstance(value, str)]
    return [
        file
        for path in named
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file()
    ]
