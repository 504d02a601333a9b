"""Description of a family of networks: `Encoder`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from m2v_finetune.audio.frames import FrameGrid

Role = Literal[
    "query",
    "key",
    "value",
    "attention_output",
    "feed_forward_input",
    "feed_forward_output",
    "norm",
    "residual_end",
    "last_feed_forward",
]
"""Part of a transformer layer that a tuning method or pre-training uses.

The first six are linear layers: the projections of the attention, and the first and second layer of each
feed-forward block. ``norm`` is a LayerNorm. ``residual_end`` is a dropout between a sub-layer and its skip
connection, with states (batch, frames, hidden_size). ``last_feed_forward`` is the feed-forward block whose
output pre-training predicts.
"""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Family of networks: how it computes hidden states, and which of its modules has which role.

    All fields are facts about classes of transformers. Functions take the network first. Names are those
    of `named_modules`, from the network for its parts and from a layer for `roles`.

    A waveform goes through `convolve`, `project`, `mask` and `embed`, which gives hidden state 0; then
    through each layer, called with a state and `layer_inputs`; the last state through the final norm.

    Attributes:
        config_class: Configuration, whose ``model_type`` is the family's name.
        network_class: Network without a head.
        classifier_class: The same network with a classifier of clips.
        refused: Settings of config.json that are not supported, with their meanings. A config in which
            one of them is on is refused.
        frame_grid: Returns stride and receptive field of the convolutions of a config at a sample rate.
        convolve: Returns the features (batch, channels, frames) of input values (batch, samples).
        project: Function that returns features as (batch, frames, hidden_size).
        mask: Function that returns projected features with SpecAugment's masks, in training mode and if
            its config sets them.
        embed: Function that returns hidden state 0 of projected features, in float32.
        layer_inputs: Function that returns the further arguments of every layer by name, such as
            position embeddings, from a state (batch, frames, hidden_size).
        conv_encoder: Module that `convolve` uses.
        embedding: Modules that `project` and `embed` use, without `norm`.
        layers: List of transformer layers.
        norm: LayerNorm before or after the layers.
        has_final_norm: Function of the config that returns whether that norm follows the last layer, as in
            pre-norm networks. Otherwise `embed` applies it to hidden state 0.
        mask_vector: Parameter that replaces masked frames; an attribute of the network.
        unused: Modules whose weights affect no hidden state.
        roles: Names in a layer, at least one for each role.
    """

    config_class: type[PretrainedConfig]
    network_class: type[PreTrainedModel]
    classifier_class: type[PreTrainedModel]
    refused: Mapping[str, str]
    frame_grid: Callable[[Any, int], FrameGrid]
    convolve: Callable[[Any, Tensor], Tensor]
    project: Callable[[Any, Tensor], Tensor]
    mask: Callable[[Any, Tensor], Tensor]
    embed: Callable[[Any, Tensor], Tensor]
    layer_inputs: Callable[[Any, Tensor], dict[str, Tensor]]
    conv_encoder: str
    embedding: tuple[str, ...]
    layers: str
    norm: str
    has_final_norm: Callable[[Any], bool]
    mask_vector: str
    unused: tuple[str, ...]
    roles: Mapping[Role, tuple[str, ...]]


def known_settings(settings: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Return the settings of a config.json that the family's configuration has."""
    known = set(encoder.config_class().to_dict())
    known -= {"model_type", "architectures", "transformers_version"}
    # The size of a vocabulary means nothing without a language head; music2vec publishes a path there.
    known -= {"vocab_size", "dtype", "torch_dtype"}
    return {key: value for key, value in settings.items() if key in known}
