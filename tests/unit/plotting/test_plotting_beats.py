"""Beats over a waveform: what is drawn, and the file that comes out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import assert_nothing_is_cut
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from PIL import Image

from m2v_finetune.plotting.beats import WAVEFORM, beats_figure, plot_beats
from m2v_finetune.plotting.style import BLUE, ORANGE

SAMPLE_RATE = 8000
BEATS = np.arange(0.5, 20, 0.5)
DOWNBEATS = BEATS[::4]


def arguments(**changes: Any) -> dict[str, Any]:
    """Return 20 s of noise that is louder at the beats, and activations that peak there."""
    frame_times = (np.arange(1000) + 0.5) / 50
    activation = np.exp(-0.5 * ((frame_times + 0.25) % 0.5 - 0.25) ** 2 / 0.02**2)
    waveform = np.random.default_rng(0).normal(size=20 * SAMPLE_RATE) / 10
    return {
        "waveform": waveform,
        "sample_rate": SAMPLE_RATE,
        "frame_times": frame_times,
        "beat_activation": activation,
        "downbeat_activation": activation / 2,
        "estimated_beats": BEATS + 0.02,
        "estimated_downbeats": DOWNBEATS + 0.02,
        "reference_beats": BEATS,
        "reference_downbeats": DOWNBEATS,
        "start_seconds": 0.0,
        "title": "A march",
    } | changes


def ticks(axes: Axes) -> dict[tuple[str, int], np.ndarray]:
    """Return the times of the ticks by colour and row."""
    found = {}
    for lines in axes.collections:
        assert isinstance(lines, LineCollection)
        segments = np.array(lines.get_segments())
        row = round(float(segments[0, :, 1].mean()))
        found[to_hex(lines.get_color()[0]).upper(), row] = segments[:, 0, 0]
    return found


def test_rows_of_ticks_with_downbeats_taller_and_of_another_colour() -> None:
    figure = beats_figure(**arguments())
    strip = figure.axes[0]
    assert [tick.get_text() for tick in strip.get_yticklabels()] == ["annotated", "estimated"]
    found = ticks(strip)
    np.testing.assert_allclose(found[BLUE, 0], BEATS)
    np.testing.assert_allclose(found[ORANGE, 0], DOWNBEATS)
    np.testing.assert_allclose(found[BLUE, 1], BEATS + 0.02)
    np.testing.assert_allclose(found[ORANGE, 1], DOWNBEATS + 0.02)
    heights = [np.ptp(lines.get_segments()[0][:, 1]) for lines in strip.collections]  # type: ignore[attr-defined]
    assert heights[1] > 1.5 * heights[0]
    assert [text.get_text() for text in strip.get_legend().get_texts()] == ["beat", "downbeat"]


def test_without_annotations_only_estimates() -> None:
    none = arguments(reference_beats=None, reference_downbeats=None)
    strip = beats_figure(**none).axes[0]
    assert [tick.get_text() for tick in strip.get_yticklabels()] == ["estimated"]
    np.testing.assert_allclose(ticks(strip)[BLUE, 0], BEATS + 0.02)


def test_annotated_beats_alone() -> None:
    strip = beats_figure(**arguments(reference_downbeats=None)).axes[0]
    assert len(strip.collections) == 4
    assert strip.collections[1].get_segments() == []  # type: ignore[attr-defined]


def test_activations_are_drawn_as_they_are() -> None:
    given = arguments()
    axes = beats_figure(**given).axes[1]
    beat, downbeat = axes.get_lines()
    np.testing.assert_array_equal(beat.get_ydata(), given["beat_activation"])
    np.testing.assert_array_equal(downbeat.get_ydata(), given["downbeat_activation"])
    np.testing.assert_array_equal(beat.get_xdata(), given["frame_times"])
    assert (to_hex(beat.get_color()).upper(), to_hex(downbeat.get_color()).upper()) == (
        BLUE,
        ORANGE,
    )
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] >= 1


@pytest.mark.parametrize(("start", "end"), [(0.0, 10.0), (4.0, 14.0), (13.0, 20.0)])
def test_at_most_ten_seconds_and_not_beyond_the_end(start: float, end: float) -> None:
    for axes in beats_figure(**arguments(start_seconds=start)).axes:
        assert axes.get_xlim() == (start, end)


def test_envelope_is_of_the_stretch_and_is_in_the_middle() -> None:
    waveform = np.zeros(20 * SAMPLE_RATE)
    waveform[12 * SAMPLE_RATE] = 0.25
    axes = beats_figure(**arguments(waveform=waveform, start_seconds=8.0)).axes[1]
    [envelope] = [
        patch
        for patch in axes.collections
        if isinstance(patch, PolyCollection)
        and to_hex(patch.get_facecolor()[0]).upper() == WAVEFORM
    ]
    outline = envelope.get_paths()[0].vertices
    assert outline[:, 1].min() == 0.5
    assert outline[:, 1].max() == 1.0  # the loudest sample reaches the edge
    assert outline[outline[:, 1].argmax(), 0] == pytest.approx(12, abs=0.02)


@pytest.mark.parametrize("title", ["A march", "$\\bad$ " * 20])
def test_nothing_is_cut(title: str) -> None:
    silence = np.zeros(3 * SAMPLE_RATE)
    assert_nothing_is_cut(beats_figure(**arguments(title=title)))
    assert_nothing_is_cut(beats_figure(**arguments(waveform=silence, title=title)))


def test_file(tmp_path: Path) -> None:
    plot_beats(**arguments(), path=tmp_path / "new" / "beats.png")
    with Image.open(tmp_path / "new" / "beats.png") as image:
        assert (image.format, image.width) == ("PNG", 960)
