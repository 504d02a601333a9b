"""Files of a checkpoint: finding, reading and writing them."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import RepoCard
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from m2v_finetune.backbones.checkpoints import CHECKPOINTS, SHIPPED_DIR, published_checkpoint
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json, require_readable, write_files
from m2v_finetune.hub import (
    DEFAULT_ACCESS,
    HubAccess,
    download_checkpoint,
    download_snapshot,
    is_repo_id,
)
from m2v_finetune.hub.licence import licence_of

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
CARD_FILE = "README.md"
# The formats of weights, the best first: a file, or an index and the files that it names.
WEIGHT_FORMATS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
LEGACY_NAMES = {
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}
MAX_LISTED_NAMES = 8


def find_checkpoint(
    source: str,
    revision: str | None,
    *,
    with_weights: bool,
    access: HubAccess = DEFAULT_ACCESS,
) -> tuple[Path, str | None]:
    """Return the folder of a checkpoint, and its commit if it is on the Hub.

    Its configuration is downloaded from the Hub; ``with_weights`` the weights and model card too.

    Raises:
        UserError: The source cannot be found or reached.
    """
    commit = None
    shipped = SHIPPED_DIR / source.replace("-", "_")
    if source in CHECKPOINTS and shipped.is_dir():
        folder = shipped
    elif Path(source).is_dir():
        folder = Path(source)
    elif Path(source).is_file():
        raise UserError(
            f"{source} is a file. Name a folder; an ONNX file is for m2v predict --runtime onnx.",
            code="model-is-a-file",
        )
    elif source in CHECKPOINTS or is_repo_id(source):
        published = published_checkpoint(source)
        repo_id = published.hub_id if published and published.hub_id else source
        files = (CONFIG_FILE, PREPROCESSOR_FILE)
        folder = (
            download_checkpoint(
                repo_id,
                revision=revision,
                files=(*files, "README.md"),
                weights=WEIGHT_FORMATS,
                access=access,
            )
            if with_weights
            else download_snapshot(repo_id, revision=revision, patterns=files, access=access)
        )
        commit = folder.name
    else:
        raise UserError(
            f"There is no backbone '{source}': it is not a folder, not a Hub id (user/name), and none of the "
            f"short names {', '.join(CHECKPOINTS)}.",
            code="backbone-unknown",
        )
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"{folder} has no {CONFIG_FILE}, so it is not a checkpoint.",
            code="checkpoint-missing-config",
        )
    if revision is not None and commit is None:
        raise UserError(
            f"backbone.revision is '{revision}', but {source} is not a repository of the Hub.",
            code="revision-without-hub",
        )
    return folder, commit


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        UserError: It is not JSON, or not an object.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({error}). Download or write it again.", code="json-unreadable"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a JSON object. Download or write it again.", code="json-not-an-object"
        )
    return content


def read_audio_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``sample_rate`` and ``normalize`` of a checkpoint: 16 kHz and true if they are not set.

    Args:
        folder: Folder of the checkpoint.
        settings: Content of its config.json.
    """
    preprocessor = folder / PREPROCESSOR_FILE
    audio = read_json(preprocessor) if preprocessor.is_file() else {}
    return {
        "sample_rate": int(audio.get("sampling_rate", settings.get("sample_rate", 16000))),
        "normalize": bool(audio.get("do_normalize", True)),
    }


def read_licence(folder: Path) -> str:
    """Return the licence in the checkpoint's own model card, or an empty string."""
    card = folder / CARD_FILE
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8")
    metadata: dict[str, Any] = vars(RepoCard(text, ignore_metadata_errors=True).data)
    return licence_of(metadata)


def load_weights(network: PreTrainedModel, folder: Path) -> None:
    """Load the weights of a checkpoint into a network; names and shapes must match exactly.

    Raises:
        UserError: The weights are missing or unreadable, or a name or shape does not match the network.
    """
    names = [one[0] for one in WEIGHT_FORMATS]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} has no weights: {' or '.join(names)}.", code="checkpoint-missing-weights"
        )
    found = _read_indexed(path) if path.suffix == ".json" else _read_tensors(path)
    tensors = _own_tensors(found, network.base_model_prefix)
    expected = network.state_dict()
    problems = [
        *(f"missing {name}" for name in sorted(expected.keys() - tensors.keys())),
        *(f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())),
        *(
            f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
            for name in sorted(expected.keys() & tensors.keys())
            if tensors[name].shape != expected[name].shape
        ),
    ]
    if problems:
        listed = problems[:MAX_LISTED_NAMES]
        if len(problems) > len(listed):
            listed.append(f"and {len(problems) - len(listed)} more")
        raise UserError(
            f"The tensors of {path} do not match its {CONFIG_FILE}: "
            + "; ".join(listed)
            + ". Weights and config belong to different networks; nothing was loaded.",
            code="checkpoint-tensors-mismatch",
        )
    network.load_state_dict(tensors)


def _read_indexed(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the files that an index names."""
    files = read_json(path).get("weight_map")
    names = set(files.values()) if isinstance(files, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(
            f"{path} names no weight files in its folder. Download it again.",
            code="weights-index-invalid",
        )
    missing = sorted(name for name in names if not (path.parent / name).is_file())
    if missing:
        raise UserError(
            f"{path.parent} lacks weights that {path.name} names: {', '.join(missing)}. Download it again.",
            code="checkpoint-missing-weights",
        )
    return {
        tensor: value
        for name in sorted(names)
        for tensor, value in _read_tensors(path.parent / name).items()
    }


def _read_tensors(path: Path) -> dict[str, Tensor]:
    require_readable(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({str(error).splitlines()[0]}). It is corrupt, or contains "
            "more than tensors, which is never executed here. Download it again from its source.",
            code="weights-unreadable",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{path} is not a dictionary of tensors. Download it again from its source.",
            code="weights-not-tensors",
        )
    return content


def _own_tensors(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the backbone's tensors by their current names, as float32.

    A checkpoint saved with a head has every tensor of the backbone under ``prefix``; the tensors of
    the head are left out.
    """
    if any(name.startswith(f"{prefix}.") for name in tensors):
        tensors = {
            name.removeprefix(f"{prefix}."): value
            for name, value in tensors.items()
            if name.startswith(f"{prefix}.")
        }
    renamed = {}
    for name, value in tensors.items():
        for old, new in LEGACY_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = value.float()
    return renamed


def write_checkpoint(
    folder: Path,
    network: PreTrainedModel,
    *,
    num_layers: int,
    sample_rate: int,
    normalize: bool,
    licence: str,
) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors, and a card if there is none.

    Args:
        folder: Folder, created if needed; files of these names in it are replaced.
        network: Network without a head.
        num_layers: Number of its transformer layers.
        sample_rate: Sample rate of its input, in Hz.
        normalize: Whether windows are normalised to zero mean and unit variance.
        licence: Of the weights, for the card; none is written if it is empty.

    Raises:
        UserError: The network has modules that such files have no place for.
        OSError: The files cannot be written; then no file is changed.
    """
    config = copy(network.config)
    config.architectures = [type(network).__name__]
    config.num_hidden_layers = num_layers
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    if not config.apply_spec_augment:  # the vector that replaces masked frames is not there
        config.mask_time_prob = config.mask_feature_prob = 0.0
    with torch.device("meta"):
        expected = type(network)(config).state_dict().keys()
    if tensors.keys() != expected:
        names = sorted(tensors.keys() ^ expected)
        raise UserError(
            f"The network has modules of tuning ({names[0]}, ...), for which a checkpoint has no place. Save "
            "the model, or merge them first: model.merge_and_unload().",
            code="backbone-has-modules",
        )
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": normalize,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": sample_rate,
    }
    contents = {
        WEIGHT_FORMATS[0][0]: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: config.to_json_string().encode(),
        PREPROCESSOR_FILE: (json.dumps(preprocessor, indent=2) + "\n").encode(),
    }
    if licence and not (folder / CARD_FILE).exists():
        contents[CARD_FILE] = f"---\nlicense: {licence}\n---\n".encode()
    write_files(folder, contents)


def fingerprint(network: PreTrainedModel, *, without: str) -> str:
    """Return a SHA-256 over the names and values of all tensors of a network except one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name != without:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
