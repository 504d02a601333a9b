"""`m2v distil TEACHER`: train a smaller model on the outputs of a trained one."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
    from m2v_finetune.shipped import quickstart_file

    saved, task = read_description(teacher)
    own = {"source": saved.backbone.source, "revision": saved.backbone.revision}
    named = {key: value for key, value in own.items() if value is not None}
    names_data = any(word.startswith(("--config", "--data=", "--data.source")) for word in settings)
    quickstart = None if names_data else quickstart_file(task.name)
    window = f"--data.window_seconds={saved.window_seconds}"
    with TemporaryDirectory() as folder:
        # A file below those of the command line, and above the quickstart's.
        file = Path(folder) / "teacher.yaml"
        file.write_text(json.dumps({"backbone": named}), encoding="utf-8")
        words = [f"--config={file}", *settings, f"--training.teacher={teacher}"]
        if quickstart is not None:
            words = [f"--config={quickstart}", window, *words]
        config = read_config(task.name, words)
    if config.data.window_seconds is None:
        config = replace(config, data=replace(config.data, window_seconds=saved.window_seconds))
    if config.backbone.source != own["source"] and config.backbone.revision == own["revision"]:
        config = replace(config, backbone=replace(config.backbone, revision=None))
    return task.name, config
