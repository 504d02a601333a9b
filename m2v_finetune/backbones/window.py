"""Windows of a network: their normalisation, and their least length."""

import math

import torch
from torch import Tensor

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.errors import UserError

NORMALIZE_EPSILON = 1e-7


def normalized(waveforms: Tensor) -> Tensor:
    """Return windows (batch, samples) with zero mean and unit variance, each for itself.

    Source: transformers, Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm.
    """
    centred = waveforms - waveforms.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + NORMALIZE_EPSILON)


def require_frames(
    num_samples: int, *, grid: FrameGrid, sample_rate: int, mask_length: int | None
) -> None:
    """Raise `UserError` where a window is too short for a network, or for its masks.

    Args:
        num_samples: Length of the window.
        grid: Frames of the network.
        sample_rate: Of the window, in Hz.
        mask_length: Number of frames that SpecAugment masks at once; None without it.
    """
    frames, least = grid.num_frames(num_samples), mask_length or 1
    if frames < least:
        why = "SpecAugment masks spans of" if mask_length else "The network needs"
        needed = math.ceil(100 * grid.num_samples(least) / sample_rate) / 100
        raise UserError(
            f"A window of {num_samples / sample_rate:.4g} s gives {frames} frames. {why} {least}. Set "
            f"data.window_seconds to at least {needed:g}.",
            code="window-too-short",
        )
