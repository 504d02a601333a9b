"""`m2v embed`."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2v_finetune.cli.catalogue import (
    SOURCE_HELP,
    TABLE_FORMATS,
    add_table_options,
    read_sources,
    write_table,
)
from m2v_finetune.cli.options import Commands
from m2v_finetune.errors import UserError

if TYPE_CHECKING:
    from m2v_finetune.catalogue.embeddings import Embeddings

EMBEDDING_OPTIONS = ("layer", "pool", "precision", "window_seconds")
"""Options that are arguments of `Embeddings`."""


def add_commands(commands: Commands) -> None:
    """Add `embed` to the parser's subcommands."""
    embed = commands.add_parser(
        "embed",
        help="write the embeddings of audio files as a table",
        description="Writes a table with a vector for each track, or for each of its windows: hidden states "
        "of a network, averaged over time. --data.features DIR trains from it. You can stop the command at "
        "any time: the same command resumes.",
    )
    embed.add_argument(
        "network",
        metavar="BACKBONE|MODEL",
        help="name, folder or Hub id of a backbone, or a model of a task, whose windows and layer weights "
        "are used then",
    )
    embed.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    embed.add_argument("--output", required=True, help="folder of the table")
    embed.add_argument(
        "--layer",
        type=int,
        help="number of a hidden state, from 0, the input of the first layer (default: of a model the "
        "weighted sum that its head reads, of a backbone the mean of all)",
    )
    embed.add_argument(
        "--pool",
        choices=["track", "windows"],
        default="track",
        help="a vector for each track, or for each window, with its time (default: %(default)s)",
    )
    embed.add_argument(
        "--precision",
        choices=["float32", "float16"],
        default="float32",
        help="type of the numbers (default: %(default)s)",
    )
    embed.add_argument(
        "--window-seconds",
        type=float,
        help="length of the windows of a backbone, in seconds (default: 5)",
    )
    embed.add_argument(
        "--format",
        choices=TABLE_FORMATS,
        default="parquet",
        help="format of the shards; --data.features reads parquet (default: %(default)s)",
    )
    add_table_options(embed)
    embed.set_defaults(command=_embed)


def _embed(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if output.suffix.lower().removeprefix(".") in TABLE_FORMATS and not output.is_dir():
        raise UserError(
            f"--output {output} looks like a file. A table is a folder: name one without a suffix, and its "
            "format by --format.",
            code="catalogue-not-a-folder",
        )
    found = read_sources(arguments, arguments.sources)
    options = {name: getattr(arguments, name) for name in EMBEDDING_OPTIONS}
    build = partial(build_embeddings, arguments.network, options)
    write_table(arguments, build, found, format=arguments.format)


def build_embeddings(source: str, options: dict[str, Any]) -> "Embeddings":
    """Return what a table has, with the network on the device of this machine."""
    import torch

    from m2v_finetune.allocation import keep_freed_memory
    from m2v_finetune.catalogue.embeddings import Embeddings, load_network

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory(device)
    network = load_network(source).to(device)
    return Embeddings(source, network, **options)
