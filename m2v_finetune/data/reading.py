"""Windows read for a model, in this process or in workers, with the errors of unreadable files.

A file that fails is read again after a pause, as network drives fail for moments. If it fails again, the
problem is returned beside the batch, not raised, and the run acts on it. `workers` has the errors of workers
that die.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.mixup import PartnerError
from m2v_finetune.data.workers import WorkerStatus
from m2v_finetune.errors import AudioError, NotCachedError, UserError

# Pauses before a file is tried again.
RETRY_PAUSES_SECONDS = (0.2, 1.0)
# Number of other items that are tried instead of an unreadable one.
MAX_REPLACEMENTS = 16
Read = TypeVar("Read")


class Windows(Protocol):
    """Random windows, addressed by (epoch, index)."""

    @property
    def seed(self) -> int:
        """Seed that decides which window replaces one that cannot be read."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]: ...

    def track_of(self, index: int, epoch: int) -> Track:
        """Return the track of an item in an epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class BatchInfo:
    """Tracks and read errors of the items of a batch.

    Attributes:
        track_ids: Track of each window.
        bad_tracks: Errors of the tracks that could not be read, by id; other windows replaced them.
    """

    track_ids: list[str]
    bad_tracks: dict[str, str]


class ReadableWindows(Dataset[tuple[Any, ...]]):
    """Windows for training; another window replaces one that cannot be read.

    Which one is drawn from (seed, epoch, index), so that it depends on which files can be read alone.

    Attributes:
        windows: Windows to read.
        worker_status: Item that each worker reads.
    """

    def __init__(self, windows: Windows, *, num_workers: int) -> None:
        self.windows = windows
        self.worker_status = WorkerStatus(num_workers)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Any, ...]:
        """Return the tensors of an item and, last, its `BatchInfo`; only this where nothing could be read."""
        epoch, index = position
        bad_tracks: dict[str, str] = {}
        for candidate in self._candidates(epoch, index):
            track = self.windows.track_of(candidate, epoch)
            if track.id in bad_tracks:
                continue
            self.worker_status.write(epoch * len(self.windows) + candidate)
            try:
                tensors = _with_retries(lambda: self.windows[epoch, candidate])  # noqa: B023
                return *tensors, BatchInfo(track_ids=[track.id], bad_tracks=bad_tracks)
            except (UserError, OSError) as error:
                bad = error.track if isinstance(error, PartnerError) else track
                bad_tracks[bad.id] = f"{bad.origin}: {error}"
            finally:
                self.worker_status.write(-1)
        return (BatchInfo(track_ids=[], bad_tracks=bad_tracks),)

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        generator = draw_generator(self.windows.seed, epoch, str(index), "replacement")
        yield from map(int, generator.permutation(len(self.windows))[:MAX_REPLACEMENTS])

    def origins(self, items: Sequence[int]) -> list[str]:
        """Return the tracks of items, numbered over all epochs, for messages."""
        positions = [divmod(item, len(self.windows)) for item in items]
        return [_named(self.windows.track_of(index, epoch)) for epoch, index in positions]


class OrderedWindows(Protocol):
    """Windows of tracks in order, addressed by number."""

    @property
    def tracks(self) -> Sequence[CheckedTrack]:
        """Tracks."""
        ...

    @property
    def locations(self) -> Sequence[tuple[int, Window]]:
        """Number of the track, and position in it, of each window."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[int, tuple[Tensor, ...]]: ...


class ReadableTracks(Dataset[tuple[int, Any, AudioError | None]]):
    """Windows of tracks in order, each with the error if it could not be read.

    Attributes:
        windows: Windows to read.
        worker_status: Item that each worker reads.
    """

    def __init__(self, windows: OrderedWindows, *, num_workers: int) -> None:
        self.windows = windows
        self.worker_status = WorkerStatus(num_workers)
        self._bad: dict[int, AudioError] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[int, Any, AudioError | None]:
        """Return the number of the window, the inputs of the model, and the error, if any."""
        number, _ = self.windows.locations[index]
        if number not in self._bad:
            self.worker_status.write(index)
            try:
                return *_with_retries(lambda: self.windows[index]), None
            except (UserError, OSError) as error:
                origin = self.windows.tracks[number].track.origin
                code = error.code if isinstance(error, UserError) else None
                self._bad[number] = AudioError(f"{origin}: {error}", code=code)
            finally:
                self.worker_status.write(-1)
        return index, None, self._bad[number]

    def origins(self, items: Sequence[int]) -> list[str]:
        """Return the tracks of windows, for messages."""
        numbers = [self.windows.locations[item][0] for item in items]
        return [_named(self.windows.tracks[number].track) for number in numbers]


def training_loader(
    windows: Windows,
    batches: Sampler[list[tuple[int, int]]] | Any,
    *,
    num_workers: int,
    timeout_seconds: float = 0,
    is_persistent: bool = True,
) -> DataLoader[Any]:
    """Return batches of model inputs, targets and `BatchInfo`, to be read by `workers.read_batches`.

    Args:
        windows: Windows to read.
        batches: Lists of (epoch, index); set ``batches.epoch`` before iterating.
        num_workers: Number of processes that read; with 0 this one does.
        timeout_seconds: Longest time that a worker may take for a batch; 0 for no limit.
        is_persistent: Keep workers from epoch to epoch.
    """
    return DataLoader(
        ReadableWindows(windows, num_workers=num_workers),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate_windows,
        timeout=timeout_seconds if num_workers else 0,
        # A generator of its own: reading data must not move the random state of the model.
        generator=torch.Generator(),
        persistent_workers=is_persistent and num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def track_loader(
    windows: OrderedWindows, *, batch_size: int, num_workers: int, timeout_seconds: float = 0
) -> DataLoader[Any]:
    """Return batches of windows in order, to be read by `workers.read_batches`.

    Each is a triple: numbers of windows (B,), the inputs of the model, and a dict of the windows that
    could not be read, with the errors; the first two are of the other windows.
    """
    return DataLoader(
        ReadableTracks(windows, num_workers=num_workers),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate_tracks,
        timeout=timeout_seconds if num_workers else 0,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def _with_retries(read: Callable[[], Read]) -> Read:
    """Read, with retries after pauses."""
    for pause_seconds in RETRY_PAUSES_SECONDS:
        try:
            return read()
        except NotCachedError:
            break  # it was tried again when it was to be stored
        except (UserError, OSError):
            time.sleep(pause_seconds)
    return read()


def _collate_windows(items: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    info = BatchInfo(
        track_ids=[name for item in items for name in item[-1].track_ids],
        bad_tracks={name: why for item in items for name, why in item[-1].bad_tracks.items()},
    )
    if any(len(item) == 1 for item in items):
        return (info,)
    return *default_collate([item[:-1] for item in items]), info


def _collate_tracks(
    items: Sequence[tuple[int, Any, AudioError | None]],
) -> tuple[Tensor, list[Tensor], dict[int, AudioError]]:
    read = [(index, parts) for index, parts, problem in items if problem is None]
    bad = {index: problem for index, _, problem in items if problem is not None}
    if not read:
        return torch.empty(0, dtype=torch.int64), [], bad
    indices, parts = default_collate(read)
    return indices, parts, bad


def _named(track: Track) -> str:
    return f"{track.origin} ({track.path})"
