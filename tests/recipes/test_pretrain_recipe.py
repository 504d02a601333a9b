"""The recipe of pre-training: from a folder of music to a backbone; resuming; collapse."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import yaml
from support.matrix import exhaustive
from support.messages import names, raises
from support.runs import read_metrics, reset_accelerate, signal_at_step

from m2v_finetune import pretraining_runs
from m2v_finetune.backbones import load_backbone
from m2v_finetune.errors import Stopped
from m2v_finetune.settings import read_config
from m2v_finetune.training.checkpoint_files import STATE_FILE, checkpoints_in
from m2v_finetune.training.objective import PretrainingObjective
from m2v_finetune.training.step_policy import StepPolicy

ARCHITECTURE = {
    "model_type": "data2vec-audio",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 12],
    "conv_kernel": [40, 16],
    "conv_stride": [20, 16],
    "num_conv_pos_embeddings": 2,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.05,
}


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """A folder of audio files at any depth, and nothing beside them."""
    folder = tmp_path_factory.mktemp("music")
    generator = np.random.default_rng(0)
    for number in range(10):
        path = folder / f"album {number % 3}" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        seconds = np.arange(3 * 16000) / 16000
        tone = 0.1 * np.sin(2 * np.pi * 110 * (number + 1) * seconds)
        soundfile.write(path, tone + 0.01 * generator.standard_normal(len(tone)), 16000)
    return folder


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architecture")
    (folder / "config.json").write_text(json.dumps(ARCHITECTURE))
    return folder


@pytest.fixture
def pretrain(repository, music, tmp_path):
    """Runs the recipe in this process, with settings by name."""

    def run(folder, **settings):
        reset_accelerate()
        given = {
            "data.source": music,
            "data.validation_fraction": 0.2,
            "data.window_seconds": 1.0,
            "data.num_workers": 0,
            "pretrain.num_target_layers": 2,
            "training.epochs": 2,
            "data.windows_per_track": 1,
            "training.per_device_batch_size": 2,
            "training.log_every_steps": 3,
            "run.output_dir": tmp_path / folder,
            **settings,
        }
        words = [f"--{name}={value}" for name, value in given.items()]
        config = read_config("pretrain", words)
        return pretraining_runs.pretrain(config), tmp_path / folder

    return run


@pytest.mark.slow
def test_from_an_architecture_to_a_backbone(pretrain, architecture, capfd):
    results, folder = pretrain(
        "run",
        **{
            "backbone.architecture": architecture,
            "backbone.licence": "mit",
            "training.per_device_batch_size": 1,
            "training.gradient_accumulation_steps": 2,
            "run.memory": "1GB",
        },
    )
    assert "planned (weights" in capfd.readouterr().err
    assert results["num_tracks"] == {"train": 8, "validation": 2}
    assert results["num_steps"] == 2 * 4
    assert results["backbone"]["is_new"]
    assert results["validation"].keys() == {
        "loss",
        "target_variance",
        "prediction_variance",
        "conv_rank",
        "conv_variance",
    }
    assert {path.name for path in (folder / "model").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "plots",
        "preprocessor_config.json",
    }
    backbone = load_backbone(str(folder / "model"))
    assert backbone.licence == "mit"
    assert backbone.num_layers == 2
    # The student of the last epoch.
    last = load_trained(folder)
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, last[f"backbone.network.{name}"]), name
    lines = read_metrics(folder)
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [3, 4, 6, 8]
    assert all(line["target_variance"] > 0.1 for line in logged)
    card = (folder / "model" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "mit"
    assert "base_model" not in metadata
    assert str(folder.parent) not in card


@pytest.mark.slow
def test_from_a_checkpoint_with_its_licence(pretrain):
    results, folder = pretrain(
        "run",
        **{
            "backbone.source": "random-small",
            "training.epochs": 1,
            "data.windows_per_track": 1,
            "pretrain.teacher_averages": "all",
        },
    )
    assert not results["backbone"]["is_new"]
    initial, made = load_backbone("random-small"), load_backbone(str(folder / "model"))
    assert made.licence == "apache-2.0" == initial.licence
    assert made.fingerprint() != initial.fingerprint()
    moved = (
        (
            made.network.encoder.layers[0].attention.q_proj.weight
            - initial.network.encoder.layers[0].attention.q_proj.weight
        )
        .abs()
        .max()
    )
    assert 0 < moved < 0.01
    card = (folder / "model" / "README.md").read_text()
    assert "from `random-small`, and has the same licence" in card


def load_trained(folder):
    [*_, last] = checkpoints_in(folder / "checkpoints")
    return torch.load(last / STATE_FILE, weights_only=True)["trained"]


@pytest.mark.parametrize("stop_after", [2, *exhaustive(4)])
def test_resumed_equals_uninterrupted_to_the_bit(pretrain, architecture, stop_after, monkeypatch):
    settings = {"backbone.architecture": architecture}
    _, straight = pretrain("straight", **settings)

    signal_at_step(monkeypatch, stop_after)
    with pytest.raises(Stopped):
        pretrain("stopped", **settings)
    monkeypatch.undo()
    _, stopped = pretrain("stopped", **settings, **{"run.resume": "auto"})

    assert (straight / "metrics.jsonl").read_text() == (stopped / "metrics.jsonl").read_text()
    ends = [load_trained(folder) for folder in (straight, stopped)]
    assert ends[0].keys() == ends[1].keys()
    assert any(name.startswith("teacher.") for name in ends[0])
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_collapse_stops_the_run(pretrain, architecture):
    with raises("pretraining-collapsed", "3 steps", "variance of targets"):
        pretrain(
            "run",
            **{
                "backbone.architecture": architecture,
                "pretrain.min_target_variance": 2.0,
                "pretrain.watch_after_steps": 0,
            },
        )


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({}, "settings-conflict", "backbone.architecture"),
        (
            {"backbone.source": "random-small", "backbone.licence": "mit"},
            "settings-conflict",
            "backbone.licence",
        ),
        (
            {"backbone.source": "random-small", "publish.weights": "trained"},
            "settings-conflict",
            "publish.weights",
        ),
        ({"backbone.source": "random-small", "pretrain.ema_end": 0.5}, "settings-range", "0.5"),
        (
            {"backbone.source": "random-small", "pretrain.num_target_layers": 9},
            "num-target-layers-out-of-range",
            "9",
        ),
    ],
)
def test_settings_that_make_no_run(pretrain, settings, code, named, tmp_path):
    with raises(code, named):
        pretrain("run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_too_short_to_be_stopped_states_what_it_ends_with(pretrain, architecture, capfd):
    """Watching begins later: what a run ends with is compared all the same."""
    settings = {
        "backbone.architecture": architecture,
        "training.epochs": 1,
        "data.windows_per_track": 1,
    }
    results, _ = pretrain("healthy", **settings, **{"pretrain.min_prediction_variance": 1e-12})
    assert "pretrain.watch_after_steps" not in capfd.readouterr().err
    found = results["validation"]["target_variance"]
    pretrain("below", **settings, **{"pretrain.min_target_variance": 2})
    log = " ".join(capfd.readouterr().err.split())
    assert names(log, f"{found:.3g}", 2, "pretrain.watch_after_steps", 1000, 4)


@pytest.mark.slow
def test_the_teacher_is_updated_by_steps_that_changed_the_student(
    pretrain, architecture, monkeypatch
):
    """Its decay is that of the number of changes; a step that is skipped moves nothing."""
    counted, teachers = [], []
    end_step, take_step = PretrainingObjective.end_step, StepPolicy.take

    def count(objective, num_updates):
        counted.append(num_updates)
        end_step(objective, num_updates)

    def skip_the_third(steps, batches, **others):
        if len(teachers) == 2:
            steps.model.backbone.network.masked_spec_embed.register_hook(
                lambda gradient: gradient * (math.nan if len(teachers) == 3 else 1)
            )
        teachers.append(copy_of(steps.model.teacher))
        return take_step(steps, batches, **others)

    monkeypatch.setattr(PretrainingObjective, "end_step", count)
    monkeypatch.setattr(StepPolicy, "take", skip_the_third)
    results, _ = pretrain(
        "run",
        **{
            "backbone.architecture": architecture,
            "training.on_nonfinite": "skip",
            "pretrain.ema_start": 0.5,
            "pretrain.ema_end": 0.9,
            "pretrain.ema_ramp_steps": 4,
        },
    )
    assert results["num_steps"] == 8
    assert counted == list(range(7))
    moved = [
        any(not torch.equal(before[name], after[name]) for name in before)
        for before, after in pairwise(teachers)
    ]
    assert moved == [True, True, False, True, True, True, True]


def copy_of(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_a_folder_without_audio_is_refused(pretrain, tmp_path, architecture):
    (tmp_path / "empty").mkdir()
    with raises("folder-no-audio", tmp_path / "empty"):
        pretrain(
            "run",
            **{"backbone.architecture": architecture, "data.source": tmp_path / "empty"},
        )
