"""Models as networks of transformers: the same logits, where the package cannot be imported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import torch
from small_networks import CONFORMER, SMALL
from support.messages import raises
from support.models import PUBLISHED
from support.runs import reset_accelerate
from transformers import Data2VecAudioConfig, HubertConfig, Wav2Vec2ConformerConfig

from m2v_finetune.backbones import load_backbone
from m2v_finetune.backbones.checkpoint_files import write_checkpoint
from m2v_finetune.backbones.encoders import ENCODERS
from m2v_finetune.calibration import PlattScaling, TemperatureScaling
from m2v_finetune.cli import main as m2v
from m2v_finetune.config import (
    BackboneConfig,
    HeadConfig,
    PublishConfig,
    TuningConfig,
    TuningMethod,
)
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import main as train
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging

TAGGING = Tagging(labels=("drums", "flute", "minor"), label_column="tags")
PLATT = PlattScaling(slopes=(0.5, 2.0, 1.0), intercepts=(0.3, -1.0, 0.0))
CLIP_TASKS = [task for task in TASKS.values() if issubclass(task, ClipTask)]
METHODS = [method for method in get_args(TuningMethod) if method != "adapter"]
LINEAR = HeadConfig(kind="linear")
PRE_NORM = {"do_stable_layer_norm": True}
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "music2vec-v1": (Data2VecAudioConfig, {"num_conv_pos_embeddings": 3}, 16000),
    "MERT-v0": (HubertConfig, {}, 16000),
    "MERT-v0-public": (HubertConfig, {}, 16000),
    "MERT-v1-95M": (HubertConfig, {}, 24000),
    "MERT-v1-330M": (HubertConfig, PRE_NORM, 24000),
    "conformer": (Wav2Vec2ConformerConfig, CONFORMER, 16000),
}
"""The layouts of the published checkpoints and of a conformer, in small: configuration and sample rate."""
NUM_CARDS = 5
"""Models whose cards are run: with each function, and each calibration."""
SONG_SECONDS = (0.06, 0.25, 0.65)
"""Songs shorter than a window of the models here, as long as one, and of 2.6 windows."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints of `ARCHITECTURES`, with random weights."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    for name, (config_class, settings, rate) in ARCHITECTURES.items():
        config = config_class(**{**SMALL, **settings, "mask_time_prob": 0.05})
        config.apply_spec_augment = True
        network = ENCODERS[config.model_type].network_class(config)
        write_checkpoint(
            root / name,
            network,
            num_layers=config.num_hidden_layers,
            sample_rate=rate,
            normalize=True,
            licence="",
        )
    return root


def make_task(task_class: Any) -> Any:
    if task_class is Emotion:
        return Emotion(labels=("arousal", "valence"), means=(5.0, -2.0), stds=(0.5, 3.0))
    if task_class is Tagging:
        return TAGGING
    return task_class.from_settings(task_class.settings_class())


def build(
    source: Path, *, task: Any = TAGGING, method: Any = "probe", seed: int = 0, **backbone: Any
) -> TaskModel:
    """Return a model whose trainable weights and standardisation have changed, as by training."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"method": method}
    if method == "top_layers":
        settings["num_top_layers"] = 1
    if method == "full":
        settings["train_conv_encoder"] = True
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source=str(source), **backbone),
        head=LINEAR,
        tuning=TuningConfig(**settings),
        window_seconds=0.25,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        if model.layer_weighting.kind == "conv1d":
            model.layer_weighting.layer_weights.abs_()
        model.head.standardization.mean.normal_()
        model.head.standardization.std.uniform_(0.5, 2.0)
    return model.eval()


def check_in_pipeline(models: Sequence[TaskModel], root: Path) -> float:
    """Export models, and compare the pipeline of a process without the package; return the difference."""
    folders = [root / f"model-{number}" for number in range(len(models))]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder, native=True)
        waveform = 0.1 * torch.randn(model.window_samples) + 0.02
        np.save(folder / "input.npy", waveform.numpy())
    # Songs at the model's rate, which ffmpeg need not resample.
    rate = models[0].backbone.sample_rate
    for seconds in SONG_SECONDS:
        song = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate)) + 0.02
        for folder in folders[:NUM_CARDS]:
            soundfile.write(folder / f"{seconds}.mp3", song, rate, format="WAV", subtype="FLOAT")
    script = Path(__file__).with_name("pipeline_process.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, script, *folders],
        check=True,
        cwd=root,
        env=environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    for model, folder in zip(models[:NUM_CARDS], folders, strict=False):
        cards = json.loads((folder / "found.json").read_text())["card"]
        for seconds in SONG_SECONDS:
            expected = model.predict(folder / f"{seconds}.mp3").scores
            assert cards[f"{seconds}.mp3"] == pytest.approx(expected, abs=1e-5), seconds
    largest = 0.0
    for model, folder in zip(models, folders, strict=True):
        found = json.loads((folder / "found.json").read_text())
        waveform = torch.from_numpy(np.load(folder / "input.npy"))
        loaded = TaskModel.from_pretrained(folder)
        with torch.no_grad():
            logits = model(waveform[None])
            torch.testing.assert_close(loaded(waveform[None]), logits, atol=1e-6, rtol=1e-5)
        scores = model.task.activate(logits)[0]
        expected = scores if isinstance(model.task, Emotion) else logits[0]
        if calibration := model.task.calibration:
            scores = torch.from_numpy(calibration.apply(scores.numpy()))
            factors, summands = map(torch.from_numpy, calibration.scales(len(scores)))
            expected = (expected * factors + summands).float()
        for name, values in (("scores", scores), ("logits", expected)):
            own = [found[name][label] for label in model.id2label.values()]
            torch.testing.assert_close(torch.tensor(own), values, atol=1e-5, rtol=1e-5)
            largest = max(largest, float((torch.tensor(own) - values).abs().max()))
    return largest


def representative(checkpoints: Path) -> Iterator[TaskModel]:
    """Each checkpoint, task, tuning method, layer weighting and calibration at least once."""
    names = list(ARCHITECTURES)
    tags = replace(TAGGING, calibration=PLATT)
    classes = Genre(
        labels=("a", "b"), label_column="genre", calibration=TemperatureScaling(temperature=2.5)
    )
    plain = replace(classes, calibration=None)
    for task in (TAGGING, tags, classes, plain, make_task(Emotion)):
        yield build(checkpoints / "MERT-v0", task=task)
    for number, method in enumerate(METHODS):
        yield build(checkpoints / names[number % len(names)], method=method)
    for number, task in enumerate(CLIP_TASKS):
        yield build(checkpoints / names[number % 5], task=make_task(task), seed=number)
    for number, weighting in enumerate(("last", 1, 0, "conv1d")):
        for name in ("music2vec-v1", "MERT-v1-330M", "conformer"):
            yield build(checkpoints / name, layer_weighting=weighting, seed=number)
    yield build(checkpoints / "MERT-v1-330M", num_layers=2)
    yield build(checkpoints / "MERT-v0", num_layers=2, layer_weighting="last")


@pytest.mark.slow
def test_pipeline_equals_the_model(checkpoints: Path, tmp_path: Path, record_property: Any) -> None:
    largest = check_in_pipeline(list(representative(checkpoints)), tmp_path)
    record_property("largest difference of exported models in transformers' pipeline", largest)


@pytest.mark.exhaustive
def test_every_checkpoint_task_and_method(
    shared_dir: Path, tmp_path: Path, record_property: Any
) -> None:
    models = [
        build(shared_dir / "golden" / "checkpoints" / name, task=make_task(task), method=method)
        for name in PUBLISHED
        for task in CLIP_TASKS
        for method in METHODS
    ]
    assert len(models) == 5 * 8 * 9
    record_property("largest difference, full matrix", check_in_pipeline(models, tmp_path))


def test_export_command_writes_one_folder_for_both(checkpoints: Path, tmp_path: Path) -> None:
    model = build(checkpoints / "MERT-v0", method="lora")
    model.save_pretrained(tmp_path / "model", weights="all")
    for _ in range(2):  # the second finds the folder
        with pytest.raises(SystemExit) as ended:
            m2v(["export", "transformers", str(tmp_path / "model"), str(tmp_path / "native")])
        code = ended.value.code
    assert code == 2
    assert {path.name for path in (tmp_path / "native").iterdir()} == {
        "README.md",
        "config.json",
        "head.safetensors",
        "model.safetensors",
        "preprocessor_config.json",
    }
    loaded = TaskModel.from_pretrained(tmp_path / "native")
    waveforms = torch.randn(2, model.window_samples)
    with torch.no_grad():
        torch.testing.assert_close(loaded(waveforms), model(waveforms), atol=1e-5, rtol=1e-5)
    # Again, from the loaded model, and as a plain folder.
    loaded.save_pretrained(tmp_path / "again", native=True)
    for name in ("head.safetensors", "model.safetensors", "config.json"):
        first, again = ((tmp_path / folder / name).read_bytes() for folder in ("native", "again"))
        assert first == again, name
    # The fine-tuned network is a backbone, too.
    assert load_backbone(tmp_path / "native").num_layers == SMALL["num_hidden_layers"]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("export-head", {"head": replace(LINEAR, kind="mlp")}),
        ("export-pooling", {"head": replace(LINEAR, pooling="mean_std")}),
        ("export-pooling", {"head": replace(LINEAR, pooling="attention")}),
        ("export-adapter", {"tuning": TuningConfig(method="adapter")}),
        ("export-one-class", {"task": Genre(labels=("solo",), label_column="genre")}),
        ("export-task", {"task": BeatTracking.from_settings(BeatTracking.settings_class())}),
    ],
)
def test_refusals_name_the_setting(
    code: str, change: dict[str, Any], checkpoints: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "task": TAGGING,
        "head": LINEAR,
        "tuning": TuningConfig(method="probe"),
    }
    backbone = BackboneConfig(source=str(checkpoints / "MERT-v0"))
    model = TaskModel.build(backbone=backbone, window_seconds=0.25, **(settings | change))
    setting = {
        "export-task": "m2v export onnx",
        "export-adapter": "--tuning.method",
        "export-one-class": "two classes",
    }
    named = setting.get(code, f"--head.{'kind' if code == 'export-head' else 'pooling'}")
    with raises(code, named):
        model.save_pretrained(tmp_path / "native", native=True)
    assert not (tmp_path / "native").exists()


def test_weights_of_both_signs_are_refused(checkpoints: Path) -> None:
    model = build(checkpoints / "MERT-v0", layer_weighting="conv1d")
    with torch.no_grad():
        model.layer_weighting.layer_weights[1] = -0.5
    with raises("export-weighting", "--backbone.layer_weighting softmax"):
        model.to_transformers()
    with torch.no_grad():
        model.layer_weighting.layer_weights.zero_()
    with raises("export-weighting", "--backbone.layer_weighting softmax"):
        model.to_transformers()


def test_damaged_files_are_named(checkpoints: Path, tmp_path: Path) -> None:
    build(checkpoints / "MERT-v0").save_pretrained(tmp_path / "native", native=True)
    (tmp_path / "native" / "head.safetensors").write_bytes(b"no tensors")
    with raises("model-weights-damaged"):
        TaskModel.from_pretrained(tmp_path / "native")


def test_a_run_is_refused_before_it_trains(small_manifest: Path, tmp_path: Path) -> None:
    reset_accelerate()
    settings = {
        "data.source": small_manifest,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "head.kind": "mlp",
        "publish.native": "true",
        "run.output_dir": tmp_path / "run",
        "cache.use": "off",
    }
    with raises("export-head", "--head.kind linear"):
        train(["tagging", *(f"--{key}={value}" for key, value in settings.items())])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_settings_that_contradict_are_refused() -> None:
    with raises("settings-conflict", "publish.native"):
        PublishConfig(native=True, weights="trained")
