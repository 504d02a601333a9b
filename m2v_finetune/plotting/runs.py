"""Plots of a run: layer weights and training curves."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from m2v_finetune.plotting.style import (
    BLUE,
    DASHES,
    GREY,
    INK,
    LIGHT_BLUE,
    ORANGE,
    SERIES,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
    without_math,
    write_beside,
)

MAX_MARKED_POINTS = 40
MAX_HALF_LEGEND = 24
"""Longest name of a metric, in characters, for two columns of the legend."""


def plot_layer_weights(
    weights: Sequence[float], path: Path, *, backbone: str, kind: str | int
) -> None:
    """Draw how much of each hidden state the model takes.

    Args:
        weights: (num_hidden_states,); the first is that of the input of the first transformer layer.
        path: PNG file; its folder is created if needed.
        backbone: Name, Hub id or folder of the backbone; its last part is shown.
        kind: Layer weighting: ``softmax``, ``conv1d``, ``last``, or the number of a hidden state.
    """
    save(layer_weights_figure(weights, backbone=backbone, kind=kind), path)


def plot_training(
    metrics_jsonl: Path, path: Path, *, metric_names: Mapping[str, str] | None = None
) -> None:
    """Draw the training loss and the validation metrics over the steps of a run, or over its penalties.

    Args:
        metrics_jsonl: File ``metrics.jsonl`` of the run.
        path: PNG file; its folder is created if needed.
        metric_names: Human-readable names of the validation metrics; their keys are shown if None.
    """
    with metrics_jsonl.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    draw = penalty_figure if "penalty" in lines[0] else training_figure
    save(draw(lines, metric_names=metric_names or {}), path)


def layer_weights_figure(weights: Sequence[float], *, backbone: str, kind: str | int) -> Figure:
    """Return the figure of `plot_layer_weights`."""
    figure = new_figure(height_inches=3.6)
    axes = figure.add_subplot()
    count = len(weights)
    style_axes(axes, grid="y")
    axes.bar(range(count), list(weights), width=0.72, color=BLUE)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_xticks(range(count))
    axes.set_xlabel("Hidden state (0 is the input of the first transformer layer)")
    axes.set_ylabel("Weight")
    if kind == "softmax":
        axes.set_ylim(0, 1.15 * max(weights))
        axes.axhline(1 / count, color=ORANGE, linewidth=1.4, linestyle=DASHES)
        write_beside(axes, 1 / count, (6, 0), "equal\nweights", ha="left", color=ORANGE)
        how = f"Trained softmax over {count} hidden states; the weights sum to 1"
    elif kind == "conv1d":
        axes.margins(y=0.1)
        axes.axhline(0, color=INK, linewidth=0.8)
        how = f"Trained linear combination of {count} hidden states; weights of any sign"
    else:
        axes.set_ylim(0, 1.1)
        how = "The last hidden state alone" if kind == "last" else f"Hidden state {kind} alone"
    title_axes(axes, f"Layer weights of {shortened(Path(backbone).name)}", how)
    return figure


def training_figure(
    lines: Sequence[Mapping[str, Any]], *, metric_names: Mapping[str, str]
) -> Figure:
    """Return the figure of `plot_training`.

    Args:
        lines: Lines of metrics.jsonl: some with ``loss``, and one with ``validation`` for each epoch.
        metric_names: Human-readable names of the validation metrics.
    """
    logged = [line for line in lines if "loss" in line]
    evaluated = [line for line in lines if "validation" in line]
    ends = [line["step"] for line in evaluated]
    steps_per_epoch = ends[-1] / evaluated[-1]["epoch"]
    is_short = len(evaluated) <= MAX_MARKED_POINTS
    names = [metric_names.get(key, key) for key in evaluated[0]["validation"]]
    num_columns = 1 if max(map(len, names)) > MAX_HALF_LEGEND else 2
    figure = new_figure(height_inches=5.6 + 0.2 * math.ceil(len(names) / num_columns))
    upper, lower = figure.subplots(2, 1, sharex=True)

    style_axes(upper, grid="y")
    _draw_losses(upper, logged, evaluated, steps_per_epoch=steps_per_epoch)
    upper.set_ylabel("Training loss")
    epochs = upper.secondary_xaxis(
        "top",
        functions=(lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch),
    )
    epochs.set_xlabel("Epochs", fontsize=11, color=INK)
    epochs.tick_params(labelsize=10, color=GREY, labelcolor=INK)
    epochs.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    epochs.spines["top"].set_visible(False)

    style_axes(lower, grid="y")
    for key, (color, marker) in zip(evaluated[0]["validation"], SERIES, strict=False):
        # metrics.jsonl has null where a metric did not exist.
        found = [line["validation"][key] for line in evaluated]
        values = [math.nan if value is None else value for value in found]
        name = shortened(metric_names.get(key, key))
        defined = [value for value in values if not math.isnan(value)]
        if defined:
            best = values.index(max(defined))
            name += f", best {values[best]:.3f} in epoch {evaluated[best]['epoch']}"
            lower.plot(
                ends[best], values[best], marker, color=color, markersize=11, fillstyle="none"
            )
        style = {"marker": marker, "markersize": 4.5} if is_short else {}
        lower.plot(ends, values, color=color, linewidth=1.8, label=name, **style)
    lower.set_ylabel("Validation")
    lower.set_xlabel("Optimizer steps")
    lower.set_xlim(0, 1.03 * ends[-1])
    lower.margins(y=0.12)
    lower.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    lower.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend = lower.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        ncols=num_columns,
        frameon=False,
        fontsize=10,
    )
    without_math(legend)
    figure.align_ylabels()
    return figure


def _draw_losses(
    axes: Axes,
    logged: Sequence[Mapping[str, Any]],
    evaluated: Sequence[Mapping[str, Any]],
    *,
    steps_per_epoch: float,
) -> None:
    """Draw the logged losses, and over them the mean of each epoch where there is more than one step."""
    steps, losses = [line["step"] for line in logged], [line["loss"] for line in logged]
    if len(logged) < 4 * len(evaluated):
        axes.plot(steps, losses, color=BLUE, linewidth=1.8, marker="o", markersize=4.5)
        return
    of_epoch = {
        epoch: [line["loss"] for line in own]
        for epoch, own in groupby(logged, key=lambda line: line["epoch"])
    }
    axes.plot(steps, losses, color=LIGHT_BLUE, linewidth=1.0, label="as logged")
    axes.plot(
        [(epoch - 0.5) * steps_per_epoch for epoch in of_epoch],
        [sum(own) / len(own) for own in of_epoch.values()],
        color=BLUE,
        linewidth=1.8,
        label="mean of the epoch",
    )
    axes.legend(loc="upper right", frameon=False, fontsize=10)


def penalty_figure(
    lines: Sequence[Mapping[str, Any]], *, metric_names: Mapping[str, str]
) -> Figure:
    """Return the figure of a run whose head was solved: validation over the penalties.

    Args:
        lines: Lines of metrics.jsonl, each with ``penalty`` and ``validation``.
        metric_names: Human-readable names of the validation metrics.
    """
    figure = new_figure(height_inches=3.6)
    axes = figure.add_subplot()
    style_axes(axes, grid="y")
    penalties = [line["penalty"] for line in lines]
    for key, (color, marker) in zip(lines[0]["validation"], SERIES, strict=False):
        found = [line["validation"][key] for line in lines]
        values = [math.nan if value is None else value for value in found]
        name = shortened(metric_names.get(key, key))
        axes.plot(penalties, values, marker=marker, markersize=4.5, color=color, label=name)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("L2 penalty")
    axes.set_ylabel("Validation")
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, frameon=False, fontsize=10
    )
    without_math(legend)
    return figure
