"""Plot of a learning curve: the metric against the number of training tracks, and what more would bring."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import StrMethodFormatter

from m2v_finetune.plotting.style import (
    BLUE,
    DASHES,
    GREY,
    LIGHT_BLUE,
    ORANGE,
    new_figure,
    save,
    style_axes,
    title_axes,
    without_math,
)


def plot_learning_curve(
    points: Sequence[Mapping[str, Any]],
    curve: Sequence[Mapping[str, float]],
    path: Path,
    *,
    metric: str,
    subtitle: str,
) -> None:
    """Draw measured points with intervals, and the fitted power law with its uncertainty.

    Args:
        points: ``num_tracks``, ``value``, ``low``, ``high`` and ``repeats`` of each size.
        curve: ``num_tracks``, ``value``, ``low`` and ``high`` of the power law at many numbers.
        path: PNG file; its folder is created if needed.
        metric: Name of the metric.
        subtitle: Line below the title.
    """
    figure = new_figure(height_inches=4.6)
    axes = figure.add_subplot()
    style_axes(axes, grid="both")
    sizes = np.array([one["num_tracks"] for one in points])
    values = np.array([one["value"] for one in points])
    numbers = [one["num_tracks"] for one in curve]
    axes.fill_between(
        numbers,
        [one["low"] for one in curve],
        [one["high"] for one in curve],
        color=LIGHT_BLUE,
        alpha=0.3,
        linewidth=0,
        label="power law, 95 %",
    )
    axes.plot(
        numbers, [one["value"] for one in curve], color=ORANGE, linestyle=DASHES, label="power law"
    )
    for one in points:
        repeats = [value for value in one["repeats"] if value is not None]
        axes.plot([one["num_tracks"]] * len(repeats), repeats, ".", color=GREY, markersize=5)
    errors = np.abs(np.array([[one["low"], one["high"]] for one in points]).T - values)
    axes.errorbar(
        sizes,
        values,
        yerr=errors,
        color=BLUE,
        marker="o",
        capsize=3,
        linewidth=1.8,
        label="measured, 95 %",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(StrMethodFormatter(""))
    axes.set_xticks(sorted({*sizes.tolist(), int(numbers[-1])}))
    axes.set_xlabel("Training tracks")
    axes.set_ylabel(metric)
    legend = axes.legend(loc="lower right", frameon=False, fontsize=10)
    without_math(legend)
    title_axes(axes, f"{metric} against training tracks", subtitle)
    save(figure, path)
