"""Make what the pre-training of a small backbone starts from: random weights behind a bank of filters.

    python scripts/start_small_backbone.py FOLDER [ARCHITECTURE [LICENCE]]

The licence is that of the weights after training, by the music: apache-2.0 if none is given. The
architecture is a folder in configs/pretrain, `small` (the default) or `log-bank`, or another one. Runs of
small backbones are short: from random convolutions a trial predicted almost nothing of masked frames after
320 steps (loss 0.316, variance of targets 0.320). All above the convolutions is drawn at random.

- Three convolutions: the first begins as windowed cosines and sines at log-spaced frequencies, the two above
  it begin near to a mean over time.
- Two convolutions: filters in three phases, a semitone apart up to `LOG_HIGHEST_HZ` and evenly spaced above,
  whose rectified sum is the magnitude; and per frequency the magnitude itself and, for each of `LEVELS`,
  how far it is below it. The sum of such steps is a piecewise linear logarithm.
"""

import argparse
import math
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

LOG_SEMITONES, LOG_HIGHEST_HZ, LOG_LINEAR_HZ = 73, 3520.0, 7400.0
"""Filters a semitone apart, the highest of them, and the highest of those that are evenly spaced."""
LOG_PERIODS, LOG_SHORTEST_SAMPLES = 34, 200
"""Length of a filter: a Hann window as wide as a semitone, not shorter than the stride asks."""
LEVELS = (2.0, 0.4, 0.08, 0.016)
"""Magnitudes below which a channel is above 0, in units of the whole level of a loud frame."""
LOUDNESS = 0.05
"""Root mean square over the filters of a usual frame, of a window of unit variance; measured."""
KNEE = 0.1
"""Level of a frame in units of the window's, below which the first normalisation keeps levels apart."""
PASS_THROUGH = 1e-4
"""Gain at which the second normalisation is a constant: its variance is far below its epsilon."""


def filter_bank(channels: int, kernel_samples: int, *, sample_rate: int) -> Tensor:
    """Return filters (channels, 1, kernel_samples): cosines, then sines, of unit sum under their windows."""
    octaves = math.log2(HIGHEST_HZ / LOWEST_HZ)
    frequencies = LOWEST_HZ * 2.0 ** torch.linspace(0, octaves, channels // 2, dtype=torch.float64)
    filters = []
    for phase in (0.0, math.pi / 2):
        for frequency in frequencies.tolist():
            length = min(float(kernel_samples), PERIODS * sample_rate / frequency)
            filters.append(_filter(frequency, phase, length, kernel_samples, sample_rate))
    return torch.stack(filters).float().unsqueeze(1)


def _filter(
    frequency: float, phase: float, length: float, kernel_samples: int, sample_rate: int
) -> Tensor:
    """Return a cosine under a centred Hann window of unit sum, (kernel_samples,)."""
    times = torch.arange(kernel_samples, dtype=torch.float64) - (kernel_samples - 1) / 2
    wave = torch.cos(2 * math.pi * frequency * times / sample_rate - phase)
    window = 0.5 + 0.5 * torch.cos(2 * math.pi * times / length)
    window = torch.where(times.abs() < length / 2, window, 0.0)
    return window / window.sum() * wave


def log_frequencies(count: int) -> list[float]:
    """Return frequencies in Hz: semitones up from `LOWEST_HZ`, then evenly spaced ones."""
    semitones = [LOWEST_HZ * 2.0 ** (number / 12) for number in range(LOG_SEMITONES)]
    step = (LOG_LINEAR_HZ - LOG_HIGHEST_HZ) / (count - LOG_SEMITONES)
    return semitones + [
        LOG_HIGHEST_HZ + step * (number + 1) for number in range(count - LOG_SEMITONES)
    ]


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


def start_log_weights(backbone: Backbone) -> None:
    """Set the two convolutions of a backbone, in place: magnitudes of a bank, then steps of a logarithm."""
    first, second = backbone.network.feature_extractor.conv_layers
    channels, _, kernel = first.conv.weight.shape
    frequencies = log_frequencies(channels // 3)
    bank = torch.stack(
        [
            _filter(
                frequency,
                2 * math.pi * phase / 3,
                min(
                    float(kernel),
                    max(LOG_SHORTEST_SAMPLES, LOG_PERIODS * backbone.sample_rate / frequency),
                ),
                kernel,
                backbone.sample_rate,
            )
            for phase in range(3)
            for frequency in frequencies
        ]
    )
    count, taps = len(frequencies), second.conv.weight.shape[2]
    with torch.no_grad():
        # Of white noise of unit variance a filter's output has the variance of its squared sum; the loudest
        # are near to 1. The three phases add to 0, so the normalisation subtracts nothing.
        gain = math.sqrt(first.layer_norm.eps) / (KNEE * LOUDNESS)
        first.conv.weight.copy_(gain * bank.float().unsqueeze(1))
        # Channels of magnitudes and of their negatives add to 0, too.
        signs = [float(len(LEVELS)), *[-1.0] * len(LEVELS)]
        second.conv.weight.zero_()
        # Rectified, the three phases add to 0.955 of the amplitude, within 7 %.
        each = PASS_THROUGH * math.pi / 3 / taps
        for kind, sign in enumerate(signs):
            rows = torch.arange(count) + kind * count
            for phase in range(3):
                second.conv.weight[rows, torch.arange(count) + phase * count] = sign * each
        scale = math.sqrt(second.layer_norm.eps) / PASS_THROUGH
        gains = [1 / len(LEVELS), *[1 / level for level in LEVELS]]
        second.layer_norm.weight.copy_(scale * torch.tensor(gains).repeat_interleave(count))
        second.layer_norm.bias.copy_(
            torch.tensor([0.0, *[1.0] * len(LEVELS)]).repeat_interleave(count)
        )


def main(folder: Path, architecture: str = "small", licence: str = LICENCE) -> None:
    """Write the checkpoint of an architecture, with its licence, into the folder."""
    torch.manual_seed(SEED)
    backbone = init_backbone(ARCHITECTURES / architecture, licence=licence)
    has_logarithm = len(backbone.network.feature_extractor.conv_layers) == 2
    (start_log_weights if has_logarithm else start_weights)(backbone)
    folder.mkdir(parents=True, exist_ok=True)
    backbone.save_pretrained(folder)
    card = f"---\nlicense: {licence}\n---\n\nRandom weights behind a bank of filters; nothing was trained.\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    count = sum(parameter.numel() for parameter in backbone.parameters())
    print(f"{folder}: {count:,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("architecture", nargs="?", default="small", help="below configs/pretrain")
    parser.add_argument("licence", nargs="?", default=LICENCE)
    main(**vars(parser.parse_args()))
