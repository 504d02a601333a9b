"""Two processes on CPU against one: real processes; torchrun starts them in `test_processes_that_die`."""

import csv

import pytest
import torch
from support.messages import names
from support.processes import run_ranks
from support.runs import read_metrics


def launch(repository, folder, manifest, *, processes, batch, cpu="true"):
    settings = {
        "data.source": manifest,
        "data.window_seconds": 2,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "backbone.num_layers": 2,
        "head.dropout": 0,
        "head.standardize": "true",
        "training.epochs": 2,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": batch,
        "training.log_every_steps": 1,
        "run.output_dir": folder,
    }
    recipe = repository / "recipes" / "tagging.py"
    return run_ranks(processes, [recipe], settings, ACCELERATE_USE_CPU=cpu)


def run(*arguments, **options):
    done = launch(*arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_two_processes_give_the_losses_and_the_metrics_of_one(repository, small_manifest, tmp_path):
    one = run(repository, tmp_path / "one", small_manifest, processes=1, batch=8)
    two = run(repository, tmp_path / "two", small_manifest, processes=2, batch=4)
    assert "8 windows x 1 accumulated x 1 processes = 8" in " ".join(one.split())
    assert "4 windows x 1 accumulated x 2 processes = 8" in " ".join(two.split())

    steps = {}
    for name in ("one", "two"):
        steps[name] = read_metrics(tmp_path / name)
    assert len(steps["one"]) == len(steps["two"]) == 2 * 2 + 2
    for a, b in zip(steps["one"], steps["two"], strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
        else:
            assert a["validation"] == pytest.approx(b["validation"], abs=1e-4)

    predictions = {}
    for name in ("one", "two"):
        with (tmp_path / name / "predictions.csv").open() as file:
            predictions[name] = list(csv.reader(file))
    # Every test track once, in the same order, with the same scores.
    assert [row[0] for row in predictions["one"]] == [row[0] for row in predictions["two"]]
    assert len(predictions["one"]) == 1 + 12
    for a, b in zip(predictions["one"][1:], predictions["two"][1:], strict=True):
        assert list(map(float, a[1:])) == pytest.approx(list(map(float, b[1:])), abs=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a card the processes find each other")
def test_processes_that_would_train_apart_are_refused(repository, small_manifest, tmp_path):
    done = launch(repository, tmp_path / "run", small_manifest, processes=2, batch=4, cpu="false")
    assert done.returncode != 0
    assert names(done.stderr, 2, 1, "ACCELERATE_USE_CPU=true")
    assert not (tmp_path / "run").exists()
