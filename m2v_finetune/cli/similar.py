"""`m2v similar`."""

import argparse
from pathlib import Path

from m2v_finetune.cli.options import Commands, count, print_utf8, warn


def add_commands(commands: Commands) -> None:
    """Add `similar` to the parser's subcommands."""
    similar = commands.add_parser(
        "similar",
        help="find the nearest tracks in a table of embeddings",
        description="Prints the tracks of a table of `m2v embed` that are nearest to a track: the cosine of "
        "their vectors, id and path, the nearest first, separated by tabs. The search is exact below a "
        "million tracks. From there on it uses an approximate index, which the first search builds, below "
        "~/.cache/m2v-finetune/similar (or the folder that the environment variable M2V_CACHE names); it "
        "needs the extra `similar`.",
    )
    similar.add_argument("table", type=Path, metavar="DIR", help="folder of the table")
    similar.add_argument(
        "query",
        help="id or path of a track in the table, or another audio file, which is embedded with the backbone "
        "that the table names",
    )
    similar.add_argument(
        "--top", type=count, default=10, help="number of tracks (default: %(default)s)"
    )
    similar.add_argument(
        "--max-cosine",
        type=float,
        help="leave out duplicates and other versions of a recording: tracks whose cosine with the query, or "
        "with a track above them in the list, is greater than this, such as 0.99 (default: none is left out)",
    )
    similar.add_argument(
        "--playlist", type=Path, help="new file .m3u with the query and the tracks found"
    )
    similar.set_defaults(command=_similar)


def _similar(arguments: argparse.Namespace) -> None:
    from m2v_finetune.data.values import printable
    from m2v_finetune.similarity import (
        VectorTable,
        check_playlist,
        query_file,
        similar_tracks,
        write_playlist,
    )

    if arguments.playlist is not None:
        check_playlist(arguments.playlist)
    print_utf8()
    table = VectorTable.open(arguments.table)
    found = similar_tracks(
        table, arguments.query, top=arguments.top, max_cosine=arguments.max_cosine
    )
    for one in found:
        print(f"{one.cosine:.4f}\t{printable(one.id)}\t{printable(one.path)}")
    if len(found) < arguments.top:
        warn(f"{arguments.table} has no more tracks that can be compared and are not left out.")
    if arguments.playlist is not None:
        own = query_file(table, arguments.query)
        write_playlist(arguments.playlist, [own, *((one.path, one.duration) for one in found)])
