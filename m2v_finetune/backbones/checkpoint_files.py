"""The files of a checkpoint: where they are, what they hold, and how they are written."""

import hashlib
import json
import pickle
from collections.abc import Mapping
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
from m2v_finetune.files import write_files
from m2v_finetune.hub import download_checkpoint, download_snapshot, is_repo_id

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
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
    source: str, revision: str | None, *, with_weights: bool
) -> tuple[Path, str | None]:
    """Return the folder of a checkpoint, and its commit if it is on the Hub.

    From there its configuration is downloaded; with weights these and the card too.

    Raises:
        UserError: The source cannot be found or reached.
    """
    commit = None
    shipped = SHIPPED_DIR / source.replace("-", "_")
    if source in CHECKPOINTS and shipped.is_dir():
        folder = shipped
    elif Path(source).is_dir():
        folder = Path(source)
    elif source in CHECKPOINTS or is_repo_id(source):
        published = published_checkpoint(source)
        repo_id = published.hub_id if published and published.hub_id else source
        files = (CONFIG_FILE, PREPROCESSOR_FILE)
        folder = (
            download_checkpoint(
                repo_id, revision=revision, files=(*files, "README.md"), weights=WEIGHT_FORMATS
            )
            if with_weights
            else download_snapshot(repo_id, revision=revision, patterns=files)
        )
        commit = folder.name
    else:
        raise UserError(
            f"There is no backbone '{source}': it is no folder, no Hub id (user/name), and none of the "
            f"short names {', '.join(CHECKPOINTS)}."
        )
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} holds no {CONFIG_FILE}, so it is no checkpoint.")
    if revision is not None and commit is None:
        raise UserError(
            f"backbone.revision is '{revision}', but {source} is no repository of the Hub."
        )
    return folder, commit


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        UserError: It is no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}). Fetch or write it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object. Fetch or write it again.")
    return content


def read_audio_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``sample_rate`` and ``normalize`` of a checkpoint: 16 kHz and true if nothing names them.

    Args:
        folder: Of the checkpoint.
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
    card = folder / "README.md"
    if not card.is_file():
        return ""
    return str(
        RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
        or ""
    )


def load_weights(network: PreTrainedModel, folder: Path) -> None:
    """Load the weights of a checkpoint into a network: every tensor has to find its place.

    Raises:
        UserError: There are none, they cannot be read, or a name or shape is not the network's.
    """
    names = [one[0] for one in WEIGHT_FORMATS]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds no weights: {' or '.join(names)}.")
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
            f"The tensors of {path} are not those that its {CONFIG_FILE} describes: "
            + "; ".join(listed)
            + ". Weights and config belong to different networks; nothing was loaded."
        )
    network.load_state_dict(tensors)


def _read_indexed(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the files beside an index that it names."""
    places = read_json(path).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise UserError(f"{path} names no files of weights beside it. Fetch it again.")
    missing = sorted(name for name in names if not (path.parent / name).is_file())
    if missing:
        raise UserError(
            f"{path.parent} lacks weights that {path.name} names: {', '.join(missing)}. Fetch it again."
        )
    return {
        tensor: value
        for name in sorted(names)
        for tensor, value in _read_tensors(path.parent / name).items()
    }


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({str(error).splitlines()[0]}). It is damaged, or holds "
            "more than tensors, which is never executed here. Fetch it again from its source."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{path} is not a dictionary of tensors. Fetch it again from its source.")
    return content


def _own_tensors(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the backbone's tensors by their names of today, as float32.

    A checkpoint saved with a head on top has every tensor of the backbone under ``prefix``; the
    others are the head's and are left out.
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
    folder: Path, network: PreTrainedModel, *, sample_rate: int, normalize: bool
) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors.

    Args:
        folder: Made if needed; files of these names in it are replaced.
        network: Without a head.
        sample_rate: Of the audio that it expects, in Hz.
        normalize: Whether windows are brought to zero mean and unit variance.

    Raises:
        OSError: The disk does not take it; then no file is changed.
    """
    config = network.config
    config.architectures = [type(network).__name__]
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
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
    write_files(folder, contents)


def fingerprint(network: PreTrainedModel, *, without: str) -> str:
    """Return a SHA-256 over the names and values of all tensors of a network but one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name != without:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
