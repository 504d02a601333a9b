"""Messages of MIDI files, paired into notes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mido

SUSTAIN_CONTROLLER = 64
PEDAL_IS_DOWN_FROM = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Message of a note or of the sustain pedal; `track` and `number` count from 1."""

    tick: int
    track: int
    number: int
    message: mido.Message

    @property
    def is_pedal(self) -> bool:
        """Whether it moves the sustain pedal."""
        return bool(self.message.type == "control_change")

    @property
    def is_onset(self) -> bool:
        """Whether it starts a note: many files end one by an onset of velocity 0."""
        return bool(self.message.type == "note_on" and self.message.velocity > 0)

    @property
    def key(self) -> tuple[int, int, int]:
        """Voice with one note at a time: a pitch of a channel of a track."""
        return self.track, self.message.channel, self.message.note


@dataclass(kw_only=True, slots=True)
class Sounding:
    """Open note; `awaits_release_of_last` is True if it cut off one that was still pressed."""

    onset: Event
    is_pressed: bool = True
    awaits_release_of_last: bool = False


@dataclass(kw_only=True, slots=True)
class Pairing:
    """Turns events into pairs of an onset and the tick at which its note ends.

    Attributes:
        sounding: Open notes, by voice.
        pedals_down: Channels whose sustain pedal is down.
        pairs: Ended notes: onset and tick of the end.
        doubles: Onsets of a note that started at the same tick already.
    """

    sounding: dict[tuple[int, int, int], Sounding] = field(default_factory=dict)
    pedals_down: set[int] = field(default_factory=set)
    pairs: list[tuple[Event, int]] = field(default_factory=list)
    doubles: list[Event] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Take the next event, in order of ticks."""
        if event.is_pedal:
            self._move_pedal(event)
        elif event.is_onset:
            self._start_note(event)
        else:
            self._release(event)

    def end(self, key: tuple[int, int, int], tick: int) -> None:
        """End the open note of a voice."""
        self.pairs.append((self.sounding.pop(key).onset, tick))

    def _move_pedal(self, event: Event) -> None:
        channel = event.message.channel
        if event.message.value >= PEDAL_IS_DOWN_FROM:
            self.pedals_down.add(channel)
            return
        self.pedals_down.discard(channel)
        held = [key for key, note in self.sounding.items() if not note.is_pressed]
        for key in held:
            if key[1] == channel:
                self.end(key, event.tick)

    def _start_note(self, event: Event) -> None:
        last = self.sounding.get(event.key)
        if last is not None and last.onset.tick == event.tick and last.is_pressed:
            self.doubles.append(event)
            return
        if last is not None:
            self.end(event.key, event.tick)
        self.sounding[event.key] = Sounding(
            onset=event, awaits_release_of_last=last is not None and last.is_pressed
        )

    def _release(self, event: Event) -> None:
        note = self.sounding.get(event.key)
        if note is None or not note.is_pressed:
            return
        if note.awaits_release_of_last and note.onset.tick == event.tick:
            # Written after the next onset at the same tick, this ends the note before.
            note.awaits_release_of_last = False
        elif event.message.channel in self.pedals_down:
            note.is_pressed = False
        else:
            self.end(event.key, event.tick)


def events(midi: mido.MidiFile, numbers: Sequence[int]) -> Iterator[Event]:
    """Yield the messages of notes and sustain pedals, track by track."""
    for track_number in numbers:
        track = midi.tracks[track_number - 1]
        tick = 0
        for number, message in enumerate(track, start=1):
            tick += message.time
            if message.type in ("note_on", "note_off") or (
                message.type == "control_change" and message.control == SUSTAIN_CONTROLLER
            ):
                yield Event(tick=tick, track=track_number, number=number, message=message)
