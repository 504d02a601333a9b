"""`TaskNetwork`: backbone, layer weighting and task head, from waveforms or cached features to outputs."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from m2v_finetune.backbones import AnyBackbone, Backbone
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.config import HeadConfig, TuningConfig
from m2v_finetune.cpu_precision import InferencePrecision
from m2v_finetune.errors import UserError
from m2v_finetune.heads import Head
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.model.cached_features import (
    FeatureLayout,
    compute_features,
    layout_features,
    states_from_features,
)
from m2v_finetune.model.novelty import Novelty
from m2v_finetune.tasks import Task
from m2v_finetune.tuning import trained_parts


class TaskNetwork(nn.Module):
    """A backbone, the weighting of its layers, and the head of a task.

    Attributes:
        backbone: Network that yields hidden states, tuned by `tuning`; for vectors that were computed
            elsewhere, their stand-in.
        layer_weighting: Weighted sum of the hidden states.
        head: Network from that sum to logits.
        head_config: Settings of the head.
        task: Meaning of the logits.
        window_seconds: Length of a window.
        hop_seconds: Distance of the windows of a track.
        tuning: Settings of the tuning.
        base_fingerprint: Hash of the backbone that the tuned weights belong to; None where the model has all
            its weights.
        novelty: Distances of windows from the training windows, fitted after training; None if there is none.
        started_from: Folder or Hub id of the model that training started from, if any.
        card: Text of the model card, if there is one.
        micro_batcher: Batch size that fits into memory outside of training.
        precision: Precision of predictions: float32, or bfloat16 for matrix products and convolutions.
    """

    def __init__(
        self,
        *,
        backbone: AnyBackbone,
        layer_weighting: LayerWeighting,
        head: Head,
        head_config: HeadConfig,
        task: Task,
        tuning: TuningConfig,
        window_seconds: float,
        hop_seconds: float | None,
        base_fingerprint: str | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layer_weighting = layer_weighting
        self.head = head
        self.head_config = head_config
        self.task = task
        self.tuning = tuning
        self.window_seconds = window_seconds
        self.hop_seconds = hop_seconds or window_seconds * task.hop_fraction
        self.base_fingerprint = base_fingerprint
        self.novelty: Novelty | None = None
        self.started_from: str | None = None
        self.card: str | None = None
        self.micro_batcher = MicroBatcher()
        self._precision: InferencePrecision = "float32"
        if isinstance(backbone, Backbone):
            backbone.check_window(self.window_samples)
        self._trainable_names = self._trainable()
        self._trained_names = set(self._trainable_names)

    @property
    def precision(self) -> InferencePrecision:
        """Precision of predictions: ``float32``, or ``bfloat16`` by autocast.

        Raises:
            UserError: Another one is set.
        """
        return self._precision

    @precision.setter
    def precision(self, value: InferencePrecision) -> None:
        if value not in get_args(InferencePrecision):
            raise UserError(
                f"model.precision is {value!r}; it is {' or '.join(get_args(InferencePrecision))}.",
                code="precision-unknown",
            )
        self._precision = value

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a prediction in `precision`."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @property
    def window_samples(self) -> int:
        """Samples of a window at the backbone's rate."""
        return round(self.window_seconds * self.backbone.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from one window of a track to the next."""
        return max(1, round(self.hop_seconds * self.backbone.sample_rate))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the layers below the first trainable one stay in evaluation mode.

        So their output for a window is always the same, and can be cached.
        """
        super().train(mode)
        # What a loop of one's own trains may be frozen again.
        self._trained_names |= self._trainable()
        for module in self.backbone.frozen_modules():
            module.eval()
        return self

    def forward(self, inputs: Tensor, *others: Tensor) -> Tensor:
        """Return the logits of windows.

        Args:
            inputs: Waveforms (batch, window_samples), mono at the backbone's rate, in [-1, 1]; or their
                features from `frozen_features`, (batch, rows, feature_size), in any precision.
            others: Further inputs of the task's head, such as the mixture to separate.

        Returns:
            (batch, task.num_outputs), or with frames (batch, frames, task.num_outputs), or stems.
        """
        if torch.is_grad_enabled():  # a loop may train in evaluation mode, too
            self._trained_names |= self._trainable()
        return self.head(self.head_input(inputs), *others)  # type: ignore[no-any-return]

    def head_input(self, inputs: Tensor) -> Tensor:
        """Return the weighted hidden states of windows, as the head reads them.

        Args:
            inputs: As for `forward`.

        Returns:
            (batch, frames, hidden_size), or (batch, 1, hidden_size) where the head averages over time.
        """
        return self._weight_cached(inputs) if inputs.ndim == 3 else self._weight_states(inputs)

    @property
    def measures_novelty(self) -> bool:
        """Whether `score` has last columns with the novelty of windows."""
        return self.novelty is not None

    def score(self, inputs: Tensor, *others: Tensor) -> Tensor:
        """Return the logits of windows as `forward` does, and in last columns their novelty, if measured."""
        if self.novelty is None:
            return self(inputs, *others)  # type: ignore[no-any-return]
        return self._score_head_input(self.head_input(inputs), *others)

    def score_states(self, hidden_states: Iterable[Tensor]) -> Tensor:
        """Return what `score` does, of windows whose hidden states are known.

        Args:
            hidden_states: Hidden states from 0 on, (batch, frames, hidden_size) each.
        """
        return self._score_head_input(self.layer_weighting(self.head.pre_pool(hidden_states)))

    def _score_head_input(self, states: Tensor, *others: Tensor) -> Tensor:
        logits: Tensor = self.head(states, *others)
        if self.novelty is None:
            return logits
        return torch.cat([logits, self.novelty(states.float().mean(dim=1))], dim=1)

    def _weight_cached(self, features: Tensor) -> Tensor:
        """Return the weighted hidden states, (batch, frames, hidden_size), of cached features."""
        return self.layer_weighting(states_from_features(self, features.float()))  # type: ignore[no-any-return]

    def _weight_states(self, waveforms: Tensor) -> Tensor:
        """Return the weighted hidden states, (batch, frames, hidden_size), as the head reads them."""
        states = self.backbone.iterate_hidden_states(self.backbone.prepare(waveforms))
        depth = self._checkpointed_depth()
        if depth > 0:
            assert isinstance(self.backbone, Backbone)
            return self.layer_weighting.checkpointed(
                next(states), depth, self.backbone.iterate_from
            )
        return self.layer_weighting(self.head.pre_pool(states))  # type: ignore[no-any-return]

    def _checkpointed_depth(self) -> int:
        """Return the number of the last frozen state that is recomputed for the layer weights' gradient.

        0 where that saves no memory: a head that averages over time needs few numbers of each state.
        """
        is_checkpointing = self.backbone.gradient_checkpointing and self.training
        layout, selected_layer = self.feature_layout, self.layer_weighting.selected_layer
        if (
            not is_checkpointing
            or not torch.is_grad_enabled()
            or layout is None
            or selected_layer is not None
        ):
            return 0
        return max(0, layout.depth) if layout.frames_per_state > 1 else 0

    @cached_property
    def feature_layout(self) -> FeatureLayout | None:
        """Layout of the output of the frozen layers for a window; None where no layer is frozen."""
        return layout_features(self)

    def frozen_features(self, waveforms: Tensor) -> Tensor:
        """Return the output of the frozen layers, an input of `forward` in place of the waveforms.

        Args:
            waveforms: (batch, window_samples), as `forward` takes them.

        Returns:
            (batch, rows, feature_size), laid out as `feature_layout` describes.
        """
        return compute_features(self, waveforms)

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Return the number of parameters, or only of those that are trainable."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return what is or was trainable, layer weights, and buffers of head and novelty, by name."""
        # Also what was frozen since, to predict.
        names = self._trained_names | self._trainable()
        names |= {f"layer_weighting.{name}" for name in self.layer_weighting.state_dict()}
        names |= {f"head.{name}" for name, _ in self.head.named_buffers()}
        if self.novelty is not None:
            names |= {f"novelty.{name}" for name, _ in self.novelty.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def trains_more(self) -> bool:
        """Return whether more is trainable, or was in an earlier pass, than by the tuning method."""
        return not self._trained_names | self._trainable() <= self._trainable_names

    def _trainable(self) -> frozenset[str]:
        return frozenset(name for name, one in self.named_parameters() if one.requires_grad)

    def trained_parts(self) -> dict[str, int]:
        """Return the number of trainable parameters of each part, from the input to the head."""
        parts = trained_parts(self.backbone)
        for name, module in (("layer weights", self.layer_weighting), ("head", self.head)):
            count = sum(p.numel() for p in module.parameters() if p.requires_grad)
            if count:
                parts[name] = count
        return parts
