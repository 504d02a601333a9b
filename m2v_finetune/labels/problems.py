"""Bad annotations: every one is listed with its file and line, and none is dropped."""

import math
from collections.abc import Sequence
from pathlib import Path

from m2v_finetune.errors import UserError


class LabelError(UserError):
    """Annotations that cannot be used; the message lists all problems.

    Attributes:
        problems: One text a problem, each starting with its location: ``songs/a.lab:12: ...``, or
            ``songs/a.mid: track 2, event 7 (1.250 s): ...``.
    """

    code = "labels-invalid"

    def __init__(
        self, title: str, problems: Sequence[str], advice: str, *, code: str | None = None
    ) -> None:
        listed = [f"  - {problem}" for problem in problems]
        super().__init__("\n".join([f"{title} ({len(problems)}):", *listed, advice]), code=code)
        self.problems = tuple(problems)


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Read a text file of cells between white space.

    Blank lines, and lines that start with ``#``, are skipped. A ``#`` elsewhere is a sharp.

    Returns:
        Line number (from 1) and cells (at least one) of each line.

    Raises:
        LabelError: The file is missing, cannot be read, or is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise unreadable(path, f"not UTF-8 text ({error})", advice="Save it as UTF-8.") from error
    return split_rows(text)


def split_rows(text: str) -> list[tuple[int, list[str]]]:
    r"""Numbered rows of `read_rows`, from text.

    >>> split_rows("0.5 1\n\n# a comment\n1.0 2\n")
    [(1, ['0.5', '1']), (4, ['1.0', '2'])]
    """
    rows = enumerate((line.split() for line in text.split("\n")), start=1)
    return [(line, cells) for line, cells in rows if cells and not cells[0].startswith("#")]


def unreadable(
    path: Path, reason: str, *, advice: str = "Give the path of a readable file."
) -> LabelError:
    """Error for a file that cannot be read at all."""
    return LabelError(
        "An annotation cannot be read",
        [f"{path}: {reason}"],
        advice,
        code="labels-unreadable",
    )


CELLS = "Cells are separated by spaces or tabs, and numbers have a decimal point."


def parse_number(cell: str) -> float:
    """Return a cell as a number; raise ValueError for other text, also ``1_0``, which Python reads as 10."""
    if "_" in cell:
        raise ValueError(f"'{cell}' is not a number")
    return float(cell)


def parse_seconds(cell: str) -> float:
    """Time in seconds, finite and at least 0.

    Raises:
        ValueError: The cell is something else; the message names it.
    """
    try:
        seconds = parse_number(cell)
    except ValueError as error:
        raise ValueError(f"'{cell}' is not a number of seconds") from error
    if not math.isfinite(seconds):
        raise ValueError(f"the time {cell} is not finite")
    if seconds < 0:
        raise ValueError(f"the time {cell} is negative")
    return seconds
