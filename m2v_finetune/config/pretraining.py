"""All settings of a pre-training run."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from m2v_finetune.config.data import UnlabelledDataConfig
from m2v_finetune.config.masked_prediction import MaskedPredictionConfig
from m2v_finetune.config.ranges import at_least, in_range
from m2v_finetune.config.training import OptimizerConfig, PublishConfig, RunConfig, TrainingConfig
from m2v_finetune.errors import UserError


@dataclass(frozen=True, kw_only=True)
class InitialBackboneConfig:
    """Initial weights of pre-training: a checkpoint, or random ones for an architecture.

    Args:
        source: Name from `m2v backbones`, Hub id, or local folder. Training continues from its weights, and
            the new backbone has its licence.
        revision: Branch, tag or commit of a Hub id. Default: the default branch.
        architecture: config.json, or a folder with one, in place of source. The initial weights are random.
        licence: SPDX identifier for the new backbone of an architecture, such as ``apache-2.0``.
    """

    source: str | None = None
    revision: str | None = None
    architecture: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        """Check that the settings fit the kind of initial weights."""
        if self.source is None and self.revision is not None:
            raise UserError(
                f"backbone.revision is '{self.revision}', but nothing is loaded from the Hub.",
                code="settings-conflict",
            )
        if self.source is not None and self.licence is not None:
            raise UserError(
                f"backbone.licence is '{self.licence}', but a backbone that continues from {self.source} has "
                "its licence. Remove it.",
                code="settings-conflict",
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Settings of the objective: masks, targets, and the moving average of the teacher.

    Defaults are those of data2vec for audio (arXiv 2202.03555).

    Args:
        mask_probability: Share of a window's frames that the masked spans would cover without overlaps. At
            0.65 with spans of 10, about half of the frames are masked.
        mask_span_frames: Length of a masked span.
        num_target_layers: Number of layers, from the last, whose mean feed-forward output is the target.
        teacher_averages: Weights of the teacher that are moving averages. ``layers``: the transformer
            layers; conv encoder and positional convolutions are shared with the student. ``all``: all
            weights.
        train_conv_encoder: Whether the conv encoder is trainable, not frozen.
        ema_start: Decay of the moving average at the first step.
        ema_end: Decay from ema_ramp_steps on.
        ema_ramp_steps: Number of optimizer steps in which the decay rises linearly.
        min_target_variance: Floor of the variance of targets over the frames of a window (1 for one
            normalised layer). The run stops below it.
        min_prediction_variance: Floor of the variance of predictions. The run stops below it.
        watch_after_steps: Number of optimizer steps before these floors apply.

    Source: data2vec's code (fairseq, examples/data2vec/models/data2vec_audio.py) stops if the standard
    deviation is below 0.1 for targets or 0.01 for predictions, after 5000 steps; the floors here are the
    squares. It measures over the masked frames of a batch. Here the variance is over those of a window, so
    that constant features within each window count as collapsed.
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
    """Settings of a pre-training run.

    Args:
        objective: Objective: ``data2vec``, that of music2vec, with the settings of ``pretrain``; or
            ``masked_prediction``, that of MERT, with those of ``masked_prediction``.
        data: Music.
        backbone: Initial weights.
        pretrain: Settings of the objective data2vec.
        masked_prediction: Settings of the objective masked_prediction.
        optimizer: Optimizer and learning-rate schedule; the default of both peak rates is 5e-4.
        training: Epochs and batches. No epoch is the best, so there is no early stopping.
        run: Run folder, seed and checkpoints.
        publish: Upload of the complete backbone to the Hub.
    """

    objective: Literal["data2vec", "masked_prediction"] = "data2vec"
    data: UnlabelledDataConfig
    backbone: InitialBackboneConfig = field(default_factory=InitialBackboneConfig)
    pretrain: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    masked_prediction: MaskedPredictionConfig = field(default_factory=MaskedPredictionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        """Check that one kind of initial weights is given, and that no setting is meaningless here."""
        if (self.backbone.source is None) == (self.backbone.architecture is None):
            raise UserError(
                f"backbone.source is {self.backbone.source!r} and backbone.architecture is "
                f"{self.backbone.architecture!r}. Give one: a checkpoint to continue from, such "
                "as music2vec-v1, or a config.json for random initial weights.",
                code="settings-conflict",
            )
        is_data2vec = self.objective == "data2vec"
        unused = "masked_prediction" if is_data2vec else "pretrain"
        default = MaskedPredictionConfig() if is_data2vec else ObjectiveConfig()
        changed = [
            f"{unused}.{one.name}"
            for one in fields(default)
            if getattr(getattr(self, unused), one.name) != getattr(default, one.name)
        ]
        if changed:
            raise UserError(
                f"objective is {self.objective}, which does not use {', '.join(changed)}. Remove it, or set "
                f"--objective {'masked_prediction' if is_data2vec else 'data2vec'}.",
                code="settings-conflict",
            )
        has_teacher = self.training.teacher is not None
        if self.training.init_from is not None or has_teacher or self.training.ema_decay > 0:
            raise UserError(
                "training.init_from, training.teacher and training.ema_decay are for models of a task. "
                "Pre-training continues from backbone.source, and data2vec has its own moving average; "
                "remove them.",
                code="settings-conflict",
            )
        if self.publish.native:
            raise UserError(
                "publish.native is for models of a task, but transformers loads every backbone as it is. Set "
                "it to false.",
                code="settings-conflict",
            )
        if self.publish.weights == "trained":
            raise UserError(
                "publish.weights is 'trained', but pre-training trains all of the backbone. Set it to auto.",
                code="settings-conflict",
            )
