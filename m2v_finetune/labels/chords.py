"""Chord annotations: ``.lab`` files of Harte's labels, and the 25 classes of major/minor recognition.

Source of the grammar: Harte, Sandler, Abdallah and Gomez, "Symbolic representation of musical chords",
ISMIR 2005, as `mir_eval.chord` implements it. A label that mir_eval cannot encode is not a chord here.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.labels.keys import PITCH_CLASSES
from m2v_finetune.labels.problems import CELLS, LabelError, parse_seconds, read_rows, split_rows

NO_CHORD = "N"
UNKNOWN_CHORD = "X"
CHORDS: tuple[str, ...] = (
    *(f"{root}:{quality}" for quality in ("maj", "min") for root in PITCH_CLASSES),
    NO_CHORD,
)
"""The classes: 12 major triads, 12 minor triads, and N for no chord.

N comes last, so that the index of a triad is the pitch class of its root + 12 if it is minor, as in
`keys.KEYS`, and transposing is the same arithmetic for both.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One chord and the time that it lasts.

    Attributes:
        start_seconds: At least 0.
        end_seconds: After `start_seconds`.
        label: A label of Harte's grammar, such as ``Eb:min7/b3``, ``N`` (no chord) or ``X`` (a
            chord, but the annotator could not name it).
    """

    start_seconds: float
    end_seconds: float
    label: str


def read_lab(path: Path) -> list[Segment]:
    """Read a ``.lab`` file as Isophonics, Billboard and MIREX write them: start, end, label.

    Cells are separated by white space; blank lines and lines that start with ``#`` are skipped.
    A gap between segments is valid and stays a gap: the music there is not annotated.

    Returns:
        At least one segment, in order of time, without overlaps.

    Raises:
        LabelError: The file cannot be read or holds no segment; or lists all lines without exactly
            three cells, with a time that is not a finite number of seconds from 0, an end that is not
            after its start, a start before the last line's start or end, or a label that is not
            a chord.
    """
    segments, problems = _parse_rows(read_rows(path))
    if problems:
        raise LabelError(
            f"{path} has lines that cannot be used",
            [f"{path}:{line}: {what}" for line, what in problems],
            f"A line is: start and end in seconds, and a chord such as C:maj, A:min7/b3 or N. {CELLS}",
            code="chords-bad-lines",
        )
    if not segments:
        raise LabelError(
            "A chord annotation is empty",
            [f"{path}: no segment"],
            "A track without a chord has one line, from 0 to its end, with the label N.",
            code="chords-empty",
        )
    return segments


def format_lab(segments: Sequence[Segment]) -> str:
    r"""Return the text of a ``.lab`` file: start, end and label, separated by tabs.

    Times have six digits after the point, so reading the text back is exact to 0.5 microseconds.

    >>> format_lab([Segment(start_seconds=0, end_seconds=1.5, label="A:min")])
    '0.000000\t1.500000\tA:min\n'

    Raises:
        ValueError: `read_lab` would refuse the text; the message counts segments from 1.
    """
    text = "".join(f"{s.start_seconds:.6f}\t{s.end_seconds:.6f}\t{s.label}\n" for s in segments)
    _, problems = _parse_rows(split_rows(text))
    if problems:
        raise ValueError("; ".join(f"segment {number}: {what}" for number, what in problems))
    return text


def write_lab(path: Path, segments: Sequence[Segment]) -> None:
    """Write a ``.lab`` file, as `format_lab` gives it.

    Raises:
        ValueError: Errors of `format_lab`; nothing is written.
    """
    path.write_text(format_lab(segments), encoding="utf-8")


@functools.cache
def to_majmin(label: str) -> str | None:
    """Return the one of `CHORDS` that a label counts as in major/minor recognition, or None.

    The pitches of the label up to the fifth decide: sevenths and other notes above it do not matter,
    while suspended, diminished, augmented and power chords, basses that add a note below it, and
    ``X`` have no class; nor do they count in the score.

    Source: the `majmin` rule of MIREX as `mir_eval.chord.majmin` implements it; tests assert that
    both agree.

    >>> [to_majmin(label) for label in ("Eb:min7/b3", "C", "G:sus4", "N", "X")]
    ['D#:min', 'C:maj', None, 'N', None]

    Raises:
        ValueError: The label is not a chord.
    """
    if label == NO_CHORD:
        return NO_CHORD
    root, intervals = _encode(label)
    for offset, third in ((0, 4), (12, 3)):
        if np.array_equal(np.flatnonzero(intervals[:8]), (0, third, 7)):
            return CHORDS[root + offset]
    return None


def transpose_chord(label: str, semitones: int) -> str:
    """Return the label of a chord that is shifted up by `semitones` (down if negative).

    Only the root moves, and is then spelled with a sharp; the rest of the label is relative to it.
    ``N`` and ``X`` stay.

    >>> transpose_chord("Eb:min7/b3", 2)
    'F:min7/b3'

    Raises:
        ValueError: The label is not a chord.
    """
    if label in (NO_CHORD, UNKNOWN_CHORD):
        return label
    root, _ = _encode(label)
    return PITCH_CLASSES[(root + semitones) % 12] + label[1:].lstrip("#b")


def _encode(label: str) -> tuple[int, NDArray[np.int64]]:
    """Return a label's root (0 is C; -1 for N and X) and its pitches above the root, (12,) of 0 and 1.

    For ``X`` the pitches are -1.

    Raises:
        ValueError: The label is not a chord.
    """
    # Imported here because it takes seconds; names and formats do not need it.
    from mir_eval import chord

    try:
        root, intervals, _ = chord.encode(label)
    except chord.InvalidChordException as error:
        raise ValueError(
            f"'{label}' is not a chord ({error}); valid are N, X, and labels such as C:maj, Bb:7, "
            "F#:min7/b3"
        ) from error
    return root, intervals


def _parse_rows(
    rows: Sequence[tuple[int, list[str]]],
) -> tuple[list[Segment], list[tuple[int, str]]]:
    """Return the segments of numbered rows, and the line and text of every problem."""
    segments: list[Segment] = []
    problems: list[tuple[int, str]] = []
    last: tuple[int, float, float] | None = None  # line, start and end of the row above
    for line, cells in rows:
        if len(cells) != 3:
            problems.append((line, f"'{' '.join(cells)}' is not start, end and label"))
            continue
        times: list[float] = []
        for cell in cells[:2]:
            try:
                times.append(parse_seconds(cell))
            except ValueError as error:
                problems.append((line, str(error)))
        if len(times) == 2:
            start, end = times
            problems.extend((line, what) for what in _order_problems(start, end, last))
            last = (line, start, end)
            segments.append(Segment(start_seconds=start, end_seconds=end, label=cells[2]))
        try:
            to_majmin(cells[2])
        except ValueError as error:
            problems.append((line, str(error)))
    return segments, problems


def _order_problems(
    start_seconds: float, end_seconds: float, last: tuple[int, float, float] | None
) -> list[str]:
    problems = []
    if end_seconds <= start_seconds:
        problems.append(f"the end {end_seconds} is not after the start {start_seconds}")
    if last is not None:
        line, last_start, last_end = last
        if start_seconds < last_start:
            problems.append(
                f"the start {start_seconds} is before the start {last_start} of line {line}"
            )
        elif start_seconds < last_end:
            problems.append(
                f"the start {start_seconds} is before the end {last_end} of line {line}"
            )
    return problems
