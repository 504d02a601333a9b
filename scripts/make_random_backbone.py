"""Make the small backbone that ships: random weights, in the published layout of MERT-v0.

    python scripts/make_random_backbone.py [FOLDER]

Its architecture is MERT's (HuBERT, 16 kHz, 50 frames a second, convolutions normed in groups), narrow
and with four layers. It is not music2vec's, because layer-normed convolutions with random weights
lose the level of each frame, and with it the beats. Nothing was trained: it is there so that every
step of the program runs offline.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel

SEED = 20221205
FOLDER = Path(__file__).parent.parent / "m2v_finetune" / "backbones" / "random_small"


def main(folder: Path) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors into the folder."""
    torch.manual_seed(SEED)
    config = HubertConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        conv_dim=(16, 32, 32, 64, 64, 96, 128),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=16,
        layerdrop=0.0,
    )
    model = HubertModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt", "note": f"random weights, seed {SEED}, nothing was trained"},
    )
    content = {"note": "random weights, nothing was trained", **config.to_diff_dict()}
    for unused in ("transformers_version", "tdnn_dim", "tdnn_kernel", "tdnn_dilation"):
        content.pop(unused, None)
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "do_normalize": True,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    count = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {count:,} parameters, random weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    main(parser.parse_args().folder)
