"""What several subcommands have in common."""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The subcommands of a parser."""

OUTSIDE_HELP = "let relative paths of the manifest lead out of its folder"
MODEL_HELP = "a folder, such as model/ of a run, or a Hub id"


def count(text: str) -> int:
    """Return a number from 1 that was typed; argparse shows the message of the error."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)
