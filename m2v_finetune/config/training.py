"""Settings of a run: optimizer, training, folder and publishing."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from m2v_finetune.config.ranges import at_least, in_range, parse_bytes, positive
from m2v_finetune.errors import UserError

OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"]
OnNonfinite = Literal["skip", "stop"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What changes the weights, its rates and their course: linear warm-up, then a cosine to zero.

    Args:
        name: ``adamw``; ``adamw_8bit`` keeps its two moments in 8 bits and ``paged_adamw_8bit`` lets them
            move to the machine's memory where the card's is full (both by bitsandbytes, on NVIDIA
            cards); ``adafactor`` keeps sums of rows and columns of the second moment, and no first.
        learning_rate: Peak rate of head and layer weights; by the tuning method if not given.
        backbone_learning_rate: Peak rate of the backbone's trained weights; by the tuning method if not
            given.
        layer_decay: Each transformer layer's rate is that of the layer above times this.
        weight_decay: Decoupled weight decay of matrices; vectors (biases, norms, layer weights) get none.
        warmup_ratio: Share of all steps in which the rate rises from zero.
        max_grad_norm: Gradients are scaled down to this total norm.
    """

    name: OptimizerName = "adamw"
    learning_rate: float | None = None
    backbone_learning_rate: float | None = None
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("learning_rate", "backbone_learning_rate"):
            value = getattr(self, name)
            if value is not None:
                positive(f"optimizer.{name}", value)
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserError(
                f"optimizer.layer_decay is {self.layer_decay}; it must be above 0 and at most 1.",
                code="settings-range",
            )
        if not 0.0 <= self.weight_decay < math.inf:
            raise UserError(
                f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0.",
                code="settings-range",
            )
        in_range("optimizer.warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        positive("optimizer.max_grad_norm", self.max_grad_norm)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and in which portions.

    Args:
        epochs: Passes over the training tracks.
        per_device_batch_size: Windows that one device sees at once.
        gradient_accumulation_steps: Batches whose gradients make one optimiser step; the total batch is
            per_device_batch_size x this x the number of processes.
        eval_batch_size: Windows at once when tracks are judged.
        mixed_precision: ``auto`` takes bf16 where the card computes in it, fp16 with loss scaling on
            older cards, and no mixed precision on CPU.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them: of
            each transformer layer, and of the conv encoder where it learns.
        compile: Compile the transformer layers by torch.compile: slower for the first steps, faster
            afterwards. Dropout then draws other numbers; all else is the same to rounding.
        early_stopping_patience: End after this many epochs without a better validation metric, from the
            first one on. If not given: 5, but no run ends before half of its epochs are over.
        on_nonfinite: What follows a step whose loss or gradients are not finite, so that it changes no
            weight: ``skip`` counts it and goes on (but not after 20 in a row); ``stop`` saves a checkpoint
            and ends.
        log_every_steps: Optimiser steps between two lines of metrics.jsonl.
        trackers: Trackers of Accelerate by name beside TensorBoard, such as ``wandb``.
    """

    epochs: int = 20
    per_device_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    eval_batch_size: int = 16
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    gradient_checkpointing: bool = True
    compile: bool = False
    early_stopping_patience: int | None = None
    on_nonfinite: OnNonfinite = "skip"
    log_every_steps: int = 10
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in (
            "epochs",
            "per_device_batch_size",
            "gradient_accumulation_steps",
            "eval_batch_size",
            "log_every_steps",
        ):
            at_least(f"training.{name}", getattr(self, name), 1)
        if self.early_stopping_patience is not None:
            at_least("training.early_stopping_patience", self.early_stopping_patience, 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run goes and how it repeats.

    Args:
        output_dir: The run folder, new or empty; ``runs/<task>-<date>-<time>`` if not given.
        seed: Seed of weights, windows, order, augmentation and intervals.
        resume: ``auto`` goes on from the last checkpoint in output_dir, if there is one; ``never``
            refuses a folder that is not empty.
        memory: What each device has, such as ``11GB``, ``10GiB`` or ``8e9`` (GB are decimal, GiB binary):
            the total batch is divided so that the planned peak fits, with more accumulation of smaller
            batches. If not given, batches are as the settings say.
        checkpoint_every_steps: Optimiser steps between two checkpoints within an epoch; there is one at
            the end of each epoch too. So many steps are lost at most where a run dies.
        keep_checkpoints: How many stay on the disk; the older ones serve where the last one is damaged.
    """

    output_dir: str | None = None
    seed: int = 0
    resume: Literal["never", "auto"] = "never"
    memory: str | None = None
    checkpoint_every_steps: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.seed < 2**32:
            raise UserError(
                f"run.seed is {self.seed}; it must be from 0 to {2**32 - 1}.", code="settings-range"
            )
        if self.memory is not None:
            parse_bytes("run.memory", self.memory)
        at_least("run.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        at_least("run.keep_checkpoints", self.keep_checkpoints, 1)


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """What goes to the Hugging Face Hub, if anything does.

    Args:
        repo_id: Repository to push the model to, such as ``me/my-tagger``; nothing is pushed if not
            given.
        private: Create the repository as a private one.
        weights: ``trained`` saves only what was trained and names the backbone it belongs to; ``all``
            saves the whole network, with what was added merged into its weights where it can be; ``auto``
            is ``trained`` where anyone can get the backbone by its name and it was not fully trained, else
            ``all``.
    """

    repo_id: str | None = None
    private: bool = False
    weights: Literal["auto", "trained", "all"] = "auto"

    def __post_init__(self) -> None:
        """Check the form of the repository's name."""
        if self.repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id):
            raise UserError(
                f"publish.repo_id is '{self.repo_id}'; it has the form user/name, such as me/my-tagger.",
                code="settings-range",
            )
