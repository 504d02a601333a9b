"""Windows of tracks as tensors, in batches that depend only on the seed and the epoch.

Neither the number of workers, nor the number of processes, nor how a total batch is divided between
them changes which windows an optimizer step sees.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from m2v_finetune.audio.augmentation import Augmentation
from m2v_finetune.audio.decode import read_excerpt
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.audio.windows import (
    draw_generator,
    pad_to_window,
    random_window_start,
    window_starts,
)
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.mixup import Mixup
from m2v_finetune.data.sampling import balanced_order

Array = NDArray[np.float32]
Augment = Callable[[Array], tuple[Array, LabelTransform]]
"""Augments waveforms, and returns the transform of the labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Segment of a track, the input of a model.

    Attributes:
        start_sample: Start in the track, at the rate of the grid.
        num_samples: Length.
        grid: Sample rate, and positions of the frames of a window.
    """

    start_sample: int
    num_samples: int
    grid: FrameGrid

    @property
    def start_seconds(self) -> float:
        """Start in the track."""
        return self.start_sample / self.grid.sample_rate

    @property
    def duration_seconds(self) -> float:
        """Length."""
        return self.num_samples / self.grid.sample_rate

    @property
    def frame_times_seconds(self) -> NDArray[np.float64]:
        """Centres of its frames, (frames,), from the start of the window."""
        return self.grid.times(self.grid.num_frames(self.num_samples))


def read_window(checked: CheckedTrack, window: Window) -> Array:
    """Read one window of a track, padded with zeros only if the complete track is shorter.

    It is read from the track's resampled copy, where there is one at the rate of the window's grid.

    Returns:
        (num_samples,), mono at the rate of the window's grid.

    Raises:
        AudioError: The file can no longer be read.
    """
    length = checked.audio.num_samples(window.grid.sample_rate)
    num_samples = min(window.num_samples, length - window.start_sample)
    resampled = checked.resampled
    if resampled is not None and resampled.sample_rate == window.grid.sample_rate:
        samples = resampled.read_excerpt(start_sample=window.start_sample, num_samples=num_samples)
    else:
        samples = read_excerpt(
            checked.track.path,
            sample_rate=window.grid.sample_rate,
            start_sample=window.start_sample,
            num_samples=num_samples,
        )
    if len(samples) == window.num_samples:
        return samples
    return pad_to_window(samples, window.num_samples)


def load_waveform(
    checked: CheckedTrack, window: Window, augment: Augment | None
) -> tuple[Array, LabelTransform]:
    """Read one window of a track and augment it.

    Returns:
        The waveform, as `read_window` returns it, and the transform of the labels.

    Raises:
        AudioError: The file can no longer be read.
    """
    samples = read_window(checked, window)
    return (samples, IDENTITY) if augment is None else augment(samples)


Example = Callable[[CheckedTrack, Window, Augment | None], tuple[Array, ...]]
"""Reads a window of a training track: the inputs of the model, and last its targets."""
LoadWaveform = Callable[[CheckedTrack, Window, Augment | None], tuple[Array, LabelTransform]]
"""Reads the waveform of a window of a training track, and the transform of its labels."""
Inputs = Callable[[CheckedTrack, Window], tuple[Array, ...]]
"""Reads a window of a track: the inputs of the model."""


VARIANTS_SEED = 0
"""Seed of windows and augmentation that are drawn a limited number of times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledWindow:
    """Window of a training track, with its augmentation.

    Attributes:
        checked: Track.
        window: Position in the track.
        augment: Augmentation of its waveform, or None.
        variant: Name of the augmentation draw; empty without.
    """

    checked: CheckedTrack
    window: Window
    augment: Augment | None
    variant: str

    @property
    def key(self) -> tuple[str, int, str]:
        """Unique key in a data set."""
        return self.checked.track.id, self.window.start_sample, self.variant


@dataclass(frozen=True, kw_only=True)
class TrainingWindows(Dataset[tuple[Tensor, ...]]):
    """Random windows of the training tracks, addressed by (epoch, index).

    Attributes:
        tracks: Training tracks.
        example: Function of the task that reads a window.
        grid: Sample rate, and positions of the frames of a window.
        window_samples: Length of a window.
        windows_per_track: Windows of one track in an epoch.
        augmentation: Applied to each window, or None.
        seed: Seed that, with epoch, track and number of the window, decides its position.
        num_variants: Number of different windows of a track, with their augmentation, in all epochs; they
            take turns. They are the same for every seed, so that runs can share their cached features.
            Each window is drawn anew, by the seed, if None.
        multiple_of: Number of samples of which every start is a multiple, such as the stride of frames.
        mixup: Mixing of windows, or None.
        track_classes: Class of each track, for an order with balanced classes; empty for none.
    """

    tracks: Sequence[CheckedTrack]
    example: Example
    grid: FrameGrid
    window_samples: int
    windows_per_track: int
    augmentation: Augmentation | None
    seed: int
    num_variants: int | None = None
    multiple_of: int = 1
    mixup: Mixup | None = None
    track_classes: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.tracks) * self.windows_per_track

    @property
    def item_classes(self) -> Sequence[int]:
        """Class of each item, for an order with balanced classes; empty for none."""
        return [number for number in self.track_classes for _ in range(self.windows_per_track)]

    @property
    def is_random(self) -> bool:
        """True if an epoch can differ from another."""
        return self.augmentation is not None or any(
            checked.audio.num_samples(self.grid.sample_rate) > self.window_samples
            for checked in self.tracks
        )

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        return self.tracks[index // self.windows_per_track].track

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the tensors of item ``index`` in ``epoch``, mixed if set; the last one is the target."""
        if self.mixup is None:
            return self.read(position)
        return self.mixup(position, num_items=len(self), read=self.read, track_of=self.track_of)

    def read(self, position: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the tensors of an item, unmixed."""
        sampled = self.sample(position)
        parts = self.example(sampled.checked, sampled.window, sampled.augment)
        return tuple(torch.from_numpy(part) for part in parts)

    def sample(self, position: tuple[int, int]) -> "SampledWindow":
        """Return the window of item ``index`` in ``epoch``; nothing is read."""
        epoch, index = position
        seed = self.seed
        track_index, repeat = divmod(index, self.windows_per_track)
        if self.num_variants is not None:
            epoch = (epoch * self.windows_per_track + repeat) % self.num_variants
            seed, repeat = VARIANTS_SEED, 0
        checked = self.tracks[track_index]
        name = f"{checked.track.id}#{repeat}"
        start = random_window_start(
            checked.audio.num_samples(self.grid.sample_rate),
            self.window_samples,
            seed=seed,
            epoch=epoch,
            track_id=name,
        )
        start -= start % self.multiple_of
        augment: Augment | None = None
        if self.augmentation is not None:
            generator = draw_generator(seed, epoch, name, "augmentation")
            augment = partial(self.augmentation, generator=generator)
        window = Window(start_sample=start, num_samples=self.window_samples, grid=self.grid)
        variant = "" if augment is None else f"{epoch}, {repeat}"
        return SampledWindow(checked=checked, window=window, augment=augment, variant=variant)


@dataclass(kw_only=True)
class TrainingBatches:
    """Batches of one process in one epoch, as lists of (epoch, index).

    The items of an epoch are shuffled by (seed, epoch) and cut into total batches; a total batch is
    the content of one optimizer step. Within it each process takes its share, in
    ``gradient_accumulation_steps`` batches. The rest at the end of an epoch is not used in it;
    if the items do not fill a total batch, they are repeated to fill one.

    Attributes:
        num_items: Items of an epoch.
        per_device_batch_size: Items of a batch.
        gradient_accumulation_steps: Batches of one process in an optimizer step.
        process_index: This process.
        num_processes: All processes.
        seed: Decides the order, with the epoch.
        epoch: Epoch to iterate over.
        first_step: Optimizer steps of that epoch that are already done (a resumed run).
        item_classes: Class of each item, each then equally often in an epoch; empty for each item once.
    """

    num_items: int
    per_device_batch_size: int
    gradient_accumulation_steps: int
    process_index: int
    num_processes: int
    seed: int
    epoch: int = 0
    first_step: int = 0
    item_classes: Sequence[int] = ()

    @property
    def total_batch_size(self) -> int:
        """Items of one optimizer step, over all processes."""
        return self.per_device_batch_size * self.gradient_accumulation_steps * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return max(1, self.num_items // self.total_batch_size)

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.gradient_accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = draw_generator(self.seed, self.epoch, "", "order")
        order = (
            balanced_order(self.item_classes, generator)
            if self.item_classes
            else generator.permutation(self.num_items)
        )
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


class TrackWindows(Dataset[tuple[int, tuple[Tensor, ...]]]):
    """All windows of some tracks in order, for the evaluation of complete tracks.

    Attributes:
        tracks: Tracks.
        inputs: Function of the task that reads a window.
        locations: Number of the track, and position in it, of each window. The last window of a track is
            shifted back so that it ends where the track ends.
    """

    def __init__(
        self,
        tracks: Sequence[CheckedTrack],
        *,
        inputs: Inputs,
        grid: FrameGrid,
        window_samples: int,
        hop_samples: int,
        on_frames: bool,
    ) -> None:
        """Lay out the windows.

        Args:
            tracks: Tracks.
            inputs: Function of the task that reads a window.
            grid: Sample rate, and positions of the frames of a window.
            window_samples: Length of a window.
            hop_samples: Distance of windows.
            on_frames: Start windows at frames of one grid over the complete track.
        """
        self.tracks = tracks
        self.inputs = inputs
        self.locations = [
            (number, Window(start_sample=start, num_samples=window_samples, grid=grid))
            for number, checked in enumerate(tracks)
            for start in window_starts(
                checked.audio.num_samples(grid.sample_rate),
                window_samples,
                hop_samples,
                multiple_of=grid.stride_samples if on_frames else 1,
            )
        ]

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, ...]]:
        """Return the number of the window, and the inputs of the model."""
        number, window = self.locations[index]
        parts = self.inputs(self.tracks[number], window)
        return index, tuple(torch.from_numpy(part) for part in parts)
