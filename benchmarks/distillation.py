"""Teacher and students on the data that ship: quality, and the speed of a window.

    OMP_NUM_THREADS=1 python benchmarks/distillation.py RUNS

The teacher is a tagger with all layers of the backbone, trained on labels. Each number of layers has two
students: one is trained on the same labels, the other learns from the teacher. Finished runs in the folder
RUNS are not repeated. Writes benchmarks/results/distillation.json and the table of docs/distilling.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from m2v_finetune.cross_validation import is_finished
from m2v_finetune.model import TaskModel
from m2v_finetune.publishing.comparison import compare_runs
from m2v_finetune.runs import train_task
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import find_task

REPOSITORY = Path(__file__).parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "distillation.json"
PAGE = REPOSITORY / "docs" / "distilling.md"
BEGIN, END = "<!-- measured: begin -->\n", "\n<!-- measured: end -->"
TASK = "tagging"
BACKBONE = "filterbank-small"
SETTINGS = {
    "backbone.source": BACKBONE,
    "data.window_seconds": 2.0,
    "data.num_variants": 4,
    "data.num_workers": 0,
    "training.epochs": 8,
}
LAYERS = (1,)
NUM_WINDOWS, NUM_REPEATS = 8, 5


def run_of(folder: Path, settings: dict[str, Any]) -> Path:
    """Train a run that is not finished; return its folder."""
    if not is_finished(folder):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        words = [f"--config={REPOSITORY / 'configs' / TASK / 'quickstart.yaml'}"]
        words += [f"--{key}={value}" for key, value in {**SETTINGS, **settings}.items()]
        words += [f"--run.output_dir={folder}", "--run.resume=auto"]
        train_task(read_config(TASK, words), find_task(TASK))
    return folder


def milliseconds(model: TaskModel) -> float:
    """Return the CPU time of one thread for a window, the least of some batches."""
    torch.set_num_threads(1)
    windows = 0.1 * torch.randn(NUM_WINDOWS, model.window_samples)
    seconds = []
    with torch.inference_mode():
        model.eval()(windows)
        for _ in range(NUM_REPEATS):
            start = time.process_time()
            model(windows)
            seconds.append(time.process_time() - start)
    return 1000 * min(seconds) / NUM_WINDOWS


def measure(folder: Path) -> dict[str, Any]:
    """Train what is missing, and return what was measured."""
    teacher = run_of(folder / "teacher", {})
    rows = [row_of("teacher", "labels", teacher, teacher)]
    for layers in LAYERS:
        shorter = {"backbone.num_layers": layers}
        for name, more in (
            ("labels", {}),
            ("teacher", {"training.teacher": teacher / "model"}),
        ):
            student = run_of(folder / f"{layers}-{name}", {**shorter, **more})
            rows.append(row_of("student", name, student, teacher))
    return {"task": TASK, "backbone": BACKBONE, "rows": rows}


def row_of(role: str, learned: str, run: Path, teacher: Path) -> dict[str, Any]:
    """Return the facts of a run, compared with the teacher on the same tracks."""
    results = json.loads((run / "results.json").read_text())
    model = TaskModel.from_pretrained(run / "model")
    metric = results["selection_metric"]
    name = results["metric_names"][metric]
    [difference] = [
        one.difference
        for one in compare_runs(teacher, run)
        if one.label is None and one.metric in (metric, name)
    ]
    return {
        "role": role,
        "learned": learned,
        "layers": model.backbone.num_layers,
        "parameters": model.num_parameters(),
        "metric": name,
        **results["metrics"][metric],
        "difference": difference,
        "milliseconds": milliseconds(model),
    }


def table(found: dict[str, Any]) -> str:
    """Return the table of the page."""
    rows = found["rows"]
    lines = [
        f"Tagging on the quickstart: probes on the backbone `{found['backbone']}`, "
        f"{SETTINGS['training.epochs']} epochs, {rows[0]['metric']} on the 72 test clips. All models trained "
        "on the same 160 clips: the student has the teacher's outputs, and no more music. The difference to "
        "the teacher is a paired bootstrap over the clips. Milliseconds are CPU time of one thread for a "
        "window of 2 s, on a busy machine. One run each, on synthetic music: no evidence about real music.",
        "",
        "| | layers | learned from | parameters | value (95 % interval) | difference to the teacher "
        "| ms a window |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, value, high = (row["difference"][key] for key in ("low", "value", "high"))
        difference = (
            "-" if row["role"] == "teacher" else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
        )
        lines.append(
            f"| {row['role']} | {row['layers']} | {row['learned']} | {row['parameters']:,} "
            f"| {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {difference} "
            f"| {row['milliseconds']:.1f} |"
        )
    again = "`python benchmarks/distillation.py RUNS` measures again and writes this table."
    return "\n".join([*lines, "", again])


def main() -> None:
    """Measure, and write result and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs")
    found = measure(parser.parse_args().runs.resolve())
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END.lstrip("\n"))[2]
    PAGE.write_text(f"{before}{BEGIN}{table(found)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
