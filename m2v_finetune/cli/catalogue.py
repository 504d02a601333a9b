"""Options and run of commands that write a table of a catalogue: `m2v predict` with a folder, `m2v embed`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from m2v_finetune.cli.options import OUTSIDE_HELP, count, warn
from m2v_finetune.errors import UserError

if TYPE_CHECKING:
    from m2v_finetune.catalogue.analysis import Analysis
    from m2v_finetune.catalogue.sources import Sources

    AnyAnalysis = TypeVar("AnyAnalysis", bound=Analysis)

TABLE_FORMATS = ("parquet", "jsonl", "csv")
SOURCE_HELP = (
    "music files; folders, searched for music at any depth; manifests .csv, .jsonl or .parquet with a column "
    "path; - for paths on standard input, one a line; or addresses of an object store, such as "
    "s3://bucket/music"
)
TABLE_OPTIONS = ("batch_size", "num_workers", "shard_tracks", "overwrite", "retry_errors")


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of tables to a subcommand."""
    table = parser.add_argument_group(
        "tables", "A table is a folder of shards; the same command resumes one that was killed."
    )
    table.add_argument(
        "--batch-size",
        type=count,
        help="windows of a batch, filled across files (default: 16; on a GPU 64)",
    )
    table.add_argument(
        "--num-workers",
        type=_whole,
        help="processes that read audio (default: one less than the cores, at most 16)",
    )
    table.add_argument(
        "--shard-tracks",
        type=count,
        help="tracks of a shard of a new table, about; a killed command loses the shards that it was "
        "computing (default: 256)",
    )
    table.add_argument(
        "--overwrite", action="store_true", help="delete the table that is in --output"
    )
    table.add_argument(
        "--retry-errors",
        action="store_true",
        help="compute the tracks again that have an error in the table",
    )
    table.add_argument(
        "--fail-on-error",
        action="store_true",
        help="exit with code 2 if any track has an error, not only if all have; the table is complete",
    )
    table.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="ray computes the shards on a cluster, with a model on each GPU, or on each core without GPUs; "
        "it needs the extra ray (default: local, this machine)",
    )
    table.add_argument("--allow-outside", action="store_true", help=OUTSIDE_HELP)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 0")
    return int(text)


def read_sources(arguments: argparse.Namespace, sources: Sequence[str]) -> "Sources":
    """Return the tracks of the sources of a command, and warn of what is not read."""
    from m2v_finetune.catalogue.sources import read_items

    found = read_items(
        sources, standard_input=sys.stdin.buffer, allow_outside=arguments.allow_outside
    )
    for note in found.notes:
        warn(note)
    if found.num_repeated:
        warn(f"{found.num_repeated:,} paths are named more than once; each is one track.")
    return found


def write_table(
    arguments: argparse.Namespace,
    build: "Callable[[], AnyAnalysis]",
    sources: "Sources",
    *,
    format: str,
) -> "AnyAnalysis":
    """Compute the table of a command, and print a summary.

    Args:
        arguments: Options of the command.
        build: Function that loads the networks; a cluster calls it on each machine.
        sources: Tracks.
        format: One of `TABLE_FORMATS`.

    Returns:
        What was computed, with the networks of this process.

    Raises:
        UserError: Errors of `run_catalogue`, or a track has an error and the command is to fail then.
    """
    from joblib import cpu_count

    from m2v_finetune.catalogue.run import SHARD_TRACKS, run_catalogue
    from m2v_finetune.catalogue.stores import is_url
    from m2v_finetune.micro_batching import device_of
    from m2v_finetune.training.signals import stop_on_signals

    output = arguments.output if is_url(arguments.output) else Path(arguments.output)
    num_workers, engine = arguments.num_workers, None
    if arguments.engine == "ray":
        from m2v_finetune.catalogue.ray_engine import RayEngine, connect

        engine = RayEngine(build=build, cluster=connect(num_workers))
    analysis = build()
    on_gpu = any(device_of(one.network).type == "cuda" for one in analysis.passes)
    if engine is not None:
        on_gpu = engine.cluster.gpus_per_actor > 0
    with stop_on_signals(lambda: ""):
        summary = run_catalogue(
            analysis,
            sources.items,
            output,
            format=format,
            batch_size=arguments.batch_size or (64 if on_gpu else 16),
            num_workers=min(16, cpu_count() - 1) if num_workers is None else num_workers,
            shard_tracks=arguments.shard_tracks or SHARD_TRACKS,
            overwrite=arguments.overwrite,
            retry_errors=arguments.retry_errors,
            engine=engine,
        )
    num_errors = summary.errors.total()
    lines = [
        f"{summary.num_tracks:,} tracks in {output}: {summary.num_computed:,} computed now, "
        f"{summary.num_kept:,} there before."
    ]
    if summary.num_others:
        lines.append(
            f"{summary.num_others:,} more tracks of the table are not in the sources; they stay."
        )
    if num_errors:
        kinds = ", ".join(f"{code} ({number:,})" for code, number in summary.errors.most_common())
        lines.append(f"{num_errors:,} have an error, in the column 'error': {kinds}.")
    warn("\n".join(lines))
    if num_errors and (arguments.fail_on_error or num_errors == summary.num_tracks):
        raise UserError(
            f"{num_errors:,} of {summary.num_tracks:,} tracks have an error. Repair them, and use "
            "--retry-errors.",
            code="catalogue-errors",
        )
    return analysis
