"""Log-mel and chroma of frames, from which labels are clustered; equal to librosa's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.frames import FrameGrid

FeatureName = Literal["log_mel", "chroma"]
Matrix = NDArray[np.float64]

MEL_FFT, NUM_MELS, MEL_LOWEST_HZ = 2048, 229, 30.0
CHROMA_FFT, NUM_CHROMA = 4096, 264
DB_FLOOR = 1e-10
"""Least power, -100 dB."""
TUNING_HZ = 440.0
# The mel scale of Slaney's Auditory Toolbox (1998): linear up to 1 kHz, then logarithmic.
HZ_PER_MEL, BREAK_HZ, LOG_STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0
# Weights of octaves in chroma, as librosa's defaults: a Gaussian around octave 5 of 2 octaves.
CHROMA_CENTRE, CHROMA_WIDTH = 5.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Feature of the spectrum of a frame.

    Attributes:
        fft_samples: Length of the frame.
        num_dims: Size of the feature.
        of_power: Function of power spectra (frames, fft_samples // 2 + 1) and the sample rate that returns
            features (frames, num_dims).
    """

    fft_samples: int
    num_dims: int
    of_power: Callable[[Tensor, int], Tensor]


def frame_features(samples: Tensor, grid: FrameGrid, feature: Feature) -> Tensor:
    """Return a feature of every frame inside the samples, (frames, num_dims).

    The first frame starts at the first sample, and frames are ``grid.stride_samples`` apart. A frame is
    weighted by a periodic Hann window.

    Args:
        samples: Waveform, (samples,).
        grid: Sample rate and stride.
        feature: Feature.
    """
    frames = samples.unfold(0, feature.fft_samples, grid.stride_samples)
    window = torch.hann_window(feature.fft_samples, dtype=samples.dtype)
    power = torch.fft.rfft(frames * window).abs().square()
    return feature.of_power(power, grid.sample_rate)


def first_sample(grid: FrameGrid, frame: int, fft_samples: int) -> int:
    """Return the first sample of the spectrum's frame whose centre is that of the encoder's frame.

    A periodic Hann window of even length has its centre at a sample, and an even receptive field between
    two: then they differ by half a sample.
    """
    return frame * grid.stride_samples + grid.receptive_field_samples // 2 - fft_samples // 2


def log_mel(power: Tensor, sample_rate: int) -> Tensor:
    """Return the power in `NUM_MELS` mel bands, in dB, (frames, NUM_MELS)."""
    filters = torch.from_numpy(mel_filters(sample_rate)).to(power)
    return 10.0 * torch.log10((power @ filters.T).clamp(min=DB_FLOOR))


def chroma(power: Tensor, sample_rate: int) -> Tensor:
    """Return the power in `NUM_CHROMA` pitch classes, 22 a semitone, with a maximum of 1 in each frame."""
    classes = power @ torch.from_numpy(chroma_filters(sample_rate)).to(power).T
    tiny = torch.finfo(power.dtype).tiny
    peak = classes.amax(dim=1, keepdim=True)
    return classes / torch.where(peak < tiny, torch.ones_like(peak), peak)


FEATURES: Mapping[FeatureName, Feature] = {
    "log_mel": Feature(fft_samples=MEL_FFT, num_dims=NUM_MELS, of_power=log_mel),
    "chroma": Feature(fft_samples=CHROMA_FFT, num_dims=NUM_CHROMA, of_power=chroma),
}


@lru_cache(maxsize=4)
def mel_filters(sample_rate: int) -> Matrix:
    """Return triangular filters of unit area, (NUM_MELS, MEL_FFT // 2 + 1), from `MEL_LOWEST_HZ` up.

    Source: Slaney, Auditory Toolbox (1998); librosa.filters.mel has the same defaults.
    """
    log_start = BREAK_HZ / HZ_PER_MEL

    def to_mel(hz: float) -> float:
        linear = hz / HZ_PER_MEL
        return float(log_start + np.log(hz / BREAK_HZ) / LOG_STEP) if hz > BREAK_HZ else linear

    mels = np.linspace(to_mel(MEL_LOWEST_HZ), to_mel(sample_rate / 2), NUM_MELS + 2)
    logarithmic = BREAK_HZ * np.exp(LOG_STEP * (mels - log_start))
    edges = np.where(mels > log_start, logarithmic, mels * HZ_PER_MEL)
    bins = np.fft.rfftfreq(MEL_FFT, 1 / sample_rate)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters: Matrix = np.maximum(triangles, 0.0) * (2.0 / (high - low))
    return filters


@lru_cache(maxsize=4)
def chroma_filters(sample_rate: int) -> Matrix:
    """Return Gaussian filters of pitch classes from C up, (NUM_CHROMA, CHROMA_FFT // 2 + 1), at A = 440 Hz.

    Each bin of the spectrum is spread over classes by its own width, with unit norm, and weighted by its
    octave.

    Source: Ellis, "Chroma feature analysis and synthesis" (2007); librosa.filters.chroma has the same
    defaults, for 12 classes.
    """
    bins = np.fft.rfftfreq(2 * CHROMA_FFT, 0.5 / sample_rate)[1:]  # up to the sample rate
    positions = NUM_CHROMA * np.log2(bins / (TUNING_HZ / 16))
    positions = np.concatenate([[positions[0] - 1.5 * NUM_CHROMA], positions])
    widths = np.concatenate([np.maximum(np.diff(positions), 1.0), [1.0]])
    half = NUM_CHROMA / 2
    distances = positions - np.arange(NUM_CHROMA)[:, None]
    distances = np.remainder(distances + half, NUM_CHROMA) - half
    spread = np.exp(-2.0 * (distances / widths) ** 2)
    spread /= np.linalg.norm(spread, axis=0)
    octaves = (positions / NUM_CHROMA - CHROMA_CENTRE) / CHROMA_WIDTH
    filters = np.roll(spread * np.exp(-0.5 * octaves**2), -3 * NUM_CHROMA // 12, axis=0)
    return np.ascontiguousarray(filters[:, : CHROMA_FFT // 2 + 1])
