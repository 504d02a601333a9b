"""Compare bfloat16 with float32: metrics of the quickstarts, hidden states and gradients of large networks.

    python benchmarks/precision.py [TASK or RUN_FOLDER ...]

A task is trained by its quickstart first, in float32; a folder is of a finished quickstart run. Each model
predicts its test tracks in both precisions, and a network of music2vec's size with random weights and a head
of the task computes a clip in both. Then that network computes hidden states, and gradients of full
fine-tuning, of noise; and two quickstarts are trained in both precisions. Numbers of bfloat16 are the same on
CPUs that are slow in it, to the order of sums; only time is not. Written to benchmarks/results/precision.json
and the table of docs/precision.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from memory_table import replaced
from songs import environment
from torch import Tensor

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.checking import CheckedTrack, check_tracks
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.model.inference import check_file, score_windows
from m2v_finetune.parsing import parse_recipe, recipe_config
from m2v_finetune.publishing.comparison import compare_runs
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.genre import Genre

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "precision.json"
PAGE = REPOSITORY / "docs" / "precision.md"
BOUND = 0.01
"""Largest change of a metric for which bfloat16 is chosen by itself."""
NETWORKS = {"music2vec's size": "music2vec-v1"}
TRAINING = {
    "tagging, probe": ("tagging", {}),
    "genre, full": ("genre", {"tuning.method": "full", "training.epochs": 3}),
}


def main() -> None:
    """Compare what is asked for, and write it beside what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", help="names or run folders; all tasks if none")
    parser.add_argument(
        "--tracks", type=int, help="number of test tracks of each task; default: all"
    )
    parser.add_argument("--outputs", action="store_true", help="compare only the outputs by task")
    parser.add_argument("--networks", action="store_true", help="compare only the large networks")
    parser.add_argument("--training", action="store_true", help="compare only the training runs")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a window of noise")
    arguments = parser.parse_args()
    found = {"tasks": {}, "outputs": {}, "networks": {}, "training": {}}
    if RESULT.is_file():
        found |= json.loads(RESULT.read_text())
    only = arguments.outputs or arguments.networks or arguments.training
    for one in [] if only else arguments.tasks or list(TASKS):
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(one)
            if one in TASKS:
                run = Path(temporary) / "run"
                recipe = REPOSITORY / "recipes" / f"{one}.py"
                words = ["--training.mixed_precision", "no", "--run.output_dir", run]
                subprocess.run([sys.executable, recipe, *words], check=True)
            found["tasks"] |= compare_run(run, arguments.tracks)
        write(found)
    if arguments.outputs or not (only or arguments.tasks):
        for name in TASKS:
            found["outputs"][name] = compare_outputs(name)
            write(found)
    if arguments.networks or not (only or arguments.tasks):
        for name, source in NETWORKS.items():
            found["networks"][name] = compare_network(source, arguments.seconds)
            write(found)
    if arguments.training or not (only or arguments.tasks):
        for name, (task, settings) in TRAINING.items():
            found["training"][name] = compare_training(task, settings)
            write(found)


def write(found: dict[str, Any]) -> None:
    """Write the result, and the table of the documentation."""
    found["tasks"] = dict(sorted(found["tasks"].items()))
    found["bound"] = BOUND
    found["environment"] = environment()
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, "bfloat16", table(found)), encoding="utf-8")


def compare_run(run: Path, num_tracks: int | None) -> dict[str, Any]:
    """Return the headline metric of a run's model on test tracks, the first ones, in both precisions."""
    results = json.loads((run / "results.json").read_text())
    settings = yaml.safe_load((run / "config.yaml").read_text())
    model = TaskModel.from_pretrained(run / "model")
    task = model.task
    tracks, _ = load_tracks(settings["data"]["source"], label_column=task.label_column)
    chosen = [track for track in tracks if track.split == "test"][:num_tracks]
    test, _ = check_tracks(chosen, on_bad_track="stop")
    row: dict[str, Any] = {
        "metric": results["metric_names"][task.selection_metric],
        "backbone": results["backbone"]["source"],
        "tuning": results["tuning"],
        "num_tracks": len(test),
    }
    for precision in ("float32", "bfloat16"):
        model.precision = precision
        start = time.process_time()
        row[precision] = metric(model, test)
        seconds = time.process_time() - start
        print(run, precision, row[precision], f"{seconds:.1f} s of the processor", flush=True)
    row["difference"] = row["bfloat16"] - row["float32"]
    return {task.name: row}


def metric(model: TaskModel, tracks: list[CheckedTrack]) -> float:
    """Return the headline metric of a model."""
    task = model.task
    evaluated = [task.evaluate_track(one, model.predict_track(one)) for one in tracks]
    return float(task.compute_metrics(evaluated)[task.selection_metric])


def compare_outputs(name: str) -> dict[str, float]:
    """Return how far the scores of a task move, of a clip by music2vec's size with random weights."""
    torch.manual_seed(0)
    words = ["--data.source=quickstart"]
    config = parse_recipe(recipe_config(TASKS[name]), words, description="", quickstart=Path())
    model = TaskModel.build(
        task=TASKS[name].from_settings(config.task),
        backbone=BackboneConfig(source=NETWORKS["music2vec's size"]),
        head=HeadConfig(kind=TASKS[name].head_kind),
        tuning=TuningConfig(method="probe"),
        window_seconds=5.0,
        with_weights=False,
    )
    clip = sorted(QUICKSTART_DIR.glob("audio/*.ogg"))[0]
    windows = model.track_windows([check_file(clip)])
    scores = {}
    for precision in ("float32", "bfloat16"):
        model.precision = precision
        rows = score_windows(model, windows, batch_size=1)
        scores[precision] = np.stack([np.asarray(row[2], np.float64) for row in rows])
    moved = np.abs(scores["bfloat16"] - scores["float32"])
    print(name, float(moved.mean()), float(moved.max()), flush=True)
    return {
        "mean_difference": float(moved.mean()),
        "largest_difference": float(moved.max()),
        "deviation": float(scores["float32"].std()),
    }


def compare_network(source: str, seconds: float) -> dict[str, Any]:
    """Return how far hidden states, logits and gradients of a network with random weights move."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Genre(labels=tuple("abcdef"), label_column="genre"),
        backbone=BackboneConfig(source=source),
        head=HeadConfig(dropout=0.0),
        tuning=TuningConfig(method="full", train_conv_encoder=True),
        window_seconds=seconds,
        with_weights=False,
    ).eval()
    waveform = torch.randn(1, model.window_samples)
    target = torch.tensor([1])
    sides: dict[str, Any] = {}
    for name, context in (
        ("float32", torch.autocast("cpu", enabled=False)),
        ("bfloat16", torch.autocast("cpu", torch.bfloat16)),
    ):
        with context, torch.no_grad():
            states = [one.float() for one in model.backbone(model.backbone.prepare(waveform))]
        with context:
            logits = model(waveform)
        loss = model.task.loss(logits.float(), target)
        parameters = [one for one in model.parameters() if one.requires_grad]
        gradients = torch.autograd.grad(loss, parameters)
        sides[name] = (states, logits.float().softmax(-1), gradients)
        print(source, name, float(loss.detach()), flush=True)
    (states, scores, gradients), (other_states, other_scores, other_gradients) = sides.values()
    distances = [
        float((b - a).norm() / a.norm()) for a, b in zip(states, other_states, strict=True)
    ]
    cosines = [
        cosine(a.flatten(), b.flatten())
        for a, b in zip(gradients, other_gradients, strict=True)
        if a.norm() > 0
    ]
    return {
        "relative_difference_of_first_hidden_state": distances[0],
        "relative_difference_of_last_hidden_state": distances[-1],
        "largest_difference_of_probability": float((scores - other_scores).abs().max()),
        "gradient_cosine": cosine(
            torch.cat([one.flatten() for one in gradients]),
            torch.cat([one.flatten() for one in other_gradients]),
        ),
        "lowest_gradient_cosine_of_a_tensor": min(cosines),
        "window_seconds": seconds,
    }


def compare_training(task: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the metric of test tracks after training in each precision, and the difference."""
    with tempfile.TemporaryDirectory() as temporary:
        runs = {name: Path(temporary) / name for name in ("no", "bf16")}
        for name, run in runs.items():
            words = {**settings, "training.mixed_precision": name, "run.output_dir": run}
            recipe = REPOSITORY / "recipes" / f"{task}.py"
            given = [f"--{key}={value}" for key, value in words.items()]
            subprocess.run([sys.executable, recipe, *given], check=True)
        results = json.loads((runs["no"] / "results.json").read_text())
        metric = results["metric_names"][results["selection_metric"]]
        [row] = [
            one
            for one in compare_runs(*runs.values())
            if one.label is None and one.metric == metric
        ]
        return {
            "metric": metric,
            "num_tracks": results["num_tracks"],
            "float32": row.first,
            "bfloat16": row.second,
            "difference": row.difference,
        }


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def table(found: dict[str, Any]) -> str:
    """Return the table of docs/precision.md."""
    lines = [
        "| task | test tracks | metric | float32 | bfloat16 | difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["tasks"].items():
        lines.append(
            f"| {name}, {row['backbone']}, {row['tuning']} | {row['num_tracks']} | {row['metric']} | "
            f"{row['float32']:.4f} | {row['bfloat16']:.4f} | {row['difference']:+.4f} |"
        )
    if found["outputs"]:
        lines += [
            "",
            "| scores, music2vec's size, random weights | mean difference | largest | deviation of scores |",
            "|---|---|---|---|",
        ]
    for name, row in found["outputs"].items():
        lines.append(
            f"| {name} | {row['mean_difference']:.5f} | {row['largest_difference']:.5f} "
            f"| {row['deviation']:.5f} |"
        )
    if found["training"]:
        lines += [
            "",
            "| trained in each precision | test tracks | metric | float32 | bfloat16 "
            "| difference, 95 % interval |",
            "|---|---|---|---|---|---|",
        ]
    for name, row in found["training"].items():
        value, low, high = (row["difference"][key] for key in ("value", "low", "high"))
        lines.append(
            f"| {name} | {row['num_tracks']} | {row['metric']} | {row['float32']:.4f} "
            f"| {row['bfloat16']:.4f} | {value:+.4f} ({low:+.4f} to {high:+.4f}) |"
        )
    if not found["networks"]:
        return "\n".join(lines)
    lines += [
        "",
        "| random weights | hidden states: first, last | probabilities | cosine of gradients: all, lowest of "
        "a tensor |",
        "|---|---|---|---|",
    ]
    for name, row in found["networks"].items():
        lines.append(
            f"| {name} | {row['relative_difference_of_first_hidden_state']:.2%}, "
            f"{row['relative_difference_of_last_hidden_state']:.2%} | "
            f"{row['largest_difference_of_probability']:.4f} | {row['gradient_cosine']:.5f}, "
            f"{row['lowest_gradient_cosine_of_a_tensor']:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
