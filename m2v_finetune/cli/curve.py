"""`m2v curve TASK`: learning curve, and what more labels would bring."""

import argparse
import shlex
import sys
from pathlib import Path

from m2v_finetune.cli.options import Commands, count


def add_commands(commands: Commands) -> None:
    """Add `curve` to the parser's subcommands."""
    curve = commands.add_parser(
        "curve",
        help="learning curve: the metric against the number of training tracks, extrapolated",
        description="Trains on nested subsets of the training tracks, and fits a power law. Settings of the "
        "task follow, as of `m2v train`. The same command resumes. See docs/few-labels.md.",
        allow_abbrev=False,
    )
    curve.add_argument("task", help="name of the task, such as genre")
    curve.add_argument(
        "--output", type=Path, required=True, help="folder of runs, table, picture and curve.json"
    )
    curve.add_argument(
        "--sizes",
        type=count,
        default=6,
        help="number of sizes: all training tracks, half of them, and so on (default: %(default)s)",
    )
    curve.add_argument(
        "--repeats",
        type=count,
        default=3,
        help="number of subsets of each size, but of all tracks (default: %(default)s)",
    )
    curve.set_defaults(command=_curve, takes_settings=True)


def _curve(arguments: argparse.Namespace) -> None:
    from m2v_finetune.settings import read_config, require_task

    task_class = require_task(arguments.task, command="curve")
    config = read_config(arguments.task, arguments.settings)
    from m2v_finetune.learning_curve import CurveSettings, measure_curve, render_markdown

    content = measure_curve(
        config,
        task_class,
        CurveSettings(
            output=arguments.output, num_sizes=arguments.sizes, num_repeats=arguments.repeats
        ),
        command=shlex.join(["m2v", *sys.argv[1:]]),
    )
    print(render_markdown(content), end="")
