"""FLAC: how many samples there are, by the number that each frame has.

STREAMINFO counts the samples of one stream, 0 if the encoder wrote to a pipe. The last frame of the file has
the number of its samples. Files that were joined by `cat` have frames that count anew: where a few frames,
spread over the file, do not count upwards, each header is looked for. In each stream every frame has to go on
where the one before ends: a frame that is missing or there twice would move all later sound.

Source: RFC 9639, sections 8.2 and 9.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from m2v_finetune.audio.containers.source import (
    GET_AGAIN,
    TOLERANCE_FRAMES,
    ByteFile,
    Part,
    strip_tags,
    truncated,
)
from m2v_finetune.errors import AudioError

MAGIC = b"fLaC"
_STREAMINFO = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
_NUM_PROBES = 8
_WINDOW_BYTES = 1 << 16
_MAX_HEADER_BYTES = 16

# Bounds of the size of a frame: 32 bits a sample, one more for the difference of channels, and headers.
_MAX_SAMPLE_BYTES, _MAX_FRAME_OVERHEAD = 5, 1024

# Of a frame header, by its code.
_RATES = (None, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)

# Behind the last frame, so few bytes are junk.
_FEW_BYTES = 8


def _checksums(num_bits: int, polynomial: int) -> tuple[int, ...]:
    """Return the table of a CRC, by its polynomial without the highest power."""
    table = []
    for byte in range(256):
        value = byte << (num_bits - 8)
        for _ in range(8):
            is_carried = value >> (num_bits - 1)
            value = (value << 1 ^ (polynomial if is_carried else 0)) & ((1 << num_bits) - 1)
        table.append(value)
    return tuple(table)


_CRC8 = _checksums(8, 0x07)
_CRC16 = _checksums(16, 0x8005)


@dataclass(frozen=True, slots=True)
class _Stream:
    """Content of STREAMINFO.

    Attributes:
        start: Offset of the stream's first byte.
        first: Offset of the first frame.
        sync: Start of a frame: one of two, by whether all have as many samples.
        block_samples: Samples of a frame, if all have as many.
        num_samples: Length of the stream; 0 if unknown.
        rate: Samples a second.
        sample_bytes: Bytes of a sample of all channels.
    """

    start: int
    first: int
    sync: bytes
    block_samples: int
    num_samples: int
    rate: int
    sample_bytes: int


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the streams that a file holds, one after the other."""
    stop = strip_tags(file, start)
    whole = _stream(file, start)
    if whole is None:
        return [Part(start=start, stop=file.size, is_file=start == 0)]
    if _last_sample(file, whole, stop) == whole.num_samples and _counts_upwards(file, whole, stop):
        last = _require_each_frame_once(file, whole, stop)
        _require_no_rest(file, _end_of_frame(file, whole, last, stop), stop)
        return [Part(start=start, stop=file.size, is_file=start == 0, samples_stop=stop - start)]
    starts = {
        location
        for pattern in _STREAMINFO
        for location in file.find(pattern, start, stop)
        if _stream(file, location) is not None
    }
    ordered = sorted({start, *starts})
    ends = [*ordered[1:], file.size]
    return [
        _part(file, begin, end, is_valid=len(ordered) == 1)
        for begin, end in zip(ordered, ends, strict=True)
    ]


def _part(file: ByteFile, start: int, stop: int, *, is_valid: bool) -> Part:
    """Return a stream with a header that counts its samples, if it counted fewer."""
    stream = _stream(file, start)
    assert stream is not None
    is_last = stop == file.size
    end = strip_tags(file, start) if is_last else stop
    last = _require_each_frame_once(file, stream, end)
    found = _last_sample(file, stream, end)
    end_of_last = _end_of_frame(file, stream, last, end)
    if last is not None and found is not None and end_of_last is None:
        found -= last[1]  # it was cut
    if found is not None and found < stream.num_samples - TOLERANCE_FRAMES:
        raise truncated(
            file.path,
            f"its header promises {stream.num_samples / stream.rate:.2f} s, and the last complete frame ends "
            f"at {found / stream.rate:.2f} s",
        )
    if is_last:
        _require_no_rest(file, end_of_last, end)
    if found is None or 0 < found <= stream.num_samples:
        return Part(start=start, stop=stop, is_file=is_valid and start == 0)
    head = bytearray(file.read(start, 26))
    head[21] = head[21] & 0xF0 | found >> 32
    head[22:26] = (found & 0xFFFFFFFF).to_bytes(4, "big")
    return Part(start=start + len(head), stop=stop, head=bytes(head), num_frames=found)


def _stream(file: ByteFile, start: int) -> _Stream | None:
    """Read STREAMINFO and skip the rest of the metadata; None if it is damaged."""
    head = file.read(start, 42)
    if len(head) < 42 or not head.startswith(_STREAMINFO):
        return None
    location, is_last = start + 4, False
    while not is_last:
        block = file.read(location, 4)
        if len(block) < 4:
            return None
        is_last = bool(block[0] & 0x80)
        location += 4 + int.from_bytes(block[1:], "big")
    num_samples = (head[21] & 0x0F) << 32 | int.from_bytes(head[22:26], "big")
    # Rate, channels less one, and some bits of the sample size.
    layout = int.from_bytes(head[18:21], "big")
    num_channels = (layout >> 1 & 7) + 1
    return _Stream(
        start,
        location,
        file.read(location, 2),
        int.from_bytes(head[10:12], "big"),
        num_samples,
        layout >> 4,
        _MAX_SAMPLE_BYTES * num_channels,
    )


def _last_sample(file: ByteFile, stream: _Stream, stop: int) -> int | None:
    """Return the number of samples up to the end of the last frame; None if it is not found."""
    window = _WINDOW_BYTES
    while True:
        begin = max(stream.first, stop - window)
        found, ends = None, set()
        for sample, length in _headers(file.read(begin, stop + _MAX_HEADER_BYTES - begin), stream):
            # Other bytes that look like a header do not count on from the one before.
            if sample == 0 or sample in ends:
                found = sample + length
            ends.add(sample + length)
        if found is not None or begin == stream.first:
            return found
        window *= 16


def _require_each_frame_once(file: ByteFile, stream: _Stream, stop: int) -> tuple[int, int] | None:
    """Return offset and samples of the last frame; raise `AudioError` where one is missing or there twice.

    Other bytes look like a header once in some megabytes. They do not go on where a frame ends; a frame that
    is there twice ends with its CRC-16.
    """
    first = next(_headers(file.read(stream.first, _MAX_HEADER_BYTES), stream), None)
    if first is None:
        return None  # the decoder names the fault
    rate = _rate(file.read(stream.first, _MAX_HEADER_BYTES))
    if rate not in (None, stream.rate):
        what = f"STREAMINFO has {stream.rate} Hz, and the first frame {rate} Hz,"
        raise _frame_error(file, stream.first, what)
    expected, earlier, suspect = first[0], {}, None
    for location in file.find(stream.sync, stream.first, stop):
        header = _parse(file.read(location, _MAX_HEADER_BYTES), stream)
        if header is None:
            continue
        sample, length = header
        if sample == expected:
            if suspect is not None and _crc16(file.read(suspect, location - suspect)) == 0:
                raise _frame_error(file, suspect, "a frame is there twice")
            earlier[sample] = location
            expected, suspect = sample + length, None
        elif sample in earlier:
            suspect = location
    if suspect is not None and _crc16(file.read(suspect, stop - suspect)) == 0:
        raise _frame_error(file, suspect, "a frame is there twice")
    last = _last_sample(file, stream, stop)
    if last is not None and expected < last:
        raise _frame_error(file, max(earlier.values()), "frames are missing after the one")
    if not earlier:
        return None
    sample, location = max(earlier.items())
    return location, expected - sample


def _end_of_frame(
    file: ByteFile, stream: _Stream, frame: tuple[int, int] | None, stop: int
) -> int | None:
    """Return where a frame ends by its CRC-16, at the latest; None if it was cut.

    Args:
        file: File.
        stream: Stream of the frame.
        frame: Offset of the frame, and its samples.
        stop: End of the stream, but for zeros.
    """
    if frame is None:
        return None
    start, num_samples = frame
    limit = start + num_samples * stream.sample_bytes + _MAX_FRAME_OVERHEAD
    content = file.read(start, min(stop + _FEW_BYTES, limit) - start)
    checksum, end = 0, None
    for offset, byte in enumerate(content, 1):
        checksum = (checksum << 8 & 0xFF00) ^ _CRC16[checksum >> 8 ^ byte]
        if checksum == 0:
            end = start + offset
    return end


def _require_no_rest(file: ByteFile, end: int | None, stop: int) -> None:
    """Refuse more than a few bytes behind the last frame."""
    if end is not None and stop - end > _FEW_BYTES:
        raise AudioError(
            f"{file.path}: at least {stop - end} bytes follow the last frame of FLAC, and are no tag. Cut "
            "them off, or write the file again, for example with: ffmpeg -i FILE NEW.flac",
            code="audio-trailing-data",
        )


def _frame_error(file: ByteFile, location: int, what: str) -> AudioError:
    return AudioError(
        f"{file.path}: damaged: in the FLAC stream, {what} at byte {location}. {GET_AGAIN}",
        code="audio-damaged",
    )


def _crc16(content: bytes) -> int:
    """Return the CRC-16 with the polynomial x^16 + x^15 + x^2 + 1; 0 for a frame with its checksum."""
    checksum = 0
    for byte in content:
        checksum = (checksum << 8 & 0xFF00) ^ _CRC16[checksum >> 8 ^ byte]
    return checksum


def _counts_upwards(file: ByteFile, stream: _Stream, stop: int) -> bool:
    """Return True if the first frames after a few positions of the file have ever higher numbers."""
    spread = (stop - stream.first) // _NUM_PROBES
    locations = [stream.first + spread * probe for probe in range(_NUM_PROBES)]
    before = -1
    for location in [*locations, max(stream.first, stop - _WINDOW_BYTES)]:
        block = file.read(location, min(_WINDOW_BYTES, stop - location))
        if any(pattern in block for pattern in _STREAMINFO):
            return False
        sample = next(_headers(block, stream), (before, 0))[0]
        if sample < before and location in locations:
            return False
        before = sample
    return True


def _headers(block: bytes, stream: _Stream) -> Iterator[tuple[int, int]]:
    """Yield first sample and length of each frame whose header is in a block, by sync code and CRC-8."""
    location = block.find(stream.sync)
    while location >= 0:
        header = _parse(block[location : location + _MAX_HEADER_BYTES], stream)
        if header is not None:
            yield header
        location = block.find(stream.sync, location + 1)


def _rate(header: bytes) -> int | None:
    """Return the sample rate of a frame header; None where it is that of STREAMINFO."""
    code = header[2] & 15
    if code < 12:
        return _RATES[code]
    # Behind the number of the frame, and the length of its block where that is written out.
    lead, size_code = header[4], header[2] >> 4
    end = 5 + (0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1)
    end += {6: 1, 7: 2}.get(size_code, 0)
    if code == 12:
        return 1000 * header[end]
    return int.from_bytes(header[end : end + 2], "big") * (10 if code == 14 else 1)


def _parse(header: bytes, stream: _Stream) -> tuple[int, int] | None:
    """Return first sample and length of a frame; None if the bytes are not a header."""
    if len(header) < 6 or header[3] >> 4 > 10 or header[3] & 1:
        return None
    size_code, rate_code = header[2] >> 4, header[2] & 15
    lead = header[4]
    extra = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    if size_code == 0 or rate_code == 15 or not (0 <= extra <= 6) or 0x80 <= lead < 0xC0:
        return None
    number = lead if extra == 0 else lead & (0x3F >> extra)
    for byte in header[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    end = 5 + extra
    if size_code in (6, 7):
        num_bytes = size_code - 5
        length = int.from_bytes(header[end : end + num_bytes], "big") + 1
        end += num_bytes
    elif size_code == 1:
        length = 192
    elif size_code < 6:
        length = 576 << (size_code - 2)
    else:
        length = 256 << (size_code - 8)
    end += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    checksum = 0
    for byte in header[: end + 1]:
        checksum = _CRC8[checksum ^ byte]
    if checksum != 0 or len(header) <= end:
        return None
    # Frames of one size are numbered, others count samples.
    return (number if header[1] & 1 else number * stream.block_samples), length
