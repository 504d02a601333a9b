"""A `TaskModel` as a network of transformers: what can be expressed, its weights and its files.

The folder serves `TaskModel.from_pretrained` too: config.json has the settings of the model in a section of
its own, and head.safetensors has head and layer weights as they were trained. The backbone is saved once.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from m2v_finetune.backbones import Backbone, LayerWeighting
from m2v_finetune.backbones.classifier import LinearClassifier, build_classifier
from m2v_finetune.errors import UserError
from m2v_finetune.heads import ClipHead, MaskHead, Standardization
from m2v_finetune.model.metadata import CONFIG_FILE, WEIGHTS_FILE
from m2v_finetune.tasks.clips import ProblemType
from m2v_finetune.tuning import METHODS, merge_adapters

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

SECTION = "m2v_finetune"
"""Section of config.json with the settings of the `TaskModel`."""
HEAD_FILE = "head.safetensors"
PREPROCESSOR_FILE = "preprocessor_config.json"
BACKBONE_PREFIX = "backbone.network."
FUNCTIONS = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}
"""``function_to_apply`` of transformers' pipeline by ``problem_type``."""


def require_native(model: "TaskModel", *, is_trained: bool = True) -> None:
    """Check that a network of transformers can express a model.

    Args:
        model: The model.
        is_trained: Whether its layer weights are final; else any that may get different signs are refused.

    Raises:
        UserError: It cannot. The message has the reason, and the setting that makes it possible.
    """
    head, method = model.head_config, model.tuning.method
    reasons = {
        "export-vectors": not isinstance(model.backbone, Backbone)
        and "it reads vectors that were computed elsewhere. Train a model with a backbone, without "
        "--data.features.",
        "export-task": (problem_type(model) is None or not isinstance(model.head, ClipHead))
        and f"it has a class of networks for labels of a clip, and none for the task {model.task.name}. Use "
        f"`{'m2v predict' if isinstance(model.head, MaskHead) else 'm2v export onnx'}`.",
        "export-one-class": problem_type(model) == "single_label_classification"
        and model.task.num_outputs < 2
        and "it has one class, so its answer is always the same. Train with two classes at least.",
        "export-pooling": head.pooling != "mean"
        and f"its head pools frames by {head.pooling}. Train with --head.pooling mean.",
        "export-head": head.kind == "mlp"
        and f"its head is an {head.kind}. Train with --head.kind linear.",
        "export-adapter": METHODS[method].adds == "modules"
        and f"tuning.method {method} adds modules that cannot be merged. Train with --tuning.method lora.",
        "export-weighting": not _is_a_mean(model.layer_weighting, is_trained=is_trained)
        and "weights of backbone.layer_weighting conv1d may have different signs. Train with "
        "--backbone.layer_weighting softmax.",
    }
    for code, reason in reasons.items():
        if reason:
            raise UserError(
                f"transformers cannot express this model: {reason} docs/exporting.md lists what it can.",
                code=code,
            )


def problem_type(model: "TaskModel") -> ProblemType | None:
    """Return the meaning of the logits for transformers; None where it has no name for it."""
    return getattr(model.task, "problem_type", None)


def _is_a_mean(weighting: LayerWeighting, *, is_trained: bool) -> bool:
    """Return whether layer weights are a positive or negative multiple of a weighted mean."""
    if not is_trained:
        return weighting.kind != "conv1d"
    weights = weighting.weights()
    if not weights.any():
        return False
    return bool((weights >= 0).all() or (weights <= 0).all())


@torch.no_grad()
def to_transformers(model: "TaskModel") -> tuple[Any, Any]:
    """Return a model as network and feature extractor of transformers; see `TaskModel.to_transformers`."""
    require_native(model)
    backbone, head = copy.deepcopy(model.backbone).cpu(), model.head
    assert isinstance(backbone, Backbone)
    assert isinstance(head, ClipHead)
    merge_adapters(backbone)
    network, extractor = build_classifier(
        backbone,
        _linear_classifier(model, head),
        labels=[str(label) for label in model.id2label.values()],
        problem_type=str(problem_type(model)),
    )
    return network, extractor


def _linear_classifier(model: "TaskModel", head: ClipHead) -> LinearClassifier:
    """Return layer weighting, standardisation and linear layer as the layers of transformers' classifier.

    With the layer weighting s * sum(p_i h_i) + c, where the p_i have the sum 1, and the standardisation
    (x - mean) / std, the layer before the mean over frames is h -> (s h + c - mean) / std. The means over
    layers and frames commute with it.
    """
    weighting, standardization = model.layer_weighting, head.standardization
    weights = weighting.weights().double().cpu()
    scale, offset = weights.sum(), 0.0
    if weighting.kind == "conv1d":
        offset = float(weighting.offset)
    size = model.backbone.hidden_size
    mean, std = torch.zeros(size).double(), torch.ones(size).double()
    if isinstance(standardization, Standardization):
        mean, std = standardization.mean.double().cpu(), standardization.std.double().cpu()
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    weight, bias = _activated(model, last.weight.double().cpu(), last.bias.double().cpu())
    return LinearClassifier(
        layer_weights=None if weighting.selected_layer is not None else weights / scale,
        projector=(torch.diag(scale / std), (offset - mean) / std),
        classifier=(weight, bias),
    )


def _activated(model: "TaskModel", weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last layer with calibration, or in a regression with outputs in the units of the data."""
    calibration = getattr(model.task, "calibration", None)
    if calibration is not None:
        factors, summands = map(torch.from_numpy, calibration.scales(len(bias)))
        return weight * factors[:, None], bias * factors + summands
    if problem_type(model) != "regression":
        return weight, bias
    # Its activation is a scale and a shift of each output.
    shift = model.task.activate(torch.zeros_like(bias)[None])[0]
    scale = model.task.activate(torch.ones_like(bias)[None])[0] - shift
    return weight * scale[:, None], bias * scale + shift


def native_files(model: "TaskModel", description: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of a model that transformers loads, without the card.

    Args:
        model: The model.
        description: Settings of the model, for `SECTION`.

    Raises:
        UserError: Errors of `require_native`.
    """
    network, extractor = to_transformers(model)
    network.config.architectures = [type(network).__name__]
    settings = json.loads(network.config.to_json_string(use_diff=False))
    own = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if not name.startswith(BACKBONE_PREFIX)
    }
    content = json.dumps({**settings, SECTION: description}, indent=2, ensure_ascii=False) + "\n"
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return {
        WEIGHTS_FILE: to_safetensors(tensors, metadata={"format": "pt"}),
        HEAD_FILE: to_safetensors(own, metadata={"format": "pt"}),
        CONFIG_FILE: content.encode(errors="backslashreplace"),
        PREPROCESSOR_FILE: extractor.to_json_string().encode(),
    }


def read_native(model: "TaskModel", folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a `TaskModel` from the files of `native_files`.

    Args:
        model: Model of the same network, with any weights.
        folder: Folder of the files.
        names: Names of the tensors of the model.

    Raises:
        SafetensorError: A file is damaged.
        OSError: A file cannot be read.
    """
    tensors = load_file(folder / HEAD_FILE)
    network = load_file(folder / WEIGHTS_FILE)
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    prefix = backbone.network.base_model_prefix
    for name in names:
        native = f"{prefix}.{name.removeprefix(BACKBONE_PREFIX)}"
        if name.startswith(BACKBONE_PREFIX) and native in network:
            tensors[name] = network[native]
    return tensors
