"""Windows with cached features: those to compute, and those to train on."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.feature_store import FeatureStore
from m2v_finetune.data.loader import LoadWaveform, SampledWindow, TrainingWindows, Window
from m2v_finetune.data.manifest import Track

Targets = Callable[[CheckedTrack, Window, LabelTransform], NDArray[np.float32]]
"""Computes the targets of a window whose labels are transformed."""


def unique_windows(sampled_windows: Iterable[SampledWindow]) -> list[SampledWindow]:
    """Return each window once, in the order in which they first come."""
    return list({sampled.key: sampled for sampled in sampled_windows}.values())


@dataclass(frozen=True, kw_only=True)
class SampledWindows(Dataset[tuple[int, tuple[Tensor, ...]]]):
    """Windows to compute features of, each once, for a `FeatureStore`.

    Attributes:
        sampled_windows: Windows with unique keys.
        load_waveform: Function of the task that reads a window.
        rows: Indices of the sampled windows to read, in order.
    """

    sampled_windows: Sequence[SampledWindow]
    load_waveform: LoadWaveform
    rows: Sequence[int]

    @cached_property
    def tracks(self) -> list[CheckedTrack]:
        """The tracks, by the numbers of `locations`."""
        return list(
            {
                self.sampled_windows[row].checked.track.id: self.sampled_windows[row].checked
                for row in self.rows
            }.values()
        )

    @cached_property
    def locations(self) -> list[tuple[int, Window]]:
        """Number of the track, and position in it, of each window."""
        numbers = {checked.track.id: number for number, checked in enumerate(self.tracks)}
        sampled_windows = [self.sampled_windows[row] for row in self.rows]
        return [(numbers[sampled.checked.track.id], sampled.window) for sampled in sampled_windows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, ...]]:
        """Return the number of the window, its waveform, and the transform of its labels, (5,), float64."""
        sampled = self.sampled_windows[self.rows[index]]
        samples, label_transform = self.load_waveform(
            sampled.checked, sampled.window, sampled.augment
        )
        parts = (
            torch.from_numpy(samples),
            torch.tensor(astuple(label_transform), dtype=torch.float64),
        )
        return index, parts


@dataclass(frozen=True, kw_only=True)
class CachedWindows(Dataset[tuple[Tensor, ...]]):
    """Windows of the training tracks with cached features, addressed by (epoch, index).

    Attributes:
        windows: Windows of the tracks.
        store: Cache of their features.
        targets: Function for the targets of a window.
    """

    windows: TrainingWindows
    store: FeatureStore
    targets: Targets

    @property
    def seed(self) -> int:
        """Seed that decides which window replaces one that could not be read."""
        return self.windows.seed

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def item_classes(self) -> Sequence[int]:
        """Class of each item, for an order with balanced classes; empty for none."""
        return self.windows.item_classes

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        return self.windows.track_of(index, epoch)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the features of a window, (rows, feature_size), and its targets."""
        sampled = self.windows.sample(position)
        features, label_transform = self.store.read(sampled.key)
        targets = self.targets(sampled.checked, sampled.window, label_transform)
        return torch.from_numpy(features), torch.from_numpy(targets)
