"""What share of the time of its steps a run waits for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# More than this share of a run, and more than this in all, is worth an advice.
SIGNIFICANT_SHARE = 0.1
SIGNIFICANT_SECONDS = 1.0


@dataclass(kw_only=True)
class DataWait:
    """Time of some steps, and how much of it went by until their batches were there.

    Attributes:
        waited_seconds: For batches, with the processes' agreement that all have theirs.
        total_seconds: Of the whole steps.
    """

    waited_seconds: float = 0.0
    total_seconds: float = 0.0

    @property
    def share(self) -> float:
        """From 0 to 1; 0 where no step was measured."""
        return self.waited_seconds / self.total_seconds if self.total_seconds else 0.0

    @property
    def is_significant(self) -> bool:
        """Whether something should be done about it."""
        return self.share > SIGNIFICANT_SHARE and self.waited_seconds > SIGNIFICANT_SECONDS


@dataclass(kw_only=True)
class StepTimer:
    """Measures steps by the clock of the process; nothing waits for the device on its account.

    A step ends when the norm of its gradients is read, which waits for the device anyway. The first step is
    left out: in it workers start, and kernels are chosen or compiled.

    Attributes:
        line: Of the steps since the last line of the log.
        epoch: Of those of the epoch.
        run: Of all since this process began.
        first_seconds: What the first two steps took.
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
        """Measure the part of a step in which it waits."""
        start_time = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - start_time

    def take_line(self) -> DataWait:
        """Return what was measured since this was last asked."""
        taken, self.line = self.line, DataWait()
        return taken

    def take_epoch(self) -> DataWait:
        """Return what was measured in the epoch, which ends."""
        taken, self.epoch = self.epoch, DataWait()
        return taken
