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

# A disk that was mounted read-only, or files and folders of somebody else.
ACCESS_ERRORS = (errno.EROFS, errno.EACCES, errno.EPERM)
# Those; no space, a quota, a file over the limit, or a disk that is broken.
DISK_ERRORS = (*ACCESS_ERRORS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
# Names that no disk takes: too long, below a file, or a link that leads to itself.
NAME_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
BROKEN_PIPE_CODE = 128 + signal.SIGPIPE


class UserError(Exception):
    """Something the user can put right.

    The message states the value that was found, its place, the legal values and the remedy.

    Args:
        message: For people; its wording may change.
        code: Name of the kind of error, such as ``manifest-duplicate-path``, for programs and tests; that of
            the class if None.

    Attributes:
        code: Lower case words joined by hyphens, the first one naming the subject.
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
    """An audio file that cannot be used: missing, empty, unreadable or truncated."""

    code = "audio-unreadable"


class NotCachedError(AudioError):
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
    traceback; 130 stopped by SIGINT; 143 stopped by SIGTERM, or by SIGUSR1, which asks for the same; 141
    where nobody reads standard output any more, as of ``| head -1``; any other exception is a bug, keeps its
    traceback and gives 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show, such as a file name that is no UTF-8, is no reason to stop.
            stream.reconfigure(errors="backslashreplace")
    code: int | str | None = 0
    try:
        command()
    except UserError as error:
        _tell(f"error: {error}")
        code = 2
    except BrokenPipeError:
        if not _is_unread():
            raise
        code = BROKEN_PIPE_CODE
    except OSError as error:
        if error.errno not in DISK_ERRORS and not (error.filename and error.errno in NAME_ERRORS):
            raise
        _tell(f"error: {_explain(error)}")
        code = 2
    except Stopped as stopped:
        _tell(str(stopped))
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
        advice = "Whose is it (ls -l)? Get the right to it, or name another place."
    elif error.errno in NAME_ERRORS:
        advice = "Name another place."
    else:
        advice = "Free space, or mind the disk."
    return (
        f"{what} cannot be written or read: {error.strerror}. {advice} What a run had saved is whole: "
        "--run.resume auto with its --run.output_dir goes on from there."
    )


def _tell(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # nobody reads it
        _drop(sys.stderr)


def _flush() -> int:
    """Write what is left of standard output; return the exit code where that cannot be, else 0.

    Python would do it later, and print what it then says of it.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        return BROKEN_PIPE_CODE
    except OSError as error:
        _drop(sys.stdout)
        _tell(f"error: {_explain(error)}")
        return 2
    return 0


def _drop(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere."""
    with suppress(OSError, ValueError):  # there is no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_unread() -> bool:
    """Tell whether the reader of standard output is gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # errors are told without being asked for
    except (OSError, ValueError):  # there is no file behind it
        return False
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
