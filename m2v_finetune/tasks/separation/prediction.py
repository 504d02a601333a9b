"""Predicted stems of a track, and their output formats."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from m2v_finetune.errors import UserError
from m2v_finetune.files import as_json, write_atomically
from m2v_finetune.tasks.shown import Shown

Array = NDArray[np.float32]


class Stems:
    """Stems of a track, computed while they are read, so that a track of any length fits in memory.

    They can be read once: by `chunks`, `write`, `arrays` or `render`.

    Attributes:
        names: Names of the stems.
        sample_rate: Sample rate in Hz.
        num_samples: Length of the track at that rate.
    """

    def __init__(
        self, names: Sequence[str], *, sample_rate: int, num_samples: int, chunks: Iterator[Array]
    ) -> None:
        self.names = tuple(names)
        self.sample_rate = sample_rate
        self.num_samples = num_samples
        self._chunks: Iterator[Array] | None = chunks

    def chunks(self) -> Iterator[Array]:
        """Yield the stems from start to end, (stems, channels, samples) each time.

        Raises:
            UserError: They were read before.
        """
        if self._chunks is None:
            raise UserError(
                "The stems were read before; they are computed while they are read, once. Keep what "
                "arrays() returned, or predict again.",
                code="stems-read-twice",
            )
        chunks, self._chunks = self._chunks, None
        return chunks

    def arrays(self) -> dict[str, Array]:
        """Return each stem, (channels, num_samples)."""
        joined = np.concatenate(list(self.chunks()), axis=-1)
        return dict(zip(self.names, joined, strict=True))

    def render(self, kind: str, *, path: Path, top: int, timeline: bool, is_first: bool) -> str:
        """Return the level of each stem, as human-readable text or as a line of JSON."""
        energy, count = np.zeros(len(self.names)), 0
        for chunk in self.chunks():
            energy += np.square(chunk, dtype=np.float64).sum(axis=(1, 2))
            count += chunk[0].size
        levels = [10 * math.log10(max(one / count, 1e-12)) for one in energy]
        if kind == "json":
            named = dict(zip(self.names, (round(level, 2) for level in levels), strict=True))
            return as_json({"path": str(path), "levels_db": named})
        lines = [
            f"  {level:7.1f} dB  {name}" for name, level in zip(self.names, levels, strict=True)
        ]
        return "\n".join([str(path), *lines]) + "\n"

    def show(self, path: Path) -> Shown:
        """Return the stems as sounds."""
        stems = {name: (self.sample_rate, stem.T) for name, stem in self.arrays().items()}
        return Shown(text=f"**{len(stems)} stems**", sounds=stems)

    def write(self, kind: str, destination: Path) -> None:
        """Write a folder with one WAV file a stem, in 32-bit floating point, so that nothing clips."""
        write_atomically(destination, self._write_stems)

    def _write_stems(self, folder: Path) -> None:
        folder.mkdir()
        with ExitStack() as stack:
            files: list[soundfile.SoundFile] = []
            for chunk in self.chunks():
                files = files or [
                    stack.enter_context(self._new_file(folder, name, chunk.shape[1]))
                    for name in self.names
                ]
                for file, stem in zip(files, chunk, strict=True):
                    file.write(stem.T)

    def _new_file(self, folder: Path, name: str, num_channels: int) -> soundfile.SoundFile:
        return soundfile.SoundFile(
            os.fsencode(folder / f"{name}.wav"),
            "w",
            samplerate=self.sample_rate,
            channels=num_channels,
            subtype="FLOAT",
        )
