"""Default peak learning rates."""

from dataclasses import dataclass

from m2v_finetune.backbones import AnyBackbone
from m2v_finetune.config import TuningMethod
from m2v_finetune.tuning.methods import METHODS

SMALL_PARAMETERS = 20_000_000
"""Small backbones have fewer parameters. Shipped ones have up to 3.0 million, published ones 93 or more."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates.

    Attributes:
        head: Peak rate of the head and the layer weights.
        backbone: Peak rate of the trainable parameters of the backbone.
    """

    head: float
    backbone: float


# For small backbones; chosen by benchmarks/defaults.py (docs/defaults.md). Backbones of published
# sizes have the published rates (`METHODS`).
SMALL_RATES: dict[TuningMethod, Rates] = {
    "probe": Rates(head=3e-3, backbone=0.0),
    "lora": Rates(head=1e-3, backbone=1e-3),
    "dora": Rates(head=1e-3, backbone=1e-4),
    "ia3": Rates(head=1e-3, backbone=1e-2),
    "bitfit": Rates(head=1e-3, backbone=1e-3),
    "layernorm": Rates(head=1e-3, backbone=1e-3),
    "adapter": Rates(head=1e-3, backbone=1e-3),
    "ssf": Rates(head=1e-3, backbone=1e-3),
    "top_layers": Rates(head=1e-3, backbone=1e-3),
    "full": Rates(head=1e-3, backbone=3e-4),
}


def default_rates(method: TuningMethod, backbone: AnyBackbone) -> Rates:
    """Return the peak rates of a tuning method, by the size of the backbone."""
    row = METHODS[method]
    if is_small(backbone):
        return SMALL_RATES[method]
    return Rates(head=row.learning_rate, backbone=row.backbone_learning_rate)


def is_small(backbone: AnyBackbone) -> bool:
    """Return whether a backbone has fewer than `SMALL_PARAMETERS` parameters.

    Vectors computed elsewhere have no parameters; their network counts as large.
    """
    num_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return 0 < num_parameters < SMALL_PARAMETERS
