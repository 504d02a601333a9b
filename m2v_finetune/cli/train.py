"""`m2v train TASK`: train with the settings that follow."""

import argparse

from m2v_finetune.cli.options import Commands, without_collection
from m2v_finetune.shipped import recipe_files


def add_commands(commands: Commands) -> None:
    """Add `train` to the parser's subcommands."""
    train = commands.add_parser(
        "train",
        help="train a task: m2v train tagging --data.source songs.csv",
        # Each task has its own help for its settings.
        add_help=False,
    )
    train.add_argument("words", nargs=argparse.REMAINDER)
    train.set_defaults(command=_train, takes_settings=True)


def _train(arguments: argparse.Namespace) -> None:
    words = [*arguments.words, *arguments.settings]
    if words in (["-h"], ["--help"]):
        print("usage: m2v train TASK [--config FILE] [--section.key value ...]\n")
        print(
            "Trains a task. Without --config and --data.source it runs the task's quickstart, offline."
        )
        print(f"Tasks: {', '.join(recipe_files())}. All settings: m2v train TASK --help")
        return
    from m2v_finetune.settings import read_command

    name, config = read_command(words)  # `--help` ends here
    with without_collection():
        from m2v_finetune.runs import train_or_pretrain

    train_or_pretrain(name, config)
