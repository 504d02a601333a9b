"""Ogg (Vorbis, Opus): the streams of a file, which may be chained one after the other.

Each page has a checksum, the number of its stream, its own number in it, and the position that it ends at.
libsndfile 1.2.2 reads the first stream alone, and moves the sound after a lost page towards the start. So
every page is read, and the pages of a stream must be numbered without a gap, from its first to its last.

Decoders seek by the positions. libsndfile cuts a stream whose positions count fewer frames than its packets
have, by another amount after a seek than from the start. So the frames of the packets are counted, and where
the positions do not agree the decoder gets others: all frames are read, as by ffmpeg.

Source: RFC 3533, section 6.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from m2v_finetune.audio.containers.ogg_packets import FrameCounter, frame_counter
from m2v_finetune.audio.containers.source import (
    GET_AGAIN,
    TOLERANCE_FRAMES,
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

# Where the fields from the position to the checksum start and end, and where the checksum starts.
_FIELDS_START, _FIELDS_STOP, _CHECKSUM = 6, 26, 22
_NO_POSITION = -1

# Positions from timestamps in milliseconds are less far from the frames; most packets are longer.
_MAX_DRIFT_SECONDS = 0.004

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
        content: Its bytes.
    """

    start: int
    stop: int
    flags: int
    position: int
    stream: int
    number: int
    content: bytes


class _End(NamedTuple):
    """End of a page on which a packet of sound ends.

    Attributes:
        start: Offset of the page.
        stop: Offset after it.
        stated: Its position.
        counted: Frames of the packets up to its end.
    """

    start: int
    stop: int
    stated: int
    counted: int

    @property
    def excess(self) -> int:
        """Frames that the position has more than the packets."""
        return self.stated - self.counted


@dataclass(slots=True)
class _Positions:
    """Positions of the pages of one stream.

    Attributes:
        counter: Frames of the packets.
        ends: Pages on which packets of sound end.
        is_closed: True if the last one is the last of the stream: it may leave frames out.
    """

    counter: FrameCounter
    ends: list[_End] = field(default_factory=list)
    is_closed: bool = False

    def add(self, page: _Page) -> None:
        """Add a page of the stream."""
        self.counter.add(page.content)
        if self.counter.has_sound and page.position != _NO_POSITION:
            self.ends.append(_End(page.start, page.stop, page.position, self.counter.num_frames))
            self.is_closed = bool(page.flags & _LAST)

    def patches(self, file: ByteFile) -> list[tuple[int, bytes]]:
        """Return bytes in place of those of the file, by offset: positions that count all frames.

        Raises:
            AudioError: Between two pages more or fewer frames are stated than there are.
        """
        inner = self.ends[:-1] if self.is_closed else self.ends
        last = self.ends[-1] if self.is_closed else None
        if not inner:
            return []
        first = inner[0].excess
        is_right = all(end.excess == first for end in inner)
        if first >= 0 and is_right and (last is None or last.excess <= first):
            return []
        max_drift = _MAX_DRIFT_SECONDS * self.counter.rate
        for end in self.ends:
            drift = end.excess - first
            if drift > TOLERANCE_FRAMES if end is last else abs(drift) > max_drift:
                raise _damaged(
                    file,
                    end.start,
                    f"a page ends at frame {end.stated - first} by its position, and at {end.counted} by "
                    "its packets",
                )
        patches = [_patch(file, end, end.counted) for end in inner]
        if last is not None:
            stop = max(inner[-1].counted, last.stated - first)
            patches.append(_patch(file, last, min(stop, last.counted)))
        return patches


@dataclass(slots=True)
class _Chain:
    """Stream, or several with the same start, of which one is decoded.

    Attributes:
        start: Offset of the first page.
        stop: Offset after the last.
        positions: Positions of each stream of Vorbis or Opus, by its number.
        last_page_frame: Frame at which the last page starts.
    """

    start: int
    stop: int
    positions: dict[int, _Positions] = field(default_factory=dict)
    last_page_frame: int = 0


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the streams that a file holds, one after the other.

    Raises:
        AudioError: A page is missing, damaged, or cut off, or ends at another time than its packets.
    """
    chains: list[_Chain] = []
    following: dict[int, int] = {}  # number of the next page of each stream that is not closed
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
        is_head = is_first
        chain = chains[-1]
        chain.stop = stop = page.stop
        counter = frame_counter(page.content) if is_first else None
        if counter is not None:
            chain.positions[page.stream] = _Positions(counter)
        positions = chain.positions.get(page.stream)
        if positions is not None:
            chain.last_page_frame = positions.counter.num_frames
            positions.add(page)
        following[page.stream] = (page.number + 1) % 2**32
        if page.flags & _LAST:
            del following[page.stream]
    if not chains or following:
        raise truncated(file.path, "the Ogg stream stops without its closing page")
    rest_bytes = max(0, strip_tags(file, start) - stop)
    return [
        _part(file, chain, is_only=start == 0 and len(chains) == 1, rest_bytes=rest)
        for chain, rest in zip(chains, [0] * (len(chains) - 1) + [rest_bytes], strict=True)
    ]


def _part(file: ByteFile, chain: _Chain, *, is_only: bool, rest_bytes: int) -> Part:
    """Return a stream with positions that count its frames."""
    patches = [patch for positions in chain.positions.values() for patch in positions.patches(file)]
    return Part(
        start=chain.start,
        stop=file.size if is_only else chain.stop,
        is_file=is_only and not patches,
        samples_stop=chain.stop - chain.start,
        last_page_frame=chain.last_page_frame,
        rest_bytes=rest_bytes,
        patches=tuple(sorted(patches)),
    )


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
    content = file.read(start, stop - start)
    if _checksum(content) != content[_CHECKSUM:_FIELDS_STOP]:
        return None
    return _Page(start, stop, flags, position, stream, number, content)


def _checksum(page: bytes) -> bytes:
    """Return the checksum that a page has to state."""
    content = (page[:_CHECKSUM] + bytes(4) + page[_FIELDS_STOP:]).translate(_REVERSED)
    checksum = zlib.crc32(content, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(_REVERSED)


def _patch(file: ByteFile, end: _End, position: int) -> tuple[int, bytes]:
    """Return where a page's fields from its position to its checksum are, and those with another position."""
    page = file.read(end.start, end.stop - end.start)
    stop = _FIELDS_START + 8
    page = page[:_FIELDS_START] + position.to_bytes(8, "little") + page[stop:]
    return end.start + _FIELDS_START, page[_FIELDS_START:_CHECKSUM] + _checksum(page)


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
