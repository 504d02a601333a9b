"""Lookup of a backbone's modules by their role, whatever their name in its family."""

from torch import nn

from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.encoders import Role
from m2v_finetune.errors import UserError


def modules_with_roles(backbone: Backbone, *roles: Role, user: str) -> dict[str, nn.Module]:
    """Return the modules of all layers that have one of these roles, by their names in the network.

    Args:
        backbone: Network with its family.
        roles: Roles, of which every layer must have all modules.
        user: Name of the method that needs them, for the message.

    Raises:
        UserError: There is no layer, a layer lacks a module of a role, or the family has none for a role.
    """
    if not backbone.layers:
        raise UserError(
            f"{user} needs transformer layers, and none of {backbone.source} is in use. Set "
            "backbone.num_layers and backbone.layer_weighting to at least 1, or choose another method.",
            code="backbone-without-layers",
        )
    found: dict[str, nn.Module] = {}
    for index, layer in enumerate(backbone.layers):
        modules = dict(layer.named_modules())
        for role in roles:
            names = backbone.encoder.roles.get(role, ())
            missing = [name for name in names if name not in modules]
            if missing or not names:
                raise UserError(
                    f"{user} needs the role '{role}' in every transformer layer. Layer {index} of "
                    f"{backbone.source}, a {backbone.encoder.config_class.model_type} network, has "
                    f"{'no ' + ', no '.join(missing) if missing else 'no module of it'}. Choose another "
                    "method, or correct the roles of the family in m2v_finetune/backbones/encoders "
                    "(docs/adding-an-architecture.md).",
                    code="backbone-role-missing",
                )
            found |= {f"{backbone.encoder.layers}.{index}.{name}": modules[name] for name in names}
    return found
