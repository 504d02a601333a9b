"""Packets of Vorbis and Opus in pages of Ogg: how many frames they decode to, without decoding them.

Sources: Vorbis I specification, sections 4.2 and 4.3 (headers, modes, and the frames of a packet), RFC 6716,
section 3.1 (the first bytes of an Opus packet), and RFC 3533, section 6 (lacing).
"""

from abc import ABC, abstractmethod

_PAGE_HEADER_BYTES = 27
_VORBIS, _OPUS = b"\x01vorbis", b"OpusHead"
_NUM_VORBIS_HEADERS, _NUM_OPUS_HEADERS = 3, 2
_OPUS_RATE = 48_000

# Of a Vorbis mode: a flag for long blocks, types of window and transform, a mapping. Their number is first.
_MODE_BITS, _TYPES, _MAX_MAPPING, _NUMBER_BITS = 41, (1 << 32) - 1, 63, 6
# Of the most modes, with the bit that ends the header.
_MODES_BYTES = (64 * _MODE_BITS + _NUMBER_BITS) // 8 + 2


class FrameCounter(ABC):
    """Frames of a stream, counted page by page.

    Attributes:
        rate: Frames a second.
        num_frames: Frames of the packets that end on the pages so far.
        has_sound: A packet of sound has ended.
    """

    rate: int

    def __init__(self) -> None:
        self.num_frames = 0
        self._packet = bytearray()
        self._num_packets = 0
        self._num_headers = 0

    @property
    def has_sound(self) -> bool:
        """Return True if a packet behind the headers has ended."""
        return self._num_packets > self._num_headers

    def add(self, page: bytes) -> None:
        """Count the packets that end on a page.

        Args:
            page: The complete page.
        """
        offset = _PAGE_HEADER_BYTES + page[26]
        for size in page[_PAGE_HEADER_BYTES:offset]:
            # Of a packet of sound the first two bytes count.
            if self._num_packets < self._num_headers or len(self._packet) < 2:
                self._packet += page[offset : offset + size]
            offset += size
            if size < 255:
                if self._num_packets < self._num_headers:
                    self._read_header(self._num_packets, bytes(self._packet))
                elif self._packet:
                    self.num_frames += self._frames(bytes(self._packet))
                self._num_packets += 1
                self._packet.clear()

    @abstractmethod
    def _read_header(self, number: int, packet: bytes) -> None:
        """Read a header."""

    @abstractmethod
    def _frames(self, packet: bytes) -> int:
        """Return the frames that a packet adds."""


class _VorbisCounter(FrameCounter):
    """Vorbis: a block overlaps the one before, and two of lengths a and b give (a + b) / 4 frames."""

    def __init__(self) -> None:
        super().__init__()
        self._num_headers = _NUM_VORBIS_HEADERS
        self._lengths = (0, 0)
        self._are_long: list[bool] = []
        self._before: int | None = None

    def _read_header(self, number: int, packet: bytes) -> None:
        if number == 0:
            self.rate = int.from_bytes(packet[12:16], "little")
            self._lengths = 1 << (packet[28] & 15), 1 << (packet[28] >> 4)
        elif number == _NUM_VORBIS_HEADERS - 1:
            self._are_long = _modes(packet)

    def _frames(self, packet: bytes) -> int:
        if packet[0] & 1:  # no sound
            return 0
        mode = packet[0] >> 1 & (1 << (len(self._are_long) - 1).bit_length()) - 1
        if mode >= len(self._are_long):
            return 0
        length = self._lengths[self._are_long[mode]]
        added = 0 if self._before is None else (self._before + length) // 4
        self._before = length
        return added


def _modes(setup: bytes) -> list[bool]:
    """Return which modes have long blocks, read from the end of the setup header; empty if there are none.

    The length of what comes before is known to a decoder alone. A mode has 40 bits that are nearly all zero.
    """
    bits = int.from_bytes(setup.rstrip(b"\0")[-_MODES_BYTES:], "little")
    stop = bits.bit_length() - 1  # the last bit that is set ends the header
    found: list[bool] = []
    modes: list[bool] = []
    while stop >= _MODE_BITS + _NUMBER_BITS:
        stop -= _MODE_BITS
        mode = bits >> stop & (1 << _MODE_BITS) - 1
        if mode >> 1 & _TYPES or mode >> 33 > _MAX_MAPPING:
            break
        modes.insert(0, bool(mode & 1))
        if bits >> stop - _NUMBER_BITS & (1 << _NUMBER_BITS) - 1 == len(modes) - 1:
            found = modes.copy()
    return found


class _OpusCounter(FrameCounter):
    """Opus: the first byte has the length of a frame, and it or the second their number."""

    rate = _OPUS_RATE

    def __init__(self) -> None:
        super().__init__()
        self._num_headers = _NUM_OPUS_HEADERS

    def _read_header(self, number: int, packet: bytes) -> None:
        pass

    def _frames(self, packet: bytes) -> int:
        kind, code = packet[0] >> 3, packet[0] & 3
        if kind < 12:
            length = (480, 960, 1920, 2880)[kind & 3]
        elif kind < 16:
            length = (480, 960)[kind & 1]
        else:
            length = 120 << (kind & 3)
        if code == 3:
            return length * (packet[1] & 63) if len(packet) > 1 else 0
        return length if code == 0 else 2 * length


def frame_counter(first_page: bytes) -> FrameCounter | None:
    """Return a counter for a stream, by its first page; None if it is neither Vorbis nor Opus."""
    packet = first_page[_PAGE_HEADER_BYTES + first_page[26] :]
    if packet.startswith(_VORBIS) and len(packet) >= 30:
        return _VorbisCounter()
    return _OpusCounter() if packet.startswith(_OPUS) else None
