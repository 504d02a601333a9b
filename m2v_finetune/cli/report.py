"""`m2v report`: the page of a run, and the comparison of two runs."""

import argparse
from pathlib import Path

from rich.table import Table

from m2v_finetune.cli.options import Commands, TableConsole
from m2v_finetune.errors import UserError


def add_commands(commands: Commands) -> None:
    """Add `report` to the parser's subcommands."""
    report = commands.add_parser(
        "report",
        help="write report.html of a run again, or compare two runs on the same test tracks",
        description="With one run: writes report.html into its folder, from the files there. With two: "
        "prints the difference of each metric, second minus first, with a paired bootstrap interval over the "
        "test tracks, which must be the same.",
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; one or two")
    report.add_argument(
        "--labels", action="store_true", help="of two runs: print each label too, not only the page"
    )
    report.add_argument(
        "--output", type=Path, help="of two runs: new HTML file with the comparison"
    )
    report.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> None:
    from m2v_finetune.publishing.comparison import compare_runs, num_test_tracks, write_comparison
    from m2v_finetune.publishing.report import write_report

    runs: list[Path] = arguments.runs
    if len(runs) > 2 or (len(runs) == 1 and (arguments.output or arguments.labels)):
        raise UserError(
            f"{len(runs)} runs were given. `m2v report RUN` writes the page of one run into its folder; "
            "--labels and --output are for the comparison of two, `m2v report A B`.",
            code="report-number-of-runs",
        )
    if len(runs) == 1:
        print(write_report(runs[0]))
        return
    rows = compare_runs(*runs)
    table = Table(box=None, pad_edge=False)
    for name in ("label", "metric"):
        table.add_column(name)
    for name in ("A", "B", "B - A", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.label is not None and not arguments.labels:
            continue
        value, low, high = (row.difference[key] for key in ("value", "low", "high"))
        interval = "-" if low is None else f"{low:+.4f} to {high:+.4f}"
        numbers = ("-" if one is None else f"{one:.4f}" for one in (row.first, row.second))
        difference = "-" if value is None else f"{value:+.4f}"
        table.add_row(row.label or "", row.metric, *numbers, difference, interval)
    TableConsole().print(table)
    if arguments.output is not None:
        write_comparison(
            arguments.output,
            rows,
            first=str(runs[0]),
            second=str(runs[1]),
            num_tracks=num_test_tracks(runs[0]),
        )
