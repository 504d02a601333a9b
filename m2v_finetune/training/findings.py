"""Signs that a run did not learn: from its losses, its steps and its test tracks."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2v_finetune.config import HeadConfig, TuningConfig
from m2v_finetune.tuning import Rates

MIN_LOSSES = 4
"""Fewest logged losses at either end of a run that can be compared."""
NOISE_FACTOR = 2.0
"""How many standard errors of their difference two means of losses must be apart."""
CONSTANT_PREDICTION = {"r2": 0.0}
"""Metrics in which predicting the mean of all tracks is better than another track's prediction."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts of a finished run that tell whether it learned.

    Attributes:
        losses: Logged training losses, in order.
        metric: Name of the selection metric, for messages.
        value: Selection metric of the test tracks, with ``low`` and ``high`` of its interval; None where it
            does not exist.
        chance: Its level by chance; None if unknown.
        best_step: Optimiser steps until the weights that are kept.
        warmup_steps: Optimiser steps of the warm-up.
        num_steps: Optimiser steps that were taken.
        total_steps: Optimiser steps of the whole schedule.
        head: Settings of the head.
        tuning: Settings of the tuning.
        learning_rates: Peak learning rates.
    """

    losses: Sequence[float]
    metric: str
    value: Mapping[str, float | None]
    chance: float | None
    best_step: int
    warmup_steps: int
    num_steps: int
    total_steps: int
    head: HeadConfig
    tuning: TuningConfig
    learning_rates: Rates


def logged_losses(metrics: Path) -> list[float]:
    """Return the finite training losses of metrics.jsonl, in order."""
    if not metrics.is_file():
        return []
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row.get("loss") is not None]


def has_fallen(losses: Sequence[float]) -> bool | None:
    """Tell whether the last quarter of the losses is below the first quarter beyond its noise.

    Args:
        losses: Training losses, in order.

    Returns:
        None where there are too few to tell.

    >>> has_fallen([2.0, 1.9, 2.1, 2.0] * 2 + [1.1, 1.0, 0.9, 1.0] * 2), has_fallen([2.0, 1.0])
    (True, None)
    """
    count = len(losses) // 4
    if count < MIN_LOSSES:
        return None
    first, last = losses[:count], losses[-count:]
    noise = math.sqrt((statistics.variance(first) + statistics.variance(last)) / count)
    return statistics.mean(first) - statistics.mean(last) > NOISE_FACTOR * noise


def chance_level(metric: str, values: Sequence[float]) -> float | None:
    """Return the level of a metric by chance.

    Args:
        metric: Key of the metric.
        values: The metric of predictions that were given to other tracks, for each order.

    Returns:
        Their mean, or the value of a constant prediction if that is higher; None where there is none.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return max(statistics.mean(finite), CONSTANT_PREDICTION.get(metric, -math.inf))


def find_signs(facts: RunFacts) -> list[str]:
    """Return a sentence for each sign that the run did not learn, and last what to change; none is best."""
    signs = []
    has_stopped_early = facts.num_steps < facts.total_steps
    is_before_warmup = facts.best_step <= facts.warmup_steps
    has_loss_fallen = has_fallen(facts.losses)
    if is_before_warmup:
        signs.append(
            f"The weights that are kept are those of step {facts.best_step}, inside the warm-up of "
            f"{facts.warmup_steps} steps: training ended before it began."
        )
    if has_loss_fallen is False:
        signs.append("The training loss did not fall beyond its noise.")
    low, high = facts.value.get("low"), facts.value.get("high")
    if facts.chance is not None and low is not None and high is not None and low <= facts.chance:
        relation = "holds" if high >= facts.chance else "is below"
        signs.append(
            f"Test {facts.metric}: the 95 % interval ({low:.3f} to {high:.3f}) {relation} the level of "
            f"chance ({facts.chance:.3f}, the same predictions given to other tracks)."
        )
    if signs:
        signs.append(
            f"What most likely helps: {_advice(facts, has_stopped_early and is_before_warmup)}."
        )
    return signs


def _advice(facts: RunFacts, has_stopped_too_early: bool) -> str:
    """Return the two settings that most likely help."""
    advice = []
    if has_stopped_too_early:
        advice.append("leave training.early_stopping_patience away, or raise it")
    rate = f"raise optimizer.learning_rate to {3 * facts.learning_rates.head:g}"
    if facts.tuning.method == "probe":
        if not facts.head.standardize:
            advice.append("set head.standardize to true")
        advice += [rate, "set tuning.method to lora, which changes the backbone too"]
    elif has_fallen(facts.losses):
        # It fits the training tracks, and not the others.
        advice += [
            "set tuning.method to probe, which needs fewer labelled tracks",
            "add training tracks, or augmentation.transforms",
        ]
    else:
        backbone = (
            f"raise optimizer.backbone_learning_rate to {3 * facts.learning_rates.backbone:g}"
        )
        advice += [backbone, rate]
    return "; or ".join(advice[:2])
