"""One run, from its settings to a published model: what every recipe does."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from m2v_finetune.audio.augmentation import build_augmentation
from m2v_finetune.backbones import Backbone, PrecomputedBackbone, load_backbone, new_backbone
from m2v_finetune.config import (
    DataConfig,
    MusicConfig,
    OnBadTrack,
    PretrainingConfig,
    RecipeConfig,
    StartConfig,
)
from m2v_finetune.data.checking import CheckedTrack, check_splits
from m2v_finetune.data.converting import with_copies
from m2v_finetune.data.features import VectorTrack, read_vector_splits, vector_example
from m2v_finetune.data.kept import converted_ids, load_checked, require_same_files, save_checked
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.errors import DISK_ERRORS, UserError
from m2v_finetune.files import write_atomically
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.windows import FixedWindows, MaskedWindows, unlabelled_example
from m2v_finetune.publishing.backbone import publish_backbone
from m2v_finetune.publishing.publish import publish
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.labelled import labelled_tracks
from m2v_finetune.training.caching import plan_cache
from m2v_finetune.training.checkpoint import checkpoints_in
from m2v_finetune.training.faults import DataWatch, gone_processes_named, usable_to_all
from m2v_finetune.training.loop import TrainingLoop
from m2v_finetune.training.objective import PretrainingObjective, TaskObjective
from m2v_finetune.training.plan import planned_training
from m2v_finetune.training.results import (
    judge_test,
    log_results,
    write_pretraining,
    write_validation,
)
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.setup import (
    Started,
    describe,
    describe_pretraining,
    open_run,
    pretraining_bytes,
    results_bytes,
    run_bytes,
    start,
)
from m2v_finetune.training.signals import stop_on_signals

# Source: data2vec (arXiv 2202.03555), the peak rate of its base model for audio.
PRETRAINING_RATE = 5e-4

Splits = Mapping[str, Sequence[CheckedTrack]]

logger = logging.getLogger(__name__)


def run_recipe(
    config: RecipeConfig,
    task_class: type[Task],
    task_config: Any,
    *,
    is_search: bool = False,
) -> Mapping[str, Any]:
    """Build the parts, train, judge the test tracks once, publish.

    Args:
        config: All settings.
        task_class: What is learned.
        task_config: Its settings, the section ``task`` of ``config``.
        is_search: End with what validation says: the test tracks are not judged, nothing is published. The
            same run, resumed without it, does only these.

    Returns:
        The content of results.json.

    Raises:
        UserError: Something that the user can mend.
        Stopped: A signal arrived; what was learned is saved.
    """
    if config.data.features is not None and not issubclass(task_class, ClipTask):
        raise UserError(
            f"data.features gives one vector for a whole clip, and {task_class.name} needs frames. It serves "
            "tasks with one answer for a track."
        )
    accelerator, folder = start(config, task=task_class.name)
    with stop_on_signals(folder.how_to_go_on):
        return _run(config, task_class, task_config, (accelerator, folder), is_search=is_search)


def _run(
    config: RecipeConfig,
    task_class: type[Task],
    task_config: Any,
    started: Started,
    *,
    is_search: bool,
) -> Mapping[str, Any]:
    """Do what `run_recipe` does, on what was started."""
    accelerator, folder = started

    # The tracks and their splits.
    tracks, dataset = load_tracks(
        config.data.source,
        label_column=task_config.label_column,
        allow_outside=config.data.allow_outside,
        max_failing_fraction=_max_failing_fraction(config.data),
    )
    split = split_tracks(
        tracks,
        group_columns=config.data.group_columns,
        validation_fraction=config.data.validation_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.run.seed,
    )

    # The task, by their labels; a mistake in these is named before any audio is read.
    is_strict = config.data.on_bad_track == "stop" and not _goes_on(folder)
    task = (
        task_class.from_tracks(task_config, split)
        if is_strict
        else task_class.from_training(task_config, split["train"])
    )

    # The tracks whose audio and labels can be used.
    splits, num_skipped = _usable_tracks(
        config.data, split, folder, show_progress=accelerator.is_main_process
    )
    if not is_strict:
        # A run that goes on has the tracks that it began with, all of them.
        policy: OnBadTrack = "stop" if _goes_on(folder) else config.data.on_bad_track
        labelled = labelled_tracks(task, splits, on_bad_track=policy)
        num_lost = {
            name: number + len(splits[name]) - len(labelled[name])
            for name, number in num_skipped.items()
        }
        splits, num_skipped = usable_to_all(labelled, num_lost)

    # Backbone, layer weighting, head; and random windows to train them on.
    if config.data.features is None:
        model, windows, splits = _on_audio(config, task, splits, folder)
    else:
        model, windows = _on_vectors(config, task, splits)

    # What it will take, and the batches that fit into it.
    training, plan = planned_training(config, task, accelerator)

    # What the frozen part of the network says, where it is computed once.
    cache, cache_note = plan_cache(
        config, model, windows, splits, mixed_precision=accelerator.mixed_precision
    )
    reads_audio = config.data.features is None and cache is None

    # Train; the weights of the best epoch by the track-level validation metric stay.
    loop = TrainingLoop(
        model,
        windows=cache.training_windows() if cache else windows,
        objective=TaskObjective(
            model, splits["validation"], inputs=cache.inputs("validation") if cache else None
        ),
        accelerator=accelerator,
        training=training,
        optimization=config.optimizer,
        folder=folder,
        num_workers=config.data.num_workers if reads_audio else 0,
        run=config.run,
        plan=plan,
        watch=_watch(config.data, splits, num_skipped),
    )
    open_run(
        config,
        loop=loop,
        task=task.name,
        first_log=describe(
            config, loop=loop, splits=splits, dataset=dataset, cache_note=cache_note
        ),
        needed_bytes=run_bytes(model, keep_checkpoints=config.run.keep_checkpoints),
    )
    _keep_tracks(loop, splits)
    with gone_processes_named(accelerator):
        if cache:
            for name in ("train", "validation"):
                cache.fill(name, loop=loop, num_workers=config.data.num_workers)
        fitted = loop.run()

    if is_search:
        results = write_validation(loop, fitted)
        accelerator.end_training()
        return results

    # The test split, once.
    with gone_processes_named(accelerator), _disk_named(model, folder):
        if cache:
            cache.fill("test", loop=loop, num_workers=config.data.num_workers)
        results, judged, test = judge_test(
            loop,
            fitted,
            test=splits["test"],
            inputs=cache.inputs("test") if cache else None,
            dataset=dataset,
            seed=config.run.seed,
        )
    log_results(results)
    if accelerator.is_main_process:
        with _disk_named(model, folder):
            publish(model, folder, results, config.publish, judged=judged, tracks=test)
    accelerator.end_training()
    return results


@contextmanager
def _disk_named(model: TaskModel, folder: RunFolder) -> Iterator[None]:
    """Say what is needed, and that nothing is lost, where the disk fills up after training."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(
            f"Training is done, and saved, but its results cannot be written to {folder.path}: "
            f"{error.strerror}. Results, pictures and model take up to {results_bytes(model):,} bytes. "
            f"Free them, then go on with:\n  {folder.resume_command()}"
        ) from error


def run_pretraining(config: PretrainingConfig) -> Mapping[str, Any]:
    """Build the parts, pre-train, publish the backbone.

    Args:
        config: All settings.

    Returns:
        The content of results.json.

    Raises:
        UserError: Something that the user can mend, or the representations collapsed.
        Stopped: A signal arrived; what was learned is saved.
    """
    accelerator, folder = start(config, task="pretrain")
    with stop_on_signals(folder.how_to_go_on):
        return _pretrain(config, (accelerator, folder))


def _max_failing_fraction(data: DataConfig | MusicConfig) -> float:
    """Return the share of a Hub data set's files that a run may begin without."""
    return data.max_bad_fraction if data.on_bad_track == "skip" else 0.0


def _pretrain(config: PretrainingConfig, started: Started) -> Mapping[str, Any]:
    """Do what `run_pretraining` does, on what was started."""
    accelerator, folder = started

    # The tracks and their splits; no labels.
    tracks, dataset = load_tracks(
        config.data.source,
        label_column=None,
        allow_outside=config.data.allow_outside,
        max_failing_fraction=_max_failing_fraction(config.data),
    )
    split = split_tracks(
        tracks,
        group_columns=config.data.group_columns,
        validation_fraction=config.data.validation_fraction,
        test_fraction=None,
        seed=config.run.seed,
    )
    splits, num_skipped = _usable_tracks(
        config.data, split, folder, show_progress=accelerator.is_main_process
    )

    # Student, head and teacher; random windows with random masks, and some that stay the same.
    model = PretrainingModel(
        _start_backbone(config.backbone), config.pretrain, window_seconds=config.data.window_seconds
    )
    splits = _with_copies(splits, model.backbone.sample_rate, folder)
    windows = {
        name: MaskedWindows(
            windows=TrainingWindows(
                tracks=members,
                example=unlabelled_example,
                grid=model.backbone.frame_grid,
                window_samples=model.window_samples,
                windows_per_track=config.data.windows_per_track,
                augmentation=None,
                seed=config.run.seed,
            ),
            mask_probability=config.pretrain.mask_probability,
            mask_span_frames=config.pretrain.mask_span_frames,
        )
        for name, members in splits.items()
    }

    # What it will take, and the batches that fit into it.
    training, plan = planned_training(config, None, accelerator)

    # Train; the weights of the last epoch stay.
    rate = config.optimizer.learning_rate or PRETRAINING_RATE
    loop = TrainingLoop(
        model,
        windows=windows["train"],
        objective=PretrainingObjective(model, FixedWindows(masked=windows["validation"])),
        accelerator=accelerator,
        training=training,
        optimization=replace(
            config.optimizer,
            learning_rate=rate,
            backbone_learning_rate=config.optimizer.backbone_learning_rate or rate,
        ),
        folder=folder,
        num_workers=config.data.num_workers,
        run=config.run,
        plan=plan,
        watch=_watch(config.data, splits, num_skipped),
    )
    open_run(
        config,
        loop=loop,
        task="pretrain",
        first_log=describe_pretraining(config, loop=loop, splits=splits, dataset=dataset),
        needed_bytes=pretraining_bytes(model, keep_checkpoints=config.run.keep_checkpoints),
    )
    _keep_tracks(loop, splits)
    with gone_processes_named(accelerator):
        fitted = loop.run()
    said = model.below_floors(fitted.best_values)
    if said:
        logger.warning(
            "On the music that is held out, over the time of a window: %s. Too few steps were taken to learn "
            "anything, or the representations have collapsed. A run is stopped for that only after "
            "pretrain.watch_after_steps (%d); this one took %d.",
            said,
            config.pretrain.watch_after_steps,
            fitted.num_steps,
        )

    results = write_pretraining(
        loop,
        fitted,
        splits=splits,
        dataset=dataset,
        is_new=config.backbone.architecture is not None,
    )
    if accelerator.is_main_process:
        publish_backbone(model.backbone, folder, results, config)
    accelerator.end_training()
    return results


def _start_backbone(config: StartConfig) -> Backbone:
    """Load a checkpoint to go on from, or draw random weights for an architecture."""
    if config.source is not None:
        return load_backbone(config.source, revision=config.revision, spec_augment=True)
    assert config.architecture is not None  # settings refuse neither
    return new_backbone(config.architecture, licence=config.licence or "")


def _usable_tracks(
    config: DataConfig | MusicConfig,
    split: Mapping[str, Sequence[Track]],
    folder: RunFolder,
    *,
    show_progress: bool,
) -> tuple[Splits, dict[str, int]]:
    """Check the audio files, or read vectors; a run that goes on has the tracks that it began with."""
    features = config.features if isinstance(config, DataConfig) else None
    is_moved = folder.is_moved(config.source)
    is_known = _goes_on(folder) and features is None
    usable: Splits
    if features is not None:
        usable, num_skipped = read_vector_splits(
            split, Path(features).expanduser(), on_bad_track=config.on_bad_track
        )
    elif is_known and not is_moved:
        usable, num_skipped = load_checked(folder.tracks, split)
    else:
        usable, num_skipped = check_splits(
            split,
            on_bad_track=config.on_bad_track,
            timeout_seconds=config.timeout_seconds,
            show_progress=show_progress,
        )
    if is_moved:
        require_same_files(folder.tracks, usable)
        logger.info("The tracks of %s are those that the run began with elsewhere.", config.source)
        if is_known:
            usable, num_skipped = load_checked(folder.tracks, split)
    return usable_to_all(usable, num_skipped)


def _with_copies(splits: Splits, sample_rate: int, folder: RunFolder) -> Splits:
    """Let tracks be read from converted copies; a run that goes on reads those that it began with."""
    only = converted_ids(folder.tracks) if _goes_on(folder) else None
    return {
        split: with_copies(members, sample_rate=sample_rate, only=only)
        for split, members in splits.items()
    }


def _goes_on(folder: RunFolder) -> bool:
    return bool(checkpoints_in(folder.checkpoints))


def _keep_tracks(loop: TrainingLoop[Any], splits: Splits) -> None:
    if loop.accelerator.is_main_process and loop.checkpoint is None:
        write_atomically(loop.folder.tracks, lambda unfinished: save_checked(unfinished, splits))


def _watch(
    config: DataConfig | MusicConfig, splits: Splits, num_skipped: Mapping[str, int]
) -> DataWatch:
    return DataWatch(
        on_bad_track=config.on_bad_track,
        max_bad_fraction=config.max_bad_fraction,
        timeout_seconds=config.timeout_seconds,
        num_tracks={split: len(members) for split, members in splits.items()},
        num_skipped=num_skipped,
    )


def _on_audio(
    config: RecipeConfig, task: Task, splits: Splits, folder: RunFolder
) -> tuple[TaskModel, TrainingWindows, Splits]:
    """Load the backbone, and find what was converted for it."""
    model = TaskModel.build(
        task=task,
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=config.data.window_seconds,
        hop_seconds=config.data.hop_seconds,
    )
    if task.sample_rate is None:  # else it reads channels, at its own rate
        splits = _with_copies(splits, model.backbone.sample_rate, folder)
    windows = TrainingWindows(
        tracks=splits["train"],
        example=task.example,
        grid=model.backbone.frame_grid,
        window_samples=model.window_samples,
        windows_per_track=config.data.windows_per_track,
        augmentation=build_augmentation(
            config.augmentation.transforms,
            sample_rate=task.sample_rate or model.backbone.sample_rate,
            allowed_effects=task.allowed_effects(),
            moved_effects=task.moved_effects(),
            task=task.name,
        ),
        seed=config.run.seed,
        num_versions=config.data.drawn_versions,
    )
    return model, windows, splits


def _on_vectors(
    config: RecipeConfig, task: Task, splits: Splits
) -> tuple[TaskModel, TrainingWindows]:
    """Let vectors that were computed elsewhere stand for audio and backbone."""
    assert isinstance(task, ClipTask)
    assert config.data.features is not None
    first = splits["train"][0]
    assert isinstance(first, VectorTrack)
    name = Path(config.data.features).expanduser().resolve().name
    vectors = PrecomputedBackbone(first.vectors.shape[1], source=f"vectors in {name}")
    model = TaskModel.on_vectors(task=task, vectors=vectors, head=config.head)
    windows = TrainingWindows(
        tracks=splits["train"],
        example=partial(vector_example, targets=task.targets),
        grid=vectors.frame_grid,
        window_samples=model.window_samples,
        windows_per_track=config.data.windows_per_track,
        augmentation=None,
        seed=config.run.seed,
    )
    return model, windows
