"""Settings against imbalance, and the logistic head, beside the default on the data that ship.

    OMP_NUM_THREADS=1 python benchmarks/what_helped.py RUNS

Each setting is one run of the quickstart, compared with the default run by a paired bootstrap over the same
test tracks. Finished runs in the folder RUNS are not repeated. Writes benchmarks/results/what_helped.json
and docs/what-helped.md.
"""

import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState

from m2v_finetune.cross_validation import is_finished
from m2v_finetune.publishing.comparison import compare_runs
from m2v_finetune.runs import train_task
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import find_task

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "what_helped.json"
PAGE = REPOSITORY / "docs" / "what-helped.md"
SETTINGS = {
    "genre": (
        {},
        {"head.kind": "logistic"},
        {"data.sampling": "balanced"},
        {"task.class_weight": "balanced"},
        {"task.label_smoothing": 0.1},
    ),
    "tagging": (
        {},
        {"head.kind": "logistic"},
        {"task.pos_weight": "balanced"},
        {"task.focal_gamma": 2},
    ),
}


def name_of(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "default"


def measure(folder: Path) -> list[dict[str, object]]:
    """Run what is missing, and return a row for each metric of each setting."""
    rows = []
    for task, all_settings in SETTINGS.items():
        for number, settings in enumerate(all_settings):
            run = folder / f"{task}-{number}"
            if not is_finished(run):
                for state in (AcceleratorState, PartialState, GradientState):
                    state._reset_state()
                words = [f"--config={REPOSITORY / 'configs' / task / 'quickstart.yaml'}"]
                words += ["--backbone.source=music2vec-small"]
                words += [f"--{key}={value}" for key, value in settings.items()]
                words += [f"--run.output_dir={run}", "--run.resume=auto"]
                train_task(read_config(task, words), find_task(task))
            seconds = json.loads((run / "results.json").read_text())["seconds"]["training"]
            for row in compare_runs(folder / f"{task}-0", run):
                if row.label is None:
                    rows.append(
                        {
                            "task": task,
                            "setting": name_of(settings),
                            "metric": row.metric,
                            "value": row.second,
                            **{f"difference_{key}": one for key, one in row.difference.items()},
                            "training_seconds": seconds,
                        }
                    )
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            PAGE.write_text(render(rows), encoding="utf-8")
    return rows


def verdict(row: dict[str, object]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    if row["setting"] == "default":
        return "-"
    if low > 0:
        return "helped"
    return "hurt" if high < 0 else "no clear difference"


INTRODUCTION = """\
# What helped

Do the settings against [imbalance](imbalance.md), and the [logistic head](few-labels.md), help on the data that ship?
One run each of the quickstart, which had the backbone `music2vec-small` then, beside the default, on the same 72 test
tracks. The interval is a paired bootstrap over
them: it leaves out zero where a setting helped or hurt more than the choice of tracks explains. It does not cover other
seeds, and one row in twenty leaves out zero by chance. The music is synthetic, its styles are equally frequent, and its
labels are right, so this is no evidence about rare or wrong labels in real music: try them on yours. Mixup is not in the
table: it needs more epochs than the quickstart has, and no feature cache. Seconds are those of one thread on two busy
cores.

| task | setting | metric | value | difference to the default, 95 % interval | | seconds of training |
|---|---|---|---|---|---|---|
"""  # noqa: E501


def render(rows: list[dict[str, object]]) -> str:
    lines = []
    for row in rows:
        difference, low, high = (row[f"difference_{key}"] for key in ("value", "low", "high"))
        is_default = row["setting"] == "default"
        interval = "-" if is_default else f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {row['task']} | `{row['setting']}` | {row['metric']} | {row['value']:.3f} | {interval} "
            f"| {verdict(row)} | {row['training_seconds']:.0f} |"
        )
    again = "`python benchmarks/what_helped.py RUNS` measures again and writes this page."
    return INTRODUCTION + "\n".join([*lines, "", again, ""])


if __name__ == "__main__":
    measure(Path(sys.argv[1]))
