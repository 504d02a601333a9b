"""Plot of a search: how much each setting decides the metric."""

from collections.abc import Mapping
from pathlib import Path

from m2v_finetune.plotting.style import BLUE, new_figure, save, style_axes, title_axes


def plot_importance(
    importance: Mapping[str, float], path: Path, *, metric: str, num_trials: int
) -> None:
    """Draw the share of each setting in the variance of the metric.

    Args:
        importance: Share by setting, the largest first.
        path: PNG file; its folder is created if needed.
        metric: Name of the metric.
        num_trials: Number of complete trials.
    """
    figure = new_figure(height_inches=1.6 + 0.4 * len(importance))
    axes = figure.add_subplot()
    style_axes(axes, grid="x")
    axes.barh(list(importance)[::-1], list(importance.values())[::-1], color=BLUE, height=0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"Share of the variance of validation {metric}")
    title_axes(
        axes, "Importance of settings", f"Functional ANOVA over {num_trials} complete trials"
    )
    save(figure, path)
