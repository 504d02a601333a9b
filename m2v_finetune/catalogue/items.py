"""Track of a catalogue."""

from typing import NamedTuple


class Item(NamedTuple):
    """Track of a catalogue.

    Attributes:
        id: Unique id, printable: the column ``id`` of a manifest; else the path as the source writes it,
            which is relative to the folder for the files of a folder.
        path: Path of the audio file, absolute; or its address in an object store.
    """

    id: str
    path: str
