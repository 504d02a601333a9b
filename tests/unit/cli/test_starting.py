"""`m2v configs` and `m2v init`."""

import argparse
import shlex
from pathlib import Path

import pytest
from support.messages import raises

from m2v_finetune.cli import starting
from m2v_finetune.settings import read_config
from m2v_finetune.shipped import config_files
from m2v_finetune.tasks import TASKS


def m2v(*argv: str) -> None:
    """Run a subcommand of this module, as `m2v` does."""
    parser = argparse.ArgumentParser()
    starting.add_commands(parser.add_subparsers(required=True))
    arguments = parser.parse_args(argv)
    arguments.command(arguments)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wide terminal, in an empty folder."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


def printed_commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


def test_configs_lists_every_config(capsys: pytest.CaptureFixture[str]) -> None:
    m2v("configs")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for file in config_files():
        row = [file.task, file.name, file.method or "-", *file.summary.split()]
        assert row in rows


def test_configs_of_one_task(capsys: pytest.CaptureFixture[str]) -> None:
    m2v("configs", "key")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("key ") for line in lines) == len(config_files("key"))
    assert not any(line.startswith("beats ") for line in lines)
    with raises("recipe-unknown", "'keys'", *TASKS, "pretrain"):
        m2v("configs", "keys")


def test_init_names_commands_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    m2v("init", "key", "my own")
    commands = printed_commands(capsys.readouterr().out)
    *commands, start = commands
    assert start == "m2v init tagging"  # the file that shows the steps
    assert len(commands) == 2
    assert all(shlex.split(command)[:2] == ["accelerate", "launch"] for command in commands)
    # Training itself is tested with the wheel.
    sources = []
    for command in commands:
        recipe, *argv = shlex.split(command)[2:]
        config = read_config(Path(recipe).stem, argv, recipe=recipe)
        sources.append(config.data.source)
    assert sources == ["quickstart", "songs.csv"]


def test_init_of_a_benchmark_names_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    m2v("init", "genre", "--config", "gtzan-lora")
    assert printed_commands(capsys.readouterr().out) == [
        "m2v data prepare gtzan --root data/gtzan",
        "accelerate launch genre.py",
        "m2v init tagging",
    ]
    assert "method: lora" in Path("genre.yaml").read_text()


def test_init_overwrites_nothing() -> None:
    m2v("init", "genre")
    Path("genre.py").write_text("changed")
    settings = Path("genre.yaml").read_text()
    with raises("output-exists", "genre.py and genre.yaml"):
        m2v("init", "genre")
    assert Path("genre.py").read_text() == "changed"
    assert Path("genre.yaml").read_text() == settings
