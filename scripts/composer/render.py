"""Renders a composed piece with FluidSynth, mixes its roles and encodes the clip."""

import subprocess
import tempfile
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
_ROLE_LEVELS_DB = {"drums": -2.0, "bass": -2.0, "chords": -2.0, "melody": 0.0}
# Rest between two roles in one rendered file: longer than any release.
_GAP_SECONDS = 3.0
# soundfile's level 1 is Vorbis quality 0: about 32 kbit/s here, which is what 12 MB leave room for.
_COMPRESSION_LEVEL = 1.0
# libsndfile overruns its stack when a long signal is written to OGG at once.
_WRITE_BLOCK_SAMPLES = 24_000


def render_roles(piece: Piece, soundfont: Path, fluidsynth: str) -> dict[str, np.ndarray]:
    """The clip's stems.

    The roles are rendered one after the other in one run of FluidSynth, without reverberation and
    chorus, then cut to the clip, balanced and scaled by one factor so that their sum has the
    plan's loudness.

    Returns:
        For each role that the piece has: float64, (samples,), at `SAMPLE_RATE_HZ`.
    """
    quarter_microseconds = piece.score.quarter_microseconds
    tick_seconds = seconds_of(1, quarter_microseconds)
    clip_start_seconds = piece.clip_start * tick_seconds
    stride_ticks = int((clip_start_seconds + CLIP_SECONDS + _GAP_SECONDS) / tick_seconds)
    clip_end = piece.clip_start + CLIP_SECONDS / tick_seconds
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
    with tempfile.TemporaryDirectory() as folder:
        midi_path, wave_path = Path(folder, "piece.mid"), Path(folder, "piece.wav")
        midi_path.write_bytes(encode_midi(score))
        command = [fluidsynth, "-n", "-i", "-q", "-R", "0", "-C", "0", "-g", "0.3"]
        command += ["-r", str(_RENDER_RATE_HZ), "-o", "synth.dynamic-sample-loading=1"]
        command += ["-o", "audio.file.format=float", "-F", str(wave_path)]
        subprocess.run([*command, str(soundfont), str(midi_path)], check=True, capture_output=True)
        stereo, _ = sf.read(wave_path)
    mono = soxr.resample(stereo.mean(axis=1), _RENDER_RATE_HZ, SAMPLE_RATE_HZ)
    num_samples = round(CLIP_SECONDS * SAMPLE_RATE_HZ)
    mono = np.pad(mono, (0, num_samples))
    fade_in, fade_out = (
        np.linspace(0.0, 1.0, round(seconds * SAMPLE_RATE_HZ))
        for seconds in (_FADE_IN_SECONDS, _FADE_OUT_SECONDS)
    )
    stems = {}
    for index, track in enumerate(piece.score.tracks):
        start = round((clip_start_seconds + index * stride_ticks * tick_seconds) * SAMPLE_RATE_HZ)
        stem = mono[start : start + num_samples].copy()
        stem[: len(fade_in)] *= fade_in
        stem[-len(fade_out) :] *= fade_out[::-1]
        stems[track.name] = stem * _db(_ROLE_LEVELS_DB[track.name]) / _rms(stem)
    gain = _db(piece.plan.loudness_dbfs) / _rms(sum_roles(stems))
    return {role: stem * gain for role, stem in stems.items()}


def sum_roles(stems: dict[str, np.ndarray]) -> np.ndarray:
    """The mixture: the sum of the stems, (samples,)."""
    mixture: np.ndarray = np.sum([stems[role] for role in ROLES if role in stems], axis=0)
    return mixture


def write_ogg(path: Path, samples: np.ndarray) -> None:
    """Write mono samples, (samples,) within [-1, 1], as OGG Vorbis at `SAMPLE_RATE_HZ`."""
    with sf.SoundFile(
        path,
        "w",
        samplerate=SAMPLE_RATE_HZ,
        channels=1,
        format="OGG",
        subtype="VORBIS",
        compression_level=_COMPRESSION_LEVEL,
    ) as file:
        for start in range(0, len(samples), _WRITE_BLOCK_SAMPLES):
            file.write(samples[start : start + _WRITE_BLOCK_SAMPLES])


def _db(level_db: float) -> float:
    return float(10 ** (level_db / 20))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))
