"""Make what the pre-training of the small backbone starts from: random weights behind a bank of filters.

    python scripts/start_small_backbone.py FOLDER [ARCHITECTURE]

The architecture is configs/pretrain/small, or another one of that folder with three convolutions, such as
small-wide. The first convolution begins as windowed cosines and sines at log-spaced frequencies, the two
above it begin near to a mean over time; all else is drawn at random, and all of it learns. The run of the
small backbone is short: from random convolutions a trial predicted almost nothing of masked frames after 320
steps (loss 0.316, variance of targets 0.320).
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from m2v_finetune.backbones import Backbone, init_backbone

SEED = 20221205
ARCHITECTURES = Path(__file__).parent.parent / "configs" / "pretrain"
LOWEST_HZ, HIGHEST_HZ = 55.0, 7000.0
PERIODS = 24
"""Length of a filter, where the kernel has room for it."""
GAIN = 8.0
RANDOM_SHARE = 0.2
LICENCE = "apache-2.0"


def filter_bank(channels: int, kernel_samples: int, *, sample_rate: int) -> Tensor:
    """Return filters (channels, 1, kernel_samples): cosines, then sines, of unit sum under their windows."""
    times = torch.arange(kernel_samples, dtype=torch.float64) - (kernel_samples - 1) / 2
    octaves = math.log2(HIGHEST_HZ / LOWEST_HZ)
    frequencies = LOWEST_HZ * 2.0 ** torch.linspace(0, octaves, channels // 2, dtype=torch.float64)
    filters = []
    for phase in (0.0, math.pi / 2):
        for frequency in frequencies:
            length = min(float(kernel_samples), PERIODS * sample_rate / float(frequency))
            window = 0.5 + 0.5 * torch.cos(2 * math.pi * times / length)
            window = torch.where(times.abs() < length / 2, window, 0.0)
            wave = torch.cos(2 * math.pi * frequency * times / sample_rate - phase)
            filters.append(window / window.sum() * wave)
    return torch.stack(filters).float().unsqueeze(1)


def start_weights(backbone: Backbone) -> None:
    """Set the convolutions of a backbone with random weights, in place: the first a bank, then means."""
    first, *others = [layer.conv.weight for layer in backbone.network.feature_extractor.conv_layers]
    with torch.no_grad():
        channels, _, kernel = first.shape
        first.copy_(GAIN * filter_bank(channels, kernel, sample_rate=backbone.sample_rate))
        for weight in others:
            mean = torch.hann_window(weight.shape[2] + 2, periodic=False)[1:-1]
            weight.mul_(RANDOM_SHARE)
            weight.diagonal().add_((mean / mean.sum()).unsqueeze(1))


def main(folder: Path, architecture: str = "small") -> None:
    """Write the checkpoint of an architecture, with its licence, into the folder."""
    torch.manual_seed(SEED)
    backbone = init_backbone(ARCHITECTURES / architecture, licence=LICENCE)
    start_weights(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    card = f"---\nlicense: {LICENCE}\n---\n\nRandom weights behind a bank of filters; nothing was trained.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    count = sum(parameter.numel() for parameter in backbone.parameters())
    print(f"{folder}: {count:,} parameters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
