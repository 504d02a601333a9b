"""Playlists in the format of M3U: a path on a line, in UTF-8."""

import os
from collections.abc import Sequence
from pathlib import Path

from m2v_finetune.data.paths import absolute
from m2v_finetune.data.values import unprinted
from m2v_finetune.errors import UserError
from m2v_finetune.files import write_atomically

SUFFIXES = (".m3u", ".m3u8")


def check_playlist(path: Path) -> None:
    """Raise `UserError` if a playlist cannot be written: there is a file, no folder, or another suffix."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"--playlist {path} has the suffix '{path.suffix}'. Playlists are written as "
            f"{' or '.join(SUFFIXES)}.",
            code="playlist-suffix",
        )
    if path.exists():
        raise UserError(
            f"--playlist {path} exists. Nothing is overwritten; name another file.",
            code="playlist-exists",
        )
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"There is no folder {path.parent} for --playlist. Create it first.",
            code="playlist-no-parent",
        )


def write_playlist(path: Path, tracks: Sequence[tuple[str, float | None]]) -> None:
    """Write a playlist; paths become absolute, and addresses such as ``s3://`` stay.

    Args:
        path: New file, .m3u or .m3u8.
        tracks: Path of each track, and its length in seconds if that is known.

    Raises:
        UserError: It cannot be written, or a path has a line break, which the format cannot hold.
    """
    check_playlist(path)
    lines = ["#EXTM3U"]
    for name, duration in tracks:
        file = name if "://" in name else _real_path(name)
        if len(file.splitlines()) != 1:
            raise UserError(
                f"The path {file!r} has a line break, and a playlist is a path on a line. Rename the file.",
                code="playlist-line-break",
            )
        seconds = -1 if duration is None else round(duration)
        lines += [f"#EXTINF:{seconds},{Path(file).stem}", file]
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def _real_path(name: str) -> str:
    """Return the absolute path of a file; a table has escapes in place of bytes that are not UTF-8."""
    path = Path(absolute(name))
    real = Path(unprinted(str(path)))
    return str(path if os.path.lexists(path) else real)
