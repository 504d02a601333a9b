"""HuBERT (arXiv 2106.07447), which MERT (arXiv 2306.00107) is too: the layout of wav2vec 2.0."""

from dataclasses import replace

from transformers import HubertConfig, HubertForSequenceClassification, HubertModel

from m2v_finetune.backbones.encoders.wav2vec2 import WAV2VEC2

HUBERT = replace(
    WAV2VEC2,
    config_class=HubertConfig,
    network_class=HubertModel,
    classifier_class=HubertForSequenceClassification,
    # Switches of MERT's own code, off in every released checkpoint, which plain HuBERT lacks.
    refused={
        "feature_extractor_cqt": "a constant-Q front end beside the convolutions",
        "deepnorm": "DeepNorm residual connections",
    },
)
