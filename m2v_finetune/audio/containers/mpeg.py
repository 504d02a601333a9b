"""MPEG audio (MP3, MP2, MP1): its frames, and the Xing, Info or VBRI header that counts them.

A file is one stream, or several joined by `cat`, by inserted advertisements, or by a recorder that writes in
chunks. Each may begin with a header that counts the frames of that one alone, so a decoder that believes
the first reads the first alone. Where the first header counts the bytes that are there, that is all that is
looked at; else every frame is.

Sources: ISO 11172-3 and 13818-3 for the frame; Gabriel Bouvigne, Mp3 Info Tag revision 1 (Xing and LAME);
Fraunhofer IIS for VBRI.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile

from m2v_finetune.audio.containers.source import (
    TOLERANCE_FRAMES,
    ByteFile,
    Part,
    skip_tag,
    skip_tags,
    strip_tags,
    truncated,
)

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

# Bytes before the first frame that are neither tag nor zero.
_MAX_JUNK_BYTES = 1 << 16

# Samples that a decoder of layer 3 is behind, and where LAME's delay is, after the version of LAME.
_DECODER_DELAY = 529
_LAME_DELAY_PLACE = 21

_MAX_FRAME_BYTES = 2881  # MPEG-2.5 layer 2, 160 kbit/s at 8 kHz
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class _Frame:
    """Header of a frame.

    Attributes:
        num_bytes: Length of the frame.
        stream: Version, layer and rate, the same in all frames of a stream.
        num_samples: Samples of a channel.
        side_bytes: Bytes between the header and what a Xing header begins with.
    """

    num_bytes: int
    stream: tuple[int, int, int]
    num_samples: int
    side_bytes: int


@lru_cache(maxsize=4096)  # a stream has few different ones
def _frame(header: bytes) -> _Frame | None:
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
    return _Frame(num_bytes, (version_bits, layer, rate), num_samples, side_bytes)


def first_frame(file: ByteFile, start: int) -> int | None:
    """Return the offset of the first frame of a chain, after tags, zeros and a little junk; None without."""
    start = skip_tags(file, start)
    block = file.read(start, _MAX_JUNK_BYTES + _CHAIN * _MAX_FRAME_BYTES)
    for match in _SYNC.finditer(block, 0, _MAX_JUNK_BYTES):
        if _is_chain(block, match.start(), ends=start + len(block) >= file.size):
            return start + match.start()
    return None


def _is_chain(block: bytes, place: int, *, ends: bool) -> bool:
    """Tell whether frames of one stream follow each other from a place on.

    Args:
        block: Bytes of the file.
        place: Where the first frame would begin.
        ends: The file ends with the block; then fewer frames are enough, and the last may be cut.
    """
    stream, is_first = None, place == 0
    for number in range(_CHAIN):
        frame = _frame(block[place : place + 4])
        if frame is None or (stream or frame.stream) != frame.stream:
            is_tag = block.startswith((b"TAG", b"APETAGEX", b"LYRICS", b"ID3"), place)
            return is_tag and (number > 1 or (is_first and number > 0))
        stream = frame.stream
        place += frame.num_bytes
        if ends and place > len(block) - 4:
            return number > 0 or is_first
    return True


@dataclass(frozen=True, slots=True)
class _Header:
    """What a Xing, Info or VBRI header counts.

    Attributes:
        num_frames: Frames after the one that holds it, or None.
        num_bytes: Bytes from that one on, or None.
        place: Of the word in its frame.
        is_vbri: It is Fraunhofer's.
    """

    num_frames: int | None
    num_bytes: int | None
    place: int
    is_vbri: bool = False


def _header(content: bytes, frame: _Frame) -> _Header | None:
    """Read the header in a frame; None if it has none."""
    place = 4 + frame.side_bytes
    if content[place : place + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(content[place + 4 : place + 8], "big")
        numbers = [int.from_bytes(content[place + 8 + i : place + 12 + i], "big") for i in (0, 4)]
        num_bytes = numbers[1 if flags & 1 else 0] if flags & 2 else None
        return _Header(numbers[0] if flags & 1 else None, num_bytes, place)
    if content[36:40] == b"VBRI":
        return _Header(
            int.from_bytes(content[50:54], "big"), int.from_bytes(content[46:50], "big"), 36, True
        )
    return None


def find_parts(file: ByteFile, first: int) -> list[Part]:
    """Return the streams that a file holds, one after the other.

    Args:
        file: The file.
        first: Offset of the first frame.

    Raises:
        AudioError: A header counts more frames than there are.
    """
    content = file.read(first, _MAX_FRAME_BYTES)
    frame = _frame(content[:4])
    assert frame is not None
    header = _header(content[: frame.num_bytes], frame)
    end = strip_tags(file, first)
    # libsndfile 1.2.2 finds the first frame where tags end, and nowhere else.
    is_file = first == _end_of_tags(file) and file.size - end < 0.01 * file.size
    if header is not None and header.num_bytes and header.num_frames and not header.is_vbri:
        stated_end = first + header.num_bytes
        if abs(stated_end - end) <= 3 * header.num_bytes / header.num_frames:
            if is_file:
                return [
                    Part(
                        start=0,
                        stop=file.size,
                        is_file=True,
                        samples_start=first,
                        samples_stop=min(end, stated_end),
                    )
                ]
            return [Part(start=first, stop=min(file.size, max(end, stated_end)))]
    stretches = list(_stretches(file, first))
    parts = []
    for number, stretch in enumerate(stretches):
        following = takewhile(lambda other: other.header is None, stretches[number + 1 :])
        parts.append(_part(file, stretch, sum(other.num_frames for other in following)))
    if len(parts) == 1 and is_file:
        # Without a header the decoder guesses the length by the size, and is right at a constant rate.
        is_guess = parts[0].num_frames is not None and header is None
        if is_guess or not parts[0].head:
            return [
                replace(parts[0], is_file=True, samples_start=first, samples_stop=parts[0].stop)
            ]
    return parts


def _end_of_tags(file: ByteFile) -> int:
    start = 0
    while (after := skip_tag(file, start)) != start:
        start = after
    return start


@dataclass(slots=True)
class _Stretch:
    """Frames without a gap, of one stream, with at most one header, in the first.

    Attributes:
        start: Offset of the first frame.
        stop: Offset after the last.
        first: The first frame.
        header: What its header counts, if it has one.
        num_frames: Number of frames that hold sound.
        seconds_before: Length of what comes before it, for messages.
    """

    start: int
    stop: int
    first: _Frame
    header: _Header | None
    num_frames: int
    seconds_before: float


def _stretches(file: ByteFile, first: int) -> Iterator[_Stretch]:
    """Walk through all frames."""
    stretch: _Stretch | None = None
    position, block_start, block = first, first, b""
    while True:
        place = position - block_start
        if place + _MAX_FRAME_BYTES > len(block) and block_start + len(block) < file.size:
            block_start, block = position, file.read(position, _BLOCK_BYTES)
            place = 0
        frame = _frame(block[place : place + 4])
        is_next = (
            frame is not None
            and place + frame.num_bytes <= len(block)
            and (stretch is None or frame.stream == stretch.first.stream)
        )
        if is_next:
            assert frame is not None
            # All headers are within the first 40 bytes, and rare: one comparison finds them.
            word = block[place + 4 + frame.side_bytes : place + 8 + frame.side_bytes]
            header = None
            if word in (b"Xing", b"Info") or block[place + 36 : place + 40] == b"VBRI":
                header = _header(block[place : place + frame.num_bytes], frame)
            if stretch is None or header is not None:
                seconds = 0.0
                if stretch is not None:
                    yield stretch
                    seconds = _end_seconds(stretch)
                stretch = _Stretch(position, position, frame, header, 0, seconds)
            if header is None:
                stretch.num_frames += 1
            position += frame.num_bytes
            stretch.stop = position
            continue
        if stretch is not None:
            yield stretch
        following = first_frame(file, position)
        while following is None and position + _MAX_JUNK_BYTES < file.size:
            position += _MAX_JUNK_BYTES
            following = first_frame(file, position)
        if following is None:
            return
        seconds = 0.0 if stretch is None else _end_seconds(stretch)
        position = following
        frame = _frame(file.read(position, 4))
        if frame is None or position + frame.num_bytes > file.size:
            return
        header = _header(file.read(position, frame.num_bytes), frame)
        stretch = _Stretch(position, position + frame.num_bytes, frame, header, 0, seconds)
        stretch.num_frames += header is None
        position += frame.num_bytes


def _end_seconds(stretch: _Stretch) -> float:
    seconds = stretch.num_frames * stretch.first.num_samples / stretch.first.stream[2]
    return stretch.seconds_before + seconds


def _part(file: ByteFile, stretch: _Stretch, num_following: int) -> Part:
    """Return a stretch with a header that counts its frames.

    Args:
        file: The file.
        stretch: Which.
        num_following: Frames that follow it after a gap, up to the next header: its own may count them.
    """
    header, frame = stretch.header, stretch.first
    length = stretch.num_frames * frame.num_samples
    if frame.stream[1] != 3:  # only layer 3 has such headers
        return Part(start=stretch.start, stop=stretch.stop, num_frames=length)
    if header is not None and header.num_frames is not None:
        missing = (header.num_frames - stretch.num_frames - num_following) * frame.num_samples
        if missing > TOLERANCE_FRAMES:
            raise truncated(
                file.path,
                f"its header promises {header.num_frames} frames, but {stretch.num_frames} are there, "
                f"up to {_end_seconds(stretch):.2f} s",
            )
        if abs(header.num_frames - stretch.num_frames) <= 1 and not header.is_vbri:
            return Part(start=stretch.start, stop=stretch.stop)
    if header is None or header.is_vbri or header.num_frames is None or not header.num_bytes:
        start = stretch.start + (frame.num_bytes if header is not None else 0)
        head = _info_frames(file.read(start, 4), stretch.num_frames, stretch.stop - start)
        return Part(start=start, stop=stretch.stop, head=head, num_frames=length)
    changed = bytearray(file.read(stretch.start, frame.num_bytes))
    counts = (stretch.num_frames, stretch.stop - stretch.start)
    place = header.place + 8
    changed[place : place + 8] = b"".join(count.to_bytes(4, "big") for count in counts)
    flags = changed[header.place + 7]
    # LAME's delay and padding, 12 bits each: the padding is that of another end, and cuts nothing here.
    delay = place + 8 + (100 if flags & 4 else 0) + (4 if flags & 8 else 0) + _LAME_DELAY_PLACE
    if delay + 3 <= len(changed):
        changed[delay + 1] &= 0xF0
        changed[delay + 2] = 0
    return Part(start=stretch.start + frame.num_bytes, stop=stretch.stop, head=bytes(changed))


def _info_frames(header: bytes, num_frames: int, num_bytes: int) -> bytes:
    """Make frames to come before a stream without a header: an Info header, and a frame of silence.

    Decoders cut 529 samples, which the decoder of MPEG itself takes, where there is such a header; ffmpeg
    and libsndfile cut nothing where there is none. So that all of the stream is kept, the silence is what is
    cut: its samples are 529 more than the delay that the header states.

    Args:
        header: Of a frame of the stream.
        num_frames: Of the stream.
        num_bytes: Of the stream.
    """
    # Without a checksum, and at 320 or 160 kbit/s, so that it is large enough.
    changed = bytes([0xFF, header[1] | 1, (header[2] & 0x0D) | 0xE0, header[3]])
    frame = _frame(changed)
    assert frame is not None
    silence = changed + bytes(frame.num_bytes - 4)
    counts = (3, num_frames + 1, num_bytes + 2 * len(silence))
    delay = (frame.num_samples - _DECODER_DELAY) << 12
    info = b"Info" + b"".join(count.to_bytes(4, "big") for count in counts)
    info += b"LAME".ljust(_LAME_DELAY_PLACE, b"\0") + delay.to_bytes(3, "big")
    place = 4 + frame.side_bytes
    return changed + silence[4:place] + info + silence[place + len(info) :] + silence
