"""What a small pre-trained backbone is worth: probing and fine-tuning beside random weights and MFCCs.

    python benchmarks/small_backbone.py BACKBONE

BACKBONE is a folder, as `recipes/pretrain.py` writes it. The labelled music is composed on demand by
scripts/compose_labelled_music.py, which needs FluidSynth and a sound font that the pretraining music was
not played with. Every number is a run of a real recipe, judged once on the test split:

- `probe/WEIGHTS/100`: the backbone is frozen. WEIGHTS is `pretrained`; `random`, the same architecture
  drawn anew for every seed; or `mfcc`, the mean of 20 MFCCs of a clip in place of a backbone. All have the
  same head. Beats need frames, and a mean has none.
- `lora/WEIGHTS/SHARE` and `full/WEIGHTS/SHARE`: fine-tuning with SHARE percent of the training labels,
  the same for both weights. The validation split, by which the best epoch is chosen, stays whole.

Three seeds draw the head, the windows, the share of the labels and the random weights; intervals are
Student's t over the seeds (95 %). Every finished run is written to the result file at once, and what is
there is not run again: `--tasks` and `--rows` do a part, `--table` only prints.
"""

import argparse
import hashlib
import json
import os
import platform
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import librosa
import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from scipy.stats import t as student

from m2v_finetune.audio.decode import read_audio
from m2v_finetune.backbones.loading import build_network
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.recipe import run_recipe
from m2v_finetune.tasks import TASKS as TASK_CLASSES

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "small_backbone.json"
DATA = REPOSITORY / "runs" / "labelled-music"
SEEDS = (0, 1, 2)
SHARES = (10, 30, 100)
# Windows of a track in an epoch: with fewer labels each is heard more often.
WINDOWS_PER_TRACK = {10: 4, 30: 2, 100: 1}
SAMPLE_RATE_HZ = 16_000
NUM_MFCC = 20


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """How a task is measured.

    Attributes:
        folder: Of the labelled music, its manifest.
        column: The labels, of which a share has every class; None where there are no classes.
        window_seconds: What the model hears at once.
    """

    folder: str
    column: str | None
    window_seconds: float


TASKS = {
    "tagging": Experiment(folder=".", column="tags", window_seconds=4.0),
    "key": Experiment(folder=".", column="key", window_seconds=4.0),
    "instrument": Experiment(folder="notes", column="instrument", window_seconds=1.0),
    "pitch": Experiment(folder="notes", column="pitch", window_seconds=1.0),
    "beats": Experiment(folder=".", column=None, window_seconds=4.0),
}
# Tuning, rates and epochs of each method: the same for both weights and all tasks.
METHODS: dict[str, dict[str, Any]] = {
    "probe": {
        "tuning": {"method": "probe"},
        "optimizer": {"learning_rate": 0.003},
        "training": {"epochs": 20},
    },
    "lora": {
        "tuning": {"method": "lora", "r": 8, "lora_alpha": 16.0},
        "optimizer": {"learning_rate": 0.003, "backbone_learning_rate": 0.003},
        "training": {"epochs": 12},
    },
    "full": {
        "tuning": {"method": "full", "train_conv_encoder": True},
        "optimizer": {"learning_rate": 0.003, "backbone_learning_rate": 0.001},
        "training": {"epochs": 12},
    },
}
ROWS = (
    *(f"probe/{weights}/100" for weights in ("pretrained", "random", "mfcc")),
    *(
        f"{method}/{weights}/{share}"
        for method in ("lora", "full")
        for weights in ("pretrained", "random")
        for share in SHARES
    ),
)


def main() -> None:
    """Run what was asked for and is not there yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", type=Path, help="the folder of the pre-trained backbone")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the labelled music")
    parser.add_argument("--result", type=Path, default=RESULT, help="the result file")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["probe", "lora", "full"],
        metavar="ROW",
        help="such as probe, full/random or lora/pretrained/30",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, help="in place of each method's own, for a trial")
    parser.add_argument("--table", action="store_true", help="print what is there")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if f"{row}/".startswith(tuple(f"{r}/" for r in arguments.rows))]
    if not rows:
        parser.error(f"there is no row {' or '.join(arguments.rows)}; rows are {', '.join(ROWS)}")
    found = open_result(arguments.result, arguments.backbone, epochs=arguments.epochs)
    if not arguments.table:
        if not (arguments.data / "notes" / "manifest.jsonl").is_file():
            composer = REPOSITORY / "scripts" / "compose_labelled_music.py"
            subprocess.run([sys.executable, composer, arguments.data], check=True)
        bench = Bench(arguments.backbone.resolve(), arguments.data, epochs=arguments.epochs)
        for seed in arguments.seeds:
            for task in arguments.tasks:
                for row in rows:
                    done = found["runs"].setdefault(task, {}).setdefault(row, {})
                    if str(seed) in done or (task == "beats" and row.startswith("probe/mfcc")):
                        continue
                    done[str(seed)] = bench.run(task, row, seed)
                    write(arguments.result, found)
                    print(f"{task} {row} seed {seed}: {done[str(seed)]}", flush=True)
    print(tables(found["runs"]))


def open_result(path: Path, backbone: Path, *, epochs: int | None) -> dict[str, Any]:
    """Return what a result file holds, or a new result; stop where it is of something else."""
    about = {
        "backbone_sha256": hashlib.sha256(
            (backbone / "model.safetensors").read_bytes()
        ).hexdigest(),
        "methods": METHODS,
        "epochs": epochs,
    }
    machine = {"processor": platform.machine(), "cpus": os.cpu_count()}
    found: dict[str, Any] = {"about": about, "machine": machine, "runs": {}}
    if path.is_file():
        found = json.loads(path.read_text())
        if found["about"] != json.loads(json.dumps(about)):
            raise SystemExit(
                f"{path} was measured with another backbone or other settings; give another --result"
            )
    return found


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the result file, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.rename(path)


class Bench:
    """Runs recipes on a backbone and on what it is compared with.

    Args:
        backbone: The pre-trained one.
        data: The labelled music; what is made on the way goes to its folder ``work``.
        epochs: In place of each method's own.
    """

    def __init__(self, backbone: Path, data: Path, *, epochs: int | None) -> None:
        self.backbone, self.data, self.epochs = backbone, data.resolve(), epochs
        self.work = self.data / "work"
        self.work.mkdir(exist_ok=True)

    def run(self, task: str, row: str, seed: int) -> dict[str, Any]:
        """Run a task's recipe for a row of the table; return its metric and what it cost."""
        method, weights, share = row.split("/")
        experiment = TASKS[task]
        folder = self.data / experiment.folder
        settings: dict[str, Any] = {
            "data": {
                "source": str(self.manifest(folder, experiment.column, int(share), seed)),
                "window_seconds": experiment.window_seconds,
                "windows_per_track": WINDOWS_PER_TRACK[int(share)],
                "num_workers": 0,
            },
            "head": {"standardize": True},
            "run": {"seed": seed, "resume": "auto"},
            **{section: dict(values) for section, values in METHODS[method].items()},
        }
        settings["training"] |= {
            "per_device_batch_size": 16,
            "eval_batch_size": 32,
            "early_stopping_patience": 6,
            "gradient_checkpointing": False,
        }
        if self.epochs is not None:
            settings["training"]["epochs"] = self.epochs
        if weights == "mfcc":
            settings["data"]["features"] = str(self.mfccs(folder))
        else:
            source = self.backbone if weights == "pretrained" else self.random_backbone(seed)
            settings["backbone"] = {"source": str(source)}
        output = self.work / f"{task}-{row.replace('/', '-')}-{seed}"
        settings["run"]["output_dir"] = str(output)
        config = output.with_suffix(".yaml")
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        began = time.monotonic()
        recipe = runpy.run_path(str(REPOSITORY / "recipes" / f"{task}.py"))
        parsed = parse_recipe(
            recipe["Config"], ["--config", str(config)], description="", quickstart=config
        )
        # In this process: a new one would spend more time on imports than some runs on learning.
        results = run_recipe(parsed, TASK_CLASSES[task], parsed.task)
        shutil.rmtree(output)
        config.unlink()
        metric = results["selection_metric"]
        return {
            "metric": results["metric_names"][metric],
            **results["metrics"][metric],
            "validation": results["validation"][metric],
            "best_epoch": results["best_epoch"],
            "num_epochs": results["num_epochs"],
            "num_trained_parameters": results["num_trained_parameters"],
            "layer_weights": results["layer_weights"],
            "seconds": round(time.monotonic() - began, 1),
        }

    def manifest(self, folder: Path, column: str | None, share: int, seed: int) -> Path:
        """Write the manifest with a share of the training tracks, in percent; return its path.

        A smaller share of a seed is part of a larger one, and every class is in each.
        """
        path = folder / "manifest.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        train = [row for row in rows if row["split"] == "train"]
        if share == 100:
            return path
        Random(f"{seed}/labels").shuffle(train)
        needed: list[dict[str, Any]] = []
        covered: set[Any] = set()
        for row in train:
            labels = () if column is None else row[column]
            classes = set(labels) if isinstance(labels, (list, tuple)) else {labels}
            if not classes <= covered:
                covered |= classes
                needed.append(row)
        others = [row for row in train if row not in needed]
        kept = [*needed, *others][: max(len(needed), round(len(train) * share / 100))]
        content = kept + [row for row in rows if row["split"] != "train"]
        subset = folder / f"manifest-{column or 'any'}-{share}-{seed}.jsonl"
        subset.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return subset

    def mfccs(self, folder: Path) -> Path:
        """Write the mean MFCCs (librosa's defaults) of every track; return their folder."""
        vectors = folder / "mfcc"
        if not vectors.is_dir():
            part = folder / "mfcc.part"
            part.mkdir(exist_ok=True)
            for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                samples = read_audio(folder / row["path"], sample_rate=SAMPLE_RATE_HZ)
                frames = librosa.feature.mfcc(y=samples, sr=SAMPLE_RATE_HZ, n_mfcc=NUM_MFCC)
                np.save(part / f"{row['id']}.npy", frames.mean(axis=1).astype(np.float32))
            part.rename(vectors)
        return vectors

    def random_backbone(self, seed: int) -> Path:
        """Write the backbone's architecture with random weights; return its folder."""
        settings = json.loads((self.backbone / "config.json").read_text())
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        folder = self.work / f"random-{name}-{seed}"
        if not (folder / "model.safetensors").is_file():
            folder.mkdir(exist_ok=True)
            for file in ("config.json", "preprocessor_config.json"):
                shutil.copy(self.backbone / file, folder)
            torch.manual_seed(seed)
            network = build_network(settings, where=str(self.backbone / "config.json"))
            tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


def interval(runs: dict[str, Any]) -> tuple[float, float]:
    """Return the mean over the seeds, and half the width of its interval (nan of one seed)."""
    values = [run["value"] for run in runs.values()]
    if len(values) < 2:
        return values[0], float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(student.ppf(0.975, len(values) - 1)) * error


def tables(found: dict[str, Any]) -> str:
    """Return what was measured as Markdown: all rows, then what they say of pretraining."""
    tasks = [task for task in TASKS if any(found.get(task, {}).values())]
    if not tasks:
        return "Nothing was measured yet."
    metrics = {
        task: next(run["metric"] for runs in found[task].values() for run in runs.values())
        for task in tasks
    }
    lines = [
        f"| tuning | weights | labels | {' | '.join(f'{t} ({metrics[t]})' for t in tasks)} |",
        f"|---|---|---|{'---|' * len(tasks)}",
    ]
    for row in ROWS:
        cells = []
        for task in tasks:
            runs = found[task].get(row)
            mean, half = interval(runs) if runs else (float("nan"), 0.0)
            cells.append(f"{mean:.3f} ± {half:.3f}" if runs else "")
        if any(cells):
            method, weights, share = row.split("/")
            lines.append(f"| {method} | {weights} | {share} % | {' | '.join(cells)} |")
    lines += ["", f"| is {' | '.join(['', *tasks])} |", f"|---|{'---|' * len(tasks)}"]
    for better, worse in (
        ("probe/pretrained/100", "probe/random/100"),
        ("probe/pretrained/100", "probe/mfcc/100"),
        *(
            (f"{method}/pretrained/{share}", f"{method}/random/{other}")
            for method in ("lora", "full")
            for share, other in ((10, 10), (30, 30), (100, 100), (30, 100))
        ),
    ):
        cells = [verdict(found[task].get(better), found[task].get(worse)) for task in tasks]
        if any(cells):
            lines.append(f"| {better} above {worse} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(better: dict[str, Any] | None, worse: dict[str, Any] | None) -> str:
    """Return whether one mean is above another, by seeds in common: yes and no beyond the interval.

    Both are measured with the same seeds on the same tracks, so it is the differences that have an interval.
    """
    seeds = sorted(set(better or ()) & set(worse or ()))
    if not seeds:
        return ""
    assert better is not None
    assert worse is not None
    differences = {seed: {"value": better[seed]["value"] - worse[seed]["value"]} for seed in seeds}
    mean, half = interval(differences)
    answer = "yes" if mean > half else "no" if mean < -half else "open"
    return f"{answer} ({mean:+.3f} ± {half:.3f})"


if __name__ == "__main__":
    main()
