"""Settings of masked prediction, the objective of MERT."""

import math
from dataclasses import dataclass

from m2v_finetune.config.ranges import at_least, positive
from m2v_finetune.errors import UserError

MAX_LABELS = 32_767
"""Largest number of labels of a set: they are stored in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class MaskedPredictionConfig:
    """Settings of masked prediction: label sets, masks, and the parts of the loss.

    Defaults are those of MERT (arXiv 2306.00107), with the label sets of MERT-v0.

    Args:
        log_mel_clusters: Number of k-means clusters of log-mel spectra; 0 for none.
        chroma_clusters: Number of k-means clusters of chroma; 0 for none.
        fit_frames: Number of frames of the training tracks to which the clusters are fitted.
        clusters: File of clusters that `m2v pretrain-labels` wrote. Default: they are fitted to the training
            tracks, once.
        codes: Folder of precomputed codes, as of EnCodec: one ``<id>.npy`` a track with integers (codebooks,
            frames) at 75 Hz, such as ``songs/a.wav.npy``. They are label sets beside the clusters.
        num_codebooks: Number of codebooks in use, from the first.
        codebook_size: Number of codes of each codebook.
        projection_size: Size of the vectors of which the cosine is taken (64 in MERT-v1-95M, 128 in 330M).
        temperature: Divisor of the cosine.
        mask_probability: Share of a window's frames that the masked spans would cover without overlaps. At
            0.8 with spans of 5, almost 60 % of the frames are masked.
        mask_span_frames: Length of a masked span.
        min_mask_spans: Least number of spans in a window.
        cqt_weight: Weight of the squared error of the CQT; 0 for no CQT head.
        feature_penalty: Weight of the mean square of the conv encoder's output.
        train_conv_encoder: Whether the conv encoder is trainable, not frozen.
        freeze_backbone_steps: Number of steps at the start in which the new heads are trained alone.
            Checkpoints have no heads: without it, their first gradients would change a trained backbone.
        mix_probability: Share of windows to whose input segments of other training tracks are added (0.5 in
            MERT, which reports that it helps with codes and slightly hurts with clusters).
        mix_max_segments: Largest number of segments; at least one is added.
        mix_min_seconds: Shortest segment.
        mix_max_seconds: Longest segment (1 in MERT-v1-95M, 1.5 in 330M).
        min_label_entropy: Entropy of the labels of a window in nats, below which a warning is logged; that
            of 300 equally frequent labels is 5.7.
        watch_after_steps: Number of optimizer steps before warnings of a collapse.
    """

    log_mel_clusters: int = 300
    chroma_clusters: int = 200
    fit_frames: int = 200_000
    clusters: str | None = None
    codes: str | None = None
    num_codebooks: int = 8
    codebook_size: int = 1024
    projection_size: int = 64
    temperature: float = 0.1
    mask_probability: float = 0.8
    mask_span_frames: int = 5
    min_mask_spans: int = 2
    cqt_weight: float = 1.0
    feature_penalty: float = 10.0
    train_conv_encoder: bool = True
    freeze_backbone_steps: int = 0
    mix_probability: float = 0.0
    mix_max_segments: int = 3
    mix_min_seconds: float = 0.5
    mix_max_seconds: float = 1.0
    min_label_entropy: float = 0.1
    watch_after_steps: int = 1000

    def __post_init__(self) -> None:
        """Check ranges, and that there is something to predict."""
        section = "masked_prediction"
        for name in ("log_mel_clusters", "chroma_clusters"):
            value = getattr(self, name)
            if value != 0 and not 2 <= value <= MAX_LABELS:
                raise UserError(
                    f"{section}.{name} is {value}; it must be 0 (none) or from 2 to {MAX_LABELS}.",
                    code="settings-range",
                )
        if not (self.log_mel_clusters or self.chroma_clusters or self.codes):
            raise UserError(
                f"{section} has no label set: {section}.log_mel_clusters and chroma_clusters are 0, and "
                f"{section}.codes is not given. Set one of them.",
                code="settings-conflict",
            )
        if self.clusters is not None and not (self.log_mel_clusters or self.chroma_clusters):
            raise UserError(
                f"{section}.clusters is '{self.clusters}', but {section}.log_mel_clusters and "
                "chroma_clusters are 0. Remove it, or set them.",
                code="settings-conflict",
            )
        for name, lowest in (
            ("fit_frames", 1),
            ("num_codebooks", 1),
            ("projection_size", 1),
            ("mask_span_frames", 1),
            ("min_mask_spans", 1),
            ("freeze_backbone_steps", 0),
            ("mix_max_segments", 1),
            ("watch_after_steps", 0),
        ):
            at_least(f"{section}.{name}", getattr(self, name), lowest)
        if not 2 <= self.codebook_size <= MAX_LABELS:
            raise UserError(
                f"{section}.codebook_size is {self.codebook_size}; it must be from 2 to {MAX_LABELS}.",
                code="settings-range",
            )
        positive(f"{section}.temperature", self.temperature)
        positive(f"{section}.mix_min_seconds", self.mix_min_seconds)
        if not self.mix_min_seconds <= self.mix_max_seconds < math.inf:
            raise UserError(
                f"{section}.mix_max_seconds is {self.mix_max_seconds}; it must be at least "
                f"{section}.mix_min_seconds ({self.mix_min_seconds}), and finite.",
                code="settings-range",
            )
        if not 0.0 < self.mask_probability <= 1.0:
            raise UserError(
                f"{section}.mask_probability is {self.mask_probability}; it must be above 0 and at most 1.",
                code="settings-range",
            )
        if not 0.0 <= self.mix_probability <= 1.0:
            raise UserError(
                f"{section}.mix_probability is {self.mix_probability}; it must be from 0 to 1.",
                code="settings-range",
            )
        for name in ("cqt_weight", "feature_penalty", "min_label_entropy"):
            value = getattr(self, name)
            if not 0.0 <= value < math.inf:
                raise UserError(
                    f"{section}.{name} is {value}; it must be at least 0.", code="settings-range"
                )

    def label_sizes(self) -> dict[str, int]:
        """Return the number of labels of each set, by its name."""
        sizes = {"log_mel": self.log_mel_clusters, "chroma": self.chroma_clusters}
        if self.codes is not None:
            sizes |= {f"codes_{book}": self.codebook_size for book in range(self.num_codebooks)}
        return {name: size for name, size in sizes.items() if size}
