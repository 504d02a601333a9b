"""Time random 30 s excerpts of 4-minute songs, beside decoding the file and then cropping, in turns.

    python benchmarks/reading_audio.py [--rounds N] [--songs N] [--song-seconds S] [--result FILE]

Songs are made and written as WAV, FLAC and MP3 (44.1 kHz, stereo). Of each file all sides read the same
excerpt, mono at 16 kHz:

    excerpt         this program: seek, decode, resample the excerpt
    converted_flac  the same from the copies that `m2v data convert` writes
    converted_wav   the same with `--format wav`
    librosa         librosa.load(path, sr=16000), then crop: what most scripts do
    soundfile       soundfile.read of the whole file, mean of channels, soxr (HQ) of the whole, then crop:
                    what datasets did until version 3. Its version 5 decodes by torchcodec alone, which is
                    not installed here, so that it cannot read audio and was not run

The sides take turns in one process, each round in another order. Then they are read by a
torch.utils.data.DataLoader with 2 workers that stay, in batches of 8, in turns too, each for some seconds,
so that the first and last batches of a pass count little. Time is given by the clock and, in one process, as
that which the processor worked: on a machine with other work the latter is the one to trust.

Writes medians, spread, ratios, versions and machine to benchmarks/results/reading_audio.json. A goal is met
where the processor's time in one process meets it and the excerpts a second with workers do; else what took
the time is in the file too: of a read, and of the process that gets excerpts from the workers.
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from songs import environment, spread, write_songs
from torch.utils.data import DataLoader, Dataset

from m2v_finetune.audio.decode import inspect_audio, read_excerpt
from m2v_finetune.audio.resample_cache import ResampledAudio, resampled_of, write_resampled

RESULT = Path(__file__).parent / "results" / "reading_audio.json"
RATE_HZ = 16_000
EXCERPT_SECONDS = 30.0
FORMATS = ("mp3", "flac", "wav")
BASELINES = ("librosa", "soundfile")
GOALS = {"excerpt": 4.0, "converted_flac": 50.0, "converted_wav": 50.0}
NO_GOAL = ("wav", "excerpt")  # nobody decodes it
NUM_WORKERS = 2
BATCH_SIZE = 8  # of the recipes
SECONDS_OF_A_PASS = 3.0  # about, of the faster sides
MOST_REPEATS = 32
NUM_PROFILED = 5
NUM_ROWS = 12

Array = NDArray[np.float32]
Read = Callable[[Path, int, int], Array]
"""Reads an excerpt of a song: its path, first sample and number of samples at 16 kHz."""


def read_by_seeking(path: Path, start: int, number: int) -> Array:
    """Read as this program does."""
    return read_excerpt(path, sample_rate=RATE_HZ, start_sample=start, num_samples=number)


def read_by_librosa(path: Path, start: int, number: int) -> Array:
    """Decode all, then crop."""
    whole, _ = librosa.load(path, sr=RATE_HZ)
    return whole[start : start + number]


def read_by_soundfile(path: Path, start: int, number: int) -> Array:
    """Decode all, then crop, without librosa."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    whole: Array = soxr.resample(samples.mean(axis=1), rate, RATE_HZ, quality="HQ")
    return whole[start : start + number]


class ReadResampled:
    """Reads the converted copies of songs.

    Args:
        resampled: By the path of the song.
    """

    def __init__(self, resampled: dict[Path, ResampledAudio]) -> None:
        self.resampled = resampled

    def __call__(self, path: Path, start: int, number: int) -> Array:
        """Read the copy of a song."""
        return self.resampled[path].read_excerpt(start_sample=start, num_samples=number)


class Excerpts(Dataset[Array]):
    """Excerpts for a loader.

    Args:
        read: How one is read.
        positions: Of which song, and where it begins.
        number: Its samples.
    """

    def __init__(self, read: Read, positions: list[tuple[Path, int]], number: int) -> None:
        self.read, self.positions, self.number = read, positions, number

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Array:
        """Read one."""
        path, start = self.positions[index]
        return self.read(path, start, self.number)


def main() -> None:
    """Measure, print the ratios, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--songs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--song-seconds", type=float, default=240.0, help="(default: %(default)s)")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    start_time = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["M2V_CACHE"] = f"{folder}/cache"
        songs = write_songs(
            Path(folder),
            suffixes=FORMATS,
            number=arguments.songs,
            seconds=arguments.song_seconds,
        )
        readers = {suffix: sides(paths) for suffix, paths in songs.items()}
        length = round(arguments.song_seconds * RATE_HZ)
        number = min(round(EXCERPT_SECONDS * RATE_HZ), length // 2)
        found: dict[str, Any] = {
            "excerpt_seconds": number / RATE_HZ,
            "song_seconds": arguments.song_seconds,
            "load_average_before": os.getloadavg(),
            "environment": environment(),
            "formats": {},
        }
        for suffix, paths in songs.items():
            generator = np.random.default_rng(0)
            positions = [
                (paths[i % len(paths)], int(generator.integers(0, length - number)))
                for i in range(arguments.rounds)
            ]
            row = compare(suffix, readers[suffix], positions, number)
            found["formats"][suffix] = row
            print(suffix, json.dumps(row["times_as_fast"]), flush=True)
        found["load_average_after"] = os.getloadavg()
        found["seconds"] = round(time.monotonic() - start_time)
    arguments.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def sides(paths: list[Path]) -> dict[str, Read]:
    """Return the ways to read these songs."""
    readers: dict[str, Read] = {
        "excerpt": read_by_seeking,
        "librosa": read_by_librosa,
        "soundfile": read_by_soundfile,
    }
    for file_format in ("flac", "wav"):
        resampled = {}
        for path in paths:
            # Each format has its own copy here, where the program keeps one.
            os.environ["M2V_CACHE"] = str(path.parent / f"cache-{file_format}")
            record, _ = write_resampled(
                path, inspect_audio(path), sample_rate=RATE_HZ, file_format=file_format
            )
            resampled[path] = resampled_of(path, record, RATE_HZ)
        readers[f"converted_{file_format}"] = ReadResampled(resampled)
    return readers


def compare(
    suffix: str, readers: dict[str, Read], positions: list[tuple[Path, int]], number: int
) -> dict[str, Any]:
    """Measure all sides on songs of one format."""
    wall: dict[str, list[float]] = {name: [] for name in readers}
    processor: dict[str, list[float]] = {name: [] for name in readers}
    for name, read in readers.items():  # once unmeasured: imports, caches, tables of the resampler
        same_music(name, read(*positions[0], number), readers["excerpt"](*positions[0], number))
    names = list(readers)
    for turn, (path, start) in enumerate(positions):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start_time, worked = time.perf_counter(), time.process_time()
            readers[name](path, start, number)
            wall[name].append(time.perf_counter() - start_time)
            processor[name].append(time.process_time() - worked)
    medians = {name: float(np.median(seconds)) for name, seconds in wall.items()}
    loaded, waits = with_workers(readers, positions, number, medians)
    ratios = {
        ours: {
            theirs: {
                "by_clock": ratio(wall, theirs, ours),
                "by_processor": ratio(processor, theirs, ours),
                f"with_{NUM_WORKERS}_workers": round(
                    float(np.median(loaded[ours]) / np.median(loaded[theirs])), 2
                ),
            }
            for theirs in BASELINES
        }
        for ours in GOALS
    }
    evaluated = ("by_processor", f"with_{NUM_WORKERS}_workers")
    goals = {
        ours: {
            "goal": goal,
            "is_met": {way: ratios[ours]["librosa"][way] >= goal for way in evaluated},
        }
        for ours, goal in GOALS.items()
        if (suffix, ours) != NO_GOAL
    }
    return {
        "seconds_an_excerpt": {name: spread(values) for name, values in wall.items()},
        "processor_seconds_an_excerpt": {
            name: spread(values) for name, values in processor.items()
        },
        f"excerpts_a_second_with_{NUM_WORKERS}_workers": {
            name: spread(values) for name, values in loaded.items()
        },
        "times_as_fast": ratios,
        "goals": goals,
        "profiles": {
            name: {
                "of_a_read": profile(readers[name], positions, number),
                "of_the_loader": waits[name],
            }
            for name, one in goals.items()
            if not all(one["is_met"].values())
        },
    }


def same_music(name: str, read: Array, expected: Array) -> None:
    """Check that a side reads the excerpt that it was asked for."""
    difference = float(np.abs(read - expected).max())
    if difference > 1e-3:
        raise SystemExit(f"{name} reads something else: {difference}")


def ratio(seconds: dict[str, list[float]], theirs: str, ours: str) -> float:
    """Return how many times as fast the median excerpt is."""
    return round(float(np.median(seconds[theirs]) / np.median(seconds[ours])), 2)


def with_workers(
    readers: dict[str, Read],
    positions: list[tuple[Path, int]],
    number: int,
    seconds: dict[str, float],
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Read by loaders with workers, each side in turns.

    Args:
        readers: The sides.
        positions: As often repeated for each side as makes a pass of `SECONDS_OF_A_PASS`, at least once.
        number: Samples of an excerpt.
        seconds: That an excerpt takes, by side.

    Returns:
        Excerpts a second of each pass, and what took the time of the process that gets them, of the sides
        that have a goal.
    """
    rates: dict[str, list[float]] = {name: [] for name in readers}
    loaders = {}
    for name, read in readers.items():
        repeats = round(NUM_WORKERS * SECONDS_OF_A_PASS / seconds[name] / len(positions))
        loaders[name] = DataLoader(
            Excerpts(read, positions * min(max(repeats, 1), MOST_REPEATS), number),
            batch_size=BATCH_SIZE,
            num_workers=NUM_WORKERS,
            persistent_workers=True,
        )
    for turn in range(4):
        for name, loader in loaders.items():
            start_time = time.perf_counter()
            run_through(loader)
            if turn > 0:  # in the first one workers start
                rates[name].append(len(loader.dataset) / (time.perf_counter() - start_time))
    return rates, {name: profiled(run_through, loaders[name]) for name in GOALS}


def run_through(loader: Any) -> None:
    """Get all excerpts."""
    for _ in loader:
        pass


def profile(read: Read, positions: list[tuple[Path, int]], number: int) -> list[str]:
    """Return the functions that took most of the time of some excerpts."""
    own = Excerpts(read, positions[:NUM_PROFILED], number)
    return profiled(lambda: [own[index] for index in range(len(own))])


def profiled(work: Callable[..., object], *arguments: object) -> list[str]:
    """Return the functions that took most of the time of some work in this process."""
    profiler = cProfile.Profile()
    profiler.runcall(work, *arguments)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(NUM_ROWS)
    return [line.strip() for line in text.getvalue().splitlines() if line.strip()]


if __name__ == "__main__":
    main()
