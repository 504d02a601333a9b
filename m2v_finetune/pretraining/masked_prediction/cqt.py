"""Constant-Q transform of windows, at the centres of the encoder's frames: a target of MERT's objective."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.errors import UserError

NUM_OCTAVES, BINS_PER_OCTAVE, LOWEST_HZ = 7, 48, 32.7
NUM_BINS = NUM_OCTAVES * BINS_PER_OCTAVE
Q = 1.0 / (2.0 ** (1.0 / BINS_PER_OCTAVE) - 1.0)
"""Cycles of a kernel."""
MAX_DISTANCE = 60.0
"""Widest part of a kernel's spectrum that is kept, on each side, in units of 1 / its length.

The side lobes of a Hann window are below 1 / (pi * distance^3), so 1.5e-6 of its peak beyond it. The
result is exact to 3e-7 of the largest magnitude.
"""
FAST_FACTORS = (2, 3, 5, 7)


def cqt_frequencies() -> NDArray[np.float64]:
    """Return the centre frequencies in Hz, (NUM_BINS,)."""
    frequencies: NDArray[np.float64] = LOWEST_HZ * 2.0 ** (np.arange(NUM_BINS) / BINS_PER_OCTAVE)
    return frequencies


def cqt_kernel(frequency: float, sample_rate: int) -> tuple[NDArray[np.complex128], int]:
    """Return the kernel of a bin, and the offset of its first sample from its centre.

    A complex exponential of `Q` cycles under a periodic Hann window, with an absolute sum of the square
    root of its length.

    Source: Brown, "Calculation of a constant Q spectral transform" (1991); length, window, norm 1 and the
    square root as in nnAudio's CQT1992v2, which MERT uses.
    """
    length = int(np.ceil(Q * sample_rate / frequency))
    times = np.arange(length) + (-length // 2)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    kernel = window * np.exp(2j * np.pi * frequency * times / sample_rate)
    return kernel * (np.sqrt(length) / np.abs(kernel).sum()), -length // 2


class Cqt(nn.Module):
    """Magnitudes of the constant-Q transform at the frames of a window.

    Outside of the window the waveform counts as silence. One Fourier transform of the window is multiplied
    by the spectrum of each kernel, which is narrow; a short inverse transform gives the values at the
    frames alone. So no kernel of seconds is moved over the samples.

    Args:
        grid: Frames of the encoder.
        num_samples: Length of a window.

    Raises:
        UserError: The highest bin is above half of the sample rate.
    """

    def __init__(self, grid: FrameGrid, num_samples: int) -> None:
        super().__init__()
        highest = cqt_frequencies()[-1]
        if highest >= grid.sample_rate / 2:
            raise UserError(
                f"The CQT has bins up to {highest:.0f} Hz, and audio at {grid.sample_rate} Hz only half of "
                "its rate. Set masked_prediction.cqt_weight to 0.",
                code="cqt-above-nyquist",
            )
        self.num_frames = grid.num_frames(num_samples)
        self._stride = grid.stride_samples
        # Frames of the padded window: no kernel reaches around to its other end, and each fits in.
        longest = int(np.ceil(Q * grid.sample_rate / LOWEST_HZ))
        least = max(num_samples, longest // 2 + grid.receptive_field_samples) + longest // 2 + 1
        self._num_padded = _fast_size(-(-least // self._stride))
        self._first_blocks = []
        for octave, (spectra, first_block) in enumerate(_octave_spectra(grid, self._num_padded)):
            self._first_blocks.append(first_block)
            self.register_buffer(f"octave_{octave}", spectra, persistent=False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor) -> Tensor:
        """Return magnitudes, (batch, frames, NUM_BINS), in the precision of the waveforms.

        Args:
            waveforms: (batch, samples).
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            spectra = torch.fft.fft(waveforms, n=self._num_padded * self._stride)
            # Blocks of the spectrum fall onto each other when only every stride-th sample is kept.
            blocks = spectra.view(-1, self._stride, self._num_padded).permute(2, 1, 0)
            magnitudes = []
            for octave, first in enumerate(self._first_blocks):
                kernels = self.get_buffer(f"octave_{octave}").to(blocks.dtype)
                numbers = torch.arange(first, first + kernels.shape[2], device=blocks.device)
                folded = kernels @ blocks[:, numbers % self._stride]
                values = torch.fft.ifft(folded, dim=0)[: self.num_frames].abs()
                magnitudes.append(values / self._stride)
        return torch.cat(magnitudes, dim=1).permute(2, 0, 1)


@lru_cache(maxsize=2)
def _octave_spectra(grid: FrameGrid, num_padded: int) -> list[tuple[Tensor, int]]:
    """Return the spectra of the kernels of each octave, (num_padded, bins, blocks), and their first block.

    A block has ``num_padded`` frequencies; block 0 starts at 0 Hz, and -1 is below it.
    """
    size = num_padded * grid.stride_samples
    hz_per_block = num_padded * grid.sample_rate / size
    centre = grid.receptive_field_samples // 2
    octaves = []
    for frequencies in cqt_frequencies().reshape(NUM_OCTAVES, BINS_PER_OCTAVE):
        low, high = frequencies[0], frequencies[-1]
        first = int(np.floor((low - MAX_DISTANCE * low / Q) / hz_per_block))
        last = int(np.floor((high + MAX_DISTANCE * high / Q) / hz_per_block))
        last = min(last, first + grid.stride_samples - 1)  # the whole spectrum
        wanted = np.arange(first * num_padded, (last + 1) * num_padded) % size
        spectra = []
        for frequency in frequencies:
            kernel, start = cqt_kernel(float(frequency), grid.sample_rate)
            padded = np.zeros(size, dtype=np.complex128)
            padded[(start + centre + np.arange(len(kernel))) % size] = kernel
            spectra.append(np.fft.fft(padded)[wanted].conj())
        shape = (len(frequencies), last - first + 1, num_padded)
        of_octave = np.stack(spectra).reshape(shape).transpose(2, 0, 1)
        octaves.append((torch.from_numpy(of_octave.astype(np.complex64)), first))
    return octaves


def _fast_size(least: int) -> int:
    """Return the next number with small prime factors, for which Fourier transforms are fast."""
    while True:
        rest = least
        for factor in FAST_FACTORS:
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return least
        least += 1
