"""Spectrograms of a mixture and of the stems it was taken apart into."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    new_figure,
    save,
    shortened,
    style_axes,
    style_colorbar,
    title_axes,
)

WINDOW_SECONDS = 0.064
MAX_FRAMES = 900
FLOOR_DB = -70.0
LOWEST_HZ = 40.0
NAMED_HZ = (100, 1_000, 10_000)


def plot_separation(
    mixture: NDArray[np.floating],
    stems: Mapping[str, NDArray[np.floating]],
    sample_rate: int,
    path: Path,
    *,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    title: str = "Mixture and stems",
) -> None:
    """Draw the spectrogram of a mixture above those of its stems, on one scale of colours.

    Args:
        mixture: (samples,).
        stems: Waveforms by name, (samples,) each.
        sample_rate: Sample rate, in Hz.
        path: PNG file; its folder is created if needed.
        start_seconds: Start of the plot.
        end_seconds: End of the plot; None for the end of the mixture. Ten seconds show the most detail.
        title: Title, such as the name of the track.
    """
    figure = separation_figure(
        mixture,
        stems,
        sample_rate,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        title=title,
    )
    save(figure, path)


def separation_figure(
    mixture: NDArray[np.floating],
    stems: Mapping[str, NDArray[np.floating]],
    sample_rate: int,
    *,
    start_seconds: float,
    end_seconds: float | None,
    title: str,
) -> Figure:
    """Return the figure of `plot_separation`."""
    first = round(start_seconds * sample_rate)
    last = len(mixture) if end_seconds is None else round(end_seconds * sample_rate)
    waveforms = {"mixture": mixture, **stems}
    powers = {
        name: power_spectrogram(waveform[first:last], sample_rate)
        for name, waveform in waveforms.items()
    }
    loudest = max(float(powers["mixture"][2].max()), 1e-20)
    figure = new_figure(height_inches=1.3 + 1.25 * len(waveforms))
    rows = figure.subplots(len(waveforms), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, (times, frequencies, power)) in zip(rows, powers.items(), strict=True):
        decibels = 10 * np.log10(np.maximum(power / loudest, 1e-20))
        mesh = _draw(axes, times + first / sample_rate, frequencies, decibels)
        axes.set_ylabel(shortened(name), parse_math=False)
        axes.set_xlim(first / sample_rate, last / sample_rate)
    for axes in rows[:-1]:
        axes.tick_params(axis="x", length=0)
    rows[-1].set_xlabel("Seconds")
    title_axes(rows[0], shortened(title), "Frequency in Hz, on a logarithmic scale")
    bar = figure.colorbar(mesh, ax=list(rows), pad=0.02, fraction=0.03, aspect=40)
    style_colorbar(bar, "dB; 0 is the loudest point of the mixture")
    figure.align_ylabels(rows)
    return figure


def power_spectrogram(
    waveform: NDArray[np.floating], sample_rate: int
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """Return times in seconds (frames,), frequencies in Hz (bins,) and power (bins, frames).

    The window is a Hann window of 64 ms; frames are a quarter of it apart, or more in a long waveform.
    """
    size = round(WINDOW_SECONDS * sample_rate)
    hop = max(size // 4, len(waveform) // MAX_FRAMES)
    window = np.hanning(size + 1)[:-1]  # periodic
    frames = sliding_window_view(np.pad(waveform, size // 2), size)[::hop]
    power = np.abs(np.fft.rfft(window * frames)).T ** 2
    times = np.arange(len(frames)) * hop / sample_rate
    return times, np.fft.rfftfreq(size, 1 / sample_rate), power


def _draw(
    axes: Axes,
    times: NDArray[np.floating],
    frequencies: NDArray[np.floating],
    decibels: NDArray[np.floating],
) -> QuadMesh:
    """Draw levels over time and the logarithm of the frequency."""
    style_axes(axes, grid=None)
    axes.spines[:].set_visible(False)
    is_shown = frequencies >= LOWEST_HZ
    mesh = axes.pcolormesh(
        times, frequencies[is_shown], decibels[is_shown], cmap="magma", vmin=FLOOR_DB, vmax=0
    )
    axes.set_yscale("log")
    axes.set_ylim(frequencies[is_shown][0], frequencies[-1])
    named = [hz for hz in NAMED_HZ if hz < frequencies[-1]]
    axes.set_yticks(named, [f"{hz:,}" for hz in named])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    return mesh
