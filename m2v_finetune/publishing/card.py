"""The model card of a run, rendered from the run's own files.

A card is public, so it shows no more of the machine than others need: of a local path the last part
only, of the environment only versions and hardware, and never the command that was typed.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from m2v_finetune.backbones.checkpoints import published_checkpoint
from m2v_finetune.config import TuningConfig
from m2v_finetune.files import write_atomically
from m2v_finetune.hub import is_repo_id
from m2v_finetune.model import CARD_FILE
from m2v_finetune.tasks import TASKS
from m2v_finetune.training.results import listed
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.tuning import METHODS, describe_tuning

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

    The model-index of the metadata has one result for each metric. Its format knows no intervals, so
    they stand in the metric's ``args``: ``confidence_level``, ``low`` and ``high``.

    Args:
        run_dir: Holds config.yaml, environment.json and results.json.
        card_data: What `TaskModel.card_data` returns; without ``license`` the licence is unknown.
        repo_id: The model's repository on the Hub; None for a model that stays in a folder.
        captions: Of each picture in the folder ``plots/`` beside the card. ``layer_weights.png`` and
            ``training.png`` have their own places, others stand with the results.
    """
    folder = RunFolder(run_dir)
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    environment = json.loads(folder.environment.read_text(encoding="utf-8"))
    config = public_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    licence = card_data.get("license") or UNKNOWN_LICENCE
    pictures = {name: f"![{caption}](plots/{name})" for name, caption in captions.items()}
    of_layers, of_training = pictures.pop(LAYER_PICTURE, ""), pictures.pop(TRAINING_PICTURE, "")
    sections = [
        _summary(results, card_data, repo_id),
        _section("Results", _results_table(results), *pictures.values(), _label_table(results)),
        _section("Layers", _layers(results, config), of_layers),
        _section("How to use", _usage(results, repo_id)),
        _section("Training data", _training_data(results)),
        _section("Method", _method(results, card_data, config), of_training),
        _section("Licence", _licence(results, card_data, licence)),
        _section("Limits", _limits(results)),
        _section("Settings and versions", _settings(config), _versions(environment)),
        _section("Citation", *_citations(results)),
    ]
    metadata = _metadata(results, card_data, licence, repo_id).to_yaml()
    return f"---\n{metadata}\n---\n\n" + _joined(sections) + "\n"


def write_card(folder: Path, text: str) -> None:
    """Write a card into a model folder; bytes of a name that are no UTF-8 are shown as in JSON."""
    content = text.encode(errors="backslashreplace")
    write_atomically(folder / CARD_FILE, lambda unfinished: unfinished.write_bytes(content))


def public_settings(value: Any) -> Any:
    """Return settings without the places of one's own machine.

    Of every string that is an absolute path, or starts at home (``~``) or above the working folder
    (``..``), only the last part is kept. Labels are left as they are.

    >>> public_settings({"data": {"source": "/home/me/songs.csv"}, "backbone": {"source": "me/x"}})
    {'data': {'source': 'songs.csv'}, 'backbone': {'source': 'me/x'}}
    """
    if isinstance(value, Mapping):
        return {k: v if k == "labels" else public_settings(v) for k, v in value.items()}
    if isinstance(value, list):
        return [public_settings(item) for item in value]
    if isinstance(value, str) and re.match(r"/|\\|~|\.\.|[A-Za-z]:[/\\]", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


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
        + (f" with {_count(len(labels), 'label')}" if labels else "")
        + f", made with {card_data['library_name']} from "
        f"{'' if _is_of_vectors(results) else 'the backbone '}{_backbone(results, card_data)}. "
        f"The data are {_dataset_link(results)}; the "
        f"method is {_tuning_name(results)}."
    )
    warning = ""
    if is_random(results):
        warning = (
            "> **The backbone of this model has random weights.** It was never pre-trained on music. "
            "The model is a demonstration of the program and no more."
        )
    return _joined([f"# {_escaped(_model_name(results, repo_id))}", text, warning])


def _results_table(results: Mapping[str, Any]) -> str:
    validation = results["validation"]
    rows = [
        [
            results["metric_names"][key],
            _number(metric["value"]),
            f"{_number(metric['low'])} to {_number(metric['high'])}"
            if metric["low"] is not None
            else "-",
            _number(validation.get(key)),
        ]
        for key, metric in results["metrics"].items()
    ]
    return _joined(
        [
            _table(["Metric", results["split"].capitalize(), "95 % interval", "Validation"], rows),
            f"Measured on the {_count(results['num_tracks'], 'track')} of the {results['split']} split, "
            "each judged as a whole, once, after training. The interval is a bootstrap over these "
            "tracks. The validation value is that of the epoch that was chosen. "
            f"{results['about_metrics']}",
        ]
    )


def _label_table(results: Mapping[str, Any]) -> str:
    per_label = results.get("per_label")
    if not per_label:
        return ""
    keys = [key for key in next(iter(per_label.values())) if key != "num_positive"]
    rows = [
        [_escaped(label), *(_number(own[key]) for key in keys), f"{own['num_positive']:,}"]
        for label, own in per_label.items()
    ]
    names = [results["metric_names"].get(key, key) for key in keys]
    return _details("Each label", _table(["Label", *names, "Tracks that have it"], rows))


def _layers(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    weights = results["layer_weights"]
    if _is_of_vectors(results):
        return "The head reads the vectors themselves: there are no layers to weigh."
    kind = config["backbone"]["layer_weighting"]
    states = f"{len(weights)} hidden states (0 is the input of the first transformer layer)"
    if kind not in ("softmax", "conv1d"):
        which = "the last hidden state" if kind == "last" else f"hidden state {kind}"
        return f"The head reads {which} alone."
    largest = max(range(len(weights)), key=lambda i: abs(weights[i]))
    how = "a learned softmax weighting" if kind == "softmax" else "a learned linear combination"
    return (
        f"The head reads {how} of {states}. The largest weight, {weights[largest]:.3f}, is that of "
        f"state {largest}."
    )


def _usage(results: Mapping[str, Any], repo_id: str | None) -> str:
    if _is_of_vectors(results):
        return (
            "The model reads vectors that were computed elsewhere, so `m2v predict` cannot give it music "
            "files. It is there to be measured beside models that hear."
        )
    model = repo_id or MODEL_PLACEHOLDER
    shown = TASKS[results["task"]].shown_prediction
    return _joined(
        [
            "On the command line:",
            _fenced(f"m2v predict {model} song.mp3", "bash"),
            "In Python:",
            _fenced(
                "from m2v_finetune import TaskModel\n\n"
                f'model = TaskModel.from_pretrained("{model}")\n'
                f'print(model.predict("song.mp3"){shown})',
                "python",
            ),
        ]
    )


def _training_data(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    licence = _escaped(dataset["licence"]) or "unknown"
    return f"{_dataset_link(results)}. Licence of the data: {licence}."


def _method(
    results: Mapping[str, Any], card_data: Mapping[str, Any], config: Mapping[str, Any]
) -> str:
    data, training = config["data"], config["training"]
    optimizer = config["optimizer"]
    trained, total = results["num_trained_parameters"], results["num_parameters"]
    revision = results["backbone"]["revision"]
    selection = results["metric_names"][results["selection_metric"]]
    hop = results["hop_seconds"]
    transforms = ", ".join(entry["name"] for entry in config["augmentation"]["transforms"])
    accumulation = training["gradient_accumulation_steps"]
    rows = [
        [
            "Backbone",
            _backbone(results, card_data) + (f", revision `{revision}`" if revision else ""),
        ],
        [
            "Tuning",
            _tuning_name(results)
            if _is_of_vectors(results)
            else describe_tuning(TuningConfig(**config["tuning"])),
        ],
        ["Trained parameters", f"{trained:,} of {total:,} ({trained / total:.1%})"],
        ["Head", results["head"]],
        _clips_row(data["windows_per_track"])
        if _is_of_vectors(results)
        else [
            "Windows",
            f"{data['window_seconds']:g} s; {_count(data['windows_per_track'], 'random window')} of a "
            f"track in an epoch; a whole track is judged by windows every {hop:g} s",
        ],
        ["Augmentation", _escaped(transforms) or "none"],
        ["Peak learning rates", _rates(config)],
        [
            "Optimiser",
            f"AdamW, weight decay {optimizer['weight_decay']:g}, linear warm-up over "
            f"{optimizer['warmup_ratio']:.0%} of the steps, then cosine to zero, gradients clipped at "
            f"norm {optimizer['max_grad_norm']:g}",
        ],
        [
            "Batch of a device",
            _count(training["per_device_batch_size"], "window")
            + (f", {accumulation} batches to a step" if accumulation > 1 else ""),
        ],
        [
            "Length",
            f"{_count(results['num_epochs'], 'epoch')} of at most {training['epochs']}, "
            f"{_count(results['num_steps'], 'step')}, {_duration(results['seconds']['training'])}",
        ],
        [
            "Chosen weights",
            f"epoch {results['best_epoch']}, the best by {selection} of whole validation tracks",
        ],
        ["Seed", str(config["run"]["seed"])],
    ]
    return _table(["Setting", "Value"], rows)


def _clips_row(per_track: int) -> list[str]:
    return [
        "Clips",
        f"{_count(per_track, 'random clip')} of a track in an epoch; a whole track is judged by all its "
        "clips",
    ]


def _tuning_name(results: Mapping[str, Any]) -> str:
    return "a probe on them" if _is_of_vectors(results) else METHODS[results["tuning"]].title


def _rates(config: Mapping[str, Any]) -> str:
    optimizer, method = config["optimizer"], METHODS[config["tuning"]["method"]]
    head_rate = optimizer["learning_rate"] or method.learning_rate
    text = f"{head_rate:g} for head and layer weights"
    backbone_rate = optimizer["backbone_learning_rate"] or method.backbone_learning_rate
    if config["tuning"]["method"] != "probe":
        text += f", {backbone_rate:g} for the backbone"
        if optimizer["layer_decay"] < 1:
            text += f", times {optimizer['layer_decay']:g} for each layer below the top"
    return text


def _licence(results: Mapping[str, Any], card_data: Mapping[str, Any], licence: str) -> str:
    backbone = _backbone(results, card_data)
    if _is_of_vectors(results):
        inherited = (
            f"This model derives from {backbone}. The licence of what computed them is unknown here: find "
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
            f"**{_escaped(licence)}**."
        )
        if "-nc" in licence.lower():
            inherited += " It forbids commercial use."
    data = results["dataset"]["licence"]
    return _joined(
        [
            inherited,
            f"The training data are under {_escaped(data)}."
            if data
            else "The licence of the training data is unknown.",
        ]
    )


def _limits(results: Mapping[str, Any]) -> str:
    title = _escaped(results["dataset"]["title"] or results["dataset"]["name"])
    points = [
        f"The model knows the music of {title} and of the backbone's pre-training. Styles, instruments "
        "and recordings that are rare there are judged worse, and what its labels mean is what the "
        "people who labelled the data meant.",
        "The results hold for music like the test tracks. The interval tells how much they would move "
        "with other such tracks, not with another run of the training.",
    ]
    if results.get("per_label"):
        points.append("Probabilities are not calibrated; they order tracks and labels.")
    left_out = results.get("labels_left_out")
    if left_out:
        points.append(
            "Labels that count in no metric, because all or none of the test tracks have them: "
            + listed([_escaped(label) for label in left_out])
            + "."
        )
    skipped = {split: n for split, n in results["num_skipped_tracks"].items() if n}
    if skipped:
        counts = ", ".join(f"{n:,} in {split}" for split, n in skipped.items())
        points.append(f"Tracks that could not be read and were left out: {counts}.")
    if is_random(results):
        points.append(
            "The backbone has random weights, so the results say nothing of music models."
        )
    return "\n".join(f"- {point}" for point in points)


def _settings(config: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).rstrip()
    note = "Given back as `--config`, they repeat the run. Local paths show their last part only."
    return _details("All settings of the run", _joined([note, _fenced(text, "yaml")]))


def _versions(environment: Mapping[str, Any]) -> str:
    cards = ", ".join(environment["cards"]) or "none"
    rows = [
        ["Python", environment["python"]],
        ["Platform", environment["platform"]],
        ["Processor", f"{environment['processor']}, {environment['num_cpus']} cores"],
        ["Graphics cards", cards],
        *([name, version] for name, version in environment["packages"].items()),
    ]
    escaped = [[_escaped(str(cell)) for cell in row] for row in rows]
    return _details("Versions and machine", _table(["Part", "Version"], escaped))


def _citations(results: Mapping[str, Any]) -> list[str]:
    published = published_checkpoint(results["backbone"]["source"])
    of_backbone = BACKBONE_CITATIONS.get(published.citation, "") if published else ""
    of_data = results["dataset"]["citation"].strip()
    parts = []
    if published and of_backbone:
        arxiv = published.citation.removeprefix("arXiv:")
        link = f"[{published.citation}](https://arxiv.org/abs/{arxiv})"
        parts += [f"The backbone, {link}:", _fenced(of_backbone, "bibtex")]
    if of_data:
        is_bibtex = of_data.startswith("@")
        parts += [
            "The data:",
            _fenced(of_data, "bibtex") if is_bibtex else f"> {_escaped(of_data)}",
        ]
    return parts


def _slug(name: str) -> str:
    """Return a name in the characters that the Hub takes as a data set's type."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "own-data"


def _task_name(results: Mapping[str, Any]) -> str:
    return f"music {results['task']}"


def _model_name(results: Mapping[str, Any], repo_id: str | None) -> str:
    if repo_id:
        return repo_id.split("/")[-1]
    backbone = public_settings(results["backbone"]["source"]).split("/")[-1]
    return f"{backbone}-{results['tuning']}-{results['task']}"


def is_random(results: Mapping[str, Any]) -> bool:
    """Tell whether name or licence of the backbone in results.json say that its weights are random."""
    said = f"{results['backbone']['source']} {results['backbone']['licence']}"
    return re.search(r"random[ _-](small|weights)", said, re.IGNORECASE) is not None


def _backbone(results: Mapping[str, Any], card_data: Mapping[str, Any]) -> str:
    if _is_of_vectors(results):
        size = results["backbone"]["vector_size"]
        return f"`{results['backbone']['source']}` ({size:,} numbers a clip, computed elsewhere)"
    base = card_data.get("base_model")
    if base is None:
        return f"`{public_settings(results['backbone']['source'])}`"
    return f"[{base}](https://huggingface.co/{base})"


def _is_of_vectors(results: Mapping[str, Any]) -> bool:
    """Tell whether the model reads vectors that were computed elsewhere."""
    return results["backbone"].get("vector_size") is not None


def _dataset_link(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    title = _escaped(dataset["title"] or dataset["name"])
    is_address = re.fullmatch(r"https?://[^\s<>]+", dataset["homepage"])
    return f"[{title}](<{dataset['homepage']}>)" if is_address else title


def _section(title: str, *parts: str) -> str:
    """Return a section, or nothing if all its parts are empty."""
    body = _joined(parts)
    return f"## {title}\n\n{body}" if body else ""


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _details(summary: str, body: str) -> str:
    # Without the empty lines Markdown inside HTML stays as it is.
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """Return text as Markdown that shows it as it is, in one line, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
