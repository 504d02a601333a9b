"""Plans and synthesises the voices: a source-filter model of singers, without any recording.

The source is a sum of harmonics whose level falls by a fixed number of decibels an octave, plus
noise for the breath. The filter is a cascade of five resonators, the formants of a vowel, shifted
by the length of the singer's vocal tract.

Source: Fant, "Acoustic Theory of Speech Production" (1960), for the model; Klatt, "Software for a
cascade/parallel formant synthesizer", JASA 67 (1980), for the resonators and their bandwidths;
Peterson and Barney, "Control methods used in a study of the vowels", JASA 24 (1952), table II, for
the first three formants (men; /e/ and /o/ are the open vowels of "head" and "hawed").
"""

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from composer.render import SAMPLE_RATE_HZ, decibel_gain, rms

VOICE_SECONDS = 3.0
# Formants 1 to 3 in Hz, of a vocal tract of 17.5 cm.
VOWELS = {
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
_HIGHER_FORMANTS_HZ = (3500, 4500)
_BANDWIDTHS_HZ = (60, 90, 120, 180, 250)
_TRACT_CM = 17.5
# No harmonic above: below half the sample rate, so that nothing is aliased.
_HIGHEST_HZ = 11_000.0
_MAJOR = (0, 2, 4, 5, 7, 9, 11)


@dataclass(frozen=True, kw_only=True)
class Singer:
    """A synthetic singer.

    Attributes:
        tract_cm: Length of the vocal tract; formants are inversely proportional to it.
        low, high: Range, MIDI note numbers.
        tilt_db: Change of the source's level an octave, as heard at some distance.
        breath_db: Level of the breath's noise against the harmonics, at the source.
        vibrato_hz: Rate of the vibrato.
    """

    tract_cm: float
    low: int
    high: int
    tilt_db: float
    breath_db: float
    vibrato_hz: float


SINGERS = {
    "soprano": Singer(
        tract_cm=14.0, low=60, high=77, tilt_db=-8.0, breath_db=-44.0, vibrato_hz=6.2
    ),
    "alto": Singer(tract_cm=15.2, low=55, high=72, tilt_db=-6.0, breath_db=-36.0, vibrato_hz=5.6),
    "tenor": Singer(tract_cm=16.4, low=50, high=67, tilt_db=-5.5, breath_db=-46.0, vibrato_hz=5.9),
    "baritone": Singer(
        tract_cm=17.5, low=45, high=62, tilt_db=-8.5, breath_db=-38.0, vibrato_hz=5.3
    ),
    "bass": Singer(tract_cm=18.8, low=40, high=57, tilt_db=-7.0, breath_db=-42.0, vibrato_hz=5.0),
}


@dataclass(frozen=True, kw_only=True)
class Technique:
    """What a technique changes in a voice that sings straight.

    Attributes:
        vibrato_semitones: Largest deviation of the pitch, a sine at the singer's rate.
        trill_semitones: Distance of the upper note of a trill, 0 without one.
        tilt_db: Added to the singer's tilt, an octave.
        breath_db: Added to the level of the breath.
        is_fry: There is no melody but single pulses of the vocal folds, `FRY_HZ` a second, whose
            periods vary by `FRY_JITTER` of their length (standard deviation).
    """

    vibrato_semitones: float = 0.0
    trill_semitones: float = 0.0
    tilt_db: float = 0.0
    breath_db: float = 0.0
    is_fry: bool = False


TECHNIQUES = {
    "straight": Technique(),
    "vibrato": Technique(vibrato_semitones=0.6),
    "trill": Technique(trill_semitones=2.0),
    "breathy": Technique(tilt_db=-3.0, breath_db=26.0),
    "vocal_fry": Technique(is_fry=True),
}
TRILL_HZ = 5.5
FRY_HZ = (30.0, 48.0)
FRY_JITTER = 0.08
# Recordings of each singer with each technique, which are sung on the vowels in turn.
TAKES = {"train": 3, "validation": 1, "test": 2}
_GLIDE_SECONDS = 0.07
_FADE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class VoicePlan:
    """One recording: its name such as ``"train-000"``, and keys of the tables above."""

    identifier: str
    split: str
    singer: str
    technique: str
    vowel: str


def plan_voices(seed: int) -> list[VoicePlan]:
    """All recordings, sorted by identifier: every singer with every technique in every split."""
    random = Random(f"{seed}/voices")
    counts = dict.fromkeys(TAKES, 0)
    plans = []
    for singer in SINGERS:
        for technique in TECHNIQUES:
            vowels = random.sample(list(VOWELS), len(VOWELS))
            splits = [split for split, takes in TAKES.items() for _ in range(takes)]
            for index, split in enumerate(splits):
                plans.append(
                    VoicePlan(
                        identifier=f"{split}-{counts[split]:03d}",
                        split=split,
                        singer=singer,
                        technique=technique,
                        vowel=vowels[index % len(vowels)],
                    )
                )
                counts[split] += 1
    return sorted(plans, key=lambda plan: plan.identifier)


def synthesise(plan: VoicePlan, seed: int) -> np.ndarray:
    """Sing a recording.

    Returns:
        float64, (samples,), at `render.SAMPLE_RATE_HZ`.
    """
    random = Random(f"{seed}/voices/{plan.identifier}")
    return sing(random, SINGERS[plan.singer], TECHNIQUES[plan.technique], plan.vowel)


def sing(random: Random, singer: Singer, technique: Technique, vowel: str) -> np.ndarray:
    """Sing a few notes on one vowel, a key of `VOWELS`.

    Returns:
        float64, (samples,), `VOICE_SECONDS` long, at `render.SAMPLE_RATE_HZ`.
    """
    noise = np.random.default_rng(random.getrandbits(64))
    f0_hz = _fry_hz(noise) if technique.is_fry else _melody_hz(random, noise, singer, technique)
    source = _source(f0_hz, noise, singer, technique)
    # No two takes of a vowel are alike.
    stretch = _TRACT_CM / singer.tract_cm * random.uniform(0.97, 1.03)
    formants = [stretch * formant for formant in (*VOWELS[vowel], *_HIGHER_FORMANTS_HZ)]
    voice = _resonate(source, formants)
    fade = round(_FADE_SECONDS * SAMPLE_RATE_HZ)
    ramp = np.sin(np.linspace(0, np.pi / 2, fade)) ** 2
    voice[:fade] *= ramp
    voice[-fade:] *= ramp[::-1]
    level_db = random.uniform(-27, -21)
    return voice * decibel_gain(level_db) / rms(voice)


def voice_row(plan: VoicePlan) -> dict[str, Any]:
    """The recording's line of the manifest."""
    return {
        "id": plan.identifier,
        "path": f"audio/{plan.identifier}.opus",
        "split": plan.split,
        "singer": plan.singer,
        "technique": plan.technique,
        "vowel": plan.vowel,
    }


def _times() -> np.ndarray:
    return np.arange(round(VOICE_SECONDS * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def _melody_hz(
    random: Random, noise: np.random.Generator, singer: Singer, technique: Technique
) -> np.ndarray:
    """The fundamental of a melody of three or four notes bound together, (samples,), in Hz."""
    tonic = random.randrange(12)
    scale = [p for p in range(singer.low, singer.high + 1) if (p - tonic) % 12 in _MAJOR]
    num_notes = random.choice((3, 4))
    position = random.randrange(len(scale))
    pitches = []
    for _ in range(num_notes):
        pitches.append(scale[position])
        steps = [s for s in (-3, -2, -1, 1, 2, 3) if 0 <= position + s < len(scale)]
        position += random.choice(steps)
    shares = [random.uniform(0.8, 1.2) for _ in pitches]
    bounds = np.cumsum(shares) / sum(shares) * VOICE_SECONDS
    times = _times()
    pitch = np.array(pitches, dtype=float)[np.searchsorted(bounds[:-1], times, side="right")]
    pitch += technique.trill_semitones * ((times * TRILL_HZ + random.random()) % 1 < 0.5)
    # A trill's notes follow each other faster than a melody's.
    glide_seconds = _GLIDE_SECONDS / 2 if technique.trill_semitones else _GLIDE_SECONDS
    pitch = _smooth(pitch, glide_seconds)
    phase = times * singer.vibrato_hz + random.random()
    pitch += technique.vibrato_semitones * np.sin(2 * np.pi * phase)
    # No voice is perfectly steady: a drift of a few cents.
    drift = _smooth(noise.standard_normal(len(times)), 0.3)
    pitch += 0.05 * drift / drift.std()
    f0_hz: np.ndarray = 440 * 2 ** ((pitch - 69) / 12)
    return f0_hz


def _fry_hz(noise: np.random.Generator) -> np.ndarray:
    """The rate of the pulses of a vocal fry, constant within each period, (samples,), in Hz."""
    times = _times()
    lowest, highest = FRY_HZ
    rates: list[float] = []
    ends: list[float] = [0.0]
    centre = noise.uniform(lowest, highest)
    while ends[-1] < VOICE_SECONDS:
        period = (1 + FRY_JITTER * noise.standard_normal()) / centre
        rates.append(1 / period)
        ends.append(ends[-1] + period)
    return np.array(rates)[np.searchsorted(ends[1:-1], times, side="right")]


def _source(
    f0_hz: np.ndarray, noise: np.random.Generator, singer: Singer, technique: Technique
) -> np.ndarray:
    """Harmonics of a changing fundamental, and breath in step with them, (samples,)."""
    phase = 2 * np.pi * np.cumsum(f0_hz) / SAMPLE_RATE_HZ
    tilt_db = singer.tilt_db + technique.tilt_db
    rotation = np.exp(1j * phase)
    partial = np.ones_like(rotation)
    harmonics = np.zeros_like(f0_hz)
    for number in range(1, int(_HIGHEST_HZ / f0_hz.min()) + 1):
        partial *= rotation
        is_heard = number * f0_hz < _HIGHEST_HZ
        harmonics += decibel_gain(tilt_db * np.log2(number)) * is_heard * partial.real
    # Air flows while the vocal folds are open: half of the noise comes in pulses.
    breath = noise.standard_normal(len(phase)) * (1 + 0.7 * np.cos(phase))
    breath *= decibel_gain(singer.breath_db + technique.breath_db) / rms(breath)
    return harmonics / rms(harmonics) + breath


def _resonate(source: np.ndarray, formants_hz: list[float]) -> np.ndarray:
    """Pass a source through resonators in a row, (samples,)."""
    # Twice the length, so that what rings on does not come round to the beginning.
    num_samples = 2 * len(source)
    frequencies = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ)
    response = np.ones(len(frequencies), dtype=complex)
    for formant_hz, bandwidth_hz in zip(formants_hz, _BANDWIDTHS_HZ, strict=True):
        pole = -np.pi * bandwidth_hz + 2j * np.pi * formant_hz
        s = 2j * np.pi * frequencies
        response *= abs(pole) ** 2 / ((s - pole) * (s - pole.conjugate()))
    voice: np.ndarray = np.fft.irfft(np.fft.rfft(source, num_samples) * response)[: len(source)]
    return voice


def _smooth(values: np.ndarray, seconds: float) -> np.ndarray:
    """A moving average under a Hann window of `seconds`, with the ends held, (samples,)."""
    window = np.hanning(round(seconds * SAMPLE_RATE_HZ))
    half = len(window) // 2
    padded = np.pad(values, (half, len(window) - 1 - half), mode="edge")
    size = len(padded) + len(window) - 1
    spectrum = np.fft.rfft(padded, size) * np.fft.rfft(window / window.sum(), size)
    return np.fft.irfft(spectrum, size)[len(window) - 1 : len(window) - 1 + len(values)]
