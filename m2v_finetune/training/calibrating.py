"""Calibration after training: fitted on the validation tracks, reported on the test tracks."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import Progress

from m2v_finetune.calibration import (
    MIN_POSITIVES,
    MIN_TRACKS,
    expected_calibration_error,
    few_examples,
    reliability,
)
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clips import ClipTask, EvaluatedClip, stack_evaluated
from m2v_finetune.training.evaluation import evaluate_tracks
from m2v_finetune.training.novelty import bound_novelty, fit_novelty
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.trainer import Trainer

logger = logging.getLogger(__name__)


def is_calibrated_task(task: Task) -> bool:
    """Return whether the scores of a task are probabilities that can be calibrated."""
    return isinstance(task, ClipTask) and task.problem_type in (
        "single_label_classification",
        "multi_label_classification",
    )


def fit_calibration(trainer: Trainer[TaskModel], bar: Progress) -> tuple[Task, list[Any]]:
    """Return the task of a trained model with calibration and thresholds, and the validation tracks.

    The model measures novelty then. The result is the same on every process, and so is that of a resumed run.

    Args:
        trainer: Trainer after `Trainer.fit`.
        bar: Progress bar.

    Returns:
        The task, and the evaluation of each validation track without calibration; the same task and none
        where scores are no probabilities.

    Raises:
        DataError: A validation track can no longer be read.
    """
    model, objective = trainer.model, trainer.objective
    if not is_calibrated_task(model.task) or not isinstance(objective, TaskObjective):
        return model.task, []
    assert isinstance(model.task, ClipTask)
    fit_novelty(trainer, num_validation=len(objective.validation))
    evaluated = evaluate_tracks(
        model,
        objective.validation,
        accelerator=trainer.accelerator,
        batch_size=trainer.training.eval_batch_size,
        num_workers=trainer.num_workers,
        bar=bar,
        bad_track_policy=trainer.run.bad_tracks,
        split="validation",
        inputs=objective.inputs,
    ).own
    bound_novelty(model, evaluated)
    return model.task.calibrate(evaluated), evaluated


def calibration_results(
    task: Task,
    *,
    validation: Sequence[EvaluatedClip],
    before: Sequence[EvaluatedClip],
    after: Sequence[EvaluatedClip],
) -> dict[str, Any]:
    """Return the sections ``calibration`` and ``thresholds`` of results.json; empty without calibration.

    Args:
        task: The task, calibrated.
        validation: Validation tracks, without calibration.
        before: Test tracks, without calibration.
        after: The same, with calibration.
    """
    if not validation or not isinstance(task, ClipTask):
        return {}
    is_tagging = task.problem_type == "multi_label_classification"
    left_out = []
    if is_tagging:
        left_out = [task.labels[i] for i in few_examples(stack_evaluated(validation)[0])]
    sides = {
        name: reliability(*_outcomes(side)) for name, side in (("before", before), ("after", after))
    }
    result: dict[str, Any] = {
        "method": None if task.calibration is None else "platt" if is_tagging else "temperature",
        "num_validation_tracks": len(validation),
        "labels_left_out": left_out,
        **{f"error_{name}": expected_calibration_error(bins) for name, bins in sides.items()},
        **{f"bins_{name}": bins for name, bins in sides.items()},
    }
    if task.calibration is not None and not is_tagging:
        result |= task.calibration.to_dict()
    result["about"] = _about(result)
    return {"calibration": result, **_threshold_results(task, after)}


def _outcomes(evaluated: Sequence[EvaluatedClip]) -> tuple[Any, Any]:
    """Return probabilities and whether each is true: of the predicted class, or of each tag."""
    targets, scores = stack_evaluated(evaluated)
    if targets.ndim == 1:
        return scores.max(axis=1), scores.argmax(axis=1) == targets
    return scores.ravel(), targets.ravel() > 0


def _about(calibration: Mapping[str, Any]) -> str:
    """Return what was fitted, in a sentence or more."""
    count, left_out = calibration["num_validation_tracks"], calibration["labels_left_out"]
    if calibration["method"] is None:
        return (
            f"The probabilities are not calibrated: {count} validation tracks are too few. It needs "
            f"{MIN_TRACKS}, and for a tag {MIN_POSITIVES} with it and {MIN_POSITIVES} without."
        )
    if calibration["method"] == "temperature":
        about = f"temperature {calibration['temperature']:.3g}"
    else:
        about = "slope and intercept of the log odds of each label"
    sentence = f"The probabilities are calibrated on {count} validation tracks: {about}."
    if left_out:
        sentence += (
            f" Not calibrated, as fewer than {MIN_POSITIVES} validation tracks have or lack them: "
            f"{', '.join(left_out)}."
        )
    return sentence


def _threshold_results(task: ClipTask, evaluated: Sequence[EvaluatedClip]) -> dict[str, Any]:
    """Return thresholds of labels with precision, recall and F1 on the test tracks."""
    if not task.thresholds:
        return {}
    targets, scores = stack_evaluated(evaluated)
    rows = {}
    for number, (label, limit) in enumerate(zip(task.labels, task.thresholds, strict=True)):
        is_true = targets[:, number] > 0
        is_chosen = np.zeros(len(targets), bool) if limit is None else scores[:, number] >= limit
        found = int((is_true & is_chosen).sum())
        rows[label] = {
            "threshold": limit,
            "precision": found / int(is_chosen.sum()) if is_chosen.any() else None,
            "recall": found / int(is_true.sum()) if is_true.any() else None,
            "num_decided": int(is_chosen.sum()),
        }
    never = [label for label, row in rows.items() if row["threshold"] is None]
    if never:
        logger.warning(
            "No threshold reaches task.threshold_precision on the validation tracks for: %s. "
            "`m2v predict --decide` never gives these labels. Lower it, or annotate more tracks.",
            ", ".join(never),
        )
    return {"thresholds": rows}


def describe_calibration(results: Mapping[str, Any]) -> str:
    """Return what was fitted, and the calibration error of the test tracks; empty without probabilities."""
    calibration = results.get("calibration")
    if not calibration:
        return ""
    before, after = calibration["error_before"], calibration["error_after"]
    errors = (
        f"{after:.3f}"
        if calibration["method"] is None
        else f"{before:.3f} before, {after:.3f} after"
    )
    return (
        f"{calibration['about']} Expected calibration error of the {results['num_tracks']:,} test tracks: "
        f"{errors}."
    )
