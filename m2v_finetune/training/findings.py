"""Signs of failed training in the losses, the steps and the test tracks of a run."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2v_finetune.config import HeadConfig, TuningConfig
from m2v_finetune.tuning import Rates

MIN_LOSSES = 4
"""Least number of logged losses at either end of a run for a comparison."""
NOISE_FACTOR = 2.0
"""Least difference of two mean losses, in standard errors of the difference."""
DIVERGENCE_FACTOR = 5.0
"""Least mean of the last losses of a run that diverged, as a multiple of the first loss."""
CONSTANT_PREDICTION = {"r2": 0.0}
"""Values of a constant prediction, for metrics in which it is better than another track's prediction."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts of a finished run, as input of `find_signs`.

    Attributes:
        losses: Logged training losses, in order.
        metric: Name of the selection metric, for messages.
        value: Selection metric of the test tracks, with ``low`` and ``high`` of its interval; None if it is
            not defined.
        chance: Level of chance of the metric; None if unknown.
        best_step: Optimizer step of the best weights.
        warmup_steps: Number of optimizer steps of the warm-up.
        num_steps: Number of finished optimizer steps.
        total_steps: Number of optimizer steps of the schedule.
        head: Settings of the head.
        tuning: Settings of the tuning.
        learning_rates: Peak learning rates.
        is_solved: Whether scikit-learn solved the head, without steps.
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
    is_solved: bool = False


def logged_losses(metrics: Path) -> list[float]:
    """Return the finite training losses of metrics.jsonl, in order."""
    if not metrics.is_file():
        return []
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row.get("loss") is not None]


def has_fallen(losses: Sequence[float]) -> bool | None:
    """Return whether the last quarter of the losses is below the first one by more than the noise.

    Args:
        losses: Training losses, in order.

    Returns:
        Result of the comparison; None if there are too few losses.

    >>> has_fallen([2.0, 1.9, 2.1, 2.0] * 2 + [1.1, 1.0, 0.9, 1.0] * 2), has_fallen([2.0, 1.0])
    (True, None)
    """
    fall = _fall_in_noise(losses)
    return None if fall is None else fall > NOISE_FACTOR


def has_risen(losses: Sequence[float]) -> bool:
    """Return whether the last losses are above the first ones by more than the noise, or far above the first.

    >>> has_risen([1.1, 3606.0, 64844.0, 152.0]), has_risen([1.1, 1.2, 0.9, 3.3])
    (True, False)
    """
    if len(losses) < 2:
        return False
    last = losses[-max(1, len(losses) // 4) :]
    fall = _fall_in_noise(losses)
    is_far_above = statistics.mean(last) > DIVERGENCE_FACTOR * losses[0] > 0
    return is_far_above or (fall is not None and fall < -NOISE_FACTOR)


def _fall_in_noise(losses: Sequence[float]) -> float | None:
    """Return the fall from the first to the last quarter in its standard errors; None for too few losses."""
    count = len(losses) // 4
    if count < MIN_LOSSES:
        return None
    first, last = losses[:count], losses[-count:]
    noise = math.sqrt((statistics.variance(first) + statistics.variance(last)) / count)
    fall = statistics.mean(first) - statistics.mean(last)
    return fall / noise if noise else math.copysign(math.inf, fall) if fall else 0.0


def chance_level(metric: str, values: Sequence[float]) -> float | None:
    """Return the level of a metric by chance.

    Args:
        metric: Key of the metric.
        values: Metric of the predictions compared with other tracks, for each order.

    Returns:
        Mean value, or the value of a constant prediction if that is higher; None if no value is finite.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return max(statistics.mean(finite), CONSTANT_PREDICTION.get(metric, -math.inf))


def find_signs(facts: RunFacts) -> list[str]:
    """Return a sentence for each sign of failed training, then the advice; empty if there is no sign."""
    signs = []
    has_stopped_early = facts.num_steps < facts.total_steps
    is_before_warmup = facts.best_step <= facts.warmup_steps
    has_loss_fallen = has_fallen(facts.losses)
    if is_before_warmup:
        signs.append(
            f"The best weights are those of step {facts.best_step}, within the warm-up of "
            f"{facts.warmup_steps} steps: later steps, at higher learning rates, did not improve on them."
        )
    if has_risen(facts.losses):
        signs.append(
            f"The training loss rose from {facts.losses[0]:.3g} to {facts.losses[-1]:.3g}."
        )
    elif has_loss_fallen is False:
        signs.append("The training loss did not fall beyond its noise.")
    low, high = facts.value.get("low"), facts.value.get("high")
    if facts.chance is not None and low is not None and high is not None and low <= facts.chance:
        relation = "includes" if high >= facts.chance else "is below"
        signs.append(
            f"Test {facts.metric}: the 95 % interval ({low:.3f} to {high:.3f}) {relation} the level of "
            f"chance ({facts.chance:.3f}, the same predictions compared with other tracks)."
        )
    if signs:
        signs.append(
            f"Most likely remedies: {_advice(facts, has_stopped_early and is_before_warmup)}."
        )
    return signs


def _advice(facts: RunFacts, has_stopped_too_early: bool) -> str:
    """Return the two most likely remedies."""
    advice = []
    if has_stopped_too_early:
        advice.append("remove training.early_stopping_patience, or raise it")
    if has_risen(facts.losses):
        rates = facts.learning_rates
        advice = [f"lower optimizer.learning_rate to {rates.head / 10:g}"]
        if rates.backbone:
            advice.append(f"lower optimizer.backbone_learning_rate to {rates.backbone / 10:g}")
        elif not facts.head.standardize:
            advice.append("set head.standardize to true")
        return "; or ".join(advice)
    rate = f"raise optimizer.learning_rate to {3 * facts.learning_rates.head:g}"
    if facts.is_solved:
        advice += [
            "add training tracks (`m2v curve` estimates their effect)",
            "set tuning.method to lora and head.kind to linear, which trains the backbone too",
        ]
    elif facts.tuning.method == "probe":
        if not facts.head.standardize:
            advice.append("set head.standardize to true")
        advice += [rate, "set tuning.method to lora, which trains the backbone too"]
    elif has_fallen(facts.losses):
        # It fits the training tracks only.
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
