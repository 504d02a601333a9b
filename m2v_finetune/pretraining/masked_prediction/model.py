"""MaskedPredictionModel: a network that predicts labels and the CQT of masked frames."""

import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2v_finetune.backbones import Backbone
from m2v_finetune.config import MaskedPredictionConfig
from m2v_finetune.pretraining.masked_prediction.cqt import Cqt
from m2v_finetune.pretraining.masked_prediction.heads import CqtHead, LabelHead
from m2v_finetune.pretraining.model import PretrainingModel

logger = logging.getLogger(__name__)

CROSS_ENTROPY, ACCURACY, ENTROPY = "cross_entropy", "accuracy", "label_entropy"
OF_LABELS = {CROSS_ENTROPY: "cross-entropy", ACCURACY: "accuracy", ENTROPY: "entropy of labels"}
"""Metrics of each label set, whose name follows theirs."""
MAX_PENALTY = 10.0
"""Times the cross-entropies above which the penalty is reported."""
CQT_ERROR, FEATURE_PENALTY = "cqt_error", "feature_penalty"


class MaskedPredictionModel(PretrainingModel):
    """Backbone with a head for each label set, and one for the CQT.

    Source: MERT (arXiv 2306.00107); loss and masks of HuBERT (arXiv 2106.07447), as in fairseq's criterion.

    Attributes:
        heads: Head of each label set, by its name.
        cqt: Constant-Q transform of the clean window; None if it has no weight.
        cqt_head: Its prediction; None if it has no weight.
        config: Settings.
    """

    def __init__(
        self, backbone: Backbone, config: MaskedPredictionConfig, *, window_seconds: float
    ) -> None:
        """Add new heads to a backbone.

        Args:
            backbone: Network with its mask embedding (loaded with ``spec_augment``).
            config: Settings.
            window_seconds: Length of a window.

        Raises:
            UserError: A window is too short, or the sample rate too low for the CQT.
        """
        sizes = config.label_sizes()
        names = {
            f"{metric}_{name}": f"{title}, {name}"
            for name in sizes
            for metric, title in OF_LABELS.items()
        }
        names |= {FEATURE_PENALTY: "mean square of conv features"}
        if config.cqt_weight > 0:
            names |= {CQT_ERROR: "squared error of the CQT"}
        super().__init__(
            backbone,
            window_seconds=window_seconds,
            section="masked_prediction",
            span_frames=config.mask_span_frames,
            train_conv_encoder=config.train_conv_encoder,
            watch_after_steps=config.watch_after_steps,
            watched=names,
            min_spans=config.min_mask_spans,
        )
        self.config = config
        self._has_warned_of_penalty = False
        self.heads = nn.ModuleDict(
            {
                name: LabelHead(
                    hidden_size=backbone.hidden_size,
                    projection_size=config.projection_size,
                    num_labels=size,
                    temperature=config.temperature,
                )
                for name, size in sizes.items()
            }
        )
        self.cqt: Cqt | None = None
        self.cqt_head: CqtHead | None = None
        if config.cqt_weight > 0:
            self.cqt = Cqt(backbone.frame_grid, self.window_samples)
            self.cqt_head = CqtHead(backbone.hidden_size)
        self._trains_heads_alone = False

    def batch_shapes(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and type of the waveforms of a window, its labels, its mask, and the mask again."""
        num_waveforms = 2 if self.config.mix_probability > 0 else 1
        mask = ((self.num_frames,), torch.bool)
        return [
            ((num_waveforms, self.window_samples), torch.float32),
            ((len(self.heads), self.num_frames), torch.int16),
            mask,
            mask,
        ]

    def describe(self) -> dict[str, str]:
        """Return rows of the run summary about masks and targets."""
        config = self.config
        sets = ", ".join(f"{name} ({size})" for name, size in config.label_sizes().items())
        cqt = f"; CQT with weight {config.cqt_weight:g}" if config.cqt_weight else ""
        rows = {
            "masks": f"spans of {config.mask_span_frames} frames, probability "
            f"{config.mask_probability:g}, at least {config.min_mask_spans}",
            "targets": f"labels of {sets}{cqt}; feature penalty {config.feature_penalty:g}",
        }
        if config.mix_probability:
            rows["mixing"] = (
                f"up to {config.mix_max_segments} segments of other tracks in "
                f"{100 * config.mix_probability:g} % of the windows"
            )
        if config.freeze_backbone_steps:
            rows["new heads"] = f"alone in the first {config.freeze_backbone_steps} steps"
        return rows

    def forward(self, waveforms: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """Return the terms of the loss and what is watched, for each window, (batch, values) in float32.

        The columns are those of `watched`, before the statistics of the conv encoder.

        Args:
            waveforms: Samples as read, (batch, 1 or 2, samples): input, and clean music.
            labels: Labels of all frames, (batch, sets, frames); negative where there is none.
            masks: Masks of the input, (batch, frames).
        """
        is_trained = torch.is_grad_enabled() and not (self.training and self._trains_heads_alone)
        with torch.set_grad_enabled(is_trained):
            features = self.backbone.encode(self.backbone.prepare(waveforms[:, 0]))
            state = self.backbone.project(features)
            vector = self.backbone.mask_vector.to(state.dtype)
            masked = torch.where(masks.unsqueeze(-1), vector, state)
            *_, last = self.backbone.iterate_layers(masked)
        self.watch_conv(features)
        # Every window counts the same, whatever its number of masked frames.
        counted = (masks & (labels[:, 0] >= 0)).float()
        weights = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
        columns = []
        for head, of_set in zip(self.heads.values(), labels.unbind(1), strict=True):
            columns += self._of_labels(head(last), of_set.long().clamp(min=0), weights)
        columns.append(features.float().square().mean(dim=(1, 2)))
        if self.cqt is not None and self.cqt_head is not None:
            errors = (self.cqt_head(last) - self.cqt(waveforms[:, -1])).square().mean(dim=-1)
            columns.append((errors * weights).sum(dim=1))
        return torch.stack(columns, dim=1)

    def _of_labels(self, logits: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
        """Return cross-entropy, accuracy and entropy of the labels of each window, (batch,) each."""
        losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        with torch.no_grad():
            is_right = (logits.argmax(dim=-1) == labels).float()
            shares = torch.zeros_like(logits[:, 0]).scatter_add(1, labels, weights)
            entropies = torch.special.entr(shares).sum(dim=1)
        return [(losses * weights).sum(dim=1), (is_right * weights).sum(dim=1), entropies]

    def window_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each window, (batch,).

        It is the sum over label sets of the mean cross-entropy at masked frames, the penalty, and the mean
        squared error of the CQT at masked frames.

        Args:
            outputs: Output of `forward`.
            targets: Masks, (batch, frames); `forward` has used them.
        """
        terms = dict(zip(self.metric_names_of_outputs, outputs.unbind(1), strict=True))
        loss = self.config.feature_penalty * terms[FEATURE_PENALTY]
        for name in self.heads:
            loss = loss + terms[f"{CROSS_ENTROPY}_{name}"]
        if self.cqt is not None:
            loss = loss + self.config.cqt_weight * terms[CQT_ERROR]
        return loss

    def watched(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what is logged beside the loss for each window, (batch, values): all of the outputs."""
        return outputs

    @property
    def metric_names_of_outputs(self) -> list[str]:
        """Names of the columns of the outputs."""
        names = list(self.metric_names)
        return names[1 : names.index(FEATURE_PENALTY) + (2 if self.cqt is not None else 1)]

    def start_step(self, number: int) -> None:
        """Discard what was measured in an aborted step; train the heads alone in the first steps.

        Args:
            number: Number of the step, from 1.
        """
        super().start_step(number)
        self._trains_heads_alone = number <= self.config.freeze_backbone_steps

    def check_collapse(self, metrics: Mapping[str, float], *, num_updates: int) -> None:
        """Warn, once, if labels hardly vary or the rank of conv features has collapsed; or of the penalty.

        Args:
            metrics: Means since the last call, by name.
            num_updates: Number of changes of the weights.
        """
        penalty = self.config.feature_penalty * metrics[FEATURE_PENALTY]
        others = sum(metrics[f"{CROSS_ENTROPY}_{name}"] for name in self.heads)
        is_large = self.config.train_conv_encoder and penalty > MAX_PENALTY * others
        if is_large and not self._has_warned_of_penalty:
            self._has_warned_of_penalty = True
            logger.warning(
                "The penalty on the conv encoder's output is %.3g, and the cross-entropies are %.3g: the run "
                "mainly makes that output smaller, which destroys trained filters. To keep them set "
                "masked_prediction.train_conv_encoder to false; or lower masked_prediction.feature_penalty.",
                penalty,
                others,
            )
        if num_updates > self.config.watch_after_steps:
            self.warn_below_floors(metrics, num_updates=num_updates)

    def floors(self) -> dict[str, float]:
        """Return the lowest values of label entropies and of the rank of conv features."""
        floor = self.config.min_label_entropy
        return {**{f"{ENTROPY}_{name}": floor for name in self.heads}, **super().floors()}
