"""The settings of a run: typed, complete, and the only place where a default is written.

A recipe's settings are one frozen dataclass, `RecipeConfig`, of the sections below plus the section of
its task; `parsing.parse_recipe` reads them.
"""

import math
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from m2v_finetune.errors import UserError

TuningMethod = Literal[
    "probe",
    "lora",
    "dora",
    "ia3",
    "bitfit",
    "layernorm",
    "adapter",
    "ssf",
    "top_layers",
    "full",
]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor"]
BYTES_OF_UNIT = {"": 1, "b": 1, "mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}
OnBadTrack = Literal["stop", "skip"]
OnNonfinite = Literal["skip", "stop"]

WINDOW_SECONDS = 5.0
"""Longest window where ``data.window_seconds`` is not given: the context of MERT (arXiv 2306.00107)."""

LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "lora_targets")
TUNING_SETTINGS: dict[TuningMethod, tuple[str, ...]] = {
    "probe": (),
    "lora": LORA_SETTINGS,
    "dora": LORA_SETTINGS,
    "ia3": (),
    "bitfit": (),
    "layernorm": (),
    "adapter": ("adapter_size",),
    "ssf": (),
    "top_layers": ("num_top_layers",),
    "full": ("train_conv_encoder",),
}
"""What each method of tuning uses of `TuningConfig`, beside its name."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The pre-trained network, and how its layers are combined.

    Args:
        source: One of the names that `m2v backbones` lists, a Hub id, or a local folder.
        revision: Branch, tag or commit of a Hub id; the default branch if not given.
        num_layers: Keep only the first n transformer layers (Ding and Lerch keep 6 of 12); all if not
            given.
        layer_weighting: ``softmax`` learns a convex combination of all hidden states (SUPERB);
            ``conv1d`` learns any linear combination with an offset (music2vec's model card); ``last``
            takes the network's output; a number takes that hidden state (0 is the input of the first
            layer), and the layers above it are not computed.
        spec_augment: Mask spans of frames while training, with the probabilities of the checkpoint.
    """

    source: str = "music2vec-v1"
    revision: str | None = None
    num_layers: int | None = None
    layer_weighting: Literal["softmax", "conv1d", "last"] | int = "softmax"
    spec_augment: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_layers is not None:
            _at_least("backbone.num_layers", self.num_layers, 1)
        if isinstance(self.layer_weighting, int):
            _at_least("backbone.layer_weighting", self.layer_weighting, 0)
            if self.num_layers is not None and self.layer_weighting > self.num_layers:
                raise UserError(
                    f"backbone.layer_weighting takes hidden state {self.layer_weighting}, but "
                    f"backbone.num_layers keeps the states 0 to {self.num_layers}."
                )

    @property
    def layers_in_use(self) -> int | None:
        """Number of transformer layers that are computed; None for all."""
        if isinstance(self.layer_weighting, int):
            return self.layer_weighting
        return self.num_layers


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What reads the weighted hidden states.

    Args:
        pooling: How a window's frames become one vector: ``mean``, ``mean_std`` (mean and standard
            deviation), or ``attention`` (a learned weighted mean).
        kind: ``mlp`` has one hidden layer, as the published probes; ``linear`` has none.
        hidden_size: Width of the hidden layer of ``mlp``.
        dropout: Dropout probability before each linear layer.
        standardize: Bring each number that the layers read to mean 0 and deviation 1 over the training
            windows, as measured in one pass before training: what a frozen backbone says of different
            music often differs little beside its mean.
    """

    pooling: Literal["mean", "mean_std", "attention"] = "mean"
    kind: Literal["mlp", "linear"] = "mlp"
    hidden_size: int = 512
    dropout: float = 0.2
    standardize: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("head.hidden_size", self.hidden_size, 1)
        _in_range("head.dropout", self.dropout, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What of the backbone learns; the other settings belong to some methods only.

    Args:
        method: ``probe`` keeps the backbone frozen; ``lora`` and ``dora`` learn low-rank updates; ``ia3``
            scales of keys, values and feed-forward activations; ``bitfit`` the biases; ``layernorm`` the
            LayerNorms; ``adapter`` small networks behind attention and feed-forward blocks; ``ssf`` scales
            and shifts of all layers' outputs; ``top_layers`` the last transformer layers; ``full`` all
            weights. docs/tuning.md compares them.
        r: Rank of the updates of ``lora`` and ``dora``.
        lora_alpha: Their scale; an update is multiplied by lora_alpha / r.
        lora_dropout: Dropout probability before them.
        lora_targets: Linear layers that get an update: those of ``attention`` (q, k, v, out), of the
            ``feed_forward`` blocks, or ``all`` of them (best in Ding and Lerch, arXiv 2411.19371).
        adapter_size: Width of the bottleneck of ``adapter`` (16 in Ding and Lerch).
        num_top_layers: How many transformer layers ``top_layers`` trains; a quarter of a network's layers
            reached 90 % of the quality of all, on text (Lee et al., arXiv 1911.03090).
        train_conv_encoder: Whether ``full`` trains the convolutional encoder too. If not given, where the
            backbone is small (fewer than 20 million parameters).
    """

    method: TuningMethod = "probe"
    r: int = 2
    lora_alpha: float = 4.0
    lora_dropout: float = 0.0
    lora_targets: Literal["attention", "feed_forward", "all"] = "all"
    adapter_size: int = 16
    num_top_layers: int = 3
    train_conv_encoder: bool | None = None

    def __post_init__(self) -> None:
        """Check ranges, and that the method uses what was set."""
        _at_least("tuning.r", self.r, 1)
        _positive("tuning.lora_alpha", self.lora_alpha)
        _in_range("tuning.lora_dropout", self.lora_dropout, 0.0, 1.0)
        _at_least("tuning.adapter_size", self.adapter_size, 1)
        _at_least("tuning.num_top_layers", self.num_top_layers, 1)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name not in self.used() and value != setting.default:
                users = [name for name, used in TUNING_SETTINGS.items() if setting.name in used]
                raise UserError(
                    f"tuning.{setting.name} is {value}, which tuning.method {self.method} does not use. "
                    f"Remove it, or set tuning.method to {' or '.join(users)}."
                )

    def used(self) -> dict[str, Any]:
        """Return the method and the settings that it uses."""
        return {name: getattr(self, name) for name in ("method", *TUNING_SETTINGS[self.method])}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The music, its windows, and what to do with files that cannot be read.

    Args:
        source: A manifest (.csv or .jsonl), a folder that holds one, a folder with one folder per
            label, a Hub data set id, or what ships: ``quickstart`` (clips of music), ``quickstart-stems``
            (those with stems), ``quickstart-notes`` (single notes) or ``quickstart-voices`` (singing).
        features: A folder of vectors that were computed elsewhere, one ``<clip>.npy`` a clip; the probe
            reads them in place of audio, and backbone and windows do not count (docs/benchmarking.md).
        group_columns: When the data have no split and one is made: tracks that share a value of the
            first of these columns that exists stay on one side.
        validation_fraction: Share of groups in the validation split, when one is made.
        test_fraction: Share of groups in the test split, when one is made.
        window_seconds: Length of a window, the input of the model. If not given: 5, or less where more than
            a tenth of the training tracks are shorter, so that few are padded; but at least 1.
        hop_seconds: Distance of windows when a whole track is evaluated; by the task if not given:
            window_seconds, or half of it where there is an output for each frame or a stem.
        windows_per_track: Random windows of a track in one epoch of training. If not given: as many as
            make an epoch of 32 optimiser steps, so 1 for large data sets.
        num_variants: Number of different windows of a track, with their augmentation, in a whole run; they
            take turns, and are the same for every seed. If not given, each window is drawn anew, but where
            the cache is used there are 4, or as many as a track holds up to 16 (docs/performance.md).
        num_workers: Processes that read audio, for each training process.
        on_bad_track: What to do about tracks whose audio, label or annotation cannot be used. At the
            beginning, ``stop`` lists all of them and ends; ``skip`` goes on without them and counts them in
            results.json. During training, ``stop`` saves a checkpoint and ends; ``skip`` lets other windows
            take their places.
        max_bad_fraction: Under ``skip``, the run ends where more than this share of a split's tracks is lost
            during training, or of a Hub data set's audio files cannot be fetched: a drive may be missing.
        timeout_seconds: The run ends where a worker gives no batch for so long, or where the check of all
            files at the beginning finishes none; 0 waits for ever. Without workers, training is not watched.
        allow_outside: Let relative paths of a manifest lead out of its folder. Those of a data set of the
            Hub never may.
    """

    source: str
    features: str | None = None
    group_columns: list[str] = field(default_factory=lambda: ["artist", "album"])
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    window_seconds: float | None = None
    hop_seconds: float | None = None
    windows_per_track: int | None = None
    num_variants: int | None = None
    num_workers: int = 2
    on_bad_track: OnBadTrack = "stop"
    max_bad_fraction: float = 0.1
    timeout_seconds: float = 300.0
    allow_outside: bool = False

    @property
    def max_failing_fraction(self) -> float:
        """Share of a Hub data set's audio files that a run may start without."""
        return self.max_bad_fraction if self.on_bad_track == "skip" else 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.window_seconds is not None:
            _positive("data.window_seconds", self.window_seconds)
        if self.hop_seconds is not None:
            _positive("data.hop_seconds", self.hop_seconds)
            window_seconds = self.window_seconds or WINDOW_SECONDS
            if self.hop_seconds > window_seconds:
                raise UserError(
                    f"data.hop_seconds is {self.hop_seconds}, more than data.window_seconds "
                    f"({window_seconds}): music between windows would never be heard. "
                    "Set it to at most the window."
                )
        if self.windows_per_track is not None:
            _at_least("data.windows_per_track", self.windows_per_track, 1)
        if self.num_variants is not None:
            _at_least("data.num_variants", self.num_variants, 1)
        _at_least("data.num_workers", self.num_workers, 0)
        _in_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        if not 0.0 <= self.timeout_seconds < math.inf:
            raise UserError(
                f"data.timeout_seconds is {self.timeout_seconds}; it must be at least 0."
            )
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise UserError(f"data.{name} is {value}; it must lie between 0 and 1.")
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise UserError(
                f"data.validation_fraction {self.validation_fraction} and data.test_fraction "
                f"{self.test_fraction} leave nothing to train on. Their sum must be below 1."
            )


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What the frozen part of the network says of each window, computed once and kept on the disk.

    Args:
        use: ``auto`` keeps the hidden states of a probe's frozen backbone, where they fit in max_size;
            ``on`` also, where upper layers or adapters learn, the state from which these go on; ``off``
            computes all in each epoch.
        folder: Where; ``m2v-finetune`` in the user's folder of caches if not given. Runs with the same
            backbone, audio and windows share what is there.
        precision: ``float32`` is what would be computed again, to rounding; ``float16`` takes half of it.
        max_size: Of the folder, such as ``20GB``: what was not used for longest is deleted to make room.
    """

    use: Literal["auto", "on", "off"] = "auto"
    folder: str | None = None
    precision: Literal["float32", "float16"] = "float32"
    max_size: str = "20GB"

    def __post_init__(self) -> None:
        """Check the size."""
        parse_bytes("cache.max_size", self.max_size)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Changes of the training windows that leave their labels true.

    Args:
        transforms: Applied in order, each a name with its parameters, such as
            ``{name: gain, p: 0.5, min_gain_db: -6, max_gain_db: 6}``; docs/augmentation.md lists them.
    """

    transforms: list[dict[str, Any]] = field(default_factory=list)


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
                _positive(f"optimizer.{name}", value)
        if not 0.0 < self.layer_decay <= 1.0:
            raise UserError(
                f"optimizer.layer_decay is {self.layer_decay}; it must be above 0 and at most 1."
            )
        if not 0.0 <= self.weight_decay < math.inf:
            raise UserError(
                f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0."
            )
        _in_range("optimizer.warmup_ratio", self.warmup_ratio, 0.0, 1.0)
        _positive("optimizer.max_grad_norm", self.max_grad_norm)


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
            _at_least(f"training.{name}", getattr(self, name), 1)
        if self.early_stopping_patience is not None:
            _at_least("training.early_stopping_patience", self.early_stopping_patience, 1)


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
            raise UserError(f"run.seed is {self.seed}; it must be from 0 to {2**32 - 1}.")
        if self.memory is not None:
            parse_bytes("run.memory", self.memory)
        _at_least("run.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        _at_least("run.keep_checkpoints", self.keep_checkpoints, 1)


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
                f"publish.repo_id is '{self.repo_id}'; it has the form user/name, such as me/my-tagger."
            )


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """The settings that every recipe has; each recipe adds the section ``task`` of its own.

    Args:
        data: The music.
        backbone: The pre-trained network.
        head: What reads its hidden states.
        tuning: What of the backbone learns.
        augmentation: Changes of the training windows.
        cache: What is computed once and kept.
        optimizer: Rates and their course.
        training: How long and in which portions.
        run: Where the run goes and how it repeats.
        publish: What goes to the Hub.
    """

    data: DataConfig
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def __post_init__(self) -> None:
        """Check what vectors in place of audio forbid."""
        if self.data.features is None:
            return
        if self.run.memory is not None:
            raise UserError(
                f"run.memory is '{self.run.memory}', which divides batches of audio, and data.features gives "
                "vectors, which take next to nothing. Remove one of them."
            )
        refused = {
            "tuning.method (to probe)": self.tuning.method != "probe",
            "augmentation.transforms (to [])": bool(self.augmentation.transforms),
            "backbone.num_layers (to null)": self.backbone.num_layers is not None,
            "backbone.layer_weighting (to softmax or last)": self.backbone.layer_weighting
            not in ("softmax", "last"),
            "backbone.spec_augment (to false)": self.backbone.spec_augment,
            "head.pooling (to mean)": self.head.pooling != "mean",
            "data.num_variants (to null)": self.data.num_variants is not None,
            "cache.use (to auto)": self.cache.use == "on",
            "training.compile (to false)": self.training.compile,
            "publish.weights (to auto or all)": self.publish.weights == "trained",
        }
        if any(refused.values()):
            raise UserError(
                "data.features gives vectors in place of audio: there is no backbone to tune and no audio to "
                f"change. Set {', '.join(name for name, is_set in refused.items() if is_set)}."
            )


@dataclass(frozen=True, kw_only=True)
class MusicConfig:
    """Music without labels, its windows, and what to do with files that cannot be read.

    Args:
        source: A folder of audio files, a manifest (.csv or .jsonl), a folder that holds one, a Hub data
            set id, or what ships, such as ``quickstart``. Labels are not read. Where the data bring
            splits, ``train`` is learned from, ``validation`` is held out, and ``test`` is not heard.
        group_columns: When the data have no split and one is made: tracks that share a value of the
            first of these columns that exists stay on one side.
        validation_fraction: Share of groups that are held out, when a split is made.
        window_seconds: What the model hears at once.
        windows_per_track: Random windows of a track in one epoch, and of a track that is held out.
        num_workers: Processes that read audio, for each training process.
        on_bad_track: What to do about files that cannot be read. At the beginning, ``stop`` lists all of them
            and ends; ``skip`` goes on without them and counts them in results.json. During training, ``stop``
            saves a checkpoint and ends; ``skip`` lets other windows take their places.
        max_bad_fraction: Under ``skip``, the run ends where more than this share of a split's tracks is lost
            during training, or of a Hub data set's audio files cannot be fetched: a drive may be missing.
        timeout_seconds: The run ends where a worker gives no batch for so long, or where the check of all
            files at the beginning finishes none; 0 waits for ever. Without workers, training is not watched.
        allow_outside: Let relative paths of a manifest lead out of its folder. Those of a data set of the
            Hub never may.
    """

    source: str
    group_columns: list[str] = field(default_factory=lambda: ["artist", "album"])
    validation_fraction: float = 0.05
    window_seconds: float = 5.0
    windows_per_track: int = 1
    num_workers: int = 2
    on_bad_track: OnBadTrack = "stop"
    max_bad_fraction: float = 0.1
    timeout_seconds: float = 300.0
    allow_outside: bool = False

    @property
    def max_failing_fraction(self) -> float:
        """Share of a Hub data set's audio files that a run may start without."""
        return self.max_bad_fraction if self.on_bad_track == "skip" else 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        _positive("data.window_seconds", self.window_seconds)
        _at_least("data.windows_per_track", self.windows_per_track, 1)
        _at_least("data.num_workers", self.num_workers, 0)
        _in_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        if not 0.0 <= self.timeout_seconds < math.inf:
            raise UserError(
                f"data.timeout_seconds is {self.timeout_seconds}; it must be at least 0."
            )
        if not 0.0 < self.validation_fraction < 1.0:
            raise UserError(
                f"data.validation_fraction is {self.validation_fraction}; it must lie between 0 and 1."
            )


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
                f"backbone.revision is '{self.revision}', but nothing is loaded from the Hub."
            )
        if self.source is not None and self.licence is not None:
            raise UserError(
                f"backbone.licence is '{self.licence}', but what is made from {self.source} has its "
                "licence. Remove it."
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
                f"pretrain.mask_probability is {self.mask_probability}; it must be above 0 and at most 1."
            )
        _at_least("pretrain.mask_span_frames", self.mask_span_frames, 1)
        _at_least("pretrain.num_target_layers", self.num_target_layers, 1)
        _in_range("pretrain.ema_start", self.ema_start, 0.0, 1.0)
        if not self.ema_start <= self.ema_end <= 1.0:
            raise UserError(
                f"pretrain.ema_end is {self.ema_end}; it must be from pretrain.ema_start "
                f"({self.ema_start}) to 1."
            )
        _at_least("pretrain.ema_ramp_steps", self.ema_ramp_steps, 1)
        _at_least("pretrain.watch_after_steps", self.watch_after_steps, 0)
        for name in ("min_target_variance", "min_prediction_variance"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise UserError(f"pretrain.{name} is {value}; it must be at least 0.")


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
                "music2vec-v1, or a config.json to begin at random."
            )
        if self.publish.weights == "trained":
            raise UserError(
                "publish.weights is 'trained', but pre-training changes the whole backbone. Set it to auto."
            )


AnyRecipeConfig = RecipeConfig | PretrainingConfig
"""The settings of any recipe."""


LEAST_BYTES = 10**6
"""Of memory given as a plain number."""


def parse_bytes(name: str, text: str) -> int:
    """Return the bytes that a size says: ``11GB`` is 11e9, ``11GiB`` is 11 * 2**30, a number is itself.

    Raises:
        UserError: It is no size, or zero, or a number of less than a million bytes, as of one who meant
            gigabytes; ``name`` says where it stood.

    >>> [parse_bytes("", text) for text in ("11GB", "1.5 GiB", "8e9")]
    [11000000000, 1610612736, 8000000000]
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:[eE]\+?\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = None if match is None else BYTES_OF_UNIT.get(match[2].lower())
    size = 0.0 if match is None or unit is None else float(match[1]) * unit
    number = round(size) if math.isfinite(size) else 0
    if number <= 0:
        raise UserError(
            f"{name} is '{text}', which is no amount of memory. Write it as 11GB (decimal), 10GiB (binary) "
            "or 8e9 (bytes)."
        )
    if match is not None and not match[2] and number < LEAST_BYTES:
        raise UserError(
            f"{name} is '{text}', which is {number} bytes. Did you mean {text.strip()}GB? A number without a "
            "unit is bytes."
        )
    return number


def _at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise UserError(f"{name} is {value}; it must be at least {lowest}.")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}; it must be above 0, and finite.")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise UserError(f"{name} is {value}; it must be at least {low} and below {high}.")
