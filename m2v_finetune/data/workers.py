"""Batches from worker processes, where a worker that dies or hangs is an error that names its track.

It is noticed while batches are read, never in the middle of a step.
"""

import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich import filesize
from torch.utils.data import DataLoader, get_worker_info

from m2v_finetune.errors import UserError

# Time for the operating system to report a worker with a broken connection.
HANDOVER_SECONDS = 5.0


CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT)
"""Signals of a process that a fault of its own ends; the system sends SIGKILL where memory runs out."""


logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (of Linux; nothing is written there)
BATCHES_OF_WORKER = 3
"""Batches of a worker in shared memory: two that wait, PyTorch's default, and the one in use."""


class WorkerError(UserError):
    """Worker that reads audio died, or returned no batch before the timeout.

    Attributes:
        crashed_at: Items of the dataset at which workers crashed; empty if none crashed.
    """

    code = "worker-died"

    def __init__(
        self, message: str, *, code: str | None = None, crashed_at: Sequence[int] = ()
    ) -> None:
        super().__init__(message, code=code)
        self.crashed_at = tuple(crashed_at)


def fitting_workers(num_workers: int, batch_bytes: int) -> int:
    """Return the number of workers whose batches fit in the shared memory, with a warning if it is lower.

    A batch that does not fit is lost, or waited for without end. Containers have 64 MB by default.
    """
    if not SHARED_MEMORY.is_dir():
        return num_workers
    free = shutil.disk_usage(SHARED_MEMORY).free
    fitting = free // (BATCHES_OF_WORKER * batch_bytes)
    if fitting >= num_workers:
        return num_workers
    logger.warning(
        "The shared memory (%s) has %s free, which is enough for %d of %d processes that read audio. Give it "
        "more (docker run --shm-size), or lower the batch size.",
        SHARED_MEMORY,
        filesize.decimal(free),
        fitting,
        num_workers,
    )
    return fitting


def read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield the batches of a loader that `reading` made.

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
        # the signal. Tracks that cannot be read never arrive here, see `reading.ReadableWindows`.
        death = _SigchldGuard.install().await_death(HANDOVER_SECONDS)
        if death is None:  # all workers live: a fault of the program
            raise
        raise _worker_error(death, loader) from error


def _worker_error(error: Exception, loader: DataLoader[Any]) -> WorkerError:
    """Return the error that names the failed worker and its track; kill the other workers, which may hang."""
    readable: Any = loader.dataset
    worker_status: WorkerStatus = readable.worker_status
    is_timeout = "timed out" in str(error)
    pids = (
        worker_status.pids
        if is_timeout
        else [int(digits) for digits in re.findall(r"\d+", str(error))]
    )
    items = worker_status.read_by(pids)
    reading = readable.origins(items)
    for pid in worker_status.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    messages = f"{error} {error.__cause__}"  # torch's own error about the signal may be the cause
    has_crashed = any(f"signal: {signal.strsignal(one)}" in messages for one in CRASHES)
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
        crashed_at=items if has_crashed else (),
    )


class WorkerStatus:
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
