"""Ogg (Vorbis, Opus): the streams of a file, which may be chained one after the other.

Each page has a checksum, the number of its stream, its own number in it, and the position that it ends at.
libsndfile 1.2.2 reads the first stream alone, and moves the sound after a lost page towards the start. So
every page is read, and the pages of a stream must be numbered without a gap, from its first to its last.

Source: RFC 3533, section 6.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from m2v_finetune.audio.containers.source import (
    GET_AGAIN,
    ByteFile,
    Part,
    skip_tags,
    strip_tags,
    truncated,
)
from m2v_finetune.errors import AudioError

MAGIC = b"OggS"
_HEADER_BYTES = 27
_FIRST, _LAST = 2, 4  # flags

# Between streams so few bytes are junk.
_FEW_BYTES = 4096

# Bytes with their bits in reverse: the CRC-32 of Ogg takes the highest bit first, that of zlib the lowest.
_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True, slots=True)
class _Page:
    """Header of a page.

    Attributes:
        start: Offset of its first byte.
        stop: Offset after its last.
        flags: First and last page of a stream, among others.
        position: Frames up to its end; -1 if no packet ends on it.
        stream: Number of its stream.
        number: Its own, in the stream.
    """

    start: int
    stop: int
    flags: int
    position: int
    stream: int
    number: int


@dataclass(slots=True)
class _Chain:
    """Stream, or several with the same start, of which one is decoded.

    Attributes:
        start: Offset of the first page.
        stop: Offset after the last.
        last_page_frame: Frame at which the last page starts.
    """

    start: int
    stop: int
    last_page_frame: int = 0


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the streams that a file holds, one after the other.

    Raises:
        AudioError: A page is missing, damaged, or cut off.
    """
    chains: list[_Chain] = []
    following: dict[int, int] = {}  # number of the next page of each stream that is not closed
    positions: dict[int, int] = {}
    is_head = False
    stop = start
    for page in _pages(file, start):
        if not following:
            stop = min(page.start, skip_tags(file, stop))
        is_first = bool(page.flags & _FIRST)
        if not is_first and page.stream not in following:
            raise _damaged(file, page.start, "a stream does not start with its first page")
        if not is_first and page.number != following[page.stream]:
            raise _damaged(file, stop, f"the page before page {page.number} is missing")
        junk_bytes = page.start - stop
        if junk_bytes and (following or not chains or junk_bytes > _FEW_BYTES):
            raise _damaged(file, stop, f"{junk_bytes} bytes are no page")
        if is_first and not is_head:
            if following:
                raise _damaged(file, stop, "a stream stops without its last page")
            chains.append(_Chain(page.start, page.stop))
            positions = {}
        is_head = is_first
        chains[-1].stop = stop = page.stop
        chains[-1].last_page_frame = positions.get(page.stream, 0)
        if page.position >= 0:
            positions[page.stream] = page.position
        following[page.stream] = (page.number + 1) % 2**32
        if page.flags & _LAST:
            del following[page.stream]
    if not chains or following:
        raise truncated(file.path, "the Ogg stream stops without its closing page")
    rest_bytes = max(0, strip_tags(file, start) - stop)
    is_file = start == 0 and len(chains) == 1
    return [
        Part(
            start=chain.start,
            stop=file.size if is_file else chain.stop,
            is_file=is_file,
            samples_stop=chain.stop - chain.start,
            last_page_frame=chain.last_page_frame,
            rest_bytes=rest_bytes if chain is chains[-1] else 0,
        )
        for chain in chains
    ]


def _damaged(file: ByteFile, location: int, what: str) -> AudioError:
    return AudioError(
        f"{file.path}: damaged: in the Ogg stream, at byte {location}, {what}. {GET_AGAIN}",
        code="audio-damaged",
    )


def _page(file: ByteFile, start: int) -> _Page | None:
    """Read the header of a page, and compare its checksum; None if there is no page."""
    header = file.read(start, _HEADER_BYTES + 255)
    if len(header) < _HEADER_BYTES or header[:5] != b"OggS\x00" or header[5] > 7:
        return None
    flags, position, stream, number = struct.unpack_from("<BqII", header, 5)
    lacing = header[_HEADER_BYTES : _HEADER_BYTES + header[26]]
    stop = start + _HEADER_BYTES + len(lacing) + sum(lacing)
    if not _is_intact(file.read(start, stop - start)):
        return None
    return _Page(start, stop, flags, position, stream, number)


def _is_intact(page: bytes) -> bool:
    """Return True if a page has the checksum that it states."""
    content = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED)
    checksum = zlib.crc32(content, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum == int.from_bytes(page[22:26].translate(_REVERSED), "big")


def _pages(file: ByteFile, start: int) -> Iterator[_Page]:
    """Yield the pages from an offset on."""
    while start < file.size:
        page = _page(file, start)
        if page is None:
            following = skip_tags(file, start)
            if following == start:
                following = next(file.find(MAGIC, start + 1, file.size), file.size)
            start = following
        else:
            yield page
            start = page.stop
