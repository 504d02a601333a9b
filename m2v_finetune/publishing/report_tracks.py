"""Test tracks for a report: those with the largest error, and the most confident wrong predictions."""

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.publishing.text import shown_number
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clip_prediction import WindowPrediction
from m2v_finetune.tasks.clips import EvaluatedClip, stack_evaluated
from m2v_finetune.training.track_results import TrackResult

TRACK_FOLDER = "track-{}"
"""Folder below ``plots/`` with the picture of a track of lowest metric, by its number from 1."""
NUM_TIMELINES = 3
"""Number of such tracks."""
NUM_SHOWN = 12
"""Number of tracks in each list."""
NUM_LABELS = 4
"""Number of predicted labels of a track."""
LEAST_PROBABILITY = 1e-7
"""Lower limit of a probability in a logarithm, that of float32 near 1."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Window of a time line.

    Attributes:
        share: Its share of the track up to the next window, in percent.
        text: Its label, or its numbers.
        about: Its times and scores.
        is_right: Whether the track has the label; None for numbers.
    """

    share: float
    text: str
    about: str
    is_right: bool | None


@dataclass(frozen=True, kw_only=True)
class ShownTrack:
    """Row of a list of tracks, as text.

    Attributes:
        id: Id of the track.
        audio: Address of its audio file relative to the report; None if there is no such file.
        seconds: Its duration.
        target: Annotated labels or numbers.
        prediction: Predicted ones.
        error: Number by which the list is ordered.
        timeline: Windows of the track; empty for tracks of one window.
        picture: File with a picture of annotation and prediction along the track, or None.
    """

    id: str
    audio: str | None
    seconds: float
    target: str
    prediction: str
    error: str
    timeline: Sequence[Part] = ()
    picture: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TrackList:
    """List of tracks with its title, its explanation, and the name of its last column."""

    title: str
    about: str
    error_name: str
    rows: Sequence[ShownTrack]


def track_lists(task: Task, results: Sequence[TrackResult], folder: Path) -> list[TrackList]:
    """Return the lists of tracks of a task.

    Classes and tags are ordered by cross-entropy, numbers by their squared error in units of the test
    tracks' variance, all others by the selection metric.

    Args:
        task: Task of the run.
        results: Result of each test track, at least one.
        folder: Folder of the report, the base of links to audio.
    """
    if not isinstance(results[0].evaluated, EvaluatedClip):
        return [_by_metric(task, results, folder)]
    targets, scores = stack_evaluated([one.evaluated for one in results])
    labels: Sequence[str] = task.labels  # type: ignore[attr-defined]
    if targets.ndim == 1:
        return _of_classes(labels, targets.astype(int), scores, results, folder)
    if np.isin(targets, (0, 1)).all() and (scores >= 0).all() and (scores <= 1).all():
        return _of_tags(labels, targets == 1, scores, results, folder)
    return [_of_numbers(labels, targets, scores, results, folder)]


def lowest(task: Task, evaluated: Sequence[Any]) -> list[int]:
    """Return the numbers of the tracks of lowest selection metric, the lowest first."""
    values = [task.compute_metrics([one])[task.selection_metric] for one in evaluated]
    return [int(i) for i in np.argsort(values, kind="stable") if not np.isnan(values[i])][
        :NUM_SHOWN
    ]


def audio_link(path: Path, folder: Path) -> str | None:
    """Return the address of a file relative to a folder, for HTML; None if there is no such file.

    Relative links find the music wherever both are moved together, and no music is copied into a file that
    people send to others.
    """
    if not path.is_file():
        return None
    relative = Path(os.path.relpath(path.absolute(), folder.resolve()))
    return "/".join(quote(os.fsencode(part), safe="") for part in relative.parts)


def _of_classes(
    labels: Sequence[str],
    targets: NDArray[np.intp],
    scores: NDArray[np.float32],
    results: Sequence[TrackResult],
    folder: Path,
) -> list[TrackList]:
    of_target = scores[np.arange(len(targets)), targets]
    is_wrong = scores.argmax(axis=1) != targets
    confidence = scores.max(axis=1)

    def row(number: int, error: float) -> ShownTrack:
        return _shown(
            results[number],
            folder,
            target=labels[targets[number]],
            prediction=_top(labels, scores[number]),
            error=error,
            own={labels[targets[number]]},
        )

    worst = np.argsort(of_target, kind="stable")[:NUM_SHOWN]
    wrong = [i for i in np.argsort(-confidence, kind="stable") if is_wrong[i]][:NUM_SHOWN]
    return [
        TrackList(
            title="Worst tracks",
            about="Tracks whose own class has the lowest probability.",
            error_name="Probability of the class",
            rows=[row(i, of_target[i]) for i in worst],
        ),
        TrackList(
            title="Most confident wrong predictions",
            about=f"{is_wrong.sum():,} of {len(targets):,} test tracks have a wrong class; of these, the "
            "ones of highest probability. Labels may be wrong here: listen.",
            error_name="Probability of the wrong class",
            rows=[row(i, confidence[i]) for i in wrong],
        ),
    ]


def _of_tags(
    labels: Sequence[str],
    targets: NDArray[np.bool_],
    scores: NDArray[np.float32],
    results: Sequence[TrackResult],
    folder: Path,
) -> list[TrackList]:
    right = np.where(targets, scores, 1 - scores)
    losses = -np.log(np.maximum(right, LEAST_PROBABILITY)).mean(axis=1)

    def row(number: int, prediction: str, error: float) -> ShownTrack:
        own = [label for label, has in zip(labels, targets[number], strict=True) if has]
        return _shown(
            results[number],
            folder,
            target=", ".join(own) or "none",
            prediction=prediction,
            error=error,
            own=set(own),
        )

    worst = np.argsort(-losses, kind="stable")[:NUM_SHOWN]
    pairs = np.argsort(right, axis=None, kind="stable")[:NUM_SHOWN]
    wrong = [
        row(i, f"{labels[j]}: {'missed' if targets[i, j] else 'not annotated'}", scores[i, j])
        for i, j in zip(*np.unravel_index(pairs, right.shape), strict=True)
        if right[i, j] < 0.5
    ]
    return [
        TrackList(
            title="Worst tracks",
            about="Tracks with the largest mean binary cross-entropy over the labels.",
            error_name="Cross-entropy",
            rows=[row(i, _top(labels, scores[i]), losses[i]) for i in worst],
        ),
        TrackList(
            title="Most confident wrong predictions",
            about="Pairs of track and label whose probability is farthest from the annotation. "
            "Annotations may be wrong or missing here: listen.",
            error_name="Probability of the label",
            rows=wrong,
        ),
    ]


def _of_numbers(
    names: Sequence[str],
    targets: NDArray[np.float32],
    scores: NDArray[np.float32],
    results: Sequence[TrackResult],
    folder: Path,
) -> TrackList:
    variances = targets.var(axis=0)
    errors = ((targets - scores) ** 2 / np.where(variances > 0, variances, 1)).mean(axis=1)

    def listed(numbers: NDArray[np.float32]) -> str:
        return ", ".join(f"{n} {v:.3g}" for n, v in zip(names, numbers, strict=True))

    return TrackList(
        title="Worst tracks",
        about="Tracks with the largest squared error, in units of the test tracks' variance.",
        error_name="Squared error",
        rows=[
            _shown(
                results[i],
                folder,
                target=listed(targets[i]),
                prediction=listed(scores[i]),
                error=errors[i],
            )
            for i in np.argsort(-errors, kind="stable")[:NUM_SHOWN]
        ],
    )


def _by_metric(task: Task, results: Sequence[TrackResult], folder: Path) -> TrackList:
    metric = task.selection_metric
    worst = lowest(task, [one.evaluated for one in results])

    def others(evaluated: Any) -> str:
        row: Mapping[str, Any] = task.prediction_row(evaluated)
        shown = [(task.metric_names.get(k, k), v) for k, v in row.items() if k != metric]
        return ", ".join(f"{name} {shown_number(v)}" for name, v in shown if isinstance(v, float))

    name = task.metric_names[metric]
    return TrackList(
        title="Worst tracks",
        about=f"Tracks of lowest {name}.",
        error_name=name,
        rows=[
            _shown(
                results[i],
                folder,
                target="",
                prediction=others(results[i].evaluated),
                error=task.compute_metrics([results[i].evaluated])[metric],
                picture=_picture(folder, n),
            )
            for n, i in enumerate(worst, start=1)
        ],
    )


def _picture(folder: Path, number: int) -> Path | None:
    """Return the picture of a track of `lowest`, if one was drawn."""
    drawn = (folder / "plots" / TRACK_FOLDER.format(number)).glob("*.png")
    return next(iter(sorted(drawn)), None)


def _shown(
    result: TrackResult,
    folder: Path,
    *,
    target: str,
    prediction: str,
    error: float,
    own: AbstractSet[str] | None = None,
    picture: Path | None = None,
) -> ShownTrack:
    windows = result.evaluated.timeline if isinstance(result.evaluated, EvaluatedClip) else ()
    return ShownTrack(
        id=result.id,
        audio=audio_link(result.path, folder),
        seconds=result.seconds,
        target=target,
        prediction=prediction,
        error=f"{error:.3f}",
        timeline=_parts(windows, own),
        picture=picture,
    )


def _parts(windows: Sequence[WindowPrediction], own: AbstractSet[str] | None) -> list[Part]:
    """Return the parts of a time line; ``own`` are the labels of the track, None for numbers."""
    if not windows:
        return []
    starts = [one.start_seconds for one in windows] + [windows[-1].end_seconds]
    parts = []
    for one, (start, end) in zip(windows, pairwise(starts), strict=True):
        listed = ", ".join(f"{label} {score:.2f}" for label, score in one.scores.items())
        parts.append(
            Part(
                share=100 * (end - start) / starts[-1],
                text=listed if own is None else next(iter(one.scores)),
                about=f"{one.start_seconds:.1f} to {one.end_seconds:.1f} s: {listed}",
                is_right=None if own is None else own >= one.scores.keys(),
            )
        )
    return parts


def _top(labels: Sequence[str], scores: NDArray[np.float32]) -> str:
    best = np.argsort(-scores, kind="stable")[:NUM_LABELS]
    return ", ".join(f"{labels[i]} {scores[i]:.2f}" for i in best)
