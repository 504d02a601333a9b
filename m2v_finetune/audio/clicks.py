"""Clicks in a recording, so that one can hear where beats are."""

import numpy as np
from numpy.typing import NDArray

CLICK_HZ, ACCENT_HZ = 1000.0, 1600.0
CLICK_SECONDS = 0.04
DECAY_SECONDS = 0.01
CLICK_PEAK = 0.6
# The recording becomes quieter, so that clicks are heard and the sum stays within full scale.
RECORDING_PEAK = 1.0 - CLICK_PEAK


def add_clicks(
    samples: NDArray[np.float32],
    sample_rate: int,
    times_seconds: NDArray[np.float64],
    is_accent: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Return a recording with a decaying tone at each time.

    Args:
        samples: (samples,), of any level.
        sample_rate: Sample rate in Hz.
        times_seconds: (clicks,), the starts of the clicks.
        is_accent: (clicks,), whether a click has the higher tone.

    Returns:
        (samples,), within [-1, 1] where clicks do not overlap.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    mixed = samples * np.float32(RECORDING_PEAK / max(peak, 1e-9))
    times = np.arange(round(CLICK_SECONDS * sample_rate)) / sample_rate
    decay = CLICK_PEAK * np.exp(-times / DECAY_SECONDS)
    for start_seconds, accent in zip(times_seconds, is_accent, strict=True):
        start = round(start_seconds * sample_rate)
        tone = decay * np.sin(2 * np.pi * (ACCENT_HZ if accent else CLICK_HZ) * times)
        room = mixed[start : start + len(tone)]
        room += tone[: len(room)].astype(np.float32)
    return mixed
