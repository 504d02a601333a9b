"""Tracks whose labels cannot be used, of every task: listed, or left out and counted."""

import shutil
from dataclasses import replace
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from support.messages import logged, raises

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import Track
from m2v_finetune.errors import UserError
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.classification import Classification
from m2v_finetune.tasks.labelled import labelled_tracks

SECONDS = 2.0
SAMPLES = np.zeros((int(16_000 * SECONDS), 2))

# Good cells by column, then bad ones, each with a part of what is listed.
CELLS = {
    "tagging": ({"tags": ["a", "b"]}, {"tags": [({"a": 1}, "neither text"), ("c", "unknown")]}),
    "genre": ({"genre": 0}, {"genre": [(None, "one class"), ("0;1", "one class"), (9, "unknown")]}),
    "instrument": ({"instrument": "x"}, {"instrument": [(" ", "one class"), ([], "one class")]}),
    "singer": ({"singer": True}, {"singer": [("no", "unknown"), ([[1]], "one class")]}),
    "key": ({"key": "A minor"}, {"key": [("A", "no mode"), (0, "no key"), (None, "one key")]}),
    "pitch": ({"pitch": 60}, {"pitch": [(128, "MIDI"), ("A4", "MIDI"), (60.5, "MIDI")]}),
    "emotion": (
        {"arousal": 0, "valence": 0.0},
        {
            "arousal": [("calm", "not a finite"), (False, "not a finite"), ("1_0", "not a finite")],
            "valence": [(None, "not a finite")],
        },
    ),
    "beats": (
        {"beats": "good.beats"},
        {
            "beats": [
                ("zero.beats", "counted from 0"),
                ("twice.beats", "is not after"),
                ("long.beats", "ends at"),
                ("none.beats", "no file"),
                (0, "no path"),
                (" ", "no path"),
            ]
        },
    ),
    "chords": (
        {"chords": "good.lab"},
        {"chords": [("bad.lab", "is not a chord"), ("empty.lab", "no segment"), (None, "no path")]},
    ),
    "structure": (
        {"sections": "good.txt"},
        {"sections": [("bad.txt", "the last line"), ("none.txt", "no file"), (None, "no path")]},
    ),
    "melody": (
        {"melody": "good.csv"},
        {"melody": [("bad.csv", "is not a frequency"), ("empty.csv", "no line"), (0, "no path")]},
    ),
    "transcription": (
        {"notes": "good.mid"},
        {"notes": [("high.mid", "outside the range"), ("silent.mid", "lasts no time")]},
    ),
    "separation": (
        {"stems": "good"},
        {
            "stems": [
                ("short", "lasts"),
                ("less", "no stem"),
                ("none", "no folder"),
                (0, "no folder"),
            ]
        },
    ),
}


def midi(path: Path, *events: tuple[str, int, int]) -> None:
    track = mido.MidiTrack(
        mido.Message(f"note_{kind}", note=note, velocity=64, time=time)
        for kind, note, time in events
    )
    mido.MidiFile(type=0, tracks=[track]).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    soundfile.write(folder / "song.wav", SAMPLES, 16_000)
    texts = {
        "good.beats": "0.5\t1\n1.0\t2\n",
        "zero.beats": "0.5\t0\n1.0\t1\n",
        "twice.beats": "0.5\t1\n0.5\t2\n",
        "long.beats": "0.5\t1\n500\t2\n",
        "good.lab": "0 1 C:maj\n1 2 N\n",
        "bad.lab": "0 1 H:dur\n",
        "empty.lab": "",
        "good.txt": "0 verse\n1 chorus\n2 end\n",
        "bad.txt": "0 verse\n1 chorus\n",
        "good.csv": "0,220\n0.1,0\n",
        "bad.csv": "0,A3\n",
        "empty.csv": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    midi(folder / "good.mid", ("on", 60, 0), ("off", 60, 100))
    midi(folder / "high.mid", ("on", 120, 0), ("off", 120, 100))
    midi(folder / "silent.mid", ("on", 60, 0), ("off", 60, 0))
    for name in ("good", "short", "less"):
        (folder / name).mkdir()
        for stem in ("vocals", "drums", "bass", "other"):
            shutil.copy(folder / "song.wav", folder / name / f"{stem}.wav")
    (folder / "less" / "bass.wav").unlink()
    soundfile.write(folder / "short" / "bass.wav", SAMPLES[:-1000], 16_000)
    return folder


def make(folder: Path, cells: list[dict], *, split: str) -> list[CheckedTrack]:
    audio = inspect_audio(folder / "song.wav")
    return [
        CheckedTrack(
            track=Track(
                id=f"{split}-{number}",
                path=folder / "song.wav",
                split=split,
                columns=columns,
                origin=f"{split}.csv:{number}",
                folder=folder,
            ),
            audio=audio,
        )
        for number, columns in enumerate(cells)
    ]


def classification_cells(name: str):
    """Return cells of a task with one class for each track."""
    assert issubclass(TASKS[name], Classification), f"{name} needs a row in CELLS"
    column = TASKS[name].settings_class().label_column
    return {column: "x"}, {column: [("x;y", "one class"), ("X", "unknown")]}


def cases(name: str):
    good, bad = CELLS.get(name) or classification_cells(name)
    other = {
        "tagging": {"tags": ["b"]},
        "key": {"key": "C major"},
        "pitch": {"pitch": 62},
        "emotion": {"arousal": 1, "valence": 1.0},
    }
    second = other.get(name, good if name in FILES else {next(iter(good)): "second"})
    broken = [
        (good | {column: cell}, part) for column, cells in bad.items() for cell, part in cells
    ]
    return [good, second], broken


FILES = ("beats", "chords", "structure", "melody", "transcription", "separation")


@pytest.mark.parametrize("name", TASKS)
def test_bad_labels_are_listed_or_left_out(name, folder, caplog):
    good, broken = cases(name)
    columns = [columns for columns, _ in broken]
    # An unknown class in training is a class.
    trained = [c for c, part in broken if part != "unknown"]
    splits = {
        "train": make(folder, [*good, *trained], split="train"),
        "validation": make(folder, [*columns, *good], split="validation"),
        "test": make(folder, [good[0], *columns, good[1]], split="test"),
    }
    config = TASKS[name].settings_class()
    tracks = {split: [one.track for one in members] for split, members in splits.items()}
    task = TASKS[name].from_training(config, tracks["train"])
    with pytest.raises(UserError) as raised:
        labelled_tracks(task, splits, on_bad_track="stop")
    with pytest.raises(UserError) as strict:
        TASKS[name].from_tracks(config, tracks)
    for _, part in broken:
        assert part in str(raised.value)
        assert part in str(strict.value)
    assert "--data.on_bad_track skip" in str(strict.value)
    left = labelled_tracks(task, splits, on_bad_track="skip")
    assert [[one.track.id for one in members] for members in left.values()] == [
        ["train-0", "train-1"],
        [f"validation-{len(columns)}", f"validation-{len(columns) + 1}"],
        ["test-0", f"test-{len(columns) + 1}"],
    ]
    skipped = [line for line in caplog.messages if line.startswith("Skipped ")]
    assert all(any(part in line for line in skipped) for _, part in broken)
    # The task is that of the good tracks alone.
    clean = {split: [one.track for one in members] for split, members in left.items()}
    assert task == TASKS[name].from_tracks(config, clean)
    assert not any(task.label_problems(clean["test"]))


@pytest.mark.parametrize("name", TASKS)
def test_a_split_without_a_usable_label_is_refused(name, folder):
    good, broken = cases(name)
    splits = {
        "train": make(folder, good, split="train"),
        "test": make(folder, [broken[0][0]], split="test"),
    }
    trained = [one.track for one in splits["train"]]
    task = TASKS[name].from_training(TASKS[name].settings_class(), trained)
    with raises("data-no-usable-track", " 1 ", "'test'"):
        labelled_tracks(task, splits, on_bad_track="skip")


@pytest.mark.parametrize("name", TASKS)
def test_a_column_that_nobody_has_is_refused_under_skip_too(name, folder):
    tracks = [one.track for one in make(folder, [{"other": 1}] * 2, split="train")]
    code = "column-missing" if name == "emotion" else "manifest-no-label-column"
    with raises(code, ": other"):
        TASKS[name].from_training(TASKS[name].settings_class(), tracks)


def test_unknown_tags_are_passed_over_where_that_is_set(folder, caplog):
    splits = {
        "train": make(folder, [{"tags": "a"}, {"tags": "b"}], split="train"),
        "test": make(folder, [{"tags": "a;z"}, {"tags": {"a": 1}}], split="test"),
    }
    config = replace(TASKS["tagging"].settings_class(), ignore_unknown_labels=True)
    task = TASKS["tagging"].from_training(config, [one.track for one in splits["train"]])
    left = labelled_tracks(task, splits, on_bad_track="skip")
    assert [one.track.id for one in left["test"]] == ["test-0"]
    assert task.labels == ("a", "b")
    assert logged(caplog, 1, "'test'", "'b'") == 1


def test_left_out_notes_are_named_in_the_log(folder, caplog):
    midi(
        folder / "glitch.mid",
        ("on", 60, 0),
        ("on", 60, 0),
        ("off", 60, 50),
        ("on", 62, 0),
        ("off", 62, 0),
    )
    splits = {
        "train": make(folder, [{"notes": "glitch.mid"}, {"notes": "good.mid"}], split="train")
    }
    task = TASKS["transcription"].from_settings(TASKS["transcription"].settings_class())
    labelled_tracks(task, splits, on_bad_track="stop")
    assert logged(caplog, "track 1, event 2 (0.000 s)", "pitch 60", "pitch 62") == 1
    assert "good.mid" not in caplog.text
