"""Paths in manifests: the rule for legal paths, and suggestions for paths that do not exist."""

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Literal
from urllib.parse import unquote

PathRule = Literal["any", "own", "foreign"]
"""Rule for paths of a manifest: anywhere; not out of its folder, unless they are absolute (a manifest
of one's own); or never out of it, by links neither (a data set of the Hub)."""


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


def did_you_mean(path: Path) -> str:
    """Return a sentence that suggests a similar path; empty where it exists, or nothing is like it.

    Names are compared without upper and lower case, spaces around them, their Unicode form and their suffix;
    backslashes, ``~``, ``file://`` and ``%20`` are understood.

    Args:
        path: Absolute path that ends with the written text.
    """
    if os.path.lexists(path):
        return ""
    for meant in _readings(str(path)):
        found = _closest(meant)
        if found is not None:
            return f" Did you mean {str(found)!r}{_invisible(str(path), str(found))}?"
    return ""


def _readings(text: str) -> Iterator[str]:
    yield text
    if "\\" in text:
        yield text.replace("\\", "/")
    _, mark, rest = text.partition("/~")
    if mark:
        yield os.path.expanduser(f"~{rest}")  # noqa: PTH111 (Path raises if there is no such home)
    _, mark, rest = text.partition("/file:")
    if mark:
        yield unquote(f"/{rest.lstrip('/')}")
    elif "%" in text:
        yield unquote(text)


def _closest(text: str) -> Path | None:
    """Return the path that exists and is like a text, part by part; None where there is none."""
    root, *parts = Path(text).parts or ("",)
    current = Path(root)
    for number, part in enumerate(parts, start=1):
        if os.path.lexists(current / part):
            current /= part
            continue
        names = _names(current)
        alike = [name for name in names if _folded(name) == _folded(part)]
        if not alike and number == len(parts):
            stems = {_folded(PurePath(part).stem), _folded(part)}
            alike = [name for name in names if _folded(PurePath(name).stem) in stems]
        if not alike:
            return None
        current /= alike[0]
    return current


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def _invisible(given: str, found: str) -> str:
    """Return the difference between two paths where it cannot be seen."""
    if unicodedata.normalize("NFC", given) == unicodedata.normalize("NFC", found):
        return " (the same name in another Unicode form: NFC and NFD)"
    given_parts, found_parts = Path(given).parts, Path(found).parts
    if [part.strip() for part in given_parts] == [part.strip() for part in found_parts]:
        return " (there are other spaces around a name)"
    return ""


def _names(folder: Path) -> tuple[str, ...]:
    try:
        return _listing(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=16)
def _listing(folder: Path, mtime_ns: int) -> tuple[str, ...]:
    """Return the names in a folder as it was last changed, sorted."""
    return tuple(sorted(os.listdir(folder)))  # noqa: PTH208 (names are enough)
