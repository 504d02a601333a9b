"""Writes the tables of small_backbone.py and adaptation.py: filterbank-small and the earlier backbone."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from scipy.stats import t as student

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "small-backbone.md"
EARLIER_PAGE = REPOSITORY / "docs" / "earlier-small-backbone.md"
README = REPOSITORY / "README.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
TRIALS = RESULTS / "small_backbone_trials"
RESULT = RESULTS / "small_backbone_filterbank.jsonl"
EARLIER_RESULT = RESULTS / "small_backbone.jsonl"
"""Result file of music2vec-small, which filterbank-small replaced."""
TASKS = ("tagging", "genre", "key", "instrument", "pitch", "beats")
PROBES = {
    "pretrained": "music2vec-small, pre-trained",
    "start": "bank of filters, else random: the start of pre-training",
    "random": "random",
    "mfcc": "no network: mean of 20 MFCCs",
    "mfcc+deviation": "no network: mean and deviation of 20 MFCCs",
}
TRIED = {
    ("shipped", "pretrained"): "music2vec-small: 2,736 steps, conv encoder trained",
    ("bank_kept", "pretrained"): "1,368 steps, the bank of filters kept",
    ("slow_teacher", "pretrained"): "the same, from all four layers of a slower teacher",
    ("shipped", "start"): "the start",
    ("shipped", "random"): "random",
}
ADAPTED_MUSIC = ("music box", "the six styles")
ADAPTED = {
    "after": "after",
    "after_replay": "after, a fifth of the windows from the music of its pre-training",
}
ADAPTED_TASKS = ("tagging", "key", "beats")
PROBED = "probe/pretrained/100"
SHARES = (10, 30, 100)
NUM_SEEDS = 3
TUNED = ("lora", "full", "layers")
COMPARISONS = {
    "probing, above random": ("probe/pretrained/100", "probe/random/100"),
    "probing, above the start": ("probe/pretrained/100", "probe/start/100"),
    "probing, above mean MFCCs": ("probe/pretrained/100", "probe/mfcc/100"),
    **{
        f"{method}, {share} % of the labels, above random": (
            f"{method}/pretrained/{share}",
            f"{method}/random/{share}",
        )
        for method in TUNED
        for share in SHARES
    },
    **{
        f"layers, {share} % of the labels, above random with its conv encoder trained": (
            f"layers/pretrained/{share}",
            f"full/random/{share}",
        )
        for share in SHARES
    },
    **{
        f"{method}, 30 % above random with all labels": (
            f"{method}/pretrained/30",
            f"{method}/random/100",
        )
        for method in TUNED
    },
}

Runs = Mapping[int, float]
"""The metric on the test split, by seed."""


def write_pages() -> None:
    """Put the tables between their marks on the pages."""
    for (page, name), table in all_tables().items():
        page.write_text(with_table(page, name, table), encoding="utf-8")
        print(table)


def all_tables() -> dict[tuple[Path, str], str]:
    """Return all tables in Markdown, by page and name of the marks."""
    return {
        (PAGE, "filterbank-small, tuned"): tuned_tables(*read(RESULT)),
        (PAGE, "adaptation"): adaptation_table(RESULTS),
        (EARLIER_PAGE, "small backbone"): tables(*read(EARLIER_RESULT)),
        (EARLIER_PAGE, "trials"): trials_table(),
    }


def with_table(page: Path, name: str, table: str) -> str:
    """Return a page with a table in place of what is between two marks."""
    start_marker, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start_marker)
    return f"{before}{start_marker}{table}\n{end}{rest.partition(end)[2]}"


def read(result: Path) -> tuple[dict[str, dict[str, dict[int, float]]], dict[str, str]]:
    """Return the values of a result file by task, row and seed; and the metrics by task."""
    runs: dict[str, dict[str, dict[int, float]]] = {}
    metrics: dict[str, str] = {}
    for text in result.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if "task" in line:
            rows = runs.setdefault(line["task"], {})
            rows.setdefault(line["row"], {})[line["seed"]] = line["value"]
            metrics[line["task"]] = line["metric"]
    return runs, metrics


def trials_table() -> str:
    """Return what else was tried, probed on the validation split: the mean over the seeds."""
    tasks = [task for task in TASKS if task != "genre"]
    lines = [
        f"| probed on the validation split | {' | '.join(tasks)} |",
        f"|---|{'---|' * len(tasks)}",
    ]
    for (file, weights), title in TRIED.items():
        runs, _ = read(TRIALS / f"{file}.jsonl")
        found = [runs[task][f"probe/{weights}/100"].values() for task in tasks]
        lines.append(row(title, [f"{statistics.mean(values):.3f}" for values in found]))
    return "\n".join(lines)


def adaptation_table(results: Path) -> str:
    """Return what probes said before and after a backbone was adapted to another style.

    Args:
        results: Folder of what adaptation.py measured.
    """
    lines = [
        f"| labelled music | backbone | {' | '.join(ADAPTED_TASKS)} |",
        f"|---|---|{'---|' * len(ADAPTED_TASKS)}",
    ]
    for name in ADAPTED_MUSIC:
        found = {}
        for when, title in {"before": "before", **ADAPTED}.items():
            runs, _ = read(adaptation_file(results, name, when))
            found[when] = {task: runs[task][PROBED] for task in ADAPTED_TASKS}
            lines.append(
                row(f"{name} | {title}", [cell(found[when][task]) for task in ADAPTED_TASKS])
            )
        for when, title in ADAPTED.items():
            cells = [verdict(found[when][task], found["before"][task]) for task in ADAPTED_TASKS]
            lines.append(row(f"{name} | is it above before: {title}", cells))
    return "\n".join(lines)


def adaptation_file(results: Path, name: str, when: str) -> Path:
    """Return where the probes on some labelled music are, before or after."""
    return results / f"adaptation_{name.replace(' ', '_')}_{when}.jsonl"


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
    """Return the rows of probes and of tuning, then their differences between weights."""
    tasks, heads = columns(runs, metrics)
    lines = [f"| frozen backbone, probed | {heads} |", f"|---|{'---|' * len(tasks)}"]
    for weights, title in PROBES.items():
        lines.append(row(title, [cell(runs[t].get(f"probe/{weights}/100")) for t in tasks]))
    return "\n".join([*lines, "", tuned_tables(runs, metrics)])


def columns(
    runs: Mapping[str, Mapping[str, Runs]], metrics: Mapping[str, str]
) -> tuple[list[str], str]:
    """Return the tasks that were measured, and the head of their columns."""
    tasks = [task for task in TASKS if task in runs]
    return tasks, " | ".join(f"{task} ({metrics[task]})" for task in tasks)


def tuned_tables(runs: Mapping[str, Mapping[str, Runs]], metrics: Mapping[str, str]) -> str:
    """Return the rows of tuning, then the differences between weights."""
    tasks, heads = columns(runs, metrics)
    lines = [f"| tuning, weights, labels | {heads} |", f"|---|{'---|' * len(tasks)}"]
    for method in TUNED:
        for share in SHARES:
            for weights in ("pretrained", "random"):
                name = f"{method}/{weights}/{share}"
                if not any(name in runs[task] for task in tasks):
                    continue
                title = f"{method}, {weights}, {share} %"
                lines.append(row(title, [cell(runs[t].get(name)) for t in tasks]))
    lines += ["", f"| is pre-trained | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for title, (better, worse) in COMPARISONS.items():
        if not any({better, worse} <= runs[task].keys() for task in tasks):
            continue
        cells = [verdict(runs[t].get(better, {}), runs[t].get(worse, {})) for t in tasks]
        lines.append(row(title, cells))
    return "\n".join(lines)


def row(title: str, cells: list[str]) -> str:
    """Return a line of a table."""
    return f"| {title} | {' | '.join(cells)} |"
