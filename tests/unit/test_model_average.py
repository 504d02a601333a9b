"""Averages of models of a task: `m2v merge`."""

import doctest
from dataclasses import replace

import pytest
import torch
from support.messages import raises
from support.models import SAMPLES, TAGGING, build_tagger

from m2v_finetune.calibration import PlattScaling
from m2v_finetune.cli import main as m2v
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.hub import licence
from m2v_finetune.model import TaskModel
from m2v_finetune.model.averaging import average_models
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.tagging import Tagging

WAVEFORMS = 0.1 * torch.randn(2, SAMPLES, generator=torch.Generator().manual_seed(0))


def changed(method, seed, **settings):
    """Return a model as of a run: those of two seeds have one start."""
    model = build_tagger(method=method, num_layers=1, head=HeadConfig(kind="linear"), **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("method", "is_small"), [("probe", True), ("bitfit", True), ("lora", False)]
)
def test_weights_are_the_mean(method, is_small, tmp_path):
    models = [changed(method, seed) for seed in (1, 2)]
    models[0].task = replace(
        TAGGING,
        calibration=PlattScaling(slopes=(2.0,) * 3, intercepts=(0.0,) * 3),
        thresholds=(0.5,) * 3,
    )
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for model, folder in zip(models, folders, strict=True):
        model.save_pretrained(folder)
    with pytest.raises(SystemExit) as ended:
        m2v(["merge", *folders, "--output", str(tmp_path / "c")])
    assert not ended.value.code
    average = TaskModel.from_pretrained(tmp_path / "c")
    assert (average.base_fingerprint is not None) == is_small
    assert average.task == TAGGING
    # The network is linear in nothing but its weights: those of LoRA are merged first.
    states = [
        TaskModel.from_pretrained(folder).merge_and_unload().state_dict() for folder in folders
    ]
    found = average.merge_and_unload().state_dict()
    for name, tensor in found.items():
        expected = (states[0][name].double() + states[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
    assert "`a`" in (tmp_path / "c" / "README.md").read_text()
    with pytest.raises(SystemExit) as ended:
        m2v(["merge", *folders, "--output", str(tmp_path / "c")])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", TASKS)
def test_models_of_each_task_have_an_average(name):
    """Also of those whose task has no thresholds, or no calibration."""
    task_class = TASKS[name]
    task = task_class.from_settings(task_class.settings_class())
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = TaskModel.build(
            task=task,
            backbone=BackboneConfig(source="random-small", num_layers=1),
            head=HeadConfig(kind="linear"),
            tuning=TuningConfig(),
            window_seconds=1.0,
        )
        models.append(model)
    before = [model.head.state_dict() for model in models]
    wanted = {name: (before[0][name] + before[1][name]) / 2 for name in before[0]}
    average = average_models(models, ["a", "b"])
    assert average.task.to_dict() == task.to_dict()
    for key, tensor in average.head.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], atol=1e-6, rtol=1e-6)


def test_the_average_of_equal_models_is_the_model():
    models = [changed("lora", 1) for _ in range(3)]
    with torch.no_grad():
        expected = models[0](WAVEFORMS)
        found = average_models(models, ["a", "b", "c"])(WAVEFORMS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_model_is_named_once(tmp_path, capsys):
    changed("probe", 1).save_pretrained(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for other in (tmp_path / "a", f"{tmp_path}/x/../a", tmp_path / "b"):
        with pytest.raises(SystemExit) as ended:
            m2v(["merge", str(tmp_path / "a"), str(other), "--output", str(tmp_path / "c")])
        assert ended.value.code == 2
        assert str(other) in capsys.readouterr().err.replace("\n", "")
        assert not (tmp_path / "c").exists()
    with pytest.raises(SystemExit) as ended:
        m2v(["merge", str(tmp_path / "a"), str(tmp_path / "A"), "--output", str(tmp_path / "c")])
    assert ended.value.code == 2
    assert repr(str(tmp_path / "a")) in capsys.readouterr().err.replace("\n", "")


def test_what_does_not_match_is_named():
    first, other = changed("probe", 1), changed("probe", 2)
    other.task = Tagging(labels=("drums", "minor", "flute"), label_column="tags")
    with raises("average-other-model", "task and labels", *other.task.labels):
        average_models([first, other], ["a", "b"])
    other = changed("probe", 2)
    other.backbone.normalize = not other.backbone.normalize
    with raises("average-other-model", "normalisation"):
        average_models([first, other], ["a", "b"])
    with raises("average-other-model", "data.window_seconds"):
        average_models([first, changed("probe", 2, seconds=0.6)], ["a", "b"])
    with raises("average-too-few"):
        average_models([first], ["a"])


def test_several_licences_are_one_that_names_them():
    assert not doctest.testmod(licence).failed
    both = licence.joined(["mit", "apache-2.0 AND mit"])
    assert both == "apache-2.0 AND mit"
    assert licence.licence_of(licence.licence_metadata(both)) == both
    assert licence.joined(["mit", ""]) == ""
    assert licence.licence_of({"license": "other"}) == "other"
    assert licence.licence_of(licence.licence_metadata("")) == ""
