"""Spectrograms of stems: what is drawn, and the file that comes out."""

from pathlib import Path

import numpy as np
import pytest
from drawn import assert_nothing_is_cut
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from PIL import Image

from m2v_finetune.plotting.spectrograms import (
    plot_separation,
    power_spectrogram,
    separation_figure,
)

SAMPLE_RATE = 16000
TIMES = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
LOW = np.sin(2 * np.pi * 250 * TIMES)
HIGH = 0.1 * np.sin(2 * np.pi * 4000 * TIMES) * (TIMES > 1)


def mesh_of(axes: Axes) -> QuadMesh:
    [mesh] = axes.collections
    assert isinstance(mesh, QuadMesh)
    return mesh


def test_power_has_its_peak_at_the_tone_and_in_its_time() -> None:
    times, frequencies, power = power_spectrogram(HIGH, SAMPLE_RATE)
    assert power.shape == (len(frequencies), len(times))
    loudest = power[:, times > 1.1].mean(axis=1).argmax()
    assert frequencies[loudest] == pytest.approx(4000, abs=10)
    level = power.sum(axis=0)
    assert level[times < 0.95].max() < 1e-6 * level[times > 1.05].min()
    assert times[-1] == pytest.approx(2, abs=0.02)


def test_long_waveform_has_no_more_frames_than_pixels() -> None:
    times, _, _ = power_spectrogram(np.tile(LOW, 60), SAMPLE_RATE)
    assert 800 <= len(times) <= 1000
    assert times[-1] == pytest.approx(120, abs=0.2)


def test_mixture_is_above_its_stems_on_one_scale() -> None:
    figure = separation_figure(
        LOW + HIGH,
        {"bass": LOW, "flute": HIGH},
        SAMPLE_RATE,
        start_seconds=0,
        end_seconds=None,
        title="Two tones",
    )
    *rows, bar = figure.axes
    assert [axes.get_ylabel() for axes in rows] == ["mixture", "bass", "flute"]
    assert {mesh_of(axes).get_clim() for axes in rows} == {(-70.0, 0.0)}
    mixture, bass, flute = (np.asarray(mesh_of(axes).get_array()) for axes in rows)
    assert mixture.max() == pytest.approx(0)
    assert bass.max() == pytest.approx(0, abs=0.2)
    assert flute.max() == pytest.approx(-20, abs=0.5)  # a tenth of the amplitude
    assert rows[0].get_yscale() == "log"
    assert rows[0].get_xlim() == (0, 2)
    assert [tick.get_text() for tick in rows[0].get_yticklabels()] == ["100", "1,000"]
    assert "dB" in bar.get_ylabel()
    assert rows[0].get_title(loc="left") == "Two tones"
    assert_nothing_is_cut(figure)
    heights = [axes.get_window_extent().y0 for axes in rows]
    assert heights == sorted(heights, reverse=True)


def test_stretch_keeps_the_times_of_the_track() -> None:
    figure = separation_figure(
        HIGH, {}, SAMPLE_RATE, start_seconds=0.5, end_seconds=1.5, title="A tone"
    )
    axes = figure.axes[0]
    assert axes.get_xlim() == (0.5, 1.5)
    mesh = mesh_of(axes)
    middles = mesh.get_coordinates()[0, :-1, 0]
    level = np.asarray(mesh.get_array()).max(axis=0)
    assert middles[level > -20].min() == pytest.approx(1, abs=0.05)


def test_silence(tmp_path: Path) -> None:
    silence = np.zeros(SAMPLE_RATE)
    plot_separation(silence, {"$\\bad$": silence}, SAMPLE_RATE, tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert (image.format, image.width) == ("PNG", 960)
