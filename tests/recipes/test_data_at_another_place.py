"""Runs whose music was moved, whose names are strange, or whose annotations are bad in places."""

import json
import logging
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from support import messages
from support.matrix import exhaustive, slow

from m2v_finetune.backbones import load_backbone

SMALL = {
    "backbone.source": "random-small",
    "data.window_seconds": 0.5,
    "data.num_workers": 0,
    "training.per_device_batch_size": 2,
}


@pytest.fixture
def recipe(repository, monkeypatch, capsys, tmp_path) -> Iterator:
    """Runs a recipe in this process, as its command line; returns the exit code and what it said."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))

    def run(name: str, **settings: object) -> tuple[int, str]:
        path = str(repository / "recipes" / f"{name}.py")
        words = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
        options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [path, *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(path, run_name="__main__")
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return int(ended.value.code or 0), capsys.readouterr().err

    yield run
    root.handlers[:], root.level = before


def write_noise(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(number).uniform(-0.5, 0.5, 16_000 + number)
    soundfile.write(os.fsencode(path), samples, 16_000, format="WAV")


def make_music(folder: Path, *, labels=("jazz", "pop"), splits=True) -> Path:
    """Eight tracks, or twenty without splits."""
    names = [
        f"{split}/{label}/{n}.wav"
        for split, count in (("train", 2), ("validation", 1), ("test", 1))
        for label in labels
        for n in range(count)
    ]
    if not splits:
        names = [f"{label}/{n}.wav" for label in labels for n in range(10)]
    for number, name in enumerate(names):
        write_noise(folder / name, number)
    return folder


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("splits", "cache"), [(True, "auto"), *exhaustive((False, "off"))])
def test_a_run_resumes_with_music_that_was_renamed(recipe, tmp_path, splits, cache):
    music = make_music(tmp_path / "music", splits=splits)
    run = tmp_path / "run"
    initial = {"data__source": music, "run__output_dir": run, "cache__use": cache}
    code, message = recipe("genre", **initial, training__epochs=1)
    assert code == 0, message
    shutil.copytree(run, tmp_path / "there")
    code, message = recipe("genre", **initial, training__epochs=2, run__resume="auto")
    assert code == 0, message

    renamed = music.rename(tmp_path / "other name")
    moved = initial | {"data__source": renamed, "run__output_dir": tmp_path / "there"}
    code, message = recipe("genre", **moved, training__epochs=2, run__resume="auto")
    assert code == 0, message
    assert "data.source" in message
    for name in ("metrics.jsonl", "predictions.csv", "tracks.json"):
        assert (tmp_path / "there" / name).read_bytes() == (run / name).read_bytes(), name
    assert results_of(tmp_path / "there")["num_epochs"] == 2


@pytest.mark.slow
def test_a_run_does_not_resume_with_other_music(recipe, tmp_path):
    music = make_music(tmp_path / "music")
    initial = {"data__source": music, "run__output_dir": tmp_path / "run"}
    assert recipe("genre", **initial, training__epochs=1)[0] == 0

    def written() -> dict[Path, int]:
        files = (tmp_path / "run").rglob("*")
        return {path: path.stat().st_mtime_ns for path in files if path.name != ".lock"}

    before = written()
    other = make_music(tmp_path / "other")
    write_noise(other / "train" / "jazz" / "0.wav", 99)
    (other / "test" / "pop" / "0.wav").rename(other / "test" / "pop" / "new.wav")
    moved = initial | {"data__source": other}
    code, message = recipe("genre", **moved, training__epochs=2, run__resume="auto")
    assert code == 2
    assert messages.names(message, "train/jazz/0.wav", "test/pop/0.wav")
    assert written() == before


@pytest.mark.slow
def test_a_run_does_not_resume_with_another_file_of_the_same_name(recipe, tmp_path):
    music = make_music(tmp_path / "music")
    settings = {"data__source": music, "run__output_dir": tmp_path / "run"}
    assert recipe("genre", **settings, training__epochs=1)[0] == 0
    changed = music / "train" / "jazz" / "1.wav"
    before = changed.read_bytes()
    samples, rate = soundfile.read(changed)
    soundfile.write(changed, samples[::-1], rate, subtype="PCM_24")
    code, message = recipe("genre", **settings, training__epochs=2, run__resume="auto")
    assert code == 2
    assert messages.names(message, "train/jazz/1.wav")
    changed.write_bytes(before)
    code, message = recipe("genre", **settings, training__epochs=2, run__resume="auto")
    assert code == 0, message


@pytest.mark.slow
def test_a_run_does_not_resume_with_another_backbone(recipe, tmp_path):
    music = make_music(tmp_path / "music")
    network = tmp_path / "network"
    backbone = load_backbone("random-small")
    backbone.save_pretrained(network)
    settings = {
        "data__source": music,
        "run__output_dir": tmp_path / "run",
        "backbone__source": network,
    }
    code, message = recipe("genre", **settings, training__epochs=1)
    assert code == 0, message
    files = {path: path.read_bytes() for path in network.iterdir()}
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    backbone.save_pretrained(network)
    changes = {
        "weights": lambda: None,
        "layer_norm_eps": lambda: change(network / "config.json", layer_norm_eps=0.5),
        "do_normalize": lambda: change(network / "preprocessor_config.json", do_normalize=False),
    }
    for name, make in changes.items():
        make()
        code, message = recipe("genre", **settings, training__epochs=2, run__resume="auto")
        assert code == 2, name
        assert messages.names(message, str(network), name)
        for path, content in files.items():
            path.write_bytes(content)
    code, message = recipe("genre", **settings, training__epochs=2, run__resume="auto")
    assert code == 0, message


def change(path: Path, **settings: object) -> None:
    """Change settings of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["on", *exhaustive("off")])
def test_the_order_of_the_rows_does_not_change_a_resumed_run(recipe, tmp_path, cache):
    music = make_music(tmp_path / "music")
    rows = [
        {"id": str(n), "path": str(path), "split": path.parts[-3], "genre": path.parts[-2]}
        for n, path in enumerate(sorted(music.rglob("*.wav")))
    ]
    manifest = tmp_path / "songs.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data__source": manifest, "cache__use": cache}
    assert recipe("genre", **settings, run__output_dir=tmp_path / "a", training__epochs=1)[0] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    resumed = settings | {"training__epochs": 2, "run__resume": "auto"}
    assert recipe("genre", **resumed, run__output_dir=tmp_path / "a")[0] == 0
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    assert recipe("genre", **resumed, run__output_dir=tmp_path / "b")[0] == 0
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("task", [*exhaustive("genre"), *slow("beats")])
def test_a_run_does_not_resume_with_other_labels(recipe, tmp_path, task):
    """Neither in the same manifest nor in a moved one; the order of rows does not matter."""
    music = make_music(tmp_path / "music")
    for number, path in enumerate(sorted(music.rglob("*.wav"))):
        path.with_suffix(".beats").write_text(f"0.0{number + 1}\t1\n0.5\t2\n0.9\t3\n")
    rows = [
        {
            "id": str(number),
            "path": str(path),
            "split": path.parts[-3],
            "genre": path.parts[-2],
            "beats": str(path.with_suffix(".beats")),
        }
        for number, path in enumerate(sorted(music.rglob("*.wav")))
    ]

    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    settings = {"data__source": write("a.jsonl", rows), "run__output_dir": tmp_path / "run"}
    code, message = recipe(task, **settings, training__epochs=1)
    assert code == 0, message
    [changed] = [row for row in rows if row["path"].endswith("train/jazz/1.wav")]
    annotation = Path(changed["beats"])
    before = annotation.read_text()
    if task == "genre":
        changed["genre"] = "pop"
    else:
        annotation.write_text(before.replace("0.5", "0.6"))
    write("a.jsonl", rows)
    moved = write("b.jsonl", rows)
    for source in (settings["data__source"], moved):
        again = settings | {"data__source": source}
        code, message = recipe(task, **again, training__epochs=2, run__resume="auto")
        assert code == 2
        assert f"train: {changed['id']}" in message
    changed["genre"] = "jazz"
    annotation.write_text(before)
    write("b.jsonl", rows[::-1])
    code, message = recipe(
        task, **settings | {"data__source": moved}, training__epochs=2, run__resume="auto"
    )
    assert code == 0, message


@pytest.mark.exhaustive
def test_names_that_are_not_utf8_are_trained_on_and_written(recipe, tmp_path):
    """The folder, a label and a file; what is written is UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcsik"))
    make_music(folder, labels=("jazz", os.fsdecode(b"caf\xe9")))
    for split in ("train", "test"):
        write_noise(folder / split / "jazz" / os.fsdecode(b"\xff \xf0\x9f\x8e\xb5.wav"), 50)
    run = tmp_path / "run"
    initial = {"data__source": folder, "run__output_dir": run}
    code, message = recipe("genre", **initial, training__epochs=1)
    assert code == 0, message
    for path in run.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".csv", ".md", ".yaml"):
            path.read_text(encoding="utf-8")
    assert "caf\\udce9" in (run / "predictions.csv").read_text()
    assert results_of(run)["num_tracks"] == 3
    code, message = recipe("genre", **initial, training__epochs=2, run__resume="auto")
    assert code == 0, message


def write_midi(path: Path, *notes: tuple[int, int, int]) -> None:
    events = [
        (tick, kind, pitch)
        for start, end, pitch in notes
        for tick, kind in ((start, "on"), (end, "off"))
    ]
    track, now = mido.MidiTrack(), 0
    for tick, kind, pitch in sorted(events, key=lambda event: event[0]):
        track.append(mido.Message(f"note_{kind}", note=pitch, velocity=64, time=tick - now))
        now = tick
    mido.MidiFile(type=0, tracks=[track]).save(path)


@pytest.mark.slow
def test_bad_annotations_are_skipped_and_counted_like_bad_audio(recipe, tmp_path):
    rows = []
    for number, split in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"] * 3):
        write_noise(tmp_path / f"{number}.wav", number)
        write_midi(tmp_path / f"{number}.mid", (0, 200, 60 + number))
        rows.append({"path": f"{number}.wav", "notes": f"{number}.mid", "split": split})
    write_midi(tmp_path / "0.mid", (0, 200, 60), (100, 100, 64))  # one of no length: left out
    write_midi(tmp_path / "1.mid", (0, 200, 60), (0, 200, 60))  # and one doubled
    write_midi(tmp_path / "2.mid", (0, 200, 120))  # no pitch of a piano
    rows[4]["notes"] = None
    (tmp_path / "6.mid").write_text("no MIDI")
    (tmp_path / "7.wav").write_text("no audio")
    manifest = tmp_path / "songs.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    initial = {"data__source": manifest, "run__output_dir": tmp_path / "run"}

    code, message = recipe("transcription", **initial, training__epochs=1)
    assert code == 2
    assert "(3)" in message
    for part in ("2.mid: track 1", "songs.jsonl:5: no path", "6.mid: no standard MIDI file"):
        assert part in message
    assert "0.mid" not in message.split("error: ")[1]
    assert "--data.on_bad_track skip" in message
    assert not (tmp_path / "run").exists()

    skip = {**initial, "data__on_bad_track": "skip"}
    code, message = recipe("transcription", **skip, training__epochs=1)
    assert code == 0, message
    results = results_of(tmp_path / "run")
    assert results["num_skipped_tracks"] == {"train": 1, "validation": 1, "test": 2}
    assert results["num_tracks"] == 1

    # What was repaired meanwhile stays out; what broke meanwhile stops the run.
    write_midi(tmp_path / "2.mid", (0, 200, 60))
    code, message = recipe("transcription", **skip, training__epochs=2, run__resume="auto")
    assert code == 0, message
    assert results_of(tmp_path / "run")["num_skipped_tracks"]["train"] == 1
