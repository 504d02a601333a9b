"""Comparison of two runs on the same test tracks: a paired bootstrap of the difference of each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2v_finetune.errors import UserError
from m2v_finetune.metrics.intervals import Statistic, difference_of
from m2v_finetune.metrics.reports import none_if_nan, with_interval
from m2v_finetune.publishing.report import read_finished_run, render, write_page
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clips import ClipTask, EvaluatedClip
from m2v_finetune.training.track_results import TrackResult


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Metric of two runs on the same tracks.

    Attributes:
        label: Label that the metric is of; None for the metric of all tracks.
        metric: Human-readable name of the metric.
        first: Value of the first run; None if it is not defined.
        second: Value of the second run.
        difference: Second minus first, with ``low`` and ``high`` of the 95 % interval.
    """

    label: str | None
    metric: str
    first: float | None
    second: float | None
    difference: Mapping[str, float | None]

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        low, high = self.difference["low"], self.difference["high"]
        return low is not None and high is not None and (low > 0 or high < 0)


def compare_runs(first_dir: Path, second_dir: Path, *, seed: int = 0) -> list[Difference]:
    """Compare two runs of a task by a paired bootstrap over their test tracks.

    Each resample draws the same tracks for both runs, so what makes a track easy or hard cancels in the
    difference. The interval is the percentile interval, also for average precision: its bias by few
    positives is in both runs and cancels too.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 5.3.

    Args:
        first_dir: Run folder, the reference.
        second_dir: Run folder, compared with it.
        seed: Seed of the bootstrap.

    Returns:
        Differences of the metrics, then those of each label.

    Raises:
        UserError: One is no finished run, or their tasks, labels or test tracks differ.
    """
    (results, task, first), (_, other_task, second) = map(
        read_finished_run, (first_dir, second_dir)
    )
    _require_same_task(task, other_task)
    second = _in_order_of(first, second, (first_dir, second_dir))
    evaluated = [[one.evaluated for one in tracks] for tracks in (first, second)]
    names: Mapping[str, str] = results["metric_names"]

    def differences(
        label: str | None, one: Mapping[str, Statistic], other: Mapping[str, Statistic]
    ) -> list[Difference]:
        return [
            _difference(label, names.get(key, key), one[key], other[key], len(first), seed)
            for key in one
        ]

    rows = differences(None, *map(task.statistics, evaluated))
    of_labels, of_other = map(task.label_statistics, evaluated)
    for label, statistics in of_labels.items():
        rows += differences(label, statistics, of_other[label])
    return rows


def write_comparison(
    path: Path, rows: Sequence[Difference], *, first: str, second: str, num_tracks: int
) -> None:
    """Write a page with the differences.

    Raises:
        UserError: The file exists, or has no folder.
    """
    if path.exists():
        raise UserError(
            f"{path} exists, and nothing is overwritten. Name a new file.", code="output-exists"
        )
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"There is no folder {path.parent} for --output. Create it first.",
            code="output-no-parent",
        )
    write_page(
        path,
        render(
            "comparison.html.jinja",
            first=first,
            second=second,
            num_tracks=num_tracks,
            metrics=[row for row in rows if row.label is None],
            labels=[row for row in rows if row.label is not None],
        ),
    )


def num_test_tracks(run_dir: Path) -> int:
    """Return the number of test tracks of a run."""
    return len(read_finished_run(run_dir)[2])


def _difference(
    label: str | None, metric: str, one: Statistic, other: Statistic, num_tracks: int, seed: int
) -> Difference:
    all_tracks = np.ones((1, num_tracks), dtype=np.int32)
    return Difference(
        label=label,
        metric=metric,
        first=none_if_nan(float(one(all_tracks)[0])),
        second=none_if_nan(float(other(all_tracks)[0])),
        difference=with_interval(difference_of(one, other), num_tracks, seed=seed),
    )


def _require_same_task(task: Task, other: Task) -> None:
    if task.name != other.name:
        raise UserError(
            f"The runs have different tasks, {task.name} and {other.name}. Compare runs of one task.",
            code="runs-not-comparable",
        )
    if isinstance(task, ClipTask) and isinstance(other, ClipTask) and task.labels != other.labels:
        differing = sorted(set(task.labels) ^ set(other.labels)) or ["their order"]
        raise UserError(
            f"The runs have different labels: {', '.join(differing)}. Their metrics are means over different "
            "labels. Train both with the same task.labels.",
            code="runs-not-comparable",
        )


def _in_order_of(
    first: Sequence[TrackResult], second: Sequence[TrackResult], folders: tuple[Path, Path]
) -> list[TrackResult]:
    """Return the second run's tracks in the order of the first's; refuse other tracks or targets."""
    by_id = {one.id: one for one in second}
    only_first = [one.id for one in first if one.id not in by_id]
    only_second = sorted(set(by_id) - {one.id for one in first})
    if only_first or only_second:
        raise UserError(
            f"The test tracks of {folders[0]} and {folders[1]} differ: {len(only_first)} are in the first "
            f"alone, {len(only_second)} in the second alone, such as {(only_first + only_second)[0]}. A "
            "paired comparison needs the same tracks: use the same data, splits and run.seed.",
            code="runs-not-comparable",
        )
    ordered = [by_id[one.id] for one in first]
    changed = [
        one.id
        for one, other in zip(first, ordered, strict=True)
        if one.seconds != other.seconds or _target(one) != _target(other)
    ]
    if changed:
        raise UserError(
            f"{len(changed)} test tracks have another length or other labels in {folders[1]} than in "
            f"{folders[0]}, such as {changed[0]}. Train both on the same data.",
            code="runs-not-comparable",
        )
    return ordered


def _target(result: TrackResult) -> Any:
    is_clip = isinstance(result.evaluated, EvaluatedClip)
    return result.evaluated.target.tolist() if is_clip else None
