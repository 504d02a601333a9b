"""Standard MIDI files: as much of the format as the quickstart needs, written and read.

Source: "Standard MIDI Files 1.0", MIDI Manufacturers Association (1988).
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_QUARTER = 960
DRUM_CHANNEL = 9


@dataclass(frozen=True, kw_only=True, order=True)
class Note:
    """One note.

    Attributes:
        start: Onset in ticks.
        end: Release in ticks, above `start`.
        pitch: MIDI note number, 0 to 127.
        velocity: 1 to 127.
    """

    start: int
    end: int
    pitch: int
    velocity: int


@dataclass(frozen=True, kw_only=True)
class Track:
    """The notes of one role on one channel with one program (0 to 127, General MIDI minus one)."""

    name: str
    channel: int
    program: int
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a MIDI file says.

    Attributes:
        quarter_microseconds: Duration of a quarter note.
        metre: Such as ``"6/8"``.
        tracks: One a role.
    """

    quarter_microseconds: int
    metre: str
    tracks: tuple[Track, ...]


def seconds_of(ticks: int, quarter_microseconds: int) -> float:
    """The time of `ticks` in seconds, at a constant tempo."""
    return ticks * quarter_microseconds / (TICKS_PER_QUARTER * 1_000_000)


def encode_midi(score: Score) -> bytes:
    """The bytes of a format 1 file: a conductor track, then one track a role."""
    beats, unit = (int(part) for part in score.metre.split("/"))
    conductor = [
        (0, b"\xff\x51\x03" + score.quarter_microseconds.to_bytes(3, "big")),
        (0, bytes([0xFF, 0x58, 4, beats, unit.bit_length() - 1, 36 if unit == 8 else 24, 8])),
    ]
    chunks = [_encode_track(conductor)]
    for track in score.tracks:
        name = track.name.encode("ascii")
        events = [
            (0, b"\xff\x03" + bytes([len(name)]) + name),
            (0, bytes([0xC0 | track.channel, track.program])),
        ]
        # At one tick releases come before onsets, so that a repeated pitch is struck again.
        notes = [
            (tick, onset, note.pitch, velocity)
            for note in track.notes
            for tick, onset, velocity in ((note.start, 1, note.velocity), (note.end, 0, 0))
        ]
        for tick, onset, pitch, velocity in sorted(notes):
            status = (0x90 if onset else 0x80) | track.channel
            events.append((tick, bytes([status, pitch, velocity])))
        chunks.append(_encode_track(events))
    header = struct.pack(">4sIHHH", b"MThd", 6, 1, len(chunks), TICKS_PER_QUARTER)
    return header + b"".join(chunks)


def decode_midi(path: Path) -> Score:
    """Read a file that `encode_midi` wrote; the general reader is any MIDI library."""
    data = path.read_bytes()
    quarter_microseconds, metre, tracks = 0, "", []
    position = 14
    while position < len(data):
        _, length = struct.unpack_from(">4sI", data, position)
        chunk = data[position + 8 : position + 8 + length]
        position += 8 + length
        name, channel, program, notes = "", 0, 0, []
        sounding: dict[int, tuple[int, int]] = {}
        for tick, event in _decode_track(chunk):
            kind = event[0] & 0xF0
            if event[:2] == b"\xff\x51":
                quarter_microseconds = int.from_bytes(event[3:], "big")
            elif event[:2] == b"\xff\x58":
                metre = f"{event[3]}/{2 ** event[4]}"
            elif event[:2] == b"\xff\x03":
                name = event[3:].decode("ascii")
            elif kind == 0xC0:
                channel, program = event[0] & 0x0F, event[1]
            elif kind == 0x90:
                sounding[event[1]] = (tick, event[2])
            elif kind == 0x80:
                start, velocity = sounding.pop(event[1])
                notes.append(Note(start=start, end=tick, pitch=event[1], velocity=velocity))
        if name:
            notes.sort()
            tracks.append(Track(name=name, channel=channel, program=program, notes=tuple(notes)))
    return Score(quarter_microseconds=quarter_microseconds, metre=metre, tracks=tuple(tracks))


def _encode_track(events: Sequence[tuple[int, bytes]]) -> bytes:
    body, now = b"", 0
    for tick, event in events:
        body += _encode_length(tick - now) + event
        now = tick
    body += b"\x00\xff\x2f\x00"
    return struct.pack(">4sI", b"MTrk", len(body)) + body


def _encode_length(value: int) -> bytes:
    encoded = bytes([value & 0x7F])
    while value := value >> 7:
        encoded = bytes([0x80 | (value & 0x7F)]) + encoded
    return encoded


def _decode_track(chunk: bytes) -> Iterator[tuple[int, bytes]]:
    tick = position = 0
    while position < len(chunk):
        delta = 0
        while chunk[position] & 0x80:
            delta = delta << 7 | chunk[position] & 0x7F
            position += 1
        tick += delta << 7 | chunk[position]
        position += 1
        status = chunk[position]
        size = 2 if status & 0xF0 == 0xC0 else 3
        if status == 0xFF:
            size = 3 + chunk[position + 2]
        yield tick, chunk[position : position + size]
        position += size
