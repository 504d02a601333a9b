"""Models that start from a trained one: what they take over, and what is refused."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.messages import logged, raises

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import BackboneConfig, DataConfig, HeadConfig, RecipeConfig, TuningConfig
from m2v_finetune.config.training import TrainingConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.model.novelty import Novelty
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.init_from import start_from, with_start_settings
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.start_record import (
    keep_start,
    require_same_effects,
    require_same_model,
)

LABELS = ("drums", "flute", "minor")
NEW_LABELS = ("bass", "flute", "drums")
WAVEFORMS = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))


def build(task: Any, method: Any, head: HeadConfig | None = None, seed: int = 0) -> TaskModel:
    torch.manual_seed(seed)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small", num_layers=1),
        head=head or HeadConfig(kind="linear"),
        tuning=TuningConfig(method=method, train_conv_encoder=False if method == "full" else None),
        window_seconds=0.5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        if seed == 0 and hasattr(model.head, "standardization"):
            model.head.standardization.mean.normal_()
    return model.eval()


def saved(folder: Any, method: Any, task: Any = None, weights: Any = "auto") -> str:
    model = build(task or Tagging(labels=LABELS, label_column="tags"), method)
    model.novelty = Novelty(model.backbone.hidden_size, 50)
    model.save_pretrained(folder / "start", weights=weights)
    return str(folder / "start")


def a_run(folder: Any, *, has_checkpoint: bool = False) -> Any:
    return SimpleNamespace(has_checkpoint=has_checkpoint, folder=RunFolder(folder), start={})


def outputs(model: TaskModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(WAVEFORMS)


@pytest.mark.parametrize(
    ("before", "method", "weights", "is_whole"),
    [
        ("lora", "lora", "auto", False),
        ("lora", "probe", "auto", True),
        ("probe", "lora", "auto", False),
        ("full", "lora", "auto", True),
        ("lora", "lora", "all", True),
        ("bitfit", "bitfit", "auto", False),
        ("adapter", "adapter", "all", True),
    ],
)
def test_labels_of_both_keep_their_outputs(
    before: str, method: str, weights: str, is_whole: bool, tmp_path: Any, caplog: Any
) -> None:
    source = saved(tmp_path, before, weights=weights)
    start = TaskModel.from_pretrained(source)
    model = build(Tagging(labels=NEW_LABELS, label_column="tags"), "probe", seed=1)
    tuning = TuningConfig(method=method)  # type: ignore[arg-type]
    model.tuning = tuning
    with caplog.at_level(logging.INFO):
        start_from(model, source, a_run(tmp_path / "run"))
    found, expected = outputs(model), outputs(start)
    for label in ("flute", "drums"):
        own, other = model.label2id[label], start.label2id[label]
        torch.testing.assert_close(found[:, own], expected[:, other], atol=1e-5, rtol=1e-5)
    assert (
        "Labels taken over: flute, drums. New labels: bass. Labels dropped: minor." in caplog.text
    )
    assert (model.base_fingerprint is None) == is_whole
    assert model.novelty is None
    # The same parameters are trainable as in a new model of the method.
    fresh = build(Tagging(labels=NEW_LABELS, label_column="tags"), method)
    trainable = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trainable == {name for name, one in fresh.named_parameters() if one.requires_grad}
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        outputs(TaskModel.from_pretrained(tmp_path / "again")), found, atol=1e-5, rtol=1e-5
    )


def test_another_task_takes_the_backbone_alone(tmp_path: Any, caplog: Any) -> None:
    source = saved(tmp_path, "lora")
    start = TaskModel.from_pretrained(source)
    model = build(Genre(labels=("a", "b"), label_column="genre"), "lora", seed=1)
    head = {name: one.clone() for name, one in model.head.state_dict().items()}
    with caplog.at_level(logging.INFO):
        start_from(model, source, a_run(tmp_path / "run"))
    assert logged(caplog, "head", "genre") == 1
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, start.backbone.state_dict()[name]), name
    assert all(torch.equal(one, head[name]) for name, one in model.head.state_dict().items())


def test_refusals_name_the_remedy(tmp_path: Any) -> None:
    source = saved(tmp_path, "adapter")
    model = build(Tagging(labels=LABELS, label_column="tags"), "probe", seed=1)
    with raises("init-from-other-tuning", "--tuning.method adapter --tuning.adapter_size 16"):
        start_from(model, source, a_run(tmp_path / "run"))
    other = build(Tagging(labels=LABELS, label_column="tags"), "probe")
    other.backbone.normalize = not other.backbone.normalize
    with raises("init-from-other-network", "normalize"):
        start_from(other, source, a_run(tmp_path / "run"))


def config(source: str, **sections: Any) -> RecipeConfig:
    return RecipeConfig(
        data=DataConfig(source="songs.csv"), training=TrainingConfig(init_from=source), **sections
    )


def test_settings_are_taken_over(tmp_path: Any) -> None:
    source = saved(tmp_path, "probe")
    task = Tagging(labels=NEW_LABELS, label_column="tags")
    found = with_start_settings(config(source), task)
    assert found.backbone == BackboneConfig(source="random-small", num_layers=1)
    assert found.head == HeadConfig(kind="linear")
    other = with_start_settings(config(source), BeatTracking(label_column="beats"))
    assert (other.backbone.num_layers, other.head) == (1, HeadConfig())
    with raises("init-from-other-settings", "backbone.source is 'MERT-v0', not 'random-small'"):
        with_start_settings(config(source, backbone=BackboneConfig(source="MERT-v0")), task)
    with raises("init-from-other-settings", "head.pooling"):
        with_start_settings(config(source, head=HeadConfig(pooling="attention")), task)
    with raises("model-missing"):
        with_start_settings(config(str(tmp_path / "none" / "x" / "y")), task)
    plain = replace(config(source), training=TrainingConfig())
    assert with_start_settings(plain, task) is plain


def test_a_resume_needs_the_same_start(tmp_path: Any) -> None:
    source = saved(tmp_path, "probe")
    (tmp_path / "run").mkdir()
    run = a_run(tmp_path / "run")
    run.is_main_process = True
    model = build(Tagging(labels=LABELS, label_column="tags"), "probe", seed=1)
    start_from(model, source, run)
    keep_start(source, run)
    start_from(model, source, a_run(tmp_path / "run", has_checkpoint=True))
    build(Tagging(labels=LABELS, label_column="tags"), "probe", seed=2).save_pretrained(source)
    with raises("start-changed", "other weights"):
        start_from(model, source, a_run(tmp_path / "run", has_checkpoint=True))


def test_a_resume_needs_the_same_settings_of_the_teacher(tmp_path: Any) -> None:
    (tmp_path / "run").mkdir()
    run = a_run(tmp_path / "run")
    run.is_main_process = True
    teacher = build(Tagging(labels=LABELS, label_column="tags"), "probe")
    require_same_model(teacher, "teacher", run)
    keep_start("teacher", run)
    resumed = a_run(tmp_path / "run", has_checkpoint=True)
    require_same_model(teacher, "teacher", resumed)
    teacher.backbone.normalize = not teacher.backbone.normalize
    with raises("start-changed", "teacher"):
        require_same_model(teacher, "teacher", resumed)


def test_a_resume_needs_the_same_files_of_the_augmentation(tmp_path: Any) -> None:
    (tmp_path / "run").mkdir()
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    (rooms / "hall.wav").write_bytes(b"12")
    transforms = [{"name": "impulse_response", "ir_path": str(rooms), "p": 0.5}]
    run = a_run(tmp_path / "run")
    run.is_main_process = True
    require_same_effects(transforms, run)
    keep_start(None, run)
    resumed = a_run(tmp_path / "run", has_checkpoint=True)
    require_same_effects(transforms, resumed)
    (rooms / "church.wav").write_bytes(b"12")
    with raises("start-changed", "augmentation.transforms"):
        require_same_effects(transforms, resumed)
    (rooms / "church.wav").unlink()
    (rooms / "hall.wav").write_bytes(b"123")
    with raises("start-changed", "augmentation.transforms"):
        require_same_effects(transforms, resumed)


def test_the_backbone_of_a_model_may_be_a_folder(tmp_path: Any) -> None:
    folder = tmp_path / "networks" / "own"
    load_backbone("random-small").save_pretrained(folder)
    task = Tagging(labels=LABELS, label_column="tags")
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source=str(folder)),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(method="lora"),
        window_seconds=0.5,
    )
    source = str(tmp_path / "model")
    model.save_pretrained(tmp_path / "model", weights="all")
    given = BackboneConfig(source=str(folder))
    assert with_start_settings(config(source, backbone=given), task).backbone.source == str(folder)
    elsewhere = BackboneConfig(source=str(tmp_path / "networks" / "other"))
    with raises("init-from-other-settings", "backbone.source"):
        with_start_settings(config(source, backbone=elsewhere), task)
