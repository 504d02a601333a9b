"""Formats of chunks, and the first bytes of the containers that have them, or a header with one size."""

from dataclasses import dataclass
from typing import Literal

Order = Literal["little", "big"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Chunk format of a container.

    Attributes:
        first: Offset of the first chunk.
        id_bytes: Length of a chunk's name.
        size_bytes: Length of its size.
        byteorder: Byte order of the size.
        align: Chunks start at multiples of it.
        data: Start of the name of the chunk with the samples.
        overhead: Bytes in the size of that chunk beside the samples.
        counts_header: True if the size of a chunk includes its name and size.
    """

    first: int = 12
    id_bytes: int = 4
    size_bytes: int = 4
    byteorder: Order = "little"
    align: int = 2
    data: bytes = b"data"
    overhead: int = 0
    counts_header: bool = False


# Sources: Multimedia Programming Interface 1.0 (RIFF); EBU Tech 3306 (RF64); Sony Pictures Digital,
# Wave64; Apple, AIFF-C draft 1991 and Core Audio Format 1.0.
STYLES = {
    b"RIFF": Style(),
    b"RIFX": Style(byteorder="big"),
    b"RF64": Style(),
    b"BW64": Style(),
    b"AIFF": Style(byteorder="big", data=b"SSND", overhead=8),
    b"AIFC": Style(byteorder="big", data=b"SSND", overhead=8),
    b"riff": Style(first=40, id_bytes=16, size_bytes=8, align=8, counts_header=True),
    b"caff": Style(first=8, size_bytes=8, byteorder="big", align=1, overhead=4),
}


def kind(head: bytes) -> bytes | None:
    """Return the key of a container by its first 12 bytes, or None if it is none of these."""
    if head[:4] == b"FORM":
        return head[8:12] if head[8:12] in STYLES else None
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return head[:4] if head[8:12] == b"WAVE" else None
    if head[:4] == b"riff":
        # Source: Wave64, the GUID of the complete file.
        return b"riff" if head[4:12] == b"\x2e\x91\xcf\x11\xa5\xd6\x28\xdb" else None
    if head[:4] in (b"caff", b".snd", b"dns."):
        return head[:4]
    return b"NIST" if head[:7] == b"NIST_1A" else None
