"""Melody: its pitch over time, estimated and annotated."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    BLUE,
    ORANGE,
    legend_above,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
)

Line = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Times in seconds and frequencies in Hz, 0 for no melody; (times,) each."""

MIN_SEMITONES = 12


def plot_melody(
    estimated: Line, reference: Line, path: Path, *, end_seconds: float, title: str = "Melody"
) -> None:
    """Draw the first seconds of a melody, estimated over annotated.

    Args:
        estimated: Estimated melody.
        reference: Annotated melody.
        path: PNG file; its folder is created if needed.
        end_seconds: End of the plot.
        title: Title, such as the name of the track.
    """
    save(melody_figure(estimated, reference, end_seconds=end_seconds, title=title), path)


def melody_figure(estimated: Line, reference: Line, *, end_seconds: float, title: str) -> Figure:
    """Return the figure of `plot_melody`."""
    figure = new_figure(height_inches=4.0)
    axes = figure.subplots()
    shown = [_until(line, end_seconds) for line in (reference, estimated)]
    style_pitches(axes, np.concatenate([frequencies for _, frequencies in shown]))
    for line, name, color, width in zip(
        shown, ("annotated", "estimated"), (ORANGE, BLUE), (5.0, 1.8), strict=True
    ):
        draw_line(axes, line, color=color, width=width, name=name)
    axes.set(xlim=(0.0, end_seconds), xlabel="Seconds")
    legend_above(axes)
    title_axes(axes, shortened(title), "")
    return figure


def draw_line(axes: Axes, line: Line, *, color: str, width: float, name: str = "_") -> None:
    """Draw a melody in semitones, with gaps where there is none."""
    times, frequencies = line
    axes.plot(
        times, semitones(frequencies), color=color, linewidth=width, label=name,
        solid_capstyle="butt",
    )  # fmt: skip


def style_pitches(axes: Axes, frequencies_hz: NDArray[np.floating]) -> None:
    """Set the range of pitches to all frequencies, an octave at least, and name each C."""
    voiced = semitones(frequencies_hz[frequencies_hz > 0])
    low, high = (voiced.min() - 1, voiced.max() + 1) if len(voiced) else (60.0, 72.0)
    missing = max(0.0, MIN_SEMITONES - (high - low)) / 2
    low, high = low - missing, high + missing
    style_axes(axes, grid="y")
    octaves = [pitch for pitch in range(int(np.ceil(low)), int(high) + 1) if pitch % 12 == 0]
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
    axes.set_ylim(low, high)


def semitones(frequencies_hz: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return MIDI numbers of frequencies, nan for 0."""
    with np.errstate(divide="ignore"):
        found = 69 + 12 * np.log2(np.asarray(frequencies_hz, np.float64) / 440)
    pitches: NDArray[np.float64] = np.where(np.isfinite(found), found, np.nan)
    return pitches


def _until(line: Line, end_seconds: float) -> Line:
    is_shown = line[0] <= end_seconds
    return line[0][is_shown], line[1][is_shown]
