"""AAC in ADTS frames, each of which states rate and channels.

Files that were joined by `cat` are one stream to ffmpeg, which mixes and resamples those of another layout to
that of the first. So each stretch of one layout is a part of its own.

Source: ISO 13818-7, section 6.2.
"""

from collections.abc import Iterator
from itertools import pairwise

from m2v_finetune.audio.containers.source import ByteFile, Part

_HEADER_BYTES = 7
_BLOCK_BYTES = 1 << 22

# Behind a gap, so many frames of one layout follow each other: others are bytes that look like a header.
_CHAIN = 4


def is_head(head: bytes) -> bool:
    """Recognise the header of a frame by its first two bytes."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the stretches of one layout; frames are without a header, so ffmpeg reads one to its end."""
    starts: list[int] = []
    before: tuple[int, int] | None = None
    for location, layout in _frames(file, start):
        if layout != before:
            starts.append(location)
        before = layout
    if len(starts) < 2:
        return [Part(start=start, stop=file.size, is_file=True)]
    return [Part(start=begin, stop=stop) for begin, stop in pairwise([*starts, file.size])]


def _frames(file: ByteFile, start: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield offset and layout of each frame; those behind a gap too, if several follow each other."""
    position: int | None = start
    while position is not None:
        for location, layout, stop in _chain(file, position):
            yield location, layout
            position = stop
        gap = file.find(b"\xff", position, file.size)
        position = next((location for location in gap if _is_chain(file, location)), None)


def _is_chain(file: ByteFile, start: int) -> bool:
    """Return True if frames of one layout follow each other, four or up to the end of the file."""
    layout = None
    for _ in range(_CHAIN):
        frame = _parse(file.read(start, _HEADER_BYTES))
        if frame is None or (layout or frame[0]) != frame[0]:
            return False
        layout, start = frame[0], start + frame[1]
        if start >= file.size:
            return start == file.size
    return True


def _chain(file: ByteFile, position: int) -> Iterator[tuple[int, tuple[int, int], int]]:
    """Yield offset, layout and end of each frame, while they follow each other."""
    block_start, block = position, b""
    while True:
        location = position - block_start
        if location + _HEADER_BYTES > len(block):
            block_start, block = position, file.read(position, _BLOCK_BYTES)
            location = 0
        frame = _parse(block[location : location + _HEADER_BYTES])
        if frame is None:
            return
        layout, num_bytes = frame
        yield position, layout, position + num_bytes
        position += num_bytes


def _parse(header: bytes) -> tuple[tuple[int, int], int] | None:
    """Return layout (index of the rate, number of channels) and length of a frame; None if it is none."""
    if len(header) < _HEADER_BYTES or not is_head(header):
        return None
    rate, channels = header[2] >> 2 & 15, (header[2] & 1) << 2 | header[3] >> 6
    num_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return ((rate, channels), num_bytes) if rate < 13 and num_bytes > _HEADER_BYTES else None
