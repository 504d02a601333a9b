"""Groups of trainable parameters, each with its learning rate."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from m2v_finetune.backbones import AnyBackbone, Backbone


def parameter_groups(
    backbone: AnyBackbone,
    others: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    backbone_learning_rate: float,
    layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return parameter groups for a torch optimizer; every trainable parameter is in exactly one.

    Args:
        backbone: Backbone, whose parameters get ``backbone_learning_rate``, times ``layer_decay`` for each
            transformer layer above them. All parts before the first layer count as one more layer.
        others: Names and parameters of head and layer weighting, which get ``learning_rate``.
        learning_rate: Peak rate of these others.
        backbone_learning_rate: Peak rate of the top layer.
        layer_decay: Factor from a layer to the one below.
        weight_decay: Weight decay of matrices; vectors get none.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name``.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}

    def add(group: str, lr: float, parameter: nn.Parameter, *, is_matrix: bool) -> None:
        if not parameter.requires_grad:
            return
        entry = groups.setdefault(
            (group, is_matrix),
            {
                "name": f"{group}, {'matrices' if is_matrix else 'vectors'}",
                "params": [],
                "lr": lr,
                "weight_decay": weight_decay if is_matrix else 0.0,
            },
        )
        entry["params"].append(parameter)

    for _, parameter in others:
        add("head and layer weights", learning_rate, parameter, is_matrix=parameter.ndim > 1)
    if isinstance(backbone, Backbone):  # vectors computed elsewhere have no parameters
        for name, parameter in backbone.network.named_parameters():
            depth = layers_above(name, backbone)
            add(
                f"backbone, {depth} below the top",
                backbone_learning_rate * layer_decay**depth,
                parameter,
                # (IA)³ has scaling vectors in the shape of matrices: decay would pull them from 1 to 0.
                is_matrix=sum(size > 1 for size in parameter.shape) > 1,
            )
    return list(groups.values())


def layers_above(name: str, backbone: Backbone) -> int:
    """Return the number of transformer layers above a parameter of the network."""
    in_layers = f"{backbone.encoder.layers}."
    if name.startswith(in_layers):
        return backbone.num_layers - 1 - int(name.removeprefix(in_layers).partition(".")[0])
    return 0 if name.startswith(f"{backbone.final_norm}.") else backbone.num_layers
