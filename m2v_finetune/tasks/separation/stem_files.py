"""Audio files of mixtures and their stems: checked, and read by position."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.decode import AudioInfo, inspect_audio, read_channels
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.folders import AUDIO_SUFFIXES
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.paths import path_problem
from m2v_finetune.data.values import is_missing
from m2v_finetune.errors import AudioError
from m2v_finetune.path_hints import did_you_mean

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class StemFiles:
    """Mixtures and their stems, read at one sample rate with one number of channels.

    Attributes:
        stems: Names of the stems; a track's folder of stems has an audio file of each.
        label_column: Column of the manifest with the path of that folder.
        sample_rate: Sample rate in Hz; files of another rate are resampled.
        num_channels: Number of channels; files are mixed down, or one channel is repeated.
    """

    stems: tuple[str, ...]
    label_column: str
    sample_rate: int
    num_channels: int

    def problems(self, track: Track) -> list[str]:
        """Return the problems of a track: every stem that is missing, unreadable, or of another length."""
        named = track.columns.get(self.label_column)
        if not isinstance(named, str) or is_missing(named):
            return [f"{track.origin}: no folder of stems in the column, but {named!r}"]
        if outside := path_problem(named, track.folder, track.path_rule):
            return [f"{track.origin}: {outside}"]
        folder = track.folder / named
        if not os.path.isdir(folder):  # noqa: PTH112 (false for names that are too long, too)
            hint = did_you_mean(folder.absolute())
            return [f"{track.origin}: there is no folder of stems at {named!r}.{hint}"]
        try:
            mixture = inspect_audio(track.path)
        except AudioError:
            return []  # the check of the tracks' own files lists it, or skips the track
        problems = self._channel_problems(track, track.path, mixture)
        for stem in self.stems:
            path = stem_path(folder, stem)
            if path is None:
                hint = did_you_mean((folder / f"{stem}.wav").absolute())
                problems.append(f"{track.origin}: {folder} has no stem '{stem}'.{hint}")
                continue
            try:
                audio = inspect_audio(path)
            except AudioError as error:
                problems.append(f"{track.origin}: {error}")
                continue
            if audio.num_samples(self.sample_rate) != mixture.num_samples(self.sample_rate):
                problems.append(
                    f"{track.origin}: {path} lasts {audio.duration_seconds:.4f} s, its mixture "
                    f"{mixture.duration_seconds:.4f} s"
                )
            problems += self._channel_problems(track, path, audio)
        return problems

    def paths(self, checked: CheckedTrack) -> list[Path]:
        """Return the files of the stems of a track that was checked."""
        folder = checked.track.folder / str(checked.track.columns[self.label_column])
        return [path for stem in self.stems if (path := stem_path(folder, stem)) is not None]

    def read_window(self, checked: CheckedTrack, path: Path, window: Window) -> Array:
        """Read a window of a track's mixture or stem, padded with zeros after its end."""
        start = self.start_sample(window)
        stop = min(start + self.num_samples(window), checked.audio.num_samples(self.sample_rate))
        samples = self.read(path, start, stop)
        return np.pad(samples, ((0, 0), (0, self.num_samples(window) - samples.shape[-1])))

    def read(self, path: Path, start: int, stop: int) -> Array:
        """Read samples of a file at `sample_rate`, (channels, stop - start)."""
        return read_channels(
            path,
            sample_rate=self.sample_rate,
            start_sample=start,
            num_samples=stop - start,
            num_channels=self.num_channels,
        )

    def num_samples(self, window: Window) -> int:
        """Return the length of a window at `sample_rate`.

        It has a few samples more than the window lasts. Starts of windows and lengths of tracks are
        rounded at either rate, but windows must still touch and the last one must reach the end.
        """
        rate = window.grid.sample_rate
        return -(-window.num_samples * self.sample_rate // rate) - (-self.sample_rate // rate) + 1

    def start_sample(self, window: Window) -> int:
        """Return the first sample of a window at `sample_rate`."""
        return window.start_sample * self.sample_rate // window.grid.sample_rate

    def _channel_problems(self, track: Track, path: Path, audio: AudioInfo) -> list[str]:
        if self.num_channels == 1 or audio.num_channels in (1, self.num_channels):
            return []
        return [
            f"{track.origin}: {path} has {audio.num_channels} channels, where 1 or {self.num_channels} are "
            "expected (task.num_channels)"
        ]


def stem_path(folder: Path, stem: str) -> Path | None:
    """Return the audio file of a stem in a folder, whatever its suffix; None where there is none."""
    found = (folder / f"{stem}{suffix}" for suffix in sorted(AUDIO_SUFFIXES))
    return next((path for path in found if path.is_file()), None)
