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
"""Part of a transformer layer that a tuning method or pre-training looks for.

The first six are linear layers: the projections of the attention, and the first and second layer of each
feed-forward block. ``norm`` is a LayerNorm. ``residual_end`` is a dropout between a sub-layer and its skip
connection, with states (batch, frames, hidden_size). ``last_feed_forward`` is the feed-forward block whose
output pre-training predicts.
"""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A family of networks: how it computes hidden states, and which of its modules has which role.

    All fields are facts about classes of transformers. Functions take the network first. Names are those
    of `named_modules`, from the network for its parts and from a layer for `roles`.

    A waveform goes through `convolve`, `project`, `mask` and `embed`, which gives hidden state 0; then
    through each layer, called with a state and `layer_inputs`; the last state through the final norm.

    Attributes:
        config_class: Configuration, whose ``model_type`` is the family's name.
        network_class: Network without a head.
        refused: Settings of config.json that add what is not computed here, with their meanings. A config
            in which one of them is on is refused.
        frame_grid: Returns stride and receptive field of the convolutions of a config at a sample rate.
        convolve: Returns the features (batch, channels, frames) of input values (batch, samples).
        project: Returns features as (batch, frames, hidden_size).
        mask: Returns projected features with SpecAugment's masks where the network is in training mode
            and its config asks for them.
        embed: Returns hidden state 0 of projected features, in float32.
        layer_inputs: Returns what every layer takes beside a state (batch, frames, hidden_size), by the
            name of the argument, such as position embeddings.
        conv_encoder: The module that `convolve` uses.
        embedding: The modules that `project` and `embed` use, without `norm`.
        layers: The list of transformer layers.
        norm: The LayerNorm beside them.
        has_final_norm: Tells by the config where that norm belongs: to the output of the last layer, as in
            pre-norm networks, or to hidden state 0, where `embed` applies it.
        mask_vector: The parameter that takes the place of masked frames; an attribute of the network.
        unused: Modules with weights that no hidden state depends on.
        roles: Names in a layer, of each role at least one.
    """

    config_class: type[PretrainedConfig]
    network_class: type[PreTrainedModel]
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
