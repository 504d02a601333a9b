"""Settings of the music: source, windows, cached features and augmentation."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from m2v_finetune.config.ranges import at_least, between_0_and_1, in_range, parse_bytes, positive
from m2v_finetune.errors import UserError

OnBadTrack = Literal["stop", "skip"]

WINDOW_SECONDS = 5.0
"""Largest default of ``data.window_seconds``: the context of MERT (arXiv 2306.00107)."""
MAX_WINDOW_SECONDS = 3600
"""Longest window; a larger number is in samples or milliseconds."""


@dataclass(frozen=True, kw_only=True)
class TracksConfig:
    """Settings of any tracks: their source, groups, and the policy for files that cannot be read.

    Args:
        source: Folder of audio files, manifest (.csv or .jsonl), folder with a manifest, Hub data set id, or
            included data set.
        group_columns: Columns that group tracks when the run splits the data. Tracks with the same value in
            the first existing column stay in the same split.
        num_workers: Number of worker processes that read audio, for each training process.
        on_bad_track: Policy for tracks whose audio, label or annotation cannot be used. At the start,
            ``stop`` lists all of them and ends; ``skip`` continues without them and counts them in
            results.json. During training, ``stop`` saves a checkpoint and ends; ``skip`` replaces their
            windows by others.
        max_bad_fraction: Largest share of unreadable tracks under ``skip``. The run ends if more of a
            split's tracks become unreadable during training, or more of a Hub data set's audio files
            cannot be downloaded: a drive may be missing.
        timeout_seconds: Time limit for a worker's batch, and for the next file in the check at the start;
            the run ends after it. 0 for no limit. Without workers, there is no limit in training.
        allow_outside: Whether relative paths of a manifest may leave its folder. Those of a Hub data set
            never may.
    """

    source: str
    group_columns: list[str] = field(default_factory=lambda: ["artist", "album"])
    num_workers: int = 2
    on_bad_track: OnBadTrack = "stop"
    max_bad_fraction: float = 0.1
    timeout_seconds: float = 300.0
    allow_outside: bool = False

    @property
    def max_failing_fraction(self) -> float:
        """Largest share of missing audio files of a Hub data set at the start of a run."""
        return self.max_bad_fraction if self.on_bad_track == "skip" else 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least("data.num_workers", self.num_workers, 0)
        in_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        if not 0.0 <= self.timeout_seconds < math.inf:
            raise UserError(
                f"data.timeout_seconds is {self.timeout_seconds}; it must be at least 0.",
                code="settings-range",
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig(TracksConfig):
    """Settings of labelled tracks: source, splits, windows, and the policy for files that cannot be read.

    Args:
        source: Manifest (.csv or .jsonl), folder with a manifest, folder with one folder per label, Hub
            data set id, or included data set: ``quickstart`` (music clips), ``quickstart-stems``,
            ``quickstart-melody`` or ``quickstart-structure`` (some of them with these labels),
            ``quickstart-notes`` (single notes) or ``quickstart-voices`` (singing).
        features: Folder of precomputed vectors, one ``<clip>.npy`` per clip. The probe reads them in place
            of audio; backbone and windows have no effect (docs/benchmarking.md).
        validation_fraction: Share of groups in the validation split, if the run splits the data.
        test_fraction: Share of groups in the test split, if the run splits the data.
        folds: Number of folds of cross-validation, in place of the splits: each track is evaluated once, by a
            model that was not trained on it. Folds are runs in folders ``fold-0`` and so on. Use it for fewer
            than about 500 tracks (docs/few-labels.md).
        fold: Number of the only fold to run, from 0. Default: all of them, and their results together.
        final_model: Whether to train a model on all tracks after the folds, but for validation_fraction,
            which selects its weights. Its card has the results of the folds.
        num_train_tracks: Number of training tracks in use, drawn at random; more contain fewer. `m2v curve`
            sets it. Default: all.
        subset_seed: Seed of that draw.
        window_seconds: Length of a window, the input of the model. Default: 5, or less if more than a tenth
            of the training tracks are shorter, so that few are padded; but at least 1.
        hop_seconds: Distance between windows in evaluation. Default: window_seconds, or half of it for
            tasks with an output for each frame or a stem.
        windows_per_track: Number of random windows of a track in one training epoch. Default: enough for an
            epoch of 32 optimizer steps, so 1 for large data sets.
        sampling: Order of the training windows. ``uniform`` has each once in an epoch; ``balanced`` has each
            class equally often, for tasks with one class a track: rare classes are repeated, and frequent
            ones take turns. Try it before task.class_weight where a class has few tracks.
        num_variants: Number of different windows of a track in a run, with their augmentation. They take
            turns, and are the same for every seed. Default: no limit; with the feature cache 4, or as many
            as fit in a track up to 16 (docs/performance.md).
    """

    source: str
    features: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    folds: int | None = None
    fold: int | None = None
    final_model: bool = False
    num_train_tracks: int | None = None
    subset_seed: int = 0
    window_seconds: float | None = None
    hop_seconds: float | None = None
    windows_per_track: int | None = None
    sampling: Literal["uniform", "balanced"] = "uniform"
    num_variants: int | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.window_seconds is not None:
            positive("data.window_seconds", self.window_seconds)
            in_range("data.window_seconds", self.window_seconds, 0, MAX_WINDOW_SECONDS)
        if self.hop_seconds is not None:
            positive("data.hop_seconds", self.hop_seconds)
            window_seconds = self.window_seconds or WINDOW_SECONDS
            if self.hop_seconds > window_seconds:
                raise UserError(
                    f"data.hop_seconds is {self.hop_seconds}, more than data.window_seconds "
                    f"({window_seconds}): the model would skip music between windows. "
                    "Set it to at most the window.",
                    code="settings-conflict",
                )
        if self.windows_per_track is not None:
            at_least("data.windows_per_track", self.windows_per_track, 1)
        if self.num_variants is not None:
            at_least("data.num_variants", self.num_variants, 1)
        if self.num_train_tracks is not None:
            at_least("data.num_train_tracks", self.num_train_tracks, 1)
        at_least("data.subset_seed", self.subset_seed, 0)
        self._check_folds()
        between_0_and_1("data.validation_fraction", self.validation_fraction)
        between_0_and_1("data.test_fraction", self.test_fraction)
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise UserError(
                f"data.validation_fraction {self.validation_fraction} and data.test_fraction "
                f"{self.test_fraction} leave nothing to train on. Their sum must be below 1.",
                code="settings-range",
            )

    def _check_folds(self) -> None:
        if self.folds is not None:
            at_least("data.folds", self.folds, 2)
        if self.fold is not None and not 0 <= self.fold < (self.folds or 0):
            raise UserError(
                f"data.fold is {self.fold}, and data.folds is {self.folds}. Folds are numbered from 0 to "
                "data.folds - 1; set both, or remove data.fold.",
                code="settings-range",
            )
        if self.final_model and (self.folds is None or self.fold is not None):
            raise UserError(
                "data.final_model trains a model after all folds: set data.folds, and remove data.fold.",
                code="settings-conflict",
            )


@dataclass(frozen=True, kw_only=True)
class UnlabelledDataConfig(TracksConfig):
    """Settings of unlabelled music: source, splits, windows, and the policy for unreadable files.

    Args:
        source: Folder of audio files, manifest (.csv or .jsonl), folder with a manifest, Hub data set id, or
            included data set such as ``quickstart``. Labels are not read. If the data have splits, the run
            trains on ``train``, holds out ``validation``, and does not read ``test``.
        validation_fraction: Share of held-out groups, if the run splits the data.
        window_seconds: Length of a window, the input of the model.
        windows_per_track: Number of random windows of a track in one epoch, and of a held-out track.
        replay: Source of general music to train on beside one's own, so that less of what was learned is
            lost. Its tracks without a split, or of ``train``, are used.
        replay_share: Share of windows of ``replay`` (CultureMERT, arXiv 2506.17818: 0.2).
    """

    source: str
    validation_fraction: float = 0.05
    window_seconds: float = 5.0
    windows_per_track: int = 1
    replay: str | None = None
    replay_share: float = 0.2

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        positive("data.window_seconds", self.window_seconds)
        at_least("data.windows_per_track", self.windows_per_track, 1)
        between_0_and_1("data.validation_fraction", self.validation_fraction)
        between_0_and_1("data.replay_share", self.replay_share)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Disk cache for the output of the frozen layers.

    Args:
        use: ``auto`` caches the hidden states of a probe's frozen backbone if they fit in max_size; ``on``
            also caches the output of the frozen layers below trainable layers or adapters; ``off``
            computes the features in each epoch.
        folder: Folder of the cache. Default: ``m2v-finetune`` in the user's cache folder. Runs with the
            same backbone, audio and windows share cached features.
        precision: Precision of cached features. ``float32`` equals uncached features, to rounding;
            ``float16`` halves the size.
        max_size: Largest size of the folder, such as ``20GB``. The least recently used features are
            deleted to free space.
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
    """Augmentation of the training windows, with valid labels.

    Args:
        transforms: Transforms in order, each a name with its parameters, such as
            ``{name: gain, p: 0.5, min_gain_db: -6, max_gain_db: 6}``; docs/augmentation.md lists them.
        mixup_alpha: Parameter of mixup: each training window is mixed with another, and so are their labels,
            by a share from Beta(mixup_alpha, mixup_alpha). 0 for none; 0.2 to 0.4 are usual. For tasks with
            one prediction a track. Try it where training fits and validation does not; it needs more epochs,
            and no feature cache.
    """

    transforms: list[dict[str, Any]] = field(default_factory=list)
    mixup_alpha: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0.0 <= self.mixup_alpha < math.inf:
            raise UserError(
                f"augmentation.mixup_alpha is {self.mixup_alpha}; it must be at least 0, and finite.",
                code="settings-range",
            )
