"""`m2v distil TEACHER`: train a smaller model on the outputs of a trained one."""

import argparse

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
    from m2v_finetune.model import read_description
    from m2v_finetune.settings import read_config

    _, task = read_description(arguments.teacher)
    config = read_config(
        task.name, [*arguments.settings, f"--training.teacher={arguments.teacher}"]
    )
    from m2v_finetune.runs import train_or_pretrain

    train_or_pretrain(task.name, config)
