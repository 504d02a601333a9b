"""Benchmark of a backbone: the published probe protocol on every task with available data.

For each row, the learning rate is searched on validation with the first seed. Then each seed is run with
the best rate, and evaluated on the test tracks. The best run of the search is that of the first seed, so
it is not trained twice.
"""

import json
import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from m2v_finetune.benchmarking.rows import (
    BATCH_SIZE,
    METRICS_IN_DB,
    MODELS,
    PAPERS,
    TABLE,
    Row,
)
from m2v_finetune.benchmarking.table import print_table, render_markdown
from m2v_finetune.config import (
    BackboneConfig,
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    PublishConfig,
    RecipeConfig,
    RunConfig,
    TrainingConfig,
)
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.files import write_json
from m2v_finetune.publishing.method import is_random
from m2v_finetune.runs import train_task
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.training.run import wait_for_processes
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.signals import stop_on_signals

logger = logging.getLogger(__name__)

# The protocol of the published probes. Source: MARBLE, arXiv 2306.10548; MERT, arXiv 2306.00107.
LEARNING_RATES = (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
NUM_WORKERS = 4
SCALE = 100  # metrics are shown in per cent, but for those in dB


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of a benchmark.

    Attributes:
        backbone: Backbone, as ``backbone.source`` of a recipe; with `features` the name of the vectors.
        root: Folder with a folder for each data set.
        features: Folder with ``<data set>/<backbone>/<clip>.npy``; audio is read if None.
        tasks: Names of tasks; all if empty.
        num_seeds: Number of runs with the best rate, with the seeds 0, 1, and so on.
        output: Folder of runs and tables; ``benchmarks-<backbone>`` if None.
    """

    backbone: str
    root: Path
    features: Path | None = None
    tasks: tuple[str, ...] = ()
    num_seeds: int = 3
    output: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of runs and tables."""
        name = re.sub(r"[^\w.-]+", "-", self.backbone).strip("-.")
        return self.output or Path(f"benchmarks-{name}")

    def command(self) -> str:
        """Return the command line of the same benchmark."""
        words: list[Any] = ["m2v", "benchmark", "--backbone", self.backbone, "--root", self.root]
        words += ["--features", self.features] if self.features else []
        words += ["--tasks", *self.tasks] if self.tasks else []
        words += ["--seeds", self.num_seeds, "--output", self.folder]
        return shlex.join(map(str, words))

    def manifest(self, row: Row) -> Path:
        """Return the path of the manifest of a row."""
        return self.root / row.data_set / row.manifest

    def vectors(self, row: Row) -> Path | None:
        """Return the folder of the vectors of a row."""
        if self.features is None:
            return None
        return self.features / (row.archive or row.data_set) / self.backbone


@dataclass(frozen=True, kw_only=True)
class _ProbeConfig(RecipeConfig):
    """Settings of a recipe, for any task."""

    task: Any = field(default=None)


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    """Settings of the protocol, which tests reduce."""

    learning_rates: Sequence[float]
    epochs: int | None
    num_workers: int


def run_benchmark(
    settings: BenchmarkSettings,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int | None = None,
    num_workers: int = NUM_WORKERS,
) -> dict[str, Any]:
    """Run all rows with available data; write and print their table.

    Runs have folders of their own below `BenchmarkSettings.folder`. A finished run is not repeated, an
    interrupted one resumes.

    Args:
        settings: Settings of the benchmark.
        learning_rates: Learning rates to search.
        epochs: Maximum number of epochs of each run; those of the table if None.
        num_workers: Number of processes that read audio.

    Returns:
        The content of benchmark.json.

    Raises:
        UserError: A task does not exist, no row can be run, or a run failed for a reason that the user can
            fix.
        Stopped: A signal arrived; the same command resumes.
    """
    protocol = _Protocol(learning_rates=learning_rates, epochs=epochs, num_workers=num_workers)
    reasons = {row.name: _reason_to_skip(row, settings) for row in _chosen(settings.tasks)}
    rows = [row for row in TABLE if row.name in reasons and reasons[row.name] is None]
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    plan = [f"Runs: {', '.join(row.name for row in rows) or 'none'}"]
    plan += [f"Skips {name}: {reason}" for name, reason in skipped.items()]
    Console(stderr=True).print("\n".join(plan), markup=False, highlight=False, soft_wrap=True)
    if not rows:
        raise UserError(
            f"None of the data are at {settings.root}: every row is skipped (listed above).",
            code="benchmark-nothing-to-run",
        )
    with _with_resume_advice(settings.command()):
        content: dict[str, Any] = {
            "backbone": settings.backbone,
            "features": settings.features is not None,
            "has_random_weights": False,
            "num_seeds": settings.num_seeds,
            "learning_rates": list(learning_rates),
            "rows": [],
            "skipped": skipped,
        }
        for row in rows:  # the table exists after the first row, and grows
            entry = _measure(row, settings, protocol)
            content["has_random_weights"] |= entry.pop("is_random")
            content["rows"].append(entry)
            write_json(settings.folder / "benchmark.json", content)
            table = render_markdown(content)
            (settings.folder / "benchmark.md").write_text(table, encoding="utf-8")
    print_table(content)
    return content


def _chosen(tasks: Sequence[str]) -> list[Row]:
    known = list(dict.fromkeys(row.task.name for row in TABLE))
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise UserError(
            f"There is no task {', '.join(unknown)} to benchmark. There are: {', '.join(known)}.",
            code="benchmark-task-unknown",
        )
    return [row for row in TABLE if not tasks or row.task.name in tasks]


def _reason_to_skip(row: Row, settings: BenchmarkSettings) -> str | None:
    """Return why a row cannot be run, and a remedy; None if it can."""
    vectors, manifest = settings.vectors(row), settings.manifest(row)
    if vectors is not None and not issubclass(row.task, ClipTask):
        return "a task of frames needs more than one vector for a clip"
    if vectors is not None and not vectors.is_dir():
        return f"there are no vectors in {vectors}"
    if not manifest.is_file():
        words = ["m2v", "data", "prepare", row.data_set, "--root", str(manifest.parent)]
        command = shlex.join([*words, "--without-audio"] if vectors else words)
        return f"there is no {manifest}; create it with: {command}"
    return None


@contextmanager
def _with_resume_advice(command: str) -> Iterator[None]:
    """Turn signals into `Stopped` with the command that resumes."""
    advice = f"Stopped. Finished runs are kept. Resume with the same command:\n  {command}"
    try:
        with stop_on_signals(lambda: advice):
            yield
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, advice) from stopped


def _measure(row: Row, settings: BenchmarkSettings, protocol: _Protocol) -> dict[str, Any]:
    """Search the learning rate of a row, run its seeds, and return its entry of benchmark.json."""
    searched: dict[float, float | None] = {}
    for learning_rate in protocol.learning_rates:
        found = _run(row, settings, protocol, learning_rate=learning_rate, seed=0, is_search=True)
        searched[learning_rate] = found["validation"][found["selection_metric"]]
    best = max(
        protocol.learning_rates, key=lambda learning_rate: _or_lowest(searched[learning_rate])
    )
    logger.info("%s: the best rate by validation is %g", row.name, best)
    runs = [
        _run(row, settings, protocol, learning_rate=best, seed=seed, is_search=False)
        for seed in range(settings.num_seeds)
    ]
    return {
        "name": row.name,
        "task": row.task.name,
        "data_set": row.data_set,
        "num_tracks": runs[0]["num_tracks"],
        "learning_rate": best,
        "searched": {f"{learning_rate:g}": value for learning_rate, value in searched.items()},
        "metrics": {
            metric: _summary(runs, metric, reported) for metric, reported in row.reported.items()
        },
        "note": row.note,
        "is_random": any(is_random(run) for run in runs),
    }


def _run(
    row: Row,
    settings: BenchmarkSettings,
    protocol: _Protocol,
    *,
    learning_rate: float,
    seed: int,
    is_search: bool,
) -> Mapping[str, Any]:
    """Return the content of a run's results.json, after running it if needed."""
    folder = RunFolder(settings.folder / row.name / f"rate-{learning_rate:g}-seed-{seed}")
    vectors = settings.vectors(row)
    config = _ProbeConfig(
        data=DataConfig(
            source=str(settings.manifest(row)),
            features=None if vectors is None else str(vectors),
            window_seconds=row.window_seconds,
            hop_seconds=row.hop_seconds,
            windows_per_track=row.windows_per_track,
            num_workers=protocol.num_workers,
        ),
        backbone=BackboneConfig() if vectors else BackboneConfig(source=settings.backbone),
        head=HeadConfig(kind="mlp", standardize=False),  # as the published probes
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        training=TrainingConfig(
            epochs=protocol.epochs or row.epochs,
            per_device_batch_size=row.per_device_batch_size,
            gradient_accumulation_steps=BATCH_SIZE // row.per_device_batch_size,
            eval_batch_size=row.per_device_batch_size,
            early_stopping_patience=row.patience,
        ),
        run=RunConfig(output_dir=str(folder.path), seed=seed, resume="auto"),
        publish=PublishConfig(weights="auto" if vectors else "trained"),
        task=row.settings,
    )
    try:
        if folder.results.is_file():
            folder.create(config)  # refuses results of other settings
            results: dict[str, Any] = json.loads(folder.results.read_text(encoding="utf-8"))
            if is_search or results["split"] == "test":
                return results
        run = train_task(config, row.task, is_search=is_search)
        wait_for_processes()  # until the first has written all files
        return run.results
    except UserError as error:
        raise UserError(
            f"{row.name}, rate {learning_rate:g}, seed {seed}: {error}\nFix it, or leave the task out with "
            f"--tasks, and resume; finished runs are kept:\n  {settings.command()}",
            code=error.code,
        ) from error


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value


def _summary(
    runs: Sequence[Mapping[str, Any]], metric: str, reported: tuple[float | None, ...]
) -> dict[str, Any]:
    """Return a metric over seeds, in its unit, with the published values."""
    scale, unit = (1, "dB") if metric in METRICS_IN_DB else (SCALE, "per cent")
    entries = [run["metrics"][metric] for run in runs]
    values = {
        key: [entry[key] for entry in entries if entry[key] is not None]
        for key in ("value", "low", "high")
    }

    def mean(key: str) -> float | None:
        return scale * sum(values[key]) / len(values[key]) if values[key] else None

    return {
        "title": runs[0]["metric_names"][metric],
        "unit": unit,
        "mean": mean("value"),
        "lowest_seed": scale * min(values["value"]) if values["value"] else None,
        "highest_seed": scale * max(values["value"]) if values["value"] else None,
        "low": mean("low"),
        "high": mean("high"),
        "reported": {
            model: {"value": value, "paper": PAPERS}
            for model, value in zip(MODELS, reported, strict=True)
            if value is not None
        },
    }
