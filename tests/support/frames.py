"""The frames of a backbone, for tests that need none, and peaks of activations."""

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.decoding.peaks import find_peaks, refine_peaks, times_at

GRID = FrameGrid(sample_rate=16000, stride_samples=320, receptive_field_samples=400)
"""The grid of music2vec: 16 kHz, 50 frames a second."""


def peak_times(
    activation: NDArray[np.floating], times: NDArray[np.float64], *, threshold: float = 0.5
) -> NDArray[np.float64]:
    """The times of the local maxima of an activation, finer than its frames."""
    return times_at(refine_peaks(activation, find_peaks(activation, threshold)), times)
