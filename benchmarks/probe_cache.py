"""Time what the cache saves: a whole probing command, and a step from the cached features.

    python benchmarks/probe_cache.py [ROW ...] [--backbone NAME] [--tracks N] [--epochs N] [--repeats N]

Rows:

    clips   a probe of 20 epochs by `recipes/tagging.py`, from the command line to the published model, the
            computing of the cache included; each clip of 8 s is one window
            beside the same command with `--cache.use off`: the frozen backbone runs in every epoch, over
            the training and the validation windows, as it does in MARBLE v2's probes
    drawn   the same with random windows of 4 s: 4 drawn versions of each in the cache, new ones in each
            epoch beside it
    lora    a step of LoRA on the lower half of the layers that begins at the first layer, the frozen
            part below it cached
            beside the same step from waveforms

The network has the size of music2vec-v1 and RANDOM weights; `--backbone filterbank-small` is for trying
the script. The commands hear N clips of the quickstart's training split, a third as many of validation and
of test. Sides take turns, and the cache's folder is new each time. Reading from the disk is in the rows of
commands, not in that of steps.

Writes benchmarks/results/probe_cache.json: medians, spread, ratios, versions and machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from m2v_finetune.backbones import build_architecture
from m2v_finetune.config import BackboneConfig, HeadConfig, OptimizerConfig, TuningConfig
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

REPOSITORY = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "probe_cache.json"
ROWS = ("clips", "drawn", "lora")
CLIP_SECONDS = 8.0
DRAWN_SECONDS = 4.0
STEP_SECONDS = 5.0
PACKAGES = ("torch", "transformers", "accelerate", "numpy", "m2v-finetune")
MUSIC2VEC = "music2vec-v1"


def main() -> None:
    """Measure the rows that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=list(ROWS))
    parser.add_argument("--backbone", default=MUSIC2VEC)
    parser.add_argument("--tracks", type=int, default=12, help="training clips of a command")
    parser.add_argument("--epochs", type=int, default=20, help="of a command")
    parser.add_argument("--repeats", type=int, default=3, help="of a command, on each side")
    parser.add_argument("--steps", type=int, default=10, help="on each side")
    parser.add_argument("--batch-size", type=int, default=8, help="windows of a step")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        backbone = options.backbone
        if backbone == MUSIC2VEC:
            backbone = str(random_backbone(folder / "backbone"))
        for row in options.rows:
            if row == "lora":
                seconds = time_steps(backbone, options)
            else:
                seconds = time_commands(folder / row, backbone, options, window=window_of(row))
            write(options, row, seconds)


def window_of(row: str) -> float:
    """Return the seconds of a window."""
    return CLIP_SECONDS if row == "clips" else DRAWN_SECONDS


def random_backbone(folder: Path) -> Path:
    """Write a backbone of music2vec's size with random weights, and return its folder."""
    torch.manual_seed(0)
    backbone = build_architecture(MUSIC2VEC)
    backbone.network.config.mask_time_prob = 0.0  # else it would have a vector for masks too
    backbone.save_pretrained(folder)
    return folder


def write_manifest(path: Path, num_tracks: int) -> None:
    """Write the first clips of each split of the quickstart."""
    left = {"train": num_tracks, "validation": num_tracks // 3, "test": num_tracks // 3}
    lines = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if left[row["split"]] > 0:
            left[row["split"]] -= 1
            tags = [tag for tag in row["tags"] if tag in ("drums", "minor", "fast", "piano")]
            audio = str(QUICKSTART_DIR / row["path"])
            lines.append(json.dumps({"path": audio, "split": row["split"], "tags": tags}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def time_commands(
    folder: Path, backbone: str, options: argparse.Namespace, *, window: float
) -> dict[str, list[float]]:
    """Return the seconds of each command, by side, in the order in which they ran."""
    folder.mkdir()
    write_manifest(folder / "manifest.jsonl", options.tracks)
    seconds: dict[str, list[float]] = {"cached": [], "each epoch": []}
    for repeat in range(options.repeats):
        for side in alternating(list(seconds), repeat):
            settings = {
                "data.source": folder / "manifest.jsonl",
                "data.window_seconds": window,
                "data.num_workers": 1,
                "backbone.source": backbone,
                "training.epochs": options.epochs,
                "training.early_stopping_patience": options.epochs,
                "training.per_device_batch_size": min(8, options.tracks),
                "training.eval_batch_size": 4,
                "cache.use": "auto" if side == "cached" else "off",
                "cache.folder": folder / f"cache-{repeat}",
                "run.output_dir": folder / f"{side.replace(' ', '-')}-{repeat}",
            }
            command = [sys.executable, str(REPOSITORY / "recipes" / "tagging.py")]
            start_time = time.perf_counter()
            subprocess.run(
                command + [f"--{key}={value}" for key, value in settings.items()],
                check=True,
                capture_output=True,
                env=os.environ
                | ({} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}),
            )
            seconds[side].append(time.perf_counter() - start_time)
            print(f"window {window:g} s, {side}: {seconds[side][-1]:.1f} s", flush=True)
    return seconds


def time_steps(backbone: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each optimizer step, by side; the first two of each are not counted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    num_layers = build_architecture(options.backbone).num_layers // 2
    task = Genre(labels=tuple("abcdefghij"), label_column="genre")
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source=backbone, num_layers=num_layers),
        head=HeadConfig(),
        tuning=TuningConfig(method="lora"),
        window_seconds=STEP_SECONDS,
    )
    model.to(device).train()
    optimizer = build_optimizer(
        model, OptimizerConfig(learning_rate=1e-4, backbone_learning_rate=1e-4)
    )
    waveforms = 0.1 * torch.randn(options.batch_size, model.window_samples, device=device)
    targets = torch.arange(options.batch_size, device=device).remainder(10).float()
    with torch.inference_mode():
        features = model.frozen_features(waveforms)
    features = features.clone()
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(model(features), model(waveforms), rtol=0, atol=1e-4)
        model.train()

    def step(inputs: torch.Tensor) -> Callable[[], Any]:
        return lambda: take_step(
            model, optimizer, [(inputs, targets)], loss=task.loss, max_grad_norm=1.0
        )

    sides = {"cached": step(features), "each epoch": step(waveforms)}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(options.steps + 2):
        for side in alternating(list(sides), repeat):
            start_time = time.perf_counter()
            sides[side]()  # reads the norm of the gradients, and so waits for the device
            seconds[side].append(time.perf_counter() - start_time)
    return {side: values[2:] for side, values in seconds.items()}


def alternating(sides: list[str], repeat: int) -> list[str]:
    """Return the sides, every second time the other way round."""
    return sides if repeat % 2 == 0 else sides[::-1]


def write(options: argparse.Namespace, row: str, seconds: dict[str, list[float]]) -> None:
    """Add a row to the result file, and print its ratio."""
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    is_of_commands = row != "lora"
    found = {
        "backbone": f"{options.backbone}, random weights"
        if options.backbone == MUSIC2VEC
        else options.backbone,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **(
            {
                "training_clips": options.tracks,
                "epochs": options.epochs,
                "window_seconds": window_of(row),
            }
            if is_of_commands
            else {"batch_size": options.batch_size, "window_seconds": STEP_SECONDS}
        ),
        "median_seconds": medians,
        "lowest_seconds": {side: min(values) for side, values in seconds.items()},
        "highest_seconds": {side: max(values) for side, values in seconds.items()},
        "count": {side: len(values) for side, values in seconds.items()},
        "times_as_fast": medians["each epoch"] / medians["cached"],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "packages": {package: version(package) for package in PACKAGES},
    }
    if not is_of_commands:
        found["steps_per_second"] = {side: 1 / median for side, median in medians.items()}
    content = json.loads(options.output.read_text()) if options.output.is_file() else {"rows": {}}
    content["rows"][row] = found
    options.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{row}: {found['times_as_fast']:.2f} times as fast")


if __name__ == "__main__":
    main()
