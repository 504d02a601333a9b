"""Options that several subcommands share."""

import argparse
import io
import sys
from typing import TypeAlias

from rich.console import Console

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The subcommands of a parser."""

OUTSIDE_HELP = "let relative paths of the manifest lead out of its folder"
MODEL_HELP = "a folder, such as model/ of a run, or a Hub id"


def count(text: str) -> int:
    """Return a number from 1 that was typed; argparse shows the message of the error."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def warn(message: str) -> None:
    """Write a message to standard error."""
    print(message, file=sys.stderr)


def print_utf8() -> None:
    """Write data to standard output as files of such data are written, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # else somebody put another stream there
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


class TableConsole(Console):
    """Standard output, for tables; a reader who is gone is left to `run_command`, as by `print`."""

    def on_broken_pipe(self) -> None:
        """Raise the error that rich has caught."""
        raise
