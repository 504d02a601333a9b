"""SIGTERM and SIGINT end a run after its step, with a checkpoint; a second signal ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers the first signal.

    Attributes:
        number: Of the signal; SIGTERM until one arrives, as the one that another process got.
    """

    def __init__(self) -> None:
        self.number = int(signal.SIGTERM)
        self.arrived = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal; the second one raises KeyboardInterrupt."""
        if self.arrived:
            raise KeyboardInterrupt
        self.number = number
        self.arrived = True

    def is_agreed(self, accelerator: Accelerator) -> bool:
        """Tell, the same on every process, whether any of them was asked to stop."""
        if accelerator.num_processes == 1:
            return self.arrived
        if self.arrived:
            accelerator.set_trigger()
        return bool(accelerator.check_trigger())


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle the signals inside the block, and put the earlier handlers back after it."""
    request = StopRequest()
    earlier = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
