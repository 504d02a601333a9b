"""`m2v distil TEACHER`: train a smaller model on the outputs of a trained one."""

import argparse
from collections.abc import Sequence
from typing import Any

from m2v_finetune.cli.options import Commands


def add_commands(commands: Commands) -> None:
    """Add `distil` to the parser's subcommands."""
    distil = commands.add_parser(
        "distil",
        help="train a smaller model on the outputs of a trained one",
        description="Trains a student on the outputs of a teacher; training tracks need no labels. Settings "
        "of the teacher's task follow, as of `m2v train`, such as --data.source songs.csv "
        "--backbone.num_layers 4. See docs/distilling.md.",
        allow_abbrev=False,
    )
    distil.add_argument("teacher", help="model folder, or Hub id, of the teacher")
    distil.set_defaults(command=_distil, takes_settings=True)


def _distil(arguments: argparse.Namespace) -> None:
    task, config = read_student(arguments.teacher, arguments.settings)
    from m2v_finetune.runs import train_or_pretrain

    train_or_pretrain(task, config)


def read_student(teacher: str, settings: Sequence[str]) -> tuple[str, Any]:
    """Return the task of a teacher, and the settings of a student: backbone and window are the teacher's.

    Args:
        teacher: Model folder, or Hub id.
        settings: Settings of a command line, which count more.

    Raises:
        UserError: There is no such model, or a setting is wrong.
    """
    from m2v_finetune.model import read_description
    from m2v_finetune.settings import read_config

    saved, task = read_description(teacher)
    words = [f"--data.window_seconds={saved.window_seconds}"]
    if not any(word.startswith("--backbone.source") for word in settings):
        words.append(f"--backbone.source={saved.backbone.source}")
        words += [f"--backbone.revision={saved.backbone.revision}"] * bool(saved.backbone.revision)
    return task.name, read_config(task.name, [*words, *settings, f"--training.teacher={teacher}"])
