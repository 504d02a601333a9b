"""Metrics of regression: R2, and the root mean squared error in the data's own units."""

from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import r2_score, root_mean_squared_error

from m2v_finetune.metrics.in_memory import ROW, InMemoryMetric, metric_info
from m2v_finetune.metrics.intervals import Statistic, mean_of_statistics, mean_of_tracks, ratio
from m2v_finetune.metrics.reports import with_interval

_INPUTS_DESCRIPTION = """
Args:
    predictions: For each track one finite number a target, in the data's own units.
    references: For each track the true numbers, in the same order of targets.
"""


class R2(InMemoryMetric):
    """Coefficient of determination of each target, and its mean over targets.

    `compute(predictions=values, references=values)`, or `add_batch` several times and `compute()`,
    gives `{"r2": float, "r2_per_target": list[float]}`. A target whose references are all equal has
    no R2: it is nan in the list and left out of the mean.

    Source: `sklearn.metrics.r2_score` with `multioutput="raw_values"`.

    Raises:
        ValueError: From `compute`, where predictions and references are not finite numbers of one
            shape (tracks, targets).

    Example:
        >>> R2().compute(predictions=[[1.0], [2.0], [4.0]], references=[[1.0], [2.0], [3.0]])
        {'r2': 0.5, 'r2_per_target': [0.5]}
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "Coefficient of determination of each target, and its mean.",
            inputs_description=_INPUTS_DESCRIPTION,
            feature=ROW,
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]]
    ) -> dict[str, Any]:
        reference, values = check_targets(references, predictions)
        has_r2 = np.ptp(reference, axis=0) > 0
        per_target = np.full(reference.shape[1], np.nan)
        if has_r2.any():
            per_target[has_r2] = r2_score(
                reference[:, has_r2], values[:, has_r2], multioutput="raw_values"
            )
        mean = float(per_target[has_r2].mean()) if has_r2.any() else float("nan")
        return {"r2": mean, "r2_per_target": per_target.tolist()}


class RootMeanSquaredError(InMemoryMetric):
    """Root mean squared error of each target, in the data's own units.

    `compute(predictions=values, references=values)`, or `add_batch` several times and `compute()`,
    gives `{"rmse_per_target": list[float]}`. There is no mean, as targets may differ in unit.

    Source: `sklearn.metrics.root_mean_squared_error` with `multioutput="raw_values"`.

    Raises:
        ValueError: From `compute`, where predictions and references are not finite numbers of one
            shape (tracks, targets).

    Example:
        >>> RootMeanSquaredError().compute(predictions=[[1.0], [4.0]], references=[[2.0], [3.0]])
        {'rmse_per_target': [1.0]}
    """

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            "Root mean squared error of each target, in the data's own units.",
            inputs_description=_INPUTS_DESCRIPTION,
            feature=ROW,
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]]
    ) -> dict[str, Any]:
        reference, values = check_targets(references, predictions)
        per_target = root_mean_squared_error(reference, values, multioutput="raw_values")
        return {"rmse_per_target": per_target.tolist()}


def check_targets(
    references: ArrayLike, predictions: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Check true and predicted numbers of tracks and turn them into arrays.

    Args:
        references: (tracks, targets), finite.
        predictions: (tracks, targets), finite.

    Returns:
        Both as float64.

    Raises:
        ValueError: They are not finite numbers of one shape with at least one track and one target.
    """
    reference = np.asarray(references, dtype=np.float64)
    values = np.asarray(predictions, dtype=np.float64)
    if reference.ndim != 2 or reference.shape != values.shape or reference.size == 0:
        raise ValueError(
            f"References of shape {reference.shape} and predictions of shape {values.shape}: both must "
            "have one shape, (tracks, targets), with at least one of each."
        )
    for name, array in (("reference", reference), ("prediction", values)):
        if not np.isfinite(array).all():
            track, target = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"The {name} of track {track}, target {target} is {array[track, target]}: it must "
                "be a finite number; look for a missing label or a diverged model."
            )
    return reference, values


def regression_report(
    references: ArrayLike, predictions: ArrayLike, names: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Report R2 and root mean squared error of each target, with intervals.

    Args:
        references: (tracks, targets), finite, in the data's own units.
        predictions: (tracks, targets), finite, in the same units.
        names: Names of the targets, each once, in the order of the columns.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values, None for an undefined value::

            {
                "metrics": {
                    "r2": {"value": 0.67, "low": 0.60, "high": 0.73},  # mean over targets
                    "r2_arousal": {...}, "r2_valence": {...},
                    "rmse_arousal": {...}, "rmse_valence": {...},
                },
            }

        `low` and `high` are a 95 % bootstrap interval over tracks. A target whose references are
        all equal has no R2 and is left out of the mean, in each resample of its own as well.

    Raises:
        ValueError: The names do not fit the columns or repeat one, or the values are not as
            `check_targets` wants them.
    """
    reference, values = check_targets(references, predictions)
    if len(names) != reference.shape[1] or len(set(names)) != len(names):
        raise ValueError(
            f"Names {', '.join(names)} for {reference.shape[1]} columns: name every target, once."
        )
    return {
        "metrics": {
            name: with_interval(statistic, len(reference), seed=seed)
            for name, statistic in regression_statistics(reference, values, names).items()
        }
    }


def regression_statistics(
    references: ArrayLike, predictions: ArrayLike, names: Sequence[str]
) -> dict[str, Statistic]:
    """Return the metrics of `regression_report`, with its arguments, as statistics of counts of draws."""
    reference, values = check_targets(references, predictions)
    r2_of_targets = [_r2(*columns) for columns in zip(reference.T, values.T, strict=True)]
    return {
        "r2": mean_of_statistics(r2_of_targets),
        **{f"r2_{name}": r2 for name, r2 in zip(names, r2_of_targets, strict=True)},
        **{
            f"rmse_{name}": _root_mean_squared_error(*columns)
            for name, *columns in zip(names, reference.T, values.T, strict=True)
        },
    }


def _r2(reference: NDArray[np.float64], values: NDArray[np.float64]) -> Statistic:
    """R2 of one target, (tracks,) each; nan in a resample that draws equal references only."""
    squared_errors = (reference - values) ** 2
    centred = reference - reference.mean()  # the variance below loses no digits to a large mean

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        mean = counts @ centred / counts.sum(axis=1)
        sum_of_squares = counts @ centred**2
        variation = sum_of_squares - counts.sum(axis=1) * mean**2
        variation[variation < 1e-12 * sum_of_squares] = 0.0  # rounding errors of zero
        return 1 - ratio(counts @ squared_errors, variation)

    return statistic


def _root_mean_squared_error(
    reference: NDArray[np.float64], values: NDArray[np.float64]
) -> Statistic:
    """RMSE of one target, (tracks,) each."""
    mean_squared_error = mean_of_tracks((reference - values) ** 2)

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        return np.sqrt(mean_squared_error(counts))

    return statistic
