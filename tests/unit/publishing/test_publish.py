"""Publishing a run: no picture and no card may stop results, model or push."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from run_facts import backbone_facts, training_facts

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import (
    BackboneConfig,
    DataConfig,
    HeadConfig,
    InitialBackboneConfig,
    PretrainingConfig,
    PublishConfig,
    RecipeConfig,
    TuningConfig,
    UnlabelledDataConfig,
)
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.errors import Stopped
from m2v_finetune.files import write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.publishing import backbone as of_backbone
from m2v_finetune.publishing import publish as publishing
from m2v_finetune.publishing.publish import publish
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.run_folder import RunFolder

ODD_NAMES = (
    "cost $5",
    "$x$",
    "_hidden",
    "__init__",
    "rock \N{GUITAR}",
    "word " * 100,
    "two\nlines",
    "caf\udce9",
    "<b>|`x`",
    "",
)


def finished_run(folder, labels, *, num_tracks=8, **changes):
    """Return what a run has when all is trained and judged, as `publish` takes it."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Genre(labels=tuple(labels), label_column="genre"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(),
        window_seconds=1.0,
    ).eval()
    rng = np.random.default_rng(0)
    evaluated = [
        EvaluatedClip(
            target=np.asarray(number % len(labels), dtype=np.float32),
            scores=rng.random(len(labels), dtype=np.float32),
        )
        for number in range(num_tracks)
    ]
    run = RunFolder(folder / "run")
    config = RecipeConfig(
        data=DataConfig(source="songs.csv", window_seconds=5.0, windows_per_track=1),
        backbone=BackboneConfig(source="random-small"),
    )
    run.create(config)
    run.log({"step": 1, "epoch": 1, "loss": 2.5})
    run.log({"step": 1, "epoch": 1, "validation": {"accuracy": 0.5, "macro_f1": 0.4}})
    results = {
        "task": "genre",
        "split": "test",
        "num_tracks": num_tracks,
        "num_skipped_tracks": {},
        **model.task.summarize(evaluated, seed=0),
        "metric_names": dict(model.task.metric_names),
        "selection_metric": "accuracy",
        "hop_seconds": 1.0,
        "head": model.task.describe_head(model.head_config),
        "validation": {"accuracy": 0.5, "macro_f1": 0.4},
        "best_epoch": 1,
        "num_epochs": 1,
        "num_steps": 1,
        "layer_weights": model.layer_weighting.weights().tolist(),
        "num_trained_parameters": 10,
        "num_parameters": 100,
        "num_skipped_steps": 0,
        "num_tracks_of_splits": {"train": 8, "validation": 4, "test": num_tracks},
        "tuning": "probe",
        "training": training_facts(config),
        "dataset": vars(DatasetInfo(name="songs")),
        "backbone": backbone_facts(config, licence="apache-2.0"),
        "seconds": {"training": 1.0, "test": 1.0},
        **changes,
    }
    write_json(run.results, results)
    return model, run, results, evaluated


@pytest.fixture
def pushed(monkeypatch):
    """What would have gone to the Hub; that it gets there is tested with a server."""
    folders = []

    def upload(folder, repo_id, *, private):
        folders.append({path.name for path in folder.iterdir()})
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(publishing, "upload_model", upload)
    return folders


def run_publish(made):
    model, folder, results, evaluated = made
    config = PublishConfig(repo_id="me/tagger")
    publish(model, folder, results, config, evaluated=evaluated, tracks=[])
    return folder


def assert_published(folder, pushed, labels):
    assert [{"config.json", "model.safetensors", "README.md"} - names for names in pushed] == [
        set()
    ]
    assert TaskModel.from_pretrained(folder.model).task.labels == tuple(labels)
    assert json.loads(folder.results.read_text())["metrics"]["accuracy"]["value"] is not None


@pytest.mark.parametrize(
    "labels",
    [
        [f"artist {number}" for number in range(1201)],
        ODD_NAMES,
        [*ODD_NAMES, *map(str, range(1200))],
        ["the only one"],
    ],
    ids=["1201 classes", "odd names", "1210 classes with odd names", "one class"],
)
def test_any_number_of_classes_of_any_name(tmp_path, pushed, caplog, labels):
    folder = run_publish(finished_run(tmp_path, labels, num_tracks=20))
    assert "cannot be made" not in caplog.text
    assert_published(folder, pushed, labels)
    pictures = {path.name for path in (folder.model / "plots").iterdir()}
    assert pictures == {"confusion.png", "layer_weights.png", "training.png"}
    card = ModelCard.load(folder.model / "README.md")
    assert "plots/confusion.png" in card.text
    assert len(card.data.eval_results) == 2


FAILURES = {
    "a picture of the task": (Genre, "plot"),
    "the picture of layers": (publishing, "plot_layer_weights"),
    "the picture of training": (publishing, "plot_training"),
    "the card": (publishing, "render_card"),
    "writing the card": (publishing, "write_card"),
}


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("a picture of the task", StopIteration()),
        ("a picture of the task", MemoryError()),
        ("the picture of layers", ValueError("Image size of 960x90000 pixels is too large")),
        ("the picture of training", KeyError("loss")),
        ("the card", KeyError("num_positive")),
        ("the card", MemoryError()),
        ("writing the card", OSError(28, "No space left on device")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_fails_is_a_warning_and_the_rest_resumes(
    tmp_path, pushed, caplog, monkeypatch, failing, error
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(*FAILURES[failing], fail)
    folder = run_publish(finished_run(tmp_path, ["a", "b"]))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert type(error).__name__ in warnings[0].getMessage()
    assert_published(folder, pushed, ["a", "b"])
    pictures = len(list((folder.model / "plots").iterdir()))
    assert pictures == (2 if "picture" in failing else 3)
    text = (folder.model / "README.md").read_text()
    assert ModelCard(text).data.license == "apache-2.0"  # without its own, a plain card
    linked = text.count("](plots/")
    assert linked == (0 if "card" in failing else 2)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: run.plots.write_text("a file in place of the folder"),
        lambda run: run.metrics.write_text("not JSON\n"),
        lambda run: run.metrics.unlink(),
        lambda run: run.environment.write_text("{"),
        lambda run: run.config.write_text("[1]"),
        lambda run: os.truncate(run.metrics, 0),
    ],
    ids=["plots", "metrics", "no metrics", "environment", "config", "empty metrics"],
)
def test_damaged_files_of_the_run_cost_pictures_or_the_card_alone(tmp_path, pushed, caplog, spoil):
    made = finished_run(tmp_path, ["a", "b"])
    spoil(made[1])
    folder = run_publish(made)
    assert "cannot be made" in caplog.text
    assert_published(folder, pushed, ["a", "b"])


def test_a_signal_while_pictures_are_drawn_is_no_failure_of_theirs(tmp_path, pushed, monkeypatch):
    def stop(*arguments, **options):
        raise Stopped(15, "")

    monkeypatch.setattr(publishing, "plot_training", stop)
    with pytest.raises(Stopped):
        run_publish(finished_run(tmp_path, ["a", "b"]))
    assert pushed == []


def test_a_pretrained_backbone_is_published_all_the_same(tmp_path, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise KeyError("loss")

    pushed = []
    monkeypatch.setattr(of_backbone, "upload_model", lambda *a, **o: pushed.append(a) or "url")
    monkeypatch.setattr(of_backbone, "plot_pretraining", fail)
    config = PretrainingConfig(
        data=UnlabelledDataConfig(source="music"),
        backbone=InitialBackboneConfig(source="random-small"),
        publish=PublishConfig(repo_id="me/backbone"),
    )
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    backbone = load_backbone("random-small", spec_augment=True)  # as pre-training has it
    of_backbone.publish_backbone(backbone, folder, {}, config)
    assert caplog.text.count("cannot be made") == 2  # there are no results to make a card of
    assert load_backbone(folder.model).fingerprint() == backbone.fingerprint()
    assert pushed == [(folder.model, "me/backbone")]
