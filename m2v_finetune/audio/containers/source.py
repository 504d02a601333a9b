"""Bytes of a file, the parts of it that are decoded, and tags, which are not audio."""

import io
import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from m2v_finetune.errors import AudioError

GET_AGAIN = "Get the file again, or remove it from the data."

# How far the end of a file may be before the end that its header states: two MPEG frames.
TOLERANCE_FRAMES = 2304

ID3V1_BYTES = 128

_BLOCK_BYTES = 1 << 20


class ByteFile:
    """File that is read at offsets, without a position.

    Attributes:
        path: Its path.
        size: Its size in bytes.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self._number = file.fileno()

    def read(self, start: int, num_bytes: int) -> bytes:
        """Return bytes from an offset on; fewer at the end of the file."""
        content = os.pread(self._number, max(0, num_bytes), start)
        while content and len(content) < num_bytes:
            more = os.pread(self._number, num_bytes - len(content), start + len(content))
            if not more:
                break
            content += more
        return content

    def find(self, pattern: bytes, start: int, stop: int) -> Iterator[int]:
        """Yield the offset of each occurrence of a pattern between two offsets."""
        overlap = len(pattern) - 1
        while start < stop:
            block = self.read(start, min(_BLOCK_BYTES + overlap, stop - start))
            location = block.find(pattern)
            while location >= 0:
                yield start + location
                location = block.find(pattern, location + 1)
            start += _BLOCK_BYTES

    def end_of_zeros(self, start: int) -> int:
        """Return the offset of the first byte from ``start`` on that is not zero."""
        while start < self.size:
            block = self.read(start, _BLOCK_BYTES)
            rest = block.lstrip(b"\0")
            start += len(block) - len(rest)
            if rest:
                break
        return start


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Stretch of a file that is decoded as a file of its own.

    Attributes:
        start: First byte, after those that ``head`` replaces.
        stop: Byte after the last.
        head: Bytes that come before those of the file: a header that states the content.
        is_file: True if the decoder can read the file itself.
        samples_start: First byte of the samples or packets, counted in the decoder's input.
        samples_stop: Byte after their last; None if the structure does not state it.
        missing_bytes: Bytes of samples that the header states and the file does not have.
        rest_bytes: Bytes that follow the samples and are neither tags nor chunks.
        num_frames: Number of frames that there are; None where the decoder counts them.
        last_page_frame: Frame at which the last page of an Ogg stream starts.
        max_drift_seconds: Deviation of the length from the timestamps that is no damage; None without any.
        patches: Bytes in place of those of the file, by their offset in it, in order, without an overlap.
        gaps: Start and stop of stretches of the file between first and last byte that are left out, in order.
    """

    start: int
    stop: int
    head: bytes = b""
    is_file: bool = False
    samples_start: int = 0
    samples_stop: int | None = None
    missing_bytes: int = 0
    rest_bytes: int = 0
    num_frames: int | None = None
    last_page_frame: int | None = None
    max_drift_seconds: float | None = None
    patches: tuple[tuple[int, bytes], ...] = ()
    gaps: tuple[tuple[int, int], ...] = ()

    @property
    def num_bytes(self) -> int:
        """Length of the decoder's input."""
        return len(self.head) + sum(stop - start for start, stop in self.stretches)

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """Start and stop of the stretches of the file that are read, in order."""
        starts = [self.start, *(stop for _, stop in self.gaps)]
        stops = [*(start for start, _ in self.gaps), self.stop]
        return list(zip(starts, stops, strict=True))


class PartFile(io.RawIOBase):
    """Part of a file as a file.

    Args:
        path: Complete file.
        part: Part to read.
    """

    def __init__(self, path: Path, part: Part) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._part = part
        self._num_bytes = part.num_bytes
        self._stretches = part.stretches
        # Where each stretch starts in the part.
        lengths = [stop - start for start, stop in self._stretches]
        self._starts = list(accumulate(lengths[:-1], initial=len(part.head)))
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the part."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the part."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}
        self._position = max(0, base[whence] + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer from the position on; return the number of bytes."""
        content = self._part.head[self._position : self._position + len(buffer)]
        self._position += len(content)
        while wanted := min(len(buffer) - len(content), max(0, self._num_bytes - self._position)):
            number = bisect_right(self._starts, self._position) - 1
            start, stop = self._stretches[number]
            offset = start + self._position - self._starts[number]
            block = os.pread(self._file.fileno(), min(wanted, stop - offset), offset)
            if not block:
                break
            content += self._patched(block, offset)
            self._position += len(block)
        buffer[: len(content)] = content
        return len(content)

    def _patched(self, content: bytes, offset: int) -> bytes:
        """Return bytes of the file at an offset with those of the patches."""
        patches = self._part.patches
        number = max(0, bisect_right(patches, offset, key=itemgetter(0)) - 1)
        stop = offset + len(content)
        while number < len(patches) and patches[number][0] < stop:
            start, other = patches[number]
            other = other[max(0, offset - start) : stop - start]
            location = max(0, start - offset)
            content = content[:location] + other + content[location + len(other) :]
            number += 1
        return content

    def close(self) -> None:
        """Close the complete file."""
        self._file.close()
        super().close()


def skip_tag(file: ByteFile, start: int) -> int:
    """Return the offset after a tag (ID3v2, APEv2 with a header, ID3v1) at ``start``; without, ``start``."""
    head = file.read(start, 32)
    if head[:3] == b"ID3" and len(head) >= 10 and all(byte < 128 for byte in head[6:10]):
        # Source: ID3v2.4, sections 3.1 and 3.4: seven bits a byte; a footer has the size of the header.
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        stop = start + 10 + size + (10 if head[5] & 0x10 else 0)
    elif head[:8] == b"APETAGEX" and len(head) == 32:
        # Source: APEv2 specification: the size counts items and footer, not the header.
        stop = start + 32 + int.from_bytes(head[12:16], "little")
    elif head[:3] == b"TAG" and file.size - start == ID3V1_BYTES:
        stop = file.size
    else:
        return start
    return stop if stop <= file.size else start


def skip_tags(file: ByteFile, start: int) -> int:
    """Return the offset of the first byte from ``start`` on that is neither tag nor zero."""
    while True:
        after = file.end_of_zeros(skip_tag(file, start))
        if after == start:
            return start
        start = after


def strip_tags(
    file: ByteFile, start: int, *, stop: int | None = None, strip_zeros: bool = True
) -> int:
    """Return the offset after the last byte that is not of a tag at the end (ID3v1, APEv2, Lyrics3), or zero.

    Args:
        file: File.
        start: Start of the sound; the result is not before it.
        stop: The end; by default that of the file.
        strip_zeros: True if zeros count as padding: samples may be zero.
    """
    stop = file.size if stop is None else stop
    while stop > start:
        num_bytes = min(ID3V1_BYTES, stop - start)
        tail = file.read(stop - num_bytes, num_bytes)
        before = stop
        if len(tail) == ID3V1_BYTES and tail[:3] == b"TAG":
            stop -= ID3V1_BYTES
        elif tail[-32:-24] == b"APETAGEX":
            footer = tail[-32:]
            has_header = footer[23] & 0x80
            stop -= int.from_bytes(footer[12:16], "little") + (32 if has_header else 0)
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            stop -= int(tail[-15:-9]) + 15
        elif strip_zeros and tail[-1:] == b"\0":
            block_start = max(start, stop - _BLOCK_BYTES)
            stop = block_start + len(file.read(block_start, stop - block_start).rstrip(b"\0"))
        if stop == before or stop < start:
            return before
    return stop


def truncated(path: Path, what: str) -> AudioError:
    """Return the error for a file that ends before its end."""
    return AudioError(f"{path}: truncated: {what}. {GET_AGAIN}", code="audio-truncated")
