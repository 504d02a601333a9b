"""Recipes and configs that ship: found, and copied to be changed."""

import errno
import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from support.messages import raises

from m2v_finetune.memory.counted_step import model_without_weights
from m2v_finetune.settings import read_config
from m2v_finetune.shipped import (
    config_file,
    config_files,
    copy_recipe,
    find_file,
    recipe_file,
    recipe_files,
)
from m2v_finetune.tasks import TASKS

RECIPES = sorted([*TASKS, "pretrain"])


def test_every_task_has_a_recipe_and_a_quickstart(repository: Path) -> None:
    assert list(recipe_files()) == RECIPES
    for task in RECIPES:
        assert recipe_file(task) == repository / "recipes" / f"{task}.py"
        assert config_file(task) == repository / "configs" / task / "quickstart.yaml"


def test_all_configs_of_all_recipes_are_listed(repository: Path) -> None:
    on_disk = {path for task in RECIPES for path in (repository / "configs" / task).glob("*.yaml")}
    files = config_files()
    assert {file.path for file in files} == on_disk
    assert [(file.task, file.name) for file in files] == sorted(
        (path.parent.name, path.stem) for path in on_disk
    )
    assert [file for file in files if file.task == "genre"] == config_files("genre")


def test_a_config_has_a_method_and_a_summary() -> None:
    files = {(file.task, file.name): file for file in config_files()}
    lora = files["tagging", "magnatagatune-lora"]
    assert lora.method == "lora"
    assert lora.summary.startswith("MagnaTagATune: ")
    assert files["beats", "quickstart"].method == "probe"
    assert files["pretrain", "small"].method is None
    assert all(file.summary for file in files.values())


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    for call in (recipe_file, config_files, config_file):
        with raises("recipe-unknown", "'tags'", ", ".join(RECIPES)):
            call("tags")
    known = [file.name for file in config_files("genre")]
    with raises("config-unknown", "'gtzan'", "genre", ", ".join(known)):
        config_file("genre", "gtzan")


def test_a_path_that_is_not_there_is_what_ships(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = Path("configs/pretrain/small")
    assert find_file(named) == repository / named
    for other in ("configs/none.yaml", "small", str(tmp_path / named)):
        assert find_file(Path(other)) == Path(other)
    named.mkdir(parents=True)  # the user's own comes first
    assert find_file(named) == named


def test_a_config_that_ships_is_read_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in (
        ["--config", "configs/genre/gtzan-lora.yaml"],
        ["--config=configs/genre/gtzan-lora.yaml"],
    ):
        config = read_config("genre", argv)
        assert config.tuning.method == "lora"


def test_an_architecture_that_ships_is_built_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_config("pretrain", [])
    assert config.backbone.architecture == "configs/pretrain/small"
    assert model_without_weights(config, None).backbone.num_layers == 4


@pytest.mark.parametrize("task", RECIPES)
def test_a_copy_is_the_same_run(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, config = copy_recipe(task, Path("mine"))
    assert (recipe, config) == (Path(f"mine/{task}.py"), Path(f"mine/{task}.yaml"))
    compile(recipe.read_text(), str(recipe), "exec")

    def read(*argv: str):
        return read_config(task, argv).__dict__

    assert read("--config", str(config)) == read()
    assert read_config(task, [], recipe=recipe).__dict__ == read()
    assert f"accelerate launch {task}.py\n" in config.read_text()
    text = recipe.read_text() + config.read_text()
    assert f"recipes/{task}.py" not in text
    assert "with music2vec" not in recipe.read_text()  # its settings have another backbone


@pytest.mark.parametrize("task", RECIPES)
def test_a_copy_reads_the_settings_beside_it(
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where a source of data is given, which takes the place of the quickstart's settings."""
    recipe, config = copy_recipe(task, tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["training"]["epochs"] = -3
    config.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(sys, "argv", [str(recipe), "--data.source", "songs.csv"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(recipe), run_name="__main__")
    assert ended.value.code == 2
    assert "training.epochs is -3" in capsys.readouterr().err


def test_a_copied_benchmark_names_the_copies(tmp_path: Path) -> None:
    _, config = copy_recipe("genre", tmp_path, config="gtzan-lora")
    text = config.read_text()
    assert "accelerate launch genre.py\n" in text
    assert (
        text.split("\ndata:")[1]
        == config_file("genre", "gtzan-lora").read_text().split("\ndata:")[1]
    )


@pytest.mark.parametrize("name", ["key.py", "key.yaml"])
def test_no_file_is_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with raises("output-exists", tmp_path / name) as raised:
        copy_recipe("key", tmp_path)
    assert str(raised.value).count(str(tmp_path)) == 1  # the other one is not there
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


def test_nothing_is_left_where_one_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "key.yaml").symlink_to(tmp_path / "gone")  # no file, but a name that is taken
    with raises("output-not-writable", tmp_path / "key.yaml", os.strerror(errno.EEXIST)):
        copy_recipe("key", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["key.yaml"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with raises("output-not-writable", tmp_path / "mine"):
        copy_recipe("key", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == ""
