"""The layers that two backbones have in common, by settings and weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from m2v_finetune.backbones.backbone import CONV_ENCODER, Backbone

SETTINGS_OF_FILES = {
    "_name_or_path",
    "architectures",
    "dtype",
    "num_hidden_layers",
    "transformers_version",
    "vocab_size",
}
"""Settings of a network that do not change the output of a layer: its source, and the number of layers."""


def computes_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether layers of equal weights compute the same by the settings of two networks."""
    names = (one.keys() | other.keys()) - SETTINGS_OF_FILES
    return all(one.get(name) == other.get(name) for name in names)


def have_equal_weights(some: Sequence[nn.Module], others: Sequence[nn.Module]) -> bool:
    """Return whether modules have the same tensors, by name and value."""
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        tensors, compared = one.state_dict(), other.state_dict()
        if tensors.keys() != compared.keys() or not all(
            torch.equal(tensor, compared[name]) for name, tensor in tensors.items()
        ):
            return False
    return True


def shared_depth(one: Backbone, other: Backbone) -> int | None:
    """Return the greatest depth up to which two backbones compute the same.

    Returns:
        Index of the last equal hidden state; `CONV_ENCODER` if only the output of the convolutional
        encoder is equal; None if that is not.
    """
    if (
        one.normalize != other.normalize
        or not computes_alike(one.settings, other.settings)
        or not have_equal_weights([one.conv_encoder], [other.conv_encoder])
    ):
        return None
    if not have_equal_weights(one.embedding_modules(), other.embedding_modules()):
        return CONV_ENCODER
    num_layers = min(one.num_layers, other.num_layers)
    for index in range(num_layers):
        if not have_equal_weights(one.layer_modules(index), other.layer_modules(index)):
            return index
    return num_layers
