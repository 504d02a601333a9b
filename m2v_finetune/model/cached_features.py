"""Output of the frozen layers of a model for a window, as one matrix that can be stored and read back."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m2v_finetune.backbones import Backbone, PrecomputedBackbone
from m2v_finetune.backbones.backbone import CONV_ENCODER

if TYPE_CHECKING:
    from m2v_finetune.model.network import TaskNetwork


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """Layout of the cached features of one window, a matrix (rows, feature_size).

    First come the hidden states that the layer weighting uses, as the head reads them, one after the other.
    Then, if layers above are trainable, the frames that are their input; where these are the last of the
    hidden states already, they are not stored twice.

    Attributes:
        depth: Number of the last frozen hidden state, as `Backbone.frozen_depth`.
        states: Numbers of the stored hidden states, up to the depth.
        frames_per_state: Frames of each; 1 where the head averages over time.
        start_frames: Frames that are the input of the trainable layers; 0 where all layers are frozen.
        num_rows: Rows of the matrix.
        feature_size: Columns of the matrix.
    """

    depth: int
    states: tuple[int, ...]
    frames_per_state: int
    start_frames: int
    num_rows: int
    feature_size: int

    @property
    def has_own_start(self) -> bool:
        """Whether the input of the trainable layers is stored beside the hidden states."""
        return self.num_rows > len(self.states) * self.frames_per_state


def layout_features(model: "TaskNetwork") -> FeatureLayout | None:
    """Return the layout of a model's cached features; None where no layer is frozen."""
    depth, backbone = model.backbone.frozen_depth, model.backbone
    if depth is None or isinstance(backbone, PrecomputedBackbone):
        return None
    if backbone.spec_augment:
        depth = CONV_ENCODER  # SpecAugment masks the output of the convolutional encoder
    num_frames = backbone.num_frames(model.window_samples)
    selected_layer = model.layer_weighting.selected_layer
    states = tuple(i for i in range(depth + 1) if selected_layer in (None, i))
    with torch.device("meta"):
        [read] = model.head.pre_pool([torch.empty(1, num_frames, 1)])
    frames_per_state = read.shape[1]
    start_frames = 0 if depth == backbone.num_layers else num_frames
    is_stored = depth in states and frames_per_state == num_frames
    return FeatureLayout(
        depth=depth,
        states=states,
        frames_per_state=frames_per_state,
        start_frames=start_frames,
        num_rows=len(states) * frames_per_state + (0 if is_stored else start_frames),
        feature_size=backbone.conv_size if depth == CONV_ENCODER else backbone.hidden_size,
    )


def compute_features(model: "TaskNetwork", waveforms: Tensor) -> Tensor:
    """Return the features of windows; nothing above the frozen layers is computed.

    Args:
        model: Has a layout.
        waveforms: (batch, window_samples), mono at the backbone's rate.

    Returns:
        (batch, rows, feature_size), laid out as `FeatureLayout` describes.
    """
    layout, backbone = model.feature_layout, model.backbone
    assert layout is not None
    assert isinstance(backbone, Backbone)
    conv_features = backbone.encode(backbone.prepare(waveforms))
    state = conv_features.transpose(1, 2)
    stored: list[Tensor] = []
    below = islice(backbone.iterate_from(CONV_ENCODER, conv_features), layout.depth + 1)
    for number, state in enumerate(below):
        if number in layout.states:
            stored += model.head.pre_pool([state])
    if layout.has_own_start:
        stored.append(state)
    return torch.cat(stored, dim=1)


def states_from_features(model: "TaskNetwork", features: Tensor) -> Iterator[Tensor]:
    """Yield all hidden states, as the head reads them, from features (batch, rows, feature_size)."""
    layout, backbone = model.feature_layout, model.backbone
    assert layout is not None
    assert isinstance(backbone, Backbone)
    shape = (len(layout.states), layout.frames_per_state)
    states = iter(features[:, : math.prod(shape)].unflatten(1, shape).unbind(1))  # type: ignore[no-untyped-call]
    for number in range(layout.depth + 1):
        # A state that the layer weighting does not use is not stored.
        yield next(states) if number in layout.states else features.new_empty(0)
    if layout.start_frames:
        start = features[:, -layout.start_frames :]
        if layout.depth == CONV_ENCODER:
            start = start.transpose(1, 2)
        above = backbone.iterate_from(layout.depth, start)
        yield from model.head.pre_pool(above)
