"""Timer of steps, with the share of their time that a run waits for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# A longer wait than both, as a share and in total, is worth a warning.
SIGNIFICANT_SHARE = 0.1
SIGNIFICANT_SECONDS = 1.0


@dataclass(kw_only=True)
class DataWait:
    """Duration of steps, and their wait for data.

    Attributes:
        waited_seconds: Wait for batches, and for other processes to have theirs.
        total_seconds: Duration of the steps.
    """

    waited_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def share(self) -> float:
        """Share of the wait, from 0 to 1; 0 if no step was measured."""
        return self.waited_seconds / self.total_seconds if self.total_seconds else 0.0

    @property
    def is_significant(self) -> bool:
        """Whether the wait is worth a warning."""
        return self.share > SIGNIFICANT_SHARE and self.waited_seconds > SIGNIFICANT_SECONDS


@dataclass(kw_only=True)
class StepTimer:
    """Timer of steps by the clock of the process, without synchronisation with the device.

    A step ends when the norm of its gradients is read, which waits for the device anyway. The first step is
    left out: workers start in it, and kernels are selected or compiled.

    Attributes:
        line: Wait of the steps since the last line of the log.
        epoch: Wait of the steps of the epoch.
        run: Wait of all steps since the start of the process.
        first_seconds: Durations of the first two steps.
    """

    line: DataWait = field(default_factory=DataWait)
    epoch: DataWait = field(default_factory=DataWait)
    run: DataWait = field(default_factory=DataWait)
    first_seconds: list[float] = field(default_factory=list)
    _waited_seconds: float = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a step; one that fails does not count."""
        self._waited_seconds = 0.0
        start_time = time.perf_counter()
        yield
        seconds = time.perf_counter() - start_time
        if len(self.first_seconds) < 2:
            self.first_seconds.append(seconds)
        if len(self.first_seconds) == 1:
            return
        for wait in (self.line, self.epoch, self.run):
            wait.waited_seconds += self._waited_seconds
            wait.total_seconds += seconds

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Measure the wait of a step for its data."""
        start_time = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - start_time

    def take_line(self) -> DataWait:
        """Return the wait since the last call, and reset it."""
        taken, self.line = self.line, DataWait()
        return taken

    def take_epoch(self) -> DataWait:
        """Return the wait of the epoch, and reset it."""
        taken, self.epoch = self.epoch, DataWait()
        return taken
