"""`m2v_finetune.train`: the run of `m2v train`, from Python."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from support.forked import run_forked
from support.messages import raises

import m2v_finetune

SECTIONS = {
    "backbone": {"source": "random-small"},
    "tuning": {"method": "probe"},
    "training": {"epochs": 1},
    "augmentation": {"transforms": []},
}
DATA = {"windows_per_track": 1, "num_workers": 0, "window_seconds": 2.0}


@pytest.fixture(scope="module")
def run(small_manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("python") / "my run"
    data = {"source": small_manifest, **DATA}
    return m2v_finetune.train("tagging", data, run={"output_dir": folder}, **SECTIONS)


@pytest.mark.slow
def test_the_run_has_folder_results_and_model(run, small_manifest):
    assert run.results == json.loads((run.folder / "results.json").read_text())
    track = json.loads(small_manifest.read_text().splitlines()[0])
    labels = [label for label, _ in run.model.predict(track["path"]).top(2)]
    assert set(labels) <= set(run.model.id2label.values())


@pytest.mark.slow
def test_it_trains_as_the_command_does(run, small_manifest, tmp_path):
    words = [f"--data.source={small_manifest}", f"--run.output_dir={tmp_path / 'run'}"]
    for section, settings in {"data": DATA, **SECTIONS}.items():
        words += [f"--{section}.{key}={value}" for key, value in settings.items()]
    done = run_forked(["m2v", "train", "tagging", *words])
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(run.folder) == losses(tmp_path / "run")


@pytest.mark.slow
def test_runs_of_other_precisions_and_in_a_thread_follow_each_other(run, small_manifest, tmp_path):
    """As in a notebook, or a program with a window, and without a new process for each."""
    found = {}

    def train(name: str, precision: str) -> None:
        training = {"epochs": 1, "mixed_precision": precision}
        sections = {**SECTIONS, "training": training, "run": {"output_dir": tmp_path / name}}
        done = m2v_finetune.train("tagging", {"source": small_manifest, **DATA}, **sections)
        found[name] = losses(done.folder)

    train("bfloat16", "bf16")
    thread = threading.Thread(target=train, args=("thread", "no"))
    thread.start()
    thread.join()
    assert found["thread"] == losses(run.folder)
    assert found["bfloat16"] != found["thread"]
    assert found["bfloat16"] == pytest.approx(found["thread"], rel=0.05)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("task", "sections", "code", "value"),
    [
        ("no-task", {}, "task-unknown", "no-task"),
        ("tagging", {"epochs": 3}, "config-invalid", "epochs=3"),
        ("tagging", {"training": {"epoch": 3}}, "config-invalid", "epoch"),
        ("tagging", {"training": {"epochs": "three"}}, "config-invalid", "three"),
        ("tagging", {"trainig": {"epochs": 3}}, "config-invalid", "trainig"),
        ("tagging", {"task": {"pos_weight": -1.0}}, "settings-range", "task.pos_weight"),
        ("tagging", {"training": {"epochs": np.int64(-3)}}, "settings-range", "-3"),
        ("tagging", {"training": {"epochs": object()}}, "config-invalid", "training.epochs"),
        ("tagging", {"data": "missing.csv"}, "data-not-found", "missing.csv"),
        ("tagging", {"config": "missing.yaml"}, "config-not-found", "missing.yaml"),
    ],
)
def test_wrong_settings_are_messages(task, sections, code, value):
    with raises(code, value):
        m2v_finetune.train(task, **sections)
