"""The circle of fifths: where bubbles lie, how large they are, and the file that comes out."""

from pathlib import Path

import mir_eval
import numpy as np
import pytest
from drawn import assert_nothing_is_cut, texts
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, Wedge
from PIL import Image

from m2v_finetune.plotting.keys import (
    PITCH_CLASSES,
    RADIUS_OF_ALL,
    RELATIONS,
    key_errors_figure,
    plot_key_errors,
    relation,
    turn_to_top,
)

C_MAJOR, G_MAJOR, F_MAJOR, A_MAJOR = 0, 7, 5, 9
C_MINOR, A_MINOR, E_MINOR, D_MINOR = 12, 21, 16, 14


def bubbles(axes: Axes) -> list[tuple[float, float, float, str]]:
    """Return degrees clockwise from the top, distance from the middle, radius and colour."""
    found = []
    for patch in axes.patches:
        if isinstance(patch, Circle):
            x, y = patch.center
            degrees = round(np.degrees(np.arctan2(x, y))) % 360
            found.append((degrees, np.hypot(x, y), patch.radius, to_hex(patch.get_facecolor())))
    return found


@pytest.mark.parametrize("tonic", range(12))
def test_all_true_keys_are_turned_to_the_top(tonic: int) -> None:
    confusion = np.zeros((24, 24), dtype=int)
    confusion[tonic, (tonic + 7) % 12] = 3
    confusion[tonic, (tonic + 9) % 12 + 12] = 2
    confusion[tonic + 12, (tonic + 3) % 12] = 1
    major, minor = turn_to_top(confusion, is_minor=False), turn_to_top(confusion, is_minor=True)
    assert {key: major[key] for key in np.flatnonzero(major)} == {G_MAJOR: 3, A_MINOR: 2}
    assert {key: minor[key] for key in np.flatnonzero(minor)} == {C_MAJOR: 1}


def test_relations() -> None:
    major = {key: relation(key, is_minor=False) for key in range(24)}
    assert {key: kind for key, kind in major.items() if kind != "other"} == {
        C_MAJOR: "correct",
        G_MAJOR: "fifth",
        F_MAJOR: "fifth",
        A_MINOR: "relative",
        C_MINOR: "parallel",
    }
    minor = {key: relation(key, is_minor=True) for key in range(24)}
    assert {key: kind for key, kind in minor.items() if kind != "other"} == {
        A_MINOR: "correct",
        E_MINOR: "fifth",
        D_MINOR: "fifth",
        C_MAJOR: "relative",
        A_MAJOR: "parallel",
    }


@pytest.mark.parametrize("is_minor", [False, True])
def test_relations_are_those_that_mir_eval_scores(is_minor: bool) -> None:
    """mir_eval counts a fifth above the truth alone; the picture shows both, and says which is which."""
    scores = {"correct": 1.0, "fifth": 0.5, "relative": 0.3, "parallel": 0.2, "other": 0.0}
    reference, fifth_below = ("A minor", D_MINOR) if is_minor else ("C major", F_MAJOR)
    for key in range(24):
        name = f"{PITCH_CLASSES[key % 12]} {'minor' if key >= 12 else 'major'}"
        wanted = 0.0 if key == fifth_below else scores[relation(key, is_minor=is_minor)]
        assert mir_eval.key.weighted_score(reference, name) == wanted, name


def test_bubbles_lie_on_the_circle_of_fifths_with_areas_of_their_shares() -> None:
    confusion = np.zeros((24, 24), dtype=int)
    confusion[2, 2], confusion[4, 11], confusion[4, 9] = 64, 16, 4  # right, fifths above and below
    confusion[7, 16], confusion[7, 19] = 9, 7  # relative and parallel
    major = bubbles(key_errors_figure(confusion).axes[0])
    found = {(degrees, color): (distance, radius) for degrees, distance, radius, color in major}
    wanted = [
        (0, "correct", 0.64),
        (30, "fifth", 0.16),
        (330, "fifth", 0.04),
        (0, "relative", 0.09),
        (270, "parallel", 0.07),
    ]
    assert len(major) == len(wanted)
    for degrees, kind, share in wanted:
        distance, radius = found[degrees, RELATIONS[kind][0].lower()]
        assert radius == pytest.approx(RADIUS_OF_ALL * share**0.5)
        assert (distance < 0.6) == (kind in ("relative", "parallel"))  # minors are inside


def test_each_circle_has_24_fields_and_names() -> None:
    figure = key_errors_figure(np.eye(24, dtype=int))
    for axes in figure.axes[:2]:
        assert sum(isinstance(patch, Wedge) for patch in axes.patches) == 24
        names = [text.get_text() for text in axes.texts]
        for name in ("C", "F#", "Am", "D#m"):
            assert names.count(name) == 1
    assert "12 in minor, turned to A minor" in texts(figure)


def test_shares_of_all_tracks_are_written() -> None:
    confusion = np.zeros((24, 24), dtype=int)
    confusion[0, 0], confusion[0, 7], confusion[21, 14], confusion[3, 4] = 5, 2, 1, 2
    written = texts(key_errors_figure(confusion))
    for expected in ("correct 50.0%", "fifth 30.0%", "20.0% above,\n10.0% below", "other 20.0%"):
        assert expected in written
    assert "relative 0.0%" in written


@pytest.mark.parametrize("counts", [np.zeros((24, 24)), np.eye(24), np.ones((24, 24))])
def test_nothing_is_cut(counts: np.ndarray) -> None:
    assert_nothing_is_cut(key_errors_figure(counts.astype(int)))


def test_file(tmp_path: Path) -> None:
    plot_key_errors(np.eye(24, dtype=int), tmp_path / "new" / "keys.png")
    with Image.open(tmp_path / "new" / "keys.png") as image:
        assert (image.format, image.width) == ("PNG", 960)
