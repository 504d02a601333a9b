"""Plots of pre-training: the loss, and the variances over frames, which show a collapse."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from m2v_finetune.plotting.style import (
    BLUE,
    DASHES,
    LIGHT_BLUE,
    ORANGE,
    new_figure,
    save,
    style_axes,
    write_beside,
)


def plot_pretraining(metrics_jsonl: Path, path: Path, *, floors: Mapping[str, float]) -> None:
    """Draw the loss, and the variance of targets and predictions over time, over the steps of a run.

    Args:
        metrics_jsonl: File ``metrics.jsonl`` of the run.
        path: PNG file; its folder is created if needed.
        floors: Lower limits of ``target_variance`` and ``prediction_variance``; below them a run stops.
    """
    with metrics_jsonl.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    save(pretraining_figure(lines, floors=floors), path)


def pretraining_figure(
    lines: Sequence[Mapping[str, Any]], *, floors: Mapping[str, float]
) -> Figure:
    """Return the figure of `plot_pretraining`.

    Args:
        lines: Lines of metrics.jsonl.
        floors: Limits, as for `plot_pretraining`.
    """
    logged = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "validation" in line]
    steps, ends = [line["step"] for line in logged], [line["step"] for line in evaluated]
    figure = new_figure(height_inches=5.8)
    upper, lower = figure.subplots(2, 1, sharex=True)

    style_axes(upper, grid="y")
    losses = [line["loss"] for line in logged]
    upper.plot(steps, losses, color=LIGHT_BLUE, linewidth=1.2, label="training")
    held_out = [line["validation"]["loss"] for line in evaluated]
    upper.plot(
        ends, held_out, color=ORANGE, linewidth=1.8, marker="s", markersize=4, label="held out"
    )
    upper.set_ylabel("Loss at masked frames")
    upper.set_ylim(bottom=0)
    upper.legend(loc="upper right", frameon=False, fontsize=10)

    style_axes(lower, grid="y")
    for name, label, color in (
        ("target_variance", "targets", BLUE),
        ("prediction_variance", "predictions", ORANGE),
    ):
        values = [line[name] for line in logged]
        lower.plot(steps, values, color=color, linewidth=1.8, label=label)
        if floors[name] > 0:
            lower.axhline(floors[name], color=color, linewidth=1.2, linestyle=DASHES)
            write_beside(lower, floors[name], (6, 0), "floor", ha="left", color=color)
    lower.set_yscale("log")
    lower.set_ylabel("Variance over time")
    lower.set_xlabel("Optimizer steps")
    lower.set_xlim(0, 1.03 * steps[-1])
    lower.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    lower.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.legend(loc="center right", frameon=False, fontsize=10)
    figure.align_ylabels()
    return figure
