"""Tracks, windows and scores for the tests of tasks whose answer is one for each frame."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from m2v_finetune.audio.augmentation import build_augmentation
from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.windows import window_starts
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.tasks import Task

GRIDS = {
    rate // 320: FrameGrid(sample_rate=rate, stride_samples=320, receptive_field_samples=400)
    for rate in (16000, 24000)
}


def make_track(
    folder: Path, *, name: str = "song.wav", origin: str = "songs.csv:2", **columns: Any
) -> Track:
    """Return a track of no split, which need not be there."""
    return Track(
        id=name, path=folder / name, split=None, columns=columns, origin=origin, folder=folder
    )


def checked_track(
    folder: Path,
    samples: np.ndarray,
    sample_rate: int = 16000,
    *,
    name: str = "song.wav",
    **columns: Any,
) -> CheckedTrack:
    """Write audio, (samples,) or (samples, channels), and return its track."""
    soundfile.write(folder / name, samples, sample_rate, subtype="FLOAT")
    track = make_track(folder, name=name, **columns)
    return CheckedTrack(track=track, audio=inspect_audio(track.path))


def silent_track(folder: Path, seconds: float, **columns: Any) -> CheckedTrack:
    """Write silence at 8 kHz and return its track."""
    return checked_track(folder, np.zeros(round(seconds * 8000)), 8000, **columns)


def windows_of(
    checked: CheckedTrack,
    grid: FrameGrid,
    *,
    window_seconds: float = 5.0,
    hop_seconds: float = 2.5,
) -> list[Window]:
    """The windows of a track, as a model lays them out for a task that is ``on_frames``."""
    num_samples, hop = (round(s * grid.sample_rate) for s in (window_seconds, hop_seconds))
    starts = window_starts(
        checked.audio.num_samples(grid.sample_rate), num_samples, hop, multiple_of=320
    )
    return [Window(start_sample=s, num_samples=num_samples, grid=grid) for s in starts]


def centres(window: Window) -> np.ndarray:
    """The times of a window's frames in the track, from the definition of a convolution."""
    grid = window.grid
    firsts = range(0, window.num_samples - grid.receptive_field_samples + 1, grid.stride_samples)
    middle = (grid.receptive_field_samples - 1) / 2
    return np.array([(window.start_sample + f + middle) / grid.sample_rate for f in firsts])


def with_scores(
    windows: Iterable[Window], score: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with what ``score`` makes of the times of its frames."""
    return ((window, score(centres(window)).astype(np.float32)) for window in windows)


def augment(
    task: Task, *transforms: dict[str, Any], seed: int = 0, sample_rate: int = 16000
) -> tuple[Callable[[np.ndarray], Any], list[Any]]:
    """What training does to windows with these transforms, and a list that fills with its moves."""
    augmentation = build_augmentation(
        [{"p": 1.0, **settings} for settings in transforms],
        sample_rate=sample_rate,
        allowed_effects=task.allowed_effects(),
        transformed_effects=task.transformed_effects(),
        task=task.name,
    )
    told = []

    def apply(samples: np.ndarray) -> Any:
        augmented, label_transform = augmentation(samples, generator=np.random.default_rng(seed))
        told.append(label_transform)
        return augmented, label_transform

    return apply, told
