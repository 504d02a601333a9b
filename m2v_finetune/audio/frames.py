"""When the frames of a backbone are: the exact times of their centres."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FrameGrid:
    """Frames of a stack of strided convolutions.

    Frame j of a window sees the samples ``stride_samples * j`` to ``stride_samples * j +
    receptive_field_samples - 1`` of it. Its time is the centre of those, which is half a sample
    beside a sample where the receptive field is even.

    >>> grid = FrameGrid(sample_rate=16000, stride_samples=320, receptive_field_samples=400)
    >>> grid.frame_rate, grid.num_frames(16000)
    (Fraction(50, 1), 49)
    >>> grid.first_centre_seconds
    Fraction(399, 32000)
    >>> grid.times(2).tolist()
    [0.01246875, 0.03246875]

    Attributes:
        sample_rate: Sample rate of the audio, in Hz.
        stride_samples: Distance between frames, at least 1.
        receptive_field_samples: Receptive field of a frame, at least 1.
    """

    sample_rate: int
    stride_samples: int
    receptive_field_samples: int

    @classmethod
    def from_convolutions(
        cls, *, sample_rate: int, kernels: Sequence[int], strides: Sequence[int]
    ) -> "FrameGrid":
        """Return the grid of unpadded convolutions, one after the other.

        Args:
            sample_rate: Sample rate of the audio, in Hz.
            kernels: Kernel size of each layer, in steps of its input.
            strides: Stride of each layer, in steps of its input; as many as kernels.

        Source: Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks",
        Distill 2019.
        """
        stride_samples = receptive_field_samples = 1
        for kernel, stride in zip(kernels, strides, strict=True):
            receptive_field_samples += (kernel - 1) * stride_samples
            stride_samples *= stride
        return cls(
            sample_rate=sample_rate,
            stride_samples=stride_samples,
            receptive_field_samples=receptive_field_samples,
        )

    @property
    def frame_rate(self) -> Fraction:
        """Frames a second, exact."""
        return Fraction(self.sample_rate, self.stride_samples)

    @property
    def first_centre_seconds(self) -> Fraction:
        """Centre of frame 0 in seconds from the start of a window, exact."""
        return Fraction(self.receptive_field_samples - 1, 2 * self.sample_rate)

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames that ``num_samples`` samples give; 0 if there are too few."""
        return max(0, (num_samples - self.receptive_field_samples) // self.stride_samples + 1)

    def num_samples(self, num_frames: int) -> int:
        """Return the least number of samples that give ``num_frames`` frames, at least 1."""
        return self.receptive_field_samples + (num_frames - 1) * self.stride_samples

    def times(self, num_frames: int, start_sample: int = 0) -> NDArray[np.float64]:
        """Return the times of the first frames of a window.

        Args:
            num_frames: Number of frames.
            start_sample: Start of the window in the track, in samples at `sample_rate`.

        Returns:
            Centres in seconds from the start of the track, shape (num_frames,).
        """
        # Half samples keep every position an exact integer up to the one division.
        first = 2 * start_sample + self.receptive_field_samples - 1
        half_samples = first + 2 * self.stride_samples * np.arange(num_frames)
        return half_samples / (2 * self.sample_rate)
