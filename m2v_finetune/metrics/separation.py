"""Metrics of source separation: SDR as museval defines it, and SI-SDR, from chunks in order.

*SDR* is that of BSS Eval v4 "images" with windows of one second: in each second, all channels
together, the energy of the true stem over the energy of the error, in dB. The distortion filters
that BSS Eval fits divide the error into parts; their sum, and so the SDR, does not depend on them.
A track's value is the median over its seconds, a data set's the median over its tracks.

As in museval, a second counts for no stem if any stem, true or estimated, is silent in it (its
channels sum to 0 at every sample); a last second that is not complete does not count, unless it is
the only one; and a second without any error (infinite SDR) is left out.

*SI-SDR* covers the complete track, its channels one after the other: the energy of the true stem, scaled
to fit the estimate best, over the energy of the residual, in dB. No mean is subtracted.

Source: Stoeter, Liutkus and Ito, The 2018 Signal Separation Evaluation Campaign (2018), and museval
0.4; Le Roux et al., SDR - half-baked or well done? (arXiv 1811.02508).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m2v_finetune.metrics.intervals import Statistic, mean_of_statistics, median_of_tracks
from m2v_finetune.metrics.reports import with_interval

SCORES = ("sdr", "si_sdr")


class SeparationAccumulator:
    """Scores of one track, from chunks of its stems in order.

    Memory grows only by one number for each stem and second. The scores do not depend on the
    division into chunks.

    Example:
        >>> accumulator = SeparationAccumulator(["vocals"], sample_rate_hz=2)
        >>> for _ in range(3):
        ...     accumulator.add([[[1.0, -2.0]]], [[[1.0, -1.0]]])
        >>> {name: round(value, 2) for name, value in accumulator.scores()["vocals"].items()}
        {'sdr': 6.99, 'si_sdr': 9.54}
    """

    def __init__(self, stems: Sequence[str], *, sample_rate_hz: int) -> None:
        """Start with nothing added.

        Args:
            stems: Names of the stems, in the order of the chunks' first axis.
            sample_rate_hz: Samples a second, which is the length of the SDR's windows.
        """
        self._stems = list(stems)
        self._window_samples = sample_rate_hz
        num_stems = len(self._stems)
        # Over the track, (stems,) each: energy of the true stem and of the error, and their product.
        self._true_energy = np.zeros(num_stems)
        self._error_energy = np.zeros(num_stems)
        self._error_dot_true = np.zeros(num_stems)
        self._window_sdrs_db: list[NDArray[np.float64]] = []
        self._start_window()

    def add(self, references: ArrayLike, estimates: ArrayLike) -> None:
        """Add the next samples.

        Args:
            references: (stems, channels, samples) of the true stems, any number of samples.
            estimates: (stems, channels, samples) of the estimated stems.

        Raises:
            ValueError: The two are not of one shape with a row for each stem.
        """
        reference = np.asarray(references, np.float64)
        estimate = np.asarray(estimates, np.float64)
        if (
            reference.ndim != 3
            or reference.shape != estimate.shape
            or len(reference) != len(self._stems)
        ):
            raise ValueError(
                f"References of shape {reference.shape} and estimates of shape {estimate.shape}: both "
                f"must have one shape, (stems, channels, samples), of {len(self._stems)} stems."
            )
        num_samples = reference.shape[-1]
        start = 0
        while start < num_samples:
            stop = min(num_samples, start + self._window_samples - self._samples_in_window)
            self._add_to_window(reference[..., start:stop], estimate[..., start:stop])
            if self._samples_in_window == self._window_samples:
                self._window_sdrs_db.append(self._sdr_of_window())
                self._start_window()
            start = stop

    def window_sdrs_db(self) -> NDArray[np.float64]:
        """SDR in dB of each second so far, (stems, seconds); nan where a second does not count."""
        if self._window_sdrs_db:
            return np.stack(self._window_sdrs_db, axis=1)
        return self._sdr_of_window()[:, np.newaxis]

    def scores(self) -> dict[str, dict[str, float]]:
        """Scores of the track so far.

        Returns:
            For each stem `{"sdr": ..., "si_sdr": ...}` in dB, nan where undefined: for `sdr` if
            no second counts, for `si_sdr` if the true or the estimated stem is silent or the
            estimate is the true stem up to a factor.
        """
        sdr = [
            np.median(values[~np.isnan(values)]) if not np.isnan(values).all() else np.nan
            for values in self.window_sdrs_db()
        ]
        return {
            stem: {"sdr": float(stem_sdr), "si_sdr": float(stem_si_sdr)}
            for stem, stem_sdr, stem_si_sdr in zip(self._stems, sdr, self._si_sdr(), strict=True)
        }

    def _start_window(self) -> None:
        num_stems = len(self._stems)
        self._samples_in_window = 0
        self._window_true_energy = np.zeros(num_stems)
        self._window_error_energy = np.zeros(num_stems)
        self._is_audible = np.zeros((2, num_stems), dtype=bool)  # of true and estimated stems

    def _add_to_window(self, reference: NDArray[np.float64], estimate: NDArray[np.float64]) -> None:
        error = estimate - reference
        true_energy = np.einsum("sct,sct->s", reference, reference)
        error_energy = np.einsum("sct,sct->s", error, error)
        self._true_energy += true_energy
        self._error_energy += error_energy
        self._error_dot_true += np.einsum("sct,sct->s", error, reference)
        self._window_true_energy += true_energy
        self._window_error_energy += error_energy
        self._is_audible |= (np.stack([reference, estimate]).sum(axis=2) != 0).any(axis=2)
        self._samples_in_window += reference.shape[-1]

    def _sdr_of_window(self) -> NDArray[np.float64]:
        if not self._is_audible.all():
            return np.full(len(self._stems), np.nan)
        return _decibels(self._window_true_energy, self._window_error_energy)

    def _si_sdr(self) -> NDArray[np.float64]:
        # With error = estimate - true, the best factor is 1 + <error, true> / |true|^2, and the
        # residual is the error without its part along the true stem. Sums over the error keep the digits
        # that sums over the estimate lose where the two are close.
        along_reference = np.divide(
            self._error_dot_true,
            self._true_energy,
            out=np.full_like(self._true_energy, np.nan),
            where=self._true_energy > 0,
        )
        target_energy = (1 + along_reference) ** 2 * self._true_energy
        rest_energy = self._error_energy - along_reference * self._error_dot_true
        rest_energy[rest_energy < 1e-14 * self._error_energy] = 0.0  # rounding errors of zero
        return _decibels(target_energy, rest_energy)


def separation_report(
    per_track: Sequence[Mapping[str, Mapping[str, float]]], stems: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """Report SDR and SI-SDR of a data set: the median over tracks, with intervals.

    Args:
        per_track: Output of `SeparationAccumulator.scores` for each track.
        stems: Names of the stems.
        seed: Seed of the bootstrap.

    Returns:
        The report as JSON values, None for an undefined value::

            {
                "metrics": {
                    "sdr": {"value": 5.9, "low": 5.6, "high": 6.2},  # mean over stems
                    "sdr_vocals": {...},  # median over tracks; so for each stem
                    "si_sdr": {...}, "si_sdr_vocals": {...},
                },
                "num_tracks": {"sdr_vocals": number of tracks that have the score, ...},
            }

        All in dB; `low` and `high` are a 95 % bootstrap interval over tracks. Tracks without a
        score are left out of the median, stems without one out of the mean.

    Raises:
        ValueError: There is no track.
    """
    num_tracks = {
        f"{score}_{stem}": sum(not np.isnan(track[stem][score]) for track in per_track)
        for score in SCORES
        for stem in stems
    }
    return {
        "metrics": {
            name: with_interval(statistic, len(per_track), seed=seed)
            for name, statistic in separation_statistics(per_track, stems).items()
        },
        "num_tracks": num_tracks,
    }


def separation_statistics(
    per_track: Sequence[Mapping[str, Mapping[str, float]]], stems: Sequence[str]
) -> dict[str, Statistic]:
    """Return the metrics of `separation_report`, with its arguments, as statistics of counts of draws."""
    statistics: dict[str, Statistic] = {}
    for score in SCORES:
        medians = {
            f"{score}_{stem}": median_of_tracks([track[stem][score] for track in per_track])
            for stem in stems
        }
        statistics |= {score: mean_of_statistics(list(medians.values())), **medians}
    return statistics


def _decibels(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64]
) -> NDArray[np.float64]:
    """10 log10 of a ratio of energies, nan where it is not finite."""
    is_finite = (numerator > 0) & (denominator > 0)
    ratio = np.divide(numerator, denominator, out=np.ones_like(numerator), where=is_finite)
    return np.where(is_finite, 10 * np.log10(ratio), np.nan)
