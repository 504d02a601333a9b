"""Melody annotations: the fundamental frequency of the main melody along a track."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m2v_finetune.labels.notes import read_midi
from m2v_finetune.labels.problems import (
    LabelError,
    parse_number,
    parse_seconds,
    read_rows,
    split_rows,
)

MAX_GAP_SECONDS = 0.1
"""Longest distance of two lines. MedleyDB's are 5.8 ms apart, those of MIREX 10 ms, of iKala 32 ms."""

MIDI_TRACK = "melody"
MIDI_HOP_SECONDS = 0.01
LOWEST_HZ, HIGHEST_HZ = 20.0, 10_000.0
_MIDI_SUFFIXES = (".mid", ".midi")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Melody:
    """Melody of a track.

    Attributes:
        times_seconds: (times,), at least 0, strictly increasing, at least one, at most 0.1 s apart.
        frequencies_hz: (times,), fundamental frequency; 0 or negative where there is no melody (the absolute
            value is then a guess, as mir_eval reads it).
    """

    times_seconds: NDArray[np.float64]
    frequencies_hz: NDArray[np.float64]

    def at(self, times_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the frequency at times in Hz, 0 where there is no melody; that of the nearest line.

        Before the first line and after the last one there is no melody.
        """
        borders = (self.times_seconds[1:] + self.times_seconds[:-1]) / 2
        nearest = np.searchsorted(borders, times_seconds, side="right")
        is_near = np.abs(self.times_seconds[nearest] - times_seconds) <= MAX_GAP_SECONDS / 2
        found: NDArray[np.float64] = np.where(is_near, self.frequencies_hz[nearest], 0.0).clip(
            min=0
        )
        return found

    def until(self, end_seconds: float) -> "Melody":
        """Return the same melody with lines from 0 to the end of the track, of 0 Hz where it had none."""
        first, last = self.times_seconds[0], self.times_seconds[-1]
        before = np.arange(0.0, first - MAX_GAP_SECONDS / 2, MIDI_HOP_SECONDS)
        after = np.arange(last + MAX_GAP_SECONDS / 2, end_seconds, MIDI_HOP_SECONDS)
        return Melody(
            times_seconds=np.concatenate([before, self.times_seconds, after]),
            frequencies_hz=np.concatenate(
                [np.zeros(len(before)), self.frequencies_hz, np.zeros(len(after))]
            ),
        )


def read_melody(path: Path) -> Melody:
    """Read the melody of a text file, or of a MIDI file.

    A line of a text file is a time in seconds and a frequency in Hz, with a comma or white space between
    them; 0 or a negative frequency is no melody. So are the files of MedleyDB's Melody1 and Melody2, of
    Orchset and of MIREX. Of a MIDI file (``.mid``), such as POP909's, the notes of the tracks named
    ``melody`` count, sampled every 10 ms; where two overlap, the one that started last.

    Raises:
        LabelError: The file cannot be read; or lists all lines with other cells, a time that is not after the
            last line's or more than 0.1 s behind it, or a frequency outside 20 to 10,000 Hz; or a MIDI file
            has no track named ``melody``, or errors of `read_midi`.
    """
    if path.suffix.lower() in _MIDI_SUFFIXES:
        return _melody_of_notes(path)
    rows = [(line, " ".join(cells).replace(",", " ").split()) for line, cells in read_rows(path)]
    melody, problems = _parse_rows(rows)
    if problems:
        raise LabelError(
            f"{path} has lines that cannot be used",
            [f"{path}:{line}: {what}" for line, what in problems],
            "A line is: time in seconds, comma, frequency in Hz (0 where there is no melody). Numbers have a "
            "decimal point.",
            code="melody-bad-lines",
        )
    if not rows:
        raise LabelError(
            f"{path} has no melody",
            [f"{path}: no line"],
            "A track without melody has lines too, with the frequency 0.",
            code="melody-empty",
        )
    return melody


def format_melody(times_seconds: ArrayLike, frequencies_hz: ArrayLike) -> str:
    r"""Return the text of a file of `read_melody`: a line a time, with its frequency or 0.

    >>> format_melody([0.0, 0.02], [440.0, -220.0])
    '0.000000,440.000\n0.020000,0.000\n'

    Args:
        times_seconds: (times,).
        frequencies_hz: (times,); negative ones are written as 0.

    Raises:
        ValueError: `read_melody` would refuse the text (the message counts lines from 1).
    """
    times = np.asarray(times_seconds, dtype=np.float64)
    pairs = zip(times, np.asarray(frequencies_hz, dtype=np.float64).clip(min=0), strict=True)
    text = "".join(f"{time:.6f},{hz:.3f}\n" for time, hz in pairs)
    _, problems = _parse_rows([(n, cells[0].split(",")) for n, cells in split_rows(text)])
    if problems:
        raise ValueError("; ".join(f"line {number}: {what}" for number, what in problems))
    return text


def _melody_of_notes(path: Path) -> Melody:
    notes = read_midi(path, sustain=False, track_name=MIDI_TRACK)
    end_seconds = float(notes.offsets_seconds.max(initial=0.0))
    num_times = math.floor(end_seconds / MIDI_HOP_SECONDS) + 2
    times = np.arange(num_times, dtype=np.float64) * MIDI_HOP_SECONDS
    frequencies = np.zeros(len(times))
    for onset, offset, pitch in zip(
        notes.onsets_seconds, notes.offsets_seconds, notes.pitches, strict=True
    ):
        first, stop = np.searchsorted(times, (onset, offset))
        frequencies[first:stop] = 440.0 * 2.0 ** ((pitch - 69) / 12)
    return Melody(times_seconds=times, frequencies_hz=frequencies)


def _parse_rows(rows: Sequence[tuple[int, list[str]]]) -> tuple[Melody, list[tuple[int, str]]]:
    """Return the melody of numbered rows, and the line and text of every problem."""
    times: list[float] = []
    frequencies: list[float] = []
    problems: list[tuple[int, str]] = []
    last: tuple[int, float] | None = None  # line and time of the row above
    for line, cells in rows:
        if len(cells) != 2:
            problems.append((line, f"{len(cells)} cells instead of time and frequency"))
            continue
        try:
            time = parse_seconds(cells[0])
        except ValueError as error:
            problems.append((line, str(error)))
        else:
            if last is not None:
                problems += [(line, what) for what in _order_problems(time, last)]
            last = (line, time)
            times.append(time)
        try:
            frequencies.append(_parse_hz(cells[1]))
        except ValueError as error:
            problems.append((line, str(error)))
    return Melody(times_seconds=np.array(times), frequencies_hz=np.array(frequencies)), problems


def _order_problems(time: float, last: tuple[int, float]) -> list[str]:
    line, last_time = last
    if time <= last_time:
        return [f"the time {time} is not after {last_time} of line {line}"]
    if time - last_time > MAX_GAP_SECONDS:
        return [
            f"the time {time} is more than {MAX_GAP_SECONDS} s after {last_time} of line {line}; lines "
            "without melody have the frequency 0"
        ]
    return []


def _parse_hz(cell: str) -> float:
    try:
        hz = parse_number(cell)
    except ValueError as error:
        raise ValueError(f"'{cell}' is not a frequency in Hz") from error
    if hz != 0 and not LOWEST_HZ <= abs(hz) <= HIGHEST_HZ:  # nan too
        raise ValueError(
            f"the frequency {cell} is neither 0 nor from {LOWEST_HZ:g} to {HIGHEST_HZ:,.0f} Hz"
        )
    return hz
