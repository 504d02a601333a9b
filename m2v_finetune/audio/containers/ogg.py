"""Ogg (Vorbis, Opus): the streams of a file, which may be chained one after the other.

Each page has the number of its stream, its own number in it, and the position that it ends at. libsndfile
1.2.2 reads the first stream alone. Where the last page belongs to the first stream, and a few pages, spread
over the file, count upwards, that is all there is; else every page is looked at.

Source: RFC 3533, section 6.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
_MAX_PAGE_BYTES = _HEADER_BYTES + 255 + 255 * 255
_NUM_PROBES = 8
_FIRST, _LAST = 2, 4  # flags


def _checksums() -> tuple[int, ...]:
    """Return the table of the CRC-32 with polynomial 0x04C11DB7, highest bit first."""
    table = []
    for value in range(256):
        checksum = value << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
        table.append(checksum)
    return tuple(table)


_CRC32 = _checksums()


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


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the streams that a file holds, one after the other.

    Raises:
        AudioError: The first or the last page is missing, or cut off.
    """
    end = strip_tags(file, start)
    streams = set()
    for page in _pages(file, start):
        if not page.flags & _FIRST:
            break
        streams.add(page.stream)
    last, before = _last_pages(file, start, end)
    if last is None or last.stop > file.size or not last.flags & _LAST:
        raise truncated(file.path, "the Ogg stream stops without its closing page")
    if last.stream in streams and _counts_upwards(file, start, last):
        return [
            Part(
                start=start,
                stop=file.size if start == 0 else last.stop,
                is_file=start == 0,
                last_page_frame=before,
                samples_stop=last.stop - start,
                rest_bytes=max(0, end - last.stop),
            )
        ]
    starts = []
    is_head = False
    for page in _pages(file, start):
        if page.flags & _FIRST and not is_head:
            starts.append(page.start)
        is_head = bool(page.flags & _FIRST)
    if not starts or starts[0] != start:
        raise AudioError(
            f"{file.path}: damaged: the Ogg stream does not start with its first page. {GET_AGAIN}",
            code="audio-damaged",
        )
    parts = [
        Part(start=begin, stop=stop, last_page_frame=_last_pages(file, begin, stop)[1])
        for begin, stop in zip(starts, [*starts[1:], last.stop], strict=True)
    ]
    parts[-1] = replace(parts[-1], rest_bytes=max(0, end - last.stop))
    return parts


def _page(file: ByteFile, start: int) -> _Page | None:
    """Read the header of a page; None if there is none."""
    header = file.read(start, _HEADER_BYTES + 255)
    if len(header) < _HEADER_BYTES or header[:5] != b"OggS\x00" or header[5] > 7:
        return None
    flags, position, stream, number = struct.unpack_from("<BqII", header, 5)
    lacing = header[_HEADER_BYTES : _HEADER_BYTES + header[26]]
    if len(lacing) < header[26]:
        return None
    stop = start + _HEADER_BYTES + len(lacing) + sum(lacing)
    if flags & _FIRST and not _is_intact(file.read(start, stop - start)):
        return None
    return _Page(start, stop, flags, position, stream, number)


def _is_intact(page: bytes) -> bool:
    """Return True if a page has the checksum that it states; of first pages, which are short."""
    checksum = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        checksum = (checksum << 8 & 0xFFFFFFFF) ^ _CRC32[checksum >> 24 ^ byte]
    return checksum == int.from_bytes(page[22:26], "little")


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


def _last_pages(file: ByteFile, start: int, stop: int) -> tuple[_Page | None, int]:
    """Return the last page before ``stop``, and the frame at which it starts (0 if that is not near)."""
    begin = max(start, stop - 4 * _MAX_PAGE_BYTES)
    pages = []
    for location in file.find(MAGIC, begin, stop):
        if (page := _page(file, location)) is not None:
            pages.append(page)
    if not pages:
        return None, 0
    positions = [
        page.position
        for page in pages[:-1]
        if page.position >= 0 and page.stream == pages[-1].stream
    ]
    return pages[-1], positions[-1] if positions else 0


def _counts_upwards(file: ByteFile, start: int, last: _Page) -> bool:
    """Return True if pages of the last one's stream, spread over the file, are numbered upwards."""
    before = -1
    for probe in range(1, _NUM_PROBES):
        location = start + (last.start - start) * probe // _NUM_PROBES
        for found in file.find(MAGIC, location, min(location + 2 * _MAX_PAGE_BYTES, last.stop)):
            page = _page(file, found)
            if page is None or page.stream != last.stream:
                continue
            if page.number < before or page.flags & _FIRST:
                return False
            before = page.number
            break
    return before <= last.number
