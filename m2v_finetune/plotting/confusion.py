"""Confusion matrix of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    GREY,
    INK,
    PALE,
    WHITE_TO_BLUE,
    ink_on,
    new_figure,
    save,
    shortened,
    style_axes,
    style_colorbar,
    title_axes,
    write_beside,
)

MAX_WRITTEN_CLASSES = 25
MAX_DRAWN_CLASSES = 200
"""Of more of them a cell would be less than three points wide."""
MAX_TICKS = 12
TICK_STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20)


def plot_confusion(
    confusion: NDArray[np.integer], labels: Sequence[str], path: Path, *, title: str
) -> None:
    """Draw a confusion matrix, each row divided by its sum.

    Up to 25 classes have the percentage in each cell and the number of each row beside it; more have
    colours alone, on a scale that shows rare errors too. Of more than 200 only the 25 that are confused
    most are drawn, and the title states this.

    Args:
        confusion: (classes, classes), counts; rows are the true classes, columns predictions. A row without
            counts is drawn grey.
        labels: (classes,), names in the order of the rows.
        path: PNG file; its folder is created if needed.
        title: Title, such as the name of the task.
    """
    save(confusion_figure(confusion, labels, title=title), path)


def confusion_figure(
    confusion: NDArray[np.integer], labels: Sequence[str], *, title: str
) -> Figure:
    """Return the figure of `plot_confusion`."""
    counts = np.asarray(confusion)
    correct, total = int(np.trace(counts)), int(counts.sum())
    totals = counts.sum(axis=1)
    if len(labels) > MAX_DRAWN_CLASSES:
        shown = most_confused(counts, MAX_WRITTEN_CLASSES)
        title = f"{title}: the {len(shown)} most confused of {len(labels):,} classes"
        labels = [labels[number] for number in shown]
        counts, totals = counts[np.ix_(shown, shown)], totals[shown]
    shares = counts / np.where(totals > 0, totals, np.nan)[:, None]
    is_written = len(labels) <= MAX_WRITTEN_CLASSES
    step = 1 if is_written else next(s for s in TICK_STEPS if len(labels) <= s * MAX_TICKS)
    ticks = range(0, len(labels), step)
    names = [shortened(labels[i], 40 if is_written else 20) for i in ticks]
    longest = max(map(len, names))
    is_tilted = longest * len(names) > 70
    height_inches = 2.6 + 0.22 * len(labels) + (0.05 * longest if is_tilted else 0)
    figure = new_figure(height_inches=height_inches if is_written else 7.0)
    axes = figure.add_subplot()
    style_axes(axes, grid=None)
    axes.spines[:].set_visible(False)
    colors = WHITE_TO_BLUE.with_extremes(bad=PALE)
    image = axes.imshow(
        shares,
        cmap=colors,
        norm=PowerNorm(1.0 if is_written else 0.5, 0, 1),
        aspect="auto" if is_written else "equal",
        interpolation="nearest",
    )
    if is_written:
        _write_cells(axes, shares, totals)
    else:
        axes.spines[:].set(visible=True, color=PALE)
        bar = figure.colorbar(image, ax=axes, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1], pad=0.03)
        bar.ax.set_yticklabels(["0%", "1%", "5%", "10%", "25%", "50%", "100%"])
        style_colorbar(bar, "Share of the row")
    axes.set_xticks(ticks, names, parse_math=False)
    if is_tilted:
        axes.tick_params(axis="x", rotation=45)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, names, parse_math=False)
    axes.tick_params(length=0 if is_written else 3)
    axes.set_xlabel("Estimate")
    axes.set_ylabel("True class")
    summary = (
        f"{correct:,} of {total:,} are correct, {correct / total:.1%}" if total else "No tracks"
    )
    how = "; cells in percent of the row" if is_written else "; grey rows have no counts"
    title_axes(axes, title, summary + (how if is_written or not totals.all() else ""))
    return figure


def most_confused(confusion: NDArray[np.integer], count: int) -> list[int]:
    """Return the numbers of the classes that are confused most, ascending.

    Pairs of classes are taken by the number of tracks that were taken for one another; where there are too
    few errors, the classes with the most tracks follow.

    Args:
        confusion: (classes, classes), counts.
        count: How many classes to return, at most all.
    """
    errors = confusion + confusion.T
    np.fill_diagonal(errors, 0)
    rows, columns = np.nonzero(np.triu(errors))
    order = np.argsort(-errors[rows, columns], kind="stable")
    chosen: dict[int, None] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        pair = {row: None, column: None}
        if len(chosen | pair) <= count:
            chosen |= pair
    for number in np.argsort(-confusion.sum(axis=1), kind="stable").tolist():
        if len(chosen) < count:
            chosen[number] = None
    return sorted(chosen)


def _write_cells(axes: Axes, shares: NDArray[np.floating], totals: NDArray[np.integer]) -> None:
    """Write the percentages into the cells, the diagonal in bold, and the totals to the right."""
    size = 10 if len(totals) <= 12 else 8
    for row, column in zip(*np.nonzero(np.nan_to_num(shares)), strict=True):
        share = shares[row, column]
        axes.text(
            column,
            row,
            "<1" if share < 0.01 else f"{100 * share:.0f}",
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold" if row == column else "normal",
            color=ink_on(WHITE_TO_BLUE(share)),
        )
    edges = np.arange(len(totals) + 1) - 0.5
    axes.vlines(edges, edges[0], edges[-1], color=PALE, linewidth=0.8)
    axes.hlines(edges, edges[0], edges[-1], color=PALE, linewidth=0.8)
    for row, total in enumerate(totals):
        write_beside(axes, row, (44, 0), f"{total:,}", ha="right", color=INK)
    write_beside(axes, -0.5, (44, 9), "total", ha="right", color=GREY)
