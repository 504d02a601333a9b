"""Power law of a learning curve: a metric against the number of training tracks.

Source: Hestness et al., Deep Learning Scaling is Predictable, Empirically, arXiv 1712.00409: error falls with
a power of the number of examples, down to what cannot be learned.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

EXPONENTS = np.geomspace(0.05, 2.0, 80)
"""Exponents that are tried; published ones are from 0.07 to 0.5."""


@dataclass(frozen=True, kw_only=True)
class PowerLaws:
    """Curves ``limit - gain * n ** -exponent``, one for each resample.

    Attributes:
        limit: Metric with any number of tracks, (resamples,).
        gain: Part that labels bring, (resamples,), at least 0.
        exponent: Rate of the gain, (resamples,).
    """

    limit: Array
    gain: Array
    exponent: Array

    def at(self, num_tracks: ArrayLike) -> Array:
        """Return the metric at numbers of tracks, (resamples, numbers)."""
        numbers = np.asarray(num_tracks, dtype=np.float64)
        powers = numbers[None] ** -self.exponent[:, None]
        return np.asarray(self.limit[:, None] - self.gain[:, None] * powers)


def fit_power_laws(num_tracks: ArrayLike, values: ArrayLike, *, upper: float | None) -> PowerLaws:
    """Fit a power law to each curve by least squares.

    Limit and gain are solved exactly for each of `EXPONENTS`, and the exponent with the least error is taken.

    Args:
        num_tracks: (sizes,) numbers of training tracks, at least 3 different ones.
        values: (resamples, sizes) values of a metric whose higher values are better.
        upper: Highest value of the metric; None if it has none.

    Raises:
        ValueError: There are fewer than 3 sizes.

    >>> laws = fit_power_laws([10, 20, 40, 80], [0.9 - np.array([10, 20, 40, 80]) ** -0.5], upper=1)
    >>> laws.at([160]).round(2).tolist()
    [[0.82]]
    """
    sizes = np.asarray(num_tracks, dtype=np.float64)
    curves = np.asarray(values, dtype=np.float64)
    if len(set(sizes.tolist())) < 3:
        raise ValueError(f"num_tracks is {sizes.tolist()}; a power law needs at least 3 sizes.")
    powers = sizes[None] ** -EXPONENTS[:, None]  # (exponents, sizes)
    centred = powers - powers.mean(axis=1, keepdims=True)
    means = curves.mean(axis=1)
    slopes = -(curves @ centred.T) / (centred**2).sum(axis=1)  # (resamples, exponents)
    gains = np.maximum(slopes, 0.0)
    limits = means[:, None] + gains * powers.mean(axis=1)
    if upper is not None:
        # At the bound of the limit, the gain alone is left.
        bounded = np.maximum(((upper - curves) @ powers.T) / (powers**2).sum(axis=1), 0.0)
        is_above = limits > upper
        gains = np.where(is_above, bounded, gains)
        limits = np.where(is_above, upper, limits)
    predicted = limits[..., None] - gains[..., None] * powers
    best = ((predicted - curves[:, None]) ** 2).sum(axis=-1).argmin(axis=1)
    rows = np.arange(len(curves))
    return PowerLaws(limit=limits[rows, best], gain=gains[rows, best], exponent=EXPONENTS[best])
