"""What bounds reading from resampled copies in FLAC? Processor seconds of an excerpt, by part.

    python benchmarks/reading_copies.py

An excerpt of 30 s is read at a random place of a copy at 16 kHz: by this program, and by libsndfile alone,
from FLAC at each level and from WAV. All take turns. Written to benchmarks/results/reading_copies.json.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from songs import environment, make_song, spread

from m2v_finetune.audio.decode import read_excerpt, resample

RESULT = Path(__file__).parent / "results" / "reading_copies.json"
RATE = 16_000
EXCERPT = 30 * RATE
NUM_EXCERPTS = 20
ROUNDS = 7
LEVELS = {"FLAC, level 0": 0.0, "FLAC, default": None, "FLAC, level 8": 1.0}


def main() -> None:
    """Measure and write the result."""
    song = make_song(240.0, seed=0).mean(axis=1)
    samples = resample(0.9 * song / np.abs(song).max(), 44_100, RATE)
    places = np.random.default_rng(0).integers(0, len(samples) - EXCERPT, NUM_EXCERPTS).tolist()
    times: dict[str, dict[str, list[float]]] = {}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {"WAV": Path(folder) / "copy.wav"}
        soundfile.write(files["WAV"], samples, RATE, subtype="PCM_16")
        for name, level in LEVELS.items():
            files[name] = Path(folder) / f"{level}.flac"
            options: dict[str, Any] = {} if level is None else {"compression_level": level}
            soundfile.write(files[name], samples, RATE, subtype="PCM_16", **options)
        for _ in range(ROUNDS):
            for name, file in files.items():
                sizes[name] = file.stat().st_size
                parts = times.setdefault(name, {"this program": [], "libsndfile alone": []})
                start = time.process_time()
                for place in places:
                    read_excerpt(file, sample_rate=RATE, start_sample=place, num_samples=EXCERPT)
                parts["this program"].append((time.process_time() - start) / NUM_EXCERPTS)
                with soundfile.SoundFile(file) as sound:
                    start = time.process_time()
                    for place in places:
                        sound.seek(place)
                        sound.read(EXCERPT, dtype="float32")
                    parts["libsndfile alone"].append((time.process_time() - start) / NUM_EXCERPTS)
    result = {
        name: {
            "bytes": sizes[name],
            "processor_seconds_an_excerpt": {part: spread(own) for part, own in parts.items()},
        }
        for name, parts in times.items()
    }
    for name, row in result.items():
        print(
            name, {part: one["median"] for part, one in row["processor_seconds_an_excerpt"].items()}
        )
    found = {"copies": result, "load_average": os.getloadavg(), "environment": environment()}
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
