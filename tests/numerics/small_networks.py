"""Small networks with random weights, of every family that loads and every form that its config can take."""

import torch
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2Model,
)

LAYERS, HIDDEN, INNER, CONV = 3, 32, 64, 8
SMALL = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "conv_dim": (CONV,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
DATA2VEC = (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3},
)
PRE_NORM = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
CONFORMER = {"hidden_act": "swish", "conv_depthwise_kernel_size": 7, "max_source_positions": 100}

FAMILIES = {
    "data2vec": DATA2VEC,
    "hubert": (HubertConfig, HubertModel, {}),
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model, {}),
    "conformer": (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel, CONFORMER),
}
"""One form of each family, with transformers' defaults."""

NETWORKS = {
    **FAMILIES,
    "hubert, conv layer norm": (HubertConfig, HubertModel, {"feat_extract_norm": "layer"}),
    "hubert, pre-norm": (HubertConfig, HubertModel, PRE_NORM),
    "hubert, batch norm of positions": (HubertConfig, HubertModel, {"conv_pos_batch_norm": True}),
    "hubert, features not normalised": (HubertConfig, HubertModel, {"feat_proj_layer_norm": False}),
    "wav2vec2, pre-norm": (Wav2Vec2Config, Wav2Vec2Model, PRE_NORM),
    "wav2vec2, language adapters": (
        Wav2Vec2Config,
        Wav2Vec2Model,
        {**PRE_NORM, "adapter_attn_dim": 4},
    ),
    **{
        f"conformer, {kind} positions": (
            Wav2Vec2ConformerConfig,
            Wav2Vec2ConformerModel,
            {
                **CONFORMER,
                "position_embeddings_type": kind,
                "feat_extract_norm": "layer",
                "conv_bias": True,
            },
        )
        for kind in ("relative", "rotary", None)
    },
}
"""Every form that computes something else."""


def save_network(name, folder, **settings):
    """Save a network of `NETWORKS` and return it, in evaluation mode.

    Its norms and biases are not ones and zeros, and neither are the statistics of its batch norms.
    """
    config_class, model_class, options = NETWORKS[name]
    torch.manual_seed(1)
    network = model_class(config_class(**{**SMALL, **options, **settings}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    network.save_pretrained(folder)
    return network.eval()


def without_dropout(**settings):
    """Settings of a config under which training mode computes what evaluation mode does."""
    names = ("hidden", "activation", "attention", "feat_proj")
    return {**{f"{name}_dropout": 0.0 for name in names}, "conformer_conv_dropout": 0.0, **settings}
