"""PretrainingModel: student, prediction head and teacher."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from m2v_finetune.backbones import Backbone, init_backbone, load_backbone
from m2v_finetune.config import InitialBackboneConfig, ObjectiveConfig, TuningConfig
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.pretraining.teacher import Teacher, ema_decay
from m2v_finetune.tuning import apply_tuning

TARGET_VARIANCE, PREDICTION_VARIANCE = "target_variance", "prediction_variance"
STEP_METRICS = (TARGET_VARIANCE, PREDICTION_VARIANCE)


def start_backbone(config: InitialBackboneConfig) -> Backbone:
    """Load the checkpoint that pre-training starts from, or draw random weights for an architecture.

    Raises:
        UserError: The backbone cannot be loaded.
    """
    if config.source is not None:
        return load_backbone(config.source, revision=config.revision, spec_augment=True)
    assert config.architecture is not None  # settings require one of them
    return init_backbone(config.architecture, licence=config.licence or "")


class PretrainingModel(nn.Module):
    """Model for self-supervised pre-training of a backbone.

    Source: data2vec (arXiv 2202.03555) and Music2Vec (arXiv 2212.02508).

    Attributes:
        backbone: Student, the result of a run.
        head: Prediction of the teacher's targets from the student's last hidden state.
        teacher: Teacher, which computes the targets.
        config: Settings of masks, targets and the teacher's decay.
        window_samples: Length of a window in samples.
        tuning: Trainable parameters: all, or all but the conv encoder.
        micro_batcher: Micro-batches for passes without gradients.
    """

    metric_names: ClassVar = {
        "loss": "loss",
        TARGET_VARIANCE: "variance of targets",
        PREDICTION_VARIANCE: "variance of predictions",
    }

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
        super().__init__()
        self.window_samples = round(window_seconds * backbone.sample_rate)
        if config.num_target_layers > backbone.num_layers:
            raise UserError(
                f"pretrain.num_target_layers is {config.num_target_layers}, but {backbone.source} has "
                f"{backbone.num_layers} transformer layers. Set it to at most that.",
                code="num-target-layers-out-of-range",
            )
        num_frames = backbone.num_frames(self.window_samples)
        if num_frames <= config.mask_span_frames:
            raise UserError(
                f"A window of {window_seconds:g} s has {num_frames} frames, and spans of "
                f"{config.mask_span_frames} are masked. Set data.window_seconds to at least "
                f"{float((config.mask_span_frames + 2) / backbone.frame_rate):.2g}, or "
                "pretrain.mask_span_frames to less.",
                code="window-too-short",
            )
        self.config = config
        self.tuning = TuningConfig(method="full", train_conv_encoder=config.train_conv_encoder)
        apply_tuning(backbone, self.tuning)
        self.backbone = backbone
        self.head = nn.Linear(backbone.hidden_size, backbone.hidden_size)
        self.teacher = Teacher(
            backbone,
            num_target_layers=config.num_target_layers,
            averages=config.teacher_averages,
        )
        self.micro_batcher = MicroBatcher()
        # A parameter, so that it is in checkpoints.
        self._sums = nn.Parameter(torch.zeros(len(STEP_METRICS) + 1), requires_grad=False)
        self._of_batches: list[Tensor] = []  # variances, of the current step

    def forward(self, waveforms: Tensor, masks: Tensor) -> Tensor:
        """Return predictions and targets of all frames, (2, batch, frames, hidden_size).

        Args:
            waveforms: Samples as read, (batch, samples).
            masks: Masks of the student's input, (batch, frames).
        """
        input_values = self.backbone.prepare(waveforms)
        features = self.backbone.encode(input_values)
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

    def loss(self, outputs: Tensor, masks: Tensor) -> Tensor:
        """Return the mean squared error at masked frames; each window counts the same.

        So the division of a total batch has no effect, though windows differ in numbers of masked frames.

        Args:
            outputs: Output of `forward`, in float32.
            masks: Masks, (batch, frames).
        """
        if self.training:
            found = variances_of_windows(outputs.detach(), masks).mean(dim=1).flip(0)
            self._of_batches.append(found)
        return window_losses(outputs, masks).mean()

    def window_metrics(self, outputs: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values of `metric_names` for each window of a batch, (batch,) each."""
        of_predictions, of_targets = variances_of_windows(outputs, masks)
        return window_losses(outputs, masks), of_targets, of_predictions

    def start_step(self) -> None:
        """Discard the variances of a step that was aborted or skipped."""
        self._of_batches = []

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
        # Steps have equal weight, whatever their number of micro-batches.
        found = torch.stack(self._of_batches).mean(dim=0)
        self._sums.add_(torch.cat([found, found.new_ones(1)]))

    def pop_metrics(self) -> dict[str, Tensor]:
        """Return the mean variances of the steps since the last call, and reset them."""
        means = self._sums[:-1] / self._sums[-1]
        self._sums.zero_()
        return dict(zip(STEP_METRICS, means, strict=True))

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Raise `UserError` if the representations have collapsed to the same vector for all frames.

        Args:
            metrics: Mean variances, by name.
            num_updates: Number of optimizer steps of the student.

        Raises:
            UserError: A variance is below its floor, and enough steps are done.
        """
        collapsed = self.below_floors(metrics)
        if collapsed and num_updates > self.config.watch_after_steps:
            raise UserError(
                f"The representations have collapsed after {num_updates} steps: over the time of a "
                f"window, {collapsed}. Start again with a lower optimizer.learning_rate, a longer "
                "optimizer.warmup_ratio, or a higher pretrain.ema_start.",
                code="pretraining-collapsed",
            )

    def below_floors(self, metrics: Mapping[str, float]) -> str:
        """Return a text of the variances below their floors; empty if there are none."""
        floors = {
            TARGET_VARIANCE: self.config.min_target_variance,
            PREDICTION_VARIANCE: self.config.min_prediction_variance,
        }
        return ", ".join(
            f"{self.metric_names[name]} {metrics[name]:.3g} (at least {floor:g})"
            for name, floor in floors.items()
            if not metrics[name] >= floor
        )

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return all tensors that a run changes, with those of the teacher, by name."""
        return dict(self.state_dict())


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
