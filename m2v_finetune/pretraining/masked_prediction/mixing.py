"""Segments of other tracks, added to the input of the network but not to its targets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Array, SampledWindow, Window, read_window


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Addition of segments of other training tracks, drawn by (seed, epoch, track).

    MERT takes the segments from the other windows of a batch. Then the input would depend on the division
    of a total batch among processes, so they are taken from tracks here.

    Attributes:
        tracks: Training tracks, at least 2.
        probability: Share of windows with segments.
        max_segments: Largest number of segments.
        min_seconds: Shortest segment.
        max_seconds: Longest segment.
        seed: Seed of all draws.

    Source: MERT (arXiv 2306.00107), section 3.3; the segments are added without a change of level, as in
    its code.
    """

    tracks: Sequence[CheckedTrack]
    probability: float
    max_segments: int
    min_seconds: float
    max_seconds: float
    seed: int

    def mix(self, waveform: Array, sampled: SampledWindow, *, epoch: int, name: str) -> Array:
        """Return a waveform with added segments, or unchanged.

        Args:
            waveform: (samples,).
            sampled: Its window.
            epoch: Epoch.
            name: Name of the window's draw, unique in an epoch.

        Raises:
            AudioError: Another track can no longer be read.
        """
        generator = draw_generator(self.seed, epoch, name, "mixing")
        if generator.random() >= self.probability:
            return waveform
        mixed = waveform.copy()
        grid = sampled.window.grid
        for _ in range(int(generator.integers(1, self.max_segments, endpoint=True))):
            other = self.tracks[int(generator.integers(len(self.tracks) - 1))]
            if other.track.id == sampled.checked.track.id:
                other = self.tracks[-1]
            seconds = generator.uniform(self.min_seconds, self.max_seconds)
            length = other.audio.num_samples(grid.sample_rate)
            num_samples = min(round(seconds * grid.sample_rate), length, len(mixed))
            start = int(generator.integers(0, length - num_samples, endpoint=True))
            place = int(generator.integers(0, len(mixed) - num_samples, endpoint=True))
            segment = Window(start_sample=start, num_samples=num_samples, grid=grid)
            mixed[place : place + num_samples] += read_window(other, segment)
        return np.ascontiguousarray(mixed)
