"""Small trials that choose architecture and objective of the small backbone, by the validation split.

    python scripts/gather_pretraining_music.py PACKAGES data/pretraining --composed gm opl3
    python benchmarks/real_sound.py runs/real-sound
    python benchmarks/small_backbone_trials.py data/pretraining/manifest.jsonl runs/trials
    python benchmarks/small_backbone_trials.py data/pretraining/manifest.jsonl runs/trials --table

Each trial pre-trains on the same excerpts, 120 steps of 8 windows of 4 s an epoch, and is probed on the
validation splits of benchmarks/held_out_sound.py; the test splits are not read. A trial that was stopped
resumes, and what is done is not done again. benchmarks/small_backbone_objectives.py has longer trials with
several seeds. The trials:

- mp: masked prediction of clusters of log-mel and chroma, with the CQT head, behind the older bank of
  filters, which learns.
- mp-log: mp behind the bank with a logarithm (scripts/start_small_backbone.py), which is kept as it is.
- mp-log-conv: the same, the bank learning too.
- mp-log-conv-free: the same without the penalty on the bank's output.
- mp-log-no-cqt: mp-log without the CQT head.
- d2v-log: music2vec's objective behind that bank, kept too.
- both-log: the losses of mp-log and d2v-log together (benchmarks/trial_objectives.py).
- equivariant-log: the loss of mp-log, and equivariance to transposition (the same file).
- start-log, random-log: no training; random-log is random in place of the bank, too.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from random import Random

import torch
from small_backbone_tables import PAGE, with_table

from m2v_finetune.backbones import init_backbone

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "small_backbone_trials" / "objectives.jsonl"
NUM_TRAIN, NUM_VALIDATION = 240, 16
EPOCHS = 2
COMMON = (
    *("--data.window_seconds", "4", "--data.windows_per_track", "4", "--data.num_workers", "0"),
    *("--optimizer.learning_rate", "1e-3", "--optimizer.warmup_ratio", "0.08"),
    *("--training.per_device_batch_size", "8", "--training.eval_batch_size", "16"),
    *("--training.gradient_checkpointing", "false"),
)
MASKED = (
    *("--objective", "masked_prediction", "--masked_prediction.fit_frames", "50000"),
    *("--masked_prediction.watch_after_steps", "300", "--optimizer.max_grad_norm", "10"),
)
DATA2VEC = (
    *("--objective", "data2vec", "--pretrain.mask_span_frames", "16"),
    *("--pretrain.num_target_layers", "4", "--pretrain.teacher_averages", "all"),
    *("--pretrain.ema_start", "0.998", "--pretrain.ema_end", "0.9998"),
    *("--pretrain.ema_ramp_steps", "600"),
)
MASKED_BANK_KEPT = (*MASKED, "--masked_prediction.train_conv_encoder", "false")
TRIALS: dict[str, tuple[str, ...]] = {
    "mp-log": MASKED_BANK_KEPT,
    "d2v-log": (*DATA2VEC, "--pretrain.train_conv_encoder", "false"),
    "mp-log-no-cqt": (
        *MASKED_BANK_KEPT,
        *("--masked_prediction.cqt_weight", "0"),
    ),
    "both-log": MASKED_BANK_KEPT,
    "equivariant-log": MASKED_BANK_KEPT,
    "mp-log-conv": MASKED,
    "mp-log-conv-free": (*MASKED, "--masked_prediction.feature_penalty", "0"),
    "mp": MASKED,
}
STARTS = {name: "start-log" if "-log" in name else "start" for name in TRIALS}
"""Initial weights, below the folder of the trials."""
ARCHITECTURES = {"start": "small", "start-log": "log-bank"}
"""Architecture of each start, a folder in configs/pretrain."""
ADDED_LOSSES = {"both-log": "both", "equivariant-log": "equivariant"}
"""Objectives of benchmarks/trial_objectives.py."""
TASKS = (
    *("genre", "key", "instrument", "pitch"),
    *("instrument, real", "pitch, real", "drums, real", "albums, real", "beats"),
)


def run(*command: str) -> None:
    """Run a command from the repository."""
    print(" ".join(command), flush=True)
    subprocess.run([sys.executable, *command], cwd=REPOSITORY, check=True)


def excerpts(manifest: Path) -> Path:
    """Write the manifest of the trials, beside that of all music, and return it."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    Random(0).shuffle(rows)
    chosen = []
    for split, count in (("train", NUM_TRAIN), ("validation", NUM_VALIDATION)):
        chosen += [row for row in rows if row["split"] == split][:count]
    path = manifest.with_name("trial.jsonl")
    if not path.is_file():
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return path


def pretrain(name: str, source: Path, folder: Path, *, epochs: int) -> None:
    """Pre-train one trial, unless it is done."""
    if (folder / name / "model" / "model.safetensors").is_file():
        return
    start = ("--backbone.source", str(folder / STARTS[name]))
    settings = (*COMMON, *TRIALS[name], "--training.epochs", str(epochs), "--run.resume", "auto")
    output = ("--run.output_dir", str(folder / name))
    recipe: tuple[str, ...] = ("recipes/pretrain.py",)
    if name in ADDED_LOSSES:
        recipe = ("benchmarks/trial_objectives.py", ADDED_LOSSES[name])
    run(*recipe, "--data.source", str(source), *start, *settings, *output)


def probe(name: str, weights: Path, real: Path, result: Path) -> None:
    """Probe weights on the validation splits."""
    script = ("benchmarks/held_out_sound.py", "--backbone", str(weights), "--name", name, "--only")
    where = ("--real", str(real), "--split", "validation", "--result", str(result), "--seeds", "0")
    run(*script, *where, "--tasks", *TASKS)


def table(result: Path) -> str:
    """Return the values of each trial in Markdown, best mean first; a row without all tasks has no mean."""
    found: dict[str, dict[str, float]] = {}
    for text in result.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        found.setdefault(line["row"], {})[line["task"]] = line["value"]
    lines = [
        f"| validation | {' | '.join(TASKS)} | mean |",
        f"|---|{'---|' * (len(TASKS) + 1)}",
    ]
    means = {
        name: statistics.mean(values.values())
        for name, values in found.items()
        if len(values) == len(TASKS)
    }
    for name in sorted(found, key=lambda name: -means.get(name, 0.0)):
        cells = [f"{found[name][task]:.3f}" if task in found[name] else "" for task in TASKS]
        mean = f"{means[name]:.3f}" if name in means else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def write_page(result: Path) -> None:
    """Put the table between its marks on the page, and print it."""
    PAGE.write_text(with_table(PAGE, "objective trials", table(result)), encoding="utf-8")
    print(table(result))


def main() -> None:
    """Run the trials that are not done, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="of the music")
    parser.add_argument("output", type=Path, help="folder of the runs")
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument(
        "--untrained",
        nargs="*",
        default=["start-log", "random-log"],
        help="probed as they are",
    )
    parser.add_argument("--real", type=Path, default=REPOSITORY / "runs" / "real-sound")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="write the page, and run nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        source, folder = excerpts(arguments.manifest), arguments.output.resolve()
        for start, architecture in ARCHITECTURES.items():
            if not (folder / start).is_dir():
                run("scripts/start_small_backbone.py", str(folder / start), architecture)
        for name in arguments.trials:
            pretrain(name, source, folder, epochs=arguments.epochs)
            probe(name, folder / name / "model", arguments.real, arguments.result)
        if not (folder / "random-log").is_dir():
            torch.manual_seed(0)
            init_backbone(
                REPOSITORY / "configs" / "pretrain" / "log-bank", licence=""
            ).save_pretrained(folder / "random-log")
        for name in arguments.untrained:
            weights = folder / name if (folder / name).is_dir() else Path(name)
            probe(name, weights, arguments.real, arguments.result)
    write_page(arguments.result)


if __name__ == "__main__":
    main()
