"""`m2v configs` and `m2v init`: list the included settings, and copy a recipe to edit."""

import argparse
import re
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from m2v_finetune import shipped


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `configs` and `init` to the parser's subcommands."""
    configs = commands.add_parser("configs", help="list the included settings")
    configs.add_argument(
        "task",
        nargs="?",
        help="name of the task, such as tagging, or pretrain (default: every recipe)",
    )
    configs.set_defaults(command=_configs)

    init = commands.add_parser(
        "init",
        help="copy a recipe and its settings to edit",
        description="Writes TASK.py and TASK.yaml, which TASK.py reads. Existing files are not overwritten.",
    )
    init.add_argument("task", help="name of the task, such as tagging, or pretrain")
    init.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(),
        help="destination, created if needed (default: this folder)",
    )
    init.add_argument(
        "--config",
        default=shipped.QUICKSTART,
        help="settings to copy, a name from `m2v configs TASK` (default: %(default)s)",
    )
    init.set_defaults(command=_init)


def _configs(arguments: argparse.Namespace) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("task", "config", "method"):
        table.add_column(column, no_wrap=True)
    table.add_column("about")
    for file in shipped.config_files(arguments.task):
        table.add_row(file.task, file.name, file.method or "-", file.summary)
    console = Console()
    console.print(table)
    console.out(
        "Train with one of them: give a recipe --config configs/TASK/CONFIG.yaml\n"
        "Copy a recipe and its settings to edit: m2v init TASK FOLDER --config CONFIG\n"
        f"The files are in {shipped.shipped_folder('configs')}",
        highlight=False,
    )


def _init(arguments: argparse.Namespace) -> None:
    recipe, config = shipped.copy_recipe(arguments.task, arguments.folder, config=arguments.config)
    train = f"accelerate launch {shlex.join([str(recipe)])}"
    prepare = re.search(r"^# +(m2v data prepare .+)$", config.read_text("utf-8"), re.MULTILINE)
    if prepare:
        commands = f"Prepare its data:\n  {prepare[1]}\nTrain:\n  {train}"
    else:
        commands = (
            f"Train on the included data:\n  {train}\n"
            f"Train on your own:\n  {train} --data.source songs.csv"
        )
    shown = re.search(r"recipes/(\w+)\.py shows", recipe.read_text("utf-8"))
    if shown:
        commands += (
            f"\n{recipe.name} calls the steps of the package. A file with all steps, to change them:\n"
            f"  m2v init {shown[1]}"
        )
    Console().out(
        f"Wrote {recipe}, and its settings {config}, which it reads.\n{commands}", highlight=False
    )
