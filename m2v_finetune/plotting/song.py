"""Pictures of a prediction along a song, in rows like those of a score."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m2v_finetune.plotting.beats import draw_envelope
from m2v_finetune.plotting.chords import AXES_INCHES, Segment, draw_segments
from m2v_finetune.plotting.melody import draw_line, style_pitches
from m2v_finetune.plotting.notes import Notes, draw_notes, pitch_range
from m2v_finetune.plotting.sections import draw_sections
from m2v_finetune.plotting.style import (
    BLUE,
    ORANGE,
    SERIES,
    WHITE_TO_BLUE,
    legend_above,
    new_figure,
    shortened,
    style_axes,
    style_colorbar,
)

Pixels = NDArray[np.uint8]
"""A picture, (height, width, 3)."""

MAX_ROWS = 8
BEAT_ROW_SECONDS = 15.0
CHORD_ROW_SECONDS = 20.0
NOTE_ROW_SECONDS = 15.0
MELODY_ROW_SECONDS = 15.0
SECTION_ROW_SECONDS = 120.0
CAPTION_PIXELS = 40


def draw_timeline(
    waveform: NDArray[np.float32],
    sample_rate: int,
    edges_seconds: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    *,
    is_probability: bool,
) -> Pixels:
    """Draw scores of windows below the waveform of a song.

    Args:
        waveform: (samples,), of the song.
        sample_rate: Sample rate in Hz.
        edges_seconds: Start of each window, and the end of the last one.
        scores: Scores of the windows, by label.
        is_probability: Whether scores are probabilities, drawn as shades; else lines.
    """
    height = 0.32 * len(scores) if is_probability else 1.8
    figure = new_figure(height_inches=1.9 + height)
    top, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.9, height])
    duration_seconds = len(waveform) / sample_rate
    style_axes(top, grid=None)
    top.spines[:].set_visible(False)
    top.set_yticks([])
    top.tick_params(axis="x", length=0, labelbottom=False)
    draw_envelope(top, waveform, sample_rate, 0.0, duration_seconds)
    names = [shortened(label) for label in scores]
    rows = np.array(list(scores.values()))
    if is_probability:
        style_axes(axes, grid=None)
        axes.spines[:].set_visible(False)
        positions = np.arange(len(names) + 1) - 0.5
        mesh = axes.pcolormesh(
            edges_seconds, positions, rows, cmap=WHITE_TO_BLUE, vmin=0, vmax=1, edgecolor="white"
        )
        axes.invert_yaxis()
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        bar = figure.colorbar(mesh, ax=[top, axes], pad=0.02, fraction=0.04, aspect=20)
        style_colorbar(bar, "Probability")
    else:
        style_axes(axes, grid="y")
        for name, row, (color, _) in zip(names, rows, SERIES, strict=False):
            axes.stairs(row, edges_seconds, baseline=None, color=color, linewidth=2, label=name)
        legend_above(axes)
    axes.set(xlim=(0, duration_seconds), xlabel="Seconds")
    return _pixels(figure)


def draw_beats(
    waveform: NDArray[np.float32],
    sample_rate: int,
    beats_seconds: NDArray[np.float64],
    downbeats_seconds: NDArray[np.float64],
) -> Pixels:
    """Draw beats and downbeats over a waveform, (samples,), in rows of 15 s, at most eight."""

    def draw(axes: Axes, start: float, end: float) -> None:
        style_axes(axes, grid=None)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        draw_envelope(axes, waveform, sample_rate, start, min(end, duration_seconds))
        for times, name, color, width, half in (
            (beats_seconds, "beat", BLUE, 1.6, 0.34),
            (downbeats_seconds, "downbeat", ORANGE, 2.8, 0.5),
        ):
            here = times[(times >= start) & (times < end)]
            label = name if start == 0 else "_"
            axes.vlines(here, 0.5 - half, 0.5 + half, color=color, linewidth=width, label=label)
        axes.set_ylim(0, 1)
        if start == 0:
            legend_above(axes)

    duration_seconds = len(waveform) / sample_rate
    return _rows(draw, duration_seconds, BEAT_ROW_SECONDS, height_inches=1.05)


def draw_chords(segments: Sequence[Segment]) -> Pixels:
    """Draw the chords of a song as coloured segments, in rows of 20 s, at most eight."""

    def draw(axes: Axes, start: float, end: float) -> None:
        here = [
            (max(first, start), min(last, end), label)
            for first, last, label in segments
            if first < end and last > start
        ]
        draw_segments(axes, {"": here}, inches_per_second=AXES_INCHES / CHORD_ROW_SECONDS)
        axes.set_yticks([])

    return _rows(draw, segments[-1][1], CHORD_ROW_SECONDS, height_inches=0.75)


def draw_piano_roll(notes: Notes, duration_seconds: float) -> Pixels:
    """Draw the notes of a song in rows of 15 s, at most eight."""
    low, high = pitch_range(notes[2])

    def draw(axes: Axes, start: float, end: float) -> None:
        draw_notes(axes, notes, low, high, start_seconds=start, end_seconds=end)
        octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
        axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])

    height = 0.5 + 0.055 * (high - low + 1)
    return _rows(draw, duration_seconds, NOTE_ROW_SECONDS, height_inches=height)


def draw_melody(times_seconds: NDArray[np.float64], frequencies_hz: NDArray[np.float64]) -> Pixels:
    """Draw the melody of a song, (frames,), 0 Hz where there is none, in rows of 15 s, at most eight."""

    def draw(axes: Axes, start: float, end: float) -> None:
        style_pitches(axes, frequencies_hz)
        is_here = (times_seconds >= start) & (times_seconds < end)
        line = (times_seconds[is_here], frequencies_hz[is_here])
        draw_line(axes, line, color=BLUE, width=2.0)

    return _rows(draw, float(times_seconds[-1]), MELODY_ROW_SECONDS, height_inches=1.6)


def draw_structure(segments: Sequence[Segment], names: Sequence[str]) -> Pixels:
    """Draw the sections of a song in rows of 120 s, at most eight, with a colour for each name."""

    def draw(axes: Axes, start: float, end: float) -> None:
        here = [(max(a, start), min(b, end), c) for a, b, c in segments if a < end and b > start]
        draw_sections(axes, here, names)

    return _rows(draw, segments[-1][1], SECTION_ROW_SECONDS, height_inches=0.75)


def _rows(
    draw: Callable[[Axes, float, float], None],
    duration_seconds: float,
    row_seconds: float,
    *,
    height_inches: float,
) -> Pixels:
    """Draw a song in rows of equal length, each by ``draw(axes, start_seconds, end_seconds)``."""
    num_rows = min(MAX_ROWS, max(1, int(np.ceil(duration_seconds / row_seconds - 1e-6))))
    figure = new_figure(height_inches=0.7 + num_rows * height_inches)
    for row, axes in enumerate(figure.subplots(num_rows, 1, squeeze=False).ravel()):
        start = row * row_seconds
        draw(axes, start, start + row_seconds)
        axes.set_xlim(start, start + row_seconds)
    axes.set_xlabel("Seconds")
    return _pixels(figure)


def _pixels(figure: Figure) -> Pixels:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: Pixels = np.array(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]
    # The page lays its caption and buttons over the top of a picture.
    return np.pad(pixels, ((CAPTION_PIXELS, 0), (0, 0), (0, 0)), constant_values=255)
