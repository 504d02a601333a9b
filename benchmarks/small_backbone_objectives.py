"""Which objective, and how many layers? Longer trials with three seeds, by the validation split.

    python benchmarks/small_backbone_objectives.py data/pretraining/manifest.jsonl runs/objectives
    python benchmarks/small_backbone_objectives.py data/pretraining/manifest.jsonl runs/objectives --table

All objectives begin with the same weights, the bank of filters with a logarithm below random layers
(scripts/start_small_backbone.py), and keep the bank. All see the whole pre-training music with the settings
of configs/pretrain/filterbank-small.yaml, but for three windows of a track in place of five: 930 steps. A
seed draws the windows, masks, heads and order, and nine tenths of the training tracks of the probe, which is
that of benchmarks/held_out_sound.py. The test splits are not read. What is done is not done again; `--seeds`
and `--objectives` allow two processes.

- masked: masked prediction of clusters of log-mel and chroma, with the CQT head.
- data2vec: music2vec's objective.
- both: the losses of masked and data2vec, added (benchmarks/trial_objectives.py).
- equivariant: the loss of masked, and equivariance to transposition (the same file).
- masked-2-layers: masked, with 2 layers in place of 4.
- start: no training.
"""

import argparse
import json
import statistics
from pathlib import Path

from held_out_table import read_runs
from small_backbone_tables import PAGE, cell, row, verdict, with_table
from small_backbone_trials import DATA2VEC, run

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "benchmarks" / "results" / "small_backbone_trials" / "longer.jsonl"
CONFIG = "configs/pretrain/filterbank-small.yaml"
START = "start"
ARCHITECTURE = "configs/pretrain/log-bank"
SEEDS = (0, 1, 2)
TASKS = (
    *("tagging", "genre", "key", "instrument", "pitch", "beats"),
    *("instrument, real", "pitch, real", "drums, real", "albums, real"),
)
MASKED = ("--config", CONFIG)
RATES = (
    *("--optimizer.learning_rate", "3e-3", "--optimizer.backbone_learning_rate", "1e-3"),
    *("--optimizer.layer_decay", "0.6", "--optimizer.warmup_ratio", "0.08"),
    *("--optimizer.max_grad_norm", "10", "--data.window_seconds", "4", "--data.num_workers", "0"),
    *("--training.per_device_batch_size", "8", "--training.eval_batch_size", "16"),
    *("--training.gradient_checkpointing", "false"),
)
"""Of the config, for the objective that does not have its other settings."""
RECIPE = ("recipes/pretrain.py",)
OBJECTIVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "masked": (RECIPE, MASKED),
    "data2vec": (RECIPE, (*DATA2VEC, "--pretrain.train_conv_encoder", "false", *RATES)),
    "both": (("benchmarks/trial_objectives.py", "both"), MASKED),
    "equivariant": (("benchmarks/trial_objectives.py", "equivariant"), MASKED),
    "masked-2-layers": (RECIPE, MASKED),
}
"""Recipe and settings of each."""
STARTS = {"masked-2-layers": "start-2-layers"}
"""Initial weights, below the folder of the runs; `START` if not named."""
LENGTH = ("--data.windows_per_track", "3", "--training.epochs", "2")


def pretrain(name: str, seed: int, source: Path, folder: Path) -> Path:
    """Pre-train with one objective and seed, unless it is done, and return the weights."""
    output = folder / f"{name}-{seed}"
    if not (output / "model" / "model.safetensors").is_file():
        recipe, settings = OBJECTIVES[name]
        weights = folder / STARTS.get(name, START)
        start = ("--backbone.source", str(weights), "--data.source", str(source.resolve()))
        where = ("--run.seed", str(seed), "--run.output_dir", str(output), "--run.resume", "auto")
        run(*recipe, *settings, *LENGTH, *start, *where)
    return output / "model"


def make_starts(folder: Path) -> None:
    """Write the initial weights, unless they are there."""
    if not (folder / START).is_dir():
        run("scripts/start_small_backbone.py", str(folder / START), "log-bank")
    shallow = folder / STARTS["masked-2-layers"]
    if not shallow.is_dir():
        settings = json.loads((REPOSITORY / ARCHITECTURE / "config.json").read_text("utf-8"))
        architecture = folder / "architecture-2-layers"
        architecture.mkdir(exist_ok=True)
        content = json.dumps(settings | {"num_hidden_layers": 2})
        (architecture / "config.json").write_text(content, encoding="utf-8")
        run("scripts/start_small_backbone.py", str(shallow), str(architecture))


def probe(name: str, seed: int, weights: Path, real: Path, result: Path) -> None:
    """Probe weights on the validation splits.

    Seeds have names of their own, as a row of the result file has one set of weights.
    """
    label = name if name == START else f"{name} {seed}"
    script = ("benchmarks/held_out_sound.py", "--backbone", str(weights), "--name", label, "--only")
    where = ("--real", str(real), "--split", "validation", "--result", str(result))
    run(*script, *where, "--seeds", str(seed), "--tasks", *TASKS)


def tables(result: Path) -> str:
    """Return the values of each objective in Markdown, and its differences from the start."""
    runs, _ = read_runs(result)
    by_objective: dict[str, dict[str, dict[int, float]]] = {}
    for task, rows in runs.items():
        for label, values in rows.items():
            found = by_objective.setdefault(label.split()[0], {}).setdefault(task, {})
            found.update(values)
    means = {
        name: {
            seed: statistics.mean(tasks[task][seed] for task in TASKS)
            for seed in SEEDS
            if all(seed in tasks.get(task, {}) for task in TASKS)
        }
        for name, tasks in by_objective.items()
    }
    order = sorted(means, key=lambda name: -statistics.mean(means[name].values() or [0.0]))
    lines = [
        f"| validation | {' | '.join(TASKS)} | mean |",
        f"|---|{'---|' * (len(TASKS) + 1)}",
    ]
    for name in order:
        cells = [f"{statistics.mean(by_objective[name][task].values()):.3f}" for task in TASKS]
        lines.append(row(name, [*cells, cell(means[name])]))
    lines += ["", "| is its mean above | start | masked |", "|---|---|---|"]
    for name in (name for name in order if name != START):
        above_masked = "" if name == "masked" else verdict(means[name], means["masked"])
        lines.append(row(name, [verdict(means[name], means[START]), above_masked]))
    return "\n".join(lines)


def main() -> None:
    """Run the trials that are not done, or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="of the music")
    parser.add_argument("output", type=Path, help="folder of the runs")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--real", type=Path, default=REPOSITORY / "runs" / "real-sound")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="write the page, and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        table = tables(arguments.result)
        PAGE.write_text(with_table(PAGE, "objectives", table), encoding="utf-8")
        print(table)
        return
    folder = arguments.output.resolve()
    make_starts(folder)
    for seed in arguments.seeds:
        probe(START, seed, folder / START, arguments.real, arguments.result)
        for name in arguments.objectives:
            weights = pretrain(name, seed, arguments.manifest, folder)
            probe(name, seed, weights, arguments.real, arguments.result)


if __name__ == "__main__":
    main()
