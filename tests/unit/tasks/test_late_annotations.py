"""Annotations that go on behind the end of their audio: of another file, rounded, or of a cut fade."""

import re

import mido
import numpy as np
import pytest
from support.frame_tracks import silent_track
from support.messages import raises

from m2v_finetune.tasks import TASKS


def write_beats(path, times):
    path.write_text("".join(f"{time:.4f}\n" for time in times))


def write_chords(path, times):
    """Segments that end at these times."""
    starts = [0.0, *times[:-1]]
    lines = [f"{start:.4f}\t{end:.4f}\tA:min\n" for start, end in zip(starts, times, strict=True)]
    path.write_text("".join(lines))


def write_notes(path, times, *, length=0.01):
    """Notes that start at these times, a millisecond a tick."""
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=1_000_000)])
    now = 0
    for time in times:
        on, off = round(time * 1000), round((time + length) * 1000)
        track.append(mido.Message("note_on", note=60, velocity=64, time=on - now))
        track.append(mido.Message("note_off", note=60, velocity=64, time=off - on))
        now = off
    file = mido.MidiFile(ticks_per_beat=1000)
    file.tracks.append(track)
    file.save(path)


WRITERS = {"beats": write_beats, "chords": write_chords, "transcription": write_notes}
# Seconds of audio, last time of the annotation, and what is right.
CASES = [
    (3.0, 3.0, "silence"),
    (3.0, 3.09, "silence"),
    (3.0, 3.14, "warning"),
    (3.0, 3.2, "problem"),
    (3.0, 5.6, "problem"),
    (1.0, 1.09, "silence"),
    (1.0, 1.2, "problem"),
    (30.0, 31.4, "warning"),
    (30.0, 31.6, "problem"),
    (200.0, 204.9, "warning"),
    (200.0, 205.1, "problem"),
]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("seconds", "last", "outcome"), CASES)
def test_what_is_behind_the_end_is_named_by_the_length_of_the_track(
    tmp_path, name, seconds, last, outcome, caplog
):
    config = TASKS[name].settings_class()
    task = TASKS[name].from_settings(config)
    WRITERS[name](tmp_path / "song", np.linspace(last / 8, last, 8))
    track = silent_track(tmp_path, seconds, **{config.label_column: "song"}).track
    if outcome == "problem":
        num_behind = sum(time > seconds for time in np.linspace(last / 8, last, 8))
        with raises("labels-unusable", tmp_path / "song", f"ends at {seconds:.3f} s", num_behind):
            task.check_labels([track])
    else:
        task.check_labels([track])
    assert bool(caplog.records) == (outcome == "warning"), caplog.text
    if outcome == "warning":
        assert str(tmp_path / "song") in caplog.text
        assert re.search(r"\b1\b.*\b1\b", caplog.text)


def test_notes_may_ring_on_behind_the_end_but_not_for_long(tmp_path, caplog):
    task = TASKS["transcription"].from_settings(TASKS["transcription"].settings_class())
    track = silent_track(tmp_path, 3.0, notes="song").track
    write_notes(tmp_path / "song", [0.5, 2.9], length=2.0)
    task.check_labels([track])
    assert not caplog.records
    write_notes(tmp_path / "song.mid", [2.9], length=6.0)
    track = silent_track(tmp_path, 3.0, notes="song.mid").track
    with raises("labels-unusable", "ends at 8.900 s"):
        task.check_labels([track])
