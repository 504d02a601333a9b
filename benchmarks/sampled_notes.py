"""Reads the recordings of single notes out of sound fonts (SF2) and GUS patches.

Sources: SoundFont Technical Specification 2.04 (E-mu, 2006), sections 4 to 8; the layout of GUS patches as
TiMidity++ reads it (instrum.c).
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

# Generators of SoundFont 2.04, section 8.1.2.
_INSTRUMENT, _COARSE_TUNE, _SAMPLE, _ROOT_KEY = 41, 51, 53, 58
_RIGHT = 2
_NO_KEY = 255
_PATCH_HEADER_BYTES, _WAVE_HEADER_BYTES = 129 + 63 + 47, 96


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording of one note.

    Attributes:
        name: As in the library.
        program: General MIDI program, 0 to 127.
        pitch: MIDI note number of the recorded sound.
        rate_hz: Sample rate.
        samples: float32, (samples,), in [-1, 1].
        loop: First and last sample of the part that is repeated while a key is down; None if there is none.
    """

    name: str
    program: int
    pitch: int
    rate_hz: int
    samples: np.ndarray
    loop: tuple[int, int] | None

    def held(self, seconds: float) -> np.ndarray:
        """Return the note as a held key sounds, at most `seconds` long: the loop is repeated."""
        count = round(seconds * self.rate_hz)
        if self.loop is None or self.loop[1] >= count:
            return self.samples[:count]
        start, end = self.loop
        repeats = -(-(count - start) // (end - start))
        held = np.concatenate([self.samples[:start], np.tile(self.samples[start:end], repeats)])
        return held[:count]


def read_soundfont(path: Path) -> Iterator[Recording]:
    """Yield the recordings of a sound font's melodic presets of bank 0, each once.

    Of a stereo pair the left one is taken. Left out: recordings of several programs' presets at different
    pitches keep the first; zones that are transposed against their root key.
    """
    content = path.read_bytes()
    chunks = dict(_chunks(content, 12, len(content)))
    presets = _records(content, chunks[b"phdr"], "<20sHHH12x")
    preset_zones = _zones(content, chunks[b"pbag"], chunks[b"pgen"])
    instruments = _records(content, chunks[b"inst"], "<20sH")
    instrument_zones = _zones(content, chunks[b"ibag"], chunks[b"igen"])
    headers = _records(content, chunks[b"shdr"], "<20sIIIIIBbHH")
    data_start = chunks[b"smpl"][0]
    seen: set[int] = set()
    for (_, program, bank, first), (_, _, _, last) in pairwise(presets):
        if bank != 0:
            continue
        for preset_zone in preset_zones[first:last]:
            if _INSTRUMENT not in preset_zone or preset_zone.get(_COARSE_TUNE):
                continue
            index = preset_zone[_INSTRUMENT]
            defaults: dict[int, int] = {}
            for zone in instrument_zones[instruments[index][1] : instruments[index + 1][1]]:
                if _SAMPLE not in zone:
                    defaults = zone
                    continue
                settings = defaults | zone
                number = settings[_SAMPLE]
                name, start, end, loop_start, loop_end, rate, key, _, _, kind = headers[number]
                key = settings.get(_ROOT_KEY, key)
                if number in seen or kind & _RIGHT or key == _NO_KEY or settings.get(_COARSE_TUNE):
                    continue
                seen.add(number)
                raw = np.frombuffer(content, "<i2", end - start, data_start + 2 * start)
                has_loop = start < loop_start + 8 < loop_end <= end
                yield Recording(
                    name=name.split(b"\0")[0].decode("latin-1"),
                    program=program,
                    pitch=key,
                    rate_hz=rate,
                    samples=raw.astype(np.float32) / 32768,
                    loop=(loop_start - start, loop_end - start) if has_loop else None,
                )


def _chunks(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Yield name, and first byte and size, of all chunks in a RIFF file; lists are entered."""
    while start + 8 <= end:
        name, size = content[start : start + 4], struct.unpack_from("<I", content, start + 4)[0]
        if name == b"LIST":
            yield from _chunks(content, start + 12, start + 8 + size)
        else:
            yield name, (start + 8, size)
        start += 8 + size + size % 2


def _records(content: bytes, chunk: tuple[int, int], layout: str) -> list[tuple]:
    start, size = chunk
    return list(struct.iter_unpack(layout, content[start : start + size]))


def _zones(
    content: bytes, bags: tuple[int, int], generators: tuple[int, int]
) -> list[dict[int, int]]:
    """Return the generators of each zone, value by number."""
    firsts = [first for first, _ in _records(content, bags, "<HH")]
    pairs = _records(content, generators, "<Hh")
    return [dict(pairs[a:b]) for a, b in pairwise(firsts)]


def read_patches(folder: Path) -> Iterator[Recording]:
    """Yield the recordings of GUS patches, named ``<program>_<name>.pat``."""
    for path in sorted(folder.glob("*.pat")):
        content = path.read_bytes()
        count = content[_PATCH_HEADER_BYTES - 41]
        position = _PATCH_HEADER_BYTES
        for index in range(count):
            size, loop_start, loop_end, rate, _, _, root = struct.unpack_from(
                "<IIIHIII", content, position + 8
            )
            modes = content[position + 55]
            position += _WAVE_HEADER_BYTES
            is_wide, is_unsigned, is_looped = modes & 1, modes & 2, modes & 4
            kind = ("<u2" if is_unsigned else "<i2") if is_wide else ("u1" if is_unsigned else "i1")
            width = 2 if is_wide else 1
            raw = np.frombuffer(content, kind, size // width, position).astype(np.float32)
            position += size
            scale = 2.0 ** (8 * width - 1)
            samples = (raw - scale if is_unsigned else raw) / scale
            loop = (loop_start // width, loop_end // width)
            yield Recording(
                name=f"{path.stem} {index}",
                program=int(path.name[:3]),
                pitch=round(69 + 12 * np.log2(root / 440_000)),
                rate_hz=rate,
                samples=samples,
                loop=loop if is_looped and loop[1] > loop[0] + 8 else None,
            )


def without_doubles(recordings: Iterator[Recording]) -> list[Recording]:
    """Return the recordings whose sound no earlier one has."""
    found: dict[bytes, list[Recording]] = defaultdict(list)
    for recording in recordings:
        found[recording.samples[:4000].tobytes()].append(recording)
    return [same[0] for same in found.values()]
