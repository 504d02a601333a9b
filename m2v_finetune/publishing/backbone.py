"""Publishing of a pre-trained backbone: its folder, model card and upload to the Hub."""

import json
import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from m2v_finetune.backbones import Backbone
from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.config import PretrainingConfig
from m2v_finetune.errors import UserError
from m2v_finetune.hub import is_repo_id
from m2v_finetune.hub.licence import licence_metadata
from m2v_finetune.model import LIBRARY_NAME, upload_model
from m2v_finetune.plotting.pretraining import (
    accuracy_curves,
    plot_pretraining,
    variance_curves,
)
from m2v_finetune.pretraining.replay import REPLAY
from m2v_finetune.publishing.card import (
    TRAINING_PICTURE,
    UNKNOWN_LICENCE,
    write_card,
)
from m2v_finetune.publishing.harmless import harmless
from m2v_finetune.publishing.objectives import OBJECTIVES
from m2v_finetune.publishing.text import public_settings
from m2v_finetune.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def publish_backbone(
    backbone: Backbone, folder: RunFolder, results: Mapping[str, Any], config: PretrainingConfig
) -> None:
    """Write ``plots/`` and ``model/`` of a run, and push the backbone if the config names a repository.

    Args:
        backbone: Backbone with the weights to publish.
        folder: Folder of the run.
        results: Content of results.json.
        config: All settings.

    Raises:
        UserError: The push failed. The backbone is in the run folder.
    """
    folder.model.mkdir(exist_ok=True)
    backbone.save_pretrained(folder.model)
    with harmless(f"The plot {TRAINING_PICTURE}"):
        curves = (
            accuracy_curves([*config.masked_prediction.label_sizes()])
            if config.objective == "masked_prediction"
            else variance_curves(
                {
                    "target_variance": config.pretrain.min_target_variance,
                    "prediction_variance": config.pretrain.min_prediction_variance,
                }
            )
        )
        plot_pretraining(folder.metrics, folder.plots / TRAINING_PICTURE, curves=curves)
        shutil.copytree(folder.plots, folder.model / "plots", dirs_exist_ok=True)
    with harmless("The model card"):
        write_card(
            folder.model, render_backbone_card(folder.path, results, repo_id=config.publish.repo_id)
        )
    logger.info("The backbone and its card are in %s", folder.model)
    if config.publish.repo_id is None:
        return
    try:
        url = upload_model(folder.model, config.publish.repo_id, private=config.publish.private)
    except UserError as error:
        words = ["m2v", "push", str(folder.model), config.publish.repo_id]
        command = shlex.join([*words, "--private"] if config.publish.private else words)
        raise UserError(
            f"{error}\nThe backbone is saved in {folder.model}. Push it later with:\n  {command}",
            code=error.code,
        ) from error
    logger.info("Pushed to %s", url)


def render_backbone_card(run_dir: Path, results: Mapping[str, Any], *, repo_id: str | None) -> str:
    """Return the model card of a pre-trained backbone: metadata that the Hub reads, then Markdown.

    Args:
        run_dir: Run folder with config.yaml and environment.json.
        results: Content of results.json.
        repo_id: Repository on the Hub; None for a backbone that stays in a folder.
    """
    folder = RunFolder(run_dir)
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    settings = public_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    backbone, dataset = results["backbone"], results["dataset"]
    objective = OBJECTIVES[results["objective"]]
    name = repo_id.split("/")[-1] if repo_id else "Pre-trained backbone"
    licence = backbone["licence"] or UNKNOWN_LICENCE
    source = public_settings(backbone["source"])
    initial_weights = (
        f"from random weights, by the architecture `{source}`"
        if backbone["is_new"]
        else f"from `{source}`"
        + (f" at `{backbone['revision']}`" if backbone["revision"] else "")
        + ", and has the same licence"
    )
    is_on_cpu = results["device"] == "cpu"
    machine = (
        f"{environment['num_cpus']} CPU cores" if is_on_cpu else ", ".join(environment["gpus"])
    )
    packages = ", ".join(f"{key} {value}" for key, value in environment["packages"].items())
    music = _described_music(results, "train", dataset)
    datasets = [dataset]
    if "replay_dataset" in results:
        datasets.append(results["replay_dataset"])
        share = settings["data"]["replay_share"]
        music += f";\nreplayed beside it, in {share:.0%} of the windows: " + _described_music(
            results, REPLAY, results["replay_dataset"]
        )
    metadata = ModelCardData(
        **licence_metadata(licence),
        library_name="transformers",
        tags=["audio", "music", *objective.tags, LIBRARY_NAME],
        base_model=None if backbone["is_new"] else _hub_id(backbone["source"]),
        datasets=[one["name"] for one in datasets if is_repo_id(one["name"])] or None,
    ).to_yaml()
    return f"""\
---
{metadata}
---

# {name}

A backbone for music: {results["num_parameters"]:,} parameters, {backbone["num_layers"]} transformer layers
of hidden size {backbone["hidden_size"]}, {backbone["sample_rate"]} Hz,
{backbone["frame_rate"]} frames a second. It was pre-trained by the objective of {objective.title},
without labels, {initial_weights}.

## How to use

```python
from m2v_finetune.backbones import load_backbone

backbone = load_backbone("{repo_id or "path/to/model"}")
```

or by `--backbone.source {repo_id or "path/to/model"}` in every recipe of {LIBRARY_NAME}.

## Training

{music};
{results["num_steps"]:,} steps of {results["total_batch_size"]} windows of
{settings["data"]["window_seconds"]:g} s in {results["seconds"]["training"]:,.0f} s on {machine}.
{objective.method(settings[objective.section])}

On {results["num_tracks"]["validation"]:,} held-out tracks {objective.result(results)}.

![Loss and metrics of the run](plots/{TRAINING_PICTURE})

## Licence

{licence}

## Settings and versions

```yaml
{yaml.safe_dump(settings, sort_keys=False).strip()}
```

{packages}; Python {environment["python"]}.

## Citation

{objective.citation}
"""


def _described_music(results: Mapping[str, Any], split: str, dataset: Mapping[str, str]) -> str:
    """Return title and licence of a data set, and the tracks and hours of a split of it."""
    licence = f", {dataset['licence']}" if dataset["licence"] else ""
    return (
        f"{dataset['title'] or dataset['name']}{licence}: "
        f"{results['num_tracks'][split]:,} tracks, {results['hours'][split]:.2f} h"
    )


def _hub_id(source: str) -> str | None:
    published = published_checkpoint(source)
    if published is not None:
        return published.hub_id
    return source if is_repo_id(source) and not Path(source).is_dir() else None
