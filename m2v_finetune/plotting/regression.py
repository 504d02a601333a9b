"""Estimated numbers against true ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from m2v_finetune.plotting.style import (
    BLUE,
    DASHES,
    ORANGE,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
)

MAX_COLUMNS = 2
MAX_PALE_TRACKS = 2000
MAX_DRAWN_TARGETS = 24


def plot_regression(
    references: NDArray[np.floating],
    predictions: NDArray[np.floating],
    names: Sequence[str],
    path: Path,
) -> None:
    """Plot predictions over targets, a square for each target, with the line of perfect estimates.

    Of more than 24 targets the first ones are drawn, and a line below states this.

    Args:
        references: (tracks, targets), in the data's own units.
        predictions: (tracks, targets), in the same units.
        names: (targets,).
        path: PNG file; its folder is created if needed.
    """
    save(regression_figure(references, predictions, names), path)


def regression_figure(
    references: NDArray[np.floating], predictions: NDArray[np.floating], names: Sequence[str]
) -> Figure:
    """Return the figure of `plot_regression`."""
    num_targets = len(names)
    names = names[:MAX_DRAWN_TARGETS]
    columns = min(MAX_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(height_inches=0.3 + 4.1 * rows)
    squares = figure.subplots(rows, columns, squeeze=False).ravel()
    alpha = 0.65 if len(references) <= 300 else 0.35 if len(references) <= MAX_PALE_TRACKS else 0.12
    for axes, name, reference, estimate in zip(
        squares, names, references.T, predictions.T, strict=False
    ):
        style_axes(axes, grid="both")
        axes.scatter(reference, estimate, s=26, color=BLUE, alpha=alpha, linewidths=0)
        low, high = min(reference.min(), estimate.min()), max(reference.max(), estimate.max())
        margin = 0.06 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axes.axline((low, low), slope=1, color=ORANGE, linewidth=1.4, linestyle=DASHES)
        axes.set(xlim=limits, ylim=limits, xlabel="Target", ylabel="Estimate")
        axes.set_box_aspect(1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        r2 = r2_score(reference, estimate)
        title = shortened(name[:1].upper() + name[1:])
        title_axes(axes, title, f"R² {r2:.3f}; dashed line: no error".replace("-", "−"))
    for axes in squares[len(names) :]:
        axes.set_axis_off()
    if len(names) < num_targets:
        figure.supxlabel(f"The first {len(names)} of {num_targets:,}", fontsize=10)
    return figure
