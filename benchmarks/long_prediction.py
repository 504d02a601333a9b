"""Time a prediction over an hour of music on one core, and watch the memory.

    OMP_NUM_THREADS=1 python benchmarks/long_prediction.py [--minutes M] [--backbone NAME] [--result FILE]

A song of four minutes is written again and again into one MP3 (44.1 kHz, stereo). A tagger and a beat
tracker with the default heads, not trained, hear it whole, reading included, in a process that is held to one
core. The resident memory is looked at every half second. Written to benchmarks/results/long_prediction.json:
how many times faster than it plays, by the clock and by the time that the processor worked, the peak of
memory in each quarter of the time, and where the goal is missed the functions that take the time.
"""

import argparse
import cProfile
import json
import os
import pstats
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from songs import SONG_RATE_HZ, environment, make_song

from m2v_finetune.config import BackboneConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import parse_recipe, recipe_config
from m2v_finetune.tasks import TASKS

RESULT = Path(__file__).parent / "results" / "long_prediction.json"
SONG_SECONDS, WINDOW_SECONDS = 240.0, 5.0
LOOK_SECONDS = 0.5
GOAL = 20.0
NUM_LISTED_FUNCTIONS = 12
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Predict, and write what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="(default: %(default)s)")
    parser.add_argument("--backbone", default="filterbank-small", help="(default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", default=["tagging", "beats"])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "backbone": arguments.backbone,
        "goal": GOAL,
        "load_average_before": os.getloadavg(),
        "environment": environment(),
        "tasks": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp3"
        seconds = write_long_file(path, 60 * arguments.minutes)
        for task in arguments.tasks:
            found["tasks"][task] = measure(task, arguments.backbone, path, seconds)
            print(task, json.dumps(found["tasks"][task]), flush=True)
    found["load_average_after"] = os.getloadavg()
    arguments.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def write_long_file(path: Path, seconds: float) -> float:
    """Write an MP3 piece by piece, and return its length in seconds."""
    song = make_song(min(SONG_SECONDS, seconds), seed=0)
    repeats = max(1, round(seconds * SONG_RATE_HZ / len(song)))
    with soundfile.SoundFile(path, "w", SONG_RATE_HZ, 2, format="MP3") as file:
        for _ in range(repeats):
            file.write(song)
    return repeats * len(song) / SONG_RATE_HZ


def measure(task_name: str, backbone: str, path: Path, seconds: float) -> dict[str, Any]:
    """Predict once."""
    config = parse_recipe(
        recipe_config(TASKS[task_name]),
        ["--data.source=quickstart"],
        description="",
        quickstart=Path(),
    )
    task = TASKS[task_name].from_settings(config.task)
    torch.manual_seed(0)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source=backbone),
        head=config.head,
        tuning=config.tuning,
        window_seconds=WINDOW_SECONDS,
    )
    model.eval()
    looks: list[int] = []
    is_done = threading.Event()
    watch = threading.Thread(target=look_at_memory, args=(looks, is_done))
    before = resident_bytes()
    start_time, worked = time.perf_counter(), time.process_time()
    watch.start()
    model.predict(path)
    wall, processor = time.perf_counter() - start_time, time.process_time() - worked
    is_done.set()
    watch.join()
    quarters = [looks[i * len(looks) // 4 : (i + 1) * len(looks) // 4] for i in range(4)]
    peaks = [max(quarter, default=0) for quarter in quarters]
    is_goal_met = seconds / wall >= GOAL
    return {
        "track_seconds": round(seconds, 3),
        "window_seconds": model.window_seconds,
        "hop_seconds": model.hop_seconds,
        "seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
        "times_real_time_by_clock": round(seconds / wall, 2),
        "times_real_time_by_processor": round(seconds / processor, 2),
        "is_goal_met": is_goal_met,
        "resident_bytes_before": before,
        "peak_bytes_by_quarter": peaks,
        "growth_from_second_to_last_quarter": round(peaks[3] / peaks[1] - 1, 4)
        if peaks[1]
        else None,
    } | ({} if is_goal_met else {"functions": functions_of(model, path)})


def functions_of(model: TaskModel, path: Path) -> list[dict[str, Any]]:
    """Predict once more, and return the functions that take the time."""
    with cProfile.Profile() as profiled:
        model.predict(path)
    rows = pstats.Stats(profiled).get_stats_profile().func_profiles.items()
    longest = sorted(rows, key=lambda row: -row[1].tottime)[:NUM_LISTED_FUNCTIONS]
    return [
        {"name": name, "calls": one.ncalls, "seconds": round(one.tottime, 2)}
        for name, one in longest
    ]


def look_at_memory(looks: list[int], is_done: threading.Event) -> None:
    """Note the resident memory until the event."""
    while not is_done.wait(LOOK_SECONDS):
        looks.append(resident_bytes())


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


if __name__ == "__main__":
    main()
