"""Measure the peak memory of reading an M4A whose decoded sound is larger than 4 GiB.

    python benchmarks/long_m4a.py [--minutes N] [--result FILE]

ffmpeg makes 65 minutes of six tones, 5.1 at 48 kHz: 4.2 GiB in float32, past what 32 bits count. A process of
its own for each inspects the file and reads 30 s at its end, mono at 16 kHz; what it took at most beyond its
imports is compared with the sound. Writes benchmarks/results/long_m4a.json.
"""

import argparse
import json
import math
import multiprocessing
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from songs import environment

from m2v_finetune.audio.decode import inspect_audio, read_excerpt

RESULT = Path(__file__).parent / "results" / "long_m4a.json"
RATE_HZ = 16_000
FILE_RATE_HZ, CHANNELS, BYTES_PER_NUMBER = 48_000, 6, 4
TONES_HZ = (220, 277, 330, 55, 440, 554)


def write_m4a(path: Path, minutes: int) -> None:
    """Write a file of that length with ffmpeg: one minute, again and again."""
    tones = "|".join(f"0.1*sin({2 * math.pi * tone}*t)" for tone in TONES_HZ)
    source = f"aevalsrc={tones}:c=5.1:s={FILE_RATE_HZ}:d=60"
    minute = path.with_name("minute.m4a")
    words = ["ffmpeg", "-v", "error"]
    coded = [*words, "-f", "lavfi", "-i", source, "-c:a", "aac", "-b:a", "128k", str(minute)]
    subprocess.run(coded, check=True)
    repeated = ["-stream_loop", str(minutes - 1), "-i", str(minute), "-c", "copy", str(path)]
    subprocess.run([*words, *repeated], check=True)


def peak_bytes() -> int:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(path: Path, what: str) -> dict[str, Any]:
    """Inspect a file, or read its last 30 s; return time and memory."""
    before, start_time = peak_bytes(), time.monotonic()
    if what == "inspect":
        num_samples = inspect_audio(path).num_samples(RATE_HZ)
    else:
        num_samples = 30 * RATE_HZ
        start = int(what) * RATE_HZ - num_samples
        read_excerpt(path, sample_rate=RATE_HZ, start_sample=start, num_samples=num_samples)
    return {
        "num_samples": num_samples,
        "seconds": time.monotonic() - start_time,
        "peak_bytes": peak_bytes(),
        "peak_bytes_beyond_imports": peak_bytes() - before,
    }


def main() -> None:
    """Make the file, measure in fresh processes, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=65)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.m4a"
        write_m4a(path, arguments.minutes)
        # Of a new process, as the highest mark of memory is kept for the life of one.
        context = multiprocessing.get_context("spawn")
        measured = {}
        for name, what in (("inspect", "inspect"), ("last_30_s", str(arguments.minutes * 60))):
            with context.Pool(1) as pool:
                measured[name] = pool.apply(measure, (path, what))
        result = {
            "minutes": arguments.minutes,
            "file_bytes": path.stat().st_size,
            "sound_bytes": arguments.minutes * 60 * FILE_RATE_HZ * CHANNELS * BYTES_PER_NUMBER,
            **measured,
            "environment": environment(),
        }
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
