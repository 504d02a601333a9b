"""From a name to a backbone with its published weights, on any transformers 5.

What is published does not load as it is: music2vec's config.json carries a file path as
``vocab_size``, MERT names code to execute, HuBERT's positional convolution has the weight names of
an older PyTorch. Here config.json is read as data, the network is the plain network of transformers
that `ENCODERS` has for its ``model_type``, and every tensor has to find its place.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

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
from m2v_finetune.backbones.encoders import ENCODERS
from m2v_finetune.errors import UserError
from m2v_finetune.files import expand_home


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
        spec_augment: Mask spans of frames in training mode, by the mask settings of the checkpoint's config.

    Raises:
        UserError: The source cannot be found or reached, is of another architecture, switches on what
            no released checkpoint uses, or its tensors are not those of its config.
    """
    folder, commit = find_checkpoint(str(source), revision, with_weights=True)
    settings = read_json(folder / CONFIG_FILE)
    published = published_checkpoint(str(source))
    network = build_network(settings, where=str(folder / CONFIG_FILE))
    load_weights(network, folder)
    return Backbone(
        network,
        source=str(source),
        revision=commit,  # so that a model names exactly what it was made from
        licence=published.licence if published else read_licence(folder),
        **read_audio_settings(folder, settings),
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


def init_backbone(architecture: str | Path, *, licence: str) -> Backbone:
    """Return a backbone with random weights, to be pre-trained, drawn from torch's random state.

    Args:
        architecture: A config.json, or a folder that holds one; a preprocessor_config.json beside it
            gives the sample rate and whether windows are normalised; without one the rate is that of
            ``sample_rate`` in config.json, else 16 kHz, and they are.
        licence: SPDX identifier of the weights that will be made; empty when unknown.

    Raises:
        UserError: There is no such file, or it describes no network that can be built.
    """
    from m2v_finetune.shipped import find_file

    path = find_file(expand_home(architecture))
    if path.is_dir():
        path = path / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"There is no architecture at {path}. Give a {CONFIG_FILE}, or a folder that holds one."
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
    """Build a backbone with random weights, without fetching or reading the trained ones.

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
        settings: The content of config.json.
        where: Its location, for messages.

    Raises:
        UserError: The architecture is none of `ENCODERS`, or a setting is on that adds what is not
            computed here, or a value is not legal.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise UserError(
            f"{where} is of model_type {model_type!r}, which does not load: a network may look like one "
            f"that does and compute something else. Choose a checkpoint of {', '.join(ENCODERS)}; "
            "docs/adding-an-architecture.md describes how to add a family."
        )
    encoder = ENCODERS[model_type]
    for setting, meaning in encoder.refused.items():
        if settings.get(setting):
            raise UserError(
                f"{where} switches on {setting} ({meaning}), which is not supported. Choose a checkpoint "
                "without it."
            )
    known = set(encoder.config_class().to_dict())
    known -= {"model_type", "architectures", "transformers_version"}
    # The size of a vocabulary means nothing without a language head; music2vec publishes a path there.
    known -= {"vocab_size", "dtype", "torch_dtype"}
    values = {key: value for key, value in settings.items() if key in known}
    try:
        config = encoder.config_class(**values)
        config._attn_implementation = "sdpa"
        return encoder.network_class(config)
    # Whatever the values of a damaged file make transformers and torch stumble over.
    except (
        StrictDataclassError,
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        raise UserError(f"{where} describes no network that can be built: {error}") from error
