"""Base of the models of both objectives: a backbone, its loss, and what is watched during a run."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from m2v_finetune.backbones import (
    Backbone,
    build_architecture,
    init_backbone,
    load_backbone,
)
from m2v_finetune.config import InitialBackboneConfig, TuningConfig
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.pretraining.watch import (
    CONV_METRICS,
    CONV_RANK,
    MIN_CONV_RANK,
    conv_statistics,
)
from m2v_finetune.tuning import apply_tuning

LOSS = "loss"

logger = logging.getLogger(__name__)


def start_backbone(config: InitialBackboneConfig) -> Backbone:
    """Load the checkpoint that pre-training starts from, or draw random weights for an architecture.

    Raises:
        UserError: The backbone cannot be loaded.
    """
    if config.source is not None:
        return load_backbone(config.source, revision=config.revision, spec_augment=True)
    assert config.architecture is not None  # settings require one of them
    return init_backbone(config.architecture, licence=config.licence or "")


def backbone_without_weights(config: InitialBackboneConfig) -> Backbone:
    """Return the network of `start_backbone`, with random weights and without a download of weights.

    Raises:
        UserError: The architecture cannot be found.
    """
    if config.source is not None:
        return build_architecture(config.source, revision=config.revision, spec_augment=True)
    assert config.architecture is not None
    return init_backbone(config.architecture, licence="")


class PretrainingModel(nn.Module, ABC):
    """Model for self-supervised pre-training of a backbone.

    Attributes:
        backbone: Network to train, the result of a run.
        window_samples: Length of a window in samples.
        tuning: Trainable parameters: all, or all but the conv encoder.
        section: Section of the objective's settings.
        watch_after_steps: Number of steps before a collapse is reported.
        micro_batcher: Micro-batches for passes without gradients.
        metric_names: Human-readable names of the loss and of what is logged beside it.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        window_seconds: float,
        section: str,
        span_frames: int,
        train_conv_encoder: bool,
        watch_after_steps: int,
        watched: Mapping[str, str],
        min_spans: int = 1,
    ) -> None:
        """Make the backbone trainable.

        Args:
            backbone: Network with its mask embedding (loaded with ``spec_augment``).
            window_seconds: Length of a window.
            section: Section of the objective's settings, for messages.
            span_frames: Length of a masked span.
            train_conv_encoder: Whether the conv encoder is trainable.
            watch_after_steps: Number of steps before a collapse is reported.
            watched: Names of the columns of `watched`.
            min_spans: Least number of masked spans in a window.

        Raises:
            UserError: A window is too short for the spans, one after the other.
        """
        super().__init__()
        self.window_samples = round(window_seconds * backbone.sample_rate)
        num_frames = backbone.num_frames(self.window_samples)
        masked_frames = min_spans * span_frames
        if num_frames <= masked_frames:
            count, fewer = (f"{min_spans} ", " or min_mask_spans") if min_spans > 1 else ("", "")
            enough = math.ceil(100 * (masked_frames + 2) / backbone.frame_rate) / 100
            raise UserError(
                f"A window of {window_seconds:g} s has {num_frames} frames, and {count}spans of "
                f"{span_frames} are masked. Set data.window_seconds to at least {enough:g}, or "
                f"{section}.mask_span_frames{fewer} to less.",
                code="window-too-short",
            )
        self.tuning = TuningConfig(method="full", train_conv_encoder=train_conv_encoder)
        apply_tuning(backbone, self.tuning)
        self.backbone = backbone
        self.section = section
        self.watch_after_steps = watch_after_steps
        self.micro_batcher = MicroBatcher()
        self.metric_names = {LOSS: "loss", **watched, **CONV_METRICS}
        # A parameter, so that it is in checkpoints.
        self._sums = nn.Parameter(torch.zeros(len(self.metric_names)), requires_grad=False)
        self._of_batches: list[Tensor] = []  # of the current step
        self._conv = torch.empty(0)  # of the last forward pass
        self._has_warned = False

    @property
    def num_frames(self) -> int:
        """Number of frames of a window."""
        return self.backbone.num_frames(self.window_samples)

    @abstractmethod
    def batch_shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of each tensor of a window: the inputs of `forward`, and the targets."""

    @abstractmethod
    def window_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each window, (batch,)."""

    @abstractmethod
    def watched(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what is logged beside the loss for each window, (batch, values)."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Return rows of the run summary about masks and targets."""

    def watch_conv(self, features: Tensor) -> None:
        """Keep the statistics of the conv encoder's output in this forward pass.

        Args:
            features: (batch, channels, frames).
        """
        self._conv = conv_statistics(features.detach())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of the windows' losses; each window counts the same.

        So the division of a total batch has no effect, though windows differ in numbers of masked frames.

        Args:
            outputs: Output of `forward`, in float32.
            targets: Masks, (batch, frames).
        """
        if self.training:
            found = self.watched(outputs.detach(), targets).mean(dim=0)
            self._of_batches.append(torch.cat([found, self._conv.mean(dim=0)]))
        return self.window_losses(outputs, targets).mean()

    def window_metrics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the values of `metric_names` for each window of the last batch, (batch, values)."""
        losses = self.window_losses(outputs, targets).unsqueeze(1)
        return torch.cat([losses, self.watched(outputs, targets), self._conv], dim=1)

    def start_step(self, number: int) -> None:
        """Discard what was measured in a step that was aborted or skipped.

        Args:
            number: Number of the step, from 1.
        """
        self._of_batches = []

    def end_step(self, num_updates: int) -> None:
        """Add what was measured in an optimizer step.

        Args:
            num_updates: Number of earlier changes of the weights.
        """
        # Steps have equal weight, whatever their number of micro-batches.
        found = torch.stack(self._of_batches).mean(dim=0)
        self._sums.add_(torch.cat([found, found.new_ones(1)]))

    def pop_metrics(self) -> dict[str, Tensor]:
        """Return the means over the steps since the last call, and reset them."""
        means = self._sums[:-1] / self._sums[-1]
        self._sums.zero_()
        return dict(zip(self.step_metrics, means, strict=True))

    @property
    def step_metrics(self) -> Sequence[str]:
        """Names of what `pop_metrics` returns."""
        return [name for name in self.metric_names if name != LOSS]

    @abstractmethod
    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Stop or warn if the run failed.

        Args:
            metrics: Means of `step_metrics`.
            num_updates: Number of changes of the weights.

        Raises:
            UserError: The run failed.
        """

    def floors(self) -> dict[str, float]:
        """Return the lowest values of metrics in a healthy run, by name."""
        return {CONV_RANK: MIN_CONV_RANK}

    def below_floors(self, metrics: Mapping[str, float], names: Sequence[str] | None = None) -> str:
        """Return a text of the metrics below their floors; empty if there are none.

        Args:
            metrics: Values by name.
            names: Metrics to compare; all with a floor if None.
        """
        floors = self.floors()
        return ", ".join(
            f"{self.metric_names[name]} {metrics[name]:.3g} (at least {floors[name]:g})"
            for name in names or floors
            if not metrics[name] >= floors[name]
        )

    def warn_below_floors(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Warn, once, of metrics below their floors."""
        found = self.below_floors(metrics)
        if found and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "After %d steps: %s. The run continues; docs/pretraining.md (Collapse) explains the numbers.",
                num_updates,
                found,
            )

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return all tensors that a run changes, by name."""
        return dict(self.state_dict())
