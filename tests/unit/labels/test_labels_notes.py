"""MIDI files: times, pairing, the sustain pedal, writing, and what is refused."""

import importlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import fails, raises

from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.labels.notes import (
    PIANO_PITCHES,
    WRITTEN_TICKS_PER_SECOND,
    Notes,
    read_midi,
    write_midi,
)
from m2v_finetune.labels.problems import LabelError

quick = settings(deadline=None, max_examples=60)
# An event is (tick, name, ...): on and off with pitch, pedal with value, tempo with microseconds.
Event = tuple[int, str, int]


def save(
    path: Path,
    *tracks: Sequence[Event],
    channel: int = 0,
    ticks_per_beat: int = 500,
    midi_format: int = 1,
    silent_onsets: bool = False,
) -> Path:
    """Write events as they are; at the default tempo of 0.5 s and 500 ticks, a tick is 1 ms."""
    midi = mido.MidiFile(type=midi_format, ticks_per_beat=ticks_per_beat)
    for events in tracks:
        track = mido.MidiTrack()
        now = 0
        for tick, kind, value in events:
            time, now = tick - now, tick
            if kind == "tempo":
                message = mido.MetaMessage("set_tempo", tempo=value, time=time)
            elif kind == "end":
                message = mido.MetaMessage("end_of_track", time=time)
            elif kind == "pedal":
                message = mido.Message(
                    "control_change", channel=channel, control=64, value=value, time=time
                )
            elif kind == "off" and silent_onsets:
                message = mido.Message(
                    "note_on", channel=channel, note=value, velocity=0, time=time
                )
            else:
                message = mido.Message(
                    f"note_{kind}", channel=channel, note=value, velocity=80, time=time
                )
            track.append(message)
        midi.tracks.append(track)
    midi.save(path)
    return path


def where(problem: str) -> tuple[str, int]:
    """Return the location that a problem names, and the pitch of its note."""
    location, _, what = problem.partition(": the note of pitch ")
    return location, int(what.split()[0])


def rows(notes: Notes) -> list[tuple[float, float, int]]:
    return list(
        zip(
            notes.onsets_seconds.tolist(),
            notes.offsets_seconds.tolist(),
            notes.pitches.tolist(),
            strict=True,
        )
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.mid"


@pytest.mark.parametrize("silent_onsets", [False, True])
def test_a_release_ends_its_note_in_both_spellings(path: Path, silent_onsets: bool) -> None:
    events = [(100, "on", 60), (150, "on", 64), (300, "off", 60), (400, "off", 64)]
    notes = read_midi(save(path, events, silent_onsets=silent_onsets), sustain=False)
    assert rows(notes) == [(0.1, 0.3, 60), (0.15, 0.4, 64)]
    assert notes.velocities.tolist() == [80, 80]
    assert len(notes) == 2


def test_tempo_changes_of_any_track_move_the_notes_of_all(path: Path) -> None:
    save(
        path,
        [(1000, "tempo", 1_000_000), (3000, "tempo", 250_000)],
        [(500, "on", 60), (2000, "off", 60), (4000, "on", 61), (5000, "off", 61)],
        [(1000, "on", 62), (1000, "tempo", 250_000), (3000, "off", 62)],
    )
    # 1 ms a tick up to 1000; then 0.5 ms, as the later track says, up to 3000 and beyond.
    assert rows(read_midi(path, sustain=False)) == [(0.5, 1.5, 60), (1.0, 2.0, 62), (2.5, 3.0, 61)]


@quick
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 2**24 - 1)), max_size=6),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 500)), min_size=1, max_size=6),
    st.integers(1, 2**15 - 1),
)
def test_times_agree_with_midos_own_playback(
    tmp_path_factory: pytest.TempPathFactory,
    tempos: list[tuple[int, int]],
    strokes: list[tuple[int, int]],
    ticks_per_beat: int,
) -> None:
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    # Each stroke has a pitch of its own, so every message is one onset or one release.
    played = sorted(
        event
        for pitch, (tick, length) in enumerate(strokes)
        for event in ((tick, "on", pitch), (tick + length, "off", pitch))
    )
    tempo_events = sorted((tick, "tempo", tempo) for tick, tempo in tempos)
    save(path, tempo_events, played, ticks_per_beat=ticks_per_beat)
    onsets, offsets, now = {}, {}, 0.0
    for message in mido.MidiFile(path):
        now += message.time
        if message.type in ("note_on", "note_off"):
            (onsets if message.type == "note_on" else offsets)[message.note] = now
    notes = read_midi(path, sustain=False)
    assert sorted(notes.pitches.tolist()) == sorted(onsets)
    for onset, offset, pitch in rows(notes):
        assert onset == pytest.approx(onsets[pitch], rel=1e-9, abs=1e-12)
        assert offset == pytest.approx(offsets[pitch], rel=1e-9, abs=1e-12)


def test_times_do_not_drift_over_many_tempo_changes(path: Path) -> None:
    tempos = [(tick, "tempo", 300_001) for tick in range(0, 9_000, 3)]
    save(path, tempos, [(9_000, "on", 60), (9_007, "off", 60)], ticks_per_beat=7)
    assert rows(read_midi(path, sustain=False)) == [
        (9_000 * 300_001 / 7e6, 9_007 * 300_001 / 7e6, 60)
    ]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # Struck again before its release: the first ends there; the second release has no note.
        (
            [(0, "on", 60), (100, "on", 60), (200, "off", 60), (300, "off", 60)],
            [(0, 0.1), (0.1, 0.2)],
        ),
        # The release of the first is written after the second onset, at one tick.
        (
            [(0, "on", 60), (100, "on", 60), (100, "off", 60), (300, "off", 60)],
            [(0, 0.1), (0.1, 0.3)],
        ),
        (
            [(0, "on", 60), (100, "off", 60), (100, "on", 60), (300, "off", 60)],
            [(0, 0.1), (0.1, 0.3)],
        ),
        # Never ended: until the end of the file, whichever track lasts longest.
        ([(0, "on", 60), (500, "end", 0)], [(0, 0.7)]),
        # A release without a note.
        ([(0, "off", 60), (100, "on", 60), (200, "off", 60)], [(0.1, 0.2)]),
        ([], []),
    ],
)
def test_onsets_and_releases_are_paired(
    path: Path, events: list[Event], expected: list[tuple[float, float]]
) -> None:
    notes = read_midi(save(path, events, [(700, "end", 0)]), sustain=False)
    assert rows(notes) == [(*times, 60) for times in expected]


def test_the_same_pitch_of_two_tracks_is_two_notes(path: Path) -> None:
    save(path, [(0, "on", 60), (300, "off", 60)], [(100, "on", 60), (200, "off", 60)])
    assert rows(read_midi(path, sustain=False)) == [(0, 0.3, 60), (0.1, 0.2, 60)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        # Released under the pedal: until the pedal goes up.
        ([(50, "pedal", 127), (100, "off", 60), (400, "pedal", 0)], [(0, 0.4)]),
        # The pedal is down from 64.
        ([(50, "pedal", 64), (100, "off", 60), (400, "pedal", 63)], [(0, 0.4)]),
        ([(50, "pedal", 63), (100, "off", 60), (400, "pedal", 0)], [(0, 0.1)]),
        # Moving a pedal that is down keeps it down.
        ([(50, "pedal", 127), (100, "off", 60), (200, "pedal", 90), (400, "pedal", 0)], [(0, 0.4)]),
        # The pedal goes down only after the release, or up before it.
        ([(100, "off", 60), (150, "pedal", 127), (400, "pedal", 0)], [(0, 0.1)]),
        ([(50, "pedal", 127), (80, "pedal", 0), (100, "off", 60)], [(0, 0.1)]),
        # At one tick, the pedal moves first.
        ([(100, "off", 60), (100, "pedal", 127), (400, "pedal", 0)], [(0, 0.4)]),
        ([(50, "pedal", 127), (100, "off", 60), (100, "pedal", 0)], [(0, 0.1)]),
        # Struck again under the pedal: the first ends there.
        (
            [
                (50, "pedal", 127),
                (100, "off", 60),
                (200, "on", 60),
                (300, "off", 60),
                (400, "pedal", 0),
            ],
            [(0, 0.2), (0.2, 0.4)],
        ),
        # A key that is still pressed when the pedal goes up sounds on.
        ([(50, "pedal", 127), (400, "pedal", 0), (500, "off", 60)], [(0, 0.5)]),
        # A pedal that never goes up: until the end of the file.
        ([(50, "pedal", 127), (100, "off", 60), (900, "end", 0)], [(0, 0.9)]),
    ],
)
def test_the_pedal_sustains(
    path: Path, events: list[Event], expected: list[tuple[float, float]]
) -> None:
    save(path, [(0, "on", 60), *events])
    assert rows(read_midi(path, sustain=True)) == [(*times, 60) for times in expected]
    released = [tick / 1000 for tick, kind, _ in events if kind == "off"]
    assert read_midi(path, sustain=False).offsets_seconds.tolist() == released


def test_a_pedal_sustains_its_own_channel_in_every_track(path: Path) -> None:
    def pedal(channel: int, value: int, time: int) -> mido.Message:
        return mido.Message("control_change", channel=channel, control=64, value=value, time=time)

    # Channel 3: down 10, up 500. Channel 4: down 20, up 300. Channel 5 has no pedal.
    tracks = [[pedal(3, 127, 10), pedal(4, 127, 10), pedal(4, 0, 280), pedal(3, 0, 200)]]
    for channel in (3, 4, 5):
        onset = mido.Message("note_on", channel=channel, note=60 + channel, velocity=1)
        tracks.append(
            [onset, mido.Message("note_off", channel=channel, note=60 + channel, time=100)]
        )
    mido.MidiFile(ticks_per_beat=500, tracks=[mido.MidiTrack(track) for track in tracks]).save(path)
    assert rows(read_midi(path, sustain=True)) == [(0, 0.5, 63), (0, 0.3, 64), (0, 0.1, 65)]


def test_drums_are_read_only_if_requested(path: Path) -> None:
    save(path, [(0, "on", 36), (100, "off", 36)], channel=9)
    assert len(read_midi(path, sustain=False)) == 0
    assert rows(read_midi(path, sustain=False, drums=True)) == [(0, 0.1, 36)]


def test_all_notes_that_cannot_be_used_are_listed(path: Path) -> None:
    save(
        path,
        [(0, "tempo", 500_000)],
        [
            (0, "on", 20),
            (100, "on", 60),
            (100, "off", 60),
            (200, "off", 20),
            (1250, "on", 109),
            (1300, "off", 109),
            (1400, "on", 21),
            (1500, "off", 21),
            (1500, "on", 108),
            (1600, "off", 108),
            (1700, "on", 50),
        ],
    )
    with raises("notes-invalid", "(2):", "21 to 108") as caught:
        read_midi(path, sustain=False, pitch_range=PIANO_PITCHES)
    assert list(map(where, caught.value.problems)) == [
        (f"{path}: track 2, event 1 (0.000 s)", 20),
        (f"{path}: track 2, event 5 (1.250 s)", 109),
    ]
    notes = read_midi(path, sustain=False)
    assert notes.pitches.tolist() == [20, 109, 21, 108]
    assert list(map(where, notes.left_out)) == [
        (f"{path}: track 2, event 2 (0.100 s)", 60),
        (f"{path}: track 2, event 11 (1.700 s)", 50),
    ]


DOUBLED = {
    "both released": [(0, "on", 60), (0, "on", 60), (100, "off", 60), (100, "off", 60)],
    "released once": [(0, "on", 60), (0, "on", 60), (100, "off", 60)],
    "three times": [(0, "on", 60), (0, "on", 60), (0, "on", 60), (100, "off", 60)],
    "after a note that is still pressed": [
        (-50, "on", 60), (0, "on", 60), (0, "on", 60), (0, "off", 60), (100, "off", 60),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", DOUBLED)
def test_a_pitch_struck_twice_at_once_is_one_note(path: Path, case: str) -> None:
    events = [(tick + 50, *rest) for tick, *rest in DOUBLED[case]]
    notes = read_midi(save(path, events), sustain=True)
    assert (notes.onsets_seconds[-1], notes.offsets_seconds[-1]) == (0.05, pytest.approx(0.15))
    assert len(notes) == 1 + case.startswith("after")
    assert len(notes.left_out) == 1 + case.startswith("three")
    number = 2 + case.startswith("after")
    assert where(notes.left_out[0]) == (f"{path}: track 1, event {number} (0.050 s)", 60)


SILENT = {
    "released at once": [(10, "on", 62), (10, "off", 62)],
    "never released, at the end": [(100, "on", 62)],
    "cut off by the next at once, pressed again later": [
        (10, "on", 62), (10, "off", 62), (10, "on", 62), (20, "off", 62),
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", SILENT)
def test_a_note_of_no_length_is_left_out_and_named(path: Path, case: str) -> None:
    notes = read_midi(save(path, [(0, "on", 60), (100, "off", 60)], SILENT[case]), sustain=True)
    assert (notes.offsets_seconds > notes.onsets_seconds).all()
    assert len(notes) == 1 + ("again" in case)
    assert len(notes.left_out) == 1
    assert notes.left_out[0].startswith(f"{path}: track 2, event 1 ")


def test_a_file_in_which_no_note_lasts_is_refused(path: Path) -> None:
    save(path, [(0, "on", 60), (0, "off", 60), (5, "on", 61), (5, "off", 61)])
    with raises("notes-invalid", "(2):") as caught:
        read_midi(path, sustain=True)
    assert list(map(where, caught.value.problems)) == [
        (f"{path}: track 1, event 1 (0.000 s)", 60),
        (f"{path}: track 1, event 3 (0.005 s)", 61),
    ]


def test_a_tempo_of_zero_leaves_no_time(path: Path) -> None:
    save(path, [(0, "tempo", 0), (0, "on", 60), (100, "off", 60)])
    with raises("notes-invalid", "(1):", f"{path}: track 1, event 2 (0.000 s)"):
        read_midi(path, sustain=False)


END = b"\x00\xff\x2f\x00"


def midi_bytes(kind: int, num_tracks: int, *chunks: bytes) -> bytes:
    """A MIDI file with chunks of notes, (pitch, delta ticks), whatever its header counts."""
    return struct.pack(">4sIHHH", b"MThd", 6, kind, num_tracks, 96) + b"".join(chunks)


def track_of(*pitches: int, length: int | None = None) -> bytes:
    events = b"".join(bytes([0, 0x90, p, 64, 96, 0x80, p, 0]) for p in pitches) + END
    return b"MTrk" + struct.pack(">I", len(events) if length is None else length) + events


@pytest.mark.parametrize(
    "content",
    [
        midi_bytes(1, 1, track_of(60), track_of(64)),
        midi_bytes(0, 1, track_of(60), track_of(64)),
        midi_bytes(0, 1, track_of(60)) + midi_bytes(0, 1, track_of(64)),
        midi_bytes(0, 1, track_of(60, 64, length=8)),
        midi_bytes(1, 0, track_of(60)),
        midi_bytes(1, 0),
    ],
)
def test_a_header_that_counts_less_than_there_is_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with raises("labels-unreadable", path):
        read_midi(path, sustain=False)


def test_bytes_behind_the_tracks_are_no_music(path: Path) -> None:
    for behind in (b"\0" * 50, b"a text"):
        path.write_bytes(midi_bytes(1, 2, track_of(60), track_of(64)) + behind)
        assert sorted(read_midi(path, sustain=False).pitches) == [60, 64]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = save(tmp_path / "good.mid", [(0, "on", 60), (100, "off", 60)]).read_bytes()
    save(tmp_path / "format2.mid", [(0, "on", 60), (100, "off", 60)], midi_format=2)
    (tmp_path / "text.mid").write_text("0.5\t1\n1.0\t2\n", encoding="utf-8")
    (tmp_path / "empty.mid").write_bytes(b"")
    (tmp_path / "cut.mid").write_bytes(good[:-6])
    for name, meta in (("key.mid", b"\xff\x59\x02\x10\x00"), ("tempo.mid", b"\xff\x51\x00")):
        track = b"\x00" + meta + b"\x00\xff\x2f\x00"
        (tmp_path / name).write_bytes(good[:14] + b"MTrk" + len(track).to_bytes(4, "big") + track)
    (tmp_path / "smpte.mid").write_bytes(good[:12] + bytes([256 - 25, 40]) + good[14:])
    for name, values in {
        "missing.mid": [],
        "text.mid": ["MIDI"],
        "empty.mid": ["MIDI"],
        "cut.mid": ["MIDI"],
        "key.mid": ["MIDI", "Could not decode key"],  # what mido says
        "tempo.mid": ["MIDI", "out of range"],
        "format2.mid": ["format 2", "format 0 or 1"],
        "smpte.mid": ["SMPTE"],
    }.items():
        with raises("labels-unreadable", "(1):", *values) as caught:
            read_midi(tmp_path / name, sustain=False)
        [problem] = caught.value.problems
        assert problem.startswith(f"{tmp_path / name}: ")
        assert all(value in problem for value in values)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_files_are_read_or_refused_and_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    content = bytearray((QUICKSTART_DIR / "annotations" / "test-000.mid").read_bytes()[:400])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        notes = read_midi(path, sustain=True)
    except LabelError:
        return
    assert (notes.offsets_seconds > notes.onsets_seconds).all()


@st.composite
def note_lists(draw: st.DrawFn) -> Notes:
    """Notes of at least 1 ms that leave 1 ms between two of one pitch."""
    columns: list[tuple[float, float, int, int]] = []
    for pitch in draw(st.sets(st.integers(0, 127), max_size=4)):
        now = 0.0
        for _ in range(draw(st.integers(1, 4))):
            onset = now + draw(st.floats(0.001, 10))
            now = onset + draw(st.floats(0.001, 10))
            columns.append((onset, now, pitch, draw(st.integers(1, 127))))
    columns.sort()
    onsets, offsets, pitches, velocities = zip(*columns, strict=True) if columns else ((),) * 4
    return Notes(
        onsets_seconds=np.array(onsets, dtype=np.float64),
        offsets_seconds=np.array(offsets, dtype=np.float64),
        pitches=np.array(pitches, dtype=np.int64),
        velocities=np.array(velocities, dtype=np.int64),
    )


@quick
@given(note_lists(), st.booleans())
def test_files_read_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, notes: Notes, sustain: bool
) -> None:
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    write_midi(path, notes)
    back = read_midi(path, sustain=sustain)
    # Onsets within a tick of each other are sorted by pitch, so both are put in order of pitch.
    there, here = (np.lexsort((n.onsets_seconds, n.pitches)) for n in (notes, back))
    half_a_tick = 0.5001 / WRITTEN_TICKS_PER_SECOND
    assert half_a_tick < 0.27e-3
    for name in ("onsets_seconds", "offsets_seconds"):
        np.testing.assert_allclose(
            getattr(back, name)[here], getattr(notes, name)[there], rtol=0, atol=half_a_tick
        )
    for name in ("pitches", "velocities"):
        np.testing.assert_array_equal(getattr(back, name)[here], getattr(notes, name)[there])
    # What has been read once is on the grid of ticks: the second time, nothing changes.
    write_midi(path, back)
    assert rows(read_midi(path, sustain=sustain)) == rows(back)


def make_notes(*columns: tuple[float, float, int, int]) -> Notes:
    onsets, offsets, pitches, velocities = map(np.array, zip(*columns, strict=True))
    return Notes(
        onsets_seconds=onsets, offsets_seconds=offsets, pitches=pitches, velocities=velocities
    )


def test_notes_that_overlap_in_one_pitch_end_where_it_is_struck_again(path: Path) -> None:
    write_midi(
        path, make_notes((1.0, 2.0, 60, 5), (0.0, 1.5, 60, 9), (0.5, 1.5, 61, 7)), program=40
    )
    notes = read_midi(path, sustain=False)
    assert rows(notes) == [(0, 1.0, 60), (0.5, 1.5, 61), (1.0, 2.0, 60)]
    assert notes.velocities.tolist() == [9, 7, 5]
    programs = [m.program for m in mido.MidiFile(path).tracks[0] if m.type == "program_change"]
    assert programs == [40]


def test_a_note_too_short_for_a_tick_is_given_one(path: Path) -> None:
    write_midi(path, make_notes((1.0, 1.0 + 1e-6, 60, 5)))
    assert rows(read_midi(path, sustain=False)) == [(1.0, 1921 / 1920, 60)]


@pytest.mark.parametrize(
    ("note", "named"),
    [
        ((-0.1, 1.0, 60, 5), ("onsets", 0, "[1]")),
        ((float("nan"), 1.0, 60, 5), ("onsets", "[1]")),
        ((1.0, 1.0, 60, 5), ("offsets", "[1]")),
        ((1.0, float("inf"), 60, 5), ("offsets", "[1]")),
        ((0.0, 1.0, 128, 5), ("pitches", 0, 127, "[1]")),
        ((0.0, 1.0, 60, 0), ("velocities", 1, 127, "[1]")),
        ((0.5, 1.0, 60, 5), (60, "0.5000")),
    ],
)
def test_what_could_not_be_read_is_not_written(
    path: Path, note: tuple[float, float, int, int], named: tuple[object, ...]
) -> None:
    with fails(ValueError, *named):
        write_midi(path, make_notes((0.5, 1.0, 60, 5), note))
    assert not path.exists()


def test_notes_of_unequal_length_are_refused(path: Path) -> None:
    notes = Notes(
        onsets_seconds=np.zeros(2),
        offsets_seconds=np.ones(2),
        pitches=np.array([60]),
        velocities=np.array([60]),
    )
    with fails(ValueError, "(2,), (2,), (1,), (1,)"):
        write_midi(path, notes)


@pytest.mark.slow
def test_notes_of_the_quickstart_are_those_of_the_scripts_own_reader(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    composer = importlib.import_module("composer.midi")
    lines = (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    paths = [QUICKSTART_DIR / json.loads(line)["notes"] for line in lines]
    assert len(paths) == 280
    num_notes = 0
    for path in paths:
        notes = read_midi(path, sustain=True, drums=True)
        score = composer.decode_midi(path)
        expected = sorted(
            (
                composer.seconds_of(note.start, score.quarter_microseconds),
                note.pitch,
                composer.seconds_of(note.end, score.quarter_microseconds),
                note.velocity,
            )
            for track in score.tracks
            for note in track.notes
        )
        found = zip(
            notes.onsets_seconds.tolist(),
            notes.pitches.tolist(),
            notes.offsets_seconds.tolist(),
            notes.velocities.tolist(),
            strict=True,
        )
        assert sorted(found) == expected
        assert notes.offsets_seconds.max() <= 8
        num_notes += len(notes)
    assert num_notes > 30_000
