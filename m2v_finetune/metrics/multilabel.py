"""Metrics of tagging: ROC-AUC and average precision, macro over labels, of tracks.

Both leave out the labels of which the references have one class only. ROC-AUC has no value there,
nor has average precision where nothing is positive; where everything is positive it would be 1
whatever the scores, so it is left out as well, and both macro means are over the same labels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from m2v_finetune.metrics.bootstrap import bootstrap_intervals, check_references_and_scores
from m2v_finetune.metrics.in_memory import ROW, InMemoryMetric, metric_info
from m2v_finetune.metrics.reports import none_if_nan

_INPUTS_DESCRIPTION = """
Args:
    predictions: For each track one finite score a label; the higher, the likelier.
    references: For each track 0 or 1 a label, in the same order of labels.
"""


class MultilabelRocAuc(InMemoryMetric):
    """Area under the ROC curve of each label, and its mean over labels.

    `compute(predictions=scores, references=references)`, or `add_batch` several times and
    `compute()`, gives `{"roc_auc": float, "roc_auc_per_label": list[float]}`. A label with one
    class only is nan in the list and left out of the mean; without any other label the mean is nan.

    Source: `sklearn.metrics.roc_auc_score` with `average="macro"`; the scores go through as
    float64, so the values are equal to the bit.

    Raises:
        ValueError: From `add_batch` or `compute`, where tracks and references differ in number or
            are not as `check_references_and_scores` wants them.

    Example:
        >>> metric = MultilabelRocAuc()
        >>> metric.compute(predictions=[[0.9, 0.1], [0.2, 0.3]], references=[[1, 0], [0, 0]])
        {'roc_auc': 1.0, 'roc_auc_per_label': [1.0, nan]}
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "Area under the ROC curve of each label, and its mean over labels.",
            inputs_description=_INPUTS_DESCRIPTION,
            feature=ROW,
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]]
    ) -> dict[str, Any]:
        return _values_of_labels("roc_auc", roc_auc_score, references, predictions)


class MultilabelAveragePrecision(InMemoryMetric):
    """Average precision of each label, and its mean over labels (mAP).

    `compute(predictions=scores, references=references)`, or `add_batch` several times and
    `compute()`, gives `{"average_precision": float, "average_precision_per_label": list[float]}`.
    A label with one class only is nan in the list and left out of the mean, as in
    `MultilabelRocAuc`; without any other label the mean is nan.

    Source: `sklearn.metrics.average_precision_score` with `average="macro"`; the scores go through
    as float64, so the values are equal to the bit.

    Raises:
        ValueError: From `add_batch` or `compute`, where tracks and references differ in number or
            are not as `check_references_and_scores` wants them.

    Example:
        >>> metric = MultilabelAveragePrecision()
        >>> metric.compute(predictions=[[0.9, 0.1], [0.2, 0.3]], references=[[0, 0], [1, 0]])
        {'average_precision': 0.5, 'average_precision_per_label': [0.5, nan]}
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "Average precision of each label, and its mean over labels.",
            inputs_description=_INPUTS_DESCRIPTION,
            feature=ROW,
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]]
    ) -> dict[str, Any]:
        return _values_of_labels(
            "average_precision", average_precision_score, references, predictions
        )


def multilabel_report(
    references: ArrayLike, scores: ArrayLike, labels: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Report ROC-AUC and average precision of tracks, with intervals and for each label.

    Args:
        references: (tracks, labels) of 0 and 1, the true labels.
        scores: (tracks, labels), finite; the higher, the likelier.
        labels: Names of the labels, each once, in the order of the columns.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values, None for an undefined value::

            {
                "metrics": {
                    "roc_auc": {"value": 0.91, "low": 0.90, "high": 0.92},
                    "average_precision": {"value": 0.39, "low": 0.37, "high": 0.41},
                },
                "per_label": {
                    "guitar": {"roc_auc": 0.88, "average_precision": 0.71, "num_positive": 812},
                    ...
                },
                "labels_left_out": [names of the labels of which there is one class only],
            }

        `value` is the macro mean over labels, `low` and `high` are a 95 % bootstrap interval over
        tracks (`bootstrap_intervals`).

    Raises:
        ValueError: The labels do not fit the columns or repeat a name, or the references and scores
            are not as `check_references_and_scores` wants them.
    """
    reference_array, score_array = check_references_and_scores(references, scores)
    if len(labels) != reference_array.shape[1]:
        raise ValueError(
            f"{len(labels)} labels for {reference_array.shape[1]} columns of references and "
            "scores: name every column, in order."
        )
    repeated = sorted({label for label in labels if list(labels).count(label) > 1})
    if repeated:
        raise ValueError(f"Labels named more than once: {', '.join(repeated)}. Name each once.")

    inputs = {"predictions": score_array, "references": reference_array}
    roc_auc = MultilabelRocAuc().compute(**inputs)
    average_precision = MultilabelAveragePrecision().compute(**inputs)
    intervals = bootstrap_intervals(reference_array, score_array, seed=seed)
    values = {
        "roc_auc": roc_auc["roc_auc"],
        "average_precision": average_precision["average_precision"],
    }
    per_label = {
        label: {
            "roc_auc": none_if_nan(label_roc_auc),
            "average_precision": none_if_nan(label_average_precision),
            "num_positive": int(num_positive),
        }
        for label, label_roc_auc, label_average_precision, num_positive in zip(
            labels,
            roc_auc["roc_auc_per_label"],
            average_precision["average_precision_per_label"],
            reference_array.sum(axis=0),
            strict=True,
        )
    }
    return {
        "metrics": {
            name: {
                "value": none_if_nan(value),
                "low": none_if_nan(intervals[name][0]),
                "high": none_if_nan(intervals[name][1]),
            }
            for name, value in values.items()
        },
        "per_label": per_label,
        "labels_left_out": [label for label in labels if per_label[label]["roc_auc"] is None],
    }


def _values_of_labels(
    name: str,
    score_function: Callable[[NDArray[np.bool_], NDArray[np.float64]], float],
    references: list[list[float]],
    scores: list[list[float]],
) -> dict[str, Any]:
    """Apply a scikit-learn metric to each label that has two classes, and average."""
    reference_array, score_array = check_references_and_scores(references, scores)
    per_label = [
        float(score_function(label_references, label_scores))
        if 0 < label_references.sum() < len(label_references)
        else math.nan
        for label_references, label_scores in zip(reference_array.T, score_array.T, strict=True)
    ]
    defined = [value for value in per_label if not math.isnan(value)]
    macro = float(np.mean(defined)) if defined else math.nan
    return {name: macro, f"{name}_per_label": per_label}
