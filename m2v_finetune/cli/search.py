"""`m2v search TASK`: search of settings on the validation split."""

import argparse
import shlex
import sys
from pathlib import Path

from m2v_finetune.cli.options import Commands, count


def add_commands(commands: Commands) -> None:
    """Add `search` to the parser's subcommands."""
    search = commands.add_parser(
        "search",
        help="search settings on the validation split, with Optuna",
        description="Trains trials with other settings, without test evaluation. Settings of the task "
        "follow, as of `m2v train`. The same command resumes; started several times, it shares the trials "
        "among processes. See docs/search.md.",
        allow_abbrev=False,
    )
    search.add_argument("task", help="name of the task, such as genre")
    search.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="SETTING=VALUES",
        help="setting to search, such as optimizer.learning_rate=log(1e-5,1e-2), "
        "head.dropout=uniform(0,0.5), tuning.r=int(1,8) or tuning.method=probe,lora; may be repeated",
    )
    search.add_argument(
        "--trials", type=count, default=20, help="number of trials (default: %(default)s)"
    )
    search.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder of trials, table, picture and config.yaml",
    )
    search.set_defaults(command=_search, takes_settings=True)


def _search(arguments: argparse.Namespace) -> None:
    from m2v_finetune.settings import require_task

    require_task(arguments.task, command="search")
    from m2v_finetune.search import search_settings

    search_settings(
        arguments.task,
        arguments.settings,
        arguments.over,
        output=arguments.output,
        num_trials=arguments.trials,
        command=shlex.join(["m2v", *sys.argv[1:]]),
    )
    print((arguments.output / "search.md").read_text(encoding="utf-8"), end="")
