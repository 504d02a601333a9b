"""Errors that a user can fix. Everything else that is raised is a bug.

The command line and the recipes turn a `UserError` into one message without a traceback and exit
code 2; any other exception keeps its traceback and exits with 1.
"""

import errno
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

# No space, a quota, a file over the limit, a disk that was mounted read-only, or one that is broken.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class UserError(Exception):
    """Something the user can put right.

    The message says what was found, where, what is legal, and what to do.
    """

    def __str__(self) -> str:
        """Return the message, as text that can be printed and written: names of files may be any bytes."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class AudioError(UserError):
    """An audio file that cannot be used: missing, empty, unreadable or truncated."""


class NotStoredError(AudioError):
    """A window of which nothing is stored, as its track could not be read."""


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

    0 done; 2 a `UserError`, or a disk that does not take or give a file, printed as one message without a
    traceback; 130 stopped by SIGINT; 143 stopped by SIGTERM, or by SIGUSR1, which asks for the same; any
    other exception is a bug, keeps its traceback and gives 1.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(  # noqa: T201
            f"error: {error.filename or 'A file'} cannot be written or read: {error.strerror}. Free space, "
            "or mind the disk. What a run had saved is whole: --run.resume auto with its --run.output_dir "
            "goes on from there.",
            file=sys.stderr,
        )
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)  # noqa: T201
        sys.exit(130 if stopped.signal_number == signal.SIGINT else 143)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)
