"""Settings of the model: backbone, head and tuning."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from m2v_finetune.config.ranges import at_least, in_range, positive
from m2v_finetune.errors import UserError

TuningMethod = Literal[
    "probe",
    "lora",
    "dora",
    "ia3",
    "bitfit",
    "layernorm",
    "adapter",
    "ssf",
    "top_layers",
    "full",
]
HeadKind = Literal["linear", "mlp", "logistic", "ridge"]
LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "lora_targets")
TUNING_SETTINGS: dict[TuningMethod, tuple[str, ...]] = {
    "probe": (),
    "lora": LORA_SETTINGS,
    "dora": LORA_SETTINGS,
    "ia3": (),
    "bitfit": (),
    "layernorm": (),
    "adapter": ("adapter_size",),
    "ssf": (),
    "top_layers": ("num_top_layers",),
    "full": ("train_conv_encoder",),
}
"""Settings of `TuningConfig` for each tuning method, beside its name."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Settings of the pre-trained network and of its layer weighting.

    Args:
        source: Name from `m2v backbones`, Hub id, or local folder.
        revision: Branch, tag or commit of a Hub id. Default: the default branch.
        num_layers: Number of transformer layers, from the first (6 of 12 in Ding and Lerch). Default: all.
        layer_weighting: Combination of the hidden states. ``softmax`` trains a convex combination of all of
            them (SUPERB); ``conv1d`` trains any linear combination with an offset (music2vec's model
            card); ``last`` selects the network's output; a number selects that hidden state (0 is the
            input of the first layer), and the layers above it are not computed.
        spec_augment: Whether spans of frames are masked in training, with the probabilities of the
            checkpoint.
    """

    source: str = "music2vec-v1"
    revision: str | None = None
    num_layers: int | None = None
    layer_weighting: Literal["softmax", "conv1d", "last"] | int = "softmax"
    spec_augment: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_layers is not None:
            at_least("backbone.num_layers", self.num_layers, 1)
        if isinstance(self.layer_weighting, int):
            at_least("backbone.layer_weighting", self.layer_weighting, 0)
            if self.num_layers is not None and self.layer_weighting > self.num_layers:
                raise UserError(
                    f"backbone.layer_weighting selects hidden state {self.layer_weighting}, but "
                    f"backbone.num_layers keeps the states 0 to {self.num_layers}.",
                    code="settings-conflict",
                )

    @property
    def layers_in_use(self) -> int | None:
        """Number of transformer layers that are computed; None for all."""
        if isinstance(self.layer_weighting, int):
            return self.layer_weighting
        return self.num_layers


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Settings of the head on the weighted hidden states.

    Args:
        pooling: Pooling of a window's frames into one vector: ``mean``, ``mean_std`` (mean and standard
            deviation), or ``attention`` (a trained weighted mean).
        kind: Network of the head. ``linear`` has one layer, and can be exported to transformers; ``mlp`` has
            a hidden layer too, as the published probes, and is the default of tasks of frames. ``logistic``
            (classes and tags) and ``ridge`` (numbers) are linear, but scikit-learn solves them on the
            features of a frozen backbone, in seconds, with the penalty that is best on validation; optimizer
            and epochs have no effect. Choose them for few labelled tracks.
        hidden_size: Size of the hidden layer of ``mlp``, and of the head of separation.
        dropout: Dropout probability before each linear layer.
        standardize: Whether each input feature of the head is standardised to mean 0 and standard
            deviation 1 over the training windows, measured in one pass before training. Features of a
            frozen backbone often vary little between tracks, compared with their mean.
    """

    pooling: Literal["mean", "mean_std", "attention"] = "mean"
    kind: HeadKind = "linear"
    hidden_size: int = 512
    dropout: float = 0.2
    standardize: bool = True

    def __post_init__(self) -> None:
        """Check ranges."""
        at_least("head.hidden_size", self.hidden_size, 1)
        in_range("head.dropout", self.dropout, 0.0, 1.0)

    def require_hidden_layer(self) -> None:
        """Raise `UserError` if the size of a hidden layer is set, and the head has none."""
        if self.kind != "mlp" and self.hidden_size != HeadConfig.hidden_size:
            raise UserError(
                f"head.hidden_size is {self.hidden_size}, but head.kind {self.kind} has no hidden layer. Set "
                "head.kind to mlp, or remove head.hidden_size.",
                code="head-unsupported-setting",
            )

    @property
    def is_solved(self) -> bool:
        """Whether scikit-learn solves the head, in place of training it by steps."""
        return self.kind in ("logistic", "ridge")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Trainable parameters of the backbone; most settings apply to some methods only.

    Args:
        method: Tuning method. ``probe`` keeps the backbone frozen; ``lora`` and ``dora`` train low-rank
            updates; ``ia3`` scales of keys, values and feed-forward activations; ``bitfit`` the biases;
            ``layernorm`` the LayerNorms; ``adapter`` small networks after attention and feed-forward
            blocks; ``ssf`` scales and shifts of all layers' outputs; ``top_layers`` the last transformer
            layers; ``full`` all weights. docs/tuning.md compares them.
        r: Rank of the updates of ``lora`` and ``dora``.
        lora_alpha: Scale of these updates: each is multiplied by lora_alpha / r.
        lora_dropout: Dropout probability before these updates.
        lora_targets: Linear layers with an update: those of ``attention`` (q, k, v, out), of the
            ``feed_forward`` blocks, or ``all`` of them (best in Ding and Lerch, arXiv 2411.19371).
        adapter_size: Bottleneck size of ``adapter`` (16 in Ding and Lerch).
        num_top_layers: Number of transformer layers that ``top_layers`` trains. A quarter of a network's
            layers reached 90 % of the quality of all, on text (Lee et al., arXiv 1911.03090).
        train_conv_encoder: Whether ``full`` trains the convolutional encoder too. Default: only in a small
            backbone (fewer than 20 million parameters).
    """

    method: TuningMethod = "probe"
    r: int = 2
    lora_alpha: float = 4.0
    lora_dropout: float = 0.0
    lora_targets: Literal["attention", "feed_forward", "all"] = "all"
    adapter_size: int = 16
    num_top_layers: int = 3
    train_conv_encoder: bool | None = None

    def __post_init__(self) -> None:
        """Check ranges, and that the method uses all given settings."""
        at_least("tuning.r", self.r, 1)
        positive("tuning.lora_alpha", self.lora_alpha)
        in_range("tuning.lora_dropout", self.lora_dropout, 0.0, 1.0)
        at_least("tuning.adapter_size", self.adapter_size, 1)
        at_least("tuning.num_top_layers", self.num_top_layers, 1)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name not in self.used() and value != setting.default:
                users = [name for name, used in TUNING_SETTINGS.items() if setting.name in used]
                raise UserError(
                    f"tuning.{setting.name} is {value}, which tuning.method {self.method} does not use. "
                    f"Remove it, or set tuning.method to {' or '.join(users)}.",
                    code="settings-conflict",
                )

    def used(self) -> dict[str, Any]:
        """Return the method and the settings that it uses."""
        return {name: getattr(self, name) for name in ("method", *TUNING_SETTINGS[self.method])}
