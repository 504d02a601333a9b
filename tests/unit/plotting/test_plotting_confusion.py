"""Confusion matrices: what is drawn, and the file that comes out."""

from pathlib import Path

import numpy as np
import pytest
from drawn import assert_nothing_is_cut, texts
from matplotlib.colors import to_hex
from PIL import Image

from m2v_finetune.plotting.confusion import confusion_figure, plot_confusion

COUNTS = np.array([[9, 1, 0], [0, 0, 0], [199, 1, 0]])


def test_cells_have_the_percentage_of_their_row() -> None:
    [axes] = confusion_figure(COUNTS, ["rock", "jazz", "blues"], title="Genres").axes
    cells = {
        text.get_position(): text.get_text() for text in axes.texts if text.get_ha() == "center"
    }
    # Keys are (column, row); empty cells stay empty, and a rare error is not called 0 %.
    assert cells == {(0, 0): "90", (1, 0): "10", (0, 2): "100", (1, 2): "<1"}
    [image] = axes.get_images()
    shares = np.ma.masked_invalid(image.get_array())
    np.testing.assert_allclose(shares[0], [0.9, 0.1, 0])
    assert shares[1].mask.all()
    assert axes.get_ylim() == (2.5, -0.5)  # the first row is on top


def test_totals_and_accuracy_are_written() -> None:
    figure = confusion_figure(COUNTS, ["rock", "jazz", "blues"], title="Genres")
    [axes] = figure.axes
    beside = {(text.xy[1], text.get_text()) for text in axes.texts if text.get_ha() == "right"}  # type: ignore[attr-defined]
    assert {(0, "10"), (1, "0"), (2, "200")} <= beside
    assert "9 of 210 are correct, 4.3%" in texts(figure)
    assert axes.get_title(loc="left") == "Genres"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("True class", "Estimate")


def test_text_is_white_on_dark_and_dark_on_pale() -> None:
    [axes] = confusion_figure(np.array([[95, 5], [5, 95]]), ["a", "b"], title="A").axes
    colors = {t.get_text(): to_hex(t.get_color()) for t in axes.texts if t.get_ha() == "center"}
    assert colors == {"95": "#ffffff", "5": "#222222"}


def test_128_classes_have_colours_and_sparse_ticks() -> None:
    counts = np.eye(128, dtype=int) * 5
    figure = confusion_figure(counts, [str(i) for i in range(128)], title="Pitches")
    axes, bar = figure.axes
    figure.canvas.draw()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        str(i) for i in range(0, 128, 12)
    ]
    assert len(axes.texts) == 1  # the subtitle alone
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height, abs=1)
    assert box.width / 128 > 4  # pixels a cell
    # A share of 1 % is a tenth of the way up, not a hundredth.
    assert axes.get_images()[0].norm(0.01) == pytest.approx(0.1)
    assert bar.get_ylabel() == "Share of the row"
    assert_nothing_is_cut(figure)


@pytest.mark.parametrize("count", [2, 10, 25, 26, 88])
def test_nothing_is_cut(count: int) -> None:
    labels = [f"instrument of a name {i}" for i in range(count)]
    assert_nothing_is_cut(confusion_figure(np.eye(count, dtype=int), labels, title="$x$ of all"))


def test_nothing_evaluated() -> None:
    figure = confusion_figure(np.zeros((3, 3), dtype=int), ["a", "b", "c"], title="A")
    assert "No tracks" in texts(figure)
    assert_nothing_is_cut(figure)


def test_file(tmp_path: Path) -> None:
    plot_confusion(COUNTS, ["rock", "jazz", "blues"], tmp_path / "new" / "a.png", title="Genres")
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert (image.format, image.width) == ("PNG", 960)
