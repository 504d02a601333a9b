"""Chords over time: what is drawn, and the file that comes out."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from drawn import assert_nothing_is_cut
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from m2v_finetune.plotting.chords import (
    MAJOR_COLORS,
    MINOR_COLORS,
    chord_color,
    chords_figure,
    plot_chords,
)
from m2v_finetune.plotting.style import PALE, ink_on

ESTIMATED = [(0.0, 2.0, "C:maj"), (2.0, 2.05, "G:maj"), (2.05, 8.0, "A:min")]
REFERENCE = [(0.0, 2.0, "C:maj"), (2.0, 7.0, "A:min"), (7.0, 8.0, "N")]
NAMES = [f"chord {i}" for i in range(24)] + ["N"]
FRAME_TIMES = (np.arange(400) + 0.5) / 50
PROBABILITIES = np.random.default_rng(0).dirichlet(np.ones(25), size=400)


def test_segments_are_drawn_from_start_to_end_in_their_rows() -> None:
    [axes] = chords_figure(ESTIMATED, REFERENCE, None, None).axes
    drawn = [
        (bar.get_x(), bar.get_x() + bar.get_width(), round(bar.get_y() + bar.get_height() / 2))
        for bar in axes.patches
    ]
    wanted = [(start, end, 0) for start, end, _ in REFERENCE]
    wanted += [(start, end, 1) for start, end, _ in ESTIMATED]
    np.testing.assert_allclose(drawn, wanted)
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [
        chord_color(label).lower() for *_, label in REFERENCE + ESTIMATED
    ]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["annotated", "estimated"]
    assert axes.get_ylim() == (1.5, -0.5)
    assert axes.get_xlim() == (0, 8)


def test_labels_are_written_where_there_is_room() -> None:
    [axes] = chords_figure(ESTIMATED, None, None, None).axes
    written = [(t.get_text(), t.get_position()[0]) for t in axes.texts if t.get_ha() == "center"]
    assert written == [("C:maj", 1.0), ("A:min", pytest.approx(5.025))]


def test_narrow_segments_have_small_or_upright_labels() -> None:
    """Texts stay inside their segments, whatever their width."""
    edges = np.concatenate([[0], np.cumsum(np.geomspace(0.1, 3, 14))])
    segments = [(float(a), float(b), "C#:maj") for a, b in pairwise(edges)]
    figure = chords_figure(segments, segments, None, None)
    [axes] = figure.axes
    figure.canvas.draw()
    rotations = set()
    for text in axes.texts:
        if text.get_ha() == "center":
            rotations.add(text.get_rotation())
            box = text.get_window_extent()
            [bar] = [
                bar.get_window_extent()
                for bar in axes.patches
                if bar.get_window_extent().contains(*box.get_points().mean(axis=0))
            ]
            assert bar.x0 <= box.x0
            assert box.x1 <= bar.x1
            assert bar.y0 <= box.y0
            assert box.y1 <= bar.y1
    assert rotations == {0, 90}


def test_probabilities_lie_under_their_times() -> None:
    figure = chords_figure(ESTIMATED, REFERENCE, PROBABILITIES, FRAME_TIMES, names=NAMES)
    strip, heat, bar = figure.axes
    [image] = heat.get_images()
    np.testing.assert_array_equal(image.get_array(), PROBABILITIES.T)
    assert image.get_extent() == pytest.approx([0, 8, 24.5, -0.5])
    assert image.get_clim() == (0, 1)
    assert [tick.get_text() for tick in heat.get_yticklabels()] == NAMES
    assert heat.get_xlim() == strip.get_xlim() == (0, 8)
    assert bar.get_ylabel() == "Probability"
    figure.canvas.draw()
    first, second = strip.get_window_extent(), heat.get_window_extent()
    assert (first.x0, first.x1) == pytest.approx((second.x0, second.x1))
    assert first.y0 > second.y1
    assert_nothing_is_cut(figure)


def test_stretch() -> None:
    figure = chords_figure(
        ESTIMATED,
        REFERENCE,
        PROBABILITIES,
        FRAME_TIMES,
        names=NAMES,
        start_seconds=3,
        end_seconds=5,
    )
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim() == (3, 5)


def test_colours_follow_the_circle_of_fifths() -> None:
    majors = ["C", "G", "D", "A", "E", "B", "F#", "C#", "G#", "D#", "A#", "F"]
    relatives = ["A", "E", "B", "F#", "C#", "G#", "D#", "A#", "F", "C", "G", "D"]
    assert tuple(chord_color(f"{root}:maj") for root in majors) == MAJOR_COLORS
    assert tuple(chord_color(f"{root}:min") for root in relatives) == MINOR_COLORS
    for same, other in [
        ("Bb", "A#:maj"),
        ("Cb:maj7/5", "B:maj"),
        ("E#:min7", "F:min"),
        ("C/3", "C"),
    ]:
        assert chord_color(same) == chord_color(other)
    assert chord_color("N") == chord_color("X") == PALE


def test_major_and_minor_differ_without_colours() -> None:
    def grey(color: str) -> float:
        return float(np.dot(to_rgb(color), [0.299, 0.587, 0.114]))

    assert min(map(grey, MAJOR_COLORS)) - max(map(grey, MINOR_COLORS)) > 0.3
    assert {ink_on(color) for color in MAJOR_COLORS} == {"#222222"}
    assert {ink_on(color) for color in MINOR_COLORS} == {"white"}


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chords.png"
    plot_chords(
        ESTIMATED, REFERENCE, PROBABILITIES, FRAME_TIMES, path, names=NAMES, title="$\\bad$"
    )
    with Image.open(path) as image:
        assert (image.format, image.width) == ("PNG", 960)
