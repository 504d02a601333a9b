"""`.beats` files."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import fails, raises

from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.labels.beats import COUNTED_FROM_0, format_beats, read_beats
from m2v_finetune.labels.problems import LabelError

quick = settings(deadline=None, max_examples=60)


@st.composite
def beat_lists(draw: st.DrawFn) -> tuple[list[float], list[int] | None]:
    """Times at least 10 microseconds apart, and positions or None."""
    gaps = draw(st.lists(st.floats(1e-5, 100), max_size=20))
    times = np.cumsum(gaps).tolist()
    positions = draw(st.lists(st.integers(1, 999), min_size=len(times), max_size=len(times)))
    if 1 not in positions:
        positions = positions[:-1] + [1][: len(positions)]  # there is a downbeat
    return times, positions if times and draw(st.booleans()) else None


@pytest.mark.parametrize(
    ("positions", "is_refused"),
    [
        ([2, 3, 4, 2, 3, 4], True),
        ([2, 2, 2], True),
        ([4, 3], True),
        ([5, 6, 7, 8], False),  # a part of a bar
        ([3], False),
        ([3, 4, 1, 2], False),
        ([1, 1, 1], False),
    ],
)
def test_bars_without_a_downbeat_are_refused(
    tmp_path: Path, positions: list[int], is_refused: bool
) -> None:
    path = tmp_path / "a.beats"
    path.write_text("# beats\n" + "".join(f"{n}.5\t{p}\n" for n, p in enumerate(positions)))
    if is_refused:
        with raises("beats-bad-lines", f"{path}:2: ", "(1):"):
            read_beats(path)
    else:
        beats = read_beats(path)
        assert beats.positions is not None
        assert beats.positions.tolist() == positions


@quick
@given(beat_lists())
def test_files_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, written: tuple[list[float], list[int] | None]
) -> None:
    times, positions = written
    path = tmp_path_factory.mktemp("beats") / "a.beats"
    path.write_text(format_beats(times, positions), encoding="utf-8")
    beats = read_beats(path)
    np.testing.assert_allclose(beats.times_seconds, times, rtol=0, atol=5.001e-7)
    assert beats.times_seconds.dtype == np.float64
    if positions is None:
        assert beats.positions is None
        assert beats.downbeats_seconds is None
    else:
        assert beats.positions is not None
        assert beats.positions.dtype == np.int64
        assert beats.positions.tolist() == positions
        assert beats.downbeats_seconds is not None
        ones = [time for time, position in zip(times, positions, strict=True) if position == 1]
        np.testing.assert_allclose(beats.downbeats_seconds, ones, rtol=0, atol=5.001e-7)


@pytest.mark.parametrize(
    ("text", "times", "positions"),
    [
        ("0.5\t1\n1.0\t2\n1.5\t1\n", [0.5, 1.0, 1.5], [1, 2, 1]),
        ("0.5 1\r\n1.0 2\r\n", [0.5, 1.0], [1, 2]),
        ("# time position\n\n0.5   4.0\n 1.0 1 ", [0.5, 1.0], [4, 1]),
        ("0.5\n1\n1.5e0\n", [0.5, 1.0, 1.5], None),
        ("", [], None),
    ],
)
def test_formats_of_the_field_are_read(
    tmp_path: Path, text: str, times: list[float], positions: list[int] | None
) -> None:
    path = tmp_path / "a.beats"
    path.write_bytes(text.encode())
    beats = read_beats(path)
    assert beats.times_seconds.tolist() == times
    assert (None if beats.positions is None else beats.positions.tolist()) == positions


BAD_LINES = [
    ("six\t1", ["'six'"]),
    ("nan\t1", ["nan"]),
    ("1_0\t1", ["1_0"]),
    ("inf\t1", ["inf"]),
    ("-6.0\t1", ["-6.0"]),
    ("5.0\t1", ["time 5.0", "5.0 of line 1"]),
    ("4.9\t1", ["time 4.9", "5.0 of line 1"]),
    ("6.0\t-1", ["position '-1'", "1 to 999"]),
    ("6.0\t1.5", ["position '1.5'", "1 to 999"]),
    ("6.0\tone", ["position 'one'", "1 to 999"]),
    ("6.0\t99999999999999999999", ["'99999999999999999999'", "1 to 999"]),
    ("6.0\t0", ["position '0'", "1 to 999", COUNTED_FROM_0]),
    ("6.0\t0.0", ["position '0.0'", "1 to 999", COUNTED_FROM_0]),
    ("6.0", ["1 cells", "line 1"]),
    ("6.0\t1\t1", ["3 cells", "line 1"]),
]


@pytest.mark.parametrize(("line", "values"), BAD_LINES)
def test_every_kind_of_bad_line_is_named_with_file_and_line(
    tmp_path: Path, line: str, values: list[str]
) -> None:
    path = tmp_path / "a.beats"
    path.write_text(f"5.0\t1\n\n{line}\n", encoding="utf-8")
    with raises("beats-bad-lines", "(1):", *values) as caught:
        read_beats(path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{path}:3: ")
    assert all(value in problem for value in values)
    assert problem in str(caught.value)


@quick
@given(st.lists(st.sampled_from([None, *BAD_LINES[:5], *BAD_LINES[7:]]), max_size=80))
def test_bad_lines_are_listed_and_good_ones_are_not(
    tmp_path_factory: pytest.TempPathFactory, choice: list[tuple[str, list[str]] | None]
) -> None:
    path = tmp_path_factory.mktemp("beats") / "a.beats"
    lines = ["1.0\t1"]
    for number, bad in enumerate(choice, start=10):
        lines.append(bad[0].replace("6.0", f"{number}.0", 1) if bad else f"{number}.0\t1")
    # "-6.0" loses its own digits above, and stays negative.
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        read_beats(path)
        problems: tuple[str, ...] = ()
    except LabelError as error:
        problems = error.problems
    found = [int(problem.split(":")[1]) for problem in problems]
    assert found == [line for line, bad in enumerate(choice, start=2) if bad]


def test_columns_that_come_and_go_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.beats"
    path.write_text("1.0\n2.0\t1\n3.0\n", encoding="utf-8")
    with raises("beats-bad-lines", f"{path}:2: 2 cells", "line 1") as caught:
        read_beats(path)
    assert len(caught.value.problems) == 1
    path.write_text("1.0\t1\textra\n", encoding="utf-8")
    with raises("beats-bad-lines", f"{path}:1: 3 cells") as caught:
        read_beats(path)
    assert "line 1" not in caught.value.problems[0]  # it is no model of itself


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with raises("labels-unreadable", tmp_path / "missing.beats", os.strerror(errno.ENOENT)):
        read_beats(tmp_path / "missing.beats")


@pytest.mark.parametrize(
    ("times", "positions", "named"),
    [
        ([1.0, 1.0], None, (2, "1.0")),
        ([1.0, 1.0 + 1e-8], None, (2, "1.0")),
        ([-1.0], [1], (1, "-1.000000")),
        ([float("nan")], [1], (1, "nan")),
        ([1.0], [-1], (1, "'-1'")),
        ([1.0, 2.0], [1], (2,)),
    ],
)
def test_what_could_not_be_read_is_not_formatted(
    times: list[float], positions: list[int] | None, named: tuple[object, ...]
) -> None:
    with fails(ValueError, *named):
        format_beats(times, positions)


def test_beats_of_the_quickstart_have_the_tempo_and_metre_that_the_manifest_states() -> None:
    lines = (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    paths = [QUICKSTART_DIR / row["beats"] for row in rows]
    assert len(paths) == 280
    for row, path in zip(rows, paths, strict=True):
        beats = read_beats(path)
        assert beats.positions is not None
        assert 60 / np.diff(beats.times_seconds).mean() == pytest.approx(row["tempo_bpm"], rel=1e-5)
        assert beats.positions.max() == {"3/4": 3, "4/4": 4, "6/8": 2}[row["metre"]]
        assert beats.downbeats_seconds is not None
        assert len(beats.downbeats_seconds) == (beats.positions == 1).sum() > 0
        written = format_beats(beats.times_seconds, beats.positions)
        assert written == path.read_text(encoding="utf-8")
