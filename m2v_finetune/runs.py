"""Complete run, from its settings to a published model: `m2v train`, `m2v_finetune.train`, short recipes.

    m2v train tagging --data.source songs.csv
    accelerate launch -m m2v_finetune train tagging --data.source songs.csv

recipes/tagging.py, beats.py, separation.py and pretrain.py show the same steps, each for one kind of data, to
be read and changed.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.config import RecipeConfig
from m2v_finetune.cross_validation import PooledFolds, cross_validate
from m2v_finetune.data.features import VectorTrack
from m2v_finetune.errors import UserError
from m2v_finetune.memory.plan import planned_training
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining_runs import pretrain
from m2v_finetune.publishing.publish import publish
from m2v_finetune.settings import PRETRAIN, read_command, read_config
from m2v_finetune.tasks import Task, find_task
from m2v_finetune.tasks.clips import has_labels
from m2v_finetune.training.defaults import complete_settings
from m2v_finetune.training.distillation import (
    Loss,
    carry_licence,
    check_teacher_settings,
    load_teacher,
    require_same_frames,
    student_task,
    teacher_loss,
    with_waveforms_as_targets,
)
from m2v_finetune.training.feature_cache import plan_cache
from m2v_finetune.training.init_from import start_from, with_start_settings
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.results import evaluate_test, final_results, write_validation
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_tracks import (
    Splits,
    check_run_tracks,
    load_splits,
    require_frames,
    with_run_copies,
)
from m2v_finetune.training.summary import open_task_run
from m2v_finetune.training.trainer import OnEpoch, Trainer
from m2v_finetune.training.training_windows import training_windows


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Run that came to its end.

    Attributes:
        folder: Run folder, with log, plots and checkpoints.
        results: Content of results.json.
    """

    folder: Path
    results: Mapping[str, Any]

    @cached_property
    def model(self) -> TaskModel:
        """The trained model with its best weights, as `TaskModel.from_pretrained` loads it."""
        return TaskModel.from_pretrained(self.folder / "model")


def train(
    task: str,
    /,
    data: str | Path | Mapping[str, Any] = {},  # noqa: B006 (never changed)
    *,
    config: str | Path | Sequence[str | Path] = (),
    **sections: Mapping[str, Any],
) -> FinishedRun:
    """Train a task in this process, as `m2v train` does.

    >>> run = train("genre", "songs.csv", tuning={"method": "lora"})  # doctest: +SKIP
    >>> run.model.predict("song.mp3").label  # doctest: +SKIP

    Args:
        task: Name of the task, such as ``tagging``.
        data: Source of the tracks, or the settings of the section ``data``. Without them and ``config``,
            the quickstart's.
        config: YAML file of settings, or several, of which a later one counts more.
        **sections: Settings of a section by name, such as ``training={"epochs": 5}`` or
            ``task={"label_column": "style"}``.

    Returns:
        The run; its folder has results, plots and model.

    Raises:
        UserError: There is no such task, or settings, data or machine must be fixed.
        Stopped: A signal arrived; a checkpoint was saved.
    """
    files = [config] if isinstance(config, str | Path) else config
    words = [f"--config={file}" for file in files]
    given = {"source": data} if isinstance(data, str | Path) else data
    for section, settings in {"data": given, **sections}.items():
        if not isinstance(settings, Mapping):
            raise UserError(
                f"{section}={settings!r} is no section. Settings are given by section, as in "
                'training={"epochs": 5}.',
                code="config-invalid",
            )
        for key, value in settings.items():
            words.append(f"--{section}.{key}={_as_word(section, key, value)}")
    task_class = find_task(task)
    return train_task(read_config(task, words), task_class)


def _as_word(section: str, key: str, value: Any) -> str:
    """Return a setting as it is written on a command line."""
    if isinstance(value, str | Path):
        return str(value)
    try:
        # Numbers and arrays of numpy and torch become those of Python.
        return json.dumps(value, default=lambda one: one.tolist())
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{section}.{key} is {value!r}, of the type {type(value).__name__}. Give text, a number, a list "
            "or a mapping of these.",
            code="config-invalid",
        ) from error


def main(argv: Sequence[str] | None = None, *, recipe: str | Path | None = None) -> None:
    """Train a task, or pre-train, with the settings of a command line.

    Args:
        argv: Name of the task, then settings. Default: the command line of the process.
        recipe: The file that calls this; settings beside it, of the same name, are read first.

    Raises:
        UserError: There is no task, or no such task, or settings, data or machine must be fixed.
    """
    train_or_pretrain(*read_command(sys.argv[1:] if argv is None else argv, recipe=recipe))


def train_or_pretrain(name: str, config: Any) -> None:
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
    config: RecipeConfig,
    task_class: type[Task],
    *,
    is_search: bool = False,
    is_published: bool = True,
    on_epoch: OnEpoch | None = None,
    pooled: PooledFolds | None = None,
) -> FinishedRun:
    """Build the model, train it, evaluate the test tracks once, and publish.

    With ``data.folds`` and without ``data.fold``, all folds are run (`cross_validate`).

    Args:
        config: All settings, with the section ``task``.
        task_class: Class of the task.
        is_search: Whether the run ends after validation, without test evaluation and publishing. The same
            run, resumed without it, does only these.
        on_epoch: Function that gets the number of each epoch, from 1, and its validation metrics.
        is_published: Whether pictures, model, card and report are written after the test.
        pooled: Results of the folds, for the model on all tracks, which has no test tracks.

    Returns:
        The run; under ``is_search`` its results are those of validation.

    Raises:
        UserError: Settings, data or machine must be fixed.
        Stopped: A signal arrived; a checkpoint was saved.
    """
    require_frames(config, task_class)
    if config.data.folds is not None and config.data.fold is None and pooled is None:
        folder, results = cross_validate(
            config,
            task_class,
            train_fold=lambda own: train_task(own, task_class),
            train_final=lambda own, found: train_task(own, task_class, pooled=found),
        )
        return FinishedRun(folder=folder, results=results)
    check_teacher_settings(config)
    with Run.open(config, task=task_class.name) as run:
        # Tracks, their splits, their labels; those of a student are its teacher's.
        teacher = load_teacher(config, task_class, run)
        task_config: Any = getattr(config, "task")  # noqa: B009 (each recipe adds this section)
        by_split, dataset = load_splits(
            config.data,
            label_column=task_config.label_column,
            seed=config.run.seed,
            stratify=has_labels(task_class),
            is_final=pooled is not None,
        )
        student = None if teacher is None else student_task(teacher, config)
        task, splits = check_run_tracks(by_split, task_class, config, run, student=student)
        config = complete_settings(with_start_settings(config, task), splits, run)

        # Model and training windows.
        model = _build_model(config, task, splits)
        start_from(model, config.training.init_from, run)
        if config.data.features is None and task.sample_rate is None:
            splits = with_run_copies(splits, model.backbone.sample_rate, run)
        windows = training_windows(model, splits["train"], config)
        loss: Loss = task.loss
        if teacher is not None:
            require_same_frames(model, teacher, str(config.training.teacher))
            carry_licence(model, teacher)
            windows = with_waveforms_as_targets(windows)
            temperature = config.training.temperature
            loss = teacher_loss(teacher, temperature=temperature, autocast=run.accelerator.autocast)

        # Memory, and the batches that fit into it; the cache of the frozen layers' output.
        training, plan = planned_training(config, task, run.accelerator)
        cache, windows, cache_note = plan_cache(config, model, windows, splits, run)
        reads_audio = config.data.features is None and cache is None

        # Training; the weights of the best epoch on the validation tracks are kept.
        trainer = Trainer(
            model,
            cache.training_windows() if cache else windows,
            loss=loss,
            objective=TaskObjective(
                model, splits["validation"], inputs=cache.inputs("validation") if cache else None
            ),
            run=run,
            training=training,
            optimization=config.optimizer,
            num_workers=config.data.num_workers if reads_audio else 0,
            plan=plan,
            on_epoch=on_epoch,
        )
        open_task_run(
            config, trainer=trainer, splits=splits, dataset=dataset, cache_note=cache_note
        )
        if cache:
            cache.fill("train", "validation", run=run, batch_size=training.eval_batch_size)
        fitted = trainer.fit()
        if is_search:
            return FinishedRun(folder=run.folder.path, results=write_validation(trainer, fitted))

        # The test split, once; then pictures, model, card and Hub.
        with run.writing_results(model):
            if pooled is not None:
                results = final_results(
                    trainer, fitted, dataset=dataset, pooled=pooled.results, tracks=pooled.tracks
                )
                if run.is_main_process:
                    evaluated = [one.evaluated for one in pooled.tracks]
                    publish(
                        model, run.folder, results, config.publish, evaluated=evaluated, tracks=[]
                    )
                return FinishedRun(folder=run.folder.path, results=results)
            if cache:
                cache.fill("test", run=run, batch_size=training.eval_batch_size)
            results, evaluated, test = evaluate_test(
                trainer,
                fitted,
                test=splits["test"],
                inputs=cache.inputs("test") if cache else None,
                dataset=dataset,
                seed=config.run.seed,
            )
            if run.is_main_process and is_published:
                publish(
                    model, run.folder, results, config.publish, evaluated=evaluated, tracks=test
                )
    return FinishedRun(folder=run.folder.path, results=results)


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
