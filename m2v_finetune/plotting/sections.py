"""Structure of a song: estimated and annotated sections, and the boundary probability."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m2v_finetune.plotting.chords import Segment
from m2v_finetune.plotting.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    YELLOW,
    ink_on,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
)

COLORS = (SKY, YELLOW, GREEN, PURPLE, BLUE, ORANGE)
LEAST_NAMED_SHARE = 0.06
"""Share of the axes from which a section has its name written in it."""


def plot_sections(
    estimated: Sequence[Segment],
    reference: Sequence[Segment],
    boundaries: NDArray[np.floating],
    frame_times: NDArray[np.floating],
    path: Path,
    *,
    title: str = "Structure",
) -> None:
    """Draw the sections of a track above the probability of a boundary.

    Args:
        estimated: Estimated sections.
        reference: Annotated sections.
        boundaries: Probability of a boundary, (frames,).
        frame_times: Centres of the frames in seconds, (frames,).
        path: PNG file; its folder is created if needed.
        title: Title, such as the name of the track.
    """
    save(sections_figure(estimated, reference, boundaries, frame_times, title=title), path)


def sections_figure(
    estimated: Sequence[Segment],
    reference: Sequence[Segment],
    boundaries: NDArray[np.floating],
    frame_times: NDArray[np.floating],
    *,
    title: str,
) -> Figure:
    """Return the figure of `plot_sections`."""
    figure = new_figure(height_inches=4.2)
    rows = figure.subplots(3, 1, sharex=True, height_ratios=[0.6, 0.6, 2.0])
    names = list(dict.fromkeys(label for *_, label in [*reference, *estimated]))
    end_seconds = max(estimated[-1][1], reference[-1][1])
    for axes, segments, name in zip(
        rows, (reference, estimated), ("annotated", "estimated"), strict=False
    ):
        axes.set_xlim(0.0, end_seconds)
        draw_sections(axes, segments, names)
        axes.set_yticks([0.5], [name])
        axes.tick_params(axis="x", length=0, labelbottom=False)
    style_axes(rows[2], grid="y")
    rows[2].plot(frame_times, boundaries, color=BLUE, linewidth=1.6)
    rows[2].set(ylim=(0, 1.02), xlabel="Seconds", ylabel="Boundary probability")
    title_axes(rows[0], shortened(title), "")
    return figure


def draw_sections(axes: Axes, segments: Sequence[Segment], names: Sequence[str]) -> None:
    """Draw sections as bars with their names, in the colour of the name; six colours take turns."""
    style_axes(axes, grid=None)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(0, 1)
    longest = max((end for _, end, _ in segments), default=1.0)
    first = min((start for start, *_ in segments), default=0.0)
    for start, end, label in segments:
        color = COLORS[list(names).index(label) % len(COLORS)]
        axes.barh(0.5, end - start, 1.0, left=start, color=color, edgecolor="white", linewidth=1.5)
        if end - start >= LEAST_NAMED_SHARE * (longest - first):
            axes.text(
                (start + end) / 2, 0.5, shortened(label), ha="center", va="center", fontsize=9,
                color=ink_on(color), clip_on=True, parse_math=False,
            )  # fmt: skip
