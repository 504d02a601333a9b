"""Average of the weights of models that were trained from the same start."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard

from m2v_finetune.backbones.averaging import average_licence, require_new_folder
from m2v_finetune.backbones.network_parts import NAMES
from m2v_finetune.errors import UserError
from m2v_finetune.model.metadata import plain_card
from m2v_finetune.tuning import METHODS

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

MAX_LISTED = 300
"""Longest text of two values, in characters, in a message."""


def average_models(models: "Sequence[TaskModel]", names: Sequence[str]) -> "TaskModel":
    """Return the first model with the mean of all weights, computed in float64.

    Added modules are merged into the weights first, since the mean of their factors is not that of their
    products; bottleneck adapters are weights of their own. The mean has no calibration, thresholds or
    novelty.

    Source: Wortsman et al., Model soups, arXiv 2203.05482, "uniform soup".

    Args:
        models: At least 2, of one task, network and head; all are changed.
        names: Their sources, for messages.

    Raises:
        UserError: There are fewer than 2, or something differs, which the message names.
    """
    if len(models) < 2:
        raise UserError("An average needs at least two models.", code="average-too-few")
    first = models[0]
    own = _facts(first)
    for model, name in zip(models[1:], names[1:], strict=True):
        other = _facts(model)
        different = [key for key in own if own[key] != other[key]]
        if different:
            raise UserError(
                f"{names[0]} and {name} differ in {_listed(different, own, other)}, so they have no average. "
                "Give "
                "models of one task with the same labels and settings of backbone, head and windows.",
                code="average-other-model",
            )
    base = first.base_fingerprint
    is_trained = all(
        one.base_fingerprint == base and one.tuning.used() == first.tuning.used() for one in models
    )
    if not (is_trained and base and METHODS[first.tuning.method].adds != "folded"):
        for model in models:
            model.merge_and_unload()
    states = [one.state_dict() for one in models]
    with torch.no_grad():
        for name, tensor in states[0].items():
            if tensor.is_floating_point() and not name.startswith("novelty."):
                mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
                tensor.copy_(mean)
    first.task, first.novelty = _uncalibrated(first.task), None
    return first.eval()


def _listed(different: Sequence[str], own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return facts that differ, with their values where they are short."""
    texts = [f"{key} ({own[key]} and {other[key]})" for key in different]
    return ", ".join(
        text if len(text) <= MAX_LISTED else key for key, text in zip(different, texts, strict=True)
    )


def _facts(model: "TaskModel") -> dict[str, Any]:
    """Return what models of an average have in common, by name."""
    backbone = model.backbone
    modules = METHODS[model.tuning.method].adds == "modules"
    return {
        "task and labels": _uncalibrated(model.task).to_dict(),
        "the network": {key: value for key, value in backbone.settings.items() if key not in NAMES},
        "backbone.num_layers": backbone.num_layers,
        "the sample rate": backbone.sample_rate,
        "the normalisation of windows": backbone.normalize,
        "backbone.layer_weighting": model.layer_weighting.kind,
        "head": asdict(model.head_config),
        "tuning": model.tuning.used() if modules else {},
        "data.window_seconds": model.window_seconds,
        "data.hop_seconds": model.hop_seconds,
    }


def _uncalibrated(task: Any) -> Any:
    """Return a task without what was fitted to one model's probabilities."""
    has = {field.name for field in fields(task)}
    fitted = {"calibration": None, "thresholds": ()}
    return replace(task, **{key: value for key, value in fitted.items() if key in has})


def write_model_average(sources: Sequence[str], folder: Path) -> "TaskModel":
    """Load models, and write their average to a new folder with a short card.

    Args:
        sources: Folders or Hub ids, as of `TaskModel.from_pretrained`.
        folder: New or empty folder.

    Returns:
        The average.

    Raises:
        UserError: A model cannot be loaded, they do not fit, or the folder is not empty.
    """
    from m2v_finetune.model.task_model import TaskModel

    require_new_folder(folder)
    models = [TaskModel.from_pretrained(source) for source in sources]
    licence, stated = average_licence({one.backbone.licence for one in models})
    average = average_models(models, sources)
    average.backbone.licence = licence
    card = ModelCard(plain_card(average, weights="auto"))
    names = [Path(source).name if Path(source).is_dir() else source for source in sources]
    listed = "\n".join(f"- `{name}`" for name in names)
    card.text = (
        f"{card.text.rstrip()}\n\nThe weights are the mean of those of\n\n{listed}\n\n{stated}\n"
    )
    average.card = str(card)
    average.save_pretrained(folder)
    return average
