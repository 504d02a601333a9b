"""Cross-validation: each track is evaluated once, by a model that was not trained on it.

Folds are runs in folders of their own below the run folder. Their track results together are the results of
the cross-validation; a model on all tracks, if one is trained, has them in its card.
"""

import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.files import write_atomically, write_json
from m2v_finetune.publishing.harmless import harmless
from m2v_finetune.publishing.report import read_finished_run, write_report
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clips import ClipTask, has_labels
from m2v_finetune.training.results import POOLED_SPLIT
from m2v_finetune.training.run import wait_for_processes
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.run_tracks import load_splits
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.starting import start
from m2v_finetune.training.track_results import TrackResult

logger = logging.getLogger(__name__)

Train = Callable[[RecipeConfig], Any]
"""Trains and evaluates one fold."""


@dataclass(frozen=True, kw_only=True)
class PooledFolds:
    """Results of all folds together.

    Attributes:
        task: Task with its labels.
        results: Metrics over all tracks, in the form of results.json, with the spread over folds.
        tracks: Result of each track.
    """

    task: Task
    results: dict[str, Any]
    tracks: list[TrackResult]


def cross_validate(
    config: RecipeConfig,
    task_class: type[Task],
    *,
    train_fold: Train,
    train_final: Callable[[RecipeConfig, PooledFolds], Any],
) -> tuple[Path, dict[str, Any]]:
    """Run all folds, and write their results together into the run folder.

    A finished fold is not run again, an interrupted one resumes.

    Args:
        config: All settings, with ``data.folds``.
        task_class: Class of the task.
        train_fold: Function that trains and evaluates a fold, whose number is in ``data.fold``.
        train_final: Function that trains on all tracks, and publishes with the results of the folds.

    Returns:
        The run folder, and the content of its results.json.

    Raises:
        UserError: A label is in too few groups, or settings, data or machine must be fixed.
        Stopped: A signal arrived; the same command, with run.resume auto, resumes.
    """
    num_folds = config.data.folds
    assert num_folds is not None
    accelerator, folder = start(config, task=task_class.name)
    with stop_on_signals(folder.resume_advice):
        _require_labels_in_each_fold(config, task_class)
    if accelerator.is_main_process:
        folder.create(config, num_processes=accelerator.num_processes)
    accelerator.wait_for_everyone()
    try:
        for fold in range(num_folds):
            path = folder.path / f"fold-{fold}"
            if is_finished(path):
                logger.info("Fold %d of %d is finished, in %s.", fold + 1, num_folds, path)
                continue
            logger.info("Fold %d of %d, in %s.", fold + 1, num_folds, path)
            train_fold(_config_of(config, path, fold=fold))
            wait_for_processes()  # until the first has written all files
        pooled = pool_folds([folder.path / f"fold-{n}" for n in range(num_folds)], config.run.seed)
        if accelerator.is_main_process:
            _write(folder, pooled)
        if config.data.final_model and not is_finished(folder.path / "final"):
            train_final(_config_of(config, folder.path / "final", fold=None), pooled)
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, folder.resume_advice()) from stopped
    return folder.path, pooled.results


def is_finished(folder: Path) -> bool:
    """Return whether a run has its results and its model."""
    run = RunFolder(folder)
    return run.results.is_file() and (run.model / "config.json").is_file()


def pool_folds(folders: Sequence[Path], seed: int) -> PooledFolds:
    """Return the results of finished folds together: of all tracks, and their spread over the folds.

    Args:
        folders: Run folders of the folds.
        seed: Seed of the bootstrap.

    Raises:
        UserError: A folder is no finished run, or the folds have different labels.
    """
    runs = [read_finished_run(folder) for folder in folders]
    first, task, _ = runs[0]
    for folder, (_, other, _) in zip(folders, runs, strict=True):
        if (
            isinstance(task, ClipTask)
            and isinstance(other, ClipTask)
            and task.labels != other.labels
        ):
            raise UserError(
                f"The models of {folders[0]} and {folder} have different labels, so their results cannot be "
                "put together. Name the labels by task.labels, and start a new run.",
                code="folds-different-labels",
            )
    tracks = [track for *_, own in runs for track in own]
    summary = task.summarize([track.evaluated for track in tracks], seed=seed)
    of_folds = [results["metrics"] for results, *_ in runs]
    of_one_fold = ("calibration", "thresholds", "novelty")
    results = {
        **{key: value for key, value in first.items() if key not in of_one_fold},
        **summary,
        "split": POOLED_SPLIT,
        "num_tracks": len(tracks),
        "num_tracks_of_splits": {POOLED_SPLIT: len(tracks)},
        "num_skipped_tracks": {POOLED_SPLIT: max(_num_skipped(one) for one, *_ in runs)},
        "lost_tracks": {
            POOLED_SPLIT: sorted(
                {name for one, *_ in runs for name in one["lost_tracks"].get("test", [])}
            )
        },
        "validation": _mean_validation([one["validation"] for one, *_ in runs]),
        "folds": {
            name: _spread([own[name]["value"] for own in of_folds]) for name in summary["metrics"]
        },
        "seconds": {
            key: sum(one["seconds"][key] for one, *_ in runs) for key in ("training", "test")
        },
        "outputs_hardly_vary": all(one["outputs_hardly_vary"] for one, *_ in runs),
        "warnings": [
            f"Fold {number}: {text}"
            for number, (one, *_) in enumerate(runs)
            for text in one["warnings"][:1]
        ],
    }
    return PooledFolds(task=task, results=results, tracks=tracks)


def _require_labels_in_each_fold(config: RecipeConfig, task_class: type[Task]) -> None:
    """Check, before anything is trained, that the training tracks of each fold have each label."""
    if not has_labels(task_class):
        return
    task_config: Any = getattr(config, "task")  # noqa: B009 (each recipe adds this section)

    def labels(data: Any, *, is_final: bool = False) -> set[str]:
        splits, _ = load_splits(
            data, label_column=task_config.label_column, seed=config.run.seed, is_final=is_final
        )
        tracks = splits["train"] + (splits["validation"] if is_final else [])
        task: Any = task_class.from_training(replace(task_config, **free), tracks)
        return set(task.labels)

    has_own = getattr(task_config, "labels", None) is not None
    free = {"labels": None} if has_own else {}
    needed = labels(replace(config.data, num_train_tracks=None), is_final=True)
    if has_own:
        needed &= set(map(str, task_config.labels))
    problems = []
    for fold in range(config.data.folds or 0):
        missing = sorted(needed - labels(replace(config.data, fold=fold, final_model=False)))
        problems += [f"fold {fold}: no training track has '{label}'" for label in missing]
    if problems:
        raise UserError(
            problem_list(
                "Labels that a fold cannot learn, as their tracks are in too few groups",
                problems,
                "Lower data.folds, remove these labels, add tracks of other groups, or try another run.seed.",
            ),
            code="folds-label-in-few-groups",
        )


def _config_of(config: RecipeConfig, folder: Path, *, fold: int | None) -> RecipeConfig:
    """Return the settings of a fold, or of the final model, in a folder of its own."""
    return replace(
        config,
        data=replace(config.data, fold=fold, final_model=config.data.final_model and fold is None),
        run=replace(config.run, output_dir=str(folder), resume="auto"),
        publish=config.publish if fold is None else replace(config.publish, repo_id=None),
    )


def _write(folder: RunFolder, pooled: PooledFolds) -> None:
    """Write results.json, the results of all tracks, plots and the report of the cross-validation."""
    write_json(folder.results, pooled.results)
    num_folds = len(next(iter(pooled.results["folds"].values()))["values"])
    of_folds = [RunFolder(folder.path / f"fold-{number}") for number in range(num_folds)]
    for name in ("predictions.csv", "test_tracks.jsonl"):
        parts = [(one.path / name).read_bytes() for one in of_folds]
        rest = [part.split(b"\n", 1)[1] if name.endswith("csv") else part for part in parts[1:]]
        content = b"".join([parts[0], *rest])
        write_atomically(
            folder.path / name,
            lambda unfinished, content=content: unfinished.write_bytes(content),  # type: ignore[misc]
        )
    task = pooled.task
    if isinstance(task, ClipTask):
        with harmless("The plots of the folds"):
            folder.plots.mkdir(exist_ok=True)
            task.plot(
                folder.plots,
                results=pooled.results,
                evaluated=[track.evaluated for track in pooled.tracks],
                tracks=[],
                predict=None,  # type: ignore[arg-type]  # their plots predict no track
            )
    with harmless("The report"):
        write_report(folder.path)
    for name, metric in pooled.results["metrics"].items():
        spread = pooled.results["folds"][name]
        if metric["value"] is None or spread["mean"] is None:
            continue
        logger.info(
            "%s of all %d tracks: %.4f (95 %% interval %.4f to %.4f); mean over %d folds %.4f, "
            "standard deviation %.4f",
            pooled.results["metric_names"][name],
            pooled.results["num_tracks"],
            metric["value"],
            metric["low"],
            metric["high"],
            num_folds,
            spread["mean"],
            spread["std"],
        )
    logger.info("Results of the folds are in %s", folder.results)


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation over folds, of those where a metric is defined."""
    defined = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.stdev(defined) if len(defined) > 1 else (0.0 if defined else None),
        "values": list(values),
    }


def _mean_validation(values: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    return {key: _spread([one.get(key) for one in values])["mean"] for key in values[0]}


def _num_skipped(results: Mapping[str, Any]) -> int:
    return sum(results["num_skipped_tracks"].values())
