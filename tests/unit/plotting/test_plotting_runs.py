"""Layer weights and training curves: what is drawn, and the files that come out."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from drawn import assert_nothing_is_cut, texts
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from PIL import Image

from m2v_finetune.plotting.runs import (
    layer_weights_figure,
    plot_layer_weights,
    plot_training,
    training_figure,
)
from m2v_finetune.plotting.style import BLUE, ORANGE

NAMES = {"roc_auc": "ROC-AUC", "average_precision": "average precision"}


def log_lines(*, epochs: int, logged_per_epoch: int) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl; the loss in epoch e is about 1 / e, validation peaks at 2."""
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for i in range(logged_per_epoch):
            step = 10 * ((epoch - 1) * logged_per_epoch + i + 1)
            loss = 1 / epoch + 0.1 * (-1) ** i
            lines.append({"step": step, "epoch": epoch, "loss": loss, "gradient_norm": 1.0})
        values = {"roc_auc": 0.9 - 0.1 * abs(epoch - 2), "average_precision": 0.1 * epoch}
        lines.append({"step": step, "epoch": epoch, "validation": values})
    return lines


def series(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """Return what the lines of the legend are drawn through."""
    return {
        str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


class TestLayerWeights:
    @pytest.mark.parametrize("count", [5, 13, 25])
    def test_one_bar_a_hidden_state_with_its_height(self, count: int) -> None:
        weights = np.random.default_rng(0).dirichlet(np.ones(count)).tolist()
        figure = layer_weights_figure(weights, backbone="music2vec-v1", kind="softmax")
        [axes] = figure.axes
        assert [bar.get_height() for bar in axes.patches] == weights
        assert [tick.get_text() for tick in axes.get_xticklabels()] == [
            str(i) for i in range(count)
        ]
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > max(weights)
        [equal] = axes.get_lines()
        assert list(equal.get_ydata()) == [1 / count, 1 / count]
        assert_nothing_is_cut(figure)

    def test_linear_combination_shows_negative_weights(self) -> None:
        figure = layer_weights_figure([0.5, -0.7, 0.1], backbone="MERT-v1-95M", kind="conv1d")
        [axes] = figure.axes
        assert [bar.get_height() for bar in axes.patches] == [0.5, -0.7, 0.1]
        assert axes.get_ylim()[0] < -0.7
        assert "equal" not in texts(figure)

    @pytest.mark.parametrize(("kind", "expected"), [("last", "last hidden state"), (1, "state 1")])
    def test_one_hidden_state(self, kind: str | int, expected: str) -> None:
        figure = layer_weights_figure([0.0, 1.0], backbone="MERT-v0", kind=kind)
        assert expected in texts(figure)

    @pytest.mark.parametrize("backbone", ["/home/me/backbones/mine", "me/mine", "mine"])
    def test_title_shows_no_folder(self, backbone: str) -> None:
        [axes] = layer_weights_figure([1.0], backbone=backbone, kind="softmax").axes
        assert axes.get_title(loc="left") == "Layer weights of mine"


class TestTraining:
    def test_long_run_shows_losses_and_their_means_over_epochs(self) -> None:
        lines = log_lines(epochs=5, logged_per_epoch=10)
        upper, lower = training_figure(lines, metric_names=NAMES).axes[:2]
        drawn = series(upper)
        logged = [line for line in lines if "loss" in line]
        assert drawn["as logged"] == (
            [line["step"] for line in logged],
            [line["loss"] for line in logged],
        )
        steps, means = drawn["mean of the epoch"]
        assert steps == [50, 150, 250, 350, 450]
        assert means == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
        assert upper.get_xlim() == lower.get_xlim()

    def test_short_run_shows_its_losses_alone(self) -> None:
        lines = log_lines(epochs=5, logged_per_epoch=1)
        [line] = training_figure(lines, metric_names=NAMES).axes[0].get_lines()
        assert len(line.get_xdata()) == 5
        assert line.get_marker() == "o"

    def test_validation_names_the_best_epoch_of_each_metric(self) -> None:
        figure = training_figure(log_lines(epochs=4, logged_per_epoch=3), metric_names=NAMES)
        lower = figure.axes[1]
        drawn = series(lower)
        assert list(drawn) == [
            "ROC-AUC, best 0.900 in epoch 2",
            "average precision, best 0.400 in epoch 4",
        ]
        steps, values = drawn["ROC-AUC, best 0.900 in epoch 2"]
        assert steps == [30, 60, 90, 120]
        assert values == pytest.approx([0.8, 0.9, 0.8, 0.7])
        rings = [line for line in lower.get_lines() if len(line.get_xdata()) == 1]
        assert [list(ring.get_xdata()) for ring in rings] == [[60], [120]]
        assert [to_hex(ring.get_color()).upper() for ring in rings] == [BLUE, ORANGE]

    def test_epochs_are_above_their_steps(self) -> None:
        figure = training_figure(log_lines(epochs=4, logged_per_epoch=3), metric_names=NAMES)
        figure.canvas.draw()
        [epochs] = figure.axes[0].child_axes
        assert epochs.get_xlabel() == "Epochs"
        steps = np.array(figure.axes[0].get_xlim())
        np.testing.assert_allclose(epochs.get_xlim(), steps / 30)

    def test_metric_that_never_existed_and_metric_without_a_name(self) -> None:
        lines = log_lines(epochs=3, logged_per_epoch=1)
        for line in lines:
            if "validation" in line:
                line["validation"]["roc_auc"] = float("nan")
        lower = training_figure(lines, metric_names={}).axes[1]
        assert list(series(lower)) == ["roc_auc", "average_precision, best 0.300 in epoch 3"]

    @pytest.mark.parametrize(("epochs", "logged_per_epoch"), [(1, 1), (8, 2), (100, 30)])
    def test_nothing_is_cut(self, epochs: int, logged_per_epoch: int) -> None:
        lines = log_lines(epochs=epochs, logged_per_epoch=logged_per_epoch)
        assert_nothing_is_cut(training_figure(lines, metric_names=NAMES))


def test_files(tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    metrics = tmp_path / "metrics.jsonl"
    lines = log_lines(epochs=4, logged_per_epoch=3)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    plots = tmp_path / "run" / "plots"
    plot_layer_weights([0.2] * 5, plots / "a.png", backbone="random-small", kind="softmax")
    plot_training(metrics, plots / "c.png", metric_names=NAMES)
    for path, height in [("a.png", 430), ("c.png", 696)]:
        with Image.open(plots / path) as image:
            assert image.format == "PNG"
            assert image.width == 960
            assert image.height == pytest.approx(height, abs=5)
            pixels = np.asarray(image.convert("RGB"))
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert (pixels == np.array([0x00, 0x72, 0xB2])).all(axis=2).mean() > 0.002
    assert dict(mpl.rcParams) == settings
