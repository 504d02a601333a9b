"""Beats over a waveform."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    BLUE,
    GREY,
    ORANGE,
    legend_above,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
)

MAX_STRETCH_SECONDS = 10.0
ENVELOPE_COLUMNS = 900
WAVEFORM = "#D5D5D5"


def plot_beats(
    waveform: NDArray[np.floating],
    sample_rate: int,
    frame_times: NDArray[np.floating],
    beat_activation: NDArray[np.floating],
    downbeat_activation: NDArray[np.floating],
    estimated_beats: NDArray[np.floating],
    estimated_downbeats: NDArray[np.floating],
    reference_beats: NDArray[np.floating] | None,
    reference_downbeats: NDArray[np.floating] | None,
    path: Path,
    *,
    start_seconds: float = 0.0,
    title: str = "Beats and downbeats",
) -> None:
    """Plot predicted beats over at most ten seconds of a waveform.

    All times are in seconds from the start of the waveform.

    Args:
        waveform: (samples,).
        sample_rate: Sample rate, in Hz.
        frame_times: (frames,), the centres of the frames.
        beat_activation: (frames,), probabilities in [0, 1].
        downbeat_activation: (frames,), probabilities in [0, 1].
        estimated_beats: (beats,), downbeats among them.
        estimated_downbeats: (downbeats,).
        reference_beats: (beats,), those that were annotated, downbeats among them; None for none.
        reference_downbeats: (downbeats,); None for none.
        path: PNG file; its folder is created if needed.
        start_seconds: Start of the plot.
        title: Title, such as the name of the track.
    """
    figure = beats_figure(
        waveform,
        sample_rate,
        frame_times,
        beat_activation,
        downbeat_activation,
        estimated_beats,
        estimated_downbeats,
        reference_beats,
        reference_downbeats,
        start_seconds=start_seconds,
        title=title,
    )
    save(figure, path)


def beats_figure(
    waveform: NDArray[np.floating],
    sample_rate: int,
    frame_times: NDArray[np.floating],
    beat_activation: NDArray[np.floating],
    downbeat_activation: NDArray[np.floating],
    estimated_beats: NDArray[np.floating],
    estimated_downbeats: NDArray[np.floating],
    reference_beats: NDArray[np.floating] | None,
    reference_downbeats: NDArray[np.floating] | None,
    *,
    start_seconds: float,
    title: str,
) -> Figure:
    """Return the figure of `plot_beats`."""
    end_seconds = min(start_seconds + MAX_STRETCH_SECONDS, len(waveform) / sample_rate)
    rows = {"estimated": (estimated_beats, estimated_downbeats)}
    if reference_beats is not None:
        downbeats = np.empty(0) if reference_downbeats is None else reference_downbeats
        rows = {"annotated": (reference_beats, downbeats), **rows}
    figure = new_figure(height_inches=3.6 + 0.35 * len(rows))
    strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.35 * len(rows), 2.4])

    style_axes(strip, grid=None)
    strip.spines[:].set_visible(False)
    strip.tick_params(length=0, labelbottom=False)
    strip.set_yticks(range(len(rows)), list(rows))
    strip.set_ylim(len(rows) - 0.45, -0.55)
    for row, times in enumerate(rows.values()):
        _draw_ticks(strip, row, *times, is_named=row == 0)
    legend_above(strip)

    style_axes(axes, grid=None)
    draw_envelope(axes, waveform, sample_rate, start_seconds, end_seconds)
    [beats, _], *_ = rows.values()
    axes.vlines(beats, 0, 1.02, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))
    for activation, color in ((beat_activation, BLUE), (downbeat_activation, ORANGE)):
        axes.fill_between(frame_times, 0, activation, color=color, alpha=0.15, linewidth=0)
        axes.plot(frame_times, activation, color=color, linewidth=1.6)
    axes.set(xlim=(start_seconds, end_seconds), ylim=(0, 1.02))
    axes.set(xlabel="Seconds", ylabel="Probability")
    title_axes(strip, shortened(title), "")
    return figure


def _draw_ticks(
    axes: Axes,
    row: int,
    beats: NDArray[np.floating],
    downbeats: NDArray[np.floating],
    *,
    is_named: bool,
) -> None:
    """Draw a short tick at each beat and a tall one over it at each downbeat."""
    for times, half, color, width, name in (
        (beats, 0.22, BLUE, 2.0, "beat"),
        (downbeats, 0.4, ORANGE, 3.2, "downbeat"),
    ):
        label = name if is_named else "_"
        axes.vlines(times, row - half, row + half, color=color, linewidth=width, label=label)


def draw_envelope(
    axes: Axes,
    waveform: NDArray[np.floating],
    sample_rate: int,
    start_seconds: float,
    end_seconds: float,
) -> None:
    """Draw between which values a waveform moves, in the middle of axes from 0 to 1."""
    stretch = waveform[round(start_seconds * sample_rate) : round(end_seconds * sample_rate)]
    columns = np.array_split(stretch, min(ENVELOPE_COLUMNS, len(stretch)))
    low = np.array([column.min() for column in columns])
    high = np.array([column.max() for column in columns])
    scale = 0.5 / max(float(np.abs(stretch).max()), 1e-9)
    times = np.linspace(start_seconds, end_seconds, len(columns))
    axes.fill_between(times, 0.5 + scale * low, 0.5 + scale * high, color=WAVEFORM, linewidth=0)
