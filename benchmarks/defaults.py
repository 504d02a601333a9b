"""Are the default settings good for 60, 300 and 3,000 tracks? Recipes with defaults beside other settings.

    python benchmarks/defaults.py prepare runs/defaults
    python benchmarks/defaults.py run runs/defaults [--tasks genre ...] [--sizes 60 ...] [--settings now ...]
    python benchmarks/defaults.py table

`prepare` composes the data: clips of 8 s in several styles with beats, single notes of 1 s and computed
voices of 3 s. Music and notes of the test split are played with another sound font (MuseScore_General) than
those of the training and validation splits (TimGM6mb); the voices of the test split are other takes. It needs
FluidSynth and both fonts:

    apt-get install fluidsynth timgm6mb-soundfont musescore-general-soundfont-lossless

`run` trains each cell (task, number of training tracks, tuning method, backbone) with each of the settings by
the recipe's own code, and appends one line to benchmarks/results/defaults.jsonl: the metric on the validation
split and on the test split, steps and seconds. A line that is there is not measured again, so a stopped run
resumes. Several processes may run at once with other `--tasks`. The backbone of published size has random
weights.

`table` prints, for each cell, the first version's defaults, today's and the best of the search. The best is
the one with the highest metric on the validation split, and of equal ones that with the highest on the test
split; compared are the metrics on the test split.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "defaults.jsonl"
SOUND_FONTS = Path("/usr/share/sounds/sf2")
SIZES = (60, 300, 3000)
NUM_CLIPS = 300
"""Training clips of music, which take longest to play; genre and beats have no set of 3,000."""
METHODS = ("probe", "lora", "full")
# Only their rate of the backbone is searched, around the default.
OTHER_METHODS = {
    "dora": 1e-4,
    "ia3": 1e-2,
    "bitfit": 1e-3,
    "layernorm": 1e-3,
    "adapter": 1e-3,
    "ssf": 1e-3,
    "top_layers": 1e-3,
}
PUBLISHED_SIZE = "random-95m"
BACKBONES = ("filterbank-small", PUBLISHED_SIZE)
NUM_VALIDATION = {60: 24, 300: 60, 3000: 96}
NUM_TEST = 120
VOICE_SEEDS = {"train": range(100, 121), "validation": range(121, 122), "test": range(122, 123)}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the experiment.

    Attributes:
        recipe: Name of the task in the package.
        data: Folder below the root that holds train.jsonl and test.jsonl.
        column: Labels, spread evenly over the chosen tracks; None for annotations of frames.
        options: Settings of the task.
    """

    recipe: str
    data: str
    column: str | None
    options: Mapping[str, Any]


TASKS = {
    "genre": Task(
        recipe="genre", data="music", column="style", options={"task.label_column": "style"}
    ),
    "beats": Task(recipe="beats", data="music", column=None, options={}),
    "instrument": Task(recipe="instrument", data="notes", column="instrument", options={}),
    "pitch": Task(recipe="pitch", data="notes", column="pitch", options={}),
    "technique": Task(recipe="technique", data="voices", column="technique", options={}),
}

# The defaults of the first version, written out.
FIRST = {
    "data.window_seconds": 5.0,
    "data.windows_per_track": 1,
    "head.kind": "mlp",
    "head.standardize": False,
    "training.epochs": 30,
    "training.early_stopping_patience": 5,
}
FIRST_LEARNING_RATES = {
    "probe": {"optimizer.learning_rate": 1e-3},
    "lora": {"optimizer.learning_rate": 1e-4, "optimizer.backbone_learning_rate": 1e-4},
    "full": {
        "optimizer.learning_rate": 1e-4,
        "optimizer.backbone_learning_rate": 1e-5,
        "tuning.train_conv_encoder": False,
    },
}


def settings_of(method: str) -> dict[str, dict[str, Any]]:
    """Return the settings that are compared, by name: the first defaults, today's, and those of a search."""
    if method in OTHER_METHODS:
        rate = OTHER_METHODS[method]
        rates = (rate / 3, rate * 3)
        return {"now": {}, **{f"1e-3, {rate:.0e}": _learning_rates(1e-3, rate) for rate in rates}}
    found: dict[str, dict[str, Any]] = {
        "first": {**FIRST, **FIRST_LEARNING_RATES[method]},
        "now": {},
    }
    for name, options in SEARCH[method].items():
        found[name] = options
    return found


def _learning_rates(head: float, backbone: float | None = None, **others: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"optimizer.learning_rate": head}
    if backbone is not None:
        options["optimizer.backbone_learning_rate"] = backbone
    return {**options, **{name.replace("__", "."): value for name, value in others.items()}}


SEARCH: dict[str, dict[str, dict[str, Any]]] = {
    "probe": {
        "3e-4": _learning_rates(3e-4),
        "1e-3": _learning_rates(1e-3),
        "3e-3": _learning_rates(3e-3),
        "1e-2": _learning_rates(1e-2),
        "3e-3, mean_std": _learning_rates(3e-3, head__pooling="mean_std"),
        "1e-2, mean_std": _learning_rates(1e-2, head__pooling="mean_std"),
        "3e-2": _learning_rates(3e-2),
        "3e-3, mlp": _learning_rates(3e-3, head__kind="mlp"),
        "3e-3, not standardised": _learning_rates(3e-3, head__standardize=False),
        "3e-3, twice as long": _learning_rates(3e-3, training__epochs=40),
    },
    "lora": {
        "1e-3, 1e-4": _learning_rates(1e-3, 1e-4),
        "1e-3, 1e-3": _learning_rates(1e-3, 1e-3),
        "1e-3, 3e-3": _learning_rates(1e-3, 3e-3),
        "1e-3, 1e-2": _learning_rates(1e-3, 1e-2),
        "1e-3, 3e-3, r 8": _learning_rates(1e-3, 3e-3, tuning__r=8, tuning__lora_alpha=16.0),
        "1e-3, 3e-3, not standardised": _learning_rates(1e-3, 3e-3, head__standardize=False),
    },
    "full": {
        "1e-3, 1e-4": _learning_rates(1e-3, 1e-4, tuning__train_conv_encoder=False),
        "1e-3, 1e-3": _learning_rates(1e-3, 1e-3, tuning__train_conv_encoder=False),
        "1e-3, 3e-4, conv encoder": _learning_rates(1e-3, 3e-4, tuning__train_conv_encoder=True),
        "1e-3, 1e-3, conv encoder": _learning_rates(1e-3, 1e-3, tuning__train_conv_encoder=True),
        "1e-3, 3e-3, conv encoder": _learning_rates(1e-3, 3e-3, tuning__train_conv_encoder=True),
        "1e-3, 1e-3, conv encoder, not standardised": _learning_rates(
            1e-3, 1e-3, tuning__train_conv_encoder=True, head__standardize=False
        ),
    },
}


SAME_AS_NOW = {"lora": "1e-3, 1e-3"}
"""Setting of a search that became the default."""


def prepare(root: Path) -> None:
    """Compose music, notes and voices, write the manifests, and save the backbone of published size."""
    compose = [sys.executable, str(REPOSITORY / "scripts" / "compose_labelled_music.py")]
    fonts = [SOUND_FONTS / "TimGM6mb.sf2", SOUND_FONTS / "MuseScore_General_Full.sf2"]
    train, validation = max(SIZES), max(NUM_VALIDATION.values())
    clips = (NUM_CLIPS, NUM_VALIDATION[NUM_CLIPS], 1)
    for folder, seed, pieces, notes, font in (
        ("train", 2, clips, (train // 8, validation // 8 + 8, 1), fonts[0]),
        ("test", 3, (1, 1, NUM_TEST), (NUM_TEST // 8, 1, 1), fonts[1]),
    ):
        subprocess.run(
            [
                *(*compose, str(root / folder), "--seed", str(seed), "--soundfont", str(font)),
                *("--pieces", *map(str, pieces), "--notes-per-family", *map(str, notes)),
            ],
            check=True,
        )
    write_voices(root / "voices")
    write_published_size(root / PUBLISHED_SIZE)


def write_published_size(folder: Path) -> None:
    """Save a backbone of music2vec's size with random weights (seed 0)."""
    import torch
    from transformers import Data2VecAudioConfig, Data2VecAudioModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    Data2VecAudioModel(Data2VecAudioConfig()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def write_voices(folder: Path) -> None:
    """Sing the voices of many seeds; the takes of the last ones are the test split."""
    sys.path.insert(0, str(REPOSITORY / "scripts"))
    from composer.render import write_flac
    from composer.voice import plan_voices, synthesise, voice_row

    (folder / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for split, seeds in VOICE_SEEDS.items():
        for seed in seeds:
            for plan in plan_voices(seed):
                name = f"{seed}-{plan.identifier}"
                path = folder / "audio" / f"{name}.flac"
                if not path.is_file():
                    write_flac(path, synthesise(plan, seed), rate_hz=16_000)
                row = {**voice_row(plan), "id": name, "path": f"audio/{name}.flac", "split": split}
                lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(root: Path, task: Task, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split, with absolute paths."""
    if task.data == "voices":
        folder = root / "voices"
        chosen = split
    else:
        folder = root / ("test" if split == "test" else "train")
        folder = folder / "notes" if task.data == "notes" else folder
        # Test notes are those of the training programs, played with another font.
        chosen = "train" if task.data == "notes" and split == "test" else split
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == chosen]
    for row in rows:
        row["id"] = f"{split}/{row['id']}"
        for name in ("path", "beats", "chords", "notes"):
            if name in row:
                row[name] = str(folder / row[name])
    return [row for row in rows if Path(row["path"]).is_file()]


def choose(rows: list[dict[str, Any]], count: int, column: str | None) -> list[dict[str, Any]]:
    """Return ``count`` rows, the labels of ``column`` spread evenly; the same for the same rows."""
    random = Random(0)
    shuffled = random.sample(rows, len(rows))
    if column is None:
        return shuffled[:count]
    by_label: dict[Any, list[dict[str, Any]]] = {}
    for row in shuffled:
        by_label.setdefault(row[column], []).append(row)
    groups = [by_label[label] for label in sorted(by_label)]
    dealt = [group[i] for i in range(len(rows)) for group in groups if i < len(group)]
    return dealt[:count]


def write_manifest(root: Path, name: str, size: int, path: Path) -> None:
    """Write the manifest of a cell."""
    task = TASKS[name]
    counts = {"train": size, "validation": NUM_VALIDATION[size], "test": NUM_TEST}
    lines = []
    for split, count in counts.items():
        chosen = choose(rows_of(root, task, split), count, task.column)
        if len(chosen) < count:
            raise SystemExit(f"{name} has {len(chosen)} tracks for {split}, not {count}")
        lines += [json.dumps({**row, "split": split}) for row in chosen]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_cell(root: Path, name: str, size: int, method: str, backbone: str, setting: str) -> None:
    """Train and evaluate one cell in this process, and append its line."""
    import logging

    import torch

    from m2v_finetune.runs import train_task
    from m2v_finetune.settings import read_config
    from m2v_finetune.tasks import TASKS as PACKAGE_TASKS

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_manifest(root, name, size, folder / "tracks.jsonl")
        options = {
            "data.source": folder / "tracks.jsonl",
            "data.num_workers": 0,
            "backbone.source": str(root / PUBLISHED_SIZE)
            if backbone == PUBLISHED_SIZE
            else backbone,
            "tuning.method": method,
            "cache.folder": root / "cache",
            "run.output_dir": folder / "run",
            "training.log_every_steps": 50,
            **task.options,
            **settings_of(method)[setting],
        }
        words = [
            f"--{key}={json.dumps(v) if isinstance(v, bool) else v}" for key, v in options.items()
        ]
        config = read_config(task.recipe, words)
        start_time = time.monotonic()
        logging.disable(logging.WARNING)
        results = train_task(config, PACKAGE_TASKS[task.recipe]).results
        seconds = time.monotonic() - start_time
    metric = results["selection_metric"]
    line = {
        "task": name,
        "size": size,
        "method": method,
        "backbone": backbone,
        "setting": setting,
        "metric": metric,
        "validation": results["validation"][metric],
        "test": results["metrics"][metric],
        "best_epoch": results["best_epoch"],
        "epochs": results["num_epochs"],
        "steps": results["num_steps"],
        "seconds": round(seconds, 1),
    }
    RESULT.parent.mkdir(exist_ok=True)
    with RESULT.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def lines() -> list[dict[str, Any]]:
    """Return what was measured."""
    if not RESULT.is_file():
        return []
    return [json.loads(line) for line in RESULT.read_text().splitlines()]


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str, str, str]]:
    """Yield what is asked for and not measured yet."""
    for backbone in arguments.backbones:
        for size in arguments.sizes:
            for name in arguments.tasks:
                if TASKS[name].data == "music" and size > NUM_CLIPS:
                    continue
                for method in arguments.methods:
                    for setting in settings_of(method):
                        if arguments.settings and setting not in arguments.settings:
                            continue
                        yield name, size, method, backbone, setting


def is_measured(cell: tuple[str, int, str, str, str]) -> bool:
    """Tell whether a line of a cell is there."""
    keys = ("task", "size", "method", "backbone", "setting")
    return cell in {tuple(line[key] for key in keys) for line in lines()}


def run(arguments: argparse.Namespace) -> None:
    """Measure the cells, each in a process of its own that shares the imports."""
    import m2v_finetune.runs  # noqa: F401

    context = multiprocessing.get_context("fork")
    for cell in cells(arguments):
        if is_measured(cell):
            continue
        print(*cell, flush=True)
        process = context.Process(target=run_cell, args=(arguments.root, *cell))
        process.start()
        process.join()
        if process.exitcode:
            print(f"FAILED with {process.exitcode}: {cell}", flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("prepare", "run"):
        one = commands.add_parser(command)
        one.add_argument("root", type=Path)
        if command == "run":
            one.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
            one.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
            methods = [*METHODS, *OTHER_METHODS]
            one.add_argument("--methods", nargs="+", default=list(METHODS), choices=methods)
            one.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
            one.add_argument("--settings", nargs="+", default=[])
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.root.resolve())
    elif arguments.command == "run":
        arguments.root = arguments.root.resolve()
        run(arguments)
    else:
        print(table())


def table() -> str:
    """Return the comparison as a Markdown table."""
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for line in lines():
        key = (line["backbone"], line["task"], line["size"], line["method"])
        found.setdefault(key, {})[line["setting"]] = line
    rows = [
        "| backbone | task | tracks | method | first | now | best of the search | its settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, settings in sorted(found.items()):
        best = max(
            settings.values(),
            key=lambda one: (one["validation"] or 0.0, one["test"]["value"] or 0.0),
        )
        now = "now" if "now" in settings else SAME_AS_NOW.get(key[-1], "now")
        shown = [
            f"{settings[name]['test']['value']:.3f}" if name in settings else ""
            for name in ("first", now)
        ]
        rows.append(
            f"| {' | '.join(map(str, key))} | {' | '.join(shown)} | {best['test']['value']:.3f} | "
            f"{best['setting']} ({len(settings)} tried) |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
