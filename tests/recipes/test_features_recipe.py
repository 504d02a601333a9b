"""A run on vectors that were computed elsewhere: the same probe as on audio, saved, loaded, explained."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from sklearn.preprocessing import StandardScaler
from support import runs
from support.messages import names, raises

from m2v_finetune import parsing
from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.cli import main
from m2v_finetune.config import (
    AugmentationConfig,
    BackboneConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    PublishConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
)
from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.features import read_vector_splits, vector_example
from m2v_finetune.data.manifest import read_manifest
from m2v_finetune.data.quickstart import QUICKSTARTS
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import train_task
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.instrument import Instrument, InstrumentConfig
from m2v_finetune.training.checkpoint_files import STATE_FILE, checkpoints_in
from m2v_finetune.training.evaluation import evaluate_tracks
from m2v_finetune.training.progress import progress_bar

NUM_TRACKS = {"train": 32, "validation": 12, "test": 12}
SETTINGS = InstrumentConfig()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Notes of one second: each is one window, so that audio and vectors see the same."""
    source = QUICKSTARTS["quickstart-notes"]
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    chosen = []
    for split, count in NUM_TRACKS.items():
        of_split = [row for row in rows if row["split"] == split]
        # A step that shares no factor with the number of instruments meets all of them.
        chosen += [of_split[(5 * index) % len(of_split)] for index in range(count)]
    known = {row["instrument"] for row in chosen if row["split"] == "train"}
    chosen = [row for row in chosen if row["instrument"] in known]
    path = tmp_path_factory.mktemp("notes") / "manifest.jsonl"
    lines = [{**row, "path": str(source.parent / row["path"])} for row in chosen]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def split(manifest):
    tracks = read_manifest(manifest)
    return {name: [track for track in tracks if track.split == name] for name in NUM_TRACKS}


@pytest.fixture(scope="module")
def task(split):
    return Instrument.from_tracks(SETTINGS, split)


@pytest.fixture(scope="module")
def on_audio(task):
    set_seed(0)
    return TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small", layer_weighting="last"),
        head=HeadConfig(standardize=True),
        tuning=TuningConfig(method="probe"),
        window_seconds=1.0,
    ).eval()


@pytest.fixture(scope="module")
def features(on_audio, split, tmp_path_factory):
    """The mean over time of the frozen backbone's last hidden state, in the layout of jukemir."""
    folder = tmp_path_factory.mktemp("representations") / "notes" / "pooled"
    folder.mkdir(parents=True)
    checked, _ = check_splits(split, on_bad_track="stop", show_progress=False)
    everything = [one for members in checked.values() for one in members]
    windows = on_audio.track_windows(everything)
    assert len(windows) == len(everything)
    backbone = on_audio.backbone
    with torch.inference_mode():
        for index in range(len(windows)):
            number, (waveform,) = windows[index]
            state = backbone(backbone.prepare(waveform[None]))[-1].mean(dim=1)[0]
            np.save(folder / f"{everything[number].track.id}.npy", state.numpy())
    return folder


def build_trainer(model, tracks, example, folder):
    runs.reset_accelerate()
    set_seed(0)
    return runs.build_trainer(
        model,
        tracks,
        folder,
        example=example,
        training=TrainingConfig(epochs=2, per_device_batch_size=8, log_every_steps=1),
        optimization=OptimizerConfig(learning_rate=1e-2),
    )


@pytest.mark.slow
def test_pooled_states_as_vectors_train_as_the_audio_does(
    on_audio, task, split, features, tmp_path
):
    """Both start from the same head, and standardise what it reads."""
    read, _ = read_vector_splits(split, features, on_bad_track="stop")
    vectors = PrecomputedBackbone(on_audio.backbone.hidden_size, source="vectors in pooled")
    on_vectors = TaskModel.on_vectors(task=task, vectors=vectors, head=HeadConfig())
    on_vectors.head.load_state_dict(on_audio.head.state_dict())
    checked, _ = check_splits(split, on_bad_track="stop", show_progress=False)

    evaluated = {}
    for name, model, tracks, example in (
        ("vectors", on_vectors, read, partial(vector_example, targets=task.targets)),
        ("audio", on_audio, checked, task.example),
    ):
        loop = build_trainer(model, tracks, example, tmp_path / name)
        loop.fit()
        with progress_bar(loop.accelerator) as bar:
            evaluated[name] = evaluate_tracks(
                model,
                tracks["test"],
                accelerator=loop.accelerator,
                batch_size=8,
                num_workers=0,
                bar=bar,
            ).own
    of_vectors, of_audio = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("vectors", "audio")
    )
    assert len(of_vectors) == len(of_audio) == 2 * 4 + 2
    for a, b in zip(of_vectors, of_audio, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
        else:
            assert a["validation"] == pytest.approx(b["validation"], abs=1e-6)
    for a, b in zip(evaluated["vectors"], evaluated["audio"], strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        np.testing.assert_array_equal(a.target, b.target)


def recipe_config(manifest, features, output, **changes):
    return parsing.recipe_config(Instrument)(
        task=SETTINGS,
        data=DataConfig(
            source=str(manifest), features=str(features), windows_per_track=1, num_workers=0
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        training=TrainingConfig(epochs=2, per_device_batch_size=8),
        run=RunConfig(output_dir=str(output)),
        **changes,
    )


@pytest.fixture(scope="module")
def run(manifest, features, tmp_path_factory):
    """A run on vectors, without the audio."""
    away = tmp_path_factory.mktemp("away") / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [{**row, "path": Path(row["path"]).name} for row in rows]
    away.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path_factory.mktemp("runs") / "notes"
    train_task(recipe_config(away, features, folder), Instrument)
    return folder


@pytest.mark.slow
def test_a_run_needs_no_audio_and_states_what_it_read(run, features, split):
    results = json.loads((run / "results.json").read_text())
    size = np.load(next(features.iterdir())).size
    assert results["num_tracks"] == len(split["test"])
    assert results["backbone"] == {
        "source": "vectors in pooled",
        "revision": None,
        "licence": "",
        "num_layers": 0,
        "num_published_layers": None,
        "vector_size": size,
    }
    assert results["layer_weights"] == [1.0]
    metric = results["metrics"]["accuracy"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert not (run / "plots" / "layer_weights.png").exists()
    card = (run / "model" / "README.md").read_text()
    assert f"`vectors in pooled` ({size:,} numbers a clip, computed elsewhere)" in card
    assert "`m2v predict` cannot run it on music files" in card
    assert "the backbone `vectors" not in card
    assert "(plots/layer_weights.png)" not in card
    assert "a probe on them" in card
    assert "| Clips |" in card
    assert "clips a step" in card
    assert str(features) not in card


def test_a_saved_model_standardises_as_the_trained_one(run, features, split, task):
    model = TaskModel.from_pretrained(run / "model")
    assert isinstance(model.backbone, PrecomputedBackbone)
    read, _ = read_vector_splits(split, features, on_bad_track="stop")
    scaler = StandardScaler().fit(np.concatenate([one.vectors for one in read["train"]]))
    mean, std = scaler.mean_, scaler.scale_
    np.testing.assert_allclose(model.head.standardization.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(model.head.standardization.std, std, rtol=1e-5)
    written = (run / "predictions.csv").read_text().splitlines()
    assert len(written) == 1 + len(read["test"])
    for line, checked in zip(written[1:], read["test"], strict=True):
        prediction = model.predict_track(checked)
        cells = [float(cell) for cell in line.split(",")[3:]]
        assert list(prediction.scores.values()) == pytest.approx(cells, abs=1e-5)
        with torch.no_grad():
            vector = torch.from_numpy((checked.vectors - mean) / std).float()
            expected = model.head.layers(vector).softmax(dim=-1)[0]
        assert list(prediction.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_damaged_or_altered_saved_model_is_refused(run, tmp_path):
    settings = json.loads((run / "model" / "config.json").read_text())
    settings["backbone"]["settings"]["hidden_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes((run / "model/model.safetensors").read_bytes())
    with raises("model-weights-mismatch", "head.standardization.mean"):
        TaskModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_model_states_why_it_takes_no_audio(command, run, manifest, capsys):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    given = rows[0]["path"] if command == "predict" else str(manifest)
    with pytest.raises(SystemExit) as ended:
        main([command, str(run / "model"), given])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert names(message, "pooled")


@pytest.mark.slow
def test_a_run_on_vectors_resumes(manifest, features, tmp_path):
    """What a search leaves, the run without it finishes: the same test results as in one go."""
    config = recipe_config(manifest, features, tmp_path / "run")
    searched = train_task(config, Instrument, is_search=True).results
    assert searched["split"] == "validation"
    assert "metrics" not in searched
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "predictions.csv").exists()
    [checkpoint] = checkpoints_in(tmp_path / "run" / "checkpoints")[-1:]
    last = (checkpoint / STATE_FILE).stat().st_mtime_ns
    resumed = replace(config, run=replace(config.run, resume="auto"))
    finished = train_task(resumed, Instrument).results
    assert (checkpoint / STATE_FILE).stat().st_mtime_ns == last
    assert checkpoints_in(tmp_path / "run" / "checkpoints")[-1] == checkpoint
    assert finished["split"] == "test"
    assert finished["validation"] == searched["validation"]
    again = train_task(recipe_config(manifest, features, tmp_path / "again"), Instrument).results
    assert finished["metrics"] == again["metrics"]


@pytest.mark.slow
def test_a_run_does_not_resume_with_other_vectors(manifest, features, tmp_path):
    vectors = shutil.copytree(features, tmp_path / "vectors")
    config = recipe_config(manifest, vectors, tmp_path / "run")
    train_task(config, Instrument, is_search=True)
    resumed = replace(config, run=replace(config.run, resume="auto"))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    changed = next(row["id"] for row in rows if row["split"] == "train")
    path = next(iter(sorted(vectors.glob(f"{changed}*.npy"))))
    before = np.load(path)
    np.save(path, before + np.float32(1e-3))
    with raises("run-labels-changed", changed):
        train_task(resumed, Instrument)
    path.unlink()
    skipping = replace(resumed, data=replace(resumed.data, on_bad_track="skip"))
    with raises("data-bad-tracks", path.name):
        train_task(skipping, Instrument)
    np.save(path, before)
    assert train_task(resumed, Instrument).results["split"] == "test"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tuning": TuningConfig(method="lora")}, "tuning.method (to probe)"),
        (
            {"augmentation": AugmentationConfig(transforms=[{"name": "gain"}])},
            "augmentation.transforms (to [])",
        ),
        ({"backbone": BackboneConfig(num_layers=6)}, "backbone.num_layers"),
        ({"backbone": BackboneConfig(layer_weighting=3)}, "backbone.layer_weighting"),
        ({"backbone": BackboneConfig(layer_weighting="conv1d")}, "backbone.layer_weighting"),
        ({"backbone": BackboneConfig(spec_augment=True)}, "backbone.spec_augment"),
        ({"head": HeadConfig(pooling="attention")}, "head.pooling"),
        ({"publish": PublishConfig(weights="trained")}, "publish.weights"),
    ],
)
def test_settings_that_vectors_forbid_are_named(changes, named, tmp_path):
    with pytest.raises(UserError) as raised:
        recipe_config("songs.csv", tmp_path, tmp_path / "run", **changes)
    message = str(raised.value)
    assert message.startswith("data.features gives vectors in place of audio")
    assert f"Set {named}" in message
    assert message.count("(to ") == 1


def test_a_task_of_frames_refuses_vectors(manifest, features, tmp_path):
    config = recipe_config(manifest, features, tmp_path / "run")
    with raises("settings-conflict", "data.features", "beats"):
        train_task(config, BeatTracking)
    assert not (tmp_path / "run").exists()
