"""Metric of each label."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from m2v_finetune.plotting.style import (
    BLUE,
    DASHES,
    GREY,
    INK,
    ORANGE,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
    write_beside,
)

MAX_LISTED_LABELS = 12
MAX_DRAWN_LABELS = 200
SHOWN_LABELS = 50
"""At either end, where there are more than `MAX_DRAWN_LABELS`."""
MAX_NOTE_CHARACTERS = 88


def plot_per_label(
    per_label: Mapping[str, Mapping[str, Any]], path: Path, *, metric: str, name: str
) -> None:
    """Draw a metric of each label, highest first, with the number of tracks behind it.

    Args:
        per_label: For each label, the metric and, if it was counted, a number with a key that starts with
            ``num_``, such as ``num_positive``. Labels whose metric is None are named below the picture. Of
            more than 200 labels the 50 best and the 50 worst are drawn, and the title states this.
        path: PNG file; its folder is created if needed.
        metric: Key of the metric; ``roc_auc`` gets a line at chance, 0.5.
        name: Human-readable name, such as ``ROC-AUC``.
    """
    save(per_label_figure(per_label, metric=metric, name=name), path)


def per_label_figure(
    per_label: Mapping[str, Mapping[str, Any]], *, metric: str, name: str
) -> Figure:
    """Return the figure of `plot_per_label`."""
    defined = [label for label, values in per_label.items() if values[metric] is not None]
    labels = sorted(defined, key=lambda label: (-per_label[label][metric], label))
    title = f"{name[:1].upper()}{name[1:]} of each label"
    if len(labels) > MAX_DRAWN_LABELS:
        title = f"{name[:1].upper()}{name[1:]}: the best and the worst of {len(labels):,} labels"
        labels = labels[:SHOWN_LABELS] + labels[-SHOWN_LABELS:]
    values = [per_label[label][metric] for label in labels]
    note = _left_out_note([label for label in per_label if label not in defined])
    count = len(labels)
    figure = new_figure(height_inches=1.75 + 0.24 * count + 0.17 * len(note))
    axes = figure.add_subplot()
    style_axes(axes, grid="x")
    axes.barh(range(count), values, height=0.72, color=BLUE)
    axes.set_yticks(range(count), [shortened(label) for label in labels], parse_math=False)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlim(_limits(values))
    axes.set_xlabel(name)
    axes.tick_params(axis="y", length=0)
    if min(values, default=0) < 0:
        axes.axvline(0, color=INK, linewidth=0.8)
    is_roc_auc = metric == "roc_auc"
    if is_roc_auc:
        axes.axvline(0.5, color=ORANGE, linewidth=1.4, linestyle=DASHES)
    if labels:
        _write_column(axes, 44, "value", [f"{value:.2f}".replace("-", "−") for value in values])
        for key in per_label[labels[0]]:
            if key.startswith("num_"):
                counts = [f"{per_label[label][key]:,}" for label in labels]
                _write_column(axes, 108, key.removeprefix("num_").replace("_", " "), counts)
    title_axes(axes, title, "Dashed line: chance" if is_roc_auc else "")
    if note:
        figure.supxlabel(
            "\n".join(note), x=0.02, ha="left", fontsize=10, color=GREY, parse_math=False
        )
    return figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of the axis: 0 and 1, or zero and all values if some are outside."""
    low, high = min(values, default=0), max(values, default=1)
    if low >= 0 and high <= 1:
        return 0, 1
    margin = 0.05 * (max(high, 0) - min(low, 0))
    return min(0, low) - (margin if low < 0 else 0), max(0, high) + margin


def _write_column(axes: Axes, offset_points: float, heading: str, texts: Sequence[str]) -> None:
    """Write a text beside each bar, and a heading above them."""
    write_beside(axes, -0.6, (offset_points, 14), heading, ha="right", color=GREY)
    for row, text in enumerate(texts):
        write_beside(axes, row, (offset_points, 0), text, ha="right")


def _left_out_note(labels: Sequence[str]) -> list[str]:
    """Return lines that name the labels that have no value; none for none."""
    if not labels:
        return []
    names = ", ".join(shortened(label) for label in labels[:MAX_LISTED_LABELS])
    more = f" and {len(labels) - MAX_LISTED_LABELS} more" if len(labels) > MAX_LISTED_LABELS else ""
    text = f"Left out, as the test tracks give them no value: {names}{more}"
    return textwrap.wrap(text, MAX_NOTE_CHARACTERS, break_on_hyphens=False)
