"""Note annotations: MIDI files, read with exact times, and written."""

import bisect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
from numpy.typing import NDArray

from m2v_finetune.labels.midi_events import Event, Pairing, events
from m2v_finetune.labels.problems import LabelError, unreadable

PIANO_PITCHES = (21, 108)
"""Lowest and highest MIDI pitch of the piano's 88 keys, A0 to C8."""

DEFAULT_QUARTER_MICROSECONDS = 500_000  # 120 beats a minute, where a file sets no tempo
WRITTEN_TICKS_PER_QUARTER = 960
WRITTEN_TICKS_PER_SECOND = WRITTEN_TICKS_PER_QUARTER * 1_000_000 / DEFAULT_QUARTER_MICROSECONDS

_DRUM_CHANNEL = 9  # channel 10, counted from 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Notes:
    """Notes in order of onset, then pitch.

    Attributes:
        onsets_seconds: (notes,), at least 0.
        offsets_seconds: (notes,), each after its onset.
        pitches: (notes,), MIDI numbers from 0 to 127; 69 is 440 Hz.
        velocities: (notes,), from 1 to 127.
        left_out: Notes of no length, and second onsets, that `read_midi` left out, each with its location.
    """

    onsets_seconds: NDArray[np.float64]
    offsets_seconds: NDArray[np.float64]
    pitches: NDArray[np.int64]
    velocities: NDArray[np.int64]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pitches)


def read_midi(
    path: Path,
    *,
    sustain: bool,
    drums: bool = False,
    pitch_range: tuple[int, int] | None = None,
    track_name: str | None = None,
) -> Notes:
    """Read the notes of all tracks of a MIDI file, or of those with a name.

    Times follow the tempo changes of all tracks, as exactly as a float64 can. A note ends at its
    release, or where the same pitch of the same track and channel is struck again. A release
    without a note is ignored, and a note that is never ended sounds until the file ends. Notes of no
    length are left out, where others last; so is a second onset of a pitch at one time, of a track and
    channel.

    Args:
        path: A standard MIDI file of format 0 or 1.
        sustain: Let the sustain pedal hold notes, as transcription on MAESTRO does: a note whose key
            is released while the pedal of its channel (controller 64) is down, at 64 or above,
            sounds until the pedal goes up or the same pitch is struck again. Source: Hawthorne et
            al., "Onsets and Frames", arXiv 1710.11153; at one tick the pedal moves before the keys.
        drums: Read channel 10, the drums of General MIDI, too.
        pitch_range: Lowest and highest legal MIDI pitch, such as `PIANO_PITCHES`.
        track_name: Name of the tracks to read, whatever its case; all tracks if None.

    Returns:
        The notes; none where the file has none.

    Raises:
        LabelError: The file is missing, is no MIDI file, is of format 2, or counts time in SMPTE
            frames; no track has `track_name`; or lists all notes outside `pitch_range`, or all notes where
            none lasts, with their time and the track and event of their onsets, both counted from 1.
    """
    midi = _load(path)
    clock = _clock(midi)
    pairing = Pairing()
    # Sorting is stable: at one tick, pedals come first, and then all is as the file has it.
    chosen = [
        event
        for event in events(midi, _tracks_named(path, midi, track_name))
        if (sustain or not event.is_pedal) and (drums or event.message.channel != _DRUM_CHANNEL)
    ]
    for event in sorted(chosen, key=lambda event: (event.tick, not event.is_pedal)):
        pairing.take(event)
    end_tick = max((sum(message.time for message in track) for track in midi.tracks), default=0)
    for key in list(pairing.sounding):
        pairing.end(key, end_tick)

    def location(onset: Event) -> str:
        return (
            f"{path}: track {onset.track}, event {onset.number} ({clock(onset.tick):.3f} s): "
            f"the note of pitch {onset.message.note}"
        )

    pairs = sorted(pairing.pairs, key=lambda pair: (pair[0].tick, pair[0].message.note))
    silent = [onset for onset, tick in pairs if clock(tick) <= clock(onset.tick)]
    pairs = [(onset, tick) for onset, tick in pairs if clock(tick) > clock(onset.tick)]
    left_out = [
        *(f"{location(onset)} is struck twice" for onset in pairing.doubles),
        *(f"{location(onset)} lasts no time" for onset in silent),
    ]
    problems = [
        f"{location(onset)} is outside the range {pitch_range[0]} to {pitch_range[1]}"
        for onset, _ in pairs
        if pitch_range and not pitch_range[0] <= onset.message.note <= pitch_range[1]
    ]
    if not pairs:  # a file without a note of positive length is not an annotation
        problems += left_out
    if problems:
        raise LabelError(
            f"{path} has notes that cannot be used",
            problems,
            "Correct or remove these notes.",
            code="notes-invalid",
        )
    return Notes(
        onsets_seconds=np.array([clock(onset.tick) for onset, _ in pairs], dtype=np.float64),
        offsets_seconds=np.array([clock(tick) for _, tick in pairs], dtype=np.float64),
        pitches=np.array([onset.message.note for onset, _ in pairs], dtype=np.int64),
        velocities=np.array([onset.message.velocity for onset, _ in pairs], dtype=np.int64),
        left_out=tuple(left_out),
    )


def write_midi(path: Path, notes: Notes, *, program: int = 0) -> None:
    """Write notes as a MIDI file of one track on one channel, at 120 beats a minute.

    A tick is 1/1920 s, so reading the file back is exact to 0.27 ms; a note that rounds to no length
    is given one tick. One channel sounds a pitch once at a time: a note that still sounds when its
    pitch is struck again ends there.

    Args:
        path: File to write.
        notes: In any order.
        program: General MIDI's instrument, from 0 (piano) to 127.

    Raises:
        ValueError: The notes are not valid `Notes`, or two of one pitch start at one tick;
            nothing is written.
    """
    _check(notes)
    onsets = np.rint(notes.onsets_seconds * WRITTEN_TICKS_PER_SECOND).astype(np.int64)
    offsets = np.rint(notes.offsets_seconds * WRITTEN_TICKS_PER_SECOND).astype(np.int64)
    by_pitch: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for onset, offset, pitch, velocity in zip(
        onsets.tolist(),
        offsets.tolist(),
        notes.pitches.tolist(),
        notes.velocities.tolist(),
        strict=True,
    ):
        by_pitch[pitch].append((onset, max(offset, onset + 1), velocity))

    messages: list[tuple[int, int, int, int]] = []  # tick, 0 for a release, pitch, velocity
    for pitch, strokes in by_pitch.items():
        strokes.sort()
        next_onsets = [onset for onset, _, _ in strokes[1:]]
        for (onset, offset, velocity), next_onset in zip(
            strokes, [*next_onsets, strokes[-1][1]], strict=True
        ):
            if next_onset == onset:
                seconds = onset / WRITTEN_TICKS_PER_SECOND
                raise ValueError(f"pitch {pitch} is struck twice at {seconds:.4f} s")
            messages.append((onset, 1, pitch, velocity))
            messages.append((min(offset, next_onset), 0, pitch, 0))

    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=DEFAULT_QUARTER_MICROSECONDS),
            mido.Message("program_change", program=program),
        ]
    )
    now = 0
    for tick, is_onset, pitch, velocity in sorted(messages):
        kind = "note_on" if is_onset else "note_off"
        track.append(mido.Message(kind, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    midi = mido.MidiFile(type=0, ticks_per_beat=WRITTEN_TICKS_PER_QUARTER, tracks=[track])
    midi.save(path)


def _load(path: Path) -> mido.MidiFile:
    if not path.is_file():
        raise unreadable(path, "there is no such file")
    try:
        with path.open("rb") as file:
            midi = mido.MidiFile(file=file)
            behind = file.read()
    except PermissionError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    except (EOFError, OSError, ValueError, LookupError, mido.KeySignatureError) as error:
        # A broken file makes mido raise whatever its parser stumbles over.
        reason = str(error) or "it ends too early"
        raise unreadable(path, f"no standard MIDI file ({reason})") from error
    # The header, or the length of a track, may promise less than there is.
    is_cut = any(not track or track[-1].type != "end_of_track" for track in midi.tracks[-1:])
    if not midi.tracks or b"MTrk" in behind or b"MThd" in behind or (behind and is_cut):
        raise unreadable(
            path,
            f"its header counts {len(midi.tracks)} tracks, and more follows"
            if behind
            else "it has no track",
            advice="Save it again.",
        )
    if midi.type == 2:
        raise unreadable(
            path, "format 2, whose tracks share no time; save it again in format 0 or 1"
        )
    if midi.ticks_per_beat <= 0:
        raise unreadable(path, "its time is in SMPTE frames; save it again in ticks a quarter note")
    return midi


def _tracks_named(path: Path, midi: mido.MidiFile, name: str | None) -> list[int]:
    """Return the numbers of the tracks with a name, from 1."""
    names = [track.name.strip() for track in midi.tracks]
    numbers = range(1, len(names) + 1)
    if name is None:
        return list(numbers)
    found = [n for n in numbers if names[n - 1].lower() == name.lower()]
    if not found:
        raise unreadable(
            path,
            f"no track is named '{name}', but {names}",
            advice=f"Name the track '{name}' in the MIDI file.",
        )
    return found


def _clock(midi: mido.MidiFile) -> Callable[[int], float]:
    """Return the function from a tick to its time in seconds, by the tempo changes of all tracks."""
    changes = [(0, DEFAULT_QUARTER_MICROSECONDS)]
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            if message.type == "set_tempo":
                changes.append((tick, message.tempo))
    changes.sort(key=lambda change: change[0])
    ticks = [tick for tick, _ in changes]
    # Time at each change, as an integer number of microseconds x ticks a quarter: nothing is rounded.
    elapsed = [0]
    for (tick, tempo), next_tick in zip(changes, ticks[1:], strict=False):
        elapsed.append(elapsed[-1] + (next_tick - tick) * tempo)

    def seconds(tick: int) -> float:
        index = bisect.bisect_right(ticks, tick) - 1
        scaled = elapsed[index] + (tick - ticks[index]) * changes[index][1]
        return float(scaled / (midi.ticks_per_beat * 1_000_000))

    return seconds


def _check(notes: Notes) -> None:
    """Raise ValueError if notes are not valid `Notes`."""
    arrays = (notes.onsets_seconds, notes.offsets_seconds, notes.pitches, notes.velocities)
    if len({array.shape for array in arrays}) != 1 or notes.pitches.ndim != 1:
        raise ValueError(f"notes need four arrays (notes,), not {[a.shape for a in arrays]}")
    onsets, offsets, pitches, velocities = arrays
    legal = {
        "onsets are finite and at least 0": np.isfinite(onsets) & (onsets >= 0),
        "offsets are finite and after their onset": np.isfinite(offsets) & (offsets > onsets),
        "pitches are 0 to 127": (pitches >= 0) & (pitches <= 127),
        "velocities are 1 to 127": (velocities >= 1) & (velocities <= 127),
    }
    for rule, holds in legal.items():
        if not holds.all():
            raise ValueError(
                f"{rule}, but not those of the notes {np.flatnonzero(~holds).tolist()}"
            )
