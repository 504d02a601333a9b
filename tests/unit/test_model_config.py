"""config.json of a saved model: wrong content is named, and the program's own faults stay faults."""

import json

import pytest
from support.messages import raises

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = TaskModel.build(
        task=Tagging(labels=("fast", "slow"), label_column="tags"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="mlp", hidden_size=8),
        tuning=TuningConfig(method="lora"),
        window_seconds=1.0,
    )
    model.save_pretrained(folder)
    return folder


def write_changed(saved, folder, path, value):
    """Copy a model with one value of its config changed."""
    config = json.loads((saved / "config.json").read_text())
    section = config
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["task"], None),
        (["task", "labels"], 3),
        (["window_seconds"], "5"),
        (["window_seconds"], True),
        (["window_seconds"], -1),
        (["hop_seconds"], 2.0),
        (["layer_weighting"], "median"),
        (["layer_weighting"], 99),
        (["layer_weighting"], 1.5),
        (["head", "hidden_size"], "8"),
        (["head", "hidden_size"], 10**7),
        (["head", "hidden_size"], 10**15),
        (["head", "hidden_size"], 10**30),
        (["head", "dropout"], "no"),
        (["head", "colour"], "red"),
        (["head"], []),
        (["tuning", "method"], "magic"),
        (["tuning", "r"], 2.5),
        (["weights"], "some"),
        (["backbone", "num_layers"], "all"),
        (["backbone", "sample_rate"], 0),
        (["backbone", "settings"], [1]),
        (["backbone", "source"], None),
        (["library_name"], "transformers"),
        (["format_version"], "2"),
    ],
)
def test_a_wrong_value_is_named(saved, tmp_path, path, value):
    with raises("model-config-damaged", tmp_path / "model" / "config.json"):
        TaskModel.from_pretrained(write_changed(saved, tmp_path / "model", path, value))


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (["format_version"], 99, "model-newer-version"),
        (["task", "name"], "dancing", "task-unknown"),
        (["task", "name"], 3, "task-unknown"),
        (["backbone", "fingerprint"], "0" * 64, "model-other-backbone"),
        (["backbone", "sample_rate"], 8000, "model-other-backbone"),
        (["backbone", "settings", "layer_norm_eps"], 0.5, "model-other-backbone"),
        (["head", "hidden_size"], 9, "model-weights-mismatch"),
    ],
)
def test_a_value_of_another_model_is_named(saved, tmp_path, path, value, code):
    with raises(code):
        TaskModel.from_pretrained(write_changed(saved, tmp_path / "model", path, value))


def test_a_key_without_a_default_must_be_there(saved, tmp_path):
    folder = write_changed(saved, tmp_path / "model", ["window_seconds"], 1.0)
    config = json.loads((folder / "config.json").read_text())
    del config["window_seconds"]
    (folder / "config.json").write_text(json.dumps(config))
    with raises("model-config-damaged", "window_seconds"):
        TaskModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "error", [TypeError, LookupError, AttributeError, ValueError, RuntimeError]
)
def test_a_fault_of_the_program_is_not_called_a_damaged_config(saved, monkeypatch, error):
    def fail(*arguments, **named):
        raise error("a bug")

    monkeypatch.setattr(Tagging, "build_head", fail)
    with pytest.raises(error, match="a bug"):
        TaskModel.from_pretrained(saved)


def test_what_was_saved_loads(saved):
    assert TaskModel.from_pretrained(saved).task.labels == ("fast", "slow")


def test_a_folder_has_no_revisions(saved):
    with raises("revision-without-hub", "'v2'", saved):
        TaskModel.from_pretrained(saved, revision="v2")
