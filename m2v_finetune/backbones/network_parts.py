"""Parts that a network of transformers keeps as a backbone: its first layers, and its vector for masks."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from m2v_finetune.backbones.encoders import Encoder
from m2v_finetune.config.ranges import whole_number
from m2v_finetune.errors import UserError

NAMES = ("_name_or_path", "architectures", "transformers_version", "dtype")
"""Settings of a network that do not change its output."""

BESIDE_WEIGHTS = (
    *("feat_extract_activation", "feat_extract_norm", "conv_stride", "hidden_act"),
    *("layer_norm_eps", "num_attention_heads", "do_stable_layer_norm", "position_embeddings_type"),
    "rotary_embedding_base",
)
"""Settings that change the output of a network and no shape of its weights."""


def settings_beside_weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `BESIDE_WEIGHTS` of a network; None where it has no such setting."""
    return {name: settings.get(name) for name in BESIDE_WEIGHTS}


def other_settings(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that two networks both have, and in which they differ.

    Names and versions do not count. Settings of one alone neither: another version of transformers may
    have more of them.
    """
    return [
        name
        for name, value in settings.items()
        if name not in NAMES and name in others and _plain(others[name]) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    """Return a setting as a file has it: lists for tuples, and text for the keys of a mapping."""
    return json.loads(json.dumps(value))


def keep_layers(
    network: PreTrainedModel, encoder: Encoder, num_layers: int | None, *, source: str
) -> None:
    """Remove all transformer layers but the first ones, in place; all are kept if ``num_layers`` is None.

    Args:
        network: Network.
        encoder: Its family.
        num_layers: Number of layers to keep.
        source: Name of the backbone, for messages.

    Raises:
        UserError: It has not so many layers, or the number is not whole.
    """
    layers = network.get_submodule(encoder.layers)
    assert isinstance(layers, nn.ModuleList)
    available = len(layers)
    if num_layers is None:
        return
    whole_number("num_layers", num_layers, 0)
    if num_layers == available:
        return
    if num_layers > available:
        raise UserError(
            f"The backbone {source} has {available} transformer layers, so {num_layers} cannot "
            f"be kept. Choose 0 to {available}.",
            code="num-layers-out-of-range",
        )
    network.set_submodule(encoder.layers, layers[:num_layers])
    if encoder.has_final_norm(network.config):
        # It belongs to the network's output; a lower state is the input of the next layer.
        network.set_submodule(encoder.norm, nn.Identity())


def has_final_norm(network: PreTrainedModel, encoder: Encoder) -> bool:
    """Return whether the last hidden state is normalised: not where layers above it were removed."""
    norm = network.get_submodule(encoder.norm)
    return encoder.has_final_norm(network.config) and not isinstance(norm, nn.Identity)


def set_spec_augment(
    network: PreTrainedModel, encoder: Encoder, spec_augment: bool, *, source: str
) -> None:
    """Turn masks on, or off, which removes the vector that replaces masked frames.

    Args:
        network: Network, changed in place.
        encoder: Its family.
        spec_augment: Whether frames are masked in training mode.
        source: Name of the backbone, for messages.

    Raises:
        UserError: Masks are asked for, and the network's config masks nothing.
    """
    config = network.config
    config.apply_spec_augment = spec_augment
    if spec_augment and config.mask_time_prob == 0.0 and config.mask_feature_prob == 0.0:
        raise UserError(
            f"The config of {source} masks nothing (mask_time_prob and mask_feature_prob are 0), so "
            "the network has no embedding for masked frames. Set backbone.spec_augment to false; to "
            "pre-train, set mask_time_prob in its config.json, such as to 0.05.",
            code="spec-augment-without-masks",
        )
    if not spec_augment and hasattr(network, encoder.mask_vector):
        delattr(network, encoder.mask_vector)
