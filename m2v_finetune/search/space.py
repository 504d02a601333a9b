"""Settings that are searched: parsed from the command line, and suggested for a trial."""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import optuna

from m2v_finetune.config import TUNING_SETTINGS
from m2v_finetune.errors import UserError

NUM_RANDOM_TRIALS = 8
"""Number of trials before Optuna's TPE sampler uses the earlier ones."""
FIXED = {
    *("data.source", "data.features", "data.folds", "data.fold", "data.final_model"),
    *("data.validation_fraction", "data.test_fraction", "data.group_columns", "data.on_bad_track"),
    *("task.label_column", "task.target_columns", "task.labels", "task.ignore_unknown_labels"),
}
FIXED_SECTIONS = ("run", "cache", "publish")
"""Settings that a search does not vary: with another seed, or others of these, the validation tracks or
their labels would be others, and the best trial the one with the easiest."""
SETTINGS_OF_STEPS = {
    *("head.dropout", "task.label_smoothing", "task.focal_gamma", "data.sampling"),
    *("augmentation.mixup_alpha", "training.epochs", "training.ema_decay"),
    *("training.per_device_batch_size", "training.gradient_accumulation_steps"),
}
"""Settings beside those of the optimizer that a head has no use for if scikit-learn solves it."""
FORMS = "log(1e-5,1e-2), uniform(0,0.5), int(1,8), or values such as probe,lora"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """Setting that is searched.

    Attributes:
        key: Name, such as ``optimizer.learning_rate``.
        kind: ``log``, ``uniform``, ``int`` or ``values``.
        low: Lowest number.
        high: Highest number.
        values: Texts of ``values``.
    """

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    values: tuple[str, ...] = ()

    def suggest(self, trial: optuna.Trial) -> float | int | str:
        """Return the value of a trial."""
        if self.kind == "int":
            return trial.suggest_int(self.key, int(self.low), int(self.high))
        if self.kind == "values":
            return str(trial.suggest_categorical(self.key, list(self.values)))
        return trial.suggest_float(self.key, self.low, self.high, log=self.kind == "log")


def parse_space(over: Sequence[str], known: Mapping[str, Any]) -> list[Dimension]:
    """Return the settings to search, the tuning method first, as others depend on it.

    Args:
        over: Texts such as ``tuning.r=int(1,16)``.
        known: All settings by name.

    Raises:
        UserError: A text has another form, or names an unknown setting, or one twice.
    """
    dimensions = [_parse(text, known) for text in over]
    keys = [one.key for one in dimensions]
    if not keys or len(set(keys)) < len(keys):
        raise UserError(
            f"--over names {keys}. Name at least one setting, and each once, as in "
            "--over optimizer.learning_rate=log(1e-5,1e-2).",
            code="search-space-invalid",
        )
    return sorted(dimensions, key=lambda one: one.key not in ("tuning.method", "head.kind"))


def _parse(text: str, known: Mapping[str, Any]) -> Dimension:
    key, _, form = text.partition("=")
    if key in FIXED or key.partition(".")[0] in FIXED_SECTIONS:
        raise UserError(
            f"--over {text}: all trials of a search have the same {key}, so that they are compared on the "
            "same tracks.",
            code="search-space-invalid",
        )
    if key not in known:
        near = get_close_matches(key, known, n=1)
        raise UserError(
            f"--over {text}: there is no setting '{key}' to search."
            f"{f' Did you mean {near[0]}?' if near else ''} Its form is section.key={FORMS}.",
            code="search-space-invalid",
        )
    called = re.fullmatch(r"(log|uniform|int)\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)", form)
    if called is None:
        values = tuple(value.strip() for value in form.split(","))
        if len(set(values)) < 2 or "(" in form or not all(values):
            raise UserError(
                f"--over {text}: the values are {form!r}. Give {FORMS}; at least two different ones.",
                code="search-space-invalid",
            )
        return Dimension(key=key, kind="values", values=values)
    kind = called[1]
    try:
        low, high = ((int if kind == "int" else float)(end) for end in called.groups()[1:])
        if not (0.0 if kind == "log" else -1e300) < low < high < 1e300:
            raise ValueError("the ends are not in order, or not above 0")
    except ValueError as error:
        raise UserError(
            f"--over {text}: {error}. Give two numbers, the lower one first; above 0 for log.",
            code="search-space-invalid",
        ) from error
    return Dimension(key=key, kind=kind, low=low, high=high)


def suggest(
    trial: optuna.Trial, dimensions: Sequence[Dimension], base: Mapping[str, Any], *, seed: int
) -> dict[str, float | int | str]:
    """Return the settings of a trial; those that its tuning method or head does not use are left out.

    Each is drawn with a sampler whose seed depends on the number of the trial and the name alone, so a search
    that was killed and resumed has the same trials.

    Args:
        trial: New trial, or one that was interrupted.
        dimensions: Result of `parse_space`.
        base: Other settings by name.
        seed: Seed of the search.
    """
    chosen: dict[str, float | int | str] = {}
    for dimension in dimensions:
        if not _is_used(dimension.key, base, chosen):
            continue
        number = zlib.crc32(f"{seed} {trial.number} {dimension.key}".encode())
        trial.study.sampler = sampler(number)
        chosen[dimension.key] = dimension.suggest(trial)
    return chosen


def sampler(seed: int) -> optuna.samplers.TPESampler:
    """Return Optuna's TPE sampler, which models each setting by itself."""
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=False, n_startup_trials=NUM_RANDOM_TRIALS
    )


def _is_used(key: str, base: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Return whether a setting has an effect with a trial's tuning method and head."""
    settings = {**base, **chosen}
    section, _, name = key.partition(".")
    used: Callable[[str], bool] = TUNING_SETTINGS[settings["tuning.method"]].__contains__
    if section == "tuning" and name != "method":
        return used(name)
    if key == "optimizer.backbone_learning_rate":
        return bool(settings["tuning.method"] != "probe")
    if key == "head.hidden_size":  # a run refuses it where its kind of head, not searched, lacks it
        return bool(chosen.get("head.kind", "mlp") == "mlp")
    is_solved = settings["head.kind"] in ("logistic", "ridge")
    return not (is_solved and (section == "optimizer" or key in SETTINGS_OF_STEPS))
