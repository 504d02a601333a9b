"""Rule for legal paths in manifests."""

import os
from pathlib import Path, PurePath
from typing import Literal

PathRule = Literal["any", "own", "foreign"]
"""Rule for paths of a manifest: anywhere; not out of its folder, unless they are absolute (a manifest
of one's own); or never out of it, by links neither (a data set of the Hub)."""


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path of the file that the system opens by a path.

    ``a/../b`` is ``b`` only where ``a`` is no link, so folders with ``..`` in them are resolved.

    >>> absolute("/music/./a//b.wav"), absolute("/music/none/../b.wav")
    ('/music/a/b.wav', '/music/b.wav')
    """
    text = os.fspath(path)
    folder, name = os.path.split(text)
    if name == "..":
        return os.path.realpath(text)
    if ".." in PurePath(folder).parts:
        return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118 (of text)
    return os.path.abspath(text)  # noqa: PTH100 (resolve() is slow for many)


def path_problem(written: str, folder: Path, rule: PathRule) -> str | None:
    """Return the problem of a path of a manifest that leads out of its folder against the rule.

    Args:
        written: Path as the manifest has it.
        folder: Folder of the manifest.
        rule: Rule for the path.

    >>> path_problem("a/../b.wav", Path("/music"), "own")
    >>> path_problem("../b.wav", Path("/music"), "own")[:45]
    "'../b.wav' leads out of the folder /music. Se"
    >>> path_problem("/b.wav", Path("/music"), "foreign")
    "'/b.wav' leads out of the folder /music, as no path of a data set of the Hub may"
    """
    if "\0" in written:
        return f"{written!r} holds a NUL character, as no path may"
    if rule == "any" or (rule == "own" and PurePath(written).is_absolute()):
        return None
    problem = f"'{written}' leads out of the folder {folder}"
    is_inside = _is_inside(os.path.normpath(folder / written), os.path.normpath(folder))
    if rule == "own":
        advice = "Set data.allow_outside if it may, or write an absolute path"
        return None if is_inside else f"{problem}. {advice}"
    # The cache of the Hub links its files from the folder `blobs` beside `snapshots`.
    roots = [folder, folder.parent.parent / "blobs"]
    real = os.path.realpath(folder / written)
    is_real = any(_is_inside(real, os.path.realpath(root)) for root in roots)
    return None if is_inside and is_real else f"{problem}, as no path of a data set of the Hub may"


def _is_inside(path: str, root: str) -> bool:
    return PurePath(path).is_relative_to(root)
