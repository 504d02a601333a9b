"""The pictures of a run, as PNG files for the model card.

Figures are built without pyplot, so nothing global is changed and no display is needed.
"""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

WIDTH_INCHES = 8.0
DPI = 120
# Colours that the colour-blind can tell apart, with a marker each. Source: Okabe and Ito, "Color
# Universal Design" (2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
SERIES = ((BLUE, "o"), (ORANGE, "s"), ("#009E73", "^"), ("#CC79A7", "D"))
LIGHT_BLUE = "#8FBFDD"
INK = "#222222"
GREY = "#5F5F5F"
PALE = "#E6E6E6"
DASHES = (0, (4, 3))
MAX_LABEL_CHARACTERS = 40
MAX_LISTED_LABELS = 12
MAX_NOTE_CHARACTERS = 88
MAX_MARKED_POINTS = 40


def plot_layer_weights(
    weights: Sequence[float], path: Path, *, backbone: str, kind: str | int
) -> None:
    """Draw how much of each hidden state the model takes.

    Args:
        weights: (num_hidden_states,); the first is that of the input of the first transformer layer.
        path: The PNG file; its folder is made if needed.
        backbone: Name, Hub id or folder of the backbone; its last part is shown.
        kind: The layer weighting: ``softmax``, ``conv1d``, ``last``, or the number of a hidden state.
    """
    _save(layer_weights_figure(weights, backbone=backbone, kind=kind), path)


def plot_per_label(
    per_label: Mapping[str, Mapping[str, Any]], path: Path, *, metric: str, name: str
) -> None:
    """Draw a metric of each label, best first, with the number of tracks that have the label.

    Args:
        per_label: By label, the metric and ``num_positive``; labels whose metric is None are named
            below the picture.
        path: The PNG file; its folder is made if needed.
        metric: Key of the metric, which lies in [0, 1]; ``roc_auc`` gets a line at chance, 0.5.
        name: Its name for people, such as ``ROC-AUC``.
    """
    _save(per_label_figure(per_label, metric=metric, name=name), path)


def plot_training(
    metrics_jsonl: Path, path: Path, *, metric_names: Mapping[str, str] | None = None
) -> None:
    """Draw the training loss and the validation metrics over the steps of a run.

    Args:
        metrics_jsonl: The run's ``metrics.jsonl``.
        path: The PNG file; its folder is made if needed.
        metric_names: Names of the validation metrics for people; without it their keys are shown.
    """
    with metrics_jsonl.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    _save(training_figure(lines, metric_names=metric_names or {}), path)


def layer_weights_figure(weights: Sequence[float], *, backbone: str, kind: str | int) -> Figure:
    """Return the figure of `plot_layer_weights`."""
    figure = _figure(height_inches=3.6)
    axes = figure.add_subplot()
    count = len(weights)
    _style(axes, grid="y")
    axes.bar(range(count), list(weights), width=0.72, color=BLUE)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_xticks(range(count))
    axes.set_xlabel("Hidden state (0 is the input of the first transformer layer)")
    axes.set_ylabel("Weight")
    if kind == "softmax":
        axes.set_ylim(0, 1.15 * max(weights))
        axes.axhline(1 / count, color=ORANGE, linewidth=1.4, linestyle=DASHES)
        _beside(axes, 1 / count, (6, 0), "equal\nweights", ha="left", color=ORANGE)
        how = f"Learned softmax over {count} hidden states; the weights sum to 1"
    elif kind == "conv1d":
        axes.margins(y=0.1)
        axes.axhline(0, color=INK, linewidth=0.8)
        how = f"Learned linear combination of {count} hidden states; weights of any sign"
    else:
        axes.set_ylim(0, 1.1)
        how = "The last hidden state alone" if kind == "last" else f"Hidden state {kind} alone"
    _title(axes, f"Layer weights of {_shortened(Path(backbone).name)}", how)
    return figure


def per_label_figure(
    per_label: Mapping[str, Mapping[str, Any]], *, metric: str, name: str
) -> Figure:
    """Return the figure of `plot_per_label`."""
    rows = sorted(
        (
            (values[metric], label, values["num_positive"])
            for label, values in per_label.items()
            if values[metric] is not None
        ),
        key=lambda row: (-row[0], row[1]),
    )
    note = _left_out_note([label for label in per_label if per_label[label][metric] is None])
    count = len(rows)
    figure = _figure(height_inches=1.75 + 0.24 * count + 0.17 * len(note))
    axes = figure.add_subplot()
    _style(axes, grid="x")
    axes.barh(range(count), [value for value, _, _ in rows], height=0.72, color=BLUE)
    axes.set_yticks(range(count), [_shortened(label) for _, label, _ in rows], parse_math=False)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(name)
    axes.tick_params(axis="y", length=0)
    is_roc_auc = metric == "roc_auc"
    if is_roc_auc:
        axes.axvline(0.5, color=ORANGE, linewidth=1.4, linestyle=DASHES)
    for row, (value, _, num_positive) in enumerate(rows):
        _beside(axes, row, (44, 0), f"{value:.2f}", ha="right")
        _beside(axes, row, (108, 0), f"{num_positive:,}", ha="right")
    if rows:
        _beside(axes, -0.6, (44, 14), "value", ha="right", color=GREY)
        _beside(axes, -0.6, (108, 14), "positives", ha="right", color=GREY)
    title = f"{name[:1].upper()}{name[1:]} of each label"
    _title(axes, title, "Dashed line: chance" if is_roc_auc else "")
    if note:
        figure.supxlabel(
            "\n".join(note), x=0.02, ha="left", fontsize=10, color=GREY, parse_math=False
        )
    return figure


def training_figure(
    lines: Sequence[Mapping[str, Any]], *, metric_names: Mapping[str, str]
) -> Figure:
    """Return the figure of `plot_training`.

    Args:
        lines: Those of metrics.jsonl: some with ``loss``, and one with ``validation`` for each epoch.
        metric_names: Names of the validation metrics for people.
    """
    logged = [line for line in lines if "loss" in line]
    judged = [line for line in lines if "validation" in line]
    ends = [line["step"] for line in judged]
    steps_per_epoch = ends[-1] / judged[-1]["epoch"]
    is_short = len(judged) <= MAX_MARKED_POINTS
    figure = _figure(height_inches=5.8)
    upper, lower = figure.subplots(2, 1, sharex=True)

    _style(upper, grid="y")
    _draw_losses(upper, logged, judged, steps_per_epoch=steps_per_epoch)
    upper.set_ylabel("Training loss")
    epochs = upper.secondary_xaxis(
        "top",
        functions=(lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch),
    )
    epochs.set_xlabel("Epochs", fontsize=11, color=INK)
    epochs.tick_params(labelsize=10, color=GREY, labelcolor=INK)
    epochs.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    epochs.spines["top"].set_visible(False)

    _style(lower, grid="y")
    for key, (color, marker) in zip(judged[0]["validation"], SERIES, strict=False):
        # metrics.jsonl has null where a metric did not exist.
        found = [line["validation"][key] for line in judged]
        values = [math.nan if value is None else value for value in found]
        name = metric_names.get(key, key)
        defined = [value for value in values if not math.isnan(value)]
        if defined:
            best = values.index(max(defined))
            name += f", best {values[best]:.3f} in epoch {judged[best]['epoch']}"
            lower.plot(
                ends[best], values[best], marker, color=color, markersize=11, fillstyle="none"
            )
        style = {"marker": marker, "markersize": 4.5} if is_short else {}
        lower.plot(ends, values, color=color, linewidth=1.8, label=name, **style)
    lower.set_ylabel("Validation, whole tracks")
    lower.set_xlabel("Optimiser steps")
    lower.set_xlim(0, 1.03 * ends[-1])
    lower.margins(y=0.12)
    lower.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    lower.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=2, frameon=False, fontsize=10)
    figure.align_ylabels()
    return figure


def _draw_losses(
    axes: Axes,
    logged: Sequence[Mapping[str, Any]],
    judged: Sequence[Mapping[str, Any]],
    *,
    steps_per_epoch: float,
) -> None:
    """Draw the logged losses, and over them the mean of each epoch where it says more."""
    steps, losses = [line["step"] for line in logged], [line["loss"] for line in logged]
    if len(logged) < 4 * len(judged):
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


def _figure(*, height_inches: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=PALE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=10, color=GREY, labelcolor=INK)
    axes.xaxis.label.set(fontsize=11, color=INK)
    axes.yaxis.label.set(fontsize=11, color=INK)


def _title(axes: Axes, title: str, subtitle: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=26)
    axes.title.set_parse_math(False)
    axes.annotate(
        subtitle, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", fontsize=10
    )


def _beside(
    axes: Axes,
    y: float,
    offset_points: tuple[float, float],
    text: str,
    *,
    ha: str,
    color: str = INK,
) -> None:
    """Write at a height of the y axis, shifted from the right side of the axes."""
    axes.annotate(
        text,
        (1, y),
        offset_points,
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center_baseline",
        ha=ha,
        fontsize=10,
        color=color,
        annotation_clip=False,
    )


def _shortened(label: str) -> str:
    over = len(label) > MAX_LABEL_CHARACTERS
    return label[: MAX_LABEL_CHARACTERS - 1] + "…" if over else label


def _left_out_note(labels: Sequence[str]) -> list[str]:
    """Return lines that name the labels that have no value; none for none."""
    if not labels:
        return []
    names = ", ".join(_shortened(label) for label in labels[:MAX_LISTED_LABELS])
    more = f" and {len(labels) - MAX_LISTED_LABELS} more" if len(labels) > MAX_LISTED_LABELS else ""
    text = f"Left out, as all or none of the test tracks have them: {names}{more}"
    return textwrap.wrap(text, MAX_NOTE_CHARACTERS, break_on_hyphens=False)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
