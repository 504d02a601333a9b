"""Start of a run from a trained model: `training.init_from`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from m2v_finetune.backbones import Backbone
from m2v_finetune.backbones.network_parts import other_settings
from m2v_finetune.config import BackboneConfig, HeadConfig, RecipeConfig, TuningConfig
from m2v_finetune.errors import UserError
from m2v_finetune.heads import Standardization
from m2v_finetune.model import TaskModel, read_description
from m2v_finetune.tasks import Task
from m2v_finetune.training.run import Run
from m2v_finetune.training.start_record import require_same_model
from m2v_finetune.tuning import METHODS, apply_tuning, merge_adapters

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=RecipeConfig)


def with_start_settings(config: Config, task: Task) -> Config:
    """Return the settings with backbone and head of the model of ``training.init_from``.

    Args:
        config: All settings.
        task: Task of the run; the head of a model of another task is not taken over.

    Raises:
        UserError: There is no such model, or a setting was changed to another value than that of the model.
    """
    source = config.training.init_from
    if source is None:
        return config
    saved, start_task = read_description(source)
    if "num_hidden_layers" not in saved.backbone.settings:
        raise UserError(
            f"{source} reads vectors that were computed elsewhere, so a run on audio cannot start from it.",
            code="init-from-vectors",
        )
    is_same_task = start_task.name == task.name
    published = saved.backbone.settings["num_hidden_layers"]
    used = saved.backbone.num_layers
    of_backbone: dict[str, Any] = {"source": saved.backbone.source, "num_layers": used}
    own = Path(config.backbone.source).expanduser()
    # A model names a folder without its place.
    if own.is_dir() and own.name == saved.backbone.source:
        of_backbone["source"] = config.backbone.source
    if is_same_task:
        of_backbone["layer_weighting"] = saved.layer_weighting
    conflicts = _conflicts("backbone", config.backbone, of_backbone, default=BackboneConfig())
    of_head = {one.name: getattr(saved.head, one.name) for one in fields(HeadConfig)}
    if is_same_task:
        default_head = HeadConfig(kind=task.head_kind)
        conflicts += _conflicts("head", config.head, of_head, default=default_head)
    if conflicts:
        raise UserError(
            f"training.init_from {source} is a model with other settings: {', '.join(conflicts)}. Remove "
            "these settings: those of the model are taken over.",
            code="init-from-other-settings",
        )
    if used == published or isinstance(of_backbone.get("layer_weighting"), int):
        del of_backbone["num_layers"]
    backbone = replace(config.backbone, revision=saved.backbone.revision, **of_backbone)
    return replace(config, backbone=backbone, head=saved.head if is_same_task else config.head)


def _conflicts(
    section: str,
    given: BackboneConfig | HeadConfig,
    own: Mapping[str, Any],
    *,
    default: BackboneConfig | HeadConfig,
) -> list[str]:
    """Return the settings that were changed to another value than that of the model."""
    return [
        f"{section}.{name} is {getattr(given, name)!r}, not {value!r}"
        for name, value in own.items()
        if getattr(given, name) not in (getattr(default, name), value)
    ]


def start_from(model: TaskModel, source: str | None, run: Run) -> None:
    """Take over the weights of a trained model, in place.

    The backbone comes with its tuning if the method and its settings are the same; else added modules are
    merged into its weights first. Of the same task, layer weighting and head are taken over too: labels by
    name, so that new ones start from random weights and missing ones are dropped.

    Args:
        model: New model, with `with_start_settings`.
        source: Folder or Hub id of the trained model; nothing is changed if None.
        run: The run; a resumed one must start from the same weights.

    Raises:
        UserError: There is no such model, its network or its outputs are others, its adapters cannot be
            merged, or it has changed since the run started.
    """
    if source is None:
        return
    start = TaskModel.from_pretrained(source)
    require_same_model(start, source, run)
    _require_same_network(model, start, source)
    _take_backbone(model, start, source)
    model.started_from = source
    if start.task.name != model.task.name:
        logger.info(
            "Started from the backbone of %s, a model for %s; the head for %s is new.",
            source,
            start.task.name,
            model.task.name,
        )
        return
    model.layer_weighting.load_state_dict(start.layer_weighting.state_dict())
    kept, new, dropped = _take_head(model, start, source)
    for module in model.head.modules():
        if isinstance(module, Standardization):
            module.is_fixed = True
    logger.info(
        "Started from %s.%s%s%s",
        source,
        f" Labels taken over: {', '.join(kept)}." if kept else "",
        f" New labels: {', '.join(new)}." if new else "",
        f" Labels dropped: {', '.join(dropped)}." if dropped else "",
    )


def _require_same_network(model: TaskModel, start: TaskModel, source: str) -> None:
    own, other = model.backbone, start.backbone
    assert isinstance(own, Backbone)
    different = other_settings(other.settings, own.settings)
    different += [
        name
        for name in ("sample_rate", "normalize", "num_layers")
        if getattr(own, name) != getattr(other, name)
    ]
    if different:
        raise UserError(
            f"The backbone {own.source} and that of {source} differ in {', '.join(different)}. Set "
            f"backbone.source to the backbone of the model.",
            code="init-from-other-network",
        )


def _take_backbone(model: TaskModel, start: TaskModel, source: str) -> None:
    """Give the model the backbone of the start, tuned by the method of the model."""
    own, before = model.tuning, start.tuning
    is_same = own.used() == before.used()
    adds = METHODS[before.method].adds
    backbone = start.backbone
    assert isinstance(backbone, Backbone)
    if is_same and (start.base_fingerprint is not None or adds == "modules"):
        model.backbone, model.base_fingerprint = backbone, start.base_fingerprint
        return
    if adds == "modules":
        raise UserError(
            f"{source} was trained with tuning.method {before.method}, whose modules cannot be merged, so "
            f"tuning.method {own.method} cannot continue from it. Set {_as_options(before)}.",
            code="init-from-other-tuning",
        )
    is_changed = before.method != "probe" and start.base_fingerprint is not None
    merge_adapters(backbone)
    apply_tuning(backbone, own)
    model.backbone = backbone
    model.base_fingerprint = None if is_changed else start.base_fingerprint


def _as_options(tuning: TuningConfig) -> str:
    return " ".join(f"--tuning.{name} {value}" for name, value in tuning.used().items())


def _take_head(
    model: TaskModel, start: TaskModel, source: str
) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """Copy the head of the start; return the labels that are taken over, new and dropped."""
    labels, before = list(model.label2id), list(start.label2id)
    tensors = start.head.state_dict()
    if labels != before:
        last = next(
            name
            for name, one in reversed(list(model.head.named_modules()))
            if isinstance(one, nn.Linear)
        )
        own = model.head.state_dict()
        for name in (f"{last}.weight", f"{last}.bias"):
            tensors[name] = _by_label(own[name], tensors[name], labels, before)
    shapes = {name: one.shape for name, one in tensors.items()}
    if shapes != {name: one.shape for name, one in model.head.state_dict().items()}:
        raise UserError(
            f"The outputs of {source} are not those of this run ({start.task.num_outputs} and "
            f"{model.task.num_outputs}), and they have no names. Start with the settings of its task.",
            code="init-from-other-outputs",
        )
    model.head.load_state_dict(tensors)
    kept = [label for label in labels if label in before]
    new = [label for label in labels if label not in before]
    return kept, new, [label for label in before if label not in labels]


def _by_label(own: Tensor, other: Tensor, labels: Sequence[str], before: Sequence[str]) -> Tensor:
    """Return rows of one tensor, with those of the other for the labels of both."""
    rows = own.clone()
    for number, label in enumerate(labels):
        if label in before:
            rows[number] = other[before.index(label)]
    return rows
