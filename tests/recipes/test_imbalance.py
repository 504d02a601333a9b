"""Runs with mixup, balanced sampling, class weights and label smoothing are equal where they have to be."""

import json
import shutil

import pytest
from support.messages import names, raises, resumed_after
from support.processes import run_ranks, run_recipe
from support.runs import read_metrics

from m2v_finetune.config import AugmentationConfig
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.runs import read_config, train_task
from m2v_finetune.tasks import find_task

SETTINGS = {
    "data.window_seconds": 1,
    "data.windows_per_track": 1,
    "data.num_workers": 0,
    "data.sampling": "balanced",
    "augmentation.mixup_alpha": 0.3,
    "task.label_column": "style",
    "task.class_weight": "balanced",
    "task.label_smoothing": 0.1,
    "backbone.source": "random-small",
    "backbone.num_layers": 1,
    "head.dropout": 0,
    "training.epochs": 2,
    "training.per_device_batch_size": 8,
    "training.log_every_steps": 1,
    "run.keep_checkpoints": 9,
}
FILES = ("metrics.jsonl", "predictions.csv", "test_tracks.jsonl")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Sixteen training tracks of three styles, one of them rare."""
    left = {"train": {"rock": 9, "waltz": 5, "ballad": 2}}
    left |= {split: dict.fromkeys(left["train"], 2) for split in ("validation", "test")}
    path = tmp_path_factory.mktemp("styles") / "manifest.jsonl"
    with path.open("w") as file:
        for line in (QUICKSTART_DIR / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            if left[row["split"]].get(row["style"], 0) > 0:
                left[row["split"]][row["style"]] -= 1
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
    assert names(done.stderr, "augmentation.mixup_alpha")  # no cache
    return folder


@pytest.mark.exhaustive
def test_workers_change_nothing(repository, manifest, straight, tmp_path):
    folder = tmp_path / "run"
    settings = options(manifest, folder, **{"data.num_workers": 2})
    done = run_recipe([repository / "recipes" / "genre.py"], settings)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.slow
def test_resumed_equals_uninterrupted_to_the_bit(repository, manifest, straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert len(checkpoints) >= 2
    for path in checkpoints[1:]:
        shutil.rmtree(path)
    for name in FILES[1:]:
        (folder / name).unlink()
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "model")
    settings = options(manifest, folder, **{"run.resume": "auto"})
    done = run_recipe([repository / "recipes" / "genre.py"], settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert resumed_after(done.stderr) == (2, 4)
    for name in FILES:
        assert (folder / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.exhaustive
def test_two_processes_equal_one(repository, manifest, straight, tmp_path):
    folder = tmp_path / "run"
    settings = options(manifest, folder, **{"training.per_device_batch_size": 4})
    done = run_ranks(2, [repository / "recipes" / "genre.py"], settings)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = read_metrics(straight), read_metrics(folder)
    assert len(ours) == len(theirs) == 2 * 2 + 2
    for one, two in zip(ours, theirs, strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        else:
            assert one["validation"] == pytest.approx(two["validation"], abs=1e-4)


@pytest.mark.parametrize(
    ("task", "setting", "code"),
    [
        ("beats", "augmentation.mixup_alpha=0.3", "mixup-unsupported"),
        ("tagging", "data.sampling=balanced", "sampling-unsupported"),
        ("genre", "cache.use=on", "cache-impossible"),
    ],
)
def test_settings_that_a_task_cannot_use_are_refused(task, setting, code, tmp_path):
    words = [
        f"--{setting}",
        "--backbone.source=random-small",
        f"--run.output_dir={tmp_path / 'run'}",
    ]
    if task == "genre":
        words.append("--augmentation.mixup_alpha=0.3")
    with raises(code):
        train_task(read_config(task, words), find_task(task))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_share_below_zero_is_refused():
    with raises("settings-range", "augmentation.mixup_alpha"):
        AugmentationConfig(mixup_alpha=-0.1)
