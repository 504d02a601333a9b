"""Time the tags of a song of 4 minutes beside transformers' class on the same windows, decoded by librosa.

    python benchmarks/predicting_songs.py [--backbones NAME ...] [--rounds N]

Both sides have the same RANDOM weights, windows of 5 s one after the other, and batches of 16, with all
cores, each in a process of its own; models are loaded before. The other side is the common way:
`librosa.load` of the whole MP3 (44.1 kHz, stereo), the feature extractor, and `...ForSequenceClassification`.
Both give the same scores, but that librosa's song at 24 kHz is a sample longer, and so has one window more.
This program predicts in float32, and in bfloat16 too where the CPU is fast in it.
Sides take turns after a run of each; the machine should be idle. Written to
benchmarks/results/predicting_songs.json: seconds, their spread, and ratios of medians.
`decoding` has the seconds of each side without the network.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from numpy.typing import NDArray
from own_process import OwnProcess
from songs import environment, spread, write_songs
from training_step import processor

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.audio.windows import window_starts
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.cpu_precision import InferencePrecision, has_fast_bfloat16
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.threads import choose_threads

RESULT = Path(__file__).parent / "results" / "predicting_songs.json"
BACKBONES = ("music2vec-v1", "MERT-v1-95M")
SONG_SECONDS, WINDOW_SECONDS, BATCH_SIZE = 240.0, 5.0, 16
GOAL = 4.0
"""In bfloat16, where the CPU is fast in it."""


def main() -> None:
    """Measure each backbone, and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "goal_in_bfloat16": GOAL,
        "processor": processor(),
        "has_fast_bfloat16": has_fast_bfloat16(),
        "load_average_before": os.getloadavg(),
        "environment": environment(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "backbones": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        [song] = write_songs(Path(folder), suffixes=["mp3"], number=1, seconds=SONG_SECONDS)["mp3"]
        for name in arguments.backbones:
            found["backbones"][name] = measure(name, song, arguments.rounds)
            print(name, json.dumps(found["backbones"][name], indent=2), flush=True)
    found["load_average_after"] = os.getloadavg()
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def model_of(name: str) -> TaskModel:
    """Return a model with random weights, the same in each process."""
    torch.manual_seed(0)
    return TaskModel.build(
        task=Tagging(labels=tuple(map(str, range(50))), label_column="tags"),
        backbone=BackboneConfig(source=name),
        head=HeadConfig(kind="linear", standardize=False),
        tuning=TuningConfig(method="full"),
        window_seconds=WINDOW_SECONDS,
        hop_seconds=WINDOW_SECONDS,
        with_weights=False,
    ).eval()


def our_side(name: str, song: Path) -> dict[str, Callable[[], Any]]:
    """Return the prediction of this program, and its decoding."""
    model = model_of(name)
    torch.set_num_threads(choose_threads(model))

    def predict(precision: InferencePrecision) -> NDArray[np.float64]:
        model.precision = precision
        scores = model.predict(song, batch_size=BATCH_SIZE).scores
        return np.array(list(scores.values()))

    def decode() -> None:
        read_audio(song, sample_rate=model.backbone.sample_rate)

    return {
        "ours": partial(predict, "float32"),
        "ours, bfloat16": partial(predict, "bfloat16"),
        "ours, decoding": decode,
    }


def their_side(name: str, song: Path) -> dict[str, Callable[[], Any]]:
    """Return the prediction of transformers' class, and librosa's decoding."""
    model = model_of(name)
    torch.set_num_threads(choose_threads(model))
    network, extractor = model.to_transformers()
    network = network.eval()
    rate = model.backbone.sample_rate

    def predict() -> NDArray[np.float64]:
        samples, _ = librosa.load(song, sr=rate)
        length = round(WINDOW_SECONDS * rate)
        windows = [samples[start : start + length] for start in window_starts(len(samples), length)]
        scores = []
        for first in range(0, len(windows), BATCH_SIZE):
            inputs = extractor(
                windows[first : first + BATCH_SIZE], sampling_rate=rate, return_tensors="pt"
            )
            with torch.inference_mode():
                scores.append(network(**inputs).logits.sigmoid())
        return torch.cat(scores).mean(dim=0).double().numpy()

    def decode() -> None:
        librosa.load(song, sr=rate)

    return {"theirs": predict, "theirs, decoding": decode}


def measure(name: str, song: Path, rounds: int) -> dict[str, Any]:
    """Time both sides of a backbone."""
    with (
        OwnProcess(our_side, name, song) as ours,
        OwnProcess(their_side, name, song, keeps_memory=False) as theirs,
    ):
        exact = ours.run("ours")[2]
        difference = float(np.abs(exact - theirs.run("theirs")[2]).max())
        assert difference < 1e-3, f"the two sides are not the same model: {difference}"
        sides = {"ours": ours, "theirs": theirs, "ours, decoding": ours, "theirs, decoding": theirs}
        if has_fast_bfloat16():
            sides["ours, bfloat16"] = ours
            rounded = ours.run("ours, bfloat16")[2]
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, process in sides.items():
                elapsed, _, _ = process.run(side)
                seconds[side].append(elapsed)
    threads = choose_threads(model_of(name))
    found: dict[str, Any] = {side: spread(times) for side, times in seconds.items()}
    theirs_median = found["theirs"]["median"]
    if has_fast_bfloat16():
        found |= {
            "largest_difference_of_scores_in_bfloat16": float(np.abs(rounded - exact).max()),
            "times_as_fast_in_bfloat16": round(
                theirs_median / found["ours, bfloat16"]["median"], 2
            ),
        }
    return found | {
        "network": f"{name}, RANDOM WEIGHTS",
        "threads": threads,
        "largest_difference_of_scores": difference,
        "times_as_fast": round(theirs_median / found["ours"]["median"], 2),
    }


if __name__ == "__main__":
    main()
