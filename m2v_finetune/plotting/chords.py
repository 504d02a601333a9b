"""Chords over time: estimated, annotated, and the probabilities behind them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    GREY,
    PALE,
    WHITE_TO_BLUE,
    ink_on,
    new_figure,
    save,
    shortened,
    style_axes,
    style_colorbar,
    title_axes,
)

Segment = tuple[float, float, str]
"""Start and end in seconds, and the chord."""

PITCH_CLASS_OF_LETTER = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
# By steps on the circle of fifths, from C major and A minor: twelve hues of one lightness, light for
# major and dark for minor, so that relatives share a hue and neighbours are alike.
# Source: OKLCH (Ottosson, "A perceptual color space for image processing", 2020), hues 30 degrees
# apart from 250, chroma 0.095, lightness 0.84 and 0.48.
MAJOR_COLORS = (
    "#9BD0FF", "#BEC4FF", "#DEBAF9", "#F5B3DE", "#FFB1BC", "#FFB69C",
    "#F3C085", "#D9CC83", "#B6D795", "#92DEB5", "#7ADFD8", "#7FD9F5",
)  # fmt: skip
MINOR_COLORS = (
    "#2F6191", "#545792", "#6E4D85", "#81476E", "#8A4551", "#8A4932",
    "#7F5314", "#6A5E0C", "#4B682A", "#1E6E4B", "#006E69", "#006982",
)  # fmt: skip
AXES_INCHES = 6.1
ROW_INCHES = 0.5
POINTS, SMALL_POINTS = 9, 7
INCHES_PER_CHARACTER_AND_POINT = 0.0095


def plot_chords(
    estimated: Sequence[Segment],
    reference: Sequence[Segment] | None,
    probabilities: NDArray[np.floating] | None,
    frame_times: NDArray[np.floating] | None,
    path: Path,
    *,
    names: Sequence[str] = (),
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    title: str = "Chords",
) -> None:
    """Draw chords as strips of coloured segments, above the probabilities of each frame.

    The colour is the position on the circle of fifths; majors are light, minors dark, no chord is grey.

    Args:
        estimated: Segments in the order of time, with labels as mir_eval reads them, such as
            ``C:maj``, ``F#:min`` or ``N``.
        reference: Annotated segments; None for none.
        probabilities: (frames, chords), in [0, 1]; None for none.
        frame_times: (frames,), the centres of the frames in seconds, evenly spaced; needed with
            ``probabilities``.
        path: PNG file; its folder is created if needed.
        names: (chords,), the columns of ``probabilities``.
        start_seconds: Start of the plot.
        end_seconds: End of the plot; None for the end of the estimated segments.
        title: Title, such as the name of the track.
    """
    figure = chords_figure(
        estimated,
        reference,
        probabilities,
        frame_times,
        names=names,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        title=title,
    )
    save(figure, path)


def chords_figure(
    estimated: Sequence[Segment],
    reference: Sequence[Segment] | None,
    probabilities: NDArray[np.floating] | None,
    frame_times: NDArray[np.floating] | None,
    *,
    names: Sequence[str] = (),
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    title: str = "Chords",
) -> Figure:
    """Return the figure of `plot_chords`."""
    end_seconds = estimated[-1][1] if end_seconds is None else end_seconds
    rows = {"estimated": estimated}
    if reference is not None:
        rows = {"annotated": reference, **rows}
    heights = [ROW_INCHES * len(rows)] + ([0.165 * len(names)] if probabilities is not None else [])
    figure = new_figure(height_inches=1.55 + sum(heights))
    axes_of_rows = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    ).ravel()
    strip = axes_of_rows[0]
    draw_segments(strip, rows, inches_per_second=AXES_INCHES / (end_seconds - start_seconds))
    if probabilities is not None and frame_times is not None:
        strip.tick_params(axis="x", length=0, labelbottom=False)
        _draw_probabilities(axes_of_rows[1], probabilities, frame_times, names)
    axes_of_rows[-1].set_xlabel("Seconds")
    strip.set_xlim(start_seconds, end_seconds)
    how = "Colours by the circle of fifths; light is major, dark minor"
    title_axes(strip, shortened(title), how)
    return figure


def chord_color(label: str) -> str:
    """Return the colour of a chord label; grey for no chord and for labels without a root."""
    root, _, quality = label.partition("/")[0].partition(":")
    if root[:1] not in PITCH_CLASS_OF_LETTER:
        return PALE
    pitch_class = PITCH_CLASS_OF_LETTER[root[0]] + root.count("#") - root.count("b")
    if quality.startswith(("min", "dim", "hdim")):
        return MINOR_COLORS[(pitch_class - 9) * 7 % 12]
    return MAJOR_COLORS[pitch_class * 7 % 12]


def draw_segments(
    axes: Axes, rows: dict[str, Sequence[Segment]], *, inches_per_second: float
) -> None:
    """Draw a strip for each row, with the names of the chords that have room for it."""
    style_axes(axes, grid=None)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for row, segments in enumerate(rows.values()):
        for start, end, label in segments:
            color = chord_color(label)
            axes.barh(
                row, end - start, 0.86, left=start, color=color, edgecolor="white", linewidth=1
            )
            fit = _fit(label, (end - start) * inches_per_second)
            if fit is not None:
                axes.text(
                    (start + end) / 2,
                    row,
                    label,
                    ha="center",
                    va="center",
                    fontsize=fit[0],
                    rotation=fit[1],
                    color=ink_on(color) if color != PALE else GREY,
                    clip_on=True,
                    parse_math=False,
                )


def _fit(label: str, width_inches: float) -> tuple[int, int] | None:
    """Return the size in points and the rotation in degrees that a label has room for, if any."""
    length_inches = len(label) * INCHES_PER_CHARACTER_AND_POINT
    for points in (POINTS, SMALL_POINTS):
        if points * length_inches < width_inches:
            return points, 0
    is_narrow = SMALL_POINTS * length_inches < 0.86 * ROW_INCHES
    return (SMALL_POINTS, 90) if is_narrow and width_inches > 0.13 else None


def _draw_probabilities(
    axes: Axes,
    probabilities: NDArray[np.floating],
    frame_times: NDArray[np.floating],
    names: Sequence[str],
) -> None:
    """Draw the probability of each chord in each frame."""
    style_axes(axes, grid=None)
    axes.spines[:].set(visible=True, color=PALE)
    half = (frame_times[-1] - frame_times[0]) / max(len(frame_times) - 1, 1) / 2
    image = axes.imshow(
        probabilities.T,
        cmap=WHITE_TO_BLUE,
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(frame_times[0] - half, frame_times[-1] + half, len(names) - 0.5, -0.5),
    )
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=8, length=0)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04, aspect=30)
    style_colorbar(bar, "Probability")
