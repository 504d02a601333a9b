"""wav2vec 2.0 (arXiv 2006.11477). HuBERT and data2vec audio have its layout and share these functions."""

from typing import Any

import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification, Wav2Vec2Model

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.backbones.cpu import frames_last
from m2v_finetune.backbones.encoders.encoder import Encoder

ADAPTER = {"add_adapter": "strided convolutions above the layers, which change the last state"}


def frame_grid(config: Any, sample_rate: int) -> FrameGrid:
    """Return the grid of the unpadded convolutions."""
    return FrameGrid.from_convolutions(
        sample_rate=sample_rate, kernels=config.conv_kernel, strides=config.conv_stride
    )


def convolve(network: Any, input_values: Tensor) -> Tensor:
    """Return the features of the conv encoder."""
    layers = network.feature_extractor.conv_layers
    if frames_last.is_usable(input_values):
        return frames_last.convolve(layers, input_values)
    first, *others = layers
    # In float32, which costs no memory: its normalisation outputs float32 anyway.
    with torch.autocast(input_values.device.type, enabled=False):
        features: Tensor = first(input_values.unsqueeze(1))
    for layer in others:
        features = layer(features)
    return features


def project(network: Any, features: Tensor) -> Tensor:
    """Return the projection of the normalised features."""
    projected = network.feature_projection(features.transpose(1, 2))
    # HuBERT returns the projection alone, the other families the normalised features beside it.
    projection: Tensor = projected[0] if isinstance(projected, tuple) else projected
    return projection


def mask(network: Any, projected: Tensor) -> Tensor:
    """Return projected features with SpecAugment's masks, in training mode."""
    masked: Tensor = network._mask_hidden_states(projected)
    return masked


def is_pre_norm(config: Any) -> bool:
    """Return whether norms come before the sub-layers; data2vec audio has no such setting."""
    return bool(getattr(config, "do_stable_layer_norm", False))


def embed(network: Any, projected: Tensor) -> Tensor:
    """Return projected features plus their positional convolutions."""
    encoder = network.encoder
    # Residuals are added to this state, so it stays in float32 in any precision of the layers.
    state = projected.float()
    state = state + encoder.pos_conv_embed(state)
    if not is_pre_norm(network.config):
        state = encoder.layer_norm(state)
    embedded: Tensor = encoder.dropout(state)
    return embedded


def no_layer_inputs(network: Any, state: Tensor) -> dict[str, Tensor]:
    """Return nothing: positions are in hidden state 0."""
    return {}


WAV2VEC2 = Encoder(
    config_class=Wav2Vec2Config,
    network_class=Wav2Vec2Model,
    classifier_class=Wav2Vec2ForSequenceClassification,
    refused=ADAPTER,
    frame_grid=frame_grid,
    convolve=convolve,
    project=project,
    mask=mask,
    embed=embed,
    layer_inputs=no_layer_inputs,
    conv_encoder="feature_extractor",
    embedding=("feature_projection", "encoder.pos_conv_embed", "encoder.dropout"),
    layers="encoder.layers",
    norm="encoder.layer_norm",
    has_final_norm=is_pre_norm,
    mask_vector="masked_spec_embed",
    unused=(),
    roles={
        "query": ("attention.q_proj",),
        "key": ("attention.k_proj",),
        "value": ("attention.v_proj",),
        "attention_output": ("attention.out_proj",),
        "feed_forward_input": ("feed_forward.intermediate_dense",),
        "feed_forward_output": ("feed_forward.output_dense",),
        "norm": ("layer_norm", "final_layer_norm"),
        "residual_end": ("dropout", "feed_forward.output_dropout"),
        "last_feed_forward": ("feed_forward",),
    },
)
