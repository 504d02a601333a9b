"""Calibration of probabilities on validation tracks, their calibration error, and thresholds of labels.

Calibration maps the probabilities of a track, each monotonically, so that their order between tracks and
between classes stays: metrics of rankings and the predicted class do not change.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]

MIN_TRACKS = 10
"""Number of validation tracks below which nothing is fitted."""
MIN_POSITIVES = 5
"""Number of validation tracks with a label, and of those without, below which nothing is fitted to it."""
SCALE_STD, OFFSET_STD = 0.5, 1.0
"""Standard deviations of the normal priors of the logarithm of a scale, and of an offset.

They keep the fit near "no change" where there are few tracks; of hundreds they have no weight."""
NUM_BINS = 15
"""Number of bins of equal width of the calibration error. Source: Guo et al., arXiv 1706.04599."""
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), 1 - 2.0**-24
"""Limits of a probability in a logarithm: the ends of float32."""


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """Calibration of classes: all logarithms of probabilities are divided by one temperature.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 4.2.

    Attributes:
        temperature: Above 1 makes predictions less confident, below 1 more.
    """

    temperature: float

    @classmethod
    def from_dict(cls, content: Any) -> "TemperatureScaling | None":
        """Return what `to_dict` returned, or None for None.

        Raises:
            KeyError, TypeError, ValueError: The content is not valid.
        """
        if content is None:
            return None
        temperature = content["temperature"]
        if not isinstance(temperature, float) or not 0 < temperature < math.inf:
            raise ValueError(f"the temperature of its calibration is {temperature!r}")
        return cls(temperature=temperature)

    def apply(self, probabilities: Array) -> Array:
        """Return calibrated probabilities, (..., classes), float32."""
        logs = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST)) / self.temperature
        powers = np.exp(logs - logs.max(axis=-1, keepdims=True))
        calibrated: Array = (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)
        return calibrated

    def scales(self, num_outputs: int) -> tuple[Matrix, Matrix]:
        """Return the factor and the summand of each logit that have the same effect."""
        return np.full(num_outputs, 1 / self.temperature), np.zeros(num_outputs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"temperature": self.temperature}


@dataclass(frozen=True, kw_only=True)
class PlattScaling:
    """Calibration of tags: the log odds of each label are multiplied by a slope, and shifted.

    Source: Platt, Probabilistic Outputs for Support Vector Machines (1999), for each label.

    Attributes:
        slopes: Factor of each label, above 0; 1 where nothing was fitted.
        intercepts: Summand of each label; 0 where nothing was fitted.
    """

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]

    @classmethod
    def from_dict(cls, content: Any, num_labels: int) -> "PlattScaling | None":
        """Return what `to_dict` returned, or None for None.

        Raises:
            KeyError, TypeError, ValueError: The content is not valid for so many labels.
        """
        if content is None:
            return None
        slopes, intercepts = (tuple(map(float, content[key])) for key in ("slopes", "intercepts"))
        is_finite = all(map(math.isfinite, slopes + intercepts))
        if not len(slopes) == len(intercepts) == num_labels or not is_finite or min(slopes) <= 0:
            raise ValueError("its calibration is not that of its labels")
        return cls(slopes=slopes, intercepts=intercepts)

    def apply(self, probabilities: Array) -> Array:
        """Return calibrated probabilities, (..., labels), float32."""
        shifted = log_odds(probabilities) * np.array(self.slopes) + np.array(self.intercepts)
        calibrated: Array = (1 / (1 + np.exp(-shifted))).astype(np.float32)
        return calibrated

    def scales(self, num_outputs: int) -> tuple[Matrix, Matrix]:
        """Return the factor and the summand of each logit that have the same effect."""
        return np.array(self.slopes), np.array(self.intercepts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"slopes": list(self.slopes), "intercepts": list(self.intercepts)}


Calibration = TemperatureScaling | PlattScaling


def log_odds(probabilities: Array) -> Matrix:
    """Return log(p / (1 - p)), finite for 0 and 1 too."""
    limited = np.clip(probabilities.astype(np.float64), SMALLEST, LARGEST)
    return np.log(limited) - np.log1p(-limited)


def fit_temperature(
    probabilities: Array, targets: NDArray[np.intp], *, scale_std: float = SCALE_STD
) -> TemperatureScaling | None:
    """Return the temperature of largest posterior probability; None of fewer than 10 tracks.

    It minimises the cross-entropy, summed over tracks, plus (log T / scale_std)^2 / 2.

    Args:
        probabilities: Those of the tracks, (tracks, classes).
        targets: Class of each track, (tracks,).
        scale_std: Standard deviation of the prior; infinite for none.
    """
    if len(targets) < MIN_TRACKS:
        return None
    logs = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))

    def objective(point: Matrix) -> float:
        scaled = logs * np.exp(-point[0])
        own = scaled[np.arange(len(targets)), targets]
        return float(
            (np.logaddexp.reduce(scaled, axis=1) - own).sum() + (point[0] / scale_std) ** 2 / 2
        )

    [log_temperature] = _minimum(objective, 1)
    return TemperatureScaling(temperature=float(np.exp(log_temperature)))


def fit_platt(
    probabilities: Array,
    targets: Array,
    *,
    scale_std: float = SCALE_STD,
    offset_std: float = OFFSET_STD,
) -> tuple[PlattScaling, list[int]]:
    """Return slopes and intercepts of largest posterior probability, and the labels left as they are.

    Each label minimises its binary cross-entropy, summed over tracks, plus
    (log slope / scale_std)^2 / 2 + (intercept / offset_std)^2 / 2. Labels with fewer than 5 positive or 5
    negative tracks are left out, and all labels of fewer than 10 tracks.

    Args:
        probabilities: Those of the tracks, (tracks, labels).
        targets: 1 for each label of a track, else 0, (tracks, labels).
        scale_std: Standard deviation of the prior of the logarithm of a slope; infinite for none.
        offset_std: Standard deviation of the prior of an intercept; infinite for none.
    """
    odds = log_odds(probabilities)
    slopes, intercepts = np.ones(targets.shape[1]), np.zeros(targets.shape[1])
    left_out = few_examples(targets)
    for label in set(range(targets.shape[1])).difference(left_out):
        signs = np.where(targets[:, label] > 0, -1.0, 1.0)

        def objective(point: Matrix, odds: Matrix = odds[:, label], signs: Matrix = signs) -> float:
            shifted = odds * np.exp(point[0]) + point[1]
            prior = (point[0] / scale_std) ** 2 / 2 + (point[1] / offset_std) ** 2 / 2
            return float(np.logaddexp(0, signs * shifted).sum() + prior)

        log_slope, intercepts[label] = _minimum(objective, 2)
        slopes[label] = np.exp(log_slope)
    return (
        PlattScaling(slopes=tuple(slopes.tolist()), intercepts=tuple(intercepts.tolist())),
        left_out,
    )


def few_examples(targets: Array) -> list[int]:
    """Return the labels for which there are too few tracks to fit anything, from targets (tracks, labels)."""
    if len(targets) < MIN_TRACKS:
        return list(range(targets.shape[1]))
    positives = (targets > 0).sum(axis=0)
    fewest = np.minimum(positives, len(targets) - positives)
    return np.flatnonzero(fewest < MIN_POSITIVES).tolist()


def _minimum(objective: Callable[[Matrix], float], size: int) -> Matrix:
    """Return the minimum of a smooth function, from 0."""
    from scipy.optimize import minimize

    found: Matrix = minimize(
        objective, np.zeros(size), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10}
    ).x
    return found


def reliability(confidences: Matrix | Array, outcomes: NDArray[Any]) -> list[dict[str, float]]:
    """Return the bins of a reliability picture that have predictions.

    Args:
        confidences: Probabilities, (predictions,).
        outcomes: Whether each is true, (predictions,).

    Returns:
        For each bin ``count``, mean ``confidence``, and ``accuracy``, the share that is true.
    """
    numbers = np.minimum((confidences * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in range(NUM_BINS):
        is_inside = numbers == number
        if is_inside.any():
            bins.append(
                {
                    "count": int(is_inside.sum()),
                    "confidence": float(confidences[is_inside].mean(dtype=np.float64)),
                    "accuracy": float(outcomes[is_inside].mean(dtype=np.float64)),
                }
            )
    return bins


def expected_calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Return the mean distance of confidence and accuracy over predictions, from `reliability`."""
    total = sum(one["count"] for one in bins)
    return sum(one["count"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / total


def fit_thresholds(
    probabilities: Array, targets: Array, *, precision: float | None
) -> tuple[float | None, ...]:
    """Return the probability of each label from which it counts as present.

    Between two tracks a threshold is in the middle of their probabilities. Labels of too few tracks get
    0.5, or the precision: that of calibrated probabilities above it is at least as high.

    Args:
        probabilities: Those of the validation tracks, (tracks, labels), calibrated.
        targets: 1 for each label of a track, else 0, (tracks, labels).
        precision: Least precision, for the lowest threshold that reaches it; the highest F1 if None.

    Returns:
        None for a label that reaches the precision at no threshold.
    """
    few = few_examples(targets)
    fallback = 0.5 if precision is None else precision
    return tuple(
        fallback
        if label in few
        else _threshold(probabilities[:, label].astype(np.float64), targets[:, label], precision)
        for label in range(targets.shape[1])
    )


def saved_thresholds(content: Any, num_labels: int) -> tuple[float | None, ...]:
    """Return the thresholds of a saved model; none for None.

    Raises:
        TypeError, ValueError: The content is not valid for so many labels.
    """
    if content is None:
        return ()
    thresholds = tuple(None if limit is None else float(limit) for limit in content)
    if len(thresholds) != num_labels or any(not 0 <= (t or 0) <= 1 for t in thresholds):
        raise ValueError("its thresholds are not those of its labels")
    return thresholds


def _threshold(probabilities: Matrix, targets: Array, precision: float | None) -> float | None:
    order = np.argsort(-probabilities, kind="stable")
    ranked, is_true = probabilities[order], targets[order] > 0
    is_last = np.append(ranked[1:] < ranked[:-1], True)  # equal probabilities are not separated
    lower = np.append(ranked[1:], 0.0)
    thresholds = ((ranked + lower) / 2)[is_last]
    found = np.cumsum(is_true)[is_last]
    chosen = np.flatnonzero(is_last) + 1
    if precision is None:
        f1 = 2 * found / (chosen + is_true.sum())
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        return float(thresholds[best[np.abs(thresholds[best] - 0.5).argmin()]])
    enough = np.flatnonzero(found / chosen >= precision)
    return float(thresholds[enough[-1]]) if len(enough) else None
