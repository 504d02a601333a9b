"""Renders scores with FluidSynth, mixes the roles of a piece and encodes what was rendered."""

import subprocess
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from composer.arrange import CLIP_SECONDS, ROLES, Piece
from composer.midi import Note, Score, Track, encode_midi, seconds_of

SAMPLE_RATE_HZ = 24_000
_RENDER_RATE_HZ = 48_000
_FADE_IN_SECONDS = 0.002
_FADE_OUT_SECONDS = 0.02
# Levels of the roles against each other before the mixture is set to its loudness.
ROLE_LEVELS_DB = {"drums": -2.0, "bass": -2.0, "chords": -2.0, "melody": 0.0}
# A peak above this share of full scale counts as clipped.
_LOUDEST_PEAK = 0.99
# Rest between two roles in one rendered file: longer than any release.
_GAP_SECONDS = 3.0
# What an OGG file holds by its suffix, and soundfile's compression level. Vorbis at 1 is quality 0:
# about 32 kbit/s here. Its headers alone take 4 kB, so what is short is Opus, at 16 kbit/s.
_CODECS = {".ogg": ("VORBIS", 1.0), ".opus": ("OPUS", 0.96)}
# libsndfile overruns its stack when a long signal is written to OGG at once.
_WRITE_BLOCK_SAMPLES = 24_000


def render_score(
    score: Score, soundfont: Path, fluidsynth: str, *, rate_hz: int = _RENDER_RATE_HZ
) -> np.ndarray:
    """A score as FluidSynth plays it at `rate_hz`, without reverberation and chorus.

    Returns:
        float64, (samples,), at `SAMPLE_RATE_HZ`; it ends after the last release.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi_path, wave_path = Path(folder, "score.mid"), Path(folder, "score.wav")
        midi_path.write_bytes(encode_midi(score))
        command = [fluidsynth, "-n", "-i", "-q", "-R", "0", "-C", "0", "-g", "0.3"]
        command += ["-r", str(rate_hz), "-o", "synth.dynamic-sample-loading=1"]
        command += ["-o", "audio.file.format=float", "-F", str(wave_path)]
        subprocess.run([*command, str(soundfont), str(midi_path)], check=True, capture_output=True)
        stereo, _ = sf.read(wave_path)
    mono: np.ndarray = soxr.resample(stereo.mean(axis=1), rate_hz, SAMPLE_RATE_HZ)
    return mono


def render_roles(
    piece: Piece,
    soundfont: Path,
    fluidsynth: str,
    *,
    seconds: float = CLIP_SECONDS,
    role_levels_db: Mapping[str, float] = ROLE_LEVELS_DB,
    rate_hz: int = _RENDER_RATE_HZ,
) -> dict[str, np.ndarray]:
    """The clip's stems, `seconds` long.

    The roles are rendered one after the other in one run of FluidSynth, then cut to the clip,
    balanced and scaled by one factor so that their sum has the plan's loudness.

    Returns:
        For each role that the piece has: float64, (samples,), at `SAMPLE_RATE_HZ`.
    """
    quarter_microseconds = piece.score.quarter_microseconds
    tick_seconds = seconds_of(1, quarter_microseconds)
    clip_start_seconds = piece.clip_start * tick_seconds
    stride_ticks = int((clip_start_seconds + seconds + _GAP_SECONDS) / tick_seconds)
    clip_end = piece.clip_start + seconds / tick_seconds
    tracks = []
    for index, track in enumerate(piece.score.tracks):
        shift = index * stride_ticks
        notes = tuple(
            Note(
                start=note.start + shift,
                end=note.end + shift,
                pitch=note.pitch,
                velocity=note.velocity,
            )
            for note in track.notes
            if note.start < clip_end
        )
        tracks.append(
            Track(name=track.name, channel=track.channel, program=track.program, notes=notes)
        )
    score = Score(
        quarter_microseconds=quarter_microseconds, metre=piece.plan.metre, tracks=tuple(tracks)
    )
    mono = render_score(score, soundfont, fluidsynth, rate_hz=rate_hz)
    stems = {}
    for index, track in enumerate(piece.score.tracks):
        start_seconds = clip_start_seconds + index * stride_ticks * tick_seconds
        stem = cut(mono, start_seconds, seconds)
        # An instrument may have no sample for notes that are very high: it is silent then.
        stems[track.name] = stem * decibel_gain(role_levels_db[track.name]) / (rms(stem) or 1.0)
    gain = decibel_gain(piece.plan.loudness_dbfs) / rms(sum_roles(stems))
    return {role: stem * gain for role, stem in stems.items()}


def sum_roles(stems: dict[str, np.ndarray]) -> np.ndarray:
    """The mixture: the sum of the stems, (samples,)."""
    mixture: np.ndarray = np.sum([stems[role] for role in ROLES if role in stems], axis=0)
    return mixture


def cut(samples: np.ndarray, start_seconds: float, seconds: float) -> np.ndarray:
    """A copy of `seconds` of `samples`, with short fades; beyond their end there is silence."""
    start, length = round(start_seconds * SAMPLE_RATE_HZ), round(seconds * SAMPLE_RATE_HZ)
    excerpt = samples[start : start + length]
    excerpt = np.pad(excerpt, (0, length - len(excerpt)))
    fade_in, fade_out = (
        np.linspace(0.0, 1.0, round(fade_seconds * SAMPLE_RATE_HZ))
        for fade_seconds in (_FADE_IN_SECONDS, _FADE_OUT_SECONDS)
    )
    excerpt[: len(fade_in)] *= fade_in
    excerpt[-len(fade_out) :] *= fade_out[::-1]
    return excerpt


def write_sound(path: Path, samples: np.ndarray) -> None:
    """Write mono samples, (samples,), at `SAMPLE_RATE_HZ`, as OGG Vorbis or as Opus by the suffix.

    Encoders give every stream a random number. A file that already sounds the same, to the bit, is
    left alone, so that rebuilding changes only what is different.

    Raises:
        SystemExit: The samples would clip.
    """
    peak = np.abs(samples).max()
    if peak > _LOUDEST_PEAK:
        raise SystemExit(f"{path} would clip: its peak is {peak:.2f} of full scale.")
    subtype, compression_level = _CODECS[path.suffix]
    encoded = BytesIO()
    with sf.SoundFile(
        encoded,
        "w",
        samplerate=SAMPLE_RATE_HZ,
        channels=1,
        format="OGG",
        subtype=subtype,
        compression_level=compression_level,
    ) as file:
        for start in range(0, len(samples), _WRITE_BLOCK_SAMPLES):
            file.write(samples[start : start + _WRITE_BLOCK_SAMPLES])
    encoded.seek(0)
    if not path.is_file() or not np.array_equal(sf.read(path)[0], sf.read(encoded)[0]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded.getvalue())


def write_flac(path: Path, samples: np.ndarray, *, rate_hz: int) -> None:
    """Write mono samples, (samples,), at `SAMPLE_RATE_HZ`, as FLAC of 16 bits at another rate.

    What would clip is made quieter. A file is whole or not there.
    """
    resampled = soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz)
    assert np.isfinite(resampled).all(), f"{path} would hold nan or infinity"
    resampled *= min(1.0, _LOUDEST_PEAK / np.abs(resampled).max())
    part = path.with_suffix(".part")
    sf.write(part, resampled, rate_hz, subtype="PCM_16", format="FLAC")
    part.rename(path)


def decibel_gain(level_db: float) -> float:
    """The factor of the amplitude that `level_db` stands for."""
    return float(10 ** (level_db / 20))


def rms(samples: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(samples**2)))
