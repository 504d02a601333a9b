"""Publishing a run: no picture and no card may stop results, model or push."""

import json
import logging
import os

import pytest
from finished_runs import finished_run
from huggingface_hub import ModelCard
from support.matrix import exhaustive

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import (
    InitialBackboneConfig,
    PretrainingConfig,
    PublishConfig,
    UnlabelledDataConfig,
)
from m2v_finetune.errors import Stopped
from m2v_finetune.model import TaskModel
from m2v_finetune.publishing import backbone as of_backbone
from m2v_finetune.publishing import publish as publishing
from m2v_finetune.publishing.publish import publish
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


def warnings(caplog):
    return [record for record in caplog.records if record.levelname == "WARNING"]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([*ODD_NAMES, *map(str, range(1200))], id="1210 classes with odd names"),
        pytest.param(ODD_NAMES, id="odd names", marks=pytest.mark.exhaustive),
        pytest.param(["the only one"], id="one class"),
    ],
)
def test_any_number_of_classes_of_any_name(tmp_path, pushed, caplog, labels):
    folder = run_publish(finished_run(tmp_path, labels, num_tracks=20))
    assert not warnings(caplog)
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
    "the report": (publishing, "write_report"),
}


@pytest.mark.parametrize(
    ("failing", "error"),
    [
        ("a picture of the task", StopIteration()),
        ("the picture of training", KeyError("loss")),
        ("the card", KeyError("num_positive")),
        ("writing the card", OSError(28, "No space left on device")),
        ("the report", MemoryError()),
        *exhaustive(
            ("a picture of the task", MemoryError()),
            ("the picture of layers", ValueError("Image size of 960x90000 pixels is too large")),
            ("the card", MemoryError()),
            ("the report", KeyError("warnings")),
        ),
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
    assert linked == (0 if "card" in failing else pictures)


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
    assert warnings(caplog)
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
    assert len(warnings(caplog)) == 2  # there are no results to make a card of
    assert load_backbone(folder.model).fingerprint() == backbone.fingerprint()
    assert pushed == [(folder.model, "me/backbone")]
