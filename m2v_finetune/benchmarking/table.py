"""Output of a benchmark's table in the terminal and as Markdown."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from m2v_finetune.benchmarking.rows import MODELS, PAPERS

HEADER = (
    "Task",
    "Data",
    "Metric",
    "This run",
    "Seeds",
    "95 % interval",
    "Tracks",
    "Rate",
    *MODELS,
)


def _cells(content: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table, one line for each metric of each row."""
    return [
        [
            entry["task"],
            entry["name"].removeprefix(f"{entry['task']}-"),
            f"{metric['title']}{'' if metric['unit'] == 'dB' else ', %'}",
            _number(metric["mean"]),
            f"{_number(metric['lowest_seed'])} to {_number(metric['highest_seed'])}",
            f"{_number(metric['low'])} to {_number(metric['high'])}",
            f"{entry['num_tracks']:,}",
            f"{entry['learning_rate']:g}",
            *(_number(metric["reported"].get(model, {}).get("value")) for model in MODELS),
        ]
        for entry in content["rows"]
        for metric in entry["metrics"].values()
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _notes(content: Mapping[str, Any]) -> list[str]:
    notes = [
        f"This run: the mean of {content['num_seeds']} seeds; Seeds: the lowest and the highest of them; "
        "95 % interval: a bootstrap over the test tracks, the mean of the seeds' ends; Rate: searched on "
        f"validation with the first seed, in {', '.join(f'{rate:g}' for rate in content['learning_rates'])}.",
        f"{', '.join(MODELS)}: reported for frozen probes, quoted from the papers ({PAPERS}), not measured "
        "here.",
    ]
    if content["has_random_weights"]:
        notes.insert(
            0,
            "RANDOM WEIGHTS: this backbone was never trained, so its numbers are not a benchmark.",
        )
    notes += [f"{entry['name']}: {entry['note']}" for entry in content["rows"] if entry["note"]]
    return notes


def _title(content: Mapping[str, Any]) -> str:
    what = "vectors" if content["features"] else "a frozen backbone"
    random = ", RANDOM WEIGHTS" if content["has_random_weights"] else ""
    return f"Probes on {what}: {content['backbone']}{random}"


def render_markdown(content: Mapping[str, Any]) -> str:
    """Return benchmark.md for the content of benchmark.json."""
    lines = [HEADER, ["---"] * len(HEADER), *_cells(content)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    notes = [f"- {note}" for note in _notes(content)]
    skipped = [f"- {name}: {reason}" for name, reason in content["skipped"].items()]
    parts = [f"# {_title(content)}", "\n".join(table), "\n".join(notes)]
    parts += ["## Skipped", "\n".join(skipped)] if skipped else []
    return "\n\n".join(parts) + "\n"


def print_table(content: Mapping[str, Any]) -> None:
    """Print the table of the content of benchmark.json, with its notes."""
    table = Table(title=_title(content), box=None, pad_edge=False)
    for name in HEADER:
        table.add_column(name, justify="left" if name in HEADER[:3] else "right")
    for cells in _cells(content):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for note in _notes(content):
        console.print(note, markup=False, highlight=False)
