"""Several sounds in one file, read as one."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from m2v_finetune.audio.containers.source import Part, truncated
from m2v_finetune.audio.sounds.libsndfile import LibsndfileSound
from m2v_finetune.audio.sounds.sound import Frames
from m2v_finetune.errors import AudioError


class JoinedSound:
    """Several sounds as one; one of them is open at a time.

    Args:
        path: File.
        parts: Parts of the file.

    Raises:
        AudioError: A part cannot be decoded, or has another rate or other channels than the first.
    """

    is_downmixed = False

    def __init__(self, path: Path, parts: Sequence[Part]) -> None:
        self.path, self.parts = path, parts
        self._open = LibsndfileSound(path, parts[0])
        self._number = 0
        self.sample_rate, self.num_channels = self._open.sample_rate, self._open.num_channels
        lengths = []
        for number in range(len(parts)):
            one = self._part(number)
            if (one.sample_rate, one.num_channels) != (self.sample_rate, self.num_channels):
                one.close()
                raise AudioError(
                    f"{path}: {len(parts)} files joined in one: the first has {self.sample_rate} Hz and "
                    f"{self.num_channels} channels, number {number + 1} has {one.sample_rate} Hz and "
                    f"{one.num_channels}. Write it again with one rate: ffmpeg -i FILE NEW.flac",
                    code="audio-joined-files",
                )
            lengths.append(one.num_frames)
        self._starts = [0, *accumulate(lengths)]
        self.num_frames = self._starts[-1]

    def _part(self, number: int) -> LibsndfileSound:
        """Open a part, unless it is open."""
        if number != self._number:
            self._open.close()
            self._open, self._number = LibsndfileSound(self.path, self.parts[number]), number
        return self._open

    def read(self, start: int, stop: int) -> Frames:
        """Read frames start to stop, (frames, channels); fewer where a part ends early."""
        pieces = [np.empty((0, self.num_channels), np.float32)]
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = self._starts[number : number + 2]
            chunk = self._part(number).read(start - first, min(stop, end) - first)
            pieces.append(chunk)
            if len(chunk) < min(stop, end) - start:
                break
            start, number = end, number + 1
        return np.concatenate(pieces)

    def read_tail(self) -> tuple[int, Frames]:
        """Return the length and the last frames; raise if a part is shorter or longer than stated."""
        for number, (start, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            found, tail = self._part(number).read_tail()
            if found < stop - start:
                raise truncated(
                    self.path,
                    f"file {number + 1} of {len(self.parts)} joined in it promises "
                    f"{(stop - start) / self.sample_rate:.2f} s, and {found / self.sample_rate:.2f} s can be "
                    "decoded",
                )
        return self.num_frames, tail

    def close(self) -> None:
        """Close the file."""
        self._open.close()
