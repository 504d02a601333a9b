"""Writes the tables of docs/small-backbone.md and the README from what small_backbone.py measured."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from scipy.stats import t as student

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "small-backbone.md"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- small backbone: begin -->\n", "<!-- small backbone: end -->"
TASKS = ("tagging", "key", "instrument", "pitch", "beats")
PROBES = {
    "pretrained": "music2vec-small, pre-trained",
    "start": "bank of filters, else random: the start of pre-training",
    "random": "random",
    "mfcc": "no network: mean of 20 MFCCs",
    "mfcc+deviation": "no network: mean and deviation of 20 MFCCs",
}
SHARES = (10, 30, 100)
NUM_SEEDS = 3
COMPARISONS = {
    "probing, above random": ("probe/pretrained/100", "probe/random/100"),
    "probing, above the start": ("probe/pretrained/100", "probe/start/100"),
    "probing, above mean MFCCs": ("probe/pretrained/100", "probe/mfcc/100"),
    **{
        f"{method}, {share} % of the labels, above random": (
            f"{method}/pretrained/{share}",
            f"{method}/random/{share}",
        )
        for method in ("lora", "full")
        for share in SHARES
    },
    **{
        f"{method}, 30 % above random with all labels": (
            f"{method}/pretrained/30",
            f"{method}/random/100",
        )
        for method in ("lora", "full")
    },
}

Runs = Mapping[int, float]
"""The metric on the test split, by seed."""


def write_pages(result: Path) -> None:
    """Put the tables between the marks of the page, and the short form between those of the README."""
    lines = [json.loads(line) for line in result.read_text(encoding="utf-8").splitlines()]
    runs: dict[str, dict[str, dict[int, float]]] = {}
    metrics: dict[str, str] = {}
    for line in lines:
        if "task" in line:
            runs.setdefault(line["task"], {}).setdefault(line["row"], {})[line["seed"]] = line[
                "value"
            ]
            metrics[line["task"]] = line["metric"]
    put(PAGE, tables(runs, metrics))
    put(README, short_table(runs, metrics))
    print(tables(runs, metrics))


def put(page: Path, content: str) -> None:
    """Replace what is between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}{content}\n{END}{after}", encoding="utf-8")


def interval(runs: Runs) -> tuple[float, float]:
    """Return the mean over the seeds, and half the width of its 95 % interval by Student's t."""
    values = list(runs.values())
    if len(values) < 2:
        return values[0], float("nan")
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(student.ppf(0.975, len(values) - 1)) * error


def verdict(better: Runs, worse: Runs) -> str:
    """Return whether one mean is above another, by the differences of seeds in common.

    A seed draws the same labels and the same order for both.
    """
    differences = {seed: better[seed] - worse[seed] for seed in sorted(set(better) & set(worse))}
    if len(differences) < 2:
        return ""
    mean, half = interval(differences)
    answer = "yes" if mean > half else "no, below" if mean < -half else "open"
    return f"{answer} ({mean:+.3f} ± {half:.3f}{few(differences)})"


def cell(runs: Runs | None) -> str:
    """Return mean and interval."""
    if not runs:
        return ""
    mean, half = interval(runs)
    return f"{mean:.3f}{f' ± {half:.3f}' if len(runs) > 1 else ''}{few(runs)}"


def few(runs: Runs) -> str:
    """Return how many seeds made a figure, where it is fewer than three."""
    return "" if len(runs) >= NUM_SEEDS else f", seeds: {len(runs)}"


def tables(runs: Mapping[str, Mapping[str, Runs]], metrics: Mapping[str, str]) -> str:
    """Return all rows as Markdown, then what they say of pre-training."""
    tasks = [task for task in TASKS if task in runs]
    heads = " | ".join(f"{task} ({metrics[task]})" for task in tasks)
    lines = [f"| frozen backbone, probed | {heads} |", f"|---|{'---|' * len(tasks)}"]
    for weights, title in PROBES.items():
        lines.append(row(title, [cell(runs[t].get(f"probe/{weights}/100")) for t in tasks]))
    lines += ["", f"| tuning, weights, labels | {heads} |", f"|---|{'---|' * len(tasks)}"]
    for method in ("lora", "full"):
        for share in SHARES:
            for weights in ("pretrained", "random"):
                name = f"{method}/{weights}/{share}"
                title = f"{method}, {weights}, {share} %"
                lines.append(row(title, [cell(runs[t].get(name)) for t in tasks]))
    lines += ["", f"| is pre-trained | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for title, (better, worse) in COMPARISONS.items():
        said = [verdict(runs[t].get(better, {}), runs[t].get(worse, {})) for t in tasks]
        lines.append(row(title, said))
    return "\n".join(lines)


def short_table(runs: Mapping[str, Mapping[str, Runs]], metrics: Mapping[str, str]) -> str:
    """Return the probes, a line a task."""
    shown = ("pretrained", "random", "mfcc")
    lines = [
        "| probing | metric | pre-trained | random weights | mean MFCCs |",
        "|---|---|---|---|---|",
    ]
    for task in (task for task in TASKS if task in runs):
        cells = [cell(runs[task].get(f"probe/{weights}/100")) or "-" for weights in shown]
        lines.append(row(f"{task} | {metrics[task]}", cells))
    return "\n".join(lines)


def row(title: str, cells: list[str]) -> str:
    """Return a line of a table."""
    return f"| {title} | {' | '.join(cells)} |"
