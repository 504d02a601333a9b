"""Melody of a track from the probabilities of its frames: voicing and pitch in bins of 20 cents.

Source: the bins, the Gaussian of the targets and the local mean of CREPE (Kim et al., "CREPE: A
Convolutional Representation for Pitch Estimation", ICASSP 2018). CREPE's outputs are independent
probabilities, whose maximum is the voicing; here voicing is an output of its own.
"""

import numpy as np
from numpy.typing import NDArray

LOWEST_BIN_HZ = 440.0 * 2 ** ((24 - 69) / 12)
"""Frequency of the first bin, C1."""

BINS_PER_OCTAVE = 60
NUM_BINS = 6 * BINS_PER_OCTAVE
"""Bins of 20 cents, from C1 (32.7 Hz) to just below C7."""

TARGET_STD_BINS = 25 / 20
"""Standard deviation of the targets around the pitch: CREPE's 25 cents."""

MEAN_BINS = 4
"""The pitch is the mean of the bins up to this many beside the maximum, by their probability."""


def decode_melody(
    voicing: NDArray[np.floating], pitches: NDArray[np.floating], *, threshold: float
) -> NDArray[np.float64]:
    """Return the frequency of the melody at each frame.

    Args:
        voicing: Probability of a melody, (frames,).
        pitches: Probability of each bin, (frames, `NUM_BINS`).
        threshold: Voicing from which there is a melody.

    Returns:
        Frequencies in Hz, (frames,): negative below the threshold, so that the pitch of these frames can be
        evaluated too.
    """
    best = pitches.argmax(axis=1)
    near = best[:, None] + np.arange(-MEAN_BINS, MEAN_BINS + 1)
    is_bin = (near >= 0) & (near < NUM_BINS)
    inside = near.clip(0, NUM_BINS - 1)
    weights = np.take_along_axis(pitches, inside, axis=1).astype(np.float64) * is_bin
    bins = (weights * inside).sum(axis=1) / weights.sum(axis=1)
    frequencies = LOWEST_BIN_HZ * 2.0 ** (bins / BINS_PER_OCTAVE)
    found: NDArray[np.float64] = np.where(voicing >= threshold, frequencies, -frequencies)
    return found
