"""All settings of a pre-training run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from m2v_finetune.config.data import MusicConfig
from m2v_finetune.config.ranges import at_least, in_range
from m2v_finetune.config.training import OptimizerConfig, PublishConfig, RunConfig, TrainingConfig
from m2v_finetune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What pre-training starts from: a checkpoint, or the architecture of one.

    Args:
        source: One of the names that `m2v backbones` lists, a Hub id, or a local folder: its weights go
            on learning, and what is made has its licence.
        revision: Branch, tag or commit of a Hub id; the default branch if not given.
        architecture: In place of source, a config.json or a folder that holds one: the weights begin at
            random.
        licence: SPDX identifier of what is made from an architecture, such as ``apache-2.0``.
    """

    source: str | None = None
    revision: str | None = None
    architecture: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        """Check what belongs to a start."""
        if self.source is None and self.revision is not None:
            raise UserError(
                f"backbone.revision is '{self.revision}', but nothing is loaded from the Hub.",
                code="settings-conflict",
            )
        if self.source is not None and self.licence is not None:
            raise UserError(
                f"backbone.licence is '{self.licence}', but what is made from {self.source} has its "
                "licence. Remove it.",
                code="settings-conflict",
            )


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The objective: masks, targets, and how the teacher follows.

    Defaults are those of data2vec for audio (arXiv 2202.03555).

    Args:
        mask_probability: Share of a window's frames that the masked spans would cover if none
            overlapped; at 0.65 with spans of 10 about half of the frames are masked.
        mask_span_frames: Length of a masked span.
        num_target_layers: Targets are the mean of the feed-forward outputs of so many of the highest
            layers.
        teacher_averages: ``layers``: the teacher's transformer layers are moving averages, and its conv
            encoder and positional convolutions are the student's own; ``all``: all its weights are
            moving averages.
        train_conv_encoder: Let the conv encoder learn too; without, it stays as it began.
        ema_start: Decay of the moving average at the first step.
        ema_end: Decay from ema_ramp_steps on.
        ema_ramp_steps: Optimiser steps in which the decay rises linearly.
        min_target_variance: The run stops where the variance of targets over the frames of a window, of
            1 for one normalised layer, falls below.
        min_prediction_variance: The same for predictions.
        watch_after_steps: Optimiser steps before the run may stop so.

    Source: data2vec's code (fairseq, examples/data2vec/models/data2vec_audio.py) stops where the deviation,
    the root of the variance, is below 0.1 for targets or 0.01 for predictions, after 5000 steps; the
    floors here are the squares. It takes the deviation over the masked frames of a batch, and here the
    variance is over those of a window, so that music that only differs between windows counts as the same.
    """

    mask_probability: float = 0.65
    mask_span_frames: int = 10
    num_target_layers: int = 8
    teacher_averages: Literal["layers", "all"] = "layers"
    train_conv_encoder: bool = True
    ema_start: float = 0.999
    ema_end: float = 0.9999
    ema_ramp_steps: int = 30_000
    min_target_variance: float = 0.01
    min_prediction_variance: float = 0.0001
    watch_after_steps: int = 1000

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 < self.mask_probability <= 1.0:
            raise UserError(
                f"pretrain.mask_probability is {self.mask_probability}; it must be above 0 and at most 1.",
                code="settings-range",
            )
        at_least("pretrain.mask_span_frames", self.mask_span_frames, 1)
        at_least("pretrain.num_target_layers", self.num_target_layers, 1)
        in_range("pretrain.ema_start", self.ema_start, 0.0, 1.0)
        if not self.ema_start <= self.ema_end <= 1.0:
            raise UserError(
                f"pretrain.ema_end is {self.ema_end}; it must be from pretrain.ema_start "
                f"({self.ema_start}) to 1.",
                code="settings-range",
            )
        at_least("pretrain.ema_ramp_steps", self.ema_ramp_steps, 1)
        at_least("pretrain.watch_after_steps", self.watch_after_steps, 0)
        for name in ("min_target_variance", "min_prediction_variance"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise UserError(
                    f"pretrain.{name} is {value}; it must be at least 0.", code="settings-range"
                )


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """The settings of a pre-training run.

    Args:
        data: The music.
        backbone: What the run starts from.
        pretrain: The objective.
        optimizer: Rates and their course; both rates are 5e-4 if not given.
        training: How long and in which portions; no epoch is called the best, so there is no early
            stopping.
        run: Where the run goes and how it repeats.
        publish: What goes to the Hub: the whole backbone.
    """

    data: MusicConfig
    backbone: StartConfig = field(default_factory=StartConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        """Check that there is one start, and what has no meaning here."""
        if (self.backbone.source is None) == (self.backbone.architecture is None):
            raise UserError(
                f"backbone.source is {self.backbone.source!r} and backbone.architecture is "
                f"{self.backbone.architecture!r}. Give one: a checkpoint to go on from, such as "
                "music2vec-v1, or a config.json to begin at random.",
                code="settings-conflict",
            )
        if self.publish.weights == "trained":
            raise UserError(
                "publish.weights is 'trained', but pre-training changes the whole backbone. Set it to auto.",
                code="settings-conflict",
            )
