"""Learning curve: the metric of the test tracks against the number of training tracks, extrapolated."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.folds import least_subset
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.files import write_atomically, write_json
from m2v_finetune.metrics.intervals import Statistic, percentiles, resample_counts
from m2v_finetune.metrics.power_law import fit_power_laws
from m2v_finetune.plotting.learning_curve import plot_learning_curve
from m2v_finetune.runs import train_task
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clips import has_labels
from m2v_finetune.training.run import wait_for_processes
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.run_tracks import load_splits
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.starting import start
from m2v_finetune.training.track_results import TrackResult, read_track_results

logger = logging.getLogger(__name__)

NUM_RESAMPLES = 1000
MORE = (2, 4)
"""Multiples of the largest number of tracks for which the metric is extrapolated."""


@dataclass(frozen=True, kw_only=True)
class CurveSettings:
    """Settings of a learning curve.

    Attributes:
        output: Folder of runs and results; new, or of the same curve, which then resumes.
        num_sizes: Number of numbers of tracks: the largest, its half, and so on.
        num_repeats: Number of different subsets of each size; of all tracks there is one.
    """

    output: Path
    num_sizes: int = 6
    num_repeats: int = 3


def measure_curve(
    config: RecipeConfig, task_class: type[Task], settings: CurveSettings, *, command: str
) -> dict[str, Any]:
    """Train on nested subsets of the training tracks, and write table, picture and extrapolation.

    With ``data.folds``, each subset is evaluated on all folds, so on all tracks.

    Args:
        config: Settings of the runs.
        task_class: Class of the task.
        settings: Settings of the curve.
        command: Command that resumes, for messages.

    Returns:
        Content of curve.json.

    Raises:
        UserError: There are too few tracks, or a run failed for a reason that the user can fix.
        Stopped: A signal arrived; the same command resumes.
    """
    task_config: Any = getattr(config, "task")  # noqa: B009 (each recipe adds this section)
    advice = f"Stopped. Finished runs are kept. Resume with the same command:\n  {command}"
    folds: list[int | None] = (
        [None] if config.data.folds is None else list(range(config.data.folds))
    )
    if config.data.num_train_tracks is not None or config.data.fold is not None:
        raise UserError(
            "`m2v curve` chooses data.num_train_tracks and data.fold itself. Remove them.",
            code="settings-conflict",
        )
    config = replace(
        config,
        data=replace(config.data, final_model=False),
        run=replace(config.run, output_dir=str(settings.output), resume="auto"),
    )
    accelerator, folder = start(config, task=f"curve of {task_class.name}")
    try:
        with stop_on_signals(lambda: advice):
            train_splits = [
                load_splits(
                    replace(config.data, fold=fold),
                    label_column=task_config.label_column,
                    seed=config.run.seed,
                    stratify=has_labels(task_class),
                )[0]["train"]
                for fold in folds
            ]
            task = task_class.from_training(task_config, train_splits[0])
            label_column = task_config.label_column if has_labels(task_class) else None
            sizes = _sizes(train_splits, config, settings, label_column)
            logger.info("Numbers of training tracks: %s", ", ".join(map(str, sizes)))
            if accelerator.is_main_process:
                folder.create(config)  # refuses a curve of other settings
            accelerator.wait_for_everyone()
            num_repeats = {
                size: 1 if {size} == set(map(len, train_splits)) else settings.num_repeats
                for size in sizes
            }
            statistics, num_tracks = _measure(
                config, task_class, task, settings.output, num_repeats, folds
            )
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, advice) from stopped
    content = _summarize(task, sizes, statistics, num_tracks, seed=config.run.seed)
    if accelerator.is_main_process:
        _write(settings.output, content)
    return content


def _sizes(
    train_splits: Sequence[Any],
    config: RecipeConfig,
    settings: CurveSettings,
    label_column: str | None,
) -> list[int]:
    """Return the numbers of training tracks, the smallest first."""
    least = max(
        least_subset(
            tracks,
            group_columns=config.data.group_columns,
            label_column=label_column,
            seed=repeat,
        )
        for tracks in train_splits
        for repeat in range(settings.num_repeats)
    )
    largest = min(map(len, train_splits))
    sizes = sorted({round(largest / 2**number) for number in range(settings.num_sizes)})
    sizes = [size for size in sizes if size >= max(least, 2)]
    if len(sizes) < 3:
        raise UserError(
            "A learning curve needs 3 numbers of training tracks, each half of the next, and 2 or more. "
            f"There are {largest} training tracks"
            + (f", and {least} are needed for each label to occur" if least > 2 else "")
            + ". Add tracks, or raise --sizes"
            + (", or name fewer labels by task.labels." if least > 2 else "."),
            code="curve-too-few-tracks",
        )
    return sizes


def _measure(
    config: RecipeConfig,
    task_class: type[Task],
    task: Task,
    output: Path,
    num_repeats: Mapping[int, int],
    folds: Sequence[int | None],
) -> tuple[list[list[Statistic]], int]:
    """Run what is missing; return the metric of sizes and repeats as statistics, and the number of tracks.

    Args:
        config: Settings of the runs.
        task_class: Class of the task.
        task: Task with its labels.
        output: Folder of the runs.
        num_repeats: Number of subsets of each size, the smallest size first.
        folds: Numbers of the folds; one None without folds.
    """
    found: list[list[dict[str, TrackResult]]] = []
    for size in reversed(num_repeats):  # the largest first: it fills the cache
        of_repeats: list[dict[str, TrackResult]] = []
        for repeat in range(num_repeats[size]):
            tracks: dict[str, TrackResult] = {}
            for fold in folds:
                path = output / f"tracks-{size}-repeat-{repeat}"
                if fold is not None:
                    path = path.with_name(f"{path.name}-fold-{fold}")
                own = _config_of(config, path, size=size, repeat=repeat, fold=fold)
                tracks |= {one.id: one for one in _run(own, task_class)}
            of_repeats.append(tracks)
        found.insert(0, of_repeats)
    common = sorted(set.intersection(*(set(tracks) for own in found for tracks in own)))
    metric = task.selection_metric
    statistics = [
        [task.statistics([tracks[name].evaluated for name in common])[metric] for tracks in own]
        for own in found
    ]
    return statistics, len(common)


def _config_of(
    config: RecipeConfig, path: Path, *, size: int, repeat: int, fold: int | None
) -> RecipeConfig:
    return replace(
        config,
        data=replace(config.data, num_train_tracks=size, subset_seed=repeat, fold=fold),
        run=replace(config.run, output_dir=str(path), resume="auto"),
        publish=replace(config.publish, repo_id=None),
    )


def _run(config: RecipeConfig, task_class: type[Task]) -> list[TrackResult]:
    """Return the results of the test tracks of a run, after running it if needed."""
    assert config.run.output_dir is not None
    folder = RunFolder(Path(config.run.output_dir))
    if not folder.results.is_file():
        train_task(config, task_class, is_published=False)
        wait_for_processes()  # until the first has written all files
    return read_track_results(folder.test_tracks)


def _summarize(
    task: Task,
    sizes: Sequence[int],
    statistics: Sequence[Sequence[Statistic]],
    num_tracks: int,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return points with intervals, and the power law with what more tracks would bring.

    Each resample draws the same test tracks for all runs, and subsets of each size, with replacement. The
    power law is fitted to each resample.
    """
    metric = task.selection_metric
    once = np.ones((1, num_tracks), dtype=np.int32)
    measured = [np.array([float(one(once)[0]) for one in own]) for own in statistics]
    if any(np.isnan(own).all() for own in measured):
        raise UserError(
            f"{task.metric_names[metric]} is not defined for the test tracks. Give the test split more "
            "tracks, or use data.folds.",
            code="curve-metric-undefined",
        )
    values = _resampled(statistics, num_tracks, seed=seed)
    values = values[:, ~np.isnan(values).any(axis=0)]
    upper = None if metric == "sdr" else 1.0
    means = np.array([np.nanmean(own) for own in measured])
    fitted = fit_power_laws(sizes, means[None], upper=upper)
    laws = fit_power_laws(sizes, values.T, upper=upper)

    def extrapolated(numbers: Sequence[int]) -> list[dict[str, Any]]:
        centre, spread = fitted.at(numbers)[0], laws.at(numbers)
        ends = [percentiles(column, 0.95) for column in spread.T]
        return [
            {"num_tracks": number, "value": float(value), "low": low, "high": high}
            for number, value, (low, high) in zip(numbers, centre, ends, strict=True)
        ]

    line = np.unique(np.geomspace(sizes[0], MORE[-1] * sizes[-1], 60).round().astype(int)).tolist()
    gains = laws.at([MORE[0] * sizes[-1]])[:, 0] - laws.at([sizes[-1]])[:, 0]
    return {
        "task": task.name,
        "metric": metric,
        "metric_name": task.metric_names[metric],
        "num_test_tracks": num_tracks,
        "points": [
            {
                "num_tracks": size,
                "value": float(mean),
                **dict(zip(("low", "high"), percentiles(column, 0.95), strict=True)),
                "repeats": [None if np.isnan(one) else float(one) for one in own],
            }
            for size, mean, own, column in zip(sizes, means, measured, values, strict=True)
        ],
        "power_law": {
            "limit": float(fitted.limit[0]),
            "gain": float(fitted.gain[0]),
            "exponent": float(fitted.exponent[0]),
            "about": "limit - gain * tracks ** -exponent, by least squares on the means of the sizes; "
            "intervals from fits to bootstrap resamples of test tracks and subsets",
        },
        "extrapolated": extrapolated([factor * sizes[-1] for factor in MORE]),
        "gain_of_twice_as_many": {
            "value": float(fitted.at([MORE[0] * sizes[-1]])[0, 0] - fitted.at([sizes[-1]])[0, 0]),
            **dict(zip(("low", "high"), percentiles(gains, 0.95), strict=True)),
        },
        "curve": extrapolated(line),
    }


def _resampled(
    statistics: Sequence[Sequence[Statistic]], num_tracks: int, *, seed: int
) -> NDArray[np.float64]:
    """Return the metric of each size in each resample of test tracks and subsets, (sizes, resamples)."""
    generator = np.random.default_rng([seed, 1])
    parts = []
    for counts in resample_counts(num_tracks, seed=seed, num_resamples=NUM_RESAMPLES):
        of_sizes = []
        for own in statistics:
            values = np.stack([one(counts) for one in own])  # (repeats, resamples)
            drawn = generator.integers(len(own), size=values.shape)
            of_sizes.append(np.take_along_axis(values, drawn, axis=0).mean(axis=0))
        parts.append(np.stack(of_sizes))
    return np.concatenate(parts, axis=1)


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write curve.json, curve.md and curve.png."""
    write_json(folder / "curve.json", content)
    text = render_markdown(content)
    write_atomically(folder / "curve.md", lambda unfinished: unfinished.write_text(text, "utf-8"))
    gain = content["gain_of_twice_as_many"]
    plot_learning_curve(
        content["points"],
        content["curve"],
        folder / "curve.png",
        metric=content["metric_name"],
        subtitle=f"Twice as many tracks: {gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
    )


def render_markdown(content: Mapping[str, Any]) -> str:
    """Return the table of a curve, and what more tracks would bring.

    Args:
        content: Content of curve.json.
    """
    law, gain = content["power_law"], content["gain_of_twice_as_many"]
    rows = [
        f"| {one['num_tracks']:,} | {one['value']:.3f} | {one['low']:.3f} to {one['high']:.3f} | {kind} |"
        for kind, own in (("measured", content["points"]), ("power law", content["extrapolated"]))
        for one in own
    ]
    return "\n".join(
        [
            f"| training tracks | {content['metric_name']} | 95 % interval | |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Twice as many tracks: {gain['value']:+.3f}, from {gain['low']:+.3f} to {gain['high']:+.3f}. "
            f"Power law: {law['limit']:.3f} - {law['gain']:.3g} * tracks ** -{law['exponent']:.2f}. "
            f"Test tracks: {content['num_test_tracks']:,}.",
            "",
        ]
    )
