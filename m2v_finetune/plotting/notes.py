"""Piano roll of correct, missed and extra notes."""

from pathlib import Path

import mir_eval
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from m2v_finetune.plotting.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    legend_above,
    new_figure,
    save,
    shortened,
    style_axes,
    title_axes,
)

Notes = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.integer]]
"""Onsets and offsets in seconds, and MIDI pitches (60 is C4); (notes,) each."""

ONSET_TOLERANCE_SECONDS = 0.05
BLACK_KEYS = (1, 3, 6, 8, 10)
NOTE_HEIGHT = 0.8
MIN_PITCHES = 24


def plot_piano_roll(
    estimated: Notes,
    reference: Notes | None,
    path: Path,
    *,
    start_seconds: float,
    end_seconds: float,
    title: str = "Notes",
) -> None:
    """Draw a stretch of a transcription, and which of its notes are right.

    An estimated note is correct if its pitch is and its onset is within 50 ms of the annotated one;
    each note is matched once.

    Args:
        estimated: Estimated notes.
        reference: Annotated notes; None for none.
        path: PNG file; its folder is created if needed.
        start_seconds: Start of the plot.
        end_seconds: End of the plot.
        title: Title, such as the name of the track.
    """
    figure = piano_roll_figure(
        estimated, reference, start_seconds=start_seconds, end_seconds=end_seconds, title=title
    )
    save(figure, path)


def piano_roll_figure(
    estimated: Notes,
    reference: Notes | None,
    *,
    start_seconds: float,
    end_seconds: float,
    title: str,
) -> Figure:
    """Return the figure of `plot_piano_roll`."""
    solid = {"linewidth": 0.5, "edgecolor": "white"}
    if reference is None:
        groups = [("estimated", estimated, {"facecolor": BLUE, **solid})]
    else:
        hits, misses, false_alarms = match(estimated, reference)
        groups = [
            ("right", hits, {"facecolor": BLUE, **solid}),
            ("missed", misses, {"facecolor": "white", "edgecolor": INK, "linewidth": 1.2}),
            ("false", false_alarms, {"facecolor": ORANGE, **solid}),
        ]
    groups = [
        (name, _within(notes, start_seconds, end_seconds), look) for name, notes, look in groups
    ]
    low, high = pitch_range(np.concatenate([pitches for _, (_, _, pitches), _ in groups]))
    figure = new_figure(height_inches=1.6 + 0.1 * (high - low + 1))
    keyboard, axes = figure.subplots(1, 2, sharey=True, width_ratios=[0.5, 12])
    _draw_keyboard(keyboard, low, high)

    _style_roll(axes, low, high)
    for name, (onsets, offsets, pitches), look in groups:
        axes.barh(
            pitches,
            offsets - onsets,
            NOTE_HEIGHT,
            left=onsets,
            label=f"{name} {len(pitches):,}",
            zorder=3,
            **look,
        )
    axes.set(xlim=(start_seconds, end_seconds), ylim=(low - 0.5, high + 0.5), xlabel="Seconds")
    legend_above(axes)
    title_axes(axes, shortened(title), "")
    return figure


def draw_notes(
    axes: Axes, notes: Notes, low: int, high: int, *, start_seconds: float, end_seconds: float
) -> None:
    """Draw a stretch of notes, without a keyboard.

    Args:
        axes: Empty axes.
        notes: Notes.
        low: Lowest pitch to show, a MIDI number.
        high: Highest pitch to show.
        start_seconds: Start of the stretch.
        end_seconds: End of the stretch.
    """
    _style_roll(axes, low, high)
    onsets, offsets, pitches = _within(notes, start_seconds, end_seconds)
    axes.barh(
        pitches, offsets - onsets, NOTE_HEIGHT, left=onsets, zorder=3, color=BLUE, linewidth=0
    )
    axes.set(xlim=(start_seconds, end_seconds), ylim=(low - 0.5, high + 0.5))
    axes.tick_params(axis="y", labelleft=True)


def _style_roll(axes: Axes, low: int, high: int) -> None:
    """Shade the black keys, and draw a line below each C."""
    style_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    for pitch in range(low, high + 1):
        if pitch % 12 in BLACK_KEYS:
            axes.axhspan(pitch - 0.5, pitch + 0.5, color="#F3F3F3", zorder=0, linewidth=0)
        if pitch % 12 == 0:
            axes.axhline(pitch - 0.5, color="#CCCCCC", linewidth=0.8, zorder=0.5)


def match(estimated: Notes, reference: Notes) -> tuple[Notes, Notes, Notes]:
    """Return the estimated notes that are right, the annotated ones missed, and the false estimates.

    Source: Bay, Ehmann and Downie, "Evaluation of multiple-F0 estimation and tracking systems",
    ISMIR 2009, as mir_eval computes it without offsets.
    """
    pairs = mir_eval.transcription.match_notes(
        np.stack(reference[:2], axis=1),
        mir_eval.util.midi_to_hz(np.asarray(reference[2], dtype=float)),
        np.stack(estimated[:2], axis=1),
        mir_eval.util.midi_to_hz(np.asarray(estimated[2], dtype=float)),
        onset_tolerance=ONSET_TOLERANCE_SECONDS,
        offset_ratio=None,
    )
    is_found = np.zeros(len(reference[0]), dtype=bool)
    is_right = np.zeros(len(estimated[0]), dtype=bool)
    for found, right in pairs:
        is_found[found], is_right[right] = True, True
    return (
        _selected(estimated, is_right),
        _selected(reference, ~is_found),
        _selected(estimated, ~is_right),
    )


def _selected(notes: Notes, mask: NDArray[np.bool_]) -> Notes:
    onsets, offsets, pitches = notes
    return onsets[mask], offsets[mask], pitches[mask]


def _within(notes: Notes, start_seconds: float, end_seconds: float) -> Notes:
    return _selected(notes, (notes[0] < end_seconds) & (notes[1] > start_seconds))


def pitch_range(pitches: NDArray[np.integer]) -> tuple[int, int]:
    """Return the lowest and highest pitch to show: all notes, and two octaves at least."""
    if not len(pitches):
        return 48, 48 + MIN_PITCHES
    low, high = int(pitches.min()) - 1, int(pitches.max()) + 1
    missing = max(0, MIN_PITCHES - (high - low))
    return low - missing // 2, high + (missing + 1) // 2


def _draw_keyboard(axes: Axes, low: int, high: int) -> None:
    """Draw the keys of a piano, the lowest at the bottom, and name each C."""
    style_axes(axes, grid=None)
    axes.spines[:].set_visible(False)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    for pitch in range(low, high + 1):
        is_black = pitch % 12 in BLACK_KEYS
        axes.add_patch(Rectangle((0, pitch - 0.5), 1, 1, facecolor="white", edgecolor="none"))
        if is_black:
            axes.add_patch(Rectangle((0, pitch - 0.5), 0.62, 1, facecolor=INK, zorder=2))
            axes.plot([0.62, 1], [pitch, pitch], color=GREY, linewidth=0.6)
        elif pitch % 12 in (0, 5):  # between B and C, and E and F, two white keys meet
            axes.plot([0, 1], [pitch - 0.5, pitch - 0.5], color=GREY, linewidth=0.6)
    octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    axes.set_yticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
    axes.tick_params(axis="y", length=0)
    axes.spines["right"].set(visible=True, color=GREY)
    axes.spines["left"].set(visible=True, color=PALE)
