"""Supported families of networks, each in a module of its own."""

from collections.abc import Mapping

from m2v_finetune.backbones.encoders.data2vec import DATA2VEC
from m2v_finetune.backbones.encoders.encoder import Encoder, Role
from m2v_finetune.backbones.encoders.hubert import HUBERT
from m2v_finetune.backbones.encoders.wav2vec2 import WAV2VEC2
from m2v_finetune.backbones.encoders.wav2vec2_conformer import WAV2VEC2_CONFORMER

ENCODERS: Mapping[str, Encoder] = {
    "data2vec-audio": DATA2VEC,
    "hubert": HUBERT,
    "mert_model": HUBERT,
    "wav2vec2": WAV2VEC2,
    "wav2vec2-conformer": WAV2VEC2_CONFORMER,
}
"""Families by the ``model_type`` of config.json."""

__all__ = ["ENCODERS", "Encoder", "Role"]
