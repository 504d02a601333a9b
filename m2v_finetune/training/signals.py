"""SIGTERM, SIGINT and SIGUSR1 end a run with a checkpoint; a second one, a second later, ends it at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from accelerate import Accelerator

from m2v_finetune.errors import Stopped

# SLURM sends the last one some time before a limit, if it is told to (--signal=USR1@300).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Launchers pass on what the processes of a job were sent as well: this soon it is the same request.
SAME_REQUEST_SECONDS = 1.0
Interruptible = Callable[[], AbstractContextManager[None]]
"""Such as `StopRequest.interruptible`: inside of what it returns a signal raises `Stopped`."""


class StopRequest:
    """Remembers the first signal, or raises `Stopped` where that loses nothing.

    Attributes:
        number: Of the signal; SIGTERM until one arrives, as the one that another process got.
        arrived: Whether one has arrived.
    """

    def __init__(self, advice: Callable[[], str] | None, *, announce: bool) -> None:
        """Begin without a signal.

        Args:
            advice: Makes the message of `Stopped`, raised wherever the first signal arrives. Where it is
                None, the first signal is remembered, but inside of `interruptible`.
            announce: Print that the first signal was seen, where it is remembered.
        """
        self.number = int(signal.SIGTERM)
        self.arrived = False
        self._advice = advice
        self._announce = announce
        self._is_interruptible = advice is not None
        self._process = os.getpid()
        self._when = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; the second one ends the process as if nothing handled it."""
        if os.getpid() != self._process:
            return  # a worker that reads audio: the process that started it tells it when to end
        now = time.monotonic()
        if self.arrived:
            if now - self._when > SAME_REQUEST_SECONDS:
                number = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
                signal.signal(number, signal.SIG_DFL)
                os.kill(self._process, number)
            return
        self.arrived, self.number, self._when = True, number, now
        if self._is_interruptible:
            self._stop()
        if self._announce:
            message = "finishing the step, then saving; another signal a second later stops at once, unsaved"
            os.write(2, f"\n{signal.Signals(number).name}: {message}.\n".encode())

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block raise `Stopped` wherever the first signal arrives, or if it has arrived."""
        self._is_interruptible = True
        try:
            if self.arrived:
                self._stop()
            yield
        finally:
            self._is_interruptible = False

    def is_set_on_any_process(self, accelerator: Accelerator) -> bool:
        """Tell, the same on every process, whether any of them was asked to stop."""
        if accelerator.num_processes == 1:
            return self.arrived
        if self.arrived:
            accelerator.set_trigger()
        return bool(accelerator.check_trigger())

    def _stop(self) -> None:
        raise Stopped(self.number, "" if self._advice is None else self._advice())


@contextmanager
def stop_on_signals(
    advice: Callable[[], str] | None = None, *, announce: bool = True
) -> Iterator[StopRequest]:
    """Handle the signals inside the block, and put the earlier handlers back after it.

    Args:
        advice: As of `StopRequest`: the first signal is remembered, or raises `Stopped` with this.
        announce: As of `StopRequest`.
    """
    request = StopRequest(advice, announce=announce)
    earlier = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
