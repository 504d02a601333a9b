"""`m2v embed`."""

import argparse

from m2v_finetune.cli.catalogue import (
    SOURCE_HELP,
    TABLE_FORMATS,
    add_table_options,
    read_sources,
    write_table,
)
from m2v_finetune.cli.options import Commands


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
    found = read_sources(arguments, arguments.sources)
    import torch

    from m2v_finetune.catalogue import Embeddings, load_network

    network = load_network(arguments.network)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    embeddings = Embeddings(
        arguments.network,
        network,
        layer=arguments.layer,
        pool=arguments.pool,
        precision=arguments.precision,
        window_seconds=arguments.window_seconds,
    )
    write_table(arguments, embeddings, found, format=arguments.format)
