"""Summary of a search: a table of trials, the importance of settings, and the best settings to train."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import UserError
from m2v_finetune.files import write_atomically, write_json
from m2v_finetune.parsing import save_config
from m2v_finetune.plotting.importance import plot_importance
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import Task

logger = logging.getLogger(__name__)

MIN_TRIALS = 4
"""Least number of complete trials for the importance of settings."""


def write_summary(
    study: optuna.Study,
    folder: Path,
    config: RecipeConfig,
    task: type[Task],
    words: Sequence[str],
    name: str,
) -> dict[str, Any]:
    """Write search.json, search.md, importance.png and config.yaml; return the content of search.json.

    Args:
        study: Study with its trials.
        folder: Folder of the search.
        config: Settings of the search.
        task: Class of the task.
        words: Settings of each trial, as words of a command line.
        name: Name of the task.

    Raises:
        UserError: No trial was completed.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [one for one in trials if one.state == TrialState.COMPLETE]
    if not complete:
        why = next((one.user_attrs["error"] for one in trials if "error" in one.user_attrs), "none")
        raise UserError(
            f"No trial of {folder} was completed. The first error: {why}", code="search-no-result"
        )
    best = max(complete, key=lambda one: (one.value or 0.0, -one.number))
    content = {
        "task": name,
        "metric": task.selection_metric,
        "split": "validation",
        "best": best.number,
        "trials": [
            {
                "number": one.number,
                "state": one.state.name.lower(),
                "value": one.value if one.state == TrialState.COMPLETE else None,
                "num_epochs": len(one.intermediate_values),
                "settings": dict(one.params),
                **({"error": one.user_attrs["error"]} if "error" in one.user_attrs else {}),
            }
            for one in trials
        ],
        "importance": _importance(study, len(complete)),
    }
    write_json(folder / "search.json", content)
    text = render_markdown(content)
    write_atomically(folder / "search.md", lambda unfinished: unfinished.write_text(text, "utf-8"))
    if content["importance"]:
        plot_importance(
            content["importance"],  # type: ignore[arg-type]
            folder / "importance.png",
            metric=task.selection_metric,
            num_trials=len(complete),
        )
    chosen = read_config(
        name, [*words, *(f"--{key}={value}" for key, value in best.params.items())]
    )
    chosen = replace(chosen, run=replace(config.run, output_dir=None, resume="never"))
    write_atomically(folder / "config.yaml", lambda unfinished: save_config(chosen, unfinished))
    logger.info("The best settings are in %s: m2v train %s --config %s", *_train(folder, name))
    return content


def _train(folder: Path, name: str) -> tuple[Path, str, Path]:
    return folder / "config.yaml", name, folder / "config.yaml"


def _importance(study: optuna.Study, num_complete: int) -> dict[str, float]:
    """Return the share of each setting in the variance of the metric, the largest first; empty if unknown.

    Source: functional ANOVA with random forests (Hutter et al. 2014), `FanovaImportanceEvaluator` of Optuna.
    Settings that some trials do not have are left out.
    """
    values = {one.value for one in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if num_complete < MIN_TRIALS or len(values) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def render_markdown(content: Mapping[str, Any]) -> str:
    """Return the table of the trials, the best first, and the importance of settings.

    Args:
        content: Content of search.json.
    """
    keys = list(dict.fromkeys(key for one in content["trials"] for key in one["settings"]))
    ordered = sorted(
        content["trials"],
        key=lambda one: (one["value"] is None, -(one["value"] or 0.0), one["number"]),
    )
    rows = [
        [
            str(one["number"]),
            one["state"] if one["value"] is None else f"{one['value']:.4f}",
            *(_shown(one["settings"].get(key)) for key in keys),
        ]
        for one in ordered
    ]
    header = ["trial", f"validation {content['metric']}", *keys]
    lines = [header, ["---"] * len(header), *rows]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    shares = [f"{key} {share:.2f}" for key, share in content["importance"].items()]
    if shares:
        table += ["", f"Importance of settings (share of the variance): {', '.join(shares)}"]
    return "\n".join([*table, ""])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
