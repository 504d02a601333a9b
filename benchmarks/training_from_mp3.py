"""Time training on 4-minute MP3s beside the way of transformers' audio classification example, in turns.

    python benchmarks/training_from_mp3.py [--windows S ...] [--rounds N] [--songs N] [--song-seconds S]
                                           [--workers N]

All sides take the same full training steps: all transformer layers learn, the same total batch and window.
On a CPU the network is filterbank-small, and batches have 4 windows; steps are in float32, and where the CPU
is fast in bfloat16 in rows of their own in that. On an NVIDIA card the network has the size of music2vec-v1
and RANDOM weights, steps are in bfloat16, and batches have 16. The sides differ in how a window becomes a
tensor:

    excerpt    this program: seek, decode, resample, in workers
    converted  the same from the copies that `m2v data convert --format wav` writes
    whole      each song is decoded whole, resampled whole, and a random part of it is taken: what the example
               does by datasets' Audio feature and its own random_subsample. datasets 5 decodes by torchcodec
               alone, which is not installed here: librosa.load(path, sr=16000) stands in for it

Windows are of 5 s, the recipes' default, and of 20 s, the example's max_length_seconds; each is a row. In
each round every side takes an epoch, from the first request for a batch to the last step; workers stay from
round to round, and the first round, in which they start, is left out. Written to
benchmarks/results/training_from_mp3.json (training_from_mp3_on_card.json): windows a second, ratios, the
share of its time that a side waits for data, and for rows that miss the goal the operations that take the
time of a step. On a card a side should wait for data for less than a twentieth of its time.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from profiles import operations, profiler
from songs import environment, spread, write_songs
from torch.utils.data import DataLoader, Dataset
from training_step import processor

from m2v_finetune.allocation import keep_freed_memory
from m2v_finetune.audio.windows import draw_generator
from m2v_finetune.config import BackboneConfig, HeadConfig, OptimizerConfig, TuningConfig
from m2v_finetune.cpu_precision import has_fast_bfloat16
from m2v_finetune.data.checking import CheckedTrack, check_tracks
from m2v_finetune.data.loader import Augment, TrainingWindows, Window, read_window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.resampling import resample_tracks, with_resampled
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

WINDOWS_SECONDS = (5.0, 20.0)
IS_ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_ON_GPU else "cpu")
RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / f"training_from_mp3{'_on_card' if IS_ON_GPU else ''}.json"
BACKBONE = "music2vec-v1" if IS_ON_GPU else "filterbank-small"
BATCH_SIZE = 16 if IS_ON_GPU else 4
NUM_CLASSES = 10
GOAL = 3.0
WAITING_GOAL = 0.05  # on a card


class WholeThenCrop(Dataset[tuple[torch.Tensor, ...]]):
    """Songs decoded whole, of which a random part is taken.

    Args:
        tracks: The songs.
        window_samples: Of the part.
    """

    def __init__(self, tracks: list[CheckedTrack], window_samples: int) -> None:
        self.tracks, self.window_samples = tracks, window_samples

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, position: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Return a part and its label."""
        epoch, index = position
        whole, _ = librosa.load(self.tracks[index].track.path, sr=16_000)
        generator = draw_generator(0, epoch, str(index), "part")
        start = int(generator.integers(0, len(whole) - self.window_samples))
        part = whole[start : start + self.window_samples]
        return torch.from_numpy(part), torch.tensor(index % NUM_CLASSES)


@dataclass
class Positions:
    """Batches of (epoch, index), the same for all sides.

    Attributes:
        number: Songs.
        epoch: To iterate over.
    """

    number: int
    epoch: int = 0

    def __len__(self) -> int:
        return self.number // BATCH_SIZE

    def __iter__(self) -> Any:
        order = draw_generator(0, self.epoch, "", "order").permutation(self.number)
        for batch in order[: len(self) * BATCH_SIZE].reshape(-1, BATCH_SIZE):
            yield [(self.epoch, int(index)) for index in batch]


@dataclass
class Side:
    """A way to read, with a model of its own, and what was measured.

    Attributes:
        loader: Batches of waveforms and labels.
        positions: That it asks for.
        model: What learns.
        optimizer: Of its weights.
        in_bfloat16: Whether its steps are.
        rates: Windows a second, by round.
        waiting: Share of the time that was spent on waiting for a batch, by round.
    """

    loader: DataLoader[Any]
    positions: Positions
    model: TaskModel
    optimizer: torch.optim.Optimizer
    in_bfloat16: bool
    rates: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)

    def take_epoch(self, epoch: int) -> tuple[float, float]:
        """Train once over the songs, and return windows a second and the share of waiting."""
        self.positions.epoch = epoch
        waited, start_time = 0.0, time.perf_counter()
        batches = iter(self.loader)
        for _ in range(len(self.positions)):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            take_step(
                self.model,
                self.optimizer,
                [[part.to(DEVICE, non_blocking=True) for part in batch]],
                loss=self.model.task.loss,
                max_grad_norm=1.0,  # its norm is read, and so the step is done
                autocast=partial(torch.autocast, DEVICE.type, torch.bfloat16)
                if self.in_bfloat16
                else nullcontext,
            )
        seconds = time.perf_counter() - start_time
        return len(self.positions) * BATCH_SIZE / seconds, waited / seconds


def main() -> None:
    """Measure, print the ratios, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=float, nargs="+", default=list(WINDOWS_SECONDS))
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--songs", type=int, default=128 if IS_ON_GPU else 16, help="16; 128 on a card"
    )
    parser.add_argument("--song-seconds", type=float, default=240.0, help="(default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() if IS_ON_GPU else 2,
        help="2; one for each core where there is a card",
    )
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not IS_ON_GPU:
        torch.set_num_threads(1)
    keep_freed_memory(DEVICE)  # as every run does, on all sides
    load_before = os.getloadavg()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["M2V_CACHE"] = f"{folder}/cache"
        checked = write_and_resample(Path(folder), arguments.songs, arguments.song_seconds)
        precisions = [True] if IS_ON_GPU else [False, True][: 1 + has_fast_bfloat16()]
        for seconds, in_bfloat16 in itertools.product(arguments.windows, precisions):
            name = f"{seconds:g} s{', bfloat16' if in_bfloat16 and not IS_ON_GPU else ''}"
            sides = build_sides(checked, seconds, arguments.workers, in_bfloat16=in_bfloat16)
            rows[name] = measure(sides, arguments.rounds)
            print(name, json.dumps(rows[name]["times_as_fast"]), flush=True)
    found = {
        "rows": rows,
        "song_seconds": arguments.song_seconds,
        "backbone": BACKBONE,
        "device": torch.cuda.get_device_name() if IS_ON_GPU else processor(),
        "batch_size": BATCH_SIZE,
        "num_workers": arguments.workers,
        "goal": GOAL,
        "load_average": [load_before, os.getloadavg()],
        "environment": environment(),
    }
    arguments.result.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def measure(sides: dict[str, Side], num_rounds: int) -> dict[str, Any]:
    """Let the sides take turns, and return what one row of the result says."""
    names = list(sides)
    for turn in range(num_rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            rate, waiting = sides[name].take_epoch(turn)
            print(turn, name, round(rate, 2), round(waiting, 3), flush=True)
            if turn > 0:
                sides[name].rates.append(rate)
                sides[name].waiting.append(waiting)
    medians = {name: statistics.median(side.rates) for name, side in sides.items()}
    ratios = {name: medians[name] / medians["whole"] for name in ("excerpt", "converted")}
    found: dict[str, Any] = {
        "windows_a_second": {name: spread(side.rates) for name, side in sides.items()},
        "waiting_share": {name: spread(side.waiting) for name, side in sides.items()},
        "times_as_fast": ratios,
        "is_goal_met": {name: value >= GOAL for name, value in ratios.items()},
    }
    if IS_ON_GPU:
        waits = {name: statistics.median(side.waiting) for name, side in sides.items()}
        found["waiting_goal"] = WAITING_GOAL
        found["is_waiting_goal_met"] = {name: wait < WAITING_GOAL for name, wait in waits.items()}
    if not all(found["is_goal_met"].values()):
        with profiler(DEVICE) as profiled:
            sides["excerpt"].take_epoch(num_rounds + 1)
        found["operations_of_an_epoch"] = operations(profiled, DEVICE)
    return found


def write_and_resample(folder: Path, num_songs: int, seconds: float) -> list[CheckedTrack]:
    """Write the songs and their converted copies."""
    [paths] = write_songs(folder, suffixes=["mp3"], number=num_songs, seconds=seconds).values()
    tracks = [
        Track(id=p.name, path=p, split="train", columns={}, origin=p.name, folder=folder)
        for p in paths
    ]
    checked, _ = check_tracks(tracks, on_bad_track="stop", show_progress=False)
    resample_tracks(checked, sample_rate=16_000, file_format="wav", num_processes=1)
    return checked


def build_sides(
    checked: list[CheckedTrack], window_seconds: float, workers: int, *, in_bfloat16: bool
) -> dict[str, Side]:
    """Return the sides."""
    models = {name: build_model(window_seconds) for name in ("excerpt", "converted", "whole")}
    window_samples = models["whole"].window_samples
    windows = partial(
        TrainingWindows,
        example=example,
        grid=models["excerpt"].backbone.frame_grid,
        window_samples=window_samples,
        windows_per_track=1,
        augmentation=None,
        seed=0,
    )
    items: dict[str, Dataset[Any]] = {
        "excerpt": windows(tracks=checked),
        "converted": windows(tracks=with_resampled(checked, sample_rate=16_000)),
        "whole": WholeThenCrop(checked, window_samples),
    }
    sides = {}
    for name, model in models.items():
        positions = Positions(len(checked))
        loader = DataLoader(
            items[name],
            batch_sampler=positions,  # type: ignore[arg-type]
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=IS_ON_GPU,
        )
        optimizer = build_optimizer(
            model, OptimizerConfig(learning_rate=1e-4, backbone_learning_rate=1e-5)
        )
        sides[name] = Side(
            loader=loader,
            positions=positions,
            model=model,
            optimizer=optimizer,
            in_bfloat16=in_bfloat16,
        )
    return sides


def build_model(window_seconds: float) -> TaskModel:
    """Return a model of which all transformer layers learn."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Genre(labels=tuple(map(str, range(NUM_CLASSES))), label_column="genre"),
        backbone=BackboneConfig(source=BACKBONE),
        head=HeadConfig(),
        tuning=TuningConfig(method="full"),
        window_seconds=window_seconds,
        hop_seconds=None,
        with_weights=not IS_ON_GPU,
    )
    return model.to(DEVICE).train()


def example(checked: CheckedTrack, window: Window, augment: Augment | None) -> tuple[Any, ...]:
    """Return a window and its label."""
    number = int(checked.track.id.split("-")[1].split(".")[0])
    return read_window(checked, window), np.array(number % NUM_CLASSES)


if __name__ == "__main__":
    main()
