"""Keys, triads, progressions and voicings.

Everything is spelled with sharps: C, C#, D, D#, E, F, F#, G, G#, A, A#, B.
"""

from dataclasses import dataclass

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MODES = ("major", "minor")
KEYS = tuple(f"{tonic} {mode}" for mode in MODES for tonic in PITCH_CLASSES)

_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# Semitones above the tonic and quality of every numeral in use. Only major and minor triads occur,
# so that a chord's label says exactly what is played.
_NUMERALS = {
    "major": {
        "I": (0, "maj"),
        "ii": (2, "min"),
        "iii": (4, "min"),
        "IV": (5, "maj"),
        "V": (7, "maj"),
        "vi": (9, "min"),
        # Secondary dominants of V, vi and ii; borrowed iv and flat VII.
        "II": (2, "maj"),
        "III": (4, "maj"),
        "VI": (9, "maj"),
        "iv": (5, "min"),
        "bVII": (10, "maj"),
    },
    "minor": {
        "i": (0, "min"),
        "III": (3, "maj"),
        "iv": (5, "min"),
        "v": (7, "min"),
        "V": (7, "maj"),
        "VI": (8, "maj"),
        "VII": (10, "maj"),
        # Secondary dominants of iv and V; Dorian IV.
        "I": (0, "maj"),
        "II": (2, "maj"),
        "IV": (5, "maj"),
    },
}

# Four chords a phrase. A piece opens with one that starts on the tonic.
OPENINGS = {
    "major": (
        "I IV V I",
        "I vi IV V",
        "I V vi IV",
        "I vi ii V",
        "I V IV I",
        "I IV I V",
        "I iii IV V",
        "I III vi V",
    ),
    "minor": (
        "i iv V i",
        "i VI III VII",
        "i VII VI V",
        "i iv VII III",
        "i V i iv",
        "i VI iv V",
        "i v VI V",
        "i I iv V",
    ),
}
CONTINUATIONS = {
    "major": (
        *OPENINGS["major"],
        "vi IV I V",
        "IV V iii vi",
        "ii V I VI",
        "IV iv I V",
        "I II V I",
        "I bVII IV I",
        "vi ii V I",
    ),
    "minor": (
        *OPENINGS["minor"],
        "VI VII i V",
        "iv i V i",
        "i II V i",
        "i IV VII III",
        "iv VII III VI",
        "III VII i V",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Chord:
    """A major or minor triad on the pitch class `root` (0 is C)."""

    root: int
    quality: str

    @property
    def label(self) -> str:
        """The label in the syntax of Harte et al. (2005), such as ``F#:min``."""
        return f"{PITCH_CLASSES[self.root]}:{self.quality}"

    @property
    def pitch_classes(self) -> tuple[int, int, int]:
        """Root, third and fifth."""
        third = 4 if self.quality == "maj" else 3
        return self.root, (self.root + third) % 12, (self.root + 7) % 12


def parse_key(key: str) -> tuple[int, str]:
    """The tonic's pitch class and the mode of a key such as ``"C# minor"``."""
    tonic, mode = key.split()
    return PITCH_CLASSES.index(tonic), mode


def chord_of(key: str, numeral: str) -> Chord:
    """The triad that a Roman numeral means in a key."""
    tonic, mode = parse_key(key)
    offset, quality = _NUMERALS[mode][numeral]
    return Chord(root=(tonic + offset) % 12, quality=quality)


def scale_over(key: str, chord: Chord) -> frozenset[int]:
    """The key's scale with the notes that `chord` alters put in place of their neighbours.

    Over V in minor this is the harmonic minor scale.
    """
    tonic, mode = parse_key(key)
    scale = {(tonic + step) % 12 for step in _SCALES[mode]}
    for tone in chord.pitch_classes:
        if tone not in scale:
            scale -= {(tone + 1) % 12, (tone - 1) % 12} - set(chord.pitch_classes)
            scale.add(tone)
    return frozenset(scale)


def voice_chord(chord: Chord, previous: tuple[int, ...], centre: int) -> tuple[int, ...]:
    """Four voices, low to high: the inversion that moves least from `previous`.

    Args:
        chord: What to voice.
        previous: The last voicing, or nothing at the start.
        centre: The MIDI pitch the voicing stays around.
    """
    candidates = []
    for bottom in range(centre - 12, centre + 3):
        if bottom % 12 in chord.pitch_classes:
            tones = [p for p in range(bottom, bottom + 13) if p % 12 in chord.pitch_classes]
            candidates.append(tuple(tones[:4]))
    anchor = previous or (centre - 6, centre - 2, centre + 2, centre + 6)

    def movement(voicing: tuple[int, ...]) -> tuple[int, int]:
        step = sum(abs(a - b) for a, b in zip(voicing, anchor, strict=True))
        drift = abs(sum(voicing) - 4 * centre)
        return 2 * step + drift, voicing[0]

    return min(candidates, key=movement)


def nearest_pitch(target: int, pitch_classes: frozenset[int], low: int, high: int) -> int:
    """The allowed pitch in [low, high] nearest to `target`; of two equally near, the lower."""
    allowed = [p for p in range(low, high + 1) if p % 12 in pitch_classes]
    return min(allowed, key=lambda pitch: (abs(pitch - target), pitch))
