"""Licences in the metadata of cards on the Hub, which have room for one identifier."""

from collections.abc import Iterable, Mapping
from typing import Any

AND = " AND "
"""Joins licences that hold together, as in SPDX."""
OTHER = "other"


def joined(licences: Iterable[str]) -> str:
    """Return the licences of several works as one; empty if one of them is unknown."""
    each = {one for licence in licences for one in licence.split(AND)}
    return "" if "" in each else AND.join(sorted(each))


def licence_metadata(licence: str) -> dict[str, Any]:
    """Return the metadata of a licence: several are ``other``, with their names.

    >>> licence_metadata("apache-2.0")
    {'license': 'apache-2.0'}
    >>> licence_metadata("apache-2.0 AND cc-by-sa-4.0")
    {'license': 'other', 'license_name': 'apache-2.0 AND cc-by-sa-4.0'}
    """
    if not licence:
        return {}
    return {"license": OTHER, "license_name": licence} if AND in licence else {"license": licence}


def licence_of(metadata: Mapping[str, Any]) -> str:
    """Return the licence in metadata; the name of one that is ``other``, empty if there is none."""
    licence = metadata.get("license") or ""
    if licence == OTHER:
        licence = metadata.get("license_name") or OTHER
    return str(licence)
