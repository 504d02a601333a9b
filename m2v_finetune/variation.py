"""Variation of the outputs of a head between windows, to find heads with constant outputs."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MIN_STD = 0.2
"""Least std of a useful output, in logits or in standard deviations of the targets of a regression.

A logit that differs by s from its mean moves a probability p by s p (1 - p), and so explains s**2 p (1 - p)
of the label's variance: at 0.2 at most 1 %. If it is calibrated, its ROC-AUC is Phi(s / sqrt 2):
0.556 at 0.2. A standardised number explains s**2 of the variance of the true one: 4 % at 0.2. Above that
no claim is made, as noise varies too.
"""
MIN_TRACKS = 10
"""Least number of tracks; fewer may just be similar."""


@dataclass
class OutputVariation:
    """Mean and standard deviation of each output of a head, over all windows and their frames.

    Outputs are those of the head itself: logits, or the standardised numbers of a regression. Stems are
    left out, as the outputs of a mask head are waveforms.

    Attributes:
        num_rows: Number of windows, or frames, so far.
        means: Mean of each output, (outputs,).
        squares: Sums of squared distances from the means, (outputs,).
    """

    num_rows: int = 0
    means: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, outputs: Tensor) -> None:
        """Add outputs (windows, outputs) or (windows, frames, outputs); ignore other shapes."""
        if outputs.ndim > 3:
            return
        rows = outputs.detach().double().cpu().numpy().reshape(-1, outputs.shape[-1])
        means = rows.mean(axis=0)
        self.merge(OutputVariation(len(rows), means, np.square(rows - means).sum(axis=0)))

    def merge(self, other: "OutputVariation") -> None:
        """Add the counts of another one, such as that of another process.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances" (1979).
        """
        if other.num_rows == 0:
            return
        if self.num_rows == 0:
            self.num_rows, self.means, self.squares = other.num_rows, other.means, other.squares
            return
        total = self.num_rows + other.num_rows
        distances = other.means - self.means
        self.squares = (
            self.squares
            + other.squares
            + np.square(distances) * (self.num_rows * other.num_rows / total)
        )
        self.means = self.means + distances * (other.num_rows / total)
        self.num_rows = total

    @property
    def stds(self) -> NDArray[np.float64]:
        """Standard deviation of each output, (outputs,); empty before any outputs were added."""
        stds: NDArray[np.float64] = np.sqrt(self.squares / max(1, self.num_rows))
        return stds


def outputs_hardly_vary(variation: OutputVariation, *, num_tracks: int) -> bool:
    """Return whether the outputs of a head are almost the same for every window of every track.

    Args:
        variation: Variation of the outputs over the tracks.
        num_tracks: Number of tracks.

    Returns:
        True if there are at least `MIN_TRACKS` and no output has a std of `MIN_STD`.
    """
    if num_tracks < MIN_TRACKS or variation.num_rows == 0:
        return False
    return bool(variation.stds.max() < MIN_STD)


def explain_constant_outputs(
    variation: OutputVariation, *, num_tracks: int, is_probe: bool, is_standardized: bool
) -> str:
    """Return a warning about a head whose outputs hardly vary, with the settings that most likely help.

    Args:
        variation: Variation of the outputs over the tracks.
        num_tracks: Number of tracks.
        is_probe: Whether the backbone is frozen.
        is_standardized: Whether the head standardises its input.
    """
    help_most = (
        "head.standardize true" if is_probe and not is_standardized else "more training.epochs"
    )
    return (
        f"The outputs hardly vary over these {num_tracks} tracks: the standard deviation of the one that "
        f"varies most is {variation.stds.max():.2g}, and below {MIN_STD:g} an output hardly "
        f"distinguishes tracks. The head has hardly been trained. Most likely to help: {help_most}, and a "
        "higher optimizer.learning_rate."
    )
