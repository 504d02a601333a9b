"""A metric of each label: what is drawn, and the file that comes out."""

from pathlib import Path
from typing import Any

import pytest
from drawn import assert_nothing_is_cut
from PIL import Image

from m2v_finetune.plotting.labels import per_label_figure, plot_per_label


def labels_of(count: int, *, prefix: str = "label") -> dict[str, dict[str, Any]]:
    return {
        f"{prefix} {i}": {
            "roc_auc": 0.4 + 0.5 * i / count,
            "average_precision": 0.1 + 0.8 * (i * 7 % count) / count,
            "num_positive": 10 + i,
        }
        for i in range(count)
    }


class TestPerLabel:
    def test_bars_are_sorted_with_values_and_numbers(self) -> None:
        per_label = {
            "low": {"roc_auc": 0.6, "num_positive": 7},
            "high": {"roc_auc": 0.95, "num_positive": 1234},
            "mid": {"roc_auc": 0.8, "num_positive": 55},
        }
        figure = per_label_figure(per_label, metric="roc_auc", name="ROC-AUC")
        [axes] = figure.axes
        assert [bar.get_width() for bar in axes.patches] == [0.95, 0.8, 0.6]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["high", "mid", "low"]
        top, bottom = axes.get_ylim()[1], axes.get_ylim()[0]
        assert top < bottom  # the first is on top
        beside = {(text.xy[1], text.get_text()) for text in axes.texts}  # type: ignore[attr-defined]
        assert {(0, "0.95"), (0, "1,234"), (1, "0.80"), (1, "55"), (2, "0.60"), (2, "7")} <= beside
        assert axes.get_xlim() == (0, 1)

    def test_only_roc_auc_has_a_line_at_chance(self) -> None:
        [axes] = per_label_figure(labels_of(3), metric="roc_auc", name="ROC-AUC").axes
        [line] = axes.get_lines()
        assert list(line.get_xdata()) == [0.5, 0.5]
        [axes] = per_label_figure(labels_of(3), metric="average_precision", name="AP").axes
        assert not axes.get_lines()

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [1, 20, 50, 90])
    def test_height_grows_with_the_labels_and_nothing_is_cut(self, count: int) -> None:
        per_label = labels_of(count, prefix="instrument---acoustic guitar of a very long name")
        figure = per_label_figure(per_label, metric="average_precision", name="average precision")
        [axes] = figure.axes
        assert len(axes.patches) == count
        assert_nothing_is_cut(figure)
        height = axes.get_window_extent().height / figure.dpi
        assert height / count > 0.2  # room for a line of 10 points
        assert axes.get_window_extent().width / figure.dpi > 3
        assert max(len(tick.get_text()) for tick in axes.get_yticklabels()) == 40

    def test_labels_without_a_value_are_named(self) -> None:
        nothing = {"roc_auc": None, "num_positive": 0}
        figure = per_label_figure(
            labels_of(2) | {"harp": nothing, "sitar": nothing}, metric="roc_auc", name="ROC-AUC"
        )
        assert len(figure.axes[0].patches) == 2
        assert "harp, sitar" in figure.get_supxlabel()
        assert not per_label_figure(labels_of(2), metric="roc_auc", name="A").get_supxlabel()

    @pytest.mark.slow
    def test_of_very_many_labels_without_a_value_some_are_named(self) -> None:
        nothing = {"roc_auc": None, "num_positive": 0}
        per_label = labels_of(60) | {f"without a value, number {i}": nothing for i in range(30)}
        figure = per_label_figure(per_label, metric="roc_auc", name="ROC-AUC")
        assert "number 11 and 18 more" in figure.get_supxlabel().replace("\n", " ")
        assert_nothing_is_cut(figure)

    def test_no_label_with_a_value(self) -> None:
        nothing = {"roc_auc": None, "num_positive": 0}
        figure = per_label_figure({"harp": nothing}, metric="roc_auc", name="ROC-AUC")
        assert not figure.axes[0].patches
        assert_nothing_is_cut(figure)

    def test_counts_are_named_as_their_key_states(self) -> None:
        per_label = {
            "valence": {"f1": 0.5, "num_tracks": 72},
            "arousal": {"f1": 0.4, "num_tracks": 9},
        }
        [axes] = per_label_figure(per_label, metric="f1", name="F1").axes
        assert {"tracks", "72", "9"} <= {text.get_text() for text in axes.texts}

    def test_metric_beyond_0_and_1_and_without_counts(self) -> None:
        per_label = {"valence": {"r2": -0.25}, "arousal": {"r2": 0.6}, "tempo": {"r2": 1.0}}
        figure = per_label_figure(per_label, metric="r2", name="R²")
        [axes] = figure.axes
        assert [bar.get_width() for bar in axes.patches] == [1.0, 0.6, -0.25]
        low, high = axes.get_xlim()
        assert low < -0.25
        assert high > 1
        [zero] = axes.get_lines()
        assert list(zero.get_xdata()) == [0, 0]
        assert "−0.25" in [text.get_text() for text in axes.texts]
        assert_nothing_is_cut(figure)

    def test_errors_start_at_zero(self) -> None:
        per_label = {"valence": {"rmse": 12.5}, "arousal": {"rmse": 3.0}}
        [axes] = per_label_figure(per_label, metric="rmse", name="RMSE").axes
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > 12.5
        assert not axes.get_lines()

    def test_dollars_are_no_formula(self) -> None:
        per_label = {
            "$\\bad$": {"roc_auc": 0.9, "num_positive": 1},
            "$\\worse$": {"roc_auc": None, "num_positive": 0},
        }
        assert_nothing_is_cut(per_label_figure(per_label, metric="roc_auc", name="ROC-AUC"))


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "per_label.png"
    plot_per_label(labels_of(20), path, metric="roc_auc", name="ROC-AUC")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 960
        assert image.height == pytest.approx(786, abs=5)
