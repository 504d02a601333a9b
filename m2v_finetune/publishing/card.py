"""The model card of a run, rendered from the run's own files.

A card is public, so it shows nothing of the machine that it need not: of a local path only the last
part, of the environment only versions and hardware, and never the command that was typed.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.hub import is_repo_id
from m2v_finetune.tasks import TASKS
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.tuning import METHODS

UNKNOWN_LICENCE = "unknown"  # an identifier of the Hub
CONFIDENCE_LEVEL = 0.95
MODEL_PLACEHOLDER = "path/to/model"
CAPTIONS = {
    "layer_weights": "Weight of each hidden state of the backbone",
    "training": "Training loss, and validation metrics of whole tracks",
}
TUNING_NAMES = {
    "probe": "a probe on the frozen backbone",
    "lora": "LoRA",
    "full": "full fine-tuning",
}
# What prints a prediction; other tasks print the prediction as it is.
PREDICTION_SUFFIXES = {"tagging": ".top(5)"}
# By the `citation` of a checkpoint. Source: arXiv.
BACKBONE_CITATIONS = {
    "arXiv:2212.02508": """\
@misc{li2022music2vec,
  title         = {{MAP-Music2Vec}: A Simple and Effective Baseline for Self-Supervised Music Audio Representation Learning},
  author        = {Li, Yizhi and Yuan, Ruibin and Zhang, Ge and others},
  year          = {2022},
  eprint        = {2212.02508},
  archivePrefix = {arXiv}
}""",
    "arXiv:2306.00107": """\
@misc{li2023mert,
  title         = {{MERT}: Acoustic Music Understanding Model with Large-Scale Self-supervised Training},
  author        = {Li, Yizhi and Yuan, Ruibin and Zhang, Ge and others},
  year          = {2023},
  eprint        = {2306.00107},
  archivePrefix = {arXiv}
}""",
}


def render_card(
    run_dir: Path, card_data: Mapping[str, Any], *, repo_id: str | None, plots: Sequence[str]
) -> str:
    """Return the model card of a finished run: metadata that the Hub reads, then Markdown.

    The model-index has one result for each metric. Its format knows no intervals; they stand among the
    metric's ``args``, as ``confidence_level``, ``low`` and ``high``.

    Args:
        run_dir: Holds config.yaml, environment.json and results.json.
        card_data: What `TaskModel.card_data` returns; a missing ``license`` is an unknown one.
        repo_id: Where the model is or will be on the Hub; None for a model that stays in a folder.
        plots: Pictures to show, as paths relative to the card, such as ``plots/layer_weights.png``.
    """
    folder = RunFolder(run_dir)
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    config = public_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    licence = card_data.get("license") or UNKNOWN_LICENCE
    backbone = _backbone(results, card_data)
    sections = [
        _summary(results, backbone, repo_id),
        _section("Results", _results(results), _pictures(plots, layers=False)),
        _section("Layers", *_layers(results, config, plots)),
        _section("How to use", _usage(results, repo_id)),
        _section("Training data", _training_data(results)),
        _section("Method", _method(results, config), _pictures(plots, training=True)),
        _section("Licence", _licence(results, licence, backbone)),
        _section("Limits", _limits(results)),
        _section("Settings and versions", _settings(config), _versions(environment)),
        _section("Citation", *_citations(results)),
    ]
    metadata = _metadata(results, card_data, licence, repo_id).to_yaml()
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(part for part in sections if part) + "\n"
