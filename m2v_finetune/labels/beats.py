"""Beat annotations: ``.beats`` files of times and positions in the bar."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m2v_finetune.labels.problems import CELLS, LabelError, parse_seconds, read_rows, split_rows

# None of 5,556 files of CPJKU's beat_this_annotations (14 data sets) has a 0, or bars without a 1.
COUNTED_FROM_0 = "; if bars are counted from 0 here, add 1 to every position: 1 is the downbeat"
NO_DOWNBEATS = (
    "new bars start from here, but no beat has the position 1, which is the downbeat; write positions "
    "that count from 1, or only times if downbeats are unknown"
)
# "1" or, as some files write it, "1.0"; no metre has more beats than three digits hold.
_POSITION = re.compile(r"(\d{1,3})(?:\.0*)?", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Beats:
    """Beats of a track.

    Attributes:
        times_seconds: (beats,), at least 0, strictly increasing; empty without beats.
        positions: (beats,), the position of each beat in its bar, 1 is the downbeat; None if the
            annotation has only times, so downbeats are unknown.
    """

    times_seconds: NDArray[np.float64]
    positions: NDArray[np.int64] | None

    @property
    def downbeats_seconds(self) -> NDArray[np.float64] | None:
        """Times of the beats at position 1, (downbeats,); None if positions are unknown."""
        return None if self.positions is None else self.times_seconds[self.positions == 1]


def read_beats(path: Path) -> Beats:
    """Read a ``.beats`` file: a line a beat, with its time and, in most files, its position.

    Cells are separated by white space, as a tab in CPJKU's beat_this_annotations or a space in
    Ballroom; files of one column, such as SMC's, have no positions. Blank lines and lines that
    start with ``#`` are skipped. An empty file is valid, for a track without beats.

    Raises:
        LabelError: The file cannot be read; or lists all lines with a time that is not a finite number
            of seconds from 0 or not after the last line's time, a position that is not an integer
            from 1 to 999, or with another number of cells than the first line; or its positions have no
            downbeat.
    """
    rows = read_rows(path)
    beats, problems = _parse_rows(rows)
    if not problems and beats.positions is not None and _lacks_downbeats(beats.positions):
        problems = [(rows[0][0], NO_DOWNBEATS)]
    if problems:
        raise LabelError(
            f"{path} has lines that cannot be used",
            [f"{path}:{line}: {what}" for line, what in problems],
            "A line is: time in seconds and, in every line or in none, the position in the bar "
            f"(1 is the downbeat). {CELLS}",
            code="beats-bad-lines",
        )
    return beats


def _lacks_downbeats(positions: NDArray[np.int64]) -> bool:
    """Return True if bars start, as positions do not ascend all the way, and none with the downbeat."""
    return bool((np.diff(positions) <= 0).any() and not (positions == 1).any())


def format_beats(times_seconds: ArrayLike, positions: ArrayLike | None) -> str:
    r"""Return the text of a ``.beats`` file: a line a beat, with a tab between time and position.

    Times have six digits after the point, so reading the text back is exact to 0.5 microseconds.

    >>> format_beats([0.5, 1.0], [1, 2])
    '0.500000\t1\n1.000000\t2\n'

    Args:
        times_seconds: (beats,).
        positions: (beats,), or None for a file of times only.

    Raises:
        ValueError: `read_beats` would refuse the text (the message counts beats from 1), or there
            are not as many positions as times.
    """
    times = [f"{time:.6f}" for time in np.asarray(times_seconds, dtype=np.float64)]
    if positions is None:
        lines = times
    else:
        cells = zip(times, np.asarray(positions).tolist(), strict=True)
        lines = [f"{time}\t{position}" for time, position in cells]
    text = "".join(f"{line}\n" for line in lines)
    _, problems = _parse_rows(split_rows(text))
    if problems:
        raise ValueError("; ".join(f"beat {number}: {what}" for number, what in problems))
    return text


def _parse_rows(rows: Sequence[tuple[int, list[str]]]) -> tuple[Beats, list[tuple[int, str]]]:
    """Return the beats of numbered rows, and the line and text of every problem."""
    times: list[float] = []
    positions: list[int] = []
    problems: list[tuple[int, str]] = []
    num_cells = min(len(rows[0][1]), 2) if rows else 1
    last: tuple[int, float] | None = None  # line and time of the row above
    for line, cells in rows:
        if len(cells) != num_cells:
            expected = "time and position" if num_cells == 2 else "the time only"
            model = f", as in line {rows[0][0]}" if line != rows[0][0] else ""
            problems.append((line, f"{len(cells)} cells instead of {expected}{model}"))
        try:
            time = parse_seconds(cells[0])
        except ValueError as error:
            problems.append((line, str(error)))
        else:
            if last is not None and time <= last[1]:
                problems.append((line, f"the time {time} is not after {last[1]} of line {last[0]}"))
            last = (line, time)
            times.append(time)
        if len(cells) > 1:
            match = _POSITION.fullmatch(cells[1])
            if match and int(match.group(1)):
                positions.append(int(match.group(1)))
            else:
                hint = COUNTED_FROM_0 if match else ""
                problems.append(
                    (line, f"the position '{cells[1]}' is not an integer from 1 to 999{hint}")
                )
    beats = Beats(
        times_seconds=np.array(times, dtype=np.float64),
        positions=np.array(positions, dtype=np.int64) if num_cells == 2 else None,
    )
    return beats, problems
