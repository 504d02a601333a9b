"""Signal handling: SIGTERM, SIGINT and SIGUSR1 end a run with a checkpoint; a second one ends it at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from m2v_finetune.errors import Stopped

if TYPE_CHECKING:
    from accelerate import Accelerator

# SLURM sends SIGUSR1 some time before a limit, if configured (--signal=USR1@300).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A job's processes get a signal twice, also from their launcher: within this time it is the same request.
SAME_REQUEST_SECONDS = 1.0
Interruptible = Callable[[], AbstractContextManager[None]]
"""Function such as `StopRequest.interruptible`: a signal raises `Stopped` within its context."""


class StopRequest:
    """Record of the first signal; in interruptible code it raises `Stopped` instead.

    Attributes:
        number: Number of the signal; SIGTERM until one arrives, for a signal to another process.
        arrived: Whether a signal has arrived.
    """

    def __init__(self, advice: Callable[[], str] | None, *, announce: bool) -> None:
        """Start without a signal.

        Args:
            advice: Function for the message of `Stopped`, which the first signal raises at once. If None, the
                first signal is recorded, except within `interruptible`.
            announce: Whether to print a message when the first signal is recorded.
        """
        self.number = int(signal.SIGTERM)
        self.arrived = False
        self._advice = advice
        self._announce = announce
        self._is_interruptible = advice is not None
        self._process = os.getpid()
        self._when = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; the second one ends the process as without a handler."""
        if os.getpid() != self._process:
            return  # a worker that reads audio: its parent process stops it
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
        """Raise `Stopped` in the block when the first signal arrives, or if it has already arrived."""
        self._is_interruptible = True
        try:
            if self.arrived:
                self._stop()
            yield
        finally:
            self._is_interruptible = False

    def is_set_on_any_process(self, accelerator: "Accelerator") -> bool:
        """Return whether a process received a signal to stop, the same on every process."""
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
    """Handle the signals in the block, and restore the earlier handlers after it.

    Outside of the main thread Python allows no handlers; the signals are those of the program then.

    Args:
        advice: Function for the message of `Stopped`, or None to record the first signal (`StopRequest`).
        announce: Whether to print a message when the first signal is recorded.
    """
    request = StopRequest(advice, announce=announce)
    is_main = threading.current_thread() is threading.main_thread()
    handled = SIGNALS if is_main else ()
    earlier = {number: signal.signal(number, request.handle) for number in handled}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
