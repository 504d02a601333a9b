"""Log of a run: metrics.jsonl, trackers, progress bar, and advice for slow data loading."""

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import Progress as ProgressBar

from m2v_finetune.files import json_number
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.run_progress import Progress
from m2v_finetune.training.step_timer import StepTimer

logger = logging.getLogger(__name__)


class RunLog:
    """Log of a run, written by the main process.

    Args:
        accelerator: Trackers and processes.
        folder: Run folder.
        timer: Time of the steps.
        num_epochs: Epochs of the run.
        num_workers: Number of processes that read audio.
        reads_audio: Whether the steps read audio, so that advice on it helps.
        is_compiled: Whether the first step compiles layers.

    Attributes:
        losses: Losses of this process since the last line, one a step.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        folder: RunFolder,
        timer: StepTimer,
        num_epochs: int,
        num_workers: int,
        reads_audio: bool,
        is_compiled: bool,
    ) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.timer = timer
        self.num_epochs = num_epochs
        self.num_workers = num_workers
        self._advises_on_wait = reads_audio
        self._reports_compilation = is_compiled
        self._undefined: set[str] = set()
        self._bar: ProgressBar | None = None
        self.losses: list[torch.Tensor] = []

    def start_bar(self, bar: ProgressBar, *, total_steps: int) -> None:
        """Show the steps of the run in a progress bar."""
        self._bar = bar
        self._bar_task = bar.add_task("Training", total=total_steps)

    def update_bar(self, step: int, description: str | None = None) -> None:
        """Move the progress bar to a step."""
        assert self._bar is not None
        self._bar.update(self._bar_task, completed=step, description=description)

    def log_step(
        self,
        progress: Progress,
        *,
        gradient_norm: float,
        metrics: Mapping[str, torch.Tensor],
        learning_rates: Mapping[str, float],
    ) -> dict[str, float]:
        """Write the means since the last line.

        Args:
            progress: Progress after the step.
            gradient_norm: Norm of the last step.
            metrics: Further means of this process, scalars.
            learning_rates: Learning rate of each group of parameters.

        Returns:
            ``metrics``, as means over the processes.
        """
        losses, self.losses = self.losses, []
        none = torch.tensor(math.nan, device=self.accelerator.device)  # all steps were skipped
        mean = torch.stack(losses).mean() if losses else none
        # One read from the device for all values.
        means = self.accelerator.reduce(torch.stack([mean, *metrics.values()]), reduction="mean")
        loss, *others = means.tolist()
        all_metrics = dict(zip(metrics, others, strict=True))
        values = {"loss": loss, "gradient_norm": gradient_norm, **all_metrics}
        line = {k: json_number(v) for k, v in values.items()}
        skipped = {"num_skipped_steps": progress.num_skipped_steps}
        # For trackers alone: metrics.jsonl of equal runs are equal, and their times are not.
        wait = {"time/waiting_for_data": self.timer.take_line().share}
        self._write(
            progress,
            {**line, **skipped, "learning_rates": learning_rates},
            tracked={**values, **skipped, **wait},
        )
        epoch = f"Epoch {progress.epoch + 1} of {self.num_epochs}, loss {loss:.4f}"
        self.update_bar(progress.step, epoch)
        return all_metrics

    def warn_skipped(self, progress: Progress, gradient_norm: float) -> None:
        """Warn of a step that changed no weight."""
        scaler = self.accelerator.scaler
        logger.warning(
            "Step %d changed no weight: its gradient norm is %s%s. Skipped so far: %d.",
            progress.step,
            gradient_norm,
            "" if scaler is None else f", and the loss is now scaled by {scaler.get_scale():g}",
            progress.num_skipped_steps,
        )

    def log_epoch(
        self,
        progress: Progress,
        values: Mapping[str, float],
        *,
        metric_names: Mapping[str, str],
        is_best: bool,
    ) -> None:
        """Write the metrics of the validation split.

        Args:
            progress: Progress after the epoch.
            values: Metrics of the validation split.
            metric_names: Human-readable names of the metrics.
            is_best: Whether the epoch is the best so far by a metric.
        """
        self._write(
            progress,
            {"validation": {k: json_number(v) for k, v in values.items()}},
            tracked={f"validation/{k}": v for k, v in values.items()},
        )
        wait = self.timer.take_epoch()
        logger.info(
            "Epoch %d of %d: validation %s%s; waited for data in %.0f %% of the steps' time",
            progress.epoch,
            self.num_epochs,
            ", ".join(f"{metric_names[name]} {v:.4f}" for name, v in values.items()),
            ", the best so far" if is_best else "",
            100 * wait.share,
        )
        if self._advises_on_wait and self.timer.run.is_significant:
            self._advise_on_data_wait()

    def report_compilation(self) -> None:
        """Log once the time of the first steps, which includes the compilation of layers."""
        if self._reports_compilation and len(self.timer.first_seconds) == 2:
            self._reports_compilation = False
            logger.info(
                "The first step took %.1f s, compiling the layers included; the second took %.2f s.",
                *self.timer.first_seconds,
            )

    def warn_undefined(
        self, values: Mapping[str, float], *, selection: str | None, metric_names: Mapping[str, str]
    ) -> None:
        """Warn once of each metric that the validation tracks do not define."""
        undefined = {name for name, value in values.items() if math.isnan(value)}
        new, self._undefined = undefined - self._undefined, undefined
        if selection in new:
            assert selection is not None
            logger.warning(
                "%s is not defined for the validation tracks, so no epoch is the best: the last one is used. "
                "Give the validation split more tracks.",
                metric_names[selection],
            )
        for name in sorted(new - {selection}):
            message = "%s is not defined for the validation tracks, so it is left out."
            logger.warning(message, metric_names[name])

    def _advise_on_data_wait(self) -> None:
        self._advises_on_wait = False
        logger.warning(
            "The steps wait for audio. Possible remedies: decode the set once by `m2v data convert SOURCE`; "
            "raise data.num_workers, now %d, where cores are free (this machine has %s); if the backbone or "
            "its lower layers are frozen, cache their output by cache.use.",
            self.num_workers,
            os.cpu_count(),
        )

    def _write(
        self, progress: Progress, line: Mapping[str, Any], *, tracked: Mapping[str, float]
    ) -> None:
        self.accelerator.log(dict(tracked), step=progress.step)
        if self.accelerator.is_main_process:
            # The epoch that the steps belong to: `progress.epoch` epochs are complete.
            epoch = progress.epoch + (progress.step_in_epoch > 0)
            self.folder.log({"step": progress.step, "epoch": epoch, **line})
