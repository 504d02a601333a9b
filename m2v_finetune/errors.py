"""Errors that a user can fix. Any other exception is a bug.

The command line and the recipes turn a `UserError` into one message without a traceback and exit
code 2; any other exception keeps its traceback and exits with 1.
"""

import atexit
import errno
import gc
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

# Read-only disks, and files and folders of another user.
ACCESS_ERRORS = (errno.EROFS, errno.EACCES, errno.EPERM)
# A full disk, or an exceeded quota or file size.
FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Also a broken disk.
DISK_ERRORS = (*ACCESS_ERRORS, *FULL_ERRORS, errno.EIO)
# Invalid paths: too long, below a file, or a link to itself.
NAME_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
BROKEN_PIPE_CODE = 128 + signal.SIGPIPE


class UserError(Exception):
    """Error that the user can fix.

    The message states the invalid value, its location, the legal values and the remedy.

    Args:
        message: Human-readable message; its wording may change.
        code: Code of the error, such as ``manifest-duplicate-path``, for programs and tests. Default: the
            code of the class.

    Attributes:
        code: Lower case words joined by hyphens; the first one is the subject.
    """

    code = "user-error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        """Return the message as printable text, with escaped bytes of file names that are not UTF-8."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class AudioError(UserError):
    """Unusable audio file: missing, empty, unreadable or truncated."""

    code = "audio-unreadable"


class NotCachedError(AudioError):
    """Window without cached features, as its track could not be read."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """Stop of a run by a signal, after its progress was saved.

    Attributes:
        signal_number: Number of the signal.
    """

    def __init__(self, signal_number: int, advice: str) -> None:
        super().__init__(advice)
        self.signal_number = signal_number


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process with its exit code.

    0: done. 2: a `UserError`, or a file that a disk cannot read or write, printed as one message without a
    traceback. 130: stopped by SIGINT. 143: stopped by SIGTERM or SIGUSR1. 141: the reader of standard output
    is gone, such as ``| head -1``. 1: any other exception, which is a bug and keeps its traceback.
    """
    # Else the garbage collector looks through every module once more, which takes seconds.
    atexit.register(gc.freeze)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Escapes text that a terminal cannot show, such as a file name that is not UTF-8.
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        command()
    except UserError as error:
        _print_error(f"error: {error}")
        code = 2
    except BrokenPipeError:
        if not _is_unread():
            raise
        code = BROKEN_PIPE_CODE
    except OSError as error:
        if error.errno not in DISK_ERRORS and not (error.filename and error.errno in NAME_ERRORS):
            raise
        _print_error(f"error: {_explain(error)}")
        code = 2
    except Stopped as stopped:
        _print_error(str(stopped))
        code = 130 if stopped.signal_number == signal.SIGINT else 143
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:  # from a parser, which has printed its help or its error
        code = ended.code
    flushed = _flush()
    sys.exit(code or flushed)


def _explain(error: OSError) -> str:
    what = error.filename or "Standard output, or a file,"
    advice = [disk_advice(error), *getattr(error, "__notes__", [])]
    return f"{what} cannot be written or read: {error.strerror}. {' '.join(advice)}"


def disk_advice(error: OSError) -> str:
    """Return what to do about a path that a disk cannot write or read, or that its owner forbids."""
    if error.errno in ACCESS_ERRORS:
        return "Check its owner (ls -l). Get access to it, or name another path."
    if error.errno in NAME_ERRORS:
        return "Name another path."
    return "Free space." if error.errno in FULL_ERRORS else "Check the disk."


def _print_error(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # its reader is gone
        _drop(sys.stderr)


def _flush() -> int:
    """Flush standard output; return the exit code of an error, else 0.

    Python would flush later, and print its own message for an error.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return BROKEN_PIPE_CODE
    except OSError as error:
        _drop(sys.stdout)
        _print_error(f"error: {_explain(error)}")
        return 2
    return 0


def _drop(stream: TextIO) -> None:
    """Discard the unwritten output of a stream."""
    with suppress(OSError, ValueError):  # there is no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_unread() -> bool:
    """Return whether the reader of standard output is gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # poll always reports errors
    except (OSError, ValueError):  # there is no file behind it
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
