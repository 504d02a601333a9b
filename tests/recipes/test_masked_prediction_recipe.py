"""The recipe of pre-training by masked prediction: labels, resuming, MERT's checkpoints, replay, averages."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
import yaml
from support.matrix import exhaustive
from support.messages import raises
from support.runs import read_metrics, reset_accelerate, signal_at_step

from m2v_finetune import pretraining_runs
from m2v_finetune.backbones import init_backbone, load_backbone
from m2v_finetune.backbones.averaging import average_backbones
from m2v_finetune.cli import build_parser
from m2v_finetune.errors import Stopped
from m2v_finetune.pretraining.masked_prediction import labels as labels_module
from m2v_finetune.settings import read_config
from m2v_finetune.training.checkpoint_files import STATE_FILE, checkpoints_in

ARCHITECTURE = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 12],
    "conv_kernel": [40, 16],
    "conv_stride": [20, 16],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.05,
}


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Ten tracks of tones in three albums, and four of general music."""
    folder = tmp_path_factory.mktemp("music")
    generator = np.random.default_rng(0)
    for number in range(14):
        album = f"own/album {number % 3}" if number < 10 else "general"
        path = folder / album / f"{number}.wav"
        path.parent.mkdir(exist_ok=True, parents=True)
        seconds = np.arange(3 * 16000) / 16000
        tone = 0.1 * np.sin(2 * np.pi * 110 * (number + 1) * seconds)
        soundfile.write(path, tone + 0.01 * generator.standard_normal(len(tone)), 16000)
    return folder


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("architecture")
    (folder / "config.json").write_text(json.dumps(ARCHITECTURE))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def words(music, tmp_path, cache, monkeypatch):
    """Returns the settings of a short run as words, with changes by name."""
    monkeypatch.setenv("M2V_CACHE", str(cache))

    def join(folder, **settings):
        given = {
            "objective": "masked_prediction",
            "data.source": music / "own",
            "data.validation_fraction": 0.2,
            "data.window_seconds": 1.0,
            "data.num_workers": 0,
            "masked_prediction.log_mel_clusters": 6,
            "masked_prediction.chroma_clusters": 4,
            "masked_prediction.fit_frames": 500,
            "training.epochs": 2,
            "training.per_device_batch_size": 2,
            "training.log_every_steps": 3,
            "run.output_dir": tmp_path / folder,
            **settings,
        }
        return [f"--{name}={value}" for name, value in given.items()]

    return join


@pytest.fixture
def pretrain(words, tmp_path):
    """Runs the recipe in this process, with settings by name."""

    def run(folder, **settings):
        reset_accelerate()
        config = read_config("pretrain", words(folder, **settings))
        return pretraining_runs.pretrain(config), tmp_path / folder

    return run


def load_trained(folder):
    [*_, last] = checkpoints_in(folder / "checkpoints")
    return torch.load(last / STATE_FILE, weights_only=True)["trained"]


@pytest.mark.slow
def test_tracks_without_codes_are_skipped_or_refused(pretrain, architecture, music, tmp_path):
    codes = tmp_path / "codes"
    for path in (music / "own").rglob("*.wav"):
        file = codes / f"{path.relative_to(music / 'own')}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.random.default_rng(0).integers(8, size=(1, 225)))
    (codes / "album 0" / "0.wav.npy").unlink()
    settings = {
        "backbone.architecture": architecture,
        "masked_prediction.log_mel_clusters": 0,
        "masked_prediction.chroma_clusters": 0,
        "masked_prediction.codes": codes,
        "masked_prediction.num_codebooks": 1,
        "masked_prediction.codebook_size": 8,
        "training.epochs": 1,
    }
    with raises("labels-missing", "0.wav.npy"):
        pretrain("stopped", **settings)
    results, _ = pretrain("skipped", **settings, **{"data.on_bad_track": "skip"})
    assert sum(results["num_tracks"].values()) == 9
    for path in codes.rglob("*.npy"):
        path.unlink()
    with raises("labels-missing", "train"):
        pretrain("none", **settings, **{"data.on_bad_track": "skip"})


@pytest.mark.slow
@pytest.mark.parametrize("change", ["other codes", "one is gone", "one more", "none"])
def test_a_resumed_run_keeps_its_codes(
    pretrain, architecture, music, tmp_path, monkeypatch, change
):
    codes = tmp_path / "codes"
    generator = np.random.default_rng(0)
    for path in (music / "own").rglob("*.wav"):
        file = codes / f"{path.relative_to(music / 'own')}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, generator.integers(8, size=(1, 225)))
    late = codes / "album 0" / "0.wav.npy"
    late.unlink()
    settings = {
        "backbone.architecture": architecture,
        "masked_prediction.log_mel_clusters": 3,
        "masked_prediction.chroma_clusters": 0,
        "masked_prediction.codes": codes,
        "masked_prediction.num_codebooks": 1,
        "masked_prediction.codebook_size": 8,
        "data.on_bad_track": "skip",
        "run.resume": "auto",
    }
    signal_at_step(monkeypatch, 2)
    with pytest.raises(Stopped):
        pretrain("run", **settings)
    monkeypatch.undo()
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "other-cache"))
    changed = codes / "album 1" / "1.wav.npy"
    if change == "other codes":
        np.save(changed, generator.integers(8, size=(1, 225)))
        with raises("run-labels-changed", "1.wav"):
            pretrain("run", **settings)
    elif change == "one is gone":
        changed.unlink()
        with raises("labels-missing", "1.wav.npy"):
            pretrain("run", **settings)
    else:
        if change == "one more":
            np.save(late, generator.integers(8, size=(1, 225)))
        results, _ = pretrain("run", **settings)
        assert sum(results["num_tracks"].values()) == 9


@pytest.mark.slow
@pytest.mark.parametrize("change", ["weights", "hidden_dropout"])
def test_a_resumed_run_needs_the_backbone_of_its_start(pretrain, tmp_path, monkeypatch, change):
    network = tmp_path / "network"
    backbone = load_backbone("random-small", spec_augment=True)
    backbone.save_pretrained(network)
    settings = {"backbone.source": network, "run.resume": "auto"}
    signal_at_step(monkeypatch, 2)
    with pytest.raises(Stopped):
        pretrain("run", **settings)
    monkeypatch.undo()
    if change == "weights":
        with torch.no_grad():
            backbone.layers[0].final_layer_norm.weight.mul_(1.5)
        backbone.save_pretrained(network)
    else:
        config = network / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {change: 0.25}))
    with raises("start-changed", network, change):
        pretrain("run", **settings)


@pytest.mark.slow
def test_from_an_architecture_to_a_backbone(pretrain, architecture, music):
    about = {"name": "general", "title": "Anybody's music", "licence": "CC-BY-SA-4.0"}
    (music / "general" / "dataset.json").write_text(json.dumps(about))
    results, folder = pretrain(
        "run",
        **{
            "backbone.architecture": architecture,
            "backbone.licence": "mit",
            "data.replay": music / "general",
            "data.replay_share": 0.2,
            "masked_prediction.mix_probability": 0.5,
            "run.memory": "1GB",
        },
    )
    assert results["num_tracks"] == {"train": 8, "validation": 2, "replay": 4}
    assert results["num_steps"] == 2 * 5  # 8 windows and 2 replayed ones
    assert results["objective"] == "masked_prediction"
    assert results["label_sets"] == {"log_mel": 6, "chroma": 4}
    assert all(entropy > 0.5 for entropy in results["label_entropies"].values())
    watched = {
        *("cross_entropy_log_mel", "accuracy_log_mel", "label_entropy_log_mel"),
        *("cross_entropy_chroma", "accuracy_chroma", "label_entropy_chroma"),
        *("feature_penalty", "cqt_error", "conv_rank", "conv_variance"),
    }
    assert results["validation"].keys() == {"loss", *watched}
    logged = [line for line in read_metrics(folder) if "loss" in line]
    assert all(watched <= line.keys() for line in logged)
    backbone = load_backbone(str(folder / "model"))
    assert (backbone.licence, backbone.network.config.model_type) == ("mit", "hubert")
    last = load_trained(folder)
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, last[f"backbone.network.{name}"]), name
    assert (folder / "clusters.safetensors").is_file()
    assert (folder / "model" / "plots" / "training.png").is_file()
    card = (folder / "model" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert "objective of MERT" in card
    assert results["replay_dataset"]["licence"] == "CC-BY-SA-4.0"
    assert "20% of the windows: Anybody's music, CC-BY-SA-4.0: 4 tracks, 0.00 h" in card
    assert "6 k-means clusters of log-mel spectra, 4 k-means clusters of chroma" in card


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, *exhaustive(4)])
def test_resumed_equals_uninterrupted_to_the_bit(pretrain, architecture, steps, monkeypatch):
    settings = {
        "backbone.architecture": architecture,
        "masked_prediction.freeze_backbone_steps": 3,
        "masked_prediction.mix_probability": 0.5,
    }
    _, straight = pretrain("straight", **settings)
    signal_at_step(monkeypatch, steps)
    with pytest.raises(Stopped):
        pretrain("stopped", **settings)
    monkeypatch.undo()
    # The labels are those of the run's own clusters, whatever is cached.
    monkeypatch.setenv("M2V_CACHE", str(straight / "other-cache"))
    monkeypatch.setattr(labels_module, "fit_clusters", None)
    reset_accelerate()
    config = yaml.safe_load((straight.parent / "stopped" / "config.yaml").read_text())
    assert config["objective"] == "masked_prediction"
    resumed = read_config(
        "pretrain", [f"--config={straight.parent / 'stopped' / 'config.yaml'}", "--run.resume=auto"]
    )
    pretraining_runs.pretrain(resumed)
    stopped = straight.parent / "stopped"
    assert (straight / "metrics.jsonl").read_text() == (stopped / "metrics.jsonl").read_text()
    ends = [load_trained(folder) for folder in (straight, stopped)]
    assert ends[0].keys() == ends[1].keys()
    assert any(name.startswith("heads.") for name in ends[0])
    assert not any("octave" in name for name in ends[0])
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MERT-v0", "MERT-v1-95M"])
def test_a_checkpoint_of_mert_starts_and_resumes(
    pretrain, shared_dir, name, monkeypatch, tmp_path, cache
):
    source = shared_dir / "golden" / "checkpoints" / name
    settings = {
        "backbone.source": source,
        "training.epochs": 1,
        "masked_prediction.freeze_backbone_steps": 2,
        "run.checkpoint_every_steps": 1,
    }
    signal_at_step(monkeypatch, 2)
    with pytest.raises(Stopped):
        pretrain("run", **settings)
    monkeypatch.undo()
    monkeypatch.setenv("M2V_CACHE", str(cache))
    initial = load_backbone(str(source), spec_augment=True).network.state_dict()
    trained = load_trained(tmp_path / "run")
    assert all(torch.equal(trained[f"backbone.network.{n}"], one) for n, one in initial.items())
    results, folder = pretrain("run", **settings, **{"run.resume": "auto"})
    assert results["num_steps"] == 4
    made = load_backbone(str(folder / "model"), spec_augment=True)
    assert made.sample_rate == (16_000 if name == "MERT-v0" else 24_000)
    moved = {n for n, one in made.network.state_dict().items() if not torch.equal(one, initial[n])}
    assert any("attention" in n for n in moved)


@pytest.mark.slow
def test_labels_before_a_run(words, architecture, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))
    settings = words("run", **{"backbone.architecture": architecture, "run.seed": 3})
    output = tmp_path / "clusters.safetensors"
    call(["pretrain-labels", "--output", str(output), *settings])
    assert re.search(r"\b10\b.*\b10\b", capsys.readouterr().out)
    assert output.is_file()
    with raises("clusters-file-exists", output):
        call(["pretrain-labels", "--output", str(output), *settings])
    with raises("clusters-not-writable", output):  # below a file
        call(["pretrain-labels", "--output", str(output / "c.safetensors"), *settings])
    of_codes = {"masked_prediction.codes": tmp_path, "backbone.architecture": architecture}
    of_codes |= {f"masked_prediction.{name}_clusters": 0 for name in ("log_mel", "chroma")}
    with raises("settings-conflict", "--output"):
        call(["pretrain-labels", "--output", str(tmp_path / "c"), *words("run", **of_codes)])
    # The run computes nothing.
    monkeypatch.setattr(labels_module, "fit_clusters", None)
    monkeypatch.setattr(labels_module, "labels_of", None)
    reset_accelerate()
    config = read_config("pretrain", [*settings, "--training.epochs=1"])
    assert pretraining_runs.pretrain(config)["num_steps"] == 4


def call(words):
    arguments, settings = build_parser().parse_known_args(words)
    arguments.settings = settings
    arguments.command(arguments)


def test_settings_of_the_other_objective_are_refused(pretrain, architecture, tmp_path):
    changed = {"backbone.architecture": architecture, "pretrain.num_target_layers": 2}
    with raises("settings-conflict", "pretrain.num_target_layers", "--objective data2vec"):
        pretrain("run", **changed)
    with raises("settings-conflict", "masked_prediction.fit_frames"):
        pretrain("run", **{"backbone.architecture": architecture, "objective": "data2vec"})
    without_value = tmp_path / "null.yaml"
    without_value.write_text("objective: null\ndata:\n  source: music\n")
    with raises("config-null-value", "objective"):
        read_config("pretrain", [f"--config={without_value}"])
    with raises("config-invalid", "objective"):
        pretrain("run", **{"backbone.architecture": architecture, "objective": "wav2vec"})
    assert not (tmp_path / "run").exists()


def test_the_average_of_backbones(tmp_path, capsys):
    backbones = [load_backbone("random-small", spec_augment=True) for _ in range(3)]
    for number, backbone in enumerate(backbones):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in backbone.network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        backbone.save_pretrained(tmp_path / str(number))
        (tmp_path / str(number) / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    folders = [str(tmp_path / str(number)) for number in range(3)]
    call(["merge", *folders, "--output", str(tmp_path / "average")])
    assert "cc-by-4.0" in capsys.readouterr().out
    made = load_backbone(str(tmp_path / "average"), spec_augment=True)
    assert made.licence == "cc-by-4.0"
    for name, tensor in made.network.state_dict().items():
        own = [one.network.state_dict()[name] for one in backbones]
        expected = sum(one.double() for one in own) / 3
        assert torch.equal(tensor, expected.to(tensor.dtype)), name
    (tmp_path / "1" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    call(["merge", *folders, "--output", str(tmp_path / "both")])
    both = "apache-2.0 AND cc-by-4.0"
    assert both in capsys.readouterr().out
    assert load_backbone(str(tmp_path / "both")).licence == both
    metadata = yaml.safe_load((tmp_path / "both" / "README.md").read_text().split("---")[1])
    assert (metadata["license"], metadata["license_name"]) == ("other", both)
    with raises("average-folder-not-empty", "average"):
        call(["merge", *folders, "--output", str(tmp_path / "average")])
    with raises("average-too-few"):
        call(["merge", folders[0], "--output", str(tmp_path / "one")])
    assert not (tmp_path / "one").exists()
    with raises("average-other-architecture", "model_type"):
        average_backbones([backbones[0], init_backbone("configs/pretrain/small", licence="")])
