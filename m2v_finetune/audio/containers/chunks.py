"""Containers of chunks, and headers with one size: WAV, RF64, W64, AIFF, CAF, AU and NIST Sphere.

Each states how many bytes of samples there are. A program that writes to a pipe cannot know that, and states
0, or a number near the largest; one that was killed leaves an old number; files that were joined by `cat`
have one header each; 32 bits do not hold the size of a WAV above 4 GiB.
"""

import re
from dataclasses import dataclass, replace

from m2v_finetune.audio.containers.chunk_formats import STYLES, Order, Style, kind
from m2v_finetune.audio.containers.source import (
    GET_AGAIN,
    ByteFile,
    Part,
    skip_tag,
    skip_tags,
    strip_tags,
)
from m2v_finetune.errors import AudioError

# Behind the samples, so few bytes are junk.
_FEW_BYTES = 8

# A WAV header has a few kilobytes; one with a picture before the samples for some megabytes.
_MAX_CHUNKS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Samples:
    """Position of the samples, as stated by a header.

    Attributes:
        start: First byte.
        size_at: Offset of the stated size, or None if it is written as text.
        size_bytes: Length of the stated size.
        byteorder: Byte order of the stated size.
        overhead: Bytes that it counts beside the samples.
        stated: Stated bytes of samples.
        may_be_unknown: True if programs that do not know the size state this one.
    """

    start: int
    size_at: int | None
    size_bytes: int
    byteorder: Order
    overhead: int
    stated: int
    may_be_unknown: bool


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the files of samples that a file holds, one after the other."""
    parts: list[Part] = []
    while True:
        part, start = _find_part(file, start)
        parts.append(part)
        if start >= file.size:
            break
    # A program that cannot go back to its header may write it again, before no samples or after the last.
    return [
        part for part in parts if part.samples_stop != part.samples_start or part.missing_bytes
    ] or parts[:1]


def _find_part(file: ByteFile, start: int) -> tuple[Part, int]:
    """Return the part that starts at an offset, and the start of the next one (the file's size if none)."""
    name = kind(file.read(start, 12))
    assert name is not None
    samples = _samples(file, start, name)
    if samples is None:  # the decoder reports the missing samples
        return Part(start=start, stop=file.size, is_file=start == 0), file.size
    available = file.size - samples.start
    samples_stop = _stop_beyond_32_bits(file, name, start, samples)
    if samples.may_be_unknown and not _is_end(file, name, start, samples_stop):
        return _without_size(file, name, start, samples)
    if samples.stated > available:
        part = _with_size(file, name, start, samples, file.size, file.size)
        return replace(part, missing_bytes=samples.stated - available), file.size
    after = _after_chunks(file, name, start, samples_stop)
    following = _following(file, name, start, after)
    is_last = following == file.size
    if is_last or kind(file.read(following, 12)) is not None:
        # libsndfile 1.2.2 reads the bytes after the samples of these as samples.
        reads_on = name in (b"riff", b"NIST", b".snd", b"dns.") and samples_stop < file.size
        is_right = samples_stop == samples.start + samples.stated and name != b"BW64"
        if start == 0 and is_last and is_right and not reads_on:
            part = Part(
                start=0,
                stop=file.size,
                is_file=True,
                samples_start=samples.start,
                samples_stop=samples_stop,
            )
            return part, following
        stop = samples_stop if reads_on else after
        return _with_size(file, name, start, samples, samples_stop, stop), following
    part = _with_size(file, name, start, samples, samples_stop, after)
    rest = file.size - after
    return replace(part, rest_bytes=rest if rest > _FEW_BYTES else 0), file.size


def _without_size(file: ByteFile, name: bytes, start: int, samples: _Samples) -> tuple[Part, int]:
    """Return a part up to the next header, and where that is; or up to the end of the file but for tags."""
    stop = _next_header(file, name, start, samples.start)
    if stop == file.size:
        stop = strip_tags(file, samples.start, strip_zeros=False)
        return _with_size(file, name, start, samples, stop, stop), file.size
    return _with_size(file, name, start, samples, stop, stop), stop


def _samples(file: ByteFile, start: int, name: bytes) -> _Samples | None:
    """Find the samples of a header; None if it has none."""
    if name in (b".snd", b"dns."):
        order: Order = "big" if name == b".snd" else "little"
        header = file.read(start, 12)
        offset, stated = (int.from_bytes(header[i : i + 4], order) for i in (4, 8))
        return _Samples(
            start=start + offset,
            size_at=start + 8,
            size_bytes=4,
            byteorder=order,
            overhead=0,
            stated=stated,
            may_be_unknown=_may_be_unknown(stated, 4, 0),
        )
    if name == b"NIST":
        return _nist_samples(file, start)
    style = STYLES[name]
    position = start + style.first
    wide = None
    for _ in range(_MAX_CHUNKS):
        header = file.read(position, style.id_bytes + style.size_bytes)
        if len(header) < style.id_bytes + style.size_bytes:
            return None
        stated = int.from_bytes(header[style.id_bytes :], style.byteorder)
        body = position + len(header)
        if header.startswith(b"ds64"):  # RF64: the sizes of file and samples in 64 bits
            wide = body + 8
        if header.startswith(style.data):
            size_at, size_bytes = position + style.id_bytes, style.size_bytes
            if wide is not None and name in (b"RF64", b"BW64"):
                size_at, size_bytes = wide, 8
                stated = int.from_bytes(file.read(wide, 8), "little")
            overhead = style.overhead + (len(header) if style.counts_header else 0)
            return _Samples(
                start=body + style.overhead,
                size_at=size_at,
                size_bytes=size_bytes,
                byteorder=style.byteorder,
                overhead=overhead,
                stated=max(0, stated - overhead),
                may_be_unknown=_may_be_unknown(stated, size_bytes, overhead),
            )
        size = stated - (len(header) if style.counts_header else 0)
        if size < 0:
            return None
        position = _aligned(body + size, start, style.align)
    return None


def _nist_samples(file: ByteFile, start: int) -> _Samples | None:
    """Find the samples of a NIST Sphere file, whose header is text."""
    header = file.read(start, 1024).decode("latin-1")
    size = re.match(r"NIST_1A\s+(\d+)", header)
    fields = [
        re.search(rf"\b{field} -i (\d+)", header)
        for field in ("sample_count", "channel_count", "sample_n_bytes")
    ]
    if size is None or any(field is None for field in fields):
        return None
    stated = 1
    for field in fields:
        stated *= int(field[1]) if field else 0
    return _Samples(
        start=start + int(size[1]),
        size_at=None,
        size_bytes=0,
        byteorder="big",
        overhead=0,
        stated=stated,
        may_be_unknown=stated == 0,
    )


def _may_be_unknown(stated: int, size_bytes: int, overhead: int) -> bool:
    """Return True if a stated size may be the placeholder of a program that cannot know it, or nothing.

    sox states 0x7F000000 or 0x7FFFF000, arecord 0x80000000, ffmpeg and most others 0xFFFFFFFF, each with or
    without the size of the header; 64 bits are all ones, or the largest signed number.
    """
    bits = 8 * size_bytes
    half = 1 << (bits - 1)
    is_near_half = half - (1 << (bits - 8)) <= stated <= half + 0x1000
    is_near_end = stated >= 2 * half - (1 << (bits - 8))
    return is_near_half or is_near_end or stated <= overhead


def _is_end(file: ByteFile, name: bytes, start: int, stop: int) -> bool:
    """Return True if samples end at an offset: there are chunks, tags, another header or nothing.

    Zeros may be samples.
    """
    if stop > file.size:
        return False
    after = _after_chunks(file, name, start, stop)
    following = _following(file, name, start, after)
    if following < file.size and kind(file.read(following, 12)) is None:
        return False
    return after > stop or file.end_of_zeros(stop) - stop <= _FEW_BYTES


def _after_chunks(file: ByteFile, name: bytes, start: int, samples_stop: int) -> int:
    """Return the offset after the chunks that follow the samples."""
    style = STYLES.get(name)
    if style is None:
        return samples_stop
    position = samples_stop
    for _ in range(_MAX_CHUNKS):
        # Some programs leave out the byte that aligns the next chunk.
        stop = _chunk_stop(file, style, _aligned(position, start, style.align))
        stop = stop or _chunk_stop(file, style, position)
        if stop is None:
            break
        position = stop
    return position


def _chunk_stop(file: ByteFile, style: Style, begin: int) -> int | None:
    """Return the offset after a chunk behind the samples; None if there is none."""
    header = file.read(begin, style.id_bytes + style.size_bytes)
    is_name = len(header) == style.id_bytes + style.size_bytes and re.match(
        rb"[ -~]{4}", header[:4]
    )
    if not is_name or kind(file.read(begin, 12)) is not None:
        return None
    if header.startswith(style.data):
        raise AudioError(
            f"{file.path}: two chunks of samples ({style.data.decode()}), the second at byte {begin}, "
            f"where a file has one. Other programs read the first alone. {GET_AGAIN}",
            code="audio-two-data-chunks",
        )
    size = int.from_bytes(header[style.id_bytes :], style.byteorder)
    stop = begin + size + (0 if style.counts_header else len(header))
    return stop if begin < stop <= file.size else None


def _following(file: ByteFile, name: bytes, start: int, after: int) -> int:
    """Return where something follows the last chunk but padding, tags and zeros; else the file's size."""
    if kind(file.read(after, 12)) is not None:
        return after
    if skip_tag(file, after) != after:
        return skip_tags(file, after)
    align = STYLES[name].align if name in STYLES else 1
    return skip_tags(file, min(_aligned(after, start, align), file.size))


def _stop_beyond_32_bits(file: ByteFile, name: bytes, start: int, samples: _Samples) -> int:
    """Return where the samples end; 32 bits state the rest of a size above 4 GiB."""
    stated_stop = samples.start + samples.stated
    if samples.size_bytes != 4:
        return stated_stop
    for times in range((file.size - stated_stop) >> 32, 0, -1):
        stop = stated_stop + (times << 32)
        if _following(file, name, start, _after_chunks(file, name, start, stop)) == file.size:
            return stop
    return stated_stop


def _next_header(file: ByteFile, name: bytes, header: int, start: int) -> int:
    """Return where another header of the same kind follows the start of the samples, or the file's size."""
    magic = b"FORM" if name in (b"AIFF", b"AIFC") else name
    is_au = name in (b".snd", b"dns.")
    layout = file.read(header + 12, 12)  # of AU: encoding, rate and channels
    for location in file.find(magic, start, file.size):
        if kind(file.read(location, 12)) == name and (
            not is_au or file.read(location + 12, 12) == layout
        ):
            return location
    return file.size


def _with_size(
    file: ByteFile, name: bytes, start: int, samples: _Samples, samples_stop: int, stop: int
) -> Part:
    """Return a part whose header states the bytes that are there."""
    head = bytearray(file.read(start, samples.start - start))
    num_bytes = samples_stop - samples.start
    if samples.size_at is not None:
        limit = (1 << 8 * samples.size_bytes) - 1
        size = min(num_bytes + samples.overhead, limit)
        location = samples.size_at - start
        head[location : location + samples.size_bytes] = size.to_bytes(
            samples.size_bytes, samples.byteorder
        )
        if size == limit and name == b"RIFF":
            # Source: EBU Tech 3306: the sizes of file, samples and frames, and of no other chunk.
            wide = (len(head) + num_bytes).to_bytes(8, "little") + num_bytes.to_bytes(8, "little")
            head[:12] = b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0" + wide + bytes(12)
    if name == b"BW64":  # the same as RF64, under a name that libsndfile 1.2.2 does not know
        head[:4] = b"RF64"
    return Part(
        start=samples.start,
        stop=stop,
        head=bytes(head),
        samples_start=len(head),
        samples_stop=len(head) + num_bytes,
    )


def _aligned(position: int, start: int, align: int) -> int:
    return position + (start - position) % align
