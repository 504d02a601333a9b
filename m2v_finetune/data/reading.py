"""Workers that read windows, with handling of unreadable files and dead workers.

A file that fails is read again after a pause, as network drives fail for moments. If it fails again, the
problem is returned beside the batch, not raised, and the run acts on it. A worker that dies or hangs is a
`WorkerError` with the track that it was reading, and is noticed while batches are read, never in the
middle of a step.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.errors import AudioError, NotCachedError, UserError

# Pauses before a file is tried again.
RETRY_PAUSES_SECONDS = (0.2, 1.0)
# Number of other items that are tried instead of an unreadable one.
MAX_REPLACEMENTS = 16
# Time for the operating system to report a worker with a broken connection.
HANDOVER_SECONDS = 5.0

Read = TypeVar("Read")


class WorkerError(UserError):
    """Worker that reads audio died, or returned no batch before the timeout."""

    code = "worker-died"


class Windows(Protocol):
    """Random windows, addressed by (epoch, index)."""

    @property
    def seed(self) -> int:
        """Seed that decides which window replaces one that cannot be read."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, ...]: ...

    def track_of(self, index: int) -> Track:
        """Return the track of an item."""
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


class _WorkerStatus:
    """Table of the item that each worker reads, in memory that is shared with the main process."""

    def __init__(self, num_workers: int) -> None:
        self.rows = torch.full((num_workers, 2), -1)
        self.rows.share_memory_()  # type: ignore[no-untyped-call]

    def write(self, item: int) -> None:
        """Record the item that this worker reads; -1 for none. Does nothing outside a worker."""
        worker = get_worker_info()
        if worker is not None:
            self.rows[worker.id, 0] = os.getpid()
            self.rows[worker.id, 1] = item

    @property
    def pids(self) -> list[int]:
        """Workers that have returned a batch."""
        return [int(pid) for pid in self.rows[:, 0] if pid > 0]

    def read_by(self, pids: Sequence[int]) -> list[int]:
        """Return the items that these workers were reading."""
        return [int(item) for pid, item in self.rows.tolist() if pid in pids and item >= 0]


class ReadableWindows(Dataset[tuple[Any, ...]]):
    """Windows for training; another window replaces one that cannot be read.

    Which one is drawn from (seed, epoch, index), so that it depends on which files can be read alone.

    Attributes:
        windows: Windows to read.
        worker_status: Item that each worker reads.
    """

    def __init__(self, windows: Windows, *, num_workers: int) -> None:
        self.windows = windows
        self.worker_status = _WorkerStatus(num_workers)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: tuple[int, int]) -> tuple[Any, ...]:
        """Return the tensors of an item and, last, its `BatchInfo`; only this where nothing could be read."""
        epoch, index = position
        bad_tracks: dict[str, str] = {}
        for candidate in self._candidates(epoch, index):
            track = self.windows.track_of(candidate)
            if track.id in bad_tracks:
                continue
            self.worker_status.write(candidate)
            try:
                tensors = _with_retries(lambda: self.windows[epoch, candidate])  # noqa: B023
                return *tensors, BatchInfo(track_ids=[track.id], bad_tracks=bad_tracks)
            except (UserError, OSError) as error:
                bad_tracks[track.id] = f"{track.origin}: {error}"
            finally:
                self.worker_status.write(-1)
        return (BatchInfo(track_ids=[], bad_tracks=bad_tracks),)

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        yield index
        generator = draw_generator(self.windows.seed, epoch, str(index), "replacement")
        yield from map(int, generator.permutation(len(self.windows))[:MAX_REPLACEMENTS])

    def origins(self, items: Sequence[int]) -> list[str]:
        """Return the tracks of items, for messages."""
        return [_named(self.windows.track_of(item)) for item in items]


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
        self.worker_status = _WorkerStatus(num_workers)
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
    """Return batches of model inputs, targets and `BatchInfo`, to be read by `read_batches`.

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
    """Return batches of windows in order, to be read by `read_batches`.

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


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader that was made here.

    Raises:
        WorkerError: A worker died, or took longer than the loader's timeout; the message has the track
            that it was reading.
    """
    if loader.num_workers == 0:
        yield from loader
        return
    try:
        with _SigchldGuard.install().enabled():
            batches = iter(loader)
        guard = _SigchldGuard.install()
        while True:
            with guard.enabled():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise _worker_error(error, loader) from error
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # The worker died while it handed a batch over: this process notices the broken connection before
        # the signal. Tracks that cannot be read never arrive here, see `ReadableWindows`.
        death = _SigchldGuard.install().await_death(HANDOVER_SECONDS)
        if death is None:  # all workers live: a fault of the program
            raise
        raise _worker_error(death, loader) from error


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


def _worker_error(error: Exception, loader: DataLoader[Any]) -> WorkerError:
    """Return the error that names the failed worker and its track; kill the other workers, which may hang."""
    readable: Any = loader.dataset
    worker_status: _WorkerStatus = readable.worker_status
    is_timeout = "timed out" in str(error)
    pids = (
        worker_status.pids
        if is_timeout
        else [int(digits) for digits in re.findall(r"\d+", str(error))]
    )
    reading = readable.origins(worker_status.read_by(pids))
    for pid in worker_status.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    where = f" while it read {', '.join(reading)}" if reading else ", between two tracks"
    if is_timeout:
        return WorkerError(
            f"A worker returned no audio for {loader.timeout:g} s{where}. Check the drive; if it is only "
            "slow, raise data.timeout_seconds.",
            code="worker-timeout",
        )
    return WorkerError(
        f"A process that reads audio died{where} ({error}). The machine may be out of memory: lower "
        "data.num_workers.",
        code="worker-died",
    )


class _SigchldGuard:
    """Lets torch's handler of dead workers raise only while a batch is awaited.

    It would raise anywhere in the main thread: in the middle of an optimizer's step too.
    """

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler
        self.is_enabled = False

    @classmethod
    def install(cls) -> "_SigchldGuard":
        """Put itself before the handler that torch set when the first workers started."""
        handler = signal.getsignal(signal.SIGCHLD)
        if isinstance(handler, cls):
            return handler
        if threading.current_thread() is not threading.main_thread() or not callable(handler):
            return cls(lambda number, frame: None)
        guard = cls(handler)
        signal.signal(signal.SIGCHLD, guard)
        return guard

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self.is_enabled:
            self.handler(number, frame)

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Let the handler raise for workers that die, or have died since the last time."""
        self.is_enabled = True
        try:
            self.handler(signal.SIGCHLD, None)
            yield
        finally:
            self.is_enabled = False

    def await_death(self, seconds: float) -> RuntimeError | None:
        """Return the error that torch raises of a dead worker, or None if none died within this time."""
        end_time = time.monotonic() + seconds
        while time.monotonic() < end_time:
            try:
                self.handler(signal.SIGCHLD, None)
            except RuntimeError as error:
                return error
            time.sleep(0.05)
        return None
