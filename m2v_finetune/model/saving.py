"""Saving a `TaskModel` as config.json, model.safetensors and a card; loading it from a folder or the Hub."""

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors

from m2v_finetune import __version__
from m2v_finetune.backbones import AnyBackbone, Backbone, PrecomputedBackbone, load_backbone
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.backbones.loading import build_network
from m2v_finetune.backbones.network_parts import other_settings, settings_beside_weights
from m2v_finetune.backbones.precomputed import MODEL_TYPE
from m2v_finetune.errors import UserError
from m2v_finetune.files import require_readable, write_files
from m2v_finetune.hub import HubAccess, download_snapshot, is_repo_id, upload_folder
from m2v_finetune.model import native as native_format
from m2v_finetune.model.description import SavedModel, SavedWeights, describe_model, read_config
from m2v_finetune.model.metadata import (
    CARD_FILE,
    CONFIG_FILE,
    LIBRARY_NAME,
    WEIGHTS_FILE,
    Weights,
    card_data,
    plain_card,
    saved_weights,
)
from m2v_finetune.model.native_card import HEADING, native_usage, without_native_usage
from m2v_finetune.model.novelty import MAX_WINDOWS, Novelty
from m2v_finetune.path_hints import did_you_mean
from m2v_finetune.tasks import Task
from m2v_finetune.tuning import METHODS, apply_tuning, merge_adapters

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

COMMIT_MESSAGE = f"Model made with {LIBRARY_NAME}"
MAX_LISTED_NAMES = 8


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device; raise `UserError` if PyTorch cannot use it here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(
            f"device is {device!r}, which PyTorch cannot use here ({str(error).splitlines()[0]}). Choose "
            "cpu, or cuda on a machine with a GPU.",
            code="device-unavailable",
        ) from error


def save_model(model: "TaskModel", folder: Path, *, weights: Weights, native: bool) -> None:
    """Write the files of a model; see `TaskModel.save_pretrained`."""
    if native:
        contents = native_format.native_files(model, describe_model(model, "native"))
    else:
        contents = _own_files(model, saved_weights(model, weights))
    card = card_text(model, folder, weights=weights, native=native)
    write_files(folder, {**contents, CARD_FILE: card.encode(errors="backslashreplace")})


def card_text(model: "TaskModel", folder: Path, *, weights: Weights, native: bool) -> str:
    """Return the model card that is saved with a model, whatever form it was loaded from.

    Args:
        model: The model.
        folder: Folder of the card. Pictures that are not there are left out.
        weights: As for `TaskModel.save_pretrained`.
        native: As for `TaskModel.save_pretrained`.
    """
    if model.card is None:
        new = plain_card(model, weights=weights, native=native)
        return f"{new.rstrip()}\n\n{native_usage(model)}" if native else new
    text = without_native_usage(model.card)
    text = re.sub(
        r"!\[[^\]]*\]\((plots/[^)]+)\)\n*",
        lambda found: found[0] if (folder / found[1]).is_file() else "",
        text,
    )
    if native:
        name = re.search(r'model="([^"]+)"', model.card.partition(HEADING)[2])
        usage = native_usage(model, name[1]) if name else native_usage(model)
        text = f"{text.rstrip()}\n\n{usage}"
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError):  # somebody wrote other metadata
        return text
    current = card_data(model, weights=weights, native=native)
    changed = {key: current.get(key) for key in ("library_name", "base_model_relation")}
    if all(card.data.get(key) == value for key, value in changed.items()):
        return text
    for key, value in changed.items():
        card.data[key] = value  # None is not written
    return str(card)


def _own_files(model: "TaskModel", weights: SavedWeights) -> dict[str, bytes]:
    """Return weights and config.json of a model."""
    if weights == "trained" and model.base_fingerprint is None:
        raise UserError(
            "This model was loaded with all its weights, merged, so that its trained weights cannot be told "
            "from the others. Save it with weights='all'.",
            code="model-is-merged",
        )
    if weights == "trained" and model.trains_more():
        raise UserError(
            f"More parameters are trainable than tuning.method {model.tuning.method} trains, so its weights "
            "are not enough. Save the model with weights='all'.",
            code="model-trains-more",
        )
    if weights == "trained":
        tensors = model.trained_tensors()
    else:
        merged = copy.deepcopy(model)
        merge_adapters(merged.backbone)
        tensors = merged.state_dict()
    if isinstance(model.backbone, Backbone):  # SpecAugment's vector serves training alone
        tensors.pop(f"backbone.network.{model.backbone.encoder.mask_vector}", None)
    saved = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    config = json.dumps(describe_model(model, weights), indent=2, ensure_ascii=False) + "\n"
    return {
        WEIGHTS_FILE: to_safetensors(saved, metadata={"format": "pt"}),
        # Bytes of a file name that are not UTF-8 are written as JSON escapes.
        CONFIG_FILE: config.encode(errors="backslashreplace"),
    }


def load_model(
    model_class: type["TaskModel"],
    source: str | Path,
    *,
    revision: str | None,
    access: HubAccess,
) -> "TaskModel":
    """Load a model from a folder or the Hub; see `TaskModel.from_pretrained`."""
    folder = find_model_folder(source, revision=revision, access=access)
    path = folder / CONFIG_FILE
    saved, task = read_config(path)
    model = _build(model_class, saved, task, path, access)
    _load_tensors(model, folder / WEIGHTS_FILE, is_native=saved.weights == "native")
    card = folder / CARD_FILE
    model.card = card.read_text(encoding="utf-8") if card.is_file() else None
    return model.eval()


def read_description(source: str | Path) -> tuple[SavedModel, Task]:
    """Return settings and task of a saved model, without its weights.

    Raises:
        UserError: There is no such model, or it is damaged.
    """
    return read_config(find_model_folder(source, revision=None, access=HubAccess()) / CONFIG_FILE)


def find_model_folder(source: str | Path, *, revision: str | None, access: HubAccess) -> Path:
    """Return the folder of a model, downloaded if it is on the Hub.

    Raises:
        UserError: There is no such model, or it cannot be downloaded.
    """
    folder = Path(source)
    if folder.is_dir() and revision is not None:
        raise UserError(
            f"revision is '{revision}', but {source} is a folder, which has no revisions.",
            code="revision-without-hub",
        )
    if not folder.is_dir():
        if folder.is_file():
            raise UserError(
                f"{source} is a file. Name the folder of a model; an ONNX file is for m2v predict --runtime "
                "onnx.",
                code="model-is-a-file",
            )
        if not is_repo_id(str(source)):
            raise UserError(
                f"There is no model at '{source}'.{did_you_mean(folder.absolute())} Give a folder, such as "
                "model/ of a run, or a Hub id.",
                code="model-missing",
            )
        folder = download_snapshot(
            str(source),
            revision=revision,
            patterns=[CONFIG_FILE, WEIGHTS_FILE, native_format.HEAD_FILE, CARD_FILE],
            access=access,
        )
    return folder


def _build(
    model_class: type["TaskModel"], saved: SavedModel, task: Task, path: Path, access: HubAccess
) -> "TaskModel":
    """Return the model that a config describes; its head, or all of it, has random weights."""
    is_standalone = saved.weights != "trained"
    backbone = _build_backbone(saved, path, access)
    kind, num_states = saved.layer_weighting, backbone.num_hidden_states
    if isinstance(kind, int) and not 0 <= kind < num_states:
        raise UserError(
            f"{path} uses hidden state {kind} of a backbone with {num_states}.",
            code="model-config-damaged",
        )
    backbone.check_window(round(saved.window_seconds * backbone.sample_rate))
    model = model_class(
        backbone=backbone,
        layer_weighting=LayerWeighting(kind, num_states),
        head=task.build_head(
            saved.head, hidden_size=backbone.hidden_size, grid=backbone.frame_grid
        ),
        head_config=saved.head,
        task=task,
        tuning=saved.tuning,
        window_seconds=float(saved.window_seconds),
        hop_seconds=float(saved.hop_seconds),
        base_fingerprint=None if is_standalone else saved.backbone.fingerprint,
    )
    if not 0 <= saved.novelty_windows <= MAX_WINDOWS:
        raise UserError(
            f"{path} has {saved.novelty_windows} windows for novelty; there are 0 to {MAX_WINDOWS}.",
            code="model-config-damaged",
        )
    if saved.novelty_windows:
        model.novelty = Novelty(backbone.hidden_size, saved.novelty_windows)
    return model


def _build_backbone(saved: SavedModel, path: Path, access: HubAccess) -> AnyBackbone:
    of_backbone = saved.backbone
    if of_backbone.settings.get("model_type") == MODEL_TYPE:
        size = of_backbone.settings.get("hidden_size")
        is_other = saved.window_seconds != 1 or saved.weights == "native"
        if not isinstance(size, int) or size < 1 or is_other:
            raise UserError(
                f"{path} describes vectors of {size!r} numbers and windows of {saved.window_seconds} clips.",
                code="model-config-damaged",
            )
        return PrecomputedBackbone(size, source=of_backbone.source)
    if saved.weights != "trained":
        backbone = Backbone(
            build_network(of_backbone.settings, where=str(path)),
            source=of_backbone.source,
            revision=of_backbone.revision,
            licence=of_backbone.licence,
            sample_rate=of_backbone.sample_rate,
            normalize=of_backbone.normalize,
            num_layers=of_backbone.num_layers,
        )
        if METHODS[saved.tuning.method].adds == "folded":  # its modules are merged into the weights
            backbone.requires_grad_(False)
        else:
            apply_tuning(backbone, saved.tuning)
        return backbone
    backbone = load_backbone(
        of_backbone.source,
        revision=of_backbone.revision,
        num_layers=of_backbone.num_layers,
        token=access.token,
        local_files_only=access.local_files_only,
    )
    backbone.normalize = of_backbone.normalize
    saved_settings, found = map(settings_beside_weights, (of_backbone.settings, backbone.settings))
    different = other_settings(saved_settings, found)
    if backbone.sample_rate != of_backbone.sample_rate:
        different.append("sampling_rate")
    if different:
        raise UserError(
            f"{path} was trained on a backbone '{of_backbone.source}' of another {', '.join(different)}. "
            "Fetch the right backbone, or ask for the model saved with all its weights.",
            code="model-other-backbone",
        )
    if backbone.fingerprint() != of_backbone.fingerprint:
        raise UserError(
            f"{path} was trained on other weights than those of the backbone '{of_backbone.source}' here. "
            "Fetch the right backbone, or ask for the model saved with all its weights.",
            code="model-other-backbone",
        )
    apply_tuning(backbone, saved.tuning)
    return backbone


def _load_tensors(model: "TaskModel", path: Path, *, is_native: bool) -> None:
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {path.name}.", code="model-missing")
    require_readable(path)
    expected = model.state_dict() if model.base_fingerprint is None else model.trained_tensors()
    try:
        read_native = native_format.read_native
        tensors = read_native(model, path.parent, expected) if is_native else load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Fetch or save it again.", code="model-weights-damaged"
        ) from error
    wrong = sorted(
        name
        for name in tensors.keys() | expected.keys()
        if name not in tensors
        or name not in expected
        or tensors[name].shape != expected[name].shape
    )
    if wrong:
        listed = ", ".join(wrong[:MAX_LISTED_NAMES])
        raise UserError(
            f"{path} does not fit its {CONFIG_FILE}: {len(wrong)} tensors are missing, unexpected or of "
            f"another shape ({listed}{', ...' if len(wrong) > MAX_LISTED_NAMES else ''}).",
            code="model-weights-mismatch",
        )
    model.load_state_dict(tensors, strict=False)


def upload_model(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = COMMIT_MESSAGE,
) -> str:
    """Upload a model folder in one commit; return the address of the repository.

    Raises:
        UserError: No access, no network, or a failing server; the folder is untouched.
    """
    return upload_folder(
        folder,
        repo_id,
        private=private,
        token=token,
        message=message,
        library=(LIBRARY_NAME, __version__),
    )
