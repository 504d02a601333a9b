"""wav2vec 2.0 with Conformer layers (arXiv 2005.08100) and other positions after its convolutions."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForSequenceClassification,
    Wav2Vec2ConformerModel,
)

from m2v_finetune.backbones.encoders.wav2vec2 import WAV2VEC2


def embed(network: Any, projected: Tensor) -> Tensor:
    """Return projected features: positions are an input of the layers."""
    # Residuals are added to this state, so it stays in float32 in any precision of the layers.
    embedded: Tensor = network.encoder.dropout(projected.float())
    return embedded


def layer_inputs(network: Any, state: Tensor) -> dict[str, Tensor]:
    """Return the relative or rotary position embeddings of a state's frames, or nothing."""
    positions = network.encoder.embed_positions
    if positions is None:
        return {}
    if network.config.position_embeddings_type == "rotary":
        # It would return its last result for equal lengths, from any device and precision.
        positions.cached_sequence_length = None
    # Its cached embeddings must be usable in training too.
    with torch.inference_mode(mode=False), torch.no_grad():
        return {"relative_position_embeddings": positions(state)}


def always(config: Any) -> bool:
    """Return True: a norm follows the last layer."""
    return True


WAV2VEC2_CONFORMER = replace(
    WAV2VEC2,
    config_class=Wav2Vec2ConformerConfig,
    network_class=Wav2Vec2ConformerModel,
    classifier_class=Wav2Vec2ConformerForSequenceClassification,
    embed=embed,
    layer_inputs=layer_inputs,
    embedding=("feature_projection", "encoder.dropout"),
    has_final_norm=always,
    unused=("encoder.pos_conv_embed",),
    roles={
        "query": ("self_attn.linear_q",),
        "key": ("self_attn.linear_k",),
        "value": ("self_attn.linear_v",),
        "attention_output": ("self_attn.linear_out",),
        "feed_forward_input": ("ffn1.intermediate_dense", "ffn2.intermediate_dense"),
        "feed_forward_output": ("ffn1.output_dense", "ffn2.output_dense"),
        "norm": (
            "ffn1_layer_norm",
            "self_attn_layer_norm",
            "conv_module.layer_norm",
            "ffn2_layer_norm",
            "final_layer_norm",
        ),
        "residual_end": ("ffn1.output_dropout", "self_attn_dropout", "ffn2.output_dropout"),
        "last_feed_forward": ("ffn2",),
    },
)
