"""Run every recipe's quickstart and compare the headline metric with chance and with a baseline.

    python benchmarks/quickstart_tasks.py [TASK or RUN_FOLDER ...]

writes benchmarks/results/quickstart_tasks.json and prints the README's table. Chance is what answers
score that know nothing of the track they are given for:

- emotion: the mean of the training tracks, for every track;
- separation: an equaliser for each stem that is the same for every track: the share that the stem has
  of the energy of each frequency in the training tracks, as a mask of the mixture's spectrogram;
- every other task: the model's own answers, given to the test tracks in a random order, the mean over
  20 orders. The distribution of the answers stays as it is.

Baselines without a network are those of benchmarks/simple_baselines.py.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.signal import istft, stft

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.data.checking import CheckedTrack, check_tracks
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.clip_prediction import ClipPrediction
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.separation import Separation, Stems
from m2v_finetune.tasks.separation.stem_files import stem_path

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "quickstart_tasks.json"
BACKBONE = "filterbank-small"
NUM_ORDERS = 20
NUM_FFT = 2048


def main() -> None:
    """Run the tasks asked for, or all, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "tasks", nargs="*", help="names, or folders of finished quickstart runs; all if none"
    )
    asked = parser.parse_args().tasks or list(TASKS)
    for one in asked:
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(one)
            if one in TASKS:
                run = Path(temporary) / "run"
                recipe = REPOSITORY / "recipes" / f"{one}.py"
                subprocess.run([sys.executable, recipe, "--run.output_dir", run], check=True)
            measured = measure(run)
        found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"tasks": {}}
        found["tasks"] = dict(sorted({**found["tasks"], **measured}.items()))
        found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
        RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(json.loads(RESULT.read_text())["tasks"]))


def measure(run: Path) -> dict[str, Any]:
    """Return, by the task's name, what a run found on its test tracks, beside chance and a baseline."""
    from simple_baselines import baseline

    results = json.loads((run / "results.json").read_text())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    model = TaskModel.from_pretrained(run / "model")
    tracks, _ = load_tracks(settings["data"]["source"], label_column=model.task.label_column)
    train, test = (
        check_tracks([t for t in tracks if t.split == name], on_bad_track="stop")[0]
        for name in ("train", "test")
    )
    name = model.task.selection_metric
    return {
        results["task"]: {
            "metric": results["metric_names"][name],
            **results["metrics"][name],
            "chance": chance(model, train, test),
            "baseline": baseline(model.task, train, test),
            "num_tracks": results["num_tracks"],
            "tuning": results["tuning"],
            "layer_weights": results["layer_weights"],
            "backbone": results["backbone"]["source"],
        }
    }


def chance(model: TaskModel, train: list[CheckedTrack], test: list[CheckedTrack]) -> float:
    """Return the task's headline metric of answers that know nothing of their track."""
    task = model.task
    if isinstance(task, Emotion):
        mean = ClipPrediction(scores=dict(zip(task.labels, task.means, strict=True)), timeline=[])
        return task.compute_metrics([task.evaluate_track(one, mean) for one in test])[
            task.selection_metric
        ]
    if isinstance(task, Separation):
        shares = energy_shares(task, train)
        return task.compute_metrics(
            [task.evaluate_track(one, equalised(task, one, shares)) for one in test]
        )["sdr"]
    predictions = [model.predict_track(one) for one in test]
    values = []
    generator = np.random.default_rng(0)
    for _ in range(NUM_ORDERS):
        order = generator.permutation(len(test))
        evaluated = [
            task.evaluate_track(one, predictions[other])
            for one, other in zip(test, order, strict=True)
        ]
        values.append(task.compute_metrics(evaluated)[task.selection_metric])
    return float(np.mean(values))


def energy_shares(task: Separation, train: list[CheckedTrack]) -> np.ndarray:
    """Return the share of each stem at each frequency in some tracks, (stems, frequencies)."""
    energy = 0.0
    for one in train:
        folder = one.track.folder / one.track.columns[task.label_column]
        paths = [stem_path(folder, stem) for stem in task.stems]
        stems = np.stack([read_audio(path, sample_rate=task.sample_rate) for path in paths])
        energy = energy + (np.abs(stft(stems, nperseg=NUM_FFT)[2]) ** 2).sum(axis=-1)
    return energy / energy.sum(axis=0)


def equalised(task: Separation, checked: CheckedTrack, shares: np.ndarray) -> Stems:
    """Return the mixture of a track through the equaliser of each stem."""
    mixture = read_audio(checked.track.path, sample_rate=task.sample_rate)
    spectrum = stft(mixture, nperseg=NUM_FFT)[2]
    stems = istft(shares[:, :, None] * spectrum, nperseg=NUM_FFT)[1][:, : len(mixture)]
    return Stems(
        task.stems,
        sample_rate=task.sample_rate,
        num_samples=len(mixture),
        chunks=iter([stems[:, None].astype(np.float32)]),
    )


def table(tasks: dict[str, Any]) -> str:
    """Return the measured values as a Markdown table."""
    lines = [
        "| task | metric | test tracks (95 % interval) | chance | without a network | above it |",
        "|---|---|---|---|---|---|",
    ]
    for task, row in sorted(tasks.items()):
        name = task if row["backbone"] == BACKBONE else f"{task} (on {row['backbone']})"
        found = row.get("baseline")
        others = [row["chance"], found["value"] if found else None]
        best = max(value for value in others if value is not None)
        above = "yes" if row["low"] > best else "open" if row["value"] > best else "no"
        beside = f"{found['value']:.3f}, {found['name']}" if found else "-"
        by_chance = "-" if row["chance"] is None else f"{row['chance']:.3f}"
        lines.append(
            f"| {name} | {row['metric']} | {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | "
            f"{by_chance} | {beside} | {above} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
