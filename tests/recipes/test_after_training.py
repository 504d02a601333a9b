"""Runs with calibration, novelty and averaged weights are equal where they have to be."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from support.messages import names, resumed_after
from support.processes import run_ranks, run_recipe
from support.runs import read_metrics

from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.model import TaskModel

SETTINGS = {
    "data.window_seconds": 1,
    "data.windows_per_track": 1,
    "data.num_workers": 0,
    "task.label_column": "style",
    "backbone.source": "random-small",
    "backbone.num_layers": 1,
    "head.kind": "linear",
    "head.dropout": 0,
    "training.epochs": 2,
    "training.per_device_batch_size": 14,
    "training.log_every_steps": 1,
    "training.ema_decay": 0.9,
    "cache.use": "off",
    "run.keep_checkpoints": 9,
}
FILES = ("metrics.jsonl", "predictions.csv", "test_tracks.jsonl", "model/model.safetensors")
NUM_TRACKS = {"train": 56, "validation": 20, "test": 4}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tracks of four styles; enough of validation for calibration and novelty."""
    left = dict(NUM_TRACKS)
    path = tmp_path_factory.mktemp("styles") / "manifest.jsonl"
    with path.open("w") as file:
        for line in (QUICKSTART_DIR / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            if left[row["split"]] > 0:
                left[row["split"]] -= 1
                audio = str(QUICKSTART_DIR / row["path"])
                row = {key: row[key] for key in ("id", "split", "style")} | {"path": audio}
                file.write(json.dumps(row) + "\n")
    return path


def options(manifest, folder, **changes):
    return SETTINGS | {"data.source": manifest, "run.output_dir": folder} | changes


@pytest.fixture(scope="module")
def straight(repository, manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    done = run_recipe([repository / "recipes" / "genre.py"], options(manifest, folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert names(done.stderr, "calibrated", 20)
    return folder


@pytest.mark.slow
def test_results_and_model_have_them(straight):
    results = json.loads((straight / "results.json").read_text())
    calibration = results["calibration"]
    assert calibration["method"] == "temperature"
    assert {"error_before", "error_after", "bins_before"} <= calibration.keys()
    for name in ("report.html", "model/README.md"):
        text = " ".join((straight / name).read_text().split())
        assert "expected calibration error" in text.lower()
        assert "above 1 are unlike the training tracks" in text
    assert (straight / "plots" / "reliability.png").is_file()
    config = json.loads((straight / "model" / "config.json").read_text())
    assert config["task"]["calibration"] == {"temperature": calibration["temperature"]}
    model = TaskModel.from_pretrained(straight / "model")
    prediction = model.predict(QUICKSTART_DIR / "audio" / "test-000.ogg")
    # What the model predicts is what the run wrote of the track.
    first = json.loads((straight / "test_tracks.jsonl").read_text().splitlines()[0])
    assert list(prediction.scores.values()) == pytest.approx(first["scores"], abs=1e-5)
    assert prediction.novelty is not None
    # The share of unknown test tracks is that of the saved model.
    tracks = [
        json.loads(line) for line in (straight / "test_tracks.jsonl").read_text().splitlines()
    ]
    unknown = [model.predict(track["path"]).is_unknown for track in tracks]
    assert results["novelty"]["test_share"] == sum(unknown) / len(tracks)


@pytest.mark.exhaustive
def test_resumed_equals_uninterrupted_to_the_bit(repository, manifest, straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert len(checkpoints) >= 2
    for path in checkpoints[1:]:
        shutil.rmtree(path)
    for name in ("predictions.csv", "test_tracks.jsonl", "results.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "model")
    settings = options(manifest, folder, **{"run.resume": "auto"})
    done = run_recipe([repository / "recipes" / "genre.py"], settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert resumed_after(done.stderr) == (4, 8)
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes(), name


@pytest.mark.exhaustive
def test_two_processes_equal_one(repository, manifest, straight, tmp_path):
    folder = tmp_path / "run"
    settings = options(manifest, folder, **{"training.per_device_batch_size": 7})
    done = run_ranks(2, [repository / "recipes" / "genre.py"], settings)
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(read_metrics(straight), read_metrics(folder), strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        else:
            assert one["validation"] == pytest.approx(two["validation"], abs=1e-4)
    models = [TaskModel.from_pretrained(path / "model") for path in (straight, folder)]
    first, second = (model.task.calibration.temperature for model in models)
    assert first == pytest.approx(second, rel=1e-3)
    song = QUICKSTART_DIR / "audio" / "test-000.ogg"
    ours, theirs = (model.predict(song) for model in models)
    assert ours.novelty == pytest.approx(theirs.novelty, rel=1e-3)
    assert list(ours.scores.values()) == pytest.approx(list(theirs.scores.values()), abs=1e-4)


def test_silence_is_unknown(straight, tmp_path):
    model = TaskModel.from_pretrained(straight / "model")
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(32000), 16000)
    prediction = model.predict(path)
    assert prediction.is_unknown
    assert prediction.decided == []
    options = {"path": path, "top": 3, "timeline": False, "is_first": True}
    assert "unknown: unlike the training tracks" in prediction.render("text", **options)
    assert json.loads(prediction.render("json", **options))["novelty"] == prediction.novelty
    header, row = prediction.render("csv", **options).splitlines()
    assert (
        dict(zip(header.split(","), row.split(","), strict=True))["novelty"]
        == f"{prediction.novelty:.7g}"
    )
    assert prediction.render_decided("text", path=path, is_first=True) == f"{path}: unknown\n"
    decided = json.loads(prediction.render_decided("json", path=path, is_first=True))
    assert decided == {"path": str(path), "labels": [], "is_unknown": True}
