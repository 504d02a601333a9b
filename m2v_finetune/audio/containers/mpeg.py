"""MPEG audio (MP3, MP2, MP1): its frames, and the Xing, Info or VBRI header that counts them.

A file is one stream, or several joined by `cat`, by inserted advertisements, or by a recorder that writes in
chunks. Each may start with a header that counts the frames of that one alone, so a decoder that believes
the first reads the first alone. A decoder passes over damaged frames, and the sound behind them moves towards
the start. So the header of every frame is looked at, which takes a few milliseconds a minute.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile

from m2v_finetune.audio.containers.mpeg_frames import (
    MAX_FRAME_BYTES,
    MAX_JUNK_BYTES,
    Frame,
    Header,
    first_frame,
    parse_frame,
    read_header,
    walk,
)
from m2v_finetune.audio.containers.source import (
    GET_AGAIN,
    ID3V1_BYTES,
    ByteFile,
    Part,
    skip_tag,
    skip_tags,
    strip_tags,
    truncated,
)
from m2v_finetune.errors import AudioError

# Samples that a decoder of layer 3 is behind, and where LAME's delay is, after the version of LAME.
_DECODER_DELAY = 529
_LAME_DELAY_OFFSET = 21


def find_parts(file: ByteFile, first: int) -> list[Part]:
    """Return the streams that a file holds, one after the other.

    Args:
        file: File.
        first: Offset of the first frame.

    Raises:
        AudioError: A header counts more frames than there are, or frames are damaged.
    """
    content = file.read(first, MAX_FRAME_BYTES)
    frame = parse_frame(content[:4])
    assert frame is not None
    header = read_header(content[: frame.num_bytes], frame)
    end = strip_tags(file, first)
    # libsndfile 1.2.2 finds the first frame where tags end, and nowhere else.
    begins = first == _end_of_tags(file, 0)
    stretches = _joined(_stretches(file, first))
    parts = []
    for number, stretch in enumerate(stretches):
        following = takewhile(lambda other: other.header is None, stretches[number + 1 :])
        part = _part(file, stretch, list(following))
        if stretch.num_frames > 0:  # else a header alone
            parts.append(part)
    if not parts:
        raise truncated(file.path, "it ends within its first frame")
    parts[-1] = replace(parts[-1], rest_bytes=max(0, end - stretches[-1].stop))
    if len(parts) == 1 and begins and not parts[0].gaps and _is_nearly_all(file, parts[0].stop):
        # Without a header the decoder guesses the length by the size, and is right at a constant rate.
        is_guess = header is None
        if is_guess or not parts[0].head:
            return [
                replace(parts[0], is_file=True, samples_start=first, samples_stop=parts[0].stop)
            ]
    return parts


def _is_nearly_all(file: ByteFile, stop: int) -> bool:
    """Return True if so little follows the frames that mpg123 does not doubt the header that counts them."""
    return file.size - stop < 0.01 * file.size


def _end_of_tags(file: ByteFile, start: int) -> int:
    """Return the offset after the tags that start at an offset."""
    while (after := skip_tag(file, start)) != start:
        start = after
    return start


@dataclass(slots=True)
class _Stretch:
    """Frames of one stream, with at most one header, in the first.

    Attributes:
        start: Offset of the first frame.
        stop: Offset after the last.
        first: First frame.
        header: Counts of its header, if it has one.
        num_frames: Number of frames that hold sound.
        seconds_before: Length of the audio before it, for messages.
        gaps: Start and stop of the tags between frames.
    """

    start: int
    stop: int
    first: Frame
    header: Header | None
    num_frames: int
    seconds_before: float
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def num_bytes_from(self, start: int) -> int:
        """Return the size of its frames from an offset on."""
        return self.stop - start - sum(stop - begin for begin, stop in self.gaps)


def _joined(stretches: Iterable[_Stretch]) -> list[_Stretch]:
    """Join stretches of one stream with tags between them: frames use bits of those before.

    One whose header counts all its frames is a file of its own.
    """
    joined: list[_Stretch] = []
    for stretch in stretches:
        before = joined[-1] if joined else None
        if (
            before is None
            or stretch.header is not None
            or stretch.first.stream != before.first.stream
            or _is_complete(before)
        ):
            joined.append(stretch)
        else:
            before.gaps.append((before.stop, stretch.start))
            before.num_frames += stretch.num_frames
            before.stop = stretch.stop
    return joined


def _is_complete(stretch: _Stretch) -> bool:
    """Return True if a header counts no more frames than a stretch has; some count their own."""
    header = stretch.header
    return (
        header is not None
        and header.num_frames is not None
        and header.num_frames <= stretch.num_frames + 1
    )


def _stretches(file: ByteFile, first: int) -> Iterator[_Stretch]:
    """Walk through all frames."""
    position: int | None = first
    seconds = 0.0
    while position is not None:
        stretch = None
        for location, frame, header in walk(file, position):
            if stretch is None or header is not None:
                if stretch is not None:
                    yield stretch
                    seconds = _end_seconds(stretch)
                stretch = _Stretch(location, location, frame, header, 0, seconds)
            stretch.num_frames += header is None
            stretch.stop = location + frame.num_bytes
        if stretch is None:
            return
        yield stretch
        seconds = _end_seconds(stretch)
        position = _after_gap(file, stretch.stop, seconds)


def _after_gap(file: ByteFile, stop: int, seconds: float) -> int | None:
    """Return where frames continue after a gap; None if they do not.

    Raises:
        AudioError: Frames may be lost: there are other bytes than tags, or than padding or a little junk
            before another header.
    """
    start = _skip_inner_tags(file, stop)
    following = first_frame(file, start)
    location = start
    while following is None and location < file.size:
        location += MAX_JUNK_BYTES
        following = first_frame(file, location)
    if following is None:
        return None
    _, frame, header = next(walk(file, following), (0, None, None))
    if frame is None:
        return None
    num_bytes = following - start
    if header is not None:
        is_whole = num_bytes <= MAX_JUNK_BYTES or skip_tags(file, start) == following
    else:
        is_whole = following == stop or _are_tags(file, stop, following)
    if not is_whole:
        raise AudioError(
            f"{file.path}: damaged: after {seconds:.2f} s there are {num_bytes} bytes that are "
            f"no MPEG frames. {GET_AGAIN}",
            code="audio-damaged",
        )
    return following


def _are_tags(file: ByteFile, start: int, stop: int) -> bool:
    """Return True if tags fill a gap: those of the end of a file, and those of the start of the next one."""
    if file.end_of_zeros(start) >= stop:  # in place of frames
        return False
    start = _skip_inner_tags(file, start)
    starts_of_next = (at for at in file.find(b"ID3", start, stop) if skip_tags(file, at) == stop)
    return any(strip_tags(file, start, stop=end) == start for end in (stop, *starts_of_next))


def _skip_inner_tags(file: ByteFile, start: int) -> int:
    """Return the offset after the tags at an offset, which may be the end of a joined file, with ID3v1."""
    while True:
        after = _end_of_tags(file, start)
        if file.read(after, 3) == b"TAG":
            after += ID3V1_BYTES
        if after == start:
            return start
        start = after


def _end_seconds(stretch: _Stretch) -> float:
    seconds = stretch.num_frames * stretch.first.num_samples / stretch.first.stream[2]
    return stretch.seconds_before + seconds


def _part(file: ByteFile, stretch: _Stretch, following: list[_Stretch]) -> Part:
    """Return a stretch with a header that counts its frames.

    Args:
        file: File.
        stretch: Stretch of frames.
        following: Those up to the next header: its own may count them.
    """
    header, frame, gaps = stretch.header, stretch.first, tuple(stretch.gaps)
    length = stretch.num_frames * frame.num_samples
    if frame.stream[1] != 3:  # only layer 3 has such headers
        return Part(start=stretch.start, stop=stretch.stop, num_frames=length, gaps=gaps)
    if header is not None and header.num_frames is not None:
        found = stretch.num_frames + sum(other.num_frames for other in following)
        stop = following[-1].stop if following else stretch.stop
        # Some count the frame of the header too: then all bytes are there.
        has_bytes = header.is_vbri or stretch.start + (header.num_bytes or 0) <= stop
        if header.num_frames - found > (1 if has_bytes else 0):
            raise truncated(
                file.path,
                f"its header promises {header.num_frames} frames, but {found} are there, "
                f"up to {_end_seconds(following[-1] if following else stretch):.2f} s",
            )
        if header.num_frames - stretch.num_frames in (0, 1) and not header.is_vbri:
            return Part(start=stretch.start, stop=stretch.stop, gaps=gaps)
    if header is None or header.is_vbri or header.num_frames is None or not header.num_bytes:
        start = stretch.start + (frame.num_bytes if header is not None else 0)
        head = _info_frames(file.read(start, 4), stretch.num_frames, stretch.num_bytes_from(start))
        return Part(start=start, stop=stretch.stop, head=head, num_frames=length, gaps=gaps)
    changed = bytearray(file.read(stretch.start, frame.num_bytes))
    counts = (stretch.num_frames, stretch.num_bytes_from(stretch.start))
    location = header.location + 8
    changed[location : location + 8] = b"".join(count.to_bytes(4, "big") for count in counts)
    flags = changed[header.location + 7]
    # LAME's delay and padding, 12 bits each: the padding is that of another end, and cuts nothing here.
    delay = location + 8 + (100 if flags & 4 else 0) + (4 if flags & 8 else 0) + _LAME_DELAY_OFFSET
    if delay + 3 <= len(changed):
        changed[delay + 1] &= 0xF0
        changed[delay + 2] = 0
    return Part(
        start=stretch.start + frame.num_bytes, stop=stretch.stop, head=bytes(changed), gaps=gaps
    )


def _info_frames(header: bytes, num_frames: int, num_bytes: int) -> bytes:
    """Make frames to come before a stream without a header: an Info header, and a frame of silence.

    With such a header, decoders cut 529 samples, the delay of the MPEG decoder; without it, ffmpeg and
    libsndfile cut nothing. To keep all of the stream, the silence is cut: it has 529 samples more than the
    delay in the header.

    Args:
        header: Header of a frame of the stream.
        num_frames: Number of frames of the stream.
        num_bytes: Size of the stream.
    """
    # Without a checksum, and at 320 or 160 kbit/s, so that it is large enough.
    changed = bytes([0xFF, header[1] | 1, (header[2] & 0x0D) | 0xE0, header[3]])
    frame = parse_frame(changed)
    assert frame is not None
    silence = changed + bytes(frame.num_bytes - 4)
    counts = (3, num_frames + 1, num_bytes + 2 * len(silence))
    delay = (frame.num_samples - _DECODER_DELAY) << 12
    info = b"Info" + b"".join(count.to_bytes(4, "big") for count in counts)
    info += b"LAME".ljust(_LAME_DELAY_OFFSET, b"\0") + delay.to_bytes(3, "big")
    location = 4 + frame.side_bytes
    return changed + silence[4:location] + info + silence[location + len(info) :] + silence
