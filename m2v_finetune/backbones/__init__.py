"""The pre-trained networks: what they are, how they load, and the weighting of their layers."""

from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.loading import load_backbone

__all__ = ["Backbone", "load_backbone"]
