"""Loading of backbones with their published weights, on any transformers 5.

Published checkpoints do not load unchanged: music2vec's config.json carries a file path as
``vocab_size``, MERT names code to execute, HuBERT's positional convolution has the weight names of
an older PyTorch. Here config.json is read as data, the network is the plain network of transformers
that `ENCODERS` has for its ``model_type``, and all names and shapes of tensors must match.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.checkpoint_files import (
    CONFIG_FILE,
    find_checkpoint,
    load_weights,
    read_audio_settings,
    read_json,
    read_licence,
)
from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.backbones.cpu.attention import ATTENTION
from m2v_finetune.backbones.cpu.dropout import use_own_dropout
from m2v_finetune.backbones.encoders import ENCODERS
from m2v_finetune.backbones.encoders.encoder import Encoder, known_settings
from m2v_finetune.errors import UserError
from m2v_finetune.files import expand_home
from m2v_finetune.hub import HubAccess


def load_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    num_layers: int | None = None,
    spec_augment: bool = False,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Backbone:
    """Load a pre-trained backbone, in float32 on the CPU and in evaluation mode.

    Args:
        source: Short name (`CHECKPOINTS`), Hub id, or folder with config.json and weights.
        revision: Branch, tag or commit of a Hub id.
        num_layers: Number of transformer layers to keep, from the first; all if None.
        spec_augment: Masking of frames in training, by the mask settings of the checkpoint's config.
        token: Token of the Hub; that of the login if None, none if False.
        local_files_only: Whether to use earlier downloads alone.

    Raises:
        UserError: The source cannot be found or reached, is of another architecture, has a setting on that
            no released checkpoint uses, or its tensors do not match its config.
    """
    access = HubAccess(token=token, local_files_only=local_files_only)
    folder, commit = find_checkpoint(str(source), revision, with_weights=True, access=access)
    settings = read_json(folder / CONFIG_FILE)
    published = published_checkpoint(str(source))
    network = build_network(settings, where=str(folder / CONFIG_FILE))
    load_weights(network, folder)
    return Backbone(
        network,
        source=str(source),
        revision=commit,  # so that a model names its exact origin
        licence=published.licence if published else read_licence(folder),
        **read_audio_settings(folder, settings),
        num_layers=num_layers,
        spec_augment=spec_augment,
    )


def is_backbone(folder: Path) -> bool:
    """Return whether a folder is a network saved by transformers, and no model of a task in that form."""
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(settings, dict) and "model_type" in settings and "m2v_finetune" not in settings
    )


def init_backbone(architecture: str | Path, *, licence: str) -> Backbone:
    """Return a backbone with random weights, to be pre-trained, drawn from torch's random state.

    Args:
        architecture: Path of a config.json or of its folder. A preprocessor_config.json beside it sets
            the sample rate and whether windows are normalised. Without one the rate is that of
            ``sample_rate`` in config.json, else 16 kHz, and windows are normalised.
        licence: SPDX identifier of the future weights; empty when unknown.

    Raises:
        UserError: There is no such file, or it does not describe a valid network.
    """
    from m2v_finetune.shipped import find_file

    path = find_file(expand_home(architecture))
    if path.is_dir():
        path = path / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"There is no architecture at {path}. Give a {CONFIG_FILE}, or its folder.",
            code="architecture-missing",
        )
    settings = read_json(path)
    return Backbone(
        build_network(settings, where=str(path)),
        source=str(architecture),
        revision=None,
        licence=licence,
        **read_audio_settings(path.parent, settings),
        spec_augment=True,
    )


def build_architecture(
    source: str | Path,
    *,
    revision: str | None = None,
    num_layers: int | None = None,
    spec_augment: bool = False,
) -> Backbone:
    """Build a backbone with random weights, without downloading or reading the trained ones.

    Args:
        source: Source as for `load_backbone`. Nothing is downloaded for a published checkpoint, the
            configuration for another Hub id.
        revision: Branch, tag or commit of a Hub id.
        num_layers: Number of transformer layers to keep, from the first; all if None.
        spec_augment: Setting as for `load_backbone`.

    Raises:
        UserError: The source cannot be found or reached, or is of another architecture.
    """
    published = published_checkpoint(str(source))
    if published and published.settings is not None and not Path(source).is_dir():
        settings, where = published.settings, str(source)
        audio: dict[str, Any] = {"sample_rate": published.sample_rate, "normalize": True}
    else:
        folder, _ = find_checkpoint(str(source), revision, with_weights=False)
        settings, where = read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE)
        audio = read_audio_settings(folder, settings)
    return Backbone(
        build_network(settings, where=where),
        source=str(source),
        revision=revision,
        licence=published.licence if published else "",
        **audio,
        num_layers=num_layers,
        spec_augment=spec_augment,
    )


def build_network(settings: Mapping[str, Any], *, where: str) -> PreTrainedModel:
    """Build the network of a config.json, with random weights.

    Args:
        settings: Content of config.json.
        where: Path of config.json, for messages.

    Raises:
        UserError: The architecture is none of `ENCODERS`, or a setting is on that is not supported, or a
            value is not legal.
    """
    encoder = _find_encoder(settings, where)
    for setting, meaning in encoder.refused.items():
        if settings.get(setting):
            raise UserError(
                f"{where} sets {setting} ({meaning}), which is not supported. Choose a checkpoint "
                "without it.",
                code="architecture-setting-unsupported",
            )
    try:
        config = encoder.config_class(**known_settings(settings, encoder))
        _require_probabilities(config.to_dict())
        config._attn_implementation = ATTENTION
        network: PreTrainedModel = encoder.network_class(config)
    # Errors of transformers and torch for the values of an invalid file.
    except (
        StrictDataclassError,
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{where} does not describe a valid network: {error}", code="architecture-invalid"
        ) from error
    use_own_dropout(network)
    return network


def _require_probabilities(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if the probability of a dropout, or of leaving out a layer, is none."""
    for name, value in settings.items():
        if name.endswith(("dropout", "layerdrop")) and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a probability, from 0 to 1")


def frame_grid_of(settings: Mapping[str, Any], sample_rate: int, *, where: str) -> FrameGrid:
    """Return the grid of the frames of a config.json, without building its network.

    Args:
        settings: Content of config.json.
        sample_rate: Sample rate of the input, in Hz.
        where: Path of config.json, for messages.

    Raises:
        UserError: The architecture is none of `ENCODERS`, or its settings are not valid.
    """
    encoder = _find_encoder(settings, where)
    try:
        return encoder.frame_grid(
            encoder.config_class(**known_settings(settings, encoder)), sample_rate
        )
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} does not describe a valid network: {error}", code="architecture-invalid"
        ) from error


def _find_encoder(settings: Mapping[str, Any], where: str) -> Encoder:
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise UserError(
            f"{where} is of model_type {model_type!r}, which is not supported: a similar network "
            f"may compute something else. Choose a checkpoint of {', '.join(ENCODERS)}; "
            "docs/adding-an-architecture.md describes how to add a family.",
            code="architecture-unsupported",
        )
    return ENCODERS[model_type]
