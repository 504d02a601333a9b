"""Settings of training beside the default on the data that ship: what helped, and what did not.

    OMP_NUM_THREADS=1 python benchmarks/what_helped.py RUNS

Each setting is one run of the quickstart, compared with a run without it by a paired bootstrap over the same
test tracks. Finished runs in the folder RUNS are not repeated. Writes benchmarks/results/what_helped.json
and docs/what-helped.md.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from m2v_finetune.calibration import LARGEST, NUM_BINS, SMALLEST, TemperatureScaling
from m2v_finetune.cross_validation import is_finished
from m2v_finetune.data.checking import check_tracks
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.metrics.intervals import Statistic, difference_of
from m2v_finetune.metrics.reports import with_interval
from m2v_finetune.model import TaskModel
from m2v_finetune.model.averaging import write_model_average
from m2v_finetune.publishing.comparison import compare_runs
from m2v_finetune.publishing.report import read_finished_run
from m2v_finetune.runs import train_task
from m2v_finetune.search import search_settings
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import find_task
from m2v_finetune.tasks.clips import stack_evaluated
from m2v_finetune.training.evaluation import evaluate_tracks
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.track_results import write_track_results

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "what_helped.json"
DISTILLATION = REPOSITORY / "benchmarks" / "results" / "distillation.json"
PAGE = REPOSITORY / "docs" / "what-helped.md"
START = "tagging, LoRA"
AVERAGE = "`m2v merge`, with the row above"
HALF = {"optimizer.learning_rate": 5e-4, "optimizer.backbone_learning_rate": 5e-5}
LORA = {"tuning.method": "lora", "training.epochs": 8, "optimizer.backbone_learning_rate": 1e-4}
# By group: the task, the settings of its reference, and those that are compared with it.
GROUPS: dict[str, tuple[str, dict[str, object], list[dict[str, object]]]] = {
    "genre": (
        "genre",
        {},
        [
            {"head.kind": "logistic"},
            {"data.sampling": "balanced"},
            {"task.class_weight": "balanced"},
            {"task.label_smoothing": 0.1},
            {"training.ema_decay": 0.98},
        ],
    ),
    "tagging": (
        "tagging",
        {},
        [
            {"head.kind": "logistic"},
            {"task.pos_weight": "balanced"},
            {"task.focal_gamma": 2},
            {"training.ema_decay": 0.98},
        ],
    ),
    "genre, LoRA": (
        "genre",
        LORA,
        [
            {"training.ema_decay": 0.98},
            {"augmentation.mixup_alpha": 0.3},
            {"training.init_from": START},
            HALF,
        ],
    ),
}


SEARCHED = (
    "optimizer.learning_rate=log(3e-4,3e-2)",
    "head.dropout=uniform(0,0.5)",
    "head.kind=linear,mlp,logistic",
    "head.pooling=mean,mean_std",
)
NUM_TRIALS = 20
SEARCH = f"`m2v search`, {NUM_TRIALS} trials"
CALIBRATION = "calibration"
CALIBRATION_ERROR = "expected calibration error"
FOLDS = "`data.folds 5`, all tracks"


def name_of(settings: dict[str, object]) -> str:
    """Return settings in words."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def run_of(folder: Path, task: str, settings: dict[str, object]) -> Path:
    """Train a run that is not finished; return its folder."""
    if not is_finished(folder):
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
        words = [f"--config={REPOSITORY / 'configs' / task / 'quickstart.yaml'}"]
        words += [f"--{key}={value}" for key, value in settings.items()]
        words += [f"--run.output_dir={folder}", "--run.resume=auto"]
        train_task(read_config(task, words), find_task(task))
    return folder


def average_of(folder: Path, runs: list[Path]) -> Path:
    """Write a folder like that of a run: the average of models, and its results on the test tracks."""
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(runs[0], unfinished)
        shutil.rmtree(unfinished / "model")
        write_model_average([str(run / "model") for run in runs], unfinished / "model")
        model = TaskModel.from_pretrained(unfinished / "model")
        settings = read_config("genre", [f"--config={runs[0] / 'config.yaml'}"])
        tracks, _ = load_tracks(str(settings.data.source), label_column=model.task.label_column)
        checked, _ = check_tracks(
            [track for track in tracks if track.split == "test"],
            on_bad_track="stop",
            skip_option=None,
        )
        accelerator = Accelerator()
        with progress_bar(accelerator) as bar:
            evaluations = evaluate_tracks(
                model.to(accelerator.device),
                checked,
                accelerator=accelerator,
                batch_size=settings.training.eval_batch_size,
                num_workers=0,
                bar=bar,
            )
        write_track_results(unfinished / "test_tracks.jsonl", checked, evaluations.own)
        unfinished.rename(folder)
    return folder


def measure(folder: Path) -> None:
    """Run what is missing; write the result and the page after each setting."""
    rows: list[dict[str, object]] = []

    def add(group: str, setting: str, reference: Path, run: Path, seconds: float | None) -> None:
        rows.extend(
            {
                "task": group,
                "setting": setting,
                "metric": row.metric,
                "value": row.second,
                **{f"difference_{key}": one for key, one in row.difference.items()},
                "training_seconds": seconds,
            }
            for row in compare_runs(reference, run)
            if row.label is None
        )
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(render(rows), encoding="utf-8")

    def write(row: dict[str, object]) -> None:
        rows.append(row)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(render(rows), encoding="utf-8")

    for group, (task, base, others) in GROUPS.items():
        reference = run_of(folder / group, task, base)
        add(group, "default", reference, reference, seconds_of(reference))
        if not base:
            found = searched(folder / f"{group}, search", task)
            add(group, SEARCH, reference, found, seconds_of(found))
            write({"task": group, **calibration_row(reference)})
            for row in fold_rows(run_of(folder / f"{group}, folds", task, {"data.folds": 5})):
                write({"task": group, **row})
        for settings in others:
            given = dict(settings)
            if "training.init_from" in given:
                start = run_of(folder / START, "tagging", LORA)
                given["training.init_from"] = str(start / "model")
            run = run_of(folder / f"{group}, {name_of(settings)}", task, {**base, **given})
            add(group, f"`{name_of(settings)}`", reference, run, seconds_of(run))
            if settings is HALF:
                both = average_of(folder / f"{group}, average", [reference, run])
                add(group, AVERAGE, reference, both, None)


def searched(folder: Path, task: str) -> Path:
    """Search settings on the validation split, train the best; return the folder of the run."""
    config = REPOSITORY / "configs" / task / "quickstart.yaml"
    search_settings(
        task,
        [f"--config={config}"],
        SEARCHED,
        output=folder,
        num_trials=NUM_TRIALS,
        command="again",
    )
    run = folder.with_name(f"{folder.name}, best")
    if not is_finished(run):
        words = [f"--config={folder / 'config.yaml'}", f"--run.output_dir={run}"]
        train_task(read_config(task, [*words, "--run.resume=auto"]), find_task(task))
    return run


def calibration_row(run: Path) -> dict[str, object]:
    """Return the calibration error of a run's test tracks, and its change by calibration."""
    results, task, tracks = read_finished_run(run)
    targets, after = stack_evaluated([track.evaluated for track in tracks])
    before = uncalibrated(after.astype(np.float64), task.calibration)
    errors = [calibration_error(targets, scores) for scores in (before, after)]
    everything = np.ones((1, len(tracks)), dtype=np.int32)
    for name, error in zip(("error_before", "error_after"), errors, strict=True):
        assert abs(error(everything)[0] - results["calibration"][name]) < 0.002, name
    difference = with_interval(difference_of(*errors), len(tracks), seed=0)
    return {
        "setting": CALIBRATION,
        "metric": CALIBRATION_ERROR,
        "value": results["calibration"]["error_after"],
        **{f"difference_{key}": one for key, one in difference.items()},
        "training_seconds": None,
    }


def uncalibrated(scores: np.ndarray, calibration: object) -> np.ndarray:
    """Return the probabilities before calibration."""
    if isinstance(calibration, TemperatureScaling):
        powers = np.maximum(scores, SMALLEST) ** calibration.temperature
        return powers / powers.sum(axis=1, keepdims=True)
    scores = np.clip(scores, SMALLEST, LARGEST)
    odds = np.log(scores / (1 - scores))
    return 1 / (1 + np.exp(-(odds - calibration.intercepts) / calibration.slopes))


def calibration_error(targets: np.ndarray, scores: np.ndarray) -> Statistic:
    """Return the calibration error of classes or tags as a statistic of counts of draws."""
    if targets.ndim == 1:  # of the predicted class
        outcomes = (scores.argmax(axis=1) == targets)[:, None].astype(float)
        scores = scores.max(axis=1, keepdims=True)
    else:
        outcomes = targets.astype(float)
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.stack([((outcomes - scores) * (bins == n)).sum(axis=1) for n in range(NUM_BINS)], 1)
    return lambda counts: (
        np.abs(counts @ gaps).sum(axis=1) / (counts.sum(axis=1) * outcomes.shape[1])
    )


def fold_rows(run: Path) -> list[dict[str, object]]:
    """Return the metrics of a cross-validation, with their intervals, which no default has."""
    results = json.loads((run / "results.json").read_text())
    return [
        {
            "setting": FOLDS,
            "metric": results["metric_names"].get(name, name),
            "value": entry["value"],
            "low": entry["low"],
            "high": entry["high"],
            "num_tracks": results["num_tracks"]["test"]
            if isinstance(results["num_tracks"], dict)
            else results["num_tracks"],
            "training_seconds": None,
        }
        for name, entry in results["metrics"].items()
        if name in results["metric_names"]
    ]


def seconds_of(run: Path) -> float:
    """Return what the training of a run took."""
    seconds: float = json.loads((run / "results.json").read_text())["seconds"]["training"]
    return seconds


def verdict(row: dict[str, object]) -> str:
    if row["setting"] in ("default", FOLDS):
        return "-"
    low, high = row["difference_low"], row["difference_high"]
    if row.get("metric") == CALIBRATION_ERROR:  # lower is better
        low, high = -high, -low
    if low > 0:
        return "helped"
    return "hurt" if high < 0 else "no clear difference"


INTRODUCTION = """\
# What helped

Do the settings against [imbalance](imbalance.md), the [logistic head](few-labels.md), mixup, moving averages, and
[models to start from](starting.md) help on the data that ship? One run each of the quickstart, beside a run without
the setting, on the same 72 test tracks. The interval is a paired bootstrap over them: it leaves out zero where a
setting helped or hurt more than the choice of tracks explains. It does not cover other seeds, and one row in twenty
leaves out zero by chance. The music is synthetic, its styles are equally frequent, and its labels are right, so this
is no evidence about rare or wrong labels in real music: try them on yours.

Rows of "genre, LoRA" train 8 epochs with LoRA and a rate of 0.0001, which hardly moves the backbone in so few steps. The
model to start from was trained on the tags of the same tracks, also with LoRA. Then come a run with half the learning
rates, and the average of its weights and those of the default. The last rows are students of one layer, beside their
teacher of four ([distilling](distilling.md)). Seconds are those of one thread on two busy cores.

The [search](search.md) tries learning rate, dropout, kind and pooling of the head on the 48 validation tracks; its best
was a logistic head for both tasks.
[Calibration](probabilities.md) changes probabilities and not their order, so its row has the calibration error, where
less is better. [Folds](few-labels.md) measure the default on all tracks, each by a model that did not train on it: their
rows have the metric's interval, which is narrower than that of 72 tracks.

| task | setting | metric | value | difference to the default, 95 % interval | | seconds of training |
|---|---|---|---|---|---|---|
"""  # noqa: E501


def distilled() -> list[str]:
    """Return the rows of students of one layer, as benchmarks/distillation.py measured them."""
    lines = []
    for row in json.loads(DISTILLATION.read_text())["rows"]:
        if row["role"] == "teacher":
            shown, interval, found = "default", "-", "-"
        else:
            found = {f"difference_{key}": value for key, value in row["difference"].items()}
            shown = "`m2v distil`" if row["learned"] == "teacher" else "`backbone.num_layers 1`"
            interval = "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**row["difference"])
            found = verdict({**found, "setting": shown})
        lines.append(
            f"| tagging, 8 epochs | {shown} | {row['metric']} | {row['value']:.3f} | {interval} "
            f"| {found} | - |"
        )
    return lines


def render(rows: list[dict[str, object]]) -> str:
    lines = []
    for row in rows:
        difference, low, high = (row.get(f"difference_{key}") for key in ("value", "low", "high"))
        is_default = row["setting"] == "default"
        taken = row["training_seconds"]
        seconds = "-" if taken is None else f"{taken:.0f}"
        if row["setting"] == FOLDS:
            interval = (
                f"not paired; {row['low']:.3f} to {row['high']:.3f} of {row['num_tracks']} tracks"
            )
        else:
            interval = "-" if is_default else f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {row['task']} | {row['setting']} | {row['metric']} | {row['value']:.3f} | {interval} "
            f"| {verdict(row)} | {seconds} |"
        )
    lines += distilled()
    again = "`python benchmarks/what_helped.py RUNS` measures again and writes this page."
    return INTRODUCTION + "\n".join([*lines, "", again, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs")
    measure(parser.parse_args().runs)
