"""Pre-trained networks: architectures, loading, and the weighting of their layers."""

from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.backbones.loading import (
    build_architecture,
    frame_grid_of,
    init_backbone,
    is_backbone,
    load_backbone,
)
from m2v_finetune.backbones.precomputed import PrecomputedBackbone

AnyBackbone = Backbone | PrecomputedBackbone
"""Backbone of a `TaskModel`: a network, or a stand-in for vectors computed elsewhere."""

__all__ = [
    "AnyBackbone",
    "Backbone",
    "LayerWeighting",
    "PrecomputedBackbone",
    "build_architecture",
    "frame_grid_of",
    "init_backbone",
    "is_backbone",
    "load_backbone",
]
