"""Is a linear head as good as the MLP? The quickstarts' tasks with default settings and both heads.

    python benchmarks/default_head.py run runs/head [--tasks genre ...] [--seeds 0 ...] [--heads mlp ...]
    python benchmarks/default_head.py compare runs/head

`run` trains a probe on filterbank-small with the default settings of the package, on the data that the task's
quickstart names, and appends a line to benchmarks/results/default_head.jsonl: the metric on validation and
test tracks. A line that is there is not measured again. The scores of the test tracks are kept in the folder.

`compare` writes benchmarks/results/default_head.json and prints a table: the mean over seeds of each head,
and the difference to the MLP with its 95 % interval. The interval is the percentile interval of a paired
bootstrap over tracks and seeds: a resample draws both, the same for each head.

Both heads standardise the mean over frames. The linear one can be written as a classifier of transformers.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import rankdata

REPOSITORY = Path(__file__).parent.parent
RUNS = REPOSITORY / "benchmarks" / "results" / "default_head.jsonl"
RESULT = RUNS.with_suffix(".json")
CLIP_TASKS = ("tagging", "genre", "key", "emotion", "instrument", "pitch", "singer", "technique")
FRAME_TASKS = ("beats", "chords", "transcription", "melody")
TASKS = (*CLIP_TASKS, *FRAME_TASKS)
HEADS: dict[str, dict[str, Any]] = {
    "mlp": {"head.kind": "mlp"},
    "linear": {"head.kind": "linear"},
}
NUM_RESAMPLES = 500


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("run", "compare"):
        one = commands.add_parser(command)
        one.add_argument("root", type=Path)
        if command == "run":
            one.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
            one.add_argument("--seeds", nargs="+", type=int, default=list(range(3)))
            one.add_argument("--heads", nargs="+", default=list(HEADS), choices=HEADS)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if arguments.command == "run":
        run(root, arguments)
    else:
        print(compare(root))


def run(root: Path, arguments: argparse.Namespace) -> None:
    """Measure the runs asked for, each in a process of its own that shares the imports."""
    import m2v_finetune.runs  # noqa: F401

    (root / "scores").mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    for seed in arguments.seeds:
        for task in arguments.tasks:
            for head in arguments.heads:
                if any(
                    (one["task"], one["head"], one["seed"]) == (task, head, seed) for one in lines()
                ):
                    continue
                process = context.Process(target=run_one, args=(root, task, head, seed))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{task}, {head}, seed {seed} failed")


def lines() -> list[dict[str, Any]]:
    """Return what was measured."""
    return [json.loads(one) for one in RUNS.read_text().splitlines()] if RUNS.is_file() else []


def run_one(root: Path, name: str, head: str, seed: int) -> None:
    """Train and evaluate once in this process; keep the scores, and append a line."""
    import logging

    import torch

    from m2v_finetune import runs
    from m2v_finetune.settings import read_config
    from m2v_finetune.tasks import find_task

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.disable(logging.WARNING)
    quickstart = yaml.safe_load((REPOSITORY / "configs" / name / "quickstart.yaml").read_text())
    kept = {}

    def keep(model: Any, *_: Any, evaluated: Any, **__: Any) -> None:
        """Take the place of publishing: no card, no plots."""
        kept.update(task=model.task.to_dict(), evaluated=evaluated)

    runs.publish = keep
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "data.source": quickstart["data"]["source"],
            "data.num_workers": 0,
            "backbone.source": "filterbank-small",
            "cache.folder": root / "cache",
            "run.output_dir": Path(folder) / "run",
            "run.seed": seed,
            "training.log_every_steps": 100,
            **{f"task.{key}": value for key, value in quickstart.get("task", {}).items()},
            **HEADS[head],
        }
        start_time = time.monotonic()
        config = read_config(name, [f"--{key}={value}" for key, value in options.items()])
        results = runs.train_task(config, find_task(name)).results
    metric = results["selection_metric"]
    scores = scores_path(root, name, head, seed)
    scores.write_bytes(pickle.dumps(kept))
    line = {
        "task": name,
        "head": head,
        "seed": seed,
        "metric": metric,
        "validation": results["validation"][metric],
        "test": results["metrics"][metric]["value"],
        "best_epoch": results["best_epoch"],
        "epochs": results["num_epochs"],
        "num_trained_parameters": results["num_trained_parameters"],
        "seconds": round(time.monotonic() - start_time, 1),
    }
    with RUNS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)


def scores_path(root: Path, task: str, head: str, seed: int) -> Path:
    """Return the file with the scores of the test tracks of a run."""
    return root / "scores" / f"{task}-{head}-{seed}.pickle"


def compare(root: Path) -> str:
    """Write the means and intervals of all tasks; return them as a Markdown table."""
    found: dict[str, Any] = {}
    for name in TASKS:
        own = [line for line in lines() if line["task"] == name]
        # Only seeds with all heads, so that the comparison is paired.
        seeds = sorted(
            seed
            for seed in {line["seed"] for line in own}
            if {line["head"] for line in own if line["seed"] == seed} == set(HEADS)
        )
        if seeds:
            found[name] = compare_heads(root, name, seeds)
    RESULT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return table(found)


def table(found: dict[str, Any]) -> str:
    """Return the content of the result file as a Markdown table."""
    others = [head for head in HEADS if head != "mlp"]
    rows = [
        f"| task | metric | seeds | MLP | {' | '.join(f'{head} | difference' for head in others)} |",
        f"|---|---|---|---|{'---|---|' * len(others)}",
    ]
    for name, one in found.items():
        cells = [f"{one['mean']['mlp']:.3f}"]
        for head in others:
            low, high = one["interval"][head]
            cells.append(f"{one['mean'][head]:.3f}")
            cells.append(f"{one['difference'][head]:+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append(f"| {name} | {one['metric']} | {one['num_seeds']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def compare_heads(root: Path, name: str, seeds: list[int]) -> dict[str, Any]:
    """Return the means of the heads on one task, and the differences to the MLP with their intervals."""
    from m2v_finetune.tasks import find_task

    kept = {
        (head, seed): pickle.loads(scores_path(root, name, head, seed).read_bytes())
        for head in HEADS
        for seed in seeds
    }
    task = find_task(name).from_dict(kept["mlp", seeds[0]]["task"])
    evaluated = {key: one["evaluated"] for key, one in kept.items()}
    num_tracks = len(evaluated["mlp", seeds[0]])

    # The other metrics are means over tracks; `track_scores` checks it.
    is_mean = task.selection_metric not in ("r2", "roc_auc")
    per_track = {key: track_scores(task, own) for key, own in evaluated.items() if is_mean}

    def value(key: tuple[str, int], tracks: Any) -> float:
        if is_mean:
            return float(np.mean([per_track[key][number] for number in tracks]))
        return metric_value(task.selection_metric, [evaluated[key][number] for number in tracks])

    def mean_metric(head: str, chosen_seeds: Any, chosen_tracks: Any) -> float:
        return float(np.mean([value((head, seed), chosen_tracks) for seed in chosen_seeds]))

    every = range(num_tracks)
    means = {head: mean_metric(head, seeds, every) for head in HEADS}
    generator = np.random.default_rng(0)
    resampled: dict[str, list[float]] = {head: [] for head in HEADS}
    for _ in range(NUM_RESAMPLES):
        tracks = generator.integers(num_tracks, size=num_tracks)
        drawn = generator.choice(seeds, size=len(seeds))
        for head in HEADS:
            resampled[head].append(mean_metric(head, drawn, tracks))
    others = [head for head in HEADS if head != "mlp"]
    differences = {head: np.subtract(resampled[head], resampled["mlp"]) for head in others}
    return {
        "metric": task.selection_metric,
        "num_seeds": len(seeds),
        "num_tracks": num_tracks,
        "mean": means,
        "difference": {head: means[head] - means["mlp"] for head in others},
        "interval": {
            head: np.nanpercentile(differences[head], [2.5, 97.5]).tolist() for head in others
        },
    }


def metric_value(name: str, evaluated: list[Any]) -> float:
    """Return the headline metric of tracks, without the package's own bootstrap."""
    targets, scores = (np.stack([getattr(e, k) for e in evaluated]) for k in ("target", "scores"))
    if name == "r2":
        residual = ((targets - scores) ** 2).sum(axis=0)
        return float(np.mean(1 - residual / ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)))
    if name == "roc_auc":
        # The rank-sum statistic of each label that has both classes.
        ranks, positive = rankdata(scores, axis=0), targets.astype(bool)
        count = positive.sum(axis=0)
        pairs = count * (len(targets) - count)
        sums = (ranks * positive).sum(axis=0) - count * (count + 1) / 2
        return float(np.mean(sums[pairs > 0] / pairs[pairs > 0]))
    raise ValueError(name)


def track_scores(task: Any, evaluated: list[Any]) -> list[float]:
    """Return the headline metric of each track, where that of tracks is their mean."""
    name = task.selection_metric
    scores = [float(task.compute_metrics([one])[name]) for one in evaluated]
    if not np.isclose(np.mean(scores), task.compute_metrics(evaluated)[name], atol=1e-6):
        raise SystemExit(f"{name} of tracks is not the mean of theirs")
    return scores


if __name__ == "__main__":
    main()
