"""Plot of estimated keys on the circle of fifths, relative to the true key."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Wedge
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    ink_on,
    new_figure,
    save,
    title_axes,
)

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# A colour and a pale one of its hue for each kind of estimate.
RELATIONS = {
    "correct": (BLUE, "#D3E6F2"),
    "fifth": (SKY, "#E3F2FB"),
    "relative": (ORANGE, "#F9E1D3"),
    "parallel": (GREEN, "#D3EFE6"),
    "other": ("#8A8A8A", "#F4F4F4"),
}
# Radii of the rings, (inner edge, outer edge), major first.
RINGS = ((0.64, 1.06), (0.22, 0.64))
RADIUS_OF_ALL = 0.16
"""Radius of the bubble of all tracks; areas are proportional to shares."""
MIN_WRITTEN_SHARE = 0.005
MIN_SHARE_WITH_TEXT_INSIDE = 0.15


def plot_key_errors(confusion: NDArray[np.integer], path: Path) -> None:
    """Plot estimated keys on the circle of fifths, with every true key rotated to the top.

    Major and minor pieces have a circle each: true keys are turned to C major in one, to A minor in
    the other. Majors are in the outer ring, minors in the inner one. The area of a bubble is
    proportional to the share of its circle's tracks.

    Args:
        confusion: (24, 24), tracks by true key (rows) and estimated key (columns). A key's index is
            its pitch class, plus 12 if it is minor: 0 is C major, 9 A major, 21 A minor.
        path: PNG file; its folder is created if needed.
    """
    save(key_errors_figure(confusion), path)


def key_errors_figure(confusion: NDArray[np.integer]) -> Figure:
    """Return the figure of `plot_key_errors`."""
    counts = np.asarray(confusion)
    figure = new_figure(height_inches=6.1)
    grid = figure.add_gridspec(2, 2, height_ratios=[4.6, 0.7])
    circles = [figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])]
    kinds: dict[str, int] = dict.fromkeys([*RELATIONS, "fifth above"], 0)
    for is_minor, axes in enumerate(circles):
        turned = turn_to_top(counts, is_minor=bool(is_minor))
        _draw_circle(axes, turned, is_minor=bool(is_minor))
        for key, count in enumerate(turned):
            kinds[relation(key, is_minor=bool(is_minor))] += int(count)
        kinds["fifth above"] += int(turned[4 + 12 if is_minor else 7])
    total = int(counts.sum())
    title_axes(
        circles[0],
        "Key errors on the circle of fifths",
        f"{total:,} tracks; shares in percent of each circle",
    )
    _draw_legend(figure.add_subplot(grid[1, :]), kinds, total)
    return figure


def _draw_legend(axes: Axes, kinds: Mapping[str, int], total: int) -> None:
    """Write the share of each kind of estimate beside its colour."""
    axes.set_axis_off()
    axes.set(xlim=(0, 5), ylim=(0, 1))
    for column, (name, (color, _)) in enumerate(RELATIONS.items()):
        share = kinds[name] / total if total else 0.0
        axes.plot(column + 0.1, 0.72, "o", color=color, markersize=11)
        axes.text(column + 0.22, 0.72, f"{name} {share:.1%}", va="center", fontsize=11, color=INK)
        if name == "fifth" and share:
            above = kinds["fifth above"] / total
            text = f"{above:.1%} above,\n{share - above:.1%} below"
            axes.text(column + 0.22, 0.5, text, va="top", fontsize=9, color=GREY)


def turn_to_top(confusion: NDArray[np.integer], *, is_minor: bool) -> NDArray[np.int64]:
    """Return the number of tracks by estimated key after transposing all true keys to one.

    Args:
        confusion: (24, 24), as `plot_key_errors` takes it.
        is_minor: Whether to take the tracks in minor, to A minor, or those in major, to C major.

    Returns:
        (24,), by key index.
    """
    turned = np.zeros(24, dtype=np.int64)
    for tonic in range(12):
        row = confusion[tonic + 12 * is_minor]
        shift = (9 if is_minor else 0) - tonic
        turned[:12] += np.roll(row[:12], shift)
        turned[12:] += np.roll(row[12:], shift)
    return turned


def relation(key: int, *, is_minor: bool) -> str:
    """Return the relation of an estimated key to the true key, C major or A minor.

    A fifth is a neighbour on the circle in the same mode, above or below the true key.
    """
    steps = (key % 12 - (9 if is_minor else 0)) % 12
    if (key >= 12) == is_minor:
        return {0: "correct", 5: "fifth", 7: "fifth"}.get(steps, "other")
    return {0: "parallel", 3 if is_minor else 9: "relative"}.get(steps, "other")


def _draw_circle(axes: Axes, turned: NDArray[np.int64], *, is_minor: bool) -> None:
    """Draw the fields of the 24 keys, and a bubble in each that was estimated."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.22, 1.1))
    total = int(turned.sum())
    bubbles = []
    for key in range(24):
        inner, outer = RINGS[key // 12]
        # Fifths go round clockwise; C major and A minor are at the top.
        steps = (key % 12 - 9 * (key >= 12)) * 7 % 12
        angle = 90 - 30 * steps
        color, pale = RELATIONS[relation(key, is_minor=is_minor)]
        axes.add_patch(
            Wedge(
                (0, 0),
                outer,
                angle - 15,
                angle + 15,
                width=outer - inner,
                facecolor=pale,
                edgecolor="white",
                linewidth=1.5,
            )
        )
        direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        name = PITCH_CLASSES[key % 12] + ("m" if key >= 12 else "")
        x, y = direction * (outer - 0.065 - 0.04 * abs(direction[0]))
        axes.text(x, y, name, ha="center", va="center", fontsize=8, color=GREY)
        share = turned[key] / total if total else 0.0
        if share:
            bubbles.append((share, direction, outer - 0.25, color))
    for share, direction, distance, color in sorted(bubbles, key=lambda bubble: -bubble[0]):
        radius = RADIUS_OF_ALL * float(np.sqrt(share))
        x, y = direction * distance
        axes.add_patch(Circle((x, y), radius, facecolor=color, edgecolor="white"))
        is_inside = share >= MIN_SHARE_WITH_TEXT_INSIDE
        if share >= MIN_WRITTEN_SHARE:
            x, y = direction * (distance - (0 if is_inside else radius + 0.05))
            axes.text(
                x,
                y,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=9 if is_inside else 8,
                fontweight="bold" if is_inside else "normal",
                color=ink_on(color) if is_inside else INK,
            )
    mode, top = ("minor", "A minor") if is_minor else ("major", "C major")
    text = f"{total:,} in {mode}, turned to {top}" if total else f"none in {mode}"
    axes.text(0, -1.2, text, ha="center", fontsize=10, color=INK)
