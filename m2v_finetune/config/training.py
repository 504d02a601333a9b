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
    """Optimizer and learning-rate schedule: linear warm-up, then a cosine to zero.

    Args:
        name: Optimizer. ``adamw``; ``adamw_8bit`` stores its two moments in 8 bits, and
            ``paged_adamw_8bit`` moves them to host memory if GPU memory is full (both from bitsandbytes,
            on NVIDIA GPUs); ``adafactor`` stores row and column sums of the second moment, and no first.
        learning_rate: Peak learning rate of head and layer weights. Default: by the tuning method.
        backbone_learning_rate: Peak learning rate of the backbone's trainable parameters. Default: by the
            tuning method.
        layer_decay: Factor between the learning rates of a transformer layer and of the layer above it.
        weight_decay: Decoupled weight decay of matrices; vectors (biases, norms, layer weights) have none.
        warmup_ratio: Share of steps in which the learning rate rises from zero.
        max_grad_norm: Largest total norm of the gradients, which are clipped to it.
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
    """Epochs, batches, precision and logging of training.

    Args:
        epochs: Number of passes over the training tracks.
        per_device_batch_size: Batch size of one device, in windows.
        gradient_accumulation_steps: Number of batches for one optimizer step. The total batch size is
            per_device_batch_size x this x the number of processes.
        eval_batch_size: Batch size of evaluation, in windows.
        mixed_precision: Precision of training. ``auto`` selects bf16 if the GPU supports it, fp16 with
            loss scaling on older GPUs, and on a CPU bf16 if it is fast there (AMX, Zen 4 and 5) and the task
            is among those measured (docs/precision.md), else no mixed precision.
        gradient_checkpointing: Whether activations are recomputed in the backward pass to save memory:
            those of each transformer layer, and of the conv encoder if it is trainable.
        compile: Whether torch.compile compiles the transformer layers: slower in the first steps, faster
            after them. Dropout then draws other numbers; other results are the same to rounding.
        early_stopping_patience: Number of epochs without a better validation metric after which training
            ends. Default: 5, but no run ends in the first half of its epochs.
        on_nonfinite: Policy for a step whose loss or gradients are not finite; it updates no weight.
            ``skip`` counts it and continues, up to 20 in a row; ``stop`` saves a checkpoint and ends.
        log_every_steps: Number of optimizer steps between two lines of metrics.jsonl.
        init_from: Model of this program to start from: a folder, such as ``runs/songs/model``, or a Hub id.
            Weights, head and labels are taken over; of another task, the backbone alone. Default: a new head
            on the backbone.
        teacher: Model of the same task whose outputs are learned, in place of labels: a folder or a Hub id.
            Training tracks then need no labels. `m2v distil` sets it, with the teacher's backbone and window.
        temperature: Divisor of the logits of classes, of teacher and student, above 0: higher, and classes
            that the teacher finds unlikely count more. 1 to 4 are usual; tags and numbers have none.
        ema_decay: Decay of an exponential moving average of the trained weights, which is evaluated and saved
            in their place; 0 for none. 0.99 to 0.999 are usual: try them where validation jumps from epoch to
            epoch.
        trackers: Names of trackers of Accelerate beside TensorBoard, such as ``wandb``.
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
    init_from: str | None = None
    teacher: str | None = None
    temperature: float = 2.0
    ema_decay: float = 0.0
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
        positive("training.temperature", self.temperature)
        in_range("training.ema_decay", self.ema_decay, 0.0, 1.0)
        if self.early_stopping_patience is not None:
            at_least("training.early_stopping_patience", self.early_stopping_patience, 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run folder, seed, memory and checkpoints.

    Args:
        output_dir: Run folder, new or empty. Default: ``runs/<task>-<date>-<time>``.
        seed: Seed of weights, windows, order, augmentation and intervals.
        resume: Whether to resume. ``auto`` resumes from the last checkpoint in output_dir, if there is one;
            ``never`` refuses a folder that is not empty.
        memory: Memory of each device, such as ``11GB``, ``10GiB`` or ``8e9`` (GB are decimal, GiB binary).
            The run divides the total batch so that the planned peak fits, with more gradient accumulation
            of smaller batches. Default: batches of the settings.
        checkpoint_every_steps: Number of optimizer steps between two checkpoints within an epoch; each
            epoch also ends with one. A run that dies loses at most this many steps.
        keep_checkpoints: Number of checkpoints on the disk. A run resumes from an older one if the last is
            invalid.
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
    """Upload of the model to the Hugging Face Hub.

    Args:
        repo_id: Repository for the model, such as ``me/my-tagger``. Default: no upload.
        private: Whether a new repository is private.
        weights: Weights in the model folder. ``trained`` saves only trained parameters and the name of the
            backbone; ``all`` saves the complete network, with added parameters merged into its weights if
            possible; ``auto`` is ``trained`` if the backbone is publicly available by its name and was not
            fully trained, else ``all``.
        native: Whether transformers loads the model folder too, without this package, by
            ``pipeline("audio-classification")``. The folder has all weights then. It needs head.kind linear,
            and a task of clips (docs/exporting.md).
    """

    repo_id: str | None = None
    private: bool = False
    weights: Literal["auto", "trained", "all"] = "auto"
    native: bool = False

    def __post_init__(self) -> None:
        """Check the form of the repository's name, and that settings fit together."""
        if self.native and self.weights == "trained":
            raise UserError(
                "publish.native needs all weights, but publish.weights is 'trained'. Set it to auto.",
                code="settings-conflict",
            )
        if self.repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id):
            raise UserError(
                f"publish.repo_id is '{self.repo_id}'; its form is user/name, such as me/my-tagger.",
                code="settings-range",
            )
