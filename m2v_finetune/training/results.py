"""Results of a run: evaluation of the test split, and results.json."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Inputs
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.errors import UserError
from m2v_finetune.files import json_number, write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.training.calibrating import calibration_results, fit_calibration
from m2v_finetune.training.evaluation import chance_orders, evaluate_tracks, output_variation
from m2v_finetune.training.facts import training_facts
from m2v_finetune.training.faults import BadTrackPolicy, DataError
from m2v_finetune.training.findings import RunFacts, chance_level, find_signs, logged_losses
from m2v_finetune.training.novelty import novelty_results
from m2v_finetune.training.optimization import peak_rates
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.results_log import log_results
from m2v_finetune.training.run_progress import FitResult
from m2v_finetune.training.sizes import count_parameters
from m2v_finetune.training.track_results import (
    TrackResult,
    save_track_results,
    write_predictions,
    write_track_results,
)
from m2v_finetune.training.trainer import Trainer
from m2v_finetune.variation import OutputVariation

POOLED_SPLIT = "cross-validation"
"""Name in results.json, in place of ``test``, for the tracks of all folds together."""


def evaluate_test(
    trainer: Trainer[TaskModel],
    fitted: FitResult,
    *,
    test: Sequence[CheckedTrack],
    dataset: DatasetInfo,
    seed: int,
    inputs: Inputs | None = None,
) -> tuple[dict[str, Any], list[Any], list[CheckedTrack]]:
    """Evaluate the test split with the best weights; write results.json and the results of tracks.

    The model's task is calibrated on the validation tracks then. Metrics are those of the scores without
    calibration, which have the same order.

    Args:
        trainer: Trainer after `Trainer.fit`.
        fitted: Result of `Trainer.fit`.
        test: Tracks of the test split.
        dataset: Name and licence of the data.
        seed: Seed of the bootstrap.
        inputs: Function that reads the windows of the test tracks, in place of the task.

    Returns:
        Content of results.json, evaluation of each readable track, and these tracks.

    Raises:
        UserError: A track can no longer be read, or a worker failed.
    """
    model, folder = trainer.model, trainer.run.folder
    start_time = time.monotonic()
    variation = OutputVariation()
    try:
        with progress_bar(trainer.accelerator) as bar:
            calibrated_task, validation = fit_calibration(trainer, bar)
            evaluations = evaluate_tracks(
                model,
                test,
                accelerator=trainer.accelerator,
                batch_size=trainer.training.eval_batch_size,
                num_workers=trainer.num_workers,
                bar=bar,
                bad_track_policy=trainer.run.bad_tracks,
                split="test",
                inputs=inputs,
                # Not in separation: its stems are computed during the comparison, and only once.
                orders=chance_orders(len(test), seed=seed)
                if isinstance(model.task, ClipTask | FrameTask)
                else (),
                variation=variation,
            )
    except DataError as fault:
        raise UserError(
            f"{fault}\nTraining is done, and saved. Resume with:\n  {folder.resume_command()}",
            code="data-unreadable",
        ) from fault
    uncalibrated = evaluations.own
    lost = trainer.run.bad_tracks.found.get("test", {})
    test = [checked for checked in test if checked.track.id not in lost]
    results = {
        "task": model.task.name,
        "split": "test",
        "num_tracks": len(test),
        "num_tracks_of_splits": {
            split: number - len(trainer.run.bad_tracks.found.get(split, {}))
            for split, number in trainer.run.bad_tracks.num_tracks.items()
        },
        **skipped_tracks(trainer.run.bad_tracks),
        **model.task.summarize(uncalibrated, seed=seed),
        **output_variation(model, variation, num_tracks=len(test)),
        **_run_facts(trainer, fitted, dataset),
        "seconds": {"training": fitted.seconds, "test": time.monotonic() - start_time},
        "waiting_share": trainer.steps.timer.run.share,
    }
    metric = model.task.selection_metric
    chance = chance_level(
        metric, [model.task.compute_metrics(order)[metric] for order in evaluations.shuffled]
    )
    results["metrics"][metric]["chance"] = chance
    results["warnings"] = _signs(trainer, fitted, results["metrics"][metric], chance)
    model.task, evaluated = calibrated_task, uncalibrated
    if isinstance(calibrated_task, ClipTask):
        evaluated = [calibrated_task.calibrated(one) for one in uncalibrated]
        results |= calibration_results(
            calibrated_task, validation=validation, before=uncalibrated, after=evaluated
        ) | novelty_results(model, validation=validation, test=evaluated)
    if trainer.accelerator.is_main_process:
        write_json(folder.results, results)
        write_predictions(
            folder.predictions, test, [model.task.prediction_row(one) for one in evaluated]
        )
        write_track_results(folder.test_tracks, test, evaluated)
    log_results(results)
    return results, evaluated, test


def final_results(
    trainer: Trainer[TaskModel],
    fitted: FitResult,
    *,
    dataset: DatasetInfo,
    pooled: Mapping[str, Any],
    tracks: Sequence[TrackResult],
) -> dict[str, Any]:
    """Write the results of a model on all tracks: facts of its training, and metrics of the folds.

    The model's task is calibrated on the validation tracks.

    Args:
        trainer: Trainer after `Trainer.fit`.
        fitted: Result of `Trainer.fit`.
        dataset: Name and licence of the data.
        pooled: Content of results.json of the cross-validation.
        tracks: Result of each track in it.

    Returns:
        Content of results.json.
    """
    folder, lost = trainer.run.folder, trainer.run.bad_tracks
    with progress_bar(trainer.accelerator) as bar:
        trainer.model.task, _ = fit_calibration(trainer, bar)
    results = {
        **pooled,
        "num_tracks_of_splits": {
            split: number - len(lost.found.get(split, {}))
            for split, number in lost.num_tracks.items()
        },
        **skipped_tracks(lost),
        **_run_facts(trainer, fitted, dataset),
        "seconds": {"training": fitted.seconds, "test": 0.0},
        "waiting_share": trainer.steps.timer.run.share,
    }
    if trainer.accelerator.is_main_process:
        write_json(folder.results, results)
        save_track_results(folder.test_tracks, tracks)
    return results


def _run_facts(
    trainer: Trainer[TaskModel], fitted: FitResult, dataset: DatasetInfo
) -> dict[str, Any]:
    """Return the part of results.json about model and training."""
    model = trainer.model
    backbone = model.backbone
    return {
        "metric_names": dict(model.task.metric_names),
        "selection_metric": model.task.selection_metric,
        "hop_seconds": model.hop_seconds,
        "head": model.task.describe_head(model.head_config),
        **_describe_fit(fitted),
        "layer_weights": model.layer_weighting.weights().detach().cpu().tolist(),
        "num_trained_parameters": count_parameters(model, trained_only=True),
        "num_parameters": count_parameters(model),
        "tuning": model.tuning.method,
        "training": training_facts(trainer, fitted),
        "dataset": asdict(dataset),
        "backbone": {
            "source": backbone.source,
            "revision": backbone.revision,
            "licence": backbone.licence,
            "num_layers": backbone.num_layers,
            "num_published_layers": backbone.settings.get("num_hidden_layers"),
            "vector_size": backbone.hidden_size
            if isinstance(backbone, PrecomputedBackbone)
            else None,
        },
    }


def _signs(
    trainer: Trainer[TaskModel],
    fitted: FitResult,
    value: Mapping[str, float | None],
    chance: float | None,
) -> list[str]:
    """Return the signs of failed training."""
    task = trainer.model.task
    return find_signs(
        RunFacts(
            losses=logged_losses(trainer.run.folder.metrics),
            metric=task.metric_names[task.selection_metric],
            value=value,
            chance=chance,
            best_step=fitted.best_epoch * trainer.batches.steps_per_epoch,
            warmup_steps=0
            if fitted.solved_by
            else math.ceil(trainer.optimization.warmup_ratio * trainer.total_steps),
            num_steps=fitted.num_steps,
            total_steps=0 if fitted.solved_by else trainer.total_steps,
            head=trainer.model.head_config,
            tuning=trainer.model.tuning,
            learning_rates=peak_rates(trainer.model, trainer.optimization),
            is_solved=fitted.solved_by is not None,
        )
    )


def _describe_fit(fitted: FitResult) -> dict[str, Any]:
    return {
        "validation": {k: json_number(v) for k, v in fitted.best_values.items()},
        "best_epoch": fitted.best_epoch,
        "num_epochs": fitted.num_epochs,
        "num_steps": fitted.num_steps,
        "num_skipped_steps": fitted.num_skipped_steps,
    }


def write_validation(trainer: Trainer[TaskModel], fitted: FitResult) -> dict[str, Any]:
    """Write the validation metrics of a run without test evaluation to results.json; return its content."""
    task = trainer.model.task
    results = {
        "task": task.name,
        "split": "validation",
        "metric_names": dict(task.metric_names),
        "selection_metric": task.selection_metric,
        **_describe_fit(fitted),
    }
    if trainer.accelerator.is_main_process:
        write_json(trainer.run.folder.results, results)
    return results


def skipped_tracks(bad_track_policy: BadTrackPolicy) -> dict[str, Any]:
    """Return the number of left-out tracks of each split, and the ids of those lost during the run."""
    return {
        "num_skipped_tracks": {
            split: bad_track_policy.num_lost(split) for split in bad_track_policy.num_tracks
        },
        "lost_tracks": {split: sorted(found) for split, found in bad_track_policy.found.items()},
    }
