"""What benchmarks of reading share: songs to read, and what the numbers are of.

A song is chords of decaying partials over a beat of noise, stereo, different in each channel, never
repeated: a coder finds about as much to do in it as in produced music. Nothing is fetched.
"""

import os
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from m2v_finetune.training.environment import describe_environment

SONG_RATE_HZ = 44_100
NUM_PARTIALS = 6
BEAT_SECONDS = 0.5


def make_song(seconds: float, *, seed: int) -> NDArray[np.float32]:
    """Return a song, (frames, 2) at 44.1 kHz."""
    generator = np.random.default_rng(seed)
    beat_frames = round(BEAT_SECONDS * SONG_RATE_HZ)
    times = np.arange(beat_frames) / SONG_RATE_HZ
    decay = np.exp(-4 * times)
    beats = []
    for _ in range(round(seconds / BEAT_SECONDS)):
        beat = 0.1 * generator.standard_normal((beat_frames, 2)) * np.exp(-30 * times)[:, None]
        for pitch in generator.integers(36, 84, size=4):
            base = 440 * 2 ** ((int(pitch) - 69) / 12)
            pan = generator.uniform(0.2, 0.8)
            tone = sum(
                np.sin(2 * np.pi * base * k * times + generator.uniform(0, 6)) / k
                for k in range(1, NUM_PARTIALS + 1)
            )
            beat += 0.08 * (tone * decay)[:, None] * np.array([pan, 1 - pan])
        beats.append(beat.astype(np.float32))
    return np.concatenate(beats)


def write_songs(
    folder: Path, *, suffixes: Sequence[str], number: int, seconds: float
) -> dict[str, list[Path]]:
    """Write songs in each format, and return their paths by suffix."""
    paths: dict[str, list[Path]] = {suffix: [] for suffix in suffixes}
    for seed in range(number):
        song = make_song(seconds, seed=seed)
        for suffix in suffixes:
            path = folder / f"song-{seed}.{suffix}"
            soundfile.write(path, song, SONG_RATE_HZ)
            paths[suffix].append(path)
    return paths


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and range of repeated measurements."""
    low, _, high = statistics.quantiles(values, n=4)
    return {
        "median": round(statistics.median(values), 6),
        "quartiles": [round(low, 6), round(high, 6)],
        "range": [round(min(values), 6), round(max(values), 6)],
        "number": len(values),
    }


def command_variables(**more: str) -> dict[str, str]:
    """Return the variables of a timed command: Python keeps compiled modules, as it does by default."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **more}


def environment() -> dict[str, Any]:
    """Return versions and machine, with those of the other side."""
    found = describe_environment()
    for of_run in ("num_processes", "num_threads", "mixed_precision"):
        del found[of_run]  # a benchmark has its own, beside its measurements
    found["packages"] |= {name: version(name) for name in ("librosa", "datasets")}
    found["packages"]["libsndfile"] = soundfile.__libsndfile_version__
    return found
