"""Errors that a user can fix. Everything else that is raised is a bug.

The command line and the recipes turn a `UserError` into one message without a traceback and exit
code 2; any other exception keeps its traceback and exits with 1.
"""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right.

    The message says what was found, where, what is legal, and what to do.
    """


class AudioError(UserError):
    """An audio file that cannot be used: missing, empty, unreadable or truncated."""


class Stopped(Exception):  # noqa: N818 (it is no error)
    """A signal asked the run to stop; what it was doing is saved.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int, advice: str) -> None:
        super().__init__(advice)
        self.signal_number = signal_number


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process with its exit code.

    0 done; 2 a `UserError`, printed as one message without a traceback; 130 and 143 stopped by
    SIGINT or SIGTERM; any other exception is a bug, keeps its traceback and gives 1.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)  # noqa: T201
        sys.exit(128 + stopped.signal_number)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
