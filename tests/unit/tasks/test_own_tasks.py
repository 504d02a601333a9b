"""Tasks of one's own: registered by a call, or found by the entry point of an installed package."""

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.messages import raises

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import TASKS, find_task, register_task
from m2v_finetune.tasks.classification import Classification, ClassificationConfig

PAGE = Path(__file__).parents[3] / "docs" / "own-task.md"
MODULE = """
from m2v_finetune.tasks.genre import Genre

class Mood(Genre):
    name = "mood"
"""


@dataclass(frozen=True, kw_only=True)
class Mood(Classification):
    name: ClassVar[str] = "mood"
    settings_class: ClassVar[type[Any]] = ClassificationConfig

    def allowed_effects(self) -> frozenset[Effect]:
        return frozenset()


@pytest.fixture(autouse=True)
def known_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tasks of a test."""
    for name in {"mood"}:
        monkeypatch.setitem(TASKS, name, Mood)
        monkeypatch.delitem(TASKS, name)


def test_a_model_of_an_own_task_is_loaded_where_the_task_is_known(tmp_path: Path) -> None:
    model = TaskModel.build(
        task=Mood(labels=("calm", "wild"), label_column="mood"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=1.0,
    ).eval()
    model.save_pretrained(tmp_path)
    with raises("task-unknown", "'mood'", *TASKS):
        TaskModel.from_pretrained(tmp_path)
    assert register_task(Mood) is Mood
    loaded = TaskModel.from_pretrained(tmp_path)
    assert loaded.task == model.task
    windows = torch.randn(2, model.window_samples) / 10
    assert torch.equal(loaded(windows), model(windows))


def test_the_name_of_another_task_is_refused() -> None:
    class Other(Mood):
        pass

    register_task(Mood)
    register_task(Mood)  # a module that is read twice is no other task
    with raises("task-exists", "'mood'", f"{__name__}.Mood"):
        register_task(Other)

    class Tagger(Mood):
        name: ClassVar[str] = "tagging"

    with raises("task-exists", "'tagging'"):
        register_task(Tagger)
    assert TASKS["tagging"].__name__ == "Tagging"


@pytest.mark.parametrize("other", ["mood", None, type("Nameless", (), {})])
def test_only_a_class_with_a_name_is_a_task(other: Any) -> None:
    before = dict(TASKS)
    with raises("task-not-a-class", repr(other)):
        register_task(other)
    assert before == TASKS


def test_an_installed_package_needs_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moods.py").write_text(MODULE)
    info = tmp_path / "moods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moods\nVersion: 1.0\n")
    # As the page has it, for another module.
    text = re.search(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    [(group, entries)] = tomllib.loads(text)["project"]["entry-points"].items()
    assert list(entries) == ["mood"]
    (info / "entry_points.txt").write_text(f"[{group}]\nmood = moods:Mood\n")
    with raises("task-unknown", "'mood'"):
        find_task("mood")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_task("mood") is sys.modules["moods"].Mood
