"""Suggestions for paths that do not exist."""

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath
from urllib.parse import unquote


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
