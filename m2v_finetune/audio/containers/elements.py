"""MP4, Matroska and ASF: elements with sizes, which ffmpeg decodes.

ffmpeg reads the first file of several that were joined by `cat`, and does not report an element that ends
behind the file.

Sources: ISO 14496-12 section 4.2 (MP4); RFC 8794 sections 4 to 6 and RFC 9559 (Matroska, WebM); Microsoft,
Advanced Systems Format revision 01.20.06 sections 2 and 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from m2v_finetune.audio.containers import adts
from m2v_finetune.audio.containers.source import GET_AGAIN, ByteFile, Part, skip_tags, truncated
from m2v_finetune.errors import AudioError

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_MAX_ASF_HEADER_BYTES = 1 << 16

# Elements of files that are cut; others that end behind the file are something that was put behind it.
_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"free", b"skip", b"uuid")
_MAX_ELEMENTS = 1_000_000
_FEW_BYTES = 4096

# Less than a lost block: of Opus 20 ms, of AAC 21 ms at 48 kHz. Packets of ASF hold any number of blocks, the
# last of which the next packet may complete.
_MAX_DRIFT_SECONDS = 0.015
_MAX_ASF_DRIFT_SECONDS = 0.1


def is_head(head: bytes) -> bool:
    """Recognise, by the first 16 bytes, MP4, Matroska and WebM, ASF (WMA), and AAC in ADTS frames."""
    return adts.is_head(head) or head[4:8] == b"ftyp" or head[:4] == _EBML or head == _ASF


@dataclass(frozen=True, slots=True)
class _Element:
    """Element at the top of a file.

    Attributes:
        start: Offset of its first byte.
        stop: Offset after its last, or None if it is unknown.
        opens: True if a file starts with it.
    """

    start: int
    stop: int | None
    opens: bool


def find_parts(file: ByteFile, start: int) -> list[Part]:
    """Return the files that a file holds, one after the other.

    Raises:
        AudioError: The file ends within an element.
    """
    head = file.read(start, 16)
    if adts.is_head(head):
        return adts.find_parts(file, start)
    starts = []
    end = file.size
    for element in _elements(file, start):
        if element.opens:
            starts.append(element.start)
        if element.stop is not None and element.stop > file.size:
            raise truncated(
                file.path, f"an element that ends at byte {element.stop} of {file.size}"
            )
        end = file.size if element.stop is None else element.stop
    rest = file.size - skip_tags(file, min(end, file.size))
    if rest >= _FEW_BYTES:
        raise AudioError(
            f"{file.path}: {rest} bytes follow the end that its header states, and are none of its elements: "
            f"sound that would be lost, or something else that was put behind it. {GET_AGAIN}",
            code="audio-trailing-data",
        )
    return [
        Part(
            start=begin,
            stop=stop,
            is_file=begin == 0 and len(starts) == 1,
            max_drift_seconds=_MAX_ASF_DRIFT_SECONDS if head == _ASF else _MAX_DRIFT_SECONDS,
        )
        for begin, stop in zip(starts, [*starts[1:], file.size], strict=True)
    ]


def _elements(file: ByteFile, start: int) -> Iterator[_Element]:
    """Yield the elements at the top of a file."""
    head = file.read(start, 16)
    read = _ebml if head[:4] == _EBML else _asf if head == _ASF else _box
    for _ in range(_MAX_ELEMENTS):
        element = read(file, start)
        if element is None:
            return
        yield element
        if element.stop is None or element.stop >= file.size:
            return
        start = element.stop


def _box(file: ByteFile, start: int) -> _Element | None:
    """Read a box of MP4."""
    header = file.read(start, 16)
    size, name = int.from_bytes(header[:4], "big"), header[4:8]
    if len(header) < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
        return None
    if size == 1:
        size = int.from_bytes(header[8:], "big")
    if size == 0:
        return _Element(start, file.size, name == b"ftyp")
    if start + size > file.size and name not in _BOXES:
        return None
    return _Element(start, start + size, name == b"ftyp") if size >= 8 else None


def _asf(file: ByteFile, start: int) -> _Element | None:
    """Read an object of ASF; of a stream written to a pipe the sizes after the header are wrong."""
    header = file.read(start, 24)
    size = int.from_bytes(header[16:], "little")
    opens = header[:16] == _ASF
    is_other = start + size > file.size and not opens and header[:16] != _ASF_DATA
    if size < 24 or is_other:
        return None
    if opens:
        content = file.read(start, min(size, _MAX_ASF_HEADER_BYTES))
        flags = content.find(_ASF_PROPERTIES) + 88
        if flags >= 88 and content[flags : flags + 1] and content[flags] & 1:
            following = file.find(_ASF, start + size, file.size)
            return _Element(start, next(following, None), opens)
    return _Element(start, start + size, opens)


def _ebml(file: ByteFile, start: int) -> _Element | None:
    """Read an element of Matroska; the size of a segment that was streamed is unknown."""
    header = file.read(start, 12)
    is_void = header[:1] == b"\xec"  # padding, the one element with a short name here
    if len(header) < 5 or not (is_void or header[:4] in (_EBML, _SEGMENT)):
        return None
    name_bytes = 1 if is_void else 4
    lead = header[name_bytes]
    if lead == 0:
        return None
    size_bytes = 9 - lead.bit_length()
    content = name_bytes + size_bytes
    size = int.from_bytes(header[name_bytes:content], "big") ^ 1 << 7 * size_bytes
    if size == (1 << 7 * size_bytes) - 1:
        following = file.find(_EBML, start + content, file.size)
        stop = next((location for location in following if _ebml(file, location)), None)
        return _Element(start, stop, header[:4] == _EBML)
    return _Element(start, start + content + size, header[:4] == _EBML)
