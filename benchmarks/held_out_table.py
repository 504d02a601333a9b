"""Writes the tables of held-out sound: of docs/small-backbone.md and, in short, of the README."""

import json
from pathlib import Path

from small_backbone_tables import PAGE, README, cell, row, verdict, with_table

BACKBONES = {"filterbank-small": "filterbank-small", "music2vec-small": "music2vec-small"}
START = "filterbank-small's start"
"""The bank of filters with random layers above it: what held_out_sound.py was given as `--name`."""
ROWS = {
    **BACKBONES,
    **{f"random {name}": f"random weights, as {title}" for name, title in BACKBONES.items()},
    START: "the start of its pre-training",
    "mfcc": "mean and deviation of 20 MFCCs",
    "cqt": "mean CQT",
    "librosa": "librosa's beat tracker",
}
SETS = {
    "composed, other sound fonts": ("tagging", "genre", "key", "instrument", "pitch", "beats"),
    "real recordings": (
        "instrument, real",
        "instrument, other library",
        "pitch, real",
        "drums, real",
        "stems, real",
        "albums, real",
        "beats, real",
    ),
}

SHORT_ROW, NUM_SEEDS = "filterbank-small", 3
SHORT = {
    SHORT_ROW: SHORT_ROW,
    f"random {SHORT_ROW}": "random weights",
    "mfcc": "MFCCs",
    "cqt": "mean CQT",
    "librosa": "librosa's beat tracker",
}

Runs = dict[str, dict[str, dict[int, float]]]


def write_page(result: Path) -> None:
    """Put the tables between their marks on the page and in the README, and print them."""
    for page, table in ((PAGE, all_tables(result)), (README, short_table(result))):
        page.write_text(with_table(page, "held-out sound", table), encoding="utf-8")
        print(table)


def read_runs(result: Path) -> tuple[Runs, dict[str, str]]:
    """Return the values of a result file by task, row and seed; and the metric of each task."""
    runs: Runs = {}
    metrics: dict[str, str] = {}
    for text in result.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        rows = runs.setdefault(line["task"], {})
        rows.setdefault(line["row"], {})[line["seed"]] = line["value"]
        metrics[line["task"]] = line["metric"]
    return runs, metrics


def all_tables(result: Path) -> str:
    """Return a table for composed and for real sound, then what each backbone is above."""
    runs, metrics = read_runs(result)
    lines: list[str] = []
    for title, tasks in SETS.items():
        present = [task for task in tasks if task in runs]
        if not present:
            continue
        lines += heads(title, [f"{task} ({metrics[task]})" for task in present])
        for name, words in ROWS.items():
            cells = [cell(runs[task].get(name)) for task in present]
            if any(cells):
                lines.append(row(words, cells))
        lines.append("")
    tasks = [task for members in SETS.values() for task in members if task in runs]
    others = ["random weights", "its start", "MFCCs", "CQT", "the beat tracker"]
    lines += heads("is it above", others)
    for name, words in BACKBONES.items():
        for task in tasks:
            own = runs[task].get(name, {})
            start = START if START.startswith(name) else ""
            rows = [f"random {name}", start, "mfcc", "cqt", "librosa"]
            cells = [verdict(own, runs[task].get(other, {})) for other in rows]
            if any(cells):
                lines.append(row(f"{words}, {task}", cells))
    return "\n".join(lines)


def short_table(result: Path) -> str:
    """Return the README's table: the backbone of the quickstarts beside what needs no pre-training."""
    runs, metrics = read_runs(result)
    lines = heads("probing", ["metric", *SHORT.values()])
    for tasks in SETS.values():
        for task in tasks:
            if len(runs.get(task, {}).get(SHORT_ROW, {})) < NUM_SEEDS:
                continue
            cells = [cell(runs[task].get(name)) or "-" for name in SHORT]
            lines.append(row(f"{task} | {metrics[task]}", cells))
    return "\n".join(lines)


def heads(title: str, columns: list[str]) -> list[str]:
    """Return the first lines of a table."""
    return [f"| {title} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
