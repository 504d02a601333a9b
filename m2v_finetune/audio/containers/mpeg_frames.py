"""Frames of MPEG audio, and the Xing, Info or VBRI header that the first of a stream may hold.

Sources: ISO 11172-3 and 13818-3 for the frame; Gabriel Bouvigne, Mp3 Info Tag revision 1 (Xing and LAME);
Fraunhofer IIS for VBRI.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from m2v_finetune.audio.containers.source import ByteFile, skip_tags

_BITRATES_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44100, 48000, 32000)

# A sync word in other bytes is followed by another at the right distance in one of 500 cases: four in a row.
_CHAIN = 4
_SYNC = re.compile(rb"\xff[\xe2-\xff]")

MAX_FRAME_BYTES = 2881  # MPEG-2.5 layer 2, 160 kbit/s at 8 kHz

# Bytes before a frame that are neither tag nor zero, and passed over: a frame that was cut, or two.
MAX_JUNK_BYTES = 2 * MAX_FRAME_BYTES

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Frame:
    """Header of a frame.

    Attributes:
        num_bytes: Length of the frame.
        stream: Version, layer, rate and channels, the same in all frames of a stream.
        num_samples: Samples of a channel.
        side_bytes: Bytes between the header and the start of a Xing header.
    """

    num_bytes: int
    stream: tuple[int, int, int, int]
    num_samples: int
    side_bytes: int


@lru_cache(maxsize=4096)  # a stream has few different ones
def parse_frame(header: bytes) -> Frame | None:
    """Parse the four bytes of a frame's header; None if they are not one (or of free format)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version_bits, layer_bits = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version_bits == 1 or layer_bits == 0 or bitrate_index in (0, 15) or rate_index == 3:
        return None
    version, layer = (1 if version_bits == 3 else 2), 4 - layer_bits
    rate = _RATES_HZ[rate_index] >> (3 - version_bits if version_bits else 2)
    bitrate = 1000 * _BITRATES_KBPS[version, layer][bitrate_index - 1]
    padding = header[2] >> 1 & 1
    is_mono = header[3] >> 6 == 3
    if layer == 1:
        num_samples, num_bytes = 384, 4 * (12 * bitrate // rate + padding)
    else:
        num_samples = 576 if (layer, version) == (3, 2) else 1152
        num_bytes = num_samples // 8 * bitrate // rate + padding
    side_bytes = (17 if is_mono else 32) if version == 1 else (9 if is_mono else 17)
    stream = (version_bits, layer, rate, 1 if is_mono else 2)
    return Frame(num_bytes, stream, num_samples, side_bytes)


def first_frame(file: ByteFile, start: int) -> int | None:
    """Return the offset of the first frame of a chain, after tags, zeros and a little junk; None without."""
    start = skip_tags(file, start)
    block = file.read(start, MAX_JUNK_BYTES + _CHAIN * MAX_FRAME_BYTES)
    for match in _SYNC.finditer(block, 0, MAX_JUNK_BYTES):
        if _is_chain(block, match.start(), ends=start + len(block) >= file.size):
            return start + match.start()
    return None


def _is_chain(block: bytes, location: int, *, ends: bool) -> bool:
    """Return True if frames of one stream follow each other from a position on.

    Args:
        block: Bytes of the file.
        location: Offset of the first frame.
        ends: True if the file ends with the block; then fewer frames are enough, and the last may be cut.
    """
    stream, is_first = None, location == 0
    for number in range(_CHAIN):
        frame = parse_frame(block[location : location + 4])
        if frame is None or (stream or frame.stream) != frame.stream:
            is_tag = block.startswith((b"TAG", b"APETAGEX", b"LYRICS", b"ID3"), location)
            return is_tag and (number > 1 or (is_first and number > 0))
        stream = frame.stream
        location += frame.num_bytes
        if ends and location > len(block) - 4:
            return number > 0 or is_first
    return True


@dataclass(frozen=True, slots=True)
class Header:
    """Counts of a Xing, Info or VBRI header.

    Attributes:
        num_frames: Frames after the one that holds it, or None.
        num_bytes: Bytes from that one on, or None.
        location: Offset of the word in its frame.
        is_vbri: True for a header of Fraunhofer's.
    """

    num_frames: int | None
    num_bytes: int | None
    location: int
    is_vbri: bool = False


def read_header(content: bytes, frame: Frame) -> Header | None:
    """Read the header in a frame; None if it has none."""
    location = 4 + frame.side_bytes
    if content[location : location + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(content[location + 4 : location + 8], "big")
        numbers = [
            int.from_bytes(content[location + 8 + i : location + 12 + i], "big") for i in (0, 4)
        ]
        num_bytes = numbers[1 if flags & 1 else 0] if flags & 2 else None
        return Header(numbers[0] if flags & 1 else None, num_bytes, location)
    if content[36:40] == b"VBRI":
        return Header(
            int.from_bytes(content[50:54], "big"), int.from_bytes(content[46:50], "big"), 36, True
        )
    return None


def walk(file: ByteFile, position: int) -> Iterator[tuple[int, Frame, Header | None]]:
    """Yield the position of each frame, the frame, and its header, while they follow each other."""
    block_start, block = position, b""
    stream = None
    while True:
        location = position - block_start
        if location + MAX_FRAME_BYTES > len(block) and block_start + len(block) < file.size:
            block_start, block = position, file.read(position, _BLOCK_BYTES)
            location = 0
        frame = parse_frame(block[location : location + 4])
        if frame is None or location + frame.num_bytes > len(block):
            return
        if stream is not None and frame.stream != stream:
            return
        stream = frame.stream
        word = block[location + 4 + frame.side_bytes : location + 8 + frame.side_bytes]
        has_header = word in (b"Xing", b"Info") or block[location + 36 : location + 40] == b"VBRI"
        content = block[location : location + frame.num_bytes] if has_header else b""
        yield position, frame, read_header(content, frame) if has_header else None
        position += frame.num_bytes
