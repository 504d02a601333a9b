"""Chord labels and `.lab` files."""

import errno
import json
import os
from pathlib import Path

import mir_eval
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import fails, raises

from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.labels.chords import (
    CHORDS,
    Segment,
    format_lab,
    read_lab,
    to_majmin,
    transpose_chord,
    write_lab,
)
from m2v_finetune.labels.problems import LabelError

ROOTS = [letter + accidental for letter in "CDEFGAB" for accidental in ("", "#", "b", "##", "bb")]
QUALITIES = ["", *(f":{quality}" for quality in mir_eval.chord.QUALITIES if quality)]
EXTRAS = ["", "(9)", "(*3)", "(b3)", "(*5,6)", "(2,b7)", "(#11)", "(*b3,13)", "(b9,4)", "(#5)"]
BASSES = ["", "/3", "/b3", "/5", "/b7", "/2", "/#4", "/b9", "/13", "/6"]


def spell(root: str, quality: str, extra: str, bass: str) -> str:
    """A label; extra intervals without a quality follow a colon, and then leave nothing out."""
    if extra and not quality:
        extra = ":" + extra.replace("*", "")
    return root + quality + extra + bass


harte_labels = st.one_of(
    st.builds(spell, *map(st.sampled_from, (ROOTS, QUALITIES, EXTRAS, BASSES))),
    st.builds(spell, st.sampled_from(ROOTS), st.sampled_from(QUALITIES), st.just(""), st.just("")),
    st.sampled_from(["N", "X"]),
)
semitones = st.integers(-30, 30)
quick = settings(deadline=None, max_examples=60)


def test_classes_are_ordered_by_root_then_quality_and_end_with_none() -> None:
    assert len(set(CHORDS)) == 25
    assert (CHORDS[0], CHORDS[21], CHORDS[24]) == ("C:maj", "A:min", "N")
    for index, label in enumerate(CHORDS):
        root, _, _ = mir_eval.chord.encode(label)
        assert root == (index % 12 if label != "N" else -1)
        assert to_majmin(label) == label


@quick
@given(st.lists(harte_labels, min_size=5, max_size=5))
def test_majmin_agrees_with_mir_eval(labels: list[str]) -> None:
    """A label has a class where mir_eval scores it, and only that class is right for it."""
    for label in labels:
        scores = mir_eval.chord.majmin([label] * len(CHORDS), list(CHORDS))
        ours = to_majmin(label)
        if ours is None:
            np.testing.assert_array_equal(scores, -1)
        else:
            expected = np.zeros(len(CHORDS))
            expected[CHORDS.index(ours)] = 1
            np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize(
    ("label", "chord"),
    [
        ("C", "C:maj"),
        ("Db:7", "C#:maj"),
        ("Cb:maj", "B:maj"),
        ("A:min7/b7", "A:min"),
        ("G:maj(9)/3", "G:maj"),
        ("D:sus4", None),
        ("D:dim", None),
        ("D:aug", None),
        ("D:5", None),
        ("D:maj(*3)", None),
        ("X", None),
        ("N", "N"),
    ],
)
def test_majmin_of_known_labels(label: str, chord: str | None) -> None:
    assert to_majmin(label) == chord


@pytest.mark.parametrize("label", ["", "H:maj", "C:major", "c:maj", "C maj", "C:maj/", "C:aug7"])
def test_what_is_no_chord_is_refused(label: str) -> None:
    for use in (to_majmin, lambda text: transpose_chord(text, 1)):
        with fails(ValueError, f"'{label}'", "C:maj"):
            use(label)


@quick
@given(st.sampled_from(CHORDS), semitones, semitones)
def test_transposing_classes_is_additive_and_periodic(label: str, a: int, b: int) -> None:
    assert transpose_chord(transpose_chord(label, a), b) == transpose_chord(label, a + b)
    assert transpose_chord(label, 12) == transpose_chord(label, 0) == label
    index, moved = CHORDS.index(label), CHORDS.index(transpose_chord(label, a))
    if label == "N":
        assert moved == index
    else:
        assert (moved // 12, moved % 12) == (index // 12, (index + a) % 12)


@quick
@given(harte_labels, semitones)
def test_transposing_any_label_moves_its_root_alone(label: str, shift: int) -> None:
    root, intervals, bass = mir_eval.chord.encode(label)
    moved_root, moved_intervals, moved_bass = mir_eval.chord.encode(transpose_chord(label, shift))
    assert moved_root == (root if label in "NX" else (root + shift) % 12)
    np.testing.assert_array_equal(moved_intervals, intervals)
    assert moved_bass == bass


@st.composite
def segment_lists(draw: st.DrawFn) -> list[Segment]:
    """Segments in order, some with gaps between them, in whole multiples of 0.1 ms."""
    segments, now = [], 0.0
    for _ in range(draw(st.integers(1, 8))):
        start = now + draw(st.integers(0, 3)) / 10_000
        now = start + draw(st.integers(1, 10**6)) / 10_000
        segments.append(Segment(start_seconds=start, end_seconds=now, label=draw(harte_labels)))
    return segments


@quick
@given(segment_lists())
def test_files_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, segments: list[Segment]
) -> None:
    path = tmp_path_factory.mktemp("lab") / "a.lab"
    write_lab(path, segments)
    back = read_lab(path)
    assert [s.label for s in back] == [s.label for s in segments]
    for name in ("start_seconds", "end_seconds"):
        np.testing.assert_allclose(
            [getattr(s, name) for s in back],
            [getattr(s, name) for s in segments],
            rtol=0,
            atol=5.001e-7,
        )
    assert format_lab(back) == path.read_text(encoding="utf-8")


def test_formats_of_the_field_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.lab"
    path.write_bytes(
        b"\xef\xbb\xbf# Isophonics\r\n0.000000 2.612267 N\r\n\r\n 2.612267\t11.459070  E:maj/3 \r\n12 13\tX"
    )
    assert [(s.start_seconds, s.end_seconds, s.label) for s in read_lab(path)] == [
        (0, 2.612267, "N"),
        (2.612267, 11.45907, "E:maj/3"),
        (12, 13, "X"),
    ]


BAD_LINES = [
    ("1.0 2.0", ["'1.0 2.0'"]),
    ("1.0 2.0 C:maj oops", ["'1.0 2.0 C:maj oops'"]),
    ("1,0 2.0 C:maj", ["'1,0'"]),
    ("0,1,C", ["'0,1,C'"]),
    ("0.5;1.5;C:maj", ["'0.5;1.5;C:maj'"]),
    ("1.0 two C:maj", ["'two'"]),
    ("nan 2.0 C:maj", ["nan"]),
    ("1.0 inf C:maj", ["inf"]),
    ("-1.0 2.0 C:maj", ["-1.0"]),
    ("10.0 9.0 C:maj", ["end 9.0", "start 10.0"]),
    ("10.0 10.0 C:maj", ["end 10.0", "start 10.0"]),
    ("1.0 12.0 C:maj", ["start 1.0", "start 5.0 of line 1"]),
    ("9.5 12.0 C:maj", ["start 9.5", "end 10.0 of line 1"]),
    ("10.0 12.0 C:major", ["'C:major'", "C:maj, "]),
]


@pytest.mark.parametrize(("line", "values"), BAD_LINES)
def test_every_kind_of_bad_line_is_named_with_file_and_line(
    tmp_path: Path, line: str, values: list[str]
) -> None:
    path = tmp_path / "a.lab"
    path.write_text(f"5.0 10.0 C:maj\n\n{line}\n", encoding="utf-8")
    with raises("chords-bad-lines", "(1):") as caught:
        read_lab(path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{path}:3: ")
    assert all(value in problem for value in values)
    assert problem in str(caught.value)


@quick
@given(st.lists(st.sampled_from([None, *BAD_LINES[:9], BAD_LINES[-1]]), min_size=1, max_size=80))
def test_no_bad_line_is_dropped(
    tmp_path_factory: pytest.TempPathFactory, choice: list[tuple[str, list[str]] | None]
) -> None:
    path = tmp_path_factory.mktemp("lab") / "a.lab"
    path.write_text(
        "".join(f"{bad[0] if bad else '100.0 200.0 N'}\n" for bad in choice), encoding="utf-8"
    )
    expected = {line for line, bad in enumerate(choice, start=1) if bad}
    try:
        read_lab(path)
        problems: tuple[str, ...] = ()
    except LabelError as error:
        problems = error.problems
    found = {int(problem.split(":")[1]) for problem in problems}
    # A good line is named only for a bad neighbour: it may overlap what is above it.
    assert expected <= found


def test_all_problems_of_one_line_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.lab"
    path.write_text("x y H:maj\n", encoding="utf-8")
    with raises("chords-bad-lines", "(3):", "'x'", "'y'", "'H:maj'") as caught:
        read_lab(path)
    assert [problem.startswith(f"{path}:1: ") for problem in caught.value.problems] == [True] * 3


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.lab").write_text("\n# nothing\n", encoding="utf-8")
    (tmp_path / "latin.lab").write_bytes(b"0 1 C:maj # \xe9\n")
    (tmp_path / "folder.lab").mkdir()
    for name, code, value in (
        ("empty.lab", "chords-empty", "label N"),
        ("latin.lab", "labels-unreadable", "UTF-8"),
        ("folder.lab", "labels-unreadable", os.strerror(errno.EISDIR)),
        ("missing.lab", "labels-unreadable", os.strerror(errno.ENOENT)),
    ):
        with raises(code, f"{tmp_path / name}: ", value):
            read_lab(tmp_path / name)


@pytest.mark.parametrize(
    ("segment", "named"),
    [
        ((2.0, 1.0, "N"), ("1.0", "2.0")),
        ((0.0, 1e-8, "N"), ("0.0",)),
        ((0.0, float("nan"), "N"), ("nan",)),
        ((0.0, 1.0, "C major"), ("C major",)),
        ((0.0, 1.0, "H:maj"), ("'H:maj'",)),
    ],
)
def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, segment: tuple[float, float, str], named: tuple[str, ...]
) -> None:
    start, end, label = segment
    with fails(ValueError, 1, *named):
        write_lab(tmp_path / "a.lab", [Segment(start_seconds=start, end_seconds=end, label=label)])
    assert not (tmp_path / "a.lab").exists()


def test_chords_of_the_quickstart_agree_with_mir_eval_and_are_written_to_the_byte() -> None:
    lines = (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    paths = [QUICKSTART_DIR / json.loads(line)["chords"] for line in lines]
    assert len(paths) == 280
    for path in paths:
        segments = read_lab(path)
        intervals, labels = mir_eval.io.load_labeled_intervals(str(path), delimiter="\t")
        assert [[s.start_seconds, s.end_seconds] for s in segments] == intervals.tolist()
        assert [s.label for s in segments] == labels
        assert {to_majmin(label) for label in labels} <= set(CHORDS)
        assert format_lab(segments) == path.read_text(encoding="utf-8")
