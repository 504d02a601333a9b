"""What the text of a card is made of: Markdown, numbers and names, and settings without private places."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any


def public_settings(value: Any) -> Any:
    """Return settings without the places of one's own machine.

    Of every string that is an absolute path, or starts at home (``~``) or above the working folder
    (``..``), only the last part is kept. Labels are left as they are.

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


def section(title: str, *parts: str) -> str:
    """Return a section, or nothing if all its parts are empty."""
    body = joined(parts)
    return f"## {title}\n\n{body}" if body else ""


def joined(parts: Sequence[str]) -> str:
    """Return paragraphs, without the empty ones."""
    return "\n\n".join(part for part in parts if part)


def details(summary: str, body: str) -> str:
    """Return a block that is folded up."""
    # Without the empty lines Markdown inside HTML stays as it is.
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(text: str, language: str) -> str:
    """Return a block of code, which may itself have fences."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def escaped(text: str) -> str:
    """Return text as Markdown that shows it as it is, in one line, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


def shown_number(value: float | None) -> str:
    """Return a metric with three digits, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def counted(count: int, noun: str) -> str:
    """Return a number of things, such as ``3 tracks``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def shown_duration(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
