"""Two processes on CPU that share the weights (FSDP2) against one: real processes, started by Accelerate."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.processes import run_python
from support.runs import read_metrics

from m2v_finetune.config import (
    BackboneConfig,
    DataConfig,
    MusicConfig,
    OptimizerConfig,
    PretrainingConfig,
    RecipeConfig,
    StartConfig,
    TrainingConfig,
)
from m2v_finetune.errors import UserError
from m2v_finetune.training.checkpoint import STATE_FILE, checkpoints_in
from m2v_finetune.training.sharding import check_sharding

CONFIG = RecipeConfig(data=DataConfig(source="songs.csv"))


@pytest.fixture(scope="module")
def run(repository, small_manifest, tmp_path_factory):
    """Start the recipe on one process, or on two that share the weights."""
    backbone = tmp_path_factory.mktemp("backbone") / "without-dropout"
    shutil.copytree(repository / "m2v_finetune" / "backbones" / "random_small", backbone)
    config = json.loads((backbone / "config.json").read_text())
    dropouts = {name: 0.0 for name in config if name.endswith("dropout")}
    (backbone / "config.json").write_text(json.dumps(config | dropouts))

    def start(folder, *, processes):
        launcher = ["-m", "accelerate.commands.launch", "--config_file"]
        launcher += [repository / "configs" / "accelerate" / "fsdp2.yaml"]
        settings = {
            "data.source": small_manifest,
            "data.window_seconds": 1,
            "data.num_workers": 0,
            "backbone.source": backbone,
            "tuning.method": "lora",
            "head.dropout": 0,
            "head.standardize": "true",
            "optimizer.learning_rate": 0.01,
            "training.epochs": 2,
            "data.windows_per_track": 1,
            "training.per_device_batch_size": 8 // processes,
            "training.log_every_steps": 1,
            "run.output_dir": folder,
            "run.resume": "auto",
        }
        recipe = repository / "recipes" / "tagging.py"
        done = run_python([*(launcher if processes == 2 else []), recipe], settings)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("sharded over the processes" in " ".join(done.stderr.split())) == (processes == 2)
        return folder

    return start


def resumes_from_the_first_epoch(folder, copy):
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("model", "plots", "*.csv"))
    _first, second = checkpoints_in(copy / "checkpoints")
    shutil.rmtree(second)
    return copy


def check_same(found, expected):
    lines = []
    for folder in (found, expected):
        lines.append(read_metrics(folder))
    assert len(lines[0]) == len(lines[1]) == 2 * 2 + 2
    for a, b in zip(*lines, strict=True):
        assert a["step"] == b["step"]
        if "loss" in b:
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
        else:
            assert a["validation"] == pytest.approx(b["validation"], abs=1e-4)
    scores = []
    for folder in (found, expected):
        with (folder / "predictions.csv").open() as file:
            scores.append(list(csv.reader(file))[1:])
    assert len(scores[0]) == 12
    for a, b in zip(*scores, strict=True):
        assert a[0] == b[0]
        assert list(map(float, a[1:])) == pytest.approx(list(map(float, b[1:])), abs=1e-4)
    states, models = [], []
    for folder in (found, expected):
        [*_, last] = checkpoints_in(folder / "checkpoints")
        states.append(torch.load(last / STATE_FILE, weights_only=True))
        models.append(load_file(folder / "model" / "model.safetensors"))
    # Whole tensors, the same whatever wrote them.
    torch.testing.assert_close(models[0], models[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(states[0]["trained"], states[1]["trained"], rtol=0, atol=1e-4)
    moments = [state["optimizer"]["state"] for state in states]
    torch.testing.assert_close(moments[0], moments[1], rtol=1e-3, atol=1e-5)


def test_two_processes_that_share_the_weights_give_what_one_gives(run, tmp_path):
    """And go on from its checkpoint, and it from theirs."""
    one = run(tmp_path / "one", processes=1)
    two = run(tmp_path / "two", processes=2)
    check_same(two, one)
    check_same(run(resumes_from_the_first_epoch(two, tmp_path / "to-one"), processes=1), one)
    check_same(run(resumes_from_the_first_epoch(one, tmp_path / "to-two"), processes=2), one)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            replace(CONFIG, optimizer=OptimizerConfig(name="adafactor")),
            "optimizer.name is adafactor",
        ),
        (replace(CONFIG, training=TrainingConfig(compile=True)), "training.compile is True"),
        (
            replace(CONFIG, training=TrainingConfig(mixed_precision="fp16")),
            "training.mixed_precision is fp16, which does not go with a sharded model",
        ),
        (
            replace(CONFIG, backbone=BackboneConfig(layer_weighting="conv1d")),
            "backbone.layer_weighting is conv1d",
        ),
        (
            PretrainingConfig(
                data=MusicConfig(source="music"), backbone=StartConfig(source="random-small")
            ),
            "which pre-training does not do",
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused(monkeypatch, config, expected):
    check_sharding(config)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_sharding(CONFIG)
    with pytest.raises(UserError, match=expected):
        check_sharding(config)


@pytest.mark.parametrize(
    ("name", "expected"), [("FSDP", "by version 1 of FSDP"), ("DEEPSPEED", "by DeepSpeed")]
)
def test_other_ways_of_sharding_are_refused(monkeypatch, name, expected):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match=f"told to shard the model {expected}"):
        check_sharding(CONFIG)
