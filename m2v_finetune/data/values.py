"""Values of a manifest's columns: missing values, and conversion to text.

A CSV gives text, a JSONL or a table of the Hub numbers, booleans and lists too. One rule holds for labels,
groups and ids: a value is missing only if it is absent, null or blank, and it is compared as text.
"""

import json
import math
import re
import unicodedata
from collections.abc import Collection
from typing import Any


def is_missing(value: Any) -> bool:
    """Return True if a value is null (None, NaN) or blank text; 0 and False are values.

    >>> [is_missing(value) for value in (None, float("nan"), "", " ", 0, False, 0.0, [])]
    [True, True, True, True, False, False, False, False]
    """
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: str | int | float) -> str:
    """Return text, a number or a boolean as text: booleans as in JSON, integers without a point.

    A column of integers becomes one of floats if a table has a gap in it, so 1.0 is 1.

    >>> [as_text(value) for value in ("1", 1, 1.0, 0.5, True, " a ")]
    ['1', '1', '1', '0.5', 'true', ' a ']
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)


def as_texts(value: Any) -> list[str]:
    """Return the labels, or groups, in a cell: a list as it is, text split at ``;``, else the one value.

    Spaces around a label are dropped, and so are missing ones. Equal text in different Unicode forms, as
    macOS and Linux write it, is one label.

    >>> as_texts(" rock; pop ;"), as_texts(["a;b", 1980, None]), as_texts(False), as_texts(None)
    (['rock', 'pop'], ['a;b', '1980'], ['false'], [])

    Raises:
        ValueError: The cell holds something else, such as an object; the message names it.
    """
    if isinstance(value, str):
        parts: Any = value.split(";")
    else:
        parts = value if isinstance(value, list | tuple) else [value]
    for part in parts:
        if not isinstance(part, str | int | float | None):
            raise ValueError(f"{part!r}, which is neither text nor a number")
        if isinstance(part, str) and len(part.strip().splitlines()) > 1:
            raise ValueError(f"{part!r}, which has a line break: a quote may not be closed")
    return [label_text(as_text(part)) for part in parts if not is_missing(part)]


def label_text(text: str) -> str:
    """Return a label as labels are compared: without spaces around it, in Unicode's composed form."""
    return unicodedata.normalize("NFC", printable(text)).strip()


def printable(text: str) -> str:
    r"""Return text that any file and terminal takes: bytes of a file name that are not UTF-8 are escaped.

    >>> printable(b"caf\xe9.wav".decode(errors="surrogateescape")), printable("café")
    ('caf\\udce9.wav', 'café')
    """
    return text.encode("utf-8", "backslashreplace").decode()


def unprinted(text: str) -> str:
    r"""Return the file name that `printable` made this text of.

    >>> unprinted("caf\\udce9.wav") == b"caf\xe9.wav".decode(errors="surrogateescape")
    True
    """
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), text)


def named(columns: Collection[str], name: str) -> str | None:
    """Return the column of a name, whatever its upper and lower case. A manifest has one (`manifest`).

    >>> named(["Split", "tags"], "split"), named(["tags"], "split")
    ('Split', None)
    """
    return next((column for column in columns if column.strip().lower() == name.lower()), None)
