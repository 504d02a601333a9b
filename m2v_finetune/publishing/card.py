"""Model card of a run, rendered from the run's own files.

A card is public, so it shows little of the machine: only the last part of a local path, only versions
and hardware of the environment, and never the command line.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.files import write_atomically
from m2v_finetune.hub import is_repo_id
from m2v_finetune.model import CARD_FILE
from m2v_finetune.publishing.method import (
    backbone_link,
    is_of_vectors,
    is_random,
    method_table,
    tuning_name,
)
from m2v_finetune.publishing.text import (
    counted,
    details,
    escaped,
    fenced,
    joined,
    public_settings,
    section,
    shown_number,
    table,
)
from m2v_finetune.tasks import find_task
from m2v_finetune.training.results import listed
from m2v_finetune.training.run_folder import RunFolder, read_resumes

CONFIDENCE_LEVEL = 0.95
UNKNOWN_LICENCE = "unknown"  # the Hub's identifier for it
MODEL_PLACEHOLDER = "path/to/model"
LAYER_PICTURE, TRAINING_PICTURE = "layer_weights.png", "training.png"
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
) -> str:
    """Return the model card of a finished run: metadata that the Hub reads, then Markdown.

    The model-index of the metadata has one result for each metric. Its format has no intervals, so
    they are in the metric's ``args``: ``confidence_level``, ``low`` and ``high``.

    Args:
        run_dir: Run folder with config.yaml, environment.json and results.json.
        card_data: Output of `TaskModel.card_data`; without ``license`` the licence is unknown.
        repo_id: Repository on the Hub; None for a model that stays in a folder.
        captions: Caption of each plot in the folder ``plots/`` beside the card. ``layer_weights.png`` and
            ``training.png`` have sections of their own, others are shown with the results.
    """
    folder = RunFolder(run_dir)
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    config = public_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    resumes = read_resumes(folder)
    licence = card_data.get("license") or UNKNOWN_LICENCE
    pictures = {name: f"![{caption}](plots/{name})" for name, caption in captions.items()}
    of_layers, of_training = pictures.pop(LAYER_PICTURE, ""), pictures.pop(TRAINING_PICTURE, "")
    sections = [
        _summary(results, card_data, repo_id),
        section("Results", _results_table(results), *pictures.values(), _label_table(results)),
        section("Layers", _layers(results), of_layers),
        section("How to use", _usage(results, repo_id)),
        section("Training data", _training_data(results)),
        section("Method", method_table(results, card_data, config, resumes), of_training),
        section("Licence", _licence(results, card_data, licence)),
        section("Limits", _limits(results)),
        section(
            "Settings and versions", _settings(config, resumes), _versions(environment, resumes)
        ),
        section("Citation", *_citations(results)),
    ]
    metadata = _metadata(results, card_data, licence, repo_id).to_yaml()
    return f"---\n{metadata}\n---\n\n" + joined(sections) + "\n"


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
        **{**card_data, "license": licence},
        datasets=[name] if is_repo_id(name) else None,
        metrics=list(results["metrics"]),
        model_name=_model_name(results, repo_id),
        eval_results=evaluations or None,
    )


def _summary(results: Mapping[str, Any], card_data: Mapping[str, Any], repo_id: str | None) -> str:
    labels = results.get("per_label")
    text = (
        f"A model for {_task_name(results)}"
        + (f" with {counted(len(labels), 'label')}" if labels else "")
        + f", made with {card_data['library_name']} from "
        f"{'' if is_of_vectors(results) else 'the backbone '}{backbone_link(results, card_data)}. "
        f"The data are {_dataset_link(results)}; the "
        f"method is {tuning_name(results)}."
    )
    warning = ""
    if is_random(results):
        warning = (
            "> **The backbone of this model has random weights.** It was never pre-trained on music. "
            "The model is only a demonstration of the program."
        )
    return joined([f"# {escaped(_model_name(results, repo_id))}", text, warning])


def _results_table(results: Mapping[str, Any]) -> str:
    validation = results["validation"]
    rows = [
        [
            results["metric_names"][key],
            shown_number(metric["value"]),
            f"{shown_number(metric['low'])} to {shown_number(metric['high'])}"
            if metric["low"] is not None
            else "-",
            shown_number(validation.get(key)),
        ]
        for key, metric in results["metrics"].items()
    ]
    return joined(
        [
            table(["Metric", results["split"].capitalize(), "95 % interval", "Validation"], rows),
            f"Evaluated on the {counted(results['num_tracks'], 'track')} of the {results['split']} split, "
            "each with one prediction for the track, once, after training. The interval is a bootstrap "
            "over these tracks. The validation value is that of the selected epoch. "
            f"{results['about_metrics']}",
        ]
    )


def _label_table(results: Mapping[str, Any]) -> str:
    per_label = results.get("per_label")
    if not per_label:
        return ""
    keys = [key for key in next(iter(per_label.values())) if key != "num_positive"]
    rows = [
        [escaped(label), *(shown_number(own[key]) for key in keys), f"{own['num_positive']:,}"]
        for label, own in per_label.items()
    ]
    names = [results["metric_names"].get(key, key) for key in keys]
    return details("Each label", table(["Label", *names, "Tracks that have it"], rows))


def _layers(results: Mapping[str, Any]) -> str:
    weights = results["layer_weights"]
    if is_of_vectors(results):
        return "The vectors are the input of the head, so there are no layers to weight."
    kind = results["training"]["layer_weighting"]
    states = f"{len(weights)} hidden states (0 is the input of the first transformer layer)"
    if kind not in ("softmax", "conv1d"):
        which = "the last hidden state" if kind == "last" else f"hidden state {kind}"
        return f"The input of the head is {which} alone."
    largest = max(range(len(weights)), key=lambda i: abs(weights[i]))
    how = "a trained softmax weighting" if kind == "softmax" else "a trained linear combination"
    return (
        f"The input of the head is {how} of {states}. The largest weight, {weights[largest]:.3f}, is that of "
        f"state {largest}."
    )


def _usage(results: Mapping[str, Any], repo_id: str | None) -> str:
    if is_of_vectors(results):
        return (
            "The inputs of the model are precomputed vectors, so `m2v predict` cannot run it on music files. "
            "It is for comparing such vectors with backbones."
        )
    model = repo_id or MODEL_PLACEHOLDER
    shown = find_task(results["task"]).usage_example
    return joined(
        [
            "On the command line:",
            fenced(f"m2v predict {model} song.mp3", "bash"),
            "In Python:",
            fenced(
                "from m2v_finetune import TaskModel\n\n"
                f'model = TaskModel.from_pretrained("{model}")\n'
                f'print(model.predict("song.mp3"){shown})',
                "python",
            ),
        ]
    )


def _training_data(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    licence = escaped(dataset["licence"]) or "unknown"
    counts = [
        f"{number:,} for {split}" for split, number in results["num_tracks_of_splits"].items()
    ]
    tracks = f" Tracks: {', '.join(counts)}." if counts else ""
    return f"{_dataset_link(results)}.{tracks} Licence of the data: {licence}."


def _licence(results: Mapping[str, Any], card_data: Mapping[str, Any], licence: str) -> str:
    backbone = backbone_link(results, card_data)
    if is_of_vectors(results):
        inherited = (
            f"This model derives from {backbone}. The licence of their network is unknown here: find "
            "out what it allows before you use or share the model."
        )
    elif licence == UNKNOWN_LICENCE:
        inherited = (
            f"The licence of the backbone, {backbone}, is unknown. This model inherits it: find out what "
            "it allows before you use or share the model."
        )
    else:
        inherited = (
            f"This model derives from the backbone {backbone} and inherits its licence, "
            f"**{escaped(licence)}**."
        )
        if "-nc" in licence.lower():
            inherited += " It forbids commercial use."
    data = results["dataset"]["licence"]
    return joined(
        [
            inherited,
            f"The training data are under {escaped(data)}."
            if data
            else "The licence of the training data is unknown.",
        ]
    )


def _limits(results: Mapping[str, Any]) -> str:
    title = escaped(results["dataset"]["title"] or results["dataset"]["name"])
    known = title if is_random(results) else f"{title} and of the backbone's pre-training"
    points = [
        f"The model was trained on the music of {known}. It is less accurate for styles, instruments and "
        "recordings that are rare there, and labels have the meaning that they have in these data.",
        "The results are valid for music like the test tracks. The interval covers the choice of such "
        "tracks, not the variation between training runs.",
    ]
    if results.get("outputs_hardly_vary"):
        points.append(
            "**The outputs hardly vary over the test tracks**: the model hardly distinguishes tracks."
        )
    if results.get("per_label"):
        points.append("Probabilities are not calibrated; they order tracks and labels.")
    left_out = results.get("labels_left_out")
    if left_out:
        points.append(
            "Labels that are left out of the metrics, because all or none of the test tracks have them: "
            + listed([escaped(label) for label in left_out])
            + "."
        )
    skipped = {split: n for split, n in results["num_skipped_tracks"].items() if n}
    if skipped:
        counts = ", ".join(f"{n:,} in {split}" for split, n in skipped.items())
        points.append(f"Tracks that could not be read and were left out: {counts}.")
    if is_random(results):
        points.append(
            "The backbone has random weights, so the results are not those of a music model."
        )
    return "\n".join(f"- {point}" for point in points)


def _settings(config: Mapping[str, Any], resumes: Sequence[Mapping[str, Any]]) -> str:
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).rstrip()
    note = (
        "The run started with them, and was resumed with others: see above."
        if any(one["changed"] for one in resumes)
        else "Passed as `--config`, they repeat the run."
    )
    note += " Local paths show their last part only."
    return details("All settings of the run", joined([note, fenced(text, "yaml")]))


def _versions(environment: Mapping[str, Any], resumes: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of versions and machines, of all of them if a run was resumed on others."""
    columns = [_parts(one) for one in (environment, *resumes)]
    rows = [
        [name, " -> ".join(dict.fromkeys(column[name] for column in columns if name in column))]
        for name in dict.fromkeys(name for column in columns for name in column)
    ]
    cells = [[escaped(cell) for cell in row] for row in rows]
    return details("Versions and machine", table(["Part", "Version"], cells))


def _parts(environment: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Python": environment["python"],
        "Platform": environment["platform"],
        "Processor": f"{environment['processor']}, {environment['num_cpus']} cores",
        "GPUs of the machine": ", ".join(environment["gpus"]) or "none",
        "Processes": str(environment["num_processes"]),
        **environment["packages"],
    }


def _citations(results: Mapping[str, Any]) -> list[str]:
    published = published_checkpoint(results["backbone"]["source"])
    of_backbone = BACKBONE_CITATIONS.get(published.citation, "") if published else ""
    of_data = results["dataset"]["citation"].strip()
    parts = []
    if published and of_backbone:
        arxiv = published.citation.removeprefix("arXiv:")
        link = f"[{published.citation}](https://arxiv.org/abs/{arxiv})"
        parts += [f"The backbone, {link}:", fenced(of_backbone, "bibtex")]
    if of_data:
        is_bibtex = of_data.startswith("@")
        parts += [
            "The data:",
            fenced(of_data, "bibtex") if is_bibtex else f"> {escaped(of_data)}",
        ]
    return parts


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


def _dataset_link(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    title = escaped(dataset["title"] or dataset["name"])
    is_address = re.fullmatch(r"https?://[^\s<>]+", dataset["homepage"])
    return f"[{title}](<{dataset['homepage']}>)" if is_address else title
