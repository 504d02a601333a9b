"""Reliability of probabilities, before and after calibration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from m2v_finetune.plotting.style import (
    BLUE,
    GREY,
    ORANGE,
    new_figure,
    save,
    style_axes,
    title_axes,
)


def plot_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Draw the share of true predictions over their probability.

    Args:
        calibration: Section ``calibration`` of results.json.
        path: PNG file; its folder is created if needed.
    """
    save(reliability_figure(calibration), path)


def reliability_figure(calibration: Mapping[str, Any]) -> Figure:
    """Return the figure of `plot_reliability`."""
    figure = new_figure(height_inches=4.6)
    axes = figure.add_subplot()
    style_axes(axes, grid="both")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    sides = [("before", ORANGE, "s"), ("after", BLUE, "o")]
    if calibration["method"] is None:
        sides = [("after", BLUE, "o")]
    most = max(one["count"] for side, _, _ in sides for one in calibration[f"bins_{side}"])
    for side, colour, marker in sides:
        bins = calibration[f"bins_{side}"]
        error = calibration[f"error_{side}"]
        x, y = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        name = f"{side} calibration" if len(sides) > 1 else "not calibrated"
        axes.plot(x, y, color=colour, linewidth=1.2, label=f"{name}: error {error:.3f}")
        sizes = [12 + 110 * one["count"] / most for one in bins]
        axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.8, linewidths=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("probability")
    axes.set_ylabel("share of true predictions")
    axes.legend(frameon=False, loc="upper left", fontsize=10)
    title_axes(
        axes,
        "Reliability of the probabilities",
        "Test tracks in bins; larger marks have more predictions. The dashed line is ideal.",
    )
    return figure
