"""Plans and renders the single notes: instrument families of General MIDI, note by note."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from composer.midi import TICKS_PER_QUARTER, Note, Score, Track
from composer.render import cut, decibel_gain, render_score

NOTE_SECONDS = 1.0
HELD_SECONDS = 0.75
PITCHES = range(40, 77)
# General MIDI programs (0 to 127) by family and split: no program is in two splits.
PROGRAMS: dict[str, dict[str, tuple[int, ...]]] = {
    "brass": {"train": (56, 60, 62), "validation": (59,), "test": (57, 61)},
    "flute": {"train": (73, 75, 79), "validation": (77,), "test": (72, 74)},
    "guitar": {"train": (24, 27, 29), "validation": (28,), "test": (25, 26)},
    "keyboard": {"train": (0, 4, 6), "validation": (1,), "test": (2, 5)},
    "mallet": {"train": (8, 12, 108), "validation": (114,), "test": (11, 13)},
    "organ": {"train": (16, 19, 21), "validation": (20,), "test": (17, 18)},
    "reed": {"train": (65, 68, 71), "validation": (70,), "test": (66, 69)},
    "string": {"train": (40, 42, 48), "validation": (44,), "test": (41, 49)},
}
VELOCITIES = {"train": (55, 80, 105, 127), "validation": (70, 115), "test": (65, 95, 120)}
NOTES_PER_FAMILY = {"train": len(PITCHES), "validation": 7, "test": 11}
# One gain for all notes, so that what a velocity or an instrument makes louder stays louder.
_GAIN_DB = 12.0
# From one note to the next in one rendered file: longer than a note and any release.
_STRIDE_SECONDS = 4.0
_QUARTER_MICROSECONDS = 500_000
_TICKS_PER_SECOND = TICKS_PER_QUARTER * 1_000_000 // _QUARTER_MICROSECONDS


@dataclass(frozen=True, kw_only=True)
class NotePlan:
    """One note.

    Attributes:
        identifier: Such as ``"train-000"``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        instrument: A key of `PROGRAMS`.
        pitch: MIDI note number, one of `PITCHES`.
        velocity: 1 to 127.
        program: General MIDI program, 0 to 127.
    """

    identifier: str
    split: str
    instrument: str
    pitch: int
    velocity: int
    program: int


def plan_notes(seed: int, notes_per_family: Mapping[str, int] = NOTES_PER_FAMILY) -> list[NotePlan]:
    """All notes, sorted by identifier.

    In all splits pitches, programs and velocities are spread evenly; a family that has as many notes
    as there are pitches plays every pitch once.
    """
    plans = []
    for split, count in notes_per_family.items():
        random = Random(f"{seed}/{split}/single notes")
        pitches = cycle(random.sample(PITCHES, len(PITCHES)))
        for instrument, programs in PROGRAMS.items():
            # Shuffled, so that no pitch or velocity belongs to a program.
            velocities = _deal(random, VELOCITIES[split], count)
            dealt_programs = _deal(random, programs[split], count)
            for pitch, velocity, program in zip(
                islice(pitches, count), velocities, dealt_programs, strict=True
            ):
                index = sum(plan.split == split for plan in plans)
                plans.append(
                    NotePlan(
                        identifier=f"{split}-{index:03d}",
                        split=split,
                        instrument=instrument,
                        pitch=pitch,
                        velocity=velocity,
                        program=program,
                    )
                )
    return sorted(plans, key=lambda plan: plan.identifier)


def render_notes(
    plans: Sequence[NotePlan], soundfont: Path, fluidsynth: str
) -> dict[str, np.ndarray]:
    """The sound of notes of at most 9 programs, rendered one after the other in one run.

    Returns:
        By identifier: float64, (samples,), at `render.SAMPLE_RATE_HZ`.
    """
    programs = sorted({plan.program for plan in plans})
    tracks = []
    for channel, program in enumerate(programs):
        notes = []
        for index, plan in enumerate(plans):
            if plan.program == program:
                start = round(index * _STRIDE_SECONDS * _TICKS_PER_SECOND)
                end = start + round(HELD_SECONDS * _TICKS_PER_SECOND)
                notes.append(Note(start=start, end=end, pitch=plan.pitch, velocity=plan.velocity))
        tracks.append(
            Track(name=f"program {program}", channel=channel, program=program, notes=tuple(notes))
        )
    score = Score(quarter_microseconds=_QUARTER_MICROSECONDS, metre="4/4", tracks=tuple(tracks))
    mono = render_score(score, soundfont, fluidsynth) * decibel_gain(_GAIN_DB)
    return {
        plan.identifier: cut(mono, index * _STRIDE_SECONDS, NOTE_SECONDS)
        for index, plan in enumerate(plans)
    }


def note_row(plan: NotePlan, soundfont: str) -> dict[str, Any]:
    """The note's line of the manifest."""
    return {
        "id": plan.identifier,
        "path": f"audio/{plan.identifier}.opus",
        "split": plan.split,
        "instrument": plan.instrument,
        "pitch": plan.pitch,
        "velocity": plan.velocity,
        "program": plan.program,
        "soundfont": soundfont,
    }


def _deal(random: Random, options: Sequence[int], count: int) -> list[int]:
    """A shuffled list of `count` with each option equally often, up to one."""
    dealt = [options[index % len(options)] for index in range(count)]
    random.shuffle(dealt)
    return dealt
