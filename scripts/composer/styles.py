"""What the styles play: metres, tempi, instruments and patterns.

A pattern is one bar on a grid of sixteenth notes: 16 steps in 4/4, 12 in 3/4 and in 6/8. Blanks
only help the eye.

- Drums: ``X`` accent, ``x`` stroke, ``o`` soft stroke, ``.`` nothing.
- Chords: ``x`` the whole chord, ``1`` to ``4`` a voice of it from below, ``-`` held, ``.`` rest.
- Bass: ``R`` root, ``3`` third, ``5`` fifth, ``8`` octave, ``-`` held, ``.`` rest.
- Melody: ``x`` a new note, ``-`` held, ``.`` rest.

Patterns of one list go from sparse to busy.
"""

from dataclasses import dataclass

STEPS_PER_BAR = {"3/4": 12, "4/4": 16, "6/8": 12}
# A beat is a quarter note, in 6/8 a dotted quarter: in sixteenths.
STEPS_PER_BEAT = {"3/4": 4, "4/4": 4, "6/8": 6}

# General MIDI programs (0 to 127) of each family that is a tag.
FAMILIES = {
    "piano": (0, 1),
    "electric piano": (4, 5),
    "mallets": (11, 12),
    "organ": (16, 19),
    "guitar": (24, 25, 27),
    "strings": (40, 48),
    "brass": (56, 57, 61),
    "saxophone": (65, 66),
    "flute": (73, 75),
    "synthesizer": (80, 81, 90),
    "double bass": (32,),
    "electric bass": (33, 34),
    "synth bass": (38, 39),
}

# Families that no piece of the six styles has: those of `OTHER_STYLES`.
OTHER_FAMILIES = {
    "plucked": (46, 104, 105, 106, 107),
    "bells": (8, 9, 10, 14, 15, 112),
    "struck": (108, 114, 115),
}

# Lowest and highest pitch of a melody.
MELODY_RANGES = {
    "piano": (62, 86),
    "electric piano": (60, 84),
    "mallets": (62, 86),
    "organ": (60, 84),
    "guitar": (57, 79),
    "strings": (60, 84),
    "brass": (57, 76),
    "saxophone": (56, 77),
    "flute": (67, 88),
    "synthesizer": (58, 82),
    "plucked": (55, 79),
    "bells": (67, 91),
    "struck": (60, 84),
}

DRUM_PITCHES = {
    "kick": 36,
    "stick": 37,
    "snare": 38,
    "clap": 39,
    "hat": 42,
    "open": 46,
    "crash": 49,
    "ride": 51,
    "shaker": 70,
    "high tom": 50,
    "low tom": 45,
    "claves": 75,
    "wood block": 76,
    "triangle": 81,
}

DrumPattern = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Style:
    """A style.

    Attributes:
        metres: Dealt out in turn; a metre that comes twice is twice as frequent.
        tempo_bpm: Lowest and highest tempo of each metre, in beats a minute.
        drums_share, bass_share, melody_share: The share of pieces that have the role.
        kits: General MIDI drum kits (programs of the drum channel).
        chords: Families that may play the chords.
        melody: Families that may play the melody.
        bass: Families that may play the bass.
        chord_gate: The sounding part of a chord's written length.
        drum_patterns, chord_patterns, bass_patterns, melody_patterns: By metre.
    """

    metres: tuple[str, ...]
    tempo_bpm: dict[str, tuple[int, int]]
    drums_share: float
    bass_share: float
    melody_share: float
    kits: tuple[int, ...]
    chords: tuple[str, ...]
    melody: tuple[str, ...]
    bass: tuple[str, ...]
    chord_gate: float
    drum_patterns: dict[str, tuple[DrumPattern, ...]]
    chord_patterns: dict[str, tuple[str, ...]]
    bass_patterns: dict[str, tuple[str, ...]]
    melody_patterns: dict[str, tuple[str, ...]]


_MELODY = {
    "3/4": (
        "x------- x---",
        "x--- x--- x---",
        "x----- x- x---",
        "x- x- x--- x---",
        "x--- x- x- x- x-",
        "x- x- x- x- x- x-",
    ),
    "4/4": (
        "x------- x-------",
        "x------- x--- x---",
        "x----- x- x--- ....",
        "x--- x- x- x----- x-",
        ".... x- x- x- x- x---",
        "x- x- x--- x- x- x---",
        "x- x- x- x- x- xx x---",
    ),
    "6/8": (
        "x----- x-----",
        "x--- x- x-----",
        "x--- x- x--- x-",
        "x- x- x- x-----",
        "x- x- x- x- x- x-",
    ),
}

STYLES = {
    "waltz": Style(
        metres=("3/4",),
        tempo_bpm={"3/4": (78, 186)},
        drums_share=0.6,
        bass_share=0.85,
        melody_share=0.9,
        kits=(0, 32),
        chords=("piano", "strings", "guitar", "organ", "mallets"),
        melody=("flute", "strings", "brass", "saxophone", "piano", "mallets"),
        bass=("double bass", "electric bass"),
        chord_gate=0.6,
        drum_patterns={
            "3/4": (
                {"kick": "x... .... ....", "hat": ".... x... x..."},
                {"kick": "X... .... ....", "snare": ".... o... o...", "ride": "x... x... x..."},
                {"kick": "X... .... ..x.", "snare": ".... x... x...", "ride": "x... x.x. x.x."},
            )
        },
        chord_patterns={
            "3/4": (".... x--- x---", ".... x-.. x-..", "1-.. x--- x---", "1- 2- 3- 4- 3- 2-")
        },
        bass_patterns={"3/4": ("R----------.", "R------- 5---", "R--- 5--- 3---")},
        melody_patterns={"3/4": _MELODY["3/4"]},
    ),
    "rock": Style(
        metres=("4/4", "4/4", "4/4", "6/8"),
        tempo_bpm={"4/4": (78, 176), "6/8": (56, 84)},
        drums_share=1.0,
        bass_share=0.9,
        melody_share=0.75,
        kits=(0, 8, 16),
        chords=("guitar", "organ", "piano", "electric piano"),
        melody=("guitar", "saxophone", "synthesizer", "organ", "brass"),
        bass=("electric bass", "synth bass"),
        chord_gate=0.85,
        drum_patterns={
            "4/4": (
                {
                    "kick": "X... .... x... ....",
                    "snare": ".... X... .... X...",
                    "hat": "x... x... x... x...",
                },
                {
                    "kick": "X... .... x.x. ....",
                    "snare": ".... X... .... X...",
                    "hat": "x.o. x.o. x.o. x.o.",
                },
                {
                    "kick": "X.x. ..x. x... ..x.",
                    "snare": ".... X... .... X..o",
                    "ride": "x.x. x.x. x.x. x.x.",
                },
            ),
            "6/8": (
                {"kick": "X..... ......", "snare": "...... X.....", "hat": "x.o.o. x.o.o."},
                {"kick": "X...x. ....x.", "snare": "...... X.....", "ride": "x.x.x. x.x.x."},
            ),
        },
        chord_patterns={
            "4/4": (
                "x------- x-------",
                "x--- x--- x--- x---",
                "x--- x- x- ..x- x---",
                "x- x- x- x- x- x- x- x-",
            ),
            "6/8": ("x----- x-----", "1- 2- 3- 4- 3- 2-"),
        },
        bass_patterns={
            "4/4": ("R------- R-------", "R--- R--- R--- 5---", "R- R- R- R- R- R- 5- 5-"),
            "6/8": ("R----- 5-----", "R--- R- 5--- 5-"),
        },
        melody_patterns={"4/4": _MELODY["4/4"], "6/8": _MELODY["6/8"]},
    ),
    "bossa nova": Style(
        metres=("4/4",),
        tempo_bpm={"4/4": (96, 164)},
        drums_share=0.75,
        bass_share=0.85,
        melody_share=0.85,
        kits=(0, 32, 40),
        chords=("guitar", "piano", "electric piano", "mallets"),
        melody=("flute", "saxophone", "mallets", "brass", "guitar", "electric piano"),
        bass=("double bass", "electric bass"),
        chord_gate=0.7,
        drum_patterns={
            "4/4": (
                {"stick": "x.....x. ....x...", "shaker": "x.o.x.o. x.o.x.o."},
                {
                    "kick": "x.....x. x.....x.",
                    "stick": "x.....x. ....x...",
                    "hat": "x.x.x.x. x.x.x.x.",
                },
                {
                    "kick": "x.....x. x.....x.",
                    "stick": "x.....x. ....x..x",
                    "shaker": "xoxoxoxo xoxoxoxo",
                },
            )
        },
        chord_patterns={
            "4/4": (
                "x---..x- ----x---",
                "..x---x- ..x-..x-",
                "x-..x-.x --x-..x-",
            )
        },
        bass_patterns={"4/4": ("R-----.. 5-----..", "R-----5- 5-----R-", "R-----R- 5-----5-")},
        melody_patterns={
            "4/4": (
                "x----- x- --------",
                "..x---x- x-----x-",
                "x---..x- --x---x-",
                "..x-x-x- ..x-x---",
                "x-..x-x- ..x-x-x-",
            )
        },
    ),
    "house": Style(
        metres=("4/4",),
        tempo_bpm={"4/4": (112, 140)},
        drums_share=1.0,
        bass_share=0.9,
        melody_share=0.7,
        kits=(24, 25),
        chords=("synthesizer", "piano", "electric piano", "organ", "strings"),
        melody=("synthesizer", "saxophone", "mallets", "flute", "strings"),
        bass=("synth bass", "electric bass"),
        chord_gate=0.6,
        drum_patterns={
            "4/4": (
                {"kick": "X...X...X...X...", "open": "..x...x...x...x."},
                {
                    "kick": "X...X...X...X...",
                    "clap": "....x.......x...",
                    "open": "..x...x...x...x.",
                },
                {
                    "kick": "X...X...X...X...",
                    "clap": "....x.......x..o",
                    "hat": "xox.xox.xox.xox.",
                    "open": "..x...x...x...x.",
                },
            )
        },
        chord_patterns={
            "4/4": (
                "x------- --------",
                "..x-..x- ..x-..x-",
                "x--x--x- ..x-..x-",
                "1-2-3-4- 3-2-3-4-",
            )
        },
        bass_patterns={
            "4/4": ("R-------R-------", "..R-..R-..R-..8-", "RR8.RR8.RR8.RR8."),
        },
        melody_patterns={
            "4/4": (
                "x-------x-------",
                "x--x--x-........",
                "x--x--x-x--x--x-",
                "x-x-.x.xx-x-x---",
                "x.xx.xx.x.xx.xx.",
            )
        },
    ),
    "ballad": Style(
        metres=("4/4", "6/8", "3/4"),
        tempo_bpm={"4/4": (60, 96), "6/8": (40, 62), "3/4": (66, 100)},
        drums_share=0.5,
        bass_share=0.75,
        melody_share=0.85,
        kits=(0, 40),
        chords=("piano", "electric piano", "guitar", "strings", "organ"),
        melody=("strings", "flute", "saxophone", "piano", "brass", "synthesizer"),
        bass=("double bass", "electric bass", "synth bass"),
        chord_gate=0.97,
        drum_patterns={
            "4/4": (
                {"kick": "x... .... .... ....", "stick": ".... .... x... ...."},
                {
                    "kick": "x... .... x... ....",
                    "stick": ".... x... .... x...",
                    "hat": "x.o. x.o. x.o. x.o.",
                },
            ),
            "6/8": (
                {"kick": "x..... ......", "stick": "...... x....."},
                {"kick": "x..... ......", "snare": "...... x.....", "hat": "x.o.o. x.o.o."},
            ),
            "3/4": (
                {"kick": "x... .... ....", "ride": "x... x... x..."},
                {"kick": "x... .... ....", "stick": ".... .... x...", "hat": "x.o. x.o. x.o."},
            ),
        },
        chord_patterns={
            "4/4": (
                "x------- --------",
                "x------- x-------",
                "1- 2- 3- 2- 4- 3- 2- 3-",
            ),
            "6/8": ("x----- x-----", "1- 2- 3- 4- 3- 2-"),
            "3/4": ("x----- ------", "1- 2- 3- 4- 3- 2-"),
        },
        bass_patterns={
            "4/4": ("R------- --------", "R------- 5-------", "R----- R- 5-------"),
            "6/8": ("R----- ------", "R----- 5-----"),
            "3/4": ("R----- ------", "R------- 5---"),
        },
        melody_patterns={
            "4/4": _MELODY["4/4"][:6],
            "6/8": _MELODY["6/8"],
            "3/4": _MELODY["3/4"][:5],
        },
    ),
    "march": Style(
        metres=("4/4", "6/8"),
        tempo_bpm={"4/4": (80, 144), "6/8": (80, 132)},
        drums_share=0.75,
        bass_share=0.85,
        melody_share=0.9,
        kits=(0, 48),
        chords=("brass", "strings", "organ", "piano"),
        melody=("brass", "flute", "strings", "organ", "mallets"),
        bass=("double bass", "electric bass"),
        chord_gate=0.5,
        drum_patterns={
            "4/4": (
                {"kick": "x... .... x... ....", "snare": ".... x... .... x..."},
                {"kick": "X... .... x... ....", "snare": "x..x x.x. x..x x.x."},
                {"kick": "X... x... X... x...", "snare": "X.oo x.oo X.oo xooo"},
            ),
            "6/8": (
                {"kick": "x..... x.....", "snare": "....x. ....x."},
                {"kick": "X..... x.....", "snare": "x...x. x.x.x."},
            ),
        },
        chord_patterns={
            "4/4": (".... x--- .... x---", "..x- ..x- ..x- ..x-", "x--- x- x- x--- x---"),
            "6/8": ("....x- ....x-", "x---x- x---x-"),
        },
        bass_patterns={
            "4/4": ("R--- .... 5--- ....", "R--- 5--- R--- 5---", "R--- 3--- 5--- 3---"),
            "6/8": ("R---.. 5---..", "R---5- R---5-"),
        },
        melody_patterns={
            "4/4": (
                "x------- x--- x---",
                "x--- x--- x-------",
                "x--- x-- x x--- x---",
                "x-- x x-- x x--- x- x-",
                "x- xx x- x- x-- x x---",
            ),
            "6/8": _MELODY["6/8"],
        },
    ),
}

# Styles that the quickstart does not have: what a backbone can be adapted to.
OTHER_STYLES = {
    "music box": Style(
        metres=("4/4", "3/4"),
        tempo_bpm={"4/4": (60, 160), "3/4": (70, 170)},
        drums_share=0.4,
        bass_share=0.5,
        melody_share=0.95,
        kits=(0,),
        chords=("plucked", "bells"),
        melody=("bells", "struck", "plucked"),
        bass=("plucked", "struck"),
        chord_gate=0.9,
        drum_patterns={
            "4/4": (
                {"triangle": "x... .... x... ....", "claves": ".... x... .... x..."},
                {"wood block": "x..x ..x. x..x ..x.", "triangle": "x... .... .... ...."},
            ),
            "3/4": (
                {"triangle": "x... .... ....", "claves": ".... x... x..."},
                {"wood block": "x..x ..x. x.x."},
            ),
        },
        chord_patterns={
            "4/4": ("1- 2- 3- 4- 3- 2- 3- 4-", "1234 3234 1234 3234", "x--- 3- 2- x--- 3- 2-"),
            "3/4": ("1- 2- 3- 4- 3- 2-", "x--- 3--- 2---"),
        },
        bass_patterns={
            "4/4": ("R------- --------", "R------- 5-------"),
            "3/4": ("R------- ----",),
        },
        melody_patterns={
            "4/4": (*_MELODY["4/4"], "xxxx x-x- xxxx x---"),
            "3/4": (*_MELODY["3/4"], "xxxx x-x- x---"),
        },
    ),
}
ALL_STYLES = STYLES | OTHER_STYLES


def read_pattern(pattern: str, metre: str) -> list[tuple[int, int, str]]:
    """The events of a pattern: first step, number of steps and symbol of each."""
    steps = pattern.replace(" ", "")
    assert len(steps) == STEPS_PER_BAR[metre], f"{pattern!r} does not fill a bar of {metre}"
    events: list[tuple[int, int, str]] = []
    for step, symbol in enumerate(steps):
        if symbol == "-":
            start, length, first = events[-1]
            assert start + length == step, f"{pattern!r} holds a rest at step {step}"
            events[-1] = (start, length + 1, first)
        elif symbol != ".":
            events.append((step, 1, symbol))
    return events
