"""Style of all plots.

Figures are built without pyplot, so nothing global is changed and no display is needed.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Text

from m2v_finetune.files import write_atomically

WIDTH_INCHES = 8.0
DPI = 120
# Colours that colour-blind readers can distinguish, with a marker each. Source: Okabe and Ito, "Color
# Universal Design" (2008).
BLUE, ORANGE = "#0072B2", "#D55E00"
GREEN, PURPLE, SKY, YELLOW = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
LIGHT_BLUE = "#8FBFDD"
INK = "#222222"
GREY = "#5F5F5F"
PALE = "#E6E6E6"
SERIES = (
    (BLUE, "o"),
    (ORANGE, "s"),
    (GREEN, "^"),
    (PURPLE, "D"),
    (SKY, "v"),
    (YELLOW, "P"),
    (INK, "X"),
    (GREY, "*"),
)
# From nothing to much, darker and darker, so that it is read without colours too.
WHITE_TO_BLUE = LinearSegmentedColormap.from_list(
    "white_to_blue", ["#FFFFFF", "#C9E0EF", LIGHT_BLUE, BLUE, "#00304D"]
)
DASHES = (0, (4, 3))
MAX_LABEL_CHARACTERS = 40
EAST_ASIAN_FONTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAGothic", "NanumGothic"),  # Linux
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo"),  # macOS
    *("Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),  # Windows
)
"""Fonts with Chinese, Japanese or Korean characters, which DejaVu Sans lacks."""


def new_figure(*, height_inches: float) -> Figure:
    """Return an empty figure of the common width of plots."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, *, grid: Literal["x", "y", "both"] | None) -> None:
    """Style axes: lines to the left and below, and a grid along ``grid``."""
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color=PALE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=10, color=GREY, labelcolor=INK)
    axes.xaxis.label.set(fontsize=11, color=INK)
    axes.yaxis.label.set(fontsize=11, color=INK)


def title_axes(axes: Axes, title: str, subtitle: str) -> None:
    """Write a title above axes, and a line below it that explains the plot."""
    axes.set_title(
        title, loc="left", pad=26, fontsize=13, fontweight="bold", color=INK, parse_math=False
    )
    axes.annotate(
        subtitle, (0, 1), (0, 9), xycoords="axes fraction", textcoords="offset points", fontsize=10
    )


def write_beside(
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


def legend_above(axes: Axes, **options: Any) -> None:
    """Put the legend above axes to the right, on the line of the subtitle."""
    legend = axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.005, 1.0),
        ncols=len(axes.get_legend_handles_labels()[1]),
        frameon=False,
        fontsize=10,
        handlelength=1.4,
        columnspacing=1.4,
        borderaxespad=0.15,
        **options,
    )
    without_math(legend)


def style_colorbar(bar: Colorbar, name: str) -> None:
    """Style a colour bar and write its unit beside it."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, color=GREY, labelcolor=INK)
    bar.set_label(name, fontsize=11, color=INK)


def ink_on(color: Any) -> str:
    """Return the colour of a text that is legible on a background, dark or white.

    Source: relative luminance and contrast ratio of WCAG 2.2.
    """
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    return "white" if luminance < 0.22 else INK


def shortened(label: str, max_characters: int = MAX_LABEL_CHARACTERS) -> str:
    """Return a label in one line that can be drawn, cut where it is too long for a picture."""
    # Bytes of a file name that are not UTF-8 have no glyph, and control characters no visible one.
    text = " ".join(label.split()).encode(errors="backslashreplace").decode()
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text[: max_characters - 1] + "…" if len(text) > max_characters else text


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Hide the log of matplotlib about weights that an installed font lacks."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@cache
def font_families() -> list[str]:
    """Return matplotlib's own font, and installed ones with the scripts that it lacks."""
    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in EAST_ASIAN_FONTS if name in installed)]


def without_math(legend: Legend) -> None:
    """Draw names in a legend without formulas: a dollar sign is text."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, atomically; its folder is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    families = font_families()
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    with warnings.catch_warnings(), _quiet_fonts():
        # An emoji is drawn as a box; the user does not need a warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_atomically(
            path, lambda unfinished: figure.savefig(unfinished, format="png", facecolor="white")
        )
