"""Errors that a user can fix. Everything else that is raised is a bug.

The command line and the recipes turn a `UserError` into one message without a traceback and exit
code 2; any other exception keeps its traceback and exits with 1.
"""

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TextIO

# A read-only disk, or files and folders of another user.
ACCESS_ERRORS = (errno.EROFS, errno.EACCES, errno.EPERM)
# Also no space, a quota, a file over the limit, or a broken disk.
DISK_ERRORS = (*ACCESS_ERRORS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Names that no disk accepts: too long, below a file, or a link to itself.
NAME_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
BROKEN_PIPE_CODE = 128 + signal.SIGPIPE


class UserError(Exception):
    """Error that the user can fix.

    The message states the value that was found, its location, the legal values and the remedy.

    Args:
        message: Human-readable text; its wording may change.
        code: Name of the kind of error, such as ``manifest-duplicate-path``, for programs and tests; that of
            the class if None.

    Attributes:
        code: Lower-case words joined by hyphens, the first one naming the subject.
    """

    code = "user-error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        """Return the message, as text that can be printed and written: names of files may be any bytes."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class AudioError(UserError):
    """Audio file that cannot be used: missing, empty, unreadable or truncated."""

    code = "audio-unreadable"


class NotCachedError(AudioError):
    """Window without cached features, as its track could not be read."""


class Stopped(Exception):  # noqa: N818 (it is no error)
    """A signal stopped the run; its progress is saved.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int, advice: str) -> None:
        super().__init__(advice)
        self.signal_number = signal_number


def run_command(command: Callable[[], None]) -> NoReturn:
    """Run a command and end the process with its exit code.

    0 done; 2 a `UserError`, or a file that cannot be written or read, printed as one message without a
    traceback; 130 stopped by SIGINT; 143 stopped by SIGTERM, or by SIGUSR1, which does the same; 141
    if the reader of standard output is gone, as of ``| head -1``; any other exception is a bug, keeps its
    traceback and gives 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal may not show a file name that is not UTF-8; this must not stop a command.
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        command()
    except UserError as error:
        _report(f"error: {error}")
        code = 2
    except BrokenPipeError:
        if not _is_unread():
            raise
        code = BROKEN_PIPE_CODE
    except OSError as error:
        if error.errno not in DISK_ERRORS and not (error.filename and error.errno in NAME_ERRORS):
            raise
        _report(f"error: {_explain(error)}")
        code = 2
    except Stopped as stopped:
        _report(str(stopped))
        code = 130 if stopped.signal_number == signal.SIGINT else 143
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:  # of a parser, which has printed its help or its error
        code = ended.code
    flushed = _flush()
    sys.exit(code or flushed)


def _explain(error: OSError) -> str:
    what = error.filename or "Standard output, or a file,"
    if error.errno in ACCESS_ERRORS:
        advice = "Check its owner and permissions (ls -l), or name another location."
    elif error.errno in NAME_ERRORS:
        advice = "Name another location."
    else:
        advice = "Free space, or check the disk."
    return (
        f"{what} cannot be written or read: {error.strerror}. {advice} If this was a training "
        "run, its checkpoints are valid: resume with its --run.output_dir and --run.resume auto."
    )


def _report(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # its reader is gone
        _drop(sys.stderr)


def _flush() -> int:
    """Write the rest of standard output; return the exit code of a failure, else 0.

    Otherwise Python does it later, and prints a failure itself.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return BROKEN_PIPE_CODE
    except OSError as error:
        _drop(sys.stdout)
        _report(f"error: {_explain(error)}")
        return 2
    return 0


def _drop(stream: TextIO) -> None:
    """Discard the unwritten text of a stream."""
    with suppress(OSError, ValueError):  # there is no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_unread() -> bool:
    """Return whether the reader of standard output is gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # errors are always reported
    except (OSError, ValueError):  # there is no file behind it
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
