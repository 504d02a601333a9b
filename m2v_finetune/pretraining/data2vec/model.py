"""Data2vecModel: student, prediction head and teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from m2v_finetune.backbones import Backbone
from m2v_finetune.config import ObjectiveConfig
from m2v_finetune.errors import UserError
from m2v_finetune.pretraining.data2vec.teacher import Teacher, ema_decay
from m2v_finetune.pretraining.model import PretrainingModel

TARGET_VARIANCE, PREDICTION_VARIANCE = "target_variance", "prediction_variance"


class Data2vecModel(PretrainingModel):
    """Student and teacher of music2vec's objective.

    Source: data2vec (arXiv 2202.03555) and Music2Vec (arXiv 2212.02508).

    Attributes:
        head: Prediction of the teacher's targets from the student's last hidden state.
        teacher: Teacher, which computes the targets.
        config: Settings of masks, targets and the teacher's decay.
    """

    def __init__(
        self, backbone: Backbone, config: ObjectiveConfig, *, window_seconds: float
    ) -> None:
        """Add head and teacher to a backbone.

        Args:
            backbone: Student with its mask embedding (loaded with ``spec_augment``).
            config: Settings of masks, targets and the teacher's decay.
            window_seconds: Length of a window.

        Raises:
            UserError: The backbone has fewer layers than ``num_target_layers``, or a window is too short.
        """
        if config.num_target_layers > backbone.num_layers:
            raise UserError(
                f"pretrain.num_target_layers is {config.num_target_layers}, but {backbone.source} has "
                f"{backbone.num_layers} transformer layers. Set it to at most that.",
                code="num-target-layers-out-of-range",
            )
        super().__init__(
            backbone,
            window_seconds=window_seconds,
            section="pretrain",
            span_frames=config.mask_span_frames,
            train_conv_encoder=config.train_conv_encoder,
            watch_after_steps=config.watch_after_steps,
            watched={
                TARGET_VARIANCE: "variance of targets",
                PREDICTION_VARIANCE: "variance of predictions",
            },
        )
        self.config = config
        self.head = nn.Linear(backbone.hidden_size, backbone.hidden_size)
        self.teacher = Teacher(
            backbone,
            num_target_layers=config.num_target_layers,
            averages=config.teacher_averages,
        )

    def batch_shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of a waveform, its mask, and the mask again, the target."""
        mask = ((self.num_frames,), torch.bool)
        return [((self.window_samples,), torch.float32), mask, mask]

    def describe(self) -> dict[str, str]:
        """Return rows of the run summary about masks and teacher."""
        config = self.config
        shared = "all averaged" if config.teacher_averages == "all" else "convolutions shared"
        return {
            "masks": f"spans of {config.mask_span_frames} frames, probability "
            f"{config.mask_probability:g}",
            "teacher": f"mean of {config.num_target_layers} layers; decay {config.ema_start:g} to "
            f"{config.ema_end:g} in {config.ema_ramp_steps} steps; {shared}",
        }

    def forward(self, waveforms: Tensor, masks: Tensor) -> Tensor:
        """Return predictions and targets of all frames, (2, batch, frames, hidden_size).

        Args:
            waveforms: Samples as read, (batch, samples).
            masks: Masks of the student's input, (batch, frames).
        """
        input_values = self.backbone.prepare(waveforms)
        features = self.backbone.encode(input_values)
        self.watch_conv(features)
        with torch.no_grad():
            if self.teacher.shares_conv_encoder:
                features_for_teacher = features.detach()
            else:
                features_for_teacher = self.teacher.backbone.encode(input_values)
            targets = self.teacher.targets(features_for_teacher)
        state = self.backbone.project(features)
        vector = self.backbone.mask_vector.to(state.dtype)
        masked = torch.where(masks.unsqueeze(-1), vector, state)
        *_, last = self.backbone.iterate_layers(masked)
        return torch.stack([self.head(last).float(), targets])

    def window_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of each window at its masked frames, (batch,)."""
        return window_losses(outputs, targets)

    def watched(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the variances of targets and predictions in each window, (batch, 2)."""
        return variances_of_windows(outputs, targets).flip(0).transpose(0, 1)

    def end_step(self, num_updates: int) -> None:
        """Update the teacher after an optimizer step of the student, and add the step's variances.

        Args:
            num_updates: Number of earlier updates of the teacher.
        """
        decay = ema_decay(
            num_updates,
            start=self.config.ema_start,
            end=self.config.ema_end,
            ramp_steps=self.config.ema_ramp_steps,
        )
        self.teacher.ema_update(self.backbone, decay)
        super().end_step(num_updates)

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Stop if the representations have collapsed to the same vector for all frames.

        A low rank of the conv encoder's output is a warning.

        Args:
            metrics: Mean variances and statistics of conv features, by name.
            num_updates: Number of optimizer steps of the student.

        Raises:
            UserError: A variance is below its floor, and enough steps are done.
        """
        if num_updates <= self.config.watch_after_steps:
            return
        collapsed = self.below_floors(metrics, [TARGET_VARIANCE, PREDICTION_VARIANCE])
        if collapsed:
            raise UserError(
                f"The representations have collapsed after {num_updates} steps: over the time of a "
                f"window, {collapsed}. Start again with a lower optimizer.learning_rate, a longer "
                "optimizer.warmup_ratio, or a higher pretrain.ema_start.",
                code="pretraining-collapsed",
            )
        self.warn_below_floors(metrics, num_updates=num_updates)

    def floors(self) -> dict[str, float]:
        """Return the lowest values of variances and of the rank of conv features."""
        return {
            TARGET_VARIANCE: self.config.min_target_variance,
            PREDICTION_VARIANCE: self.config.min_prediction_variance,
            **super().floors(),
        }


def window_losses(outputs: Tensor, masks: Tensor) -> Tensor:
    """Return the mean squared error of each window at its masked frames, (batch,).

    Args:
        outputs: Predictions and targets, (2, batch, frames, hidden_size).
        masks: (batch, frames), true at least once in each window.
    """
    predictions, targets = outputs.unbind()
    errors = (predictions - targets).square().mean(dim=-1)
    return (errors * masks).sum(dim=1) / masks.sum(dim=1)


def variances_of_windows(outputs: Tensor, masks: Tensor) -> Tensor:
    """Return the variance over the masked frames of each window, of predictions and targets, (2, batch).

    It is the mean over dimensions. Arguments are those of `window_losses`.
    """
    weights = (masks / masks.sum(dim=1, keepdim=True)).unsqueeze(-1)
    means = (outputs * weights).sum(dim=2, keepdim=True)
    return ((outputs - means).square() * weights).sum(dim=2).mean(dim=-1)
