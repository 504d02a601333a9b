"""Helpers for the text of a card: Markdown, numbers, names, and settings without private paths."""

import math
import re
from collections.abc import Mapping
from typing import Any


def public_settings(value: Any) -> Any:
    """Return settings without local paths.

    A string that is an absolute path, or starts with ``~`` or ``..``, is reduced to its last part. Labels
    do not change.

    >>> public_settings({"data": {"source": "/home/me/songs.csv"}, "backbone": {"source": "me/x"}})
    {'data': {'source': 'songs.csv'}, 'backbone': {'source': 'me/x'}}
    """
    if isinstance(value, Mapping):
        return {k: v if k == "labels" else public_settings(v) for k, v in value.items()}
    if isinstance(value, list):
        return [public_settings(item) for item in value]
    if isinstance(value, str) and re.match(r"/|\\|~|\.\.|[A-Za-z]:[/\\]", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def fenced(text: str, language: str) -> str:
    """Return a block of code, which may itself have fences."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Return text with Markdown escaped, in one line, for use inside a table too."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


def shown_number(value: float | None) -> str:
    """Return a metric with three digits, or a dash if it is undefined."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``3 tracks``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def shown_duration(seconds: float) -> str:
    """Return a duration in a suitable unit."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
