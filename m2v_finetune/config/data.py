"""Settings of the music: source, windows, cached features and augmentation."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from m2v_finetune.config.ranges import at_least, in_range, parse_bytes, positive
from m2v_finetune.errors import UserError

OnBadTrack = Literal["stop", "skip"]

WINDOW_SECONDS = 5.0
"""Longest window where ``data.window_seconds`` is not given: the context of MERT (arXiv 2306.00107)."""


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
            positive("data.window_seconds", self.window_seconds)
        if self.hop_seconds is not None:
            positive("data.hop_seconds", self.hop_seconds)
            window_seconds = self.window_seconds or WINDOW_SECONDS
            if self.hop_seconds > window_seconds:
                raise UserError(
                    f"data.hop_seconds is {self.hop_seconds}, more than data.window_seconds "
                    f"({window_seconds}): music between windows would never be heard. "
                    "Set it to at most the window.",
                    code="settings-conflict",
                )
        if self.windows_per_track is not None:
            at_least("data.windows_per_track", self.windows_per_track, 1)
        if self.num_variants is not None:
            at_least("data.num_variants", self.num_variants, 1)
        at_least("data.num_workers", self.num_workers, 0)
        in_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        if not 0.0 <= self.timeout_seconds < math.inf:
            raise UserError(
                f"data.timeout_seconds is {self.timeout_seconds}; it must be at least 0.",
                code="settings-range",
            )
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise UserError(
                    f"data.{name} is {value}; it must lie between 0 and 1.", code="settings-range"
                )
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise UserError(
                f"data.validation_fraction {self.validation_fraction} and data.test_fraction "
                f"{self.test_fraction} leave nothing to train on. Their sum must be below 1.",
                code="settings-range",
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
        positive("data.window_seconds", self.window_seconds)
        at_least("data.windows_per_track", self.windows_per_track, 1)
        at_least("data.num_workers", self.num_workers, 0)
        in_range("data.max_bad_fraction", self.max_bad_fraction, 0.0, 1.0)
        if not 0.0 <= self.timeout_seconds < math.inf:
            raise UserError(
                f"data.timeout_seconds is {self.timeout_seconds}; it must be at least 0.",
                code="settings-range",
            )
        if not 0.0 < self.validation_fraction < 1.0:
            raise UserError(
                f"data.validation_fraction is {self.validation_fraction}; it must lie between 0 and 1.",
                code="settings-range",
            )
