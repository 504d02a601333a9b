"""Progress of a run: its steps, its best epoch, its end and its result."""

import math
from dataclasses import dataclass, field

from m2v_finetune.config import TrainingConfig

DEFAULT_PATIENCE = 5
"""Epochs without a better validation metric; see `TrainingConfig.early_stopping_patience`."""


@dataclass(kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        epoch: Number of complete epochs with validation; also the index, from 0, of the current epoch.
        step_in_epoch: Number of optimizer steps of the current epoch.
        step: Number of optimizer steps of the run.
        best_values: Validation metrics of the best epoch so far; empty before the first.
        best_epoch: Number of the best epoch, from 1.
        epochs_without_improvement: Number of epochs since the best one.
        num_skipped_steps: Number of steps that updated no weight, as their gradients were not finite.
        skipped_in_a_row: Number of skipped steps since the last update.
        bad_tracks: Reasons for tracks skipped since the start, by split and id.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_values: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    epochs_without_improvement: int = 0
    num_skipped_steps: int = 0
    skipped_in_a_row: int = 0
    bad_tracks: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def num_updates(self) -> int:
        """Number of steps that changed the weights."""
        return self.step - self.num_skipped_steps

    def count_step(self, *, is_skipped: bool) -> None:
        """Count a step of the current epoch.

        Args:
            is_skipped: Whether it changed no weight. All processes skip the same steps: gradients are summed
                over them before the norm is computed.
        """
        self.step += 1
        self.step_in_epoch += 1
        self.num_skipped_steps += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0

    def end_epoch(self, values: dict[str, float], *, selection_metric: str | None) -> bool:
        """Count an epoch; return whether it is the best so far.

        Args:
            values: Its validation metrics.
            selection_metric: Name of the one that selects the best epoch; None selects the last.
        """
        self.epoch += 1
        self.step_in_epoch = 0
        is_best = True
        if selection_metric is not None:
            best = self.best_values.get(selection_metric, math.nan)
            # An undefined metric (one class only) is kept until there is a defined one.
            is_best = math.isnan(best) or values[selection_metric] > best
        if is_best:
            self.best_values, self.best_epoch = values, self.epoch
        self.epochs_without_improvement = 0 if is_best else self.epochs_without_improvement + 1
        return is_best

    def is_finished(self, training: TrainingConfig) -> bool:
        """Return whether training ends, by the settings, which may have changed on resume."""
        patience, first_epoch = training.early_stopping_patience, 0
        if patience is None:
            patience, first_epoch = DEFAULT_PATIENCE, math.ceil(training.epochs / 2)
        is_patience_over = self.epochs_without_improvement >= patience
        return self.epoch >= training.epochs or (is_patience_over and self.epoch >= first_epoch)

    def result(self, *, seconds: float) -> "FitResult":
        """Return the result of training that lasted ``seconds``, after at least one epoch."""
        assert self.best_epoch is not None
        return FitResult(
            best_epoch=self.best_epoch,
            best_values=self.best_values,
            num_epochs=self.epoch,
            num_steps=self.step,
            num_skipped_steps=self.num_skipped_steps,
            seconds=seconds,
        )


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """Result of training.

    Attributes:
        best_epoch: Epoch whose weights the model has now, from 1.
        best_values: Its metrics of the validation tracks; nan if one was never defined.
        num_epochs: Epochs of training.
        num_steps: Optimizer steps.
        num_skipped_steps: Steps among them whose gradients were not finite, so that no weight changed.
        seconds: Duration, including earlier processes of the run until their last checkpoint.
        solved_by: ``logistic`` or ``ridge`` for a head that was solved; its epochs are penalties.
        penalty: L2 penalty of such a head.
    """

    best_epoch: int
    best_values: dict[str, float]
    num_epochs: int
    num_steps: int
    num_skipped_steps: int
    seconds: float = field(compare=False)
    solved_by: str | None = None
    penalty: float | None = None
