"""Metrics of one class a track: accuracy and macro F1, with intervals, and the confusion matrix.

Macro F1 is the mean over the classes that have a track in the references. A class without one has
no recall, and its F1 would be 0 or undefined however good the model; tracks that are put into it
still count against their true classes. This is `f1_score(..., average="macro", labels=classes in
the references)` of scikit-learn, whose default averages over the predicted classes as well.
"""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from m2v_finetune.metrics.in_memory import INDEX, InMemoryMetric, metric_info
from m2v_finetune.metrics.intervals import Statistic, mean_of_tracks, ratio
from m2v_finetune.metrics.reports import none_if_nan, with_interval

_INPUTS_DESCRIPTION = """
Args:
    predictions: For each track the index of the predicted class.
    references: For each track the index of the true class.
"""


class Accuracy(InMemoryMetric):
    """Share of the tracks whose predicted class is the true one.

    `compute(predictions=classes, references=classes)`, or `add_batch` several times and
    `compute()`, gives `{"accuracy": float}`.

    Source: `sklearn.metrics.accuracy_score`.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
        {'accuracy': 0.75}
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "Share of the tracks whose predicted class is the true one.",
            inputs_description=_INPUTS_DESCRIPTION,
            feature=INDEX,
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(InMemoryMetric):
    """Mean of the F1 of the classes that have a track in the references.

    `compute(predictions=classes, references=classes)`, or `add_batch` several times and
    `compute()`, gives `{"macro_f1": float}`. A class that is never predicted has an F1 of 0.

    Source: `sklearn.metrics.f1_score` with `average="macro"` and `labels` the classes that occur in
    the references.

    Example:
        >>> MacroF1().compute(predictions=[0, 1, 1, 3], references=[0, 0, 1, 1])["macro_f1"]
        0.5833333333333333
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "Mean of the F1 of the classes that have a track in the references.",
            inputs_description=_INPUTS_DESCRIPTION,
            feature=INDEX,
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        classes = np.unique(references)
        value = f1_score(
            references, predictions, labels=classes, average="macro", zero_division=0.0
        )
        return {"macro_f1": float(value)}


def check_classes_and_scores(
    references: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Check the classes and the scores of tracks and turn them into arrays.

    Args:
        references: (tracks,) integer indices of the true classes.
        scores: (tracks, classes), finite; the higher, the likelier. Probabilities and logits do.

    Returns:
        The references as (tracks,) integers and the scores as (tracks, classes) float64.

    Raises:
        ValueError: The shapes do not fit each other, there is no track, a reference is not the
            index of a class, or a score is not finite.
    """
    classes = np.asarray(references)
    score_array = np.asarray(scores, dtype=np.float64)
    if classes.ndim != 1 or score_array.ndim != 2 or len(classes) != len(score_array):
        raise ValueError(
            f"References of shape {classes.shape} and scores of shape {score_array.shape}: "
            "they must be (tracks,) and (tracks, classes)."
        )
    if score_array.size == 0:
        raise ValueError(
            f"Scores of shape {score_array.shape}: a metric needs a track and a class."
        )
    num_classes = score_array.shape[1]
    if classes.dtype.kind not in "iu":
        raise ValueError(f"References of type {classes.dtype}: they must be indices of classes.")
    bad_tracks = np.flatnonzero((classes < 0) | (classes >= num_classes))
    if bad_tracks.size > 0:
        raise ValueError(
            f"The reference of track {bad_tracks[0]} is {classes[bad_tracks[0]]} "
            f"({bad_tracks.size} such values in all): with {num_classes} columns of scores it must "
            f"be between 0 and {num_classes - 1}."
        )
    if not np.isfinite(score_array).all():
        track, label = np.argwhere(~np.isfinite(score_array))[0]
        raise ValueError(
            f"The score of track {track}, class {label} is {score_array[track, label]}: a score is "
            "a finite number; check for a diverged model or a corrupt track."
        )
    return classes.astype(np.intp), score_array


def multiclass_report(
    references: ArrayLike, scores: ArrayLike, labels: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Report accuracy and macro F1 of tracks, with intervals, for each class, and the confusion matrix.

    The predicted class of a track is the one with the highest score, the first of them in a tie.

    Args:
        references: (tracks,) integer indices of the true classes.
        scores: (tracks, classes), finite; the higher, the likelier.
        labels: Names of the classes, each once, in the order of the columns.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values, None for an undefined value::

            {
                "metrics": {
                    "accuracy": {"value": 0.74, "low": 0.69, "high": 0.79},
                    "macro_f1": {"value": 0.73, "low": 0.68, "high": 0.78},
                },
                "per_label": {
                    "blues": {"recall": 0.8, "precision": 0.7, "f1": 0.75, "num_positive": 31},
                    ...
                },
                "confusion": [[number of tracks, ...], ...],  # rows true classes, columns predictions
                "labels_left_out": [names of the classes without a track in the references],
            }

        `low` and `high` are a 95 % bootstrap interval over tracks. Macro F1 is the mean of the
        `f1` of the classes that are not left out, in each resample of those that were drawn.
        `recall` and `f1` are None where the references have no such track, `precision` where no
        track was put into the class.

    Raises:
        ValueError: The labels do not fit the columns or repeat a name, or the references and scores
            are not as `check_classes_and_scores` wants them.
    """
    classes, score_array = check_classes_and_scores(references, scores)
    num_classes = score_array.shape[1]
    if len(labels) != num_classes:
        raise ValueError(
            f"{len(labels)} labels for {num_classes} columns of scores: name every column, in order."
        )
    repeated = sorted({label for label in labels if list(labels).count(label) > 1})
    if repeated:
        raise ValueError(f"Labels named more than once: {', '.join(repeated)}. Name each once.")

    predictions = score_array.argmax(axis=1)
    confusion = confusion_matrix(classes, predictions, labels=np.arange(num_classes))
    hits, num_positive = confusion.diagonal(), confusion.sum(axis=1)
    num_predicted = confusion.sum(axis=0)
    per_label = {
        label: {
            "recall": none_if_nan(recall),
            "precision": none_if_nan(precision),
            "f1": none_if_nan(f1),
            "num_positive": int(number),
        }
        for label, recall, precision, f1, number in zip(
            labels,
            ratio(hits, num_positive),
            ratio(hits, num_predicted),
            _f1(hits, num_positive, num_predicted),
            num_positive,
            strict=True,
        )
    }
    return {
        "metrics": {
            name: with_interval(statistic, len(classes), seed=seed)
            for name, statistic in multiclass_statistics(classes, score_array).items()
        },
        "per_label": per_label,
        "confusion": confusion.tolist(),
        "labels_left_out": [label for label in labels if per_label[label]["num_positive"] == 0],
    }


def multiclass_statistics(references: ArrayLike, scores: ArrayLike) -> dict[str, Statistic]:
    """Return accuracy and macro F1 as statistics of counts of draws.

    Args:
        references: (tracks,) integer indices of the true classes.
        scores: (tracks, classes), finite; the higher, the likelier.

    Raises:
        ValueError: They are not as `check_classes_and_scores` wants them.
    """
    classes, score_array = check_classes_and_scores(references, scores)
    predictions = score_array.argmax(axis=1)
    return {
        "accuracy": mean_of_tracks(predictions == classes),
        "macro_f1": macro_f1(classes, predictions, score_array.shape[1]),
    }


def class_f1(references: ArrayLike, scores: ArrayLike, number: int) -> Statistic:
    """Return the F1 of one class as a statistic; nan in a resample without a track of the class.

    Args:
        references: (tracks,) integer indices of the true classes.
        scores: (tracks, classes), finite; the higher, the likelier.
        number: Index of the class.
    """
    classes, score_array = check_classes_and_scores(references, scores)
    is_true, is_predicted = classes == number, score_array.argmax(axis=1) == number

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        return _f1(counts @ (is_true & is_predicted), counts @ is_true, counts @ is_predicted)

    return statistic


def macro_f1(
    references: NDArray[np.intp], predictions: NDArray[np.intp], num_classes: int
) -> Statistic:
    """Macro F1 over tracks, for bootstrap intervals.

    Args:
        references: (tracks,) indices of the true classes.
        predictions: (tracks,) indices of the predicted classes.
        num_classes: Number of classes.

    Returns:
        The statistic; a class of which a resample draws no track is left out of its mean.
    """
    identity = np.eye(num_classes)
    is_true, is_predicted = identity[references], identity[predictions]

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        num_drawn = counts @ is_true
        f1 = _f1(counts @ (is_true * is_predicted), num_drawn, counts @ is_predicted)
        return ratio(np.nansum(f1, axis=1), np.count_nonzero(num_drawn, axis=1))

    return statistic


def _f1(hits: ArrayLike, num_positive: ArrayLike, num_predicted: ArrayLike) -> NDArray[np.float64]:
    """F1 from counts of one shape, nan where nothing is positive."""
    positive = np.asarray(num_positive)
    f1 = ratio(2 * np.asarray(hits), positive + np.asarray(num_predicted))
    return np.where(positive > 0, f1, np.nan)
