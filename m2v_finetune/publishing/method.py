"""Section of a model card about the training method, from the facts of the run."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from m2v_finetune.config import OptimizerName, TuningConfig
from m2v_finetune.publishing.text import counted, escaped, public_settings, shown_duration
from m2v_finetune.tuning import METHODS, describe_tuning

OPTIMIZERS: dict[OptimizerName, str] = {
    "adamw": "AdamW",
    "adamw_8bit": "AdamW with moments in 8 bits, of bitsandbytes",
    "paged_adamw_8bit": "paged AdamW with moments in 8 bits, of bitsandbytes",
    "adafactor": "Adafactor, without a first moment, without scaling of the learning rates",
}


def method_rows(
    results: Mapping[str, Any],
    card_data: Mapping[str, Any],
    config: Mapping[str, Any],
    resumes: Sequence[Mapping[str, Any]],
) -> list[list[str]]:
    """Return rows of name and value, in Markdown, from the facts of the run rather than its settings."""
    training = results["training"]
    trained, total = results["num_trained_parameters"], results["num_parameters"]
    imbalance = _imbalance(config)
    start = public_settings(config.get("training", {}).get("init_from"))
    return [
        ["Backbone", _backbone_used(results, card_data)],
        [
            "Tuning",
            tuning_name(results)
            if is_of_vectors(results)
            else describe_tuning(TuningConfig(**training["tuning"])),
        ],
        ["Trained parameters", f"{trained:,} of {total:,} ({trained / total:.1%})"],
        *([["Started from", escaped(str(start))]] if start else []),
        *([["Teacher", _teacher(config)]] if config.get("training", {}).get("teacher") else []),
        ["Head", results["head"]],
        ["Clips" if is_of_vectors(results) else "Windows", _windows(results)],
        ["Augmentation", _augmentation(training, config)],
        *([["Loss and sampling", ", ".join(imbalance)]] if imbalance else []),
        *(
            [["Solver", _solver(results)]]
            if training.get("solved_by")
            else [
                ["Peak learning rates", _learning_rates(training)],
                ["Optimizer", _optimizer(training)],
                ["Batch", _batch(results)],
            ]
        ),
        ["Precision and device", _precision(training)],
        *(
            []
            if training.get("solved_by")
            else [["Length", _length(results)], ["Chosen weights", _chosen(results)]]
        ),
        ["Seed", str(config["run"]["seed"])],
        *([["Resumed", _resumed(resumes)]] if resumes else []),
    ]


def _teacher(config: Mapping[str, Any]) -> str:
    training = config["training"]
    source = escaped(str(public_settings(training["teacher"])))
    return f"outputs of {source} in place of labels, at temperature {training['temperature']:g} for classes"


def _backbone_used(results: Mapping[str, Any], card_data: Mapping[str, Any]) -> str:
    backbone = results["backbone"]
    text = backbone_link(results, card_data)
    if backbone["revision"]:
        text += f", revision `{backbone['revision']}`"
    used, published = backbone["num_layers"], backbone["num_published_layers"]
    return text if published in (used, None) else f"{text}, the first {used} of {published} layers"


def _windows(results: Mapping[str, Any]) -> str:
    training = results["training"]
    per_track, num_variants = training["windows_per_track"], training["num_variants"]
    is_random = training["num_longer_tracks"] > 0
    noun = "clip" if is_of_vectors(results) else "window"
    drawn = f"{counted(per_track, f'random {noun}' if is_random else noun)} of a track in an epoch"
    if num_variants is not None and is_random:
        drawn += f", drawn {counted(num_variants, 'time')}, in turns"
    if is_of_vectors(results):
        return f"{drawn}; the prediction for a track is made from all its clips"
    shorter = training["num_shorter_tracks"]
    padded = f"; {counted(shorter, 'training track')} padded with silence" if shorter else ""
    return (
        f"{training['window_seconds']:g} s; {drawn}{padded}; the prediction for a track is "
        f"made from windows every {results['hop_seconds']:g} s"
    )


def _augmentation(training: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    names = [escaped(entry["name"]) for entry in config["augmentation"]["transforms"]]
    if training["spec_augment"]:
        names.append("SpecAugment as in the checkpoint's config")
    if alpha := config["augmentation"].get("mixup_alpha"):
        names.append(f"mixup (alpha {alpha:g})")
    return ", ".join(names) or "none"


def _imbalance(config: Mapping[str, Any]) -> list[str]:
    """Return the settings against rare and noisy labels that are on."""
    settings = {**config.get("task", {}), "sampling": config["data"].get("sampling")}
    return [
        f"`{name} {settings[name]}`"
        for name in ("sampling", "pos_weight", "focal_gamma", "class_weight", "label_smoothing")
        if settings.get(name) not in (None, "none", "uniform", 0)
    ]


def _optimizer(training: Mapping[str, Any]) -> str:
    warmup, steps = training["num_warmup_steps"], training["num_scheduled_steps"]
    schedule = f"then half a cosine to zero at step {steps:,}"
    if warmup:
        schedule = f"linear warmup over {counted(warmup, 'step')}, {schedule}"
    else:
        schedule = schedule.removeprefix("then ")
    return (
        f"{OPTIMIZERS[training['optimizer']]}, weight decay {training['weight_decay']:g} on matrices; "
        f"{schedule}; gradients clipped at norm {training['max_grad_norm']:g}"
    )


def _batch(results: Mapping[str, Any]) -> str:
    training = results["training"]
    noun = "clip" if is_of_vectors(results) else "window"
    parts = [
        f"{training['device_batch_size']} on a device",
        *(
            [f"{training['num_accumulated']} accumulated"]
            if training["num_accumulated"] > 1
            else []
        ),
        *([f"{training['num_processes']} processes"] if training["num_processes"] > 1 else []),
    ]
    return f"{counted(training['total_batch_size'], noun)} a step: {' x '.join(parts)}"


def _precision(training: Mapping[str, Any]) -> str:
    precision = training["mixed_precision"]
    device = "CPU" if training["device"] == "cpu" else training["device"].upper()
    named = "float32" if precision == "no" else f"mixed precision ({precision})"
    return f"{named}, on {device}"


def _length(results: Mapping[str, Any]) -> str:
    training = results["training"]
    skipped = results["num_skipped_steps"]
    return (
        f"{counted(results['num_epochs'], 'epoch')} of at most {training['max_epochs']}"
        + (", stopped early" if training["stopped_early"] else "")
        + f"; {counted(results['num_steps'], 'step')}"
        + (f", {skipped} of them without effect, as gradients were not finite" if skipped else "")
        + f"; {shown_duration(results['seconds']['training'])}"
    )


def _solver(results: Mapping[str, Any]) -> str:
    """Return how scikit-learn solved the head."""
    kind, penalty = results["training"]["solved_by"], results["training"]["penalty"]
    name = "logistic regression" if kind == "logistic" else "ridge regression"
    strength = f"C {1 / penalty:g}" if kind == "logistic" else f"alpha {penalty:g}"
    selection = results["selection_metric"]
    name_of_metric = results["metric_names"][selection]
    how = f"the best of {results['num_epochs']} by {name_of_metric} of the validation tracks"
    if results["validation"].get(selection) is None:
        how = "the last one, as validation does not define the metric"
    return (
        f"{name} of scikit-learn on fixed features, {strength}, {how}; "
        f"{shown_duration(results['seconds']['training'])}"
    )


def _chosen(results: Mapping[str, Any]) -> str:
    selection = results["selection_metric"]
    name = results["metric_names"][selection]
    if results["validation"].get(selection) is None:
        return f"epoch {results['best_epoch']}; {name} is undefined on the validation tracks"
    return f"epoch {results['best_epoch']}, the best by {name} of the validation tracks"


def _resumed(resumes: Sequence[Mapping[str, Any]]) -> str:
    """Return the number of resumes of a run, and the settings that they changed."""
    text = counted(len(resumes), "time")
    changed = {
        name: values
        for one in resumes
        for name, values in one["changed"].items()
        if not name.startswith(("publish.", "run."))
    }
    if not changed:
        return f"{text}, with the initial settings"
    listed_changes = [
        f"`{name}` {escaped(str(public_settings(now)))} ({escaped(str(public_settings(before)))} before)"
        for name, (before, now) in changed.items()
    ]
    return f"{text}; with other settings from then on: {', '.join(listed_changes)}"


def _learning_rates(training: Mapping[str, Any]) -> str:
    rates = dict(training["peak_learning_rates"])
    of_backbone = rates.pop("backbone", None)
    is_weighted = training["layer_weighting"] in ("softmax", "conv1d")
    parts = "head and layer weights" if is_weighted else "the head"
    texts = [f"{rate:g} for {parts}" for rate in rates.values()]
    if of_backbone is not None:
        texts.append(f"{of_backbone:g} for the backbone")
        if training["layer_decay"] < 1:
            texts.append(f"times {training['layer_decay']:g} for each layer below the top")
    return ", ".join(texts)


def is_random(results: Mapping[str, Any]) -> bool:
    """Return whether name or licence of the backbone in results.json mention random weights."""
    message = f"{results['backbone']['source']} {results['backbone']['licence']}"
    return re.search(r"random[ _-](small|weights)", message, re.IGNORECASE) is not None


def backbone_link(results: Mapping[str, Any], card_data: Mapping[str, Any]) -> str:
    """Return the name of the backbone, with a link if it is on the Hub."""
    if is_of_vectors(results):
        size = results["backbone"]["vector_size"]
        return f"`{results['backbone']['source']}` ({size:,} numbers a clip, computed elsewhere)"
    base = card_data.get("base_model")
    if base is None:
        return f"`{public_settings(results['backbone']['source'])}`"
    return f"[{base}](https://huggingface.co/{base})"


def is_of_vectors(results: Mapping[str, Any]) -> bool:
    """Return whether the inputs of the model are precomputed vectors."""
    return results["backbone"].get("vector_size") is not None


def tuning_name(results: Mapping[str, Any]) -> str:
    """Return the name of the tuning method in a sentence."""
    return "a probe on them" if is_of_vectors(results) else METHODS[results["tuning"]].title
