"""Complete run, from its settings to a published model: `m2v train`, and the short recipes.

    m2v train tagging --data.source songs.csv
    accelerate launch -m m2v_finetune.train tagging --data.source songs.csv

recipes/tagging.py, beats.py, separation.py and pretrain.py show the same steps, each for one kind of data, to
be read and changed.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.config import PretrainingConfig, RecipeConfig
from m2v_finetune.data.features import VectorTrack
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.errors import UserError, run_command
from m2v_finetune.memory.plan import planned_training
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel, start_backbone
from m2v_finetune.pretraining.windows import FixedWindows, masked_windows
from m2v_finetune.publishing.backbone import publish_backbone
from m2v_finetune.publishing.publish import publish
from m2v_finetune.settings import PRETRAIN, read_command
from m2v_finetune.tasks import Task, find_task
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.training.defaults import complete_settings
from m2v_finetune.training.feature_cache import plan_cache
from m2v_finetune.training.objective import PretrainingObjective, TaskObjective
from m2v_finetune.training.optimization import with_pretraining_rates
from m2v_finetune.training.pretraining_results import warn_of_collapse, write_pretraining
from m2v_finetune.training.results import (
    evaluate_test,
    log_results,
    write_validation,
)
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_tracks import (
    Splits,
    check_run_audio,
    check_run_tracks,
    keep_run_tracks,
    training_windows,
    with_run_copies,
)
from m2v_finetune.training.sizes import pretraining_bytes, run_bytes
from m2v_finetune.training.summary import describe, describe_pretraining, open_run
from m2v_finetune.training.trainer import Trainer


def main(argv: Sequence[str] | None = None, *, recipe: str | Path | None = None) -> None:
    """Train a task, or pre-train, with the settings of a command line.

    Args:
        argv: Name of the task, then settings. Default: the command line of the process.
        recipe: The file that calls this; settings beside it, of the same name, are read first.

    Raises:
        UserError: There is no task, or no such task, or settings, data or machine must be fixed.
    """
    train(*read_command(sys.argv[1:] if argv is None else argv, recipe=recipe))


def train(name: str, config: Any) -> None:
    """Train a task, or pre-train.

    Args:
        name: Name of a task, or ``pretrain``.
        config: Its settings.

    Raises:
        UserError: Settings, data or machine must be fixed.
    """
    if name == PRETRAIN:
        pretrain(config)
    else:
        train_task(config, find_task(name))


def train_task(
    config: RecipeConfig, task_class: type[Task], *, is_search: bool = False
) -> Mapping[str, Any]:
    """Build the model, train it, evaluate the test tracks once, and publish.

    Args:
        config: All settings, with the section ``task``.
        task_class: Class of the task.
        is_search: Whether the run ends after validation, without test evaluation and publishing. The same
            run, resumed without it, does only these.

    Returns:
        Content of results.json.

    Raises:
        UserError: Settings, data or machine must be fixed.
        Stopped: A signal arrived; a checkpoint was saved.
    """
    if config.data.features is not None and not issubclass(task_class, ClipTask):
        raise UserError(
            f"data.features gives one vector per clip, but {task_class.name} needs frames. Use it for tasks "
            "with one prediction per track.",
            code="settings-conflict",
        )
    with Run.open(config, task=task_class.name) as run:
        # Tracks, their splits, their labels.
        task_config: Any = getattr(config, "task")  # noqa: B009 (each recipe adds this section)
        tracks, dataset = load_tracks(
            config.data.source,
            label_column=task_config.label_column,
            allow_outside=config.data.allow_outside,
            max_failing_fraction=config.data.max_failing_fraction,
        )
        tracks_by_split = split_tracks(
            tracks,
            group_columns=config.data.group_columns,
            validation_fraction=config.data.validation_fraction,
            test_fraction=config.data.test_fraction,
            seed=config.run.seed,
        )
        task, splits = check_run_tracks(tracks_by_split, task_class, config, run)
        config = complete_settings(config, splits["train"], num_processes=run.num_processes)

        # Model and training windows.
        model = _build_model(config, task, splits)
        if config.data.features is None and task.sample_rate is None:
            splits = with_run_copies(splits, model.backbone.sample_rate, run)
        windows = training_windows(model, splits["train"], config)

        # Memory, and the batches that fit into it; the cache of the frozen layers' output.
        training, plan = planned_training(config, task, run.accelerator)
        cache, windows, cache_note = plan_cache(
            config, model, windows, splits, mixed_precision=run.accelerator.mixed_precision
        )
        reads_audio = config.data.features is None and cache is None

        # Training; the weights of the best epoch on the validation tracks are kept.
        trainer = Trainer(
            model,
            cache.training_windows() if cache else windows,
            loss=task.loss,
            objective=TaskObjective(
                model, splits["validation"], inputs=cache.inputs("validation") if cache else None
            ),
            run=run,
            training=training,
            optimization=config.optimizer,
            num_workers=config.data.num_workers if reads_audio else 0,
            plan=plan,
        )
        open_run(
            config,
            trainer=trainer,
            task=task.name,
            run_summary=describe(
                config, trainer=trainer, splits=splits, dataset=dataset, cache_note=cache_note
            ),
            needed_bytes=run_bytes(model, keep_checkpoints=config.run.keep_checkpoints),
        )
        keep_run_tracks(splits, run)
        if cache:
            for name in ("train", "validation"):
                cache.fill(name, run, batch_size=training.eval_batch_size)
        fitted = trainer.fit()
        if is_search:
            return write_validation(trainer, fitted)

        # The test split, once; then pictures, model, card and Hub.
        with run.writing_results(model):
            if cache:
                cache.fill("test", run, batch_size=training.eval_batch_size)
            results, evaluated, test = evaluate_test(
                trainer,
                fitted,
                test=splits["test"],
                inputs=cache.inputs("test") if cache else None,
                dataset=dataset,
                seed=config.run.seed,
            )
            log_results(results)
            if run.is_main_process:
                publish(
                    model, run.folder, results, config.publish, evaluated=evaluated, tracks=test
                )
    return results


def pretrain(config: PretrainingConfig) -> Mapping[str, Any]:
    """Build student and teacher, pre-train, and publish the backbone.

    Args:
        config: All settings.

    Returns:
        Content of results.json.

    Raises:
        UserError: Settings, data or machine must be fixed, or the representations collapsed.
        Stopped: A signal arrived; a checkpoint was saved.
    """
    with Run.open(config, task=PRETRAIN) as run:
        # Tracks and their splits; no labels.
        tracks, dataset = load_tracks(
            config.data.source,
            label_column=None,
            allow_outside=config.data.allow_outside,
            max_failing_fraction=config.data.max_failing_fraction,
        )
        tracks_by_split = split_tracks(
            tracks,
            group_columns=config.data.group_columns,
            validation_fraction=config.data.validation_fraction,
            test_fraction=None,
            seed=config.run.seed,
        )
        splits = check_run_audio(tracks_by_split, config.data, run)

        # Student, head and teacher; random windows with random masks, and fixed ones for validation.
        model = PretrainingModel(
            start_backbone(config.backbone),
            config.pretrain,
            window_seconds=config.data.window_seconds,
        )
        splits = with_run_copies(splits, model.backbone.sample_rate, run)
        windows = {name: masked_windows(model, members, config) for name, members in splits.items()}

        # Training; the weights of the last epoch are kept.
        training, plan = planned_training(config, None, run.accelerator)
        trainer = Trainer(
            model,
            windows["train"],
            loss=model.loss,
            objective=PretrainingObjective(model, FixedWindows(masked=windows["validation"])),
            run=run,
            training=training,
            optimization=with_pretraining_rates(config.optimizer),
            num_workers=config.data.num_workers,
            plan=plan,
        )
        open_run(
            config,
            trainer=trainer,
            task=PRETRAIN,
            run_summary=describe_pretraining(
                config, trainer=trainer, splits=splits, dataset=dataset
            ),
            needed_bytes=pretraining_bytes(model, keep_checkpoints=config.run.keep_checkpoints),
        )
        keep_run_tracks(splits, run)
        fitted = trainer.fit()
        warn_of_collapse(model, fitted, config.pretrain)

        results = write_pretraining(
            trainer,
            fitted,
            splits=splits,
            dataset=dataset,
            is_new=config.backbone.architecture is not None,
        )
        if run.is_main_process:
            publish_backbone(model.backbone, run.folder, results, config)
    return results


def _build_model(config: RecipeConfig, task: Task, splits: Splits) -> TaskModel:
    """Return a new model on a backbone, or on precomputed vectors."""
    if config.data.features is None:
        assert config.data.window_seconds is not None
        return TaskModel.build(
            task=task,
            backbone=config.backbone,
            head=config.head,
            tuning=config.tuning,
            window_seconds=config.data.window_seconds,
            hop_seconds=config.data.hop_seconds,
        )
    first = splits["train"][0]
    assert isinstance(first, VectorTrack)
    name = Path(config.data.features).expanduser().resolve().name
    vectors = PrecomputedBackbone(first.vectors.shape[1], source=f"vectors in {name}")
    return TaskModel.on_vectors(task=task, vectors=vectors, head=config.head)


if __name__ == "__main__":
    run_command(main)
