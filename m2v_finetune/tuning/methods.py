"""Tuning methods, each a row of `METHODS`.

PEFT is imported where a method needs it: its import takes time that a probe or a prediction can save.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from m2v_finetune.backbones import AnyBackbone, Backbone
from m2v_finetune.backbones.encoders import Role
from m2v_finetune.backbones.roles import modules_with_roles
from m2v_finetune.config import TuningConfig, TuningMethod
from m2v_finetune.errors import UserError
from m2v_finetune.tuning.learning_rates import layers_above
from m2v_finetune.tuning.modules import BottleneckAdapter, ScaleShift

if TYPE_CHECKING:
    from peft import PeftConfig

ATTENTION: tuple[Role, ...] = ("query", "key", "value", "attention_output")
FEED_FORWARD: tuple[Role, ...] = ("feed_forward_input", "feed_forward_output")
LORA_TARGETS: Mapping[str, tuple[Role, ...]] = {
    "attention": ATTENTION,
    "feed_forward": FEED_FORWARD,
    "all": (*ATTENTION, *FEED_FORWARD),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Tuning method.

    Attributes:
        apply: Function that changes a frozen backbone in place: it sets trainable parameters or adds modules.
        learning_rate: Default peak rate of head and layer weights.
        backbone_learning_rate: Default peak rate of trainable parameters of the backbone.
        title: Name in a sentence.
        describe: Function that describes the method with its settings; None if the title is enough.
        adds: ``nothing`` if weights of the network itself are trained; ``folded`` for modules that are merged
            into its weights after training; ``modules`` for modules that stay.
    """

    apply: Callable[[Backbone, TuningConfig], None]
    learning_rate: float
    backbone_learning_rate: float
    title: str
    describe: Callable[[TuningConfig], str] | None = None
    adds: Literal["nothing", "folded", "modules"] = "nothing"


def _probe(backbone: Backbone, config: TuningConfig) -> None:
    """Leave everything frozen."""


def _lora(backbone: Backbone, config: TuningConfig) -> None:
    from peft import LoraConfig

    _inject(
        backbone,
        LoraConfig(
            r=config.r,
            lora_alpha=cast(int, config.lora_alpha),
            lora_dropout=config.lora_dropout,
            target_modules=_names(backbone, config, *LORA_TARGETS[config.lora_targets]),
            use_dora=config.method == "dora",
        ),
    )


def _ia3(backbone: Backbone, config: TuningConfig) -> None:
    from peft import IA3Config

    # Keys and values are scaled after their layers, feed-forward activations before the second one.
    feed_forward = _names(backbone, config, "feed_forward_output")
    scaled = _names(backbone, config, "key", "value") + feed_forward
    _inject(backbone, IA3Config(target_modules=scaled, feedforward_modules=feed_forward))


def _bitfit(backbone: Backbone, config: TuningConfig) -> None:
    for name in _linears_and_norms(backbone, config):
        backbone.network.get_submodule(name).bias.requires_grad_(True)


def _layernorm(backbone: Backbone, config: TuningConfig) -> None:
    from peft import LNTuningConfig

    norms = _norms(backbone, config)
    with warnings.catch_warnings():
        # PEFT looks for the inputs and outputs of each layer that it tunes, and warns that a norm has none.
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        _inject(backbone, LNTuningConfig(target_modules=norms))


def _adapter(backbone: Backbone, config: TuningConfig) -> None:
    norms = _names(backbone, config, "norm")
    for name in _names(backbone, config, "residual_end"):
        adapter = BottleneckAdapter(
            backbone.network.get_submodule(name),
            hidden_size=backbone.hidden_size,
            adapter_size=config.adapter_size,
        )
        backbone.network.set_submodule(name, adapter)
    for name in norms:
        backbone.network.get_submodule(name).requires_grad_(True)


def _ssf(backbone: Backbone, config: TuningConfig) -> None:
    for name in _linears_and_norms(backbone, config):
        backbone.network.set_submodule(name, ScaleShift(backbone.network.get_submodule(name)))


def _top_layers(backbone: Backbone, config: TuningConfig) -> None:
    if config.num_top_layers > backbone.num_layers:
        raise UserError(
            f"tuning.num_top_layers is {config.num_top_layers}, but the backbone has {backbone.num_layers} "
            f"transformer layers in use. Set it to 1 to {backbone.num_layers}.",
            code="top-layers-out-of-range",
        )
    for name, parameter in backbone.network.named_parameters():
        parameter.requires_grad_(layers_above(name, backbone) < config.num_top_layers)


def _full(backbone: Backbone, config: TuningConfig) -> None:
    backbone.requires_grad_(True)
    backbone.conv_encoder.requires_grad_(bool(config.train_conv_encoder))
    for name in backbone.encoder.unused:
        backbone.network.get_submodule(name).requires_grad_(False)


def _describe_lora(config: TuningConfig) -> str:
    return (
        f"{METHODS[config.method].title}, rank {config.r}, alpha {config.lora_alpha:g}, dropout "
        f"{config.lora_dropout:g}, on {config.lora_targets.replace('_', '-')} linear layers"
    )


def _describe_adapter(config: TuningConfig) -> str:
    return f"bottleneck adapters of size {config.adapter_size}, and the LayerNorms beside them"


def _describe_top_layers(config: TuningConfig) -> str:
    count = config.num_top_layers
    return f"fine-tuning of the last {f'{count} transformer layers' if count > 1 else 'transformer layer'}"


def _describe_full(config: TuningConfig) -> str:
    conv = "trained" if config.train_conv_encoder else "frozen"
    return f"full fine-tuning, convolutional encoder {conv}"


# Rates. Ding and Lerch (arXiv 2411.19371): 1e-4 for LoRA, BitFit, SSF and bottleneck adapters, head
# included, 1e-5 for the backbone in full tuning. MusicFM's authors pair that with 1e-4 on the head; the
# last layers alone take the same, and DoRA takes LoRA's. (IA)³ and LayerNorms have 3e-3 and 3e-4 in
# the code of T-Few (arXiv 2205.05638; r-three/t-few, configs/ia3.json and layernorm.json). 1e-3 is in
# the middle of the range that the published probes search (MARBLE, arXiv 2306.10548).
METHODS: dict[TuningMethod, Method] = {
    "probe": Method(
        apply=_probe,
        learning_rate=1e-3,
        backbone_learning_rate=0.0,
        title="a probe on the frozen backbone",
    ),
    "lora": Method(
        apply=_lora,
        learning_rate=1e-4,
        backbone_learning_rate=1e-4,
        title="LoRA",
        describe=_describe_lora,
        adds="folded",
    ),
    "dora": Method(
        apply=_lora,
        learning_rate=1e-4,
        backbone_learning_rate=1e-4,
        title="DoRA",
        describe=_describe_lora,
        adds="folded",
    ),
    "ia3": Method(
        apply=_ia3,
        learning_rate=1e-4,
        backbone_learning_rate=3e-3,
        title="(IA)³ on keys, values and feed-forward activations",
        adds="folded",
    ),
    "bitfit": Method(
        apply=_bitfit,
        learning_rate=1e-4,
        backbone_learning_rate=1e-4,
        title="BitFit, the biases of the transformer layers",
    ),
    "layernorm": Method(
        apply=_layernorm,
        learning_rate=1e-4,
        backbone_learning_rate=3e-4,
        title="LayerNorm tuning of the transformer layers",
        adds="folded",
    ),
    "adapter": Method(
        apply=_adapter,
        learning_rate=1e-4,
        backbone_learning_rate=1e-4,
        title="bottleneck adapters",
        describe=_describe_adapter,
        adds="modules",
    ),
    "ssf": Method(
        apply=_ssf,
        learning_rate=1e-4,
        backbone_learning_rate=1e-4,
        title="SSF, scale and shift after each linear layer and LayerNorm of the transformer layers",
        adds="folded",
    ),
    "top_layers": Method(
        apply=_top_layers,
        learning_rate=1e-4,
        backbone_learning_rate=1e-5,
        title="fine-tuning of the last transformer layers",
        describe=_describe_top_layers,
    ),
    "full": Method(
        apply=_full,
        learning_rate=1e-4,
        backbone_learning_rate=1e-5,
        title="full fine-tuning",
        describe=_describe_full,
    ),
}


def apply_tuning(backbone: Backbone, config: TuningConfig) -> None:
    """Make parameters of a backbone trainable, in place, by the method of the config.

    Raises:
        UserError: The backbone has fewer layers than ``num_top_layers``, or a layer lacks a role that the
            method needs.
    """
    backbone.requires_grad_(False)
    METHODS[config.method].apply(backbone, config)


def describe_tuning(config: TuningConfig) -> str:
    """Return a description of a method with its settings."""
    method = METHODS[config.method]
    return method.describe(config) if method.describe else method.title


def merge_adapters(backbone: AnyBackbone) -> None:
    """Merge added modules into the weights of their layers, in place; bottleneck adapters stay."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.network.named_modules()):
        if isinstance(module, ScaleShift):
            backbone.network.set_submodule(name, module.fold())
        elif isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.network.set_submodule(name, module.get_base_layer())


def trained_parts(backbone: AnyBackbone) -> dict[str, int]:
    """Return the number of trainable parameters in each part of the backbone, from its input up."""
    counts: Counter[str] = Counter()
    layers = set()
    if not isinstance(backbone, Backbone):
        return {}
    for name, parameter in backbone.network.named_parameters():
        if parameter.requires_grad:
            depth = layers_above(name, backbone)
            if depth < backbone.num_layers:
                layers.add(backbone.num_layers - depth)
                counts["layers"] += parameter.numel()
            else:
                is_conv = name.startswith(f"{backbone.encoder.conv_encoder}.")
                counts["conv encoder" if is_conv else "projection and positions"] += (
                    parameter.numel()
                )
    if layers:
        numbered = f"transformer layers {min(layers)} to {max(layers)} of {backbone.num_layers}"
        counts[numbered] = counts.pop("layers")
    return dict(counts)


def _names(backbone: Backbone, config: TuningConfig, *roles: Role) -> list[str]:
    """Return the names of the modules of all transformer layers that have these roles."""
    return list(modules_with_roles(backbone, *roles, user=f"tuning.method {config.method}"))


def _norms(backbone: Backbone, config: TuningConfig) -> list[str]:
    """Return the names of the LayerNorms in the transformer layers and above them."""
    above = [] if backbone.final_norm is None else [backbone.final_norm]
    return _names(backbone, config, "norm") + above


def _linears_and_norms(backbone: Backbone, config: TuningConfig) -> list[str]:
    """Return the names of linear layers and LayerNorms in the transformer layers and above them."""
    return _names(backbone, config, *ATTENTION, *FEED_FORWARD) + _norms(backbone, config)


def _inject(backbone: Backbone, config: "PeftConfig") -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, backbone.network)
