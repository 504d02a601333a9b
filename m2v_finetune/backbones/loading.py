"""From a name to a backbone with its published weights, on any transformers 5.

What is published does not load as it is: music2vec's config.json carries a file path as
``vocab_size``, MERT names code to execute, HuBERT's positional convolution has the weight names of
an older PyTorch. Here config.json is read as data, the network is the plain HuBERT, data2vec or
wav2vec 2.0 network that it is, and every tensor has to find its place.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import RepoCard
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.checkpoints import CHECKPOINTS, SHIPPED_DIR, published_checkpoint
from m2v_finetune.errors import UserError
from m2v_finetune.hub import download_checkpoint, download_snapshot, is_repo_id

ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel),
    "hubert": (HubertConfig, HubertModel),
    "mert_model": (HubertConfig, HubertModel),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
}
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
# Switches of MERT's own code that no released checkpoint turns on, and which plain HuBERT lacks.
UNRELEASED_SWITCHES = {
    "feature_extractor_cqt": "a constant-Q front end beside the convolutions",
    "deepnorm": "DeepNorm residual connections",
}
MAX_LISTED_NAMES = 8


def load_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    num_layers: int | None = None,
    spec_augment: bool = False,
) -> Backbone:
    """Load a pre-trained backbone, in float32 on the CPU and in evaluation mode.

    Args:
        source: A short name (`CHECKPOINTS`), a Hub id, or a folder with config.json and weights.
        revision: Branch, tag or commit of a Hub id.
        num_layers: Keep the first n transformer layers; all if None.
        spec_augment: Mask spans of frames in training mode, as the checkpoint's config says.

    Raises:
        UserError: The source cannot be found or reached, is of another architecture, switches on what
            no released checkpoint uses, or its tensors are not those of its config.
    """
    folder, commit = _find(str(source), revision, with_weights=True)
    settings = _read_json(folder / CONFIG_FILE)
    published = published_checkpoint(str(source))
    network = build_network(settings, where=str(folder / CONFIG_FILE))
    _load_weights(network, folder)
    audio = _audio_settings(folder, settings)
    return Backbone(
        network,
        source=str(source),
        revision=commit,  # so that a model says exactly what it was made from
        licence=published.licence if published else _card_licence(folder),
        **audio,
        num_layers=num_layers,
        spec_augment=spec_augment,
    )


def is_backbone(folder: Path) -> bool:
    """Tell whether a folder holds a network as transformers saves it: its config names a model type."""
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and "model_type" in settings


def new_backbone(architecture: str | Path, *, licence: str) -> Backbone:
    """Return a backbone with random weights, to be pre-trained, drawn from torch's random state.

    Args:
        architecture: A config.json, or a folder that holds one; a preprocessor_config.json beside it
            says the sample rate and whether windows are normalised (16 kHz and yes without one).
        licence: SPDX identifier of the weights that will be made; empty when unknown.

    Raises:
        UserError: There is no such file, or it describes no network that can be built.
    """
    path = Path(architecture).expanduser()
    if path.is_dir():
        path = path / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"There is no architecture at {path}. Give a {CONFIG_FILE}, or a folder that holds one."
        )
    preprocessor = path.parent / PREPROCESSOR_FILE
    audio = _read_json(preprocessor) if preprocessor.is_file() else {}
    return Backbone(
        build_network(_read_json(path), where=str(path)),
        source=str(architecture),
        revision=None,
        licence=licence,
        sample_rate=int(audio.get("sampling_rate", 16000)),
        normalize=bool(audio.get("do_normalize", True)),
        spec_augment=True,
    )


def bare_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    num_layers: int | None = None,
    spec_augment: bool = False,
) -> Backbone:
    """Build a backbone with random weights: what it is, without fetching or reading what it learned.

    Args:
        source: As for `load_backbone`. Of a published checkpoint nothing is fetched, of another Hub id its
            configuration.
        revision: Branch, tag or commit of a Hub id.
        num_layers: Keep the first n transformer layers; all if None.
        spec_augment: As for `load_backbone`.

    Raises:
        UserError: The source cannot be found or reached, or is of another architecture.
    """
    published = published_checkpoint(str(source))
    if published and published.settings is not None and not Path(source).is_dir():
        settings, where = published.settings, str(source)
        audio: dict[str, Any] = {"sample_rate": published.sample_rate, "normalize": True}
    else:
        folder, _ = _find(str(source), revision, with_weights=False)
        settings, where = _read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE)
        audio = _audio_settings(folder, settings)
    return Backbone(
        build_network(settings, where=where),
        source=str(source),
        revision=revision,
        licence=published.licence if published else "",
        **audio,
        num_layers=num_layers,
        spec_augment=spec_augment,
    )


def _audio_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the preprocessor's file, or else config.json, says of the audio."""
    preprocessor = folder / PREPROCESSOR_FILE
    audio = _read_json(preprocessor) if preprocessor.is_file() else {}
    return {
        "sample_rate": int(audio.get("sampling_rate", settings.get("sample_rate", 16000))),
        "normalize": bool(audio.get("do_normalize", True)),
    }


def build_network(settings: Mapping[str, Any], *, where: str) -> PreTrainedModel:
    """Build the network of a config.json, with random weights.

    Args:
        settings: The content of config.json.
        where: Its place, for messages.

    Raises:
        UserError: The architecture is none of `ARCHITECTURES`, or a switch is on that no released
            checkpoint uses, or a value is not legal.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UserError(
            f"{where} is of model_type {model_type!r}. Backbones are {', '.join(ARCHITECTURES)}."
        )
    for switch, meaning in UNRELEASED_SWITCHES.items():
        if settings.get(switch):
            raise UserError(
                f"{where} switches on {switch} ({meaning}), which exists in MERT's code and is off in "
                "every released checkpoint. It is not supported."
            )
    config_class, model_class = ARCHITECTURES[model_type]
    known = set(config_class().to_dict()) - {"model_type", "architectures", "transformers_version"}
    # The size of a vocabulary means nothing without a language head; music2vec publishes a path there.
    known -= {"vocab_size", "dtype", "torch_dtype"}
    values = {key: value for key, value in settings.items() if key in known}
    try:
        config = config_class(**values)
        config._attn_implementation = "sdpa"
        return model_class(config)
    # Whatever the values of a damaged file make transformers and torch stumble over.
    except (
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise UserError(f"{where} describes no network that can be built: {error}") from error


def _find(source: str, revision: str | None, *, with_weights: bool) -> tuple[Path, str | None]:
    """Return the folder of the checkpoint, and its commit if it is on the Hub.

    From there its configuration is downloaded, and where they are wanted its weights and its card.
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}). Fetch or write it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object. Fetch or write it again.")
    return content


def _card_licence(folder: Path) -> str:
    """Return the licence that the checkpoint's own model card names, or an empty string."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    return str(
        RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")
        or ""
    )


def _load_weights(network: PreTrainedModel, folder: Path) -> None:
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
    places = _read_json(path).get("weight_map")
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
