"""Annotations of a song's structure: sections with a label, such as verse and chorus."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.labels.problems import LabelError, parse_seconds, read_rows

END = "end"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sections:
    """Sections of a track, one after the other without gaps.

    Attributes:
        borders_seconds: (sections + 1,), at least 0, strictly increasing: the start of each section, and the
            end of the last one.
        labels: Label of each section, in small letters.
    """

    borders_seconds: NDArray[np.float64]
    labels: tuple[str, ...]

    @property
    def intervals_seconds(self) -> NDArray[np.float64]:
        """Start and end of each section, (sections, 2)."""
        return np.stack([self.borders_seconds[:-1], self.borders_seconds[1:]], axis=-1)


def read_sections(path: Path) -> Sections:
    """Read the sections of a text file: a line for each start, with its time and label.

    The last line has the end, with the label ``end``. So are the files of the Harmonix set
    (``segments/*.txt``) and of SALAMI (``parsed/textfile1_functions.txt``). Case does not count, and labels
    may have spaces. A section of no length, as SALAMI has some, is left out.

    Raises:
        LabelError: The file cannot be read; or lists all lines without time and label, or with a time before
            the last line's; or there is no section, or no end.
    """
    rows = read_rows(path)
    starts, problems = _parse_rows(rows)
    if not problems and (not starts or starts[-1][1] != END):
        line = rows[-1][0] if rows else 1
        problems = [(line, f"the last line must have the end of the song and the label '{END}'")]
    if not problems and starts[-1][0] <= starts[0][0]:
        problems = [(rows[-1][0], "no section: the end is not after the first line's time")]
    if problems:
        raise LabelError(
            f"{path} has lines that cannot be used",
            [f"{path}:{line}: {what}" for line, what in problems],
            f"A line is: time in seconds, space or tab, label. The last one has the label '{END}'.",
            code="sections-bad-lines",
        )
    kept = [(start, label) for (start, label), (stop, _) in pairwise(starts) if start < stop]
    return Sections(
        borders_seconds=np.array([*(start for start, _ in kept), starts[-1][0]]),
        labels=tuple(label for _, label in kept),
    )


def format_sections(sections: Sections) -> str:
    r"""Return the text of a file of `read_sections`.

    >>> format_sections(Sections(borders_seconds=np.array([0.0, 9.5]), labels=("verse",)))
    '0.000000\tverse\n9.500000\tend\n'
    """
    rows = zip(sections.borders_seconds, (*sections.labels, END), strict=True)
    return "".join(f"{time:.6f}\t{label}\n" for time, label in rows)


def _parse_rows(
    rows: Sequence[tuple[int, list[str]]],
) -> tuple[list[tuple[float, str]], list[tuple[int, str]]]:
    """Return time and label of numbered rows, and the line and text of every problem."""
    starts: list[tuple[float, str]] = []
    problems: list[tuple[int, str]] = []
    last: tuple[int, float] | None = None  # line and time of the row above
    for line, cells in rows:
        label = " ".join(cells[1:]).lower()
        if not label:
            problems.append((line, f"'{cells[0]}' is not a time and a label"))
            continue
        try:
            time = parse_seconds(cells[0])
        except ValueError as error:
            problems.append((line, str(error)))
            continue
        if last is not None and time < last[1]:
            problems.append((line, f"the time {time} is before {last[1]} of line {last[0]}"))
        if starts and starts[-1][1] == END:
            problems.append((line, f"a section after the line '{END}'"))
        last = (line, time)
        starts.append((time, label))
    return starts, problems
