"""24 major and minor keys: their names, the spellings of data sets, and transposition."""

import re

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEYS: tuple[str, ...] = tuple(
    f"{tonic} {mode}" for mode in ("major", "minor") for tonic in PITCH_CLASSES
)
"""All keys, spelled with sharps; the index is the pitch class of the tonic + 12 if it is minor.

`mir_eval.key` reads these names as they are.
"""

_NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
_TONIC = r"([A-Ga-g])([#b♯♭]?)"
_KEY = re.compile(_TONIC + r"\s*:?\s*((?i:major|maj|minor|min)|M|m)")
_TONIC_ALONE = re.compile(_TONIC)
_OTHER_MODE = re.compile(_TONIC + r"(?:\s*:\s*|\s+)([^\s:]+(?: \S+)*)")
_SEVERAL = re.compile(r"[/,;|&]|-\s*[A-G][#b♯♭]?(?:\s|$)")


def parse_key(text: str) -> str:
    """Return the one of `KEYS` that a text names.

    The tonic is a letter in either case with at most one accidental; the mode is ``major``,
    ``maj`` or ``M``, ``minor``, ``min`` or ``m``; a colon, white space or nothing is between.
    A tonic alone is refused, since some data sets mean major by it and some keep the mode elsewhere.

    >>> [parse_key(text) for text in ("Bb major", "A#min", "F#:min", "c minor", "Db maj", "Ebm")]
    ['A# major', 'A# minor', 'F# minor', 'C minor', 'C# major', 'D# minor']

    Raises:
        ValueError: The text names no key, more than one, or one that is neither major nor minor.
    """
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"'{text}' {_reason(text.strip())}. A key is one of the 24 from 'C major' to 'B minor', "
            "spelled such as 'Bb major', 'A#min', 'F#:min' or 'Ebm'."
        )
    letter, accidental, mode = match.groups()
    pitch_class = (_NATURALS[letter.upper()] + _ACCIDENTALS[accidental]) % 12
    is_minor = mode == "m" or mode.lower().startswith("min")
    return KEYS[pitch_class + 12 * is_minor]


def key_parts(key: str) -> tuple[int, bool]:
    """Return the pitch class of the tonic (0 is C, 11 is B) and whether the key is minor.

    >>> key_parts("A minor")
    (9, True)

    Raises:
        ValueError: Errors of `parse_key`.
    """
    index = KEYS.index(parse_key(key))
    return index % 12, index >= 12


def transpose_key(key: str, semitones: int) -> str:
    """Return the key of music in `key` that is shifted up by `semitones` (down if negative).

    >>> transpose_key("B minor", 1)
    'C minor'

    Raises:
        ValueError: Errors of `parse_key`.
    """
    pitch_class, is_minor = key_parts(key)
    return KEYS[(pitch_class + semitones) % 12 + 12 * is_minor]


def _reason(text: str) -> str:
    """Return the reason why `parse_key` rejects a text."""
    if _SEVERAL.search(text) or len(_KEY.findall(text)) > 1:
        return "names more than one key"
    if _TONIC_ALONE.fullmatch(text):
        return f"names no mode; write '{text} major' or '{text} minor'"
    other = _OTHER_MODE.fullmatch(text)
    if other:
        return f"has the mode '{other.group(3)}', which is neither major nor minor"
    return "names no key"
