"""Plans the pieces of a split and writes the notes of one."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import TypeVar

from composer import theory
from composer.midi import DRUM_CHANNEL, TICKS_PER_QUARTER, Note, Score, Track, seconds_of
from composer.styles import (
    ALL_STYLES,
    DRUM_PITCHES,
    FAMILIES,
    MELODY_RANGES,
    STEPS_PER_BAR,
    STEPS_PER_BEAT,
    STYLES,
    DrumPattern,
    Style,
    read_pattern,
)

CLIP_SECONDS = 8.0
TICKS_PER_STEP = TICKS_PER_QUARTER // 4
ROLES = ("drums", "bass", "chords", "melody")
_CHANNELS = {"drums": DRUM_CHANNEL, "bass": 0, "chords": 1, "melody": 2}
_DRUM_VELOCITIES = {"X": 112, "x": 88, "o": 54}
Pattern = TypeVar("Pattern", str, DrumPattern)
_BASS_DEGREES = {"R": 0, "3": 1, "5": 2, "8": 0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything decided about a piece before a note is written.

    Attributes:
        identifier: Such as ``"train-000"``.
        title: Such as ``"Waltz No. 12 in F minor"``; unique over all splits.
        style: A key of `ALL_STYLES`.
        metre: ``"3/4"``, ``"4/4"`` or ``"6/8"``.
        key: One of `theory.KEYS`.
        quarter_microseconds: Duration of a quarter note, a whole number as in MIDI.
        energy: 0 to 1: velocity, density and loudness rise with it.
        families: The family of each role but the drums that the piece has.
        programs: The General MIDI program of each role that the piece has, drums included.
        has_break: Whether one bar has no chord.
    """

    identifier: str
    title: str
    style: str
    metre: str
    key: str
    quarter_microseconds: int
    energy: float
    families: dict[str, str]
    programs: dict[str, int]
    has_break: bool

    @property
    def beat_seconds(self) -> float:
        """Duration of a beat: a quarter note, or a dotted one in 6/8."""
        return seconds_of(STEPS_PER_BEAT[self.metre] * TICKS_PER_STEP, self.quarter_microseconds)

    @property
    def tempo_bpm(self) -> float:
        """Beats a minute."""
        return 60 / self.beat_seconds

    @property
    def loudness_dbfs(self) -> float:
        """The root mean square level of the clip in dB of full scale: -32 to -20."""
        return -32 + 12 * self.energy


@dataclass(frozen=True, kw_only=True)
class ChordSpan:
    """A chord, or none, from `start` to `end` in ticks of the piece."""

    start: int
    end: int
    chord: theory.Chord | None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A written piece.

    Attributes:
        plan: Its plan.
        chords: Spans that cover it without gaps.
        score: Its notes, one track a role, in the order of `ROLES`.
        clip_start: The tick at which the clip begins, within the first bar.
    """

    plan: Plan
    chords: tuple[ChordSpan, ...]
    score: Score
    clip_start: int


def plan_split(
    split: str,
    count: int,
    seed: int,
    *,
    styles: Mapping[str, Style] = STYLES,
    family_programs: Mapping[str, tuple[int, ...]] = FAMILIES,
) -> list[Plan]:
    """Plan the pieces of a split, with styles, metres, keys and instruments spread evenly."""
    random = Random(f"{seed}/{split}")
    dealt_styles = _deal(random, tuple(styles), count)
    keys = _deal(random, theory.KEYS, count)
    dealt_metres = {name: _deal(random, style.metres, count) for name, style in styles.items()}
    used: Counter[tuple[str, str]] = Counter()
    numbers: Counter[str] = Counter()
    plans = []
    for index, (style_name, key) in enumerate(zip(dealt_styles, keys, strict=True)):
        numbers[style_name] += 1
        plans.append(
            plan_piece(
                random,
                identifier=f"{split}-{index:03d}",
                title=f"{style_name.capitalize()} in {key}, {split} No. {numbers[style_name]}",
                style=style_name,
                metre=dealt_metres[style_name].pop(),
                key=key,
                used=used,
                family_programs=family_programs,
            )
        )
    return plans


def plan_piece(
    random: Random,
    *,
    identifier: str,
    title: str,
    style: str,
    metre: str,
    key: str,
    used: Counter[tuple[str, str]],
    family_programs: Mapping[str, tuple[int, ...]],
) -> Plan:
    """Decide what is left open of a piece: tempo, energy, instruments, roles.

    Args:
        random: Where the decisions come from.
        identifier: Name of the piece.
        title: Its title.
        style: A key of `ALL_STYLES`.
        metre: One of the style's.
        key: One of `theory.KEYS`.
        used: How often each family has been chosen; the piece's own are counted.
        family_programs: The General MIDI programs (0 to 127) of each family.
    """
    manner = ALL_STYLES[style]
    slowest, fastest = manner.tempo_bpm[metre]
    # Evenly on a logarithmic scale, in whole beats a minute.
    tempo_bpm = round(slowest * (fastest / slowest) ** random.random())
    families = _choose_families(random, manner, used)
    programs = {role: random.choice(family_programs[family]) for role, family in families.items()}
    if random.random() < manner.drums_share:
        programs["drums"] = random.choice(manner.kits)
    return Plan(
        identifier=identifier,
        title=title,
        style=style,
        metre=metre,
        key=key,
        quarter_microseconds=round(60_000_000 / tempo_bpm * 4 / STEPS_PER_BEAT[metre]),
        energy=round(random.random(), 3),
        families=families,
        programs={role: programs[role] for role in ROLES if role in programs},
        has_break="drums" in programs and random.random() < 0.25,
    )


def compose(plan: Plan, seed: int, seconds: float = CLIP_SECONDS) -> Piece:
    """Write the piece of a plan: as many bars as a clip of `seconds` can reach."""
    random = Random(f"{seed}/{plan.identifier}/notes")
    bar_ticks = STEPS_PER_BAR[plan.metre] * TICKS_PER_STEP
    bar_seconds = seconds_of(bar_ticks, plan.quarter_microseconds)
    num_bars = 1 + ceil(seconds / bar_seconds)
    # The cut falls anywhere in the first three quarters of a bar, so that no clip can count on
    # beginning with a downbeat.
    clip_start = random.randrange(0, bar_ticks * 3 // 4)
    chords = _write_progression(random, plan, num_bars)
    writers = {
        "drums": _write_drums,
        "bass": _write_bass,
        "chords": _write_chords,
        "melody": _write_melody,
    }
    tracks = tuple(
        Track(
            name=role,
            channel=_CHANNELS[role],
            program=program,
            notes=_humanise(random, plan, writers[role](random, plan, chords, num_bars)),
        )
        for role, program in plan.programs.items()
    )
    score = Score(quarter_microseconds=plan.quarter_microseconds, metre=plan.metre, tracks=tracks)
    return Piece(plan=plan, chords=chords, score=score, clip_start=clip_start)


def _deal(random: Random, options: tuple[str, ...], count: int) -> list[str]:
    """A shuffled list of `count` with each option equally often, up to one."""
    dealt = [options[index % len(options)] for index in range(count)]
    random.shuffle(dealt)
    return dealt


def _choose_families(
    random: Random, style: Style, used: Counter[tuple[str, str]]
) -> dict[str, str]:
    """A family for each role but the drums: of those allowed, one of the least used so far."""
    families: dict[str, str] = {}
    for role, options, share in (
        ("bass", style.bass, style.bass_share),
        ("chords", style.chords, 1.0),
        ("melody", style.melody, style.melody_share),
    ):
        if random.random() >= share:
            continue
        free = [family for family in options if family not in families.values()]
        family = min(free, key=lambda name: (used["any", name] // 2, random.random()))
        used["any", family] += 1
        families[role] = family
    return families


def _write_progression(random: Random, plan: Plan, num_bars: int) -> tuple[ChordSpan, ...]:
    """One chord a bar or, in slow pieces more often, two; phrases of four chords."""
    _, mode = theory.parse_key(plan.key)
    steps_per_bar, steps_per_beat = STEPS_PER_BAR[plan.metre], STEPS_PER_BEAT[plan.metre]
    bar_seconds = seconds_of(steps_per_bar * TICKS_PER_STEP, plan.quarter_microseconds)
    two_a_bar = random.random() < (0.75 if bar_seconds > 2.4 else 0.15)
    beats = steps_per_bar // steps_per_beat
    # In 3/4 the second chord comes on the third beat.
    second = (beats - beats // 2) * steps_per_beat
    break_bar = random.randrange(1, max(2, num_bars - 1)) if plan.has_break else None
    numerals = random.choice(theory.OPENINGS[mode]).split()
    spans: list[ChordSpan] = []
    for bar in range(num_bars):
        starts = (0, second) if two_a_bar and bar != break_bar else (0,)
        for step, next_step in zip(starts, (*starts[1:], steps_per_bar), strict=True):
            chord = None
            if bar != break_bar:
                if not numerals:
                    numerals = random.choice(theory.CONTINUATIONS[mode]).split()
                chord = theory.chord_of(plan.key, numerals.pop(0))
            start, end = ((bar * steps_per_bar + s) * TICKS_PER_STEP for s in (step, next_step))
            if spans and spans[-1].chord == chord:
                start = spans.pop().start
            spans.append(ChordSpan(start=start, end=end, chord=chord))
    return tuple(spans)


def _by_energy(random: Random, plan: Plan, patterns: tuple[Pattern, ...]) -> Pattern:
    """One of the patterns, which go from sparse to busy, near the piece's energy."""
    position = plan.energy + (random.random() - 0.5) * 0.5
    return patterns[min(max(int(position * len(patterns)), 0), len(patterns) - 1)]


def _velocity(plan: Plan, base: int) -> int:
    """A velocity scaled by the energy: 0.65 to 1.05 of `base`."""
    return round(base * (0.65 + 0.4 * plan.energy))


def _write_drums(
    random: Random, plan: Plan, chords: tuple[ChordSpan, ...], num_bars: int
) -> list[Note]:
    patterns = ALL_STYLES[plan.style].drum_patterns[plan.metre]
    pattern = _by_energy(random, plan, patterns)
    steps_per_bar, beat = STEPS_PER_BAR[plan.metre], STEPS_PER_BEAT[plan.metre]
    has_crash = random.random() < 0.4
    fill_sound = random.choice(("snare", "high tom", "low tom"))
    notes = []
    for bar in range(num_bars):
        strokes = [
            (step, sound, symbol)
            for sound, line in pattern.items()
            for step, _, symbol in read_pattern(line, plan.metre)
        ]
        if bar % 4 == 3 and plan.energy > 0.3:
            strokes = [stroke for stroke in strokes if stroke[0] < steps_per_bar - beat]
            strokes += [(steps_per_bar - beat + s, fill_sound, "x") for s in range(0, beat, 2)]
            strokes += [(steps_per_bar - 1, fill_sound, "o")]
        if bar % 4 == 0 and has_crash:
            strokes.append((0, "crash", "x"))
        for step, sound, symbol in strokes:
            start = (bar * steps_per_bar + step) * TICKS_PER_STEP
            notes.append(
                Note(
                    start=start,
                    end=start + TICKS_PER_STEP // 2,
                    pitch=DRUM_PITCHES[sound],
                    velocity=_velocity(plan, _DRUM_VELOCITIES[symbol]),
                )
            )
    return notes


def _events_over_chords(
    pattern: str, plan: Plan, chords: tuple[ChordSpan, ...], num_bars: int
) -> list[tuple[int, int, str, theory.Chord]]:
    """Start, end, symbol and chord of a repeated pattern's events.

    An event that reaches over a change of chord is struck again there, and none sounds where there
    is no chord.
    """
    bar_ticks = STEPS_PER_BAR[plan.metre] * TICKS_PER_STEP
    events = []
    for bar in range(num_bars):
        for step, length, symbol in read_pattern(pattern, plan.metre):
            first = bar * bar_ticks + step * TICKS_PER_STEP
            last = first + length * TICKS_PER_STEP
            for span in chords:
                start, end = max(first, span.start), min(last, span.end)
                if start < end and span.chord is not None:
                    events.append((start, end, symbol, span.chord))
    return events


def _write_bass(
    random: Random, plan: Plan, chords: tuple[ChordSpan, ...], num_bars: int
) -> list[Note]:
    pattern = _by_energy(random, plan, ALL_STYLES[plan.style].bass_patterns[plan.metre])
    notes = []
    for start, end, symbol, chord in _events_over_chords(pattern, plan, chords, num_bars):
        root = theory.nearest_pitch(36, frozenset({chord.root}), 30, 41)
        offset = (chord.pitch_classes[_BASS_DEGREES[symbol]] - chord.root) % 12
        pitch = root + 12 if symbol == "8" else root + offset
        # The root comes first wherever a new chord begins.
        if any(span.start == start for span in chords):
            pitch = root
        length = max(1, round((end - start) * 0.9))
        notes.append(
            Note(start=start, end=start + length, pitch=pitch, velocity=_velocity(plan, 96))
        )
    return notes


def _write_chords(
    random: Random, plan: Plan, chords: tuple[ChordSpan, ...], num_bars: int
) -> list[Note]:
    style = ALL_STYLES[plan.style]
    pattern = random.choice(style.chord_patterns[plan.metre])
    # Instruments that do not decay are held.
    gate = 0.97 if plan.families["chords"] in ("strings", "organ") else style.chord_gate
    centre = 58 + random.randrange(0, 6)
    voicing: tuple[int, ...] = ()
    notes = []
    for start, end, symbol, chord in _events_over_chords(pattern, plan, chords, num_bars):
        voicing = theory.voice_chord(chord, voicing, centre)
        pitches = voicing if symbol == "x" else (voicing[int(symbol) - 1],)
        length = max(1, round((end - start) * gate))
        velocity = _velocity(plan, 84 if len(pitches) > 1 else 92)
        notes += [
            Note(start=start, end=start + length, pitch=pitch, velocity=velocity)
            for pitch in pitches
        ]
    return notes


def _write_melody(
    random: Random, plan: Plan, chords: tuple[ChordSpan, ...], num_bars: int
) -> list[Note]:
    """Two bars' rhythms and contours, repeated A A B A; chord tones on beats, steps between."""
    patterns = ALL_STYLES[plan.style].melody_patterns[plan.metre]
    low, high = MELODY_RANGES[plan.families["melody"]]
    cells = []
    for _ in range(2):
        rhythm = read_pattern(_by_energy(random, plan, patterns), plan.metre)
        cells.append([(*event, random.choice((-4, -2, -2, 0, 2, 2, 4, 5))) for event in rhythm])
    steps_per_bar, steps_per_beat = STEPS_PER_BAR[plan.metre], STEPS_PER_BEAT[plan.metre]
    position = (low + high) // 2 + random.randrange(-4, 5)
    notes: list[Note] = []
    for bar in range(num_bars):
        for step, length, _, contour in cells[(0, 0, 1, 0)[bar % 4]]:
            start = (bar * steps_per_bar + step) * TICKS_PER_STEP
            span = next(span for span in chords if span.start <= start < span.end)
            if span.chord is None:
                continue
            end = min(start + length * TICKS_PER_STEP, span.end)
            on_beat = step % steps_per_beat == 0
            allowed = (
                frozenset(span.chord.pitch_classes)
                if on_beat
                else theory.scale_over(plan.key, span.chord)
            )
            # Drawn back to the middle of the range the further it has gone.
            pull = ((low + high) // 2 - position) // 5
            position = theory.nearest_pitch(position + contour + pull, allowed, low, high)
            length_ticks = max(1, round((end - start) * 0.93))
            notes.append(
                Note(
                    start=start,
                    end=start + length_ticks,
                    pitch=position,
                    velocity=_velocity(plan, 100 if on_beat else 90),
                )
            )
    return notes


def _humanise(random: Random, plan: Plan, notes: list[Note]) -> tuple[Note, ...]:
    """Move onsets by up to 6 ms and velocities by up to 6, and end a note before its repetition."""
    spread = int(0.006 / seconds_of(1, plan.quarter_microseconds))
    moved = []
    for note in notes:
        shift = random.randrange(-spread, spread + 1)
        start = max(0, note.start + shift)
        velocity = min(max(note.velocity + random.randrange(-6, 7), 1), 127)
        moved.append(
            Note(
                start=start,
                end=max(start + 1, note.end + shift),
                pitch=note.pitch,
                velocity=velocity,
            )
        )
    moved.sort()
    next_start: dict[int, int] = {}
    kept: list[Note] = []
    for note in reversed(moved):
        end = min(note.end, next_start.get(note.pitch, note.end))
        if end > note.start:
            next_start[note.pitch] = note.start
            kept.append(Note(start=note.start, end=end, pitch=note.pitch, velocity=note.velocity))
    return tuple(reversed(kept))
