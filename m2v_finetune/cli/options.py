"""Options that several subcommands share."""

import argparse
import gc
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The subcommands of a parser."""

OUTSIDE_HELP = "allow relative paths of the manifest to leave its folder"
MODEL_HELP = "model folder, such as model/ of a run, or a Hub id"


def count(text: str) -> int:
    """Parse a positive integer; argparse shows the message of the error."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def warn(message: str) -> None:
    """Write a message to standard error."""
    print(message, file=sys.stderr)


@contextmanager
def without_collection() -> Iterator[None]:
    """Import networks without Python's garbage collector, which finds nothing to free in them.

    Afterwards it runs as before, and leaves out what was imported. Source: benchmarks/start_up.py.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def print_utf8() -> None:
    """Make standard output UTF-8, like the files of such data, in every locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # else it was replaced
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


class TableConsole(Console):
    """Standard output for tables; `run_command` handles a reader that is gone, as for `print`."""

    def on_broken_pipe(self) -> None:
        """Raise the error that rich has caught."""
        raise
