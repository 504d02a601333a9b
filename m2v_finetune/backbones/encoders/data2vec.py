"""data2vec audio (arXiv 2202.03555), which music2vec (arXiv 2212.02508) is too: the layout of wav2vec 2.0."""

from dataclasses import replace

from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForSequenceClassification,
    Data2VecAudioModel,
)

from m2v_finetune.backbones.encoders.wav2vec2 import WAV2VEC2

DATA2VEC = replace(
    WAV2VEC2,
    config_class=Data2VecAudioConfig,
    network_class=Data2VecAudioModel,
    classifier_class=Data2VecAudioForSequenceClassification,
)
