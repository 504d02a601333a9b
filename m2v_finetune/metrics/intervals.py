"""Percentile bootstrap intervals over tracks of any statistic that can be written with weights.

One resample draws as many tracks as there are, with replacement. A statistic is a function of how
often each track was drawn, for many resamples together, so that an interval of a mean, a median or a
macro F1 is a few matrix products.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.int32]], NDArray[np.float64]]
"""From (resamples, tracks) counts of draws to (resamples,) values, nan where undefined.

Counts of one each give the value of the tracks themselves.
"""

_CHUNK_WEIGHTS = 2**18
"""Weights (resamples x tracks) in memory together: 1 MiB, so that they stay in the CPU cache."""


def bootstrap_interval(
    statistic: Statistic,
    num_tracks: int,
    *,
    seed: int = 0,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic over tracks.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 5.3.

    Args:
        statistic: Statistic of counts of draws, for example `mean_of_tracks(values)`.
        num_tracks: Number of tracks, at least 1.
        seed: Seed of the draws. The same seed draws the same tracks for every statistic.
        num_resamples: Number of resamples, at least 1.
        confidence: Share of the resamples between the two ends, in (0, 1).

    Returns:
        The low and the high end. A resample whose value is nan is left out; both ends are nan where
        all are.

    Raises:
        ValueError: `num_tracks`, `num_resamples` or `confidence` is out of range.

    Example:
        >>> bootstrap_interval(mean_of_tracks([0.5, 0.5, 0.5]), 3)
        (0.5, 0.5)
    """
    chunks = resample_counts(num_tracks, seed=seed, num_resamples=num_resamples)
    return percentiles(np.concatenate([statistic(counts) for counts in chunks]), confidence)


def resample_counts(
    num_tracks: int, *, seed: int, num_resamples: int
) -> Iterator[NDArray[np.int32]]:
    """Draw how often each track is in each resample.

    Args:
        num_tracks: Number of tracks, at least 1.
        seed: Seed of the draws.
        num_resamples: How many resamples to draw in all, at least 1.

    Yields:
        (resamples of a chunk, tracks) counts; every row sums to `num_tracks`.

    Raises:
        ValueError: `num_tracks` or `num_resamples` is out of range.
    """
    if num_tracks < 1:
        raise ValueError(f"num_tracks is {num_tracks}; an interval needs at least one track.")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it must be at least 1.")
    rng = np.random.default_rng(seed)
    chunk_size = max(1, _CHUNK_WEIGHTS // num_tracks)
    for start in range(0, num_resamples, chunk_size):
        counts = np.empty((min(chunk_size, num_resamples - start), num_tracks), dtype=np.int32)
        for row in counts:
            row[:] = np.bincount(rng.integers(num_tracks, size=num_tracks), minlength=num_tracks)
        yield counts


def percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Two quantiles that enclose the middle share of the values.

    Args:
        values: (resamples,) values of a statistic; nan ones are left out.
        confidence: Middle share, in (0, 1).

    Returns:
        The low and the high quantile, nan where no value is left.

    Raises:
        ValueError: `confidence` is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1, as in 0.95.")
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def mean_of_tracks(values: ArrayLike, weights: ArrayLike | None = None) -> Statistic:
    """Mean over tracks, weighted if weights are given.

    Args:
        values: (tracks,) values; a nan one is left out, with its weight.
        weights: (tracks,) weights, 0 or more, for example durations in seconds.

    Returns:
        The statistic; nan in a resample whose tracks have no value or no weight.
    """
    value_array = np.asarray(values, dtype=np.float64)
    weight_array = np.ones_like(value_array) if weights is None else np.asarray(weights, float)
    is_defined = ~np.isnan(value_array)
    kept_weights = np.where(is_defined, weight_array, 0.0)
    products = np.where(is_defined, value_array, 0.0) * kept_weights

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        return ratio(counts @ products, counts @ kept_weights)

    return statistic


def median_of_tracks(values: ArrayLike) -> Statistic:
    """Median over tracks, the mean of the two middle ones where their number is even.

    Args:
        values: (tracks,) values; a nan one is left out.

    Returns:
        The statistic; nan in a resample whose tracks have no value.
    """
    value_array = np.asarray(values, dtype=np.float64)
    order = np.argsort(value_array)[: np.count_nonzero(~np.isnan(value_array))]  # nan sort last
    ranked = np.append(value_array[order], np.nan)  # where nothing is drawn, the rank is past all

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        drawn = counts[:, order]
        num_so_far = np.cumsum(drawn, axis=1)
        num_drawn = drawn.sum(axis=1, keepdims=True)
        lower = np.count_nonzero(num_so_far <= (num_drawn - 1) // 2, axis=1)
        upper = np.count_nonzero(num_so_far <= num_drawn // 2, axis=1)
        middle: NDArray[np.float64] = (ranked[lower] + ranked[upper]) / 2
        return middle

    return statistic


def mean_of_statistics(statistics: Sequence[Statistic]) -> Statistic:
    """Mean of several statistics of the same resample; those that are nan in it are left out."""

    def statistic(counts: NDArray[np.int32]) -> NDArray[np.float64]:
        values = np.stack([single(counts) for single in statistics])
        return ratio(np.nansum(values, axis=0), np.count_nonzero(~np.isnan(values), axis=0))

    return statistic


def difference_of(first: Statistic, second: Statistic) -> Statistic:
    """Second minus first statistic of the same resample, for a paired bootstrap."""
    return lambda counts: second(counts) - first(counts)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> NDArray[np.float64]:
    """Divide, nan where the denominator is 0; the two have one shape."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    quotient = np.full(bottom.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient
