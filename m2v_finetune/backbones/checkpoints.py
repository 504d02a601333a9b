"""Checkpoints that have a short name.

Source: the model card of m-a-p/music2vec-v1 and the published config.json of each repository. Any
other checkpoint of a family in `ENCODERS` loads by its Hub id or folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Published facts of a checkpoint.

    Attributes:
        hub_id: Repository on the Hub, or None for one that ships with this package.
        pretraining: Method, hours of music, length of a training excerpt.
        num_layers: Number of transformer layers.
        hidden_size: Size of a hidden state.
        sample_rate: Sample rate of the input, in Hz.
        frame_rate: Frames a second: sample_rate / 320, the product of the conv strides.
        parameters_millions: Number of parameters, in millions.
        licence: SPDX identifier; models derived from the checkpoint inherit it.
        citation: Paper, as an arXiv identifier, or empty.
        settings: Settings of its config.json that define the network and differ from the defaults of
            transformers; None if the file itself ships.
    """

    hub_id: str | None
    pretraining: str
    num_layers: int
    hidden_size: int
    sample_rate: int
    frame_rate: int
    parameters_millions: float
    licence: str
    citation: str
    settings: Mapping[str, Any] | None


SHIPPED_DIR = Path(__file__).parent

# The layouts are the defaults of transformers' Data2VecAudioConfig and HubertConfig: "base" networks.
MERT_V1_LARGE: Mapping[str, Any] = {
    "model_type": "mert_model",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.075,
}

CHECKPOINTS = {
    "music2vec-v1": Checkpoint(
        hub_id="m-a-p/music2vec-v1",
        pretraining="data2vec (BYOL-style), 1,000 h, 30 s (released: the crop5s version)",
        num_layers=12,
        hidden_size=768,
        sample_rate=16000,
        frame_rate=50,
        parameters_millions=93.2,
        licence="cc-by-nc-4.0",
        citation="arXiv:2212.02508",
        settings={"model_type": "data2vec-audio"},
    ),
    "MERT-v0": Checkpoint(
        hub_id="m-a-p/MERT-v0",
        pretraining="masked prediction, 1,000 h, 5 s",
        num_layers=12,
        hidden_size=768,
        sample_rate=16000,
        frame_rate=50,
        parameters_millions=94.4,
        licence="cc-by-nc-4.0",
        citation="arXiv:2306.00107",
        settings={"model_type": "mert_model"},
    ),
    "MERT-v0-public": Checkpoint(
        hub_id="m-a-p/MERT-v0-public",
        pretraining="masked prediction, 900 h, 5 s",
        num_layers=12,
        hidden_size=768,
        sample_rate=16000,
        frame_rate=50,
        parameters_millions=94.4,
        licence="cc-by-nc-4.0",
        citation="arXiv:2306.00107",
        settings={"model_type": "mert_model"},
    ),
    "MERT-v1-95M": Checkpoint(
        hub_id="m-a-p/MERT-v1-95M",
        pretraining="masked prediction, 20,000 h, 5 s",
        num_layers=12,
        hidden_size=768,
        sample_rate=24000,
        frame_rate=75,
        parameters_millions=94.4,
        licence="cc-by-nc-4.0",
        citation="arXiv:2306.00107",
        settings={"model_type": "mert_model", "activation_dropout": 0.0, "layerdrop": 0.05},
    ),
    "MERT-v1-330M": Checkpoint(
        hub_id="m-a-p/MERT-v1-330M",
        pretraining="masked prediction, 160,000 h, 5 s",
        num_layers=24,
        hidden_size=1024,
        sample_rate=24000,
        frame_rate=75,
        parameters_millions=315.4,
        licence="cc-by-nc-4.0",
        citation="arXiv:2306.00107",
        settings=MERT_V1_LARGE,
    ),
    "filterbank-small": Checkpoint(
        hub_id=None,
        pretraining="masked prediction behind a bank of filters, 10 h of recordings and composed music, 4 s, "
        "by this project",
        num_layers=4,
        hidden_size=192,
        sample_rate=16000,
        frame_rate=50,
        parameters_millions=3.0,
        licence="cc-by-sa-4.0",
        citation="",
        settings=None,
    ),
    "random-small": Checkpoint(
        hub_id=None,
        pretraining="none: random weights, for trying the program offline",
        num_layers=4,
        hidden_size=128,
        sample_rate=16000,
        frame_rate=50,
        parameters_millions=0.9,
        licence="apache-2.0",
        citation="",
        settings=None,
    ),
}


def published_checkpoint(source: str) -> Checkpoint | None:
    """Return the checkpoint with this short name or Hub id; None for any other."""
    for name, checkpoint in CHECKPOINTS.items():
        if source in (name, checkpoint.hub_id):
            return checkpoint
    return None
