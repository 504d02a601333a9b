"""Windows of tracks as tensors, in batches whose content depends on the seed and the epoch alone.

Neither the number of workers, nor the number of processes, nor how a total batch is divided between
them changes which windows an optimiser step sees.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from m2v_finetune.audio.augmentation import Augmentation
from m2v_finetune.audio.decode import read_excerpt
from m2v_finetune.audio.windows import (
    draw_generator,
    pad_to_window,
    random_window_start,
    window_starts,
)
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track

Targets = Callable[[Track], NDArray[np.float32]]


def read_window(
    checked: CheckedTrack, *, start_sample: int, window_samples: int, sample_rate: int
) -> NDArray[np.float32]:
    """Read one window of a track, padded with zeros only if the whole track is shorter.

    Returns:
        (window_samples,), mono at ``sample_rate``.

    Raises:
        AudioError: The file can no longer be read.
    """
    length = checked.audio.num_samples(sample_rate)
    samples = read_excerpt(
        checked.track.path,
        sample_rate=sample_rate,
        start_sample=start_sample,
        num_samples=min(window_samples, length - start_sample),
    )
    return samples if len(samples) == window_samples else pad_to_window(samples, window_samples)


@dataclass(frozen=True, kw_only=True)
class TrainingWindows(Dataset[tuple[Tensor, Tensor]]):
    """Random windows of the training tracks, addressed by (epoch, index).

    Attributes:
        tracks: The training tracks.
        targets: What the task wants to be predicted of a track.
        window_samples: Length of a window at `sample_rate`.
        windows_per_track: Windows of one track in an epoch.
        augmentation: Applied to each window, or None.
        seed: With epoch, track and number of the window it decides where the window lies.
    """

    tracks: Sequence[CheckedTrack]
    targets: Targets
    sample_rate: int
    window_samples: int
    windows_per_track: int
    augmentation: Augmentation | None
    seed: int

    def __len__(self) -> int:
        return len(self.tracks) * self.windows_per_track

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return waveform (window_samples,) and target of item ``index`` in ``epoch``."""
        epoch, index = place
        track_index, repeat = divmod(index, self.windows_per_track)
        checked = self.tracks[track_index]
        name = f"{checked.track.id}#{repeat}"
        start = random_window_start(
            checked.audio.num_samples(self.sample_rate),
            self.window_samples,
            seed=self.seed,
            epoch=epoch,
            track_id=name,
        )
        samples = read_window(
            checked,
            start_sample=start,
            window_samples=self.window_samples,
            sample_rate=self.sample_rate,
        )
        if self.augmentation is not None:
            generator = draw_generator(self.seed, epoch, name, "augmentation")
            samples = self.augmentation(samples, generator=generator)
        return torch.from_numpy(samples), torch.from_numpy(self.targets(checked.track))


@dataclass(kw_only=True)
class TrainingBatches:
    """The batches of one process in one epoch, as lists of (epoch, index).

    The items of an epoch are shuffled by (seed, epoch) and cut into total batches; a total batch is
    the content of one optimiser step. Within it each process takes its share, in
    ``gradient_accumulation_steps`` batches. What is left over at the end of an epoch is not used in it;
    where the items fill no total batch, they are repeated to fill one.

    Attributes:
        num_items: Items of an epoch.
        per_device_batch_size: Items of a batch.
        gradient_accumulation_steps: Batches of one process in an optimiser step.
        process_index: This process.
        num_processes: All processes.
        seed: Decides the order, with the epoch.
        epoch: The epoch to iterate over.
        first_step: Optimiser steps of that epoch that are already done (a resumed run).
    """

    num_items: int
    per_device_batch_size: int
    gradient_accumulation_steps: int
    process_index: int
    num_processes: int
    seed: int
    epoch: int = 0
    first_step: int = 0

    @property
    def total_batch_size(self) -> int:
        """Items of one optimiser step, over all processes."""
        return self.per_device_batch_size * self.gradient_accumulation_steps * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return max(1, self.num_items // self.total_batch_size)

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = draw_generator(self.seed, self.epoch, "", "order")
        order = generator.permutation(self.num_items)
        order = np.resize(order, self.steps_per_epoch * self.total_batch_size)
        steps = order.reshape(
            self.steps_per_epoch,
            self.num_processes,
            self.gradient_accumulation_steps,
            self.per_device_batch_size,
        )
        for batch in steps[self.first_step :, self.process_index].reshape(
            -1, self.per_device_batch_size
        ):
            yield [(self.epoch, int(index)) for index in batch]


class TrackWindows(Dataset[tuple[int, Tensor]]):
    """All windows of some tracks in order, for judging whole tracks.

    Attributes:
        tracks: The tracks.
        sample_rate: Of the windows, in Hz.
        window_samples: Length of a window.
        places: For each window the number of its track and its first sample. The last window of a
            track is shifted back so that it ends where the track ends.
    """

    def __init__(
        self,
        tracks: Sequence[CheckedTrack],
        *,
        sample_rate: int,
        window_samples: int,
        hop_samples: int,
    ) -> None:
        self.tracks = tracks
        self.sample_rate = sample_rate
        self.window_samples = window_samples
        self.places = [
            (number, start)
            for number, checked in enumerate(tracks)
            for start in window_starts(
                checked.audio.num_samples(sample_rate), window_samples, hop_samples
            )
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        """Return the number of the track and the waveform (window_samples,)."""
        number, start = self.places[index]
        samples = read_window(
            self.tracks[number],
            start_sample=start,
            window_samples=self.window_samples,
            sample_rate=self.sample_rate,
        )
        return number, torch.from_numpy(samples)


def training_loader(
    windows: TrainingWindows, batches: TrainingBatches, *, num_workers: int
) -> DataLoader[Any]:
    """Return batches of (waveforms (B, N), targets (B, ...)); set ``batches.epoch`` before iterating."""
    return DataLoader(
        windows,
        batch_sampler=batches,
        num_workers=num_workers,
        # A generator of its own: reading data must not move the random state of the model.
        generator=torch.Generator(),
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def track_loader(windows: TrackWindows, *, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Return batches of (track numbers (B,), waveforms (B, N)) in order."""
    return DataLoader(
        windows,
        batch_size=batch_size,
        num_workers=num_workers,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
