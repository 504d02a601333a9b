"""Model card of a run: the facts, from the run's own files. The sentences are in model_card.md.jinja.

A card is public, so it shows little of the machine: only the last part of a local path, only versions
and hardware of the environment, and never the command line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.files import write_atomically
from m2v_finetune.hub import is_repo_id
from m2v_finetune.hub.licence import licence_metadata, licence_of
from m2v_finetune.model import CARD_FILE, LIBRARY_NAME, MODEL_PLACEHOLDER
from m2v_finetune.publishing.method import (
    backbone_link,
    is_of_vectors,
    is_random,
    method_rows,
    tuning_name,
)
from m2v_finetune.publishing.text import (
    counted,
    escaped,
    fenced,
    public_settings,
    shown_number,
)
from m2v_finetune.tasks import find_task
from m2v_finetune.training.calibrating import describe_calibration
from m2v_finetune.training.novelty import describe_novelty
from m2v_finetune.training.results_log import listed
from m2v_finetune.training.run_folder import RunFolder, read_resumes

CONFIDENCE_LEVEL = 0.95
UNKNOWN_LICENCE = "unknown"  # the Hub's identifier for it
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
LAYER_PICTURE, TRAINING_PICTURE = "layer_weights.png", "training.png"
RELIABILITY_PICTURE = "reliability.png"
# The papers of the published checkpoints, by `Checkpoint.citation`. Source: arXiv.
BACKBONE_CITATIONS = {
    "arXiv:2212.02508": """\
@misc{li2022music2vec,
  title         = {{MAP-Music2Vec}: A Simple and Effective Baseline for Self-Supervised
                   Music Audio Representation Learning},
  author        = {Li, Yizhi and Yuan, Ruibin and Zhang, Ge and others},
  year          = {2022},
  eprint        = {2212.02508},
  archivePrefix = {arXiv}
}""",
    "arXiv:2306.00107": """\
@misc{li2023mert,
  title         = {{MERT}: Acoustic Music Understanding Model with Large-Scale
                   Self-supervised Training},
  author        = {Li, Yizhi and Yuan, Ruibin and Zhang, Ge and others},
  year          = {2023},
  eprint        = {2306.00107},
  archivePrefix = {arXiv}
}""",
}


def render_card(
    run_dir: Path,
    card_data: Mapping[str, Any],
    *,
    repo_id: str | None,
    captions: Mapping[str, str],
    native_usage: str = "",
) -> str:
    """Return the model card of a finished run: metadata that the Hub reads, then Markdown.

    The sentences are in ``model_card.md.jinja``. Text of users is escaped here, and is never a template.

    The model-index of the metadata has one result for each metric. Its format has no intervals, so
    they are in the metric's ``args``: ``confidence_level``, ``low`` and ``high``.

    Args:
        run_dir: Run folder with config.yaml, environment.json and results.json.
        card_data: Output of `TaskModel.card_data`; without ``license`` the licence is unknown.
        repo_id: Repository on the Hub; None for a model that stays in a folder.
        captions: Caption of each plot in the folder ``plots/`` beside the card. ``layer_weights.png`` and
            ``training.png`` have sections of their own, others are shown with the results.
        native_usage: Section about the use in transformers alone, if the model folder serves it.
    """
    folder = RunFolder(run_dir)
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    config = public_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    resumes = read_resumes(folder)
    licence = licence_of(card_data) or UNKNOWN_LICENCE
    facts = {
        "title": escaped(_model_name(results, repo_id)),
        "task": _task_name(results),
        "library_name": LIBRARY_NAME,
        "native_usage": native_usage.strip(),
        "model": repo_id or MODEL_PLACEHOLDER,
        "usage_example": find_task(results["task"]).usage_example,
        "is_of_vectors": is_of_vectors(results),
        "has_random_weights": is_random(results),
        "backbone": backbone_link(results, card_data),
        "tuning": tuning_name(results),
        "licence": "" if licence == UNKNOWN_LICENCE else escaped(licence),
        "method_rows": method_rows(results, card_data, config, resumes),
        "has_changed_settings": any(one["changed"] for one in resumes),
        "settings": fenced(_as_yaml(config), "yaml"),
        "version_rows": _version_rows([environment, *resumes]),
        **_metric_facts(results),
        **_label_facts(results),
        **_layer_facts(results),
        **_data_facts(results),
        **_picture_facts(captions),
        **_citation_facts(results),
    }
    metadata = _metadata(results, card_data, licence, repo_id)
    return f"{ModelCard.from_template(metadata, template_path=str(TEMPLATE), **facts)}\n"


def write_card(folder: Path, text: str) -> None:
    """Write a card into a model folder; bytes of a name that are not UTF-8 are escaped."""
    content = text.encode(errors="backslashreplace")
    write_atomically(folder / CARD_FILE, lambda unfinished: unfinished.write_bytes(content))


def _metadata(
    results: Mapping[str, Any], card_data: Mapping[str, Any], licence: str, repo_id: str | None
) -> ModelCardData:
    name = results["dataset"]["name"]
    evaluations = [
        EvalResult(
            task_type=card_data["pipeline_tag"],
            task_name=_task_name(results),
            dataset_type=name if is_repo_id(name) else _slug(name),
            dataset_name=results["dataset"]["title"] or name,
            dataset_split=results["split"],
            metric_type=key,
            metric_name=results["metric_names"][key],
            metric_value=round(metric["value"], 4),
            metric_args={
                "confidence_level": CONFIDENCE_LEVEL,
                "low": round(metric["low"], 4),
                "high": round(metric["high"], 4),
            },
        )
        for key, metric in results["metrics"].items()
        if metric["value"] is not None
    ]
    return ModelCardData(
        **{**card_data, **licence_metadata(licence)},
        datasets=[name] if is_repo_id(name) else None,
        metrics=list(results["metrics"]),
        model_name=_model_name(results, repo_id),
        eval_results=evaluations or None,
    )


def _metric_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    validation = results["validation"]
    return {
        "split": results["split"],
        **fold_facts(results),
        "num_tracks": counted(results["num_tracks"], "track"),
        "about_metrics": results["about_metrics"],
        "calibration": escaped(
            f"{describe_calibration(results)} {describe_novelty(results)}".strip()
        ),
        "is_calibrated": bool((results.get("calibration") or {}).get("method")),
        "outputs_hardly_vary": results.get("outputs_hardly_vary"),
        "metric_rows": [
            [
                results["metric_names"][key],
                shown_number(metric["value"]),
                f"{shown_number(metric['low'])} to {shown_number(metric['high'])}"
                if metric["low"] is not None
                else "-",
                shown_number(validation.get(key)),
            ]
            for key, metric in results["metrics"].items()
        ],
    }


def fold_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return number of folds, and mean and spread of each metric in words; nothing without folds."""
    spreads: Mapping[str, Any] = results.get("folds") or {}
    return {
        "num_folds": max((len(one["values"]) for one in spreads.values()), default=0),
        "folds": [
            f"{results['metric_names'][key]} {shown_number(one['mean'])} in the mean, standard deviation "
            f"{shown_number(one['std'])}"
            for key, one in spreads.items()
            if one["mean"] is not None
        ],
    }


def _label_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    per_label = results.get("per_label") or {}
    keys = [key for key in next(iter(per_label.values()), {}) if key != "num_positive"]
    return {
        "num_labels": counted(len(per_label), "label") if per_label else "",
        "label_metrics": [results["metric_names"].get(key, key) for key in keys],
        "label_rows": [
            [escaped(label), *(shown_number(own[key]) for key in keys), f"{own['num_positive']:,}"]
            for label, own in per_label.items()
        ],
        "labels_left_out": listed(
            [escaped(label) for label in results.get("labels_left_out") or []]
        ),
    }


def _layer_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    weights = results["layer_weights"]
    largest = max(range(len(weights)), key=lambda i: abs(weights[i]), default=0)
    return {
        "layer_weighting": results["training"]["layer_weighting"],
        "is_solved": results["training"].get("solved_by") is not None,
        "num_states": len(weights),
        "largest_state": largest,
        "largest_weight": f"{weights[largest]:.3f}" if weights else "",
    }


def _data_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    dataset = results["dataset"]
    title = escaped(dataset["title"] or dataset["name"])
    is_address = re.fullmatch(r"https?://[^\s<>]+", dataset["homepage"])
    return {
        "dataset": f"[{title}](<{dataset['homepage']}>)" if is_address else title,
        "dataset_title": title,
        "data_licence": escaped(dataset["licence"]),
        "tracks_of_splits": [
            f"{number:,} for {split}" for split, number in results["num_tracks_of_splits"].items()
        ],
        "skipped_of_splits": [
            f"{number:,} in {split}"
            for split, number in results["num_skipped_tracks"].items()
            if number
        ],
    }


def _picture_facts(captions: Mapping[str, str]) -> dict[str, Any]:
    pictures = {name: f"![{caption}](plots/{name})" for name, caption in captions.items()}
    return {
        "layer_picture": pictures.pop(LAYER_PICTURE, ""),
        "training_picture": pictures.pop(TRAINING_PICTURE, ""),
        "result_pictures": list(pictures.values()),
    }


def _citation_facts(results: Mapping[str, Any]) -> dict[str, str]:
    published = published_checkpoint(results["backbone"]["source"])
    paper = published.citation if published else ""
    of_backbone = BACKBONE_CITATIONS.get(paper, "")
    of_data = results["dataset"]["citation"].strip()
    is_bibtex = of_data.startswith("@")
    return {
        "backbone_paper": f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})",
        "backbone_citation": of_backbone and fenced(of_backbone, "bibtex"),
        "data_citation": fenced(of_data, "bibtex")
        if is_bibtex
        else of_data and f"> {escaped(of_data)}",
    }


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).rstrip()


def _version_rows(environments: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return rows of versions and machines, of all of them if a run was resumed on others."""
    columns = [_parts(one) for one in environments]
    rows = [
        [name, " -> ".join(dict.fromkeys(column[name] for column in columns if name in column))]
        for name in dict.fromkeys(name for column in columns for name in column)
    ]
    return [[escaped(cell) for cell in row] for row in rows]


def _parts(environment: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Python": environment["python"],
        "Platform": environment["platform"],
        "Processor": f"{environment['processor']}, {environment['num_cpus']} cores",
        "GPUs of the machine": ", ".join(environment["gpus"]) or "none",
        "Processes": str(environment["num_processes"]),
        **environment["packages"],
    }


def _slug(name: str) -> str:
    """Return a name in the characters that the Hub allows for the type of a data set."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "own-data"


def _task_name(results: Mapping[str, Any]) -> str:
    return f"music {results['task']}"


def _model_name(results: Mapping[str, Any], repo_id: str | None) -> str:
    if repo_id:
        return repo_id.split("/")[-1]
    backbone = public_settings(results["backbone"]["source"]).split("/")[-1]
    return f"{backbone}-{results['tuning']}-{results['task']}"
