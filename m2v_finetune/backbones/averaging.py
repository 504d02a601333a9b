"""Average of the weights of backbones that were adapted from one checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCardData

from m2v_finetune.backbones.backbone import Backbone
from m2v_finetune.backbones.loading import load_backbone
from m2v_finetune.backbones.network_parts import other_settings
from m2v_finetune.errors import UserError
from m2v_finetune.files import write_files
from m2v_finetune.hub.licence import joined, licence_metadata


def average_backbones(backbones: Sequence[Backbone]) -> Backbone:
    """Return the first backbone with the mean of all weights, computed in float64.

    The mean of networks makes sense if they were trained from the same weights: then they are near each
    other. Nothing can be checked of that but their architecture.

    Args:
        backbones: At least 2, of one architecture, loaded with ``spec_augment`` or all without; the first is
            changed.

    Raises:
        UserError: There are fewer than 2, or architecture, sample rate or normalisation differ.
    """
    if len(backbones) < 2:
        raise UserError("An average needs at least two backbones.", code="average-too-few")
    first = backbones[0]
    for other in backbones[1:]:
        different = other_settings(first.settings, other.settings)
        different += [
            name
            for name in ("sample_rate", "normalize", "spec_augment")
            if getattr(first, name) != getattr(other, name)
        ]
        if different:
            raise UserError(
                f"{first.source} and {other.source} differ in {', '.join(different)}, so they have no "
                "average. Give backbones that were adapted from one checkpoint.",
                code="average-other-architecture",
            )
    states = [one.network.state_dict() for one in backbones]
    with torch.no_grad():
        for name, tensor in states[0].items():
            if tensor.is_floating_point():
                mean = torch.stack([state[name].double() for state in states]).mean(dim=0)
                tensor.copy_(mean)
    return first


def write_average(sources: Sequence[str], folder: Path) -> Backbone:
    """Load backbones, and write their average to a new folder with a short card.

    Args:
        sources: Names, Hub ids or folders, as of `load_backbone`.
        folder: New or empty folder.

    Returns:
        The average.

    Raises:
        UserError: A backbone cannot be loaded, they do not fit, or the folder is not empty.
    """
    require_new_folder(folder)
    backbones = [load_backbone(source, spec_augment=True) for source in sources]
    licences = {one.licence for one in backbones}
    average = average_backbones(backbones)
    average.licence, _ = average_licence(licences)
    average.save_pretrained(folder)
    write_files(folder, {"README.md": _card(sources, licences).encode()})
    return average


def require_new_folder(folder: Path) -> None:
    """Raise `UserError` if a folder of an average exists, and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is not empty, and nothing in it is overwritten. Name a new folder.",
            code="average-folder-not-empty",
        )


def average_licence(licences: set[str]) -> tuple[str, str]:
    """Return the licence of an average, empty if one is unknown, and a sentence about it."""
    if len(licences) == 1:
        [licence] = licences
        return licence, f"Licence: {licence or 'unknown'}."
    listed = json.dumps(sorted(one or "unknown" for one in licences))
    return joined(
        licences
    ), f"Licences of these backbones: {listed}. All of them hold for the average."


def _card(sources: Sequence[str], licences: set[str]) -> str:
    licence, stated = average_licence(licences)
    names = [Path(source).name if Path(source).is_dir() else source for source in sources]
    metadata = ModelCardData(library_name="transformers", **licence_metadata(licence)).to_yaml()
    listed = "\n".join(f"- `{name}`" for name in names)
    return f"""\
---
{metadata}
---

# Average of backbones

The weights are the mean of those of

{listed}

{stated}
"""
