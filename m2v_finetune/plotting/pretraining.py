"""Plots of pre-training: the loss, and what shows a collapse or success beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from m2v_finetune.plotting.style import (
    DASHES,
    LIGHT_BLUE,
    ORANGE,
    SERIES,
    new_figure,
    save,
    style_axes,
    write_beside,
)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of the lower plot.

    Attributes:
        labels: Label of each curve, by the name of its metric.
        title: Label of the axis.
        is_log: Whether the axis is logarithmic; else it is that of a share.
        floors: Lower limits by metric, below which a run stops.
    """

    labels: Mapping[str, str]
    title: str
    is_log: bool
    floors: Mapping[str, float] = field(default_factory=dict)


def plot_pretraining(metrics_jsonl: Path, path: Path, *, curves: Curves) -> None:
    """Draw the loss, and other metrics below it, over the steps of a run.

    Args:
        metrics_jsonl: File ``metrics.jsonl`` of the run.
        path: PNG file; its folder is created if needed.
        curves: Other metrics.
    """
    with metrics_jsonl.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    save(pretraining_figure(lines, curves=curves), path)


def variance_curves(floors: Mapping[str, float]) -> Curves:
    """Return the variances of targets and predictions, for data2vec.

    Args:
        floors: Lower limits of ``target_variance`` and ``prediction_variance``.
    """
    labels = {"target_variance": "targets", "prediction_variance": "predictions"}
    return Curves(labels=labels, title="Variance over time", is_log=True, floors=floors)


def accuracy_curves(label_sets: Sequence[str]) -> Curves:
    """Return the accuracies of label sets at masked frames, for masked prediction."""
    labels = {f"accuracy_{name}": name for name in label_sets}
    return Curves(labels=labels, title="Accuracy at masked frames", is_log=False)


def pretraining_figure(lines: Sequence[Mapping[str, Any]], *, curves: Curves) -> Figure:
    """Return the figure of `plot_pretraining`.

    Args:
        lines: Lines of metrics.jsonl.
        curves: Other metrics.
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
    for (name, label), (color, _) in zip(curves.labels.items(), cycle(SERIES), strict=False):
        values = [line[name] for line in logged]
        lower.plot(steps, values, color=color, linewidth=1.8, label=label)
        if curves.floors.get(name, 0) > 0:
            lower.axhline(curves.floors[name], color=color, linewidth=1.2, linestyle=DASHES)
            write_beside(lower, curves.floors[name], (6, 0), "floor", ha="left", color=color)
    if curves.is_log:
        lower.set_yscale("log")
    else:
        lower.set_ylim(bottom=0)
    lower.set_ylabel(curves.title)
    lower.set_xlabel("Optimizer steps")
    lower.set_xlim(0, 1.03 * steps[-1])
    lower.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    lower.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.legend(loc="center right", frameon=False, fontsize=10)
    figure.align_ylabels()
    return figure
