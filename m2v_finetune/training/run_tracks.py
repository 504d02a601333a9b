"""Tracks of a run: checks of their audio and labels."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m2v_finetune.config import DataConfig, OnBadTrack, RecipeConfig, UnlabelledDataConfig
from m2v_finetune.data.checking import CheckedTrack, check_splits
from m2v_finetune.data.features import VectorTrack, read_vector_splits
from m2v_finetune.data.folds import UNUSED, fold_splits, nested_subset
from m2v_finetune.data.manifest import DatasetInfo, Track
from m2v_finetune.data.resampling import with_resampled
from m2v_finetune.data.saved_tracks import (
    load_checked,
    require_same_files,
    require_same_labels,
    resampled_ids,
    save_checked,
)
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.errors import UserError
from m2v_finetune.files import expand_home, write_atomically
from m2v_finetune.tasks import Task, find_task
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.labelled import label_hash, labelled_tracks
from m2v_finetune.training.faults import usable_to_all
from m2v_finetune.training.run import Run

Splits = dict[str, list[CheckedTrack]]
"""Checked tracks by split."""

logger = logging.getLogger(__name__)


def load_splits(
    data: DataConfig | UnlabelledDataConfig,
    *,
    label_column: str | None,
    seed: int,
    stratify: bool = True,
    is_final: bool = False,
) -> tuple[dict[str, list[Track]], DatasetInfo]:
    """Return the tracks of the data source by split, and the facts about the data set.

    Args:
        data: Source of the tracks, and the fractions of the splits where the source has none.
        label_column: Column of the labels; None where no labels are needed.
        seed: Seed of the splits.
        stratify: Whether folds and subsets of the training tracks spread the labels of the column; False
            where it has files or numbers, of which each occurs about once.
        is_final: Whether the run is that of ``data.final_model``, which has no test split.

    Returns:
        The splits; with ``data.num_train_tracks``, the other training tracks are in `UNUSED`.

    Raises:
        UserError: There is no data at the source, or it cannot be read or split.
    """
    folds = data.folds if isinstance(data, DataConfig) else None
    if folds is not None and data.fold is None and not is_final:  # type: ignore[union-attr]
        raise UserError(
            f"data.folds is {folds}, which `m2v train` runs one after the other. Here is one run: choose it "
            "by data.fold.",
            code="folds-need-command",
        )
    tracks, dataset = load_tracks(
        data.source,
        label_column=label_column,
        allow_outside=data.allow_outside,
        max_failing_fraction=data.max_failing_fraction,
    )
    if folds is not None:
        assert isinstance(data, DataConfig)
        splits = fold_splits(
            tracks,
            group_columns=data.group_columns,
            label_column=label_column if stratify else None,
            num_folds=folds,
            fold=data.fold,
            validation_fraction=data.validation_fraction,
            seed=seed,
        )
    else:
        splits = split_tracks(
            tracks,
            group_columns=data.group_columns,
            validation_fraction=data.validation_fraction,
            test_fraction=data.test_fraction if isinstance(data, DataConfig) else None,
            seed=seed,
        )
    if isinstance(data, DataConfig) and data.num_train_tracks is not None:
        splits["train"], unused = nested_subset(
            splits["train"],
            data.num_train_tracks,
            group_columns=data.group_columns,
            label_column=label_column if stratify else None,
            seed=data.subset_seed,
        )
        if unused:
            splits[UNUSED] = unused
    return splits, dataset


def shared_tracks(splits: Splits, config: RecipeConfig, run: Run) -> list[CheckedTrack]:
    """Return the tracks whose features folds and subsets of training tracks share; none for other runs.

    They are all tracks, in an order that is the same in each of these runs.
    """
    if config.data.folds is None and config.data.num_train_tracks is None:
        return []
    tracks = [*run.unused, *(checked for members in splits.values() for checked in members)]
    return sorted(tracks, key=lambda checked: checked.track.id)


def check_run_tracks(
    splits: Mapping[str, Sequence[Track]],
    task_class: type[Task],
    config: RecipeConfig,
    run: Run,
    *,
    student: Task | None = None,
) -> tuple[Task, Splits]:
    """Build the task from the labels, and check labels and audio of all tracks.

    Under ``data.on_bad_track skip``, tracks that cannot be used are left out and counted. Errors in labels
    are reported before any audio is read. A resumed run keeps its initial tracks and labels.

    Args:
        splits: Tracks by split.
        task_class: Class of the task.
        config: All settings, with the section ``task``.
        run: Run, whose policy for bad tracks gets the numbers of tracks.
        student: Task of a student, whose training tracks need no labels; made from the labels if None.

    Raises:
        UserError: Tracks cannot be used; the message lists them. Or the task is unknown, so that its model
            could not be loaded.
    """
    if find_task(task_class.name) is not task_class:
        raise UserError(
            f"The task '{task_class.name}' is {find_task(task_class.name).__name__}, not "
            f"{task_class.__name__}. Give yours another name.",
            code="task-exists",
        )
    require_frames(config, task_class)
    task_config: Any = getattr(config, "task")  # noqa: B009 (each recipe adds this section)
    is_strict = config.data.on_bad_track == "stop" and not run.has_checkpoint
    if config.training.teacher is not None and student is None:
        raise UserError(
            f"training.teacher is {config.training.teacher}, from which `m2v distil` and `m2v train "
            f"{task_class.name}` train a student. This file shows a run on labels: use such a command, "
            "or remove training.teacher.",
            code="teacher-needs-command",
        )
    with_labels = [name for name in splits if student is None or name != "train"]
    if student is not None:
        task = student
        if is_strict:
            task.check_labels([track for name in with_labels for track in splits[name]])
    elif is_strict:
        task = task_class.from_tracks(task_config, splits)
    else:
        task = task_class.from_training(task_config, splits["train"])
    usable, num_skipped = _usable_audio(splits, config.data, run)
    labelled = usable
    if not is_strict:
        # A resumed run keeps all of its initial tracks.
        policy: OnBadTrack = "stop" if run.has_checkpoint else config.data.on_bad_track
        checked = {name: usable[name] for name in with_labels}
        labelled = usable | labelled_tracks(task, checked, on_bad_track=policy)
    num_lost = {
        name: number + len(usable[name]) - len(labelled[name])
        for name, number in num_skipped.items()
    }
    # On every process: one with another run folder may find no checkpoint, and others wait for it here.
    usable, num_skipped = usable_to_all(labelled, num_lost)
    run.unused = usable.pop(UNUSED, [])
    num_skipped.pop(UNUSED, None)
    _set_policy(run, usable, num_skipped)
    run.labels = {
        one.track.id: _hash(task, one)
        for split, members in (*usable.items(), ("train", run.unused))
        if split in with_labels
        for one in members
    }
    if run.has_checkpoint:
        require_same_labels(run.folder.tracks, run.labels)
    return task, usable


def require_frames(config: RecipeConfig, task_class: type[Task]) -> None:
    """Raise `UserError` where a task needs frames and ``data.features`` has a vector for each clip."""
    if config.data.features is not None and not issubclass(task_class, ClipTask):
        raise UserError(
            f"data.features gives one vector per clip, but {task_class.name} needs frames. Use it for tasks "
            "with one prediction per track.",
            code="settings-conflict",
        )


def check_run_audio(
    splits: Mapping[str, Sequence[Track]], data: DataConfig | UnlabelledDataConfig, run: Run
) -> Splits:
    """Check the audio of tracks without labels; otherwise as `check_run_tracks`."""
    usable, num_skipped = _usable_audio(splits, data, run)
    _set_policy(run, usable, num_skipped)
    return usable


def with_run_copies(splits: Splits, sample_rate: int, run: Run) -> Splits:
    """Return the tracks with their resampled copies, if there are any; a resumed run reads the same ones.

    Args:
        splits: Tracks by split.
        sample_rate: Sample rate of the backbone in Hz.
        run: Run.
    """
    only = resampled_ids(run.folder.tracks) if run.has_checkpoint else None
    run.unused = with_resampled(run.unused, sample_rate=sample_rate, only=only)
    return {
        split: with_resampled(members, sample_rate=sample_rate, only=only)
        for split, members in splits.items()
    }


def keep_run_tracks(splits: Splits, run: Run) -> None:
    """Write the tracks of a new run to its folder, so that a resumed run has the same ones."""
    if run.is_main_process and not run.has_checkpoint:
        splits = splits | ({UNUSED: run.unused} if run.unused else {})
        write_atomically(
            run.folder.tracks, lambda unfinished: save_checked(unfinished, splits, run.labels)
        )


def _usable_audio(
    split: Mapping[str, Sequence[Track]], config: DataConfig | UnlabelledDataConfig, run: Run
) -> tuple[Splits, dict[str, int]]:
    """Check the audio files, or read vectors; a resumed run keeps its initial tracks."""
    features = config.features if isinstance(config, DataConfig) else None
    is_moved = run.folder.is_moved(config.source)
    is_known = run.has_checkpoint and features is None
    usable: Mapping[str, Sequence[CheckedTrack]]
    if features is not None:
        usable, num_skipped = _read_vectors(
            split, expand_home(features), run, on_bad_track=config.on_bad_track
        )
    elif is_known and not is_moved:
        usable, num_skipped = load_checked(run.folder.tracks, split)
    else:
        usable, num_skipped = check_splits(
            split,
            on_bad_track=config.on_bad_track,
            timeout_seconds=config.timeout_seconds,
            show_progress=run.is_main_process,
        )
    if is_moved:
        require_same_files(run.folder.tracks, usable)
        logger.info("The tracks of %s are the same as at the start of the run.", config.source)
        if is_known:
            usable, num_skipped = load_checked(run.folder.tracks, split)
    return usable_to_all(usable, num_skipped)


def _hash(task: Task, checked: CheckedTrack) -> str | None:
    """Return a hash of the labels of a track, and of its vectors where these replace its audio."""
    labels = label_hash(task, checked.track)
    if not isinstance(checked, VectorTrack):
        return labels
    digest = hashlib.sha256(str(labels).encode())
    digest.update(checked.vectors.tobytes())
    return digest.hexdigest()[:16]


def _read_vectors(
    split: Mapping[str, Sequence[Track]], folder: Path, run: Run, *, on_bad_track: OnBadTrack
) -> tuple[Mapping[str, Sequence[CheckedTrack]], dict[str, int]]:
    """Read the vectors of all tracks; of a resumed run, of its initial ones."""
    if not run.has_checkpoint:
        return read_vector_splits(split, folder, on_bad_track=on_bad_track)
    known, num_skipped = load_checked(run.folder.tracks, split)
    initial = {name: [one.track for one in members] for name, members in known.items()}
    usable, _ = read_vector_splits(initial, folder, on_bad_track="stop")
    return usable, num_skipped


def _set_policy(run: Run, usable: Splits, num_skipped: Mapping[str, int]) -> None:
    run.bad_tracks.num_tracks = {split: len(members) for split, members in usable.items()}
    run.bad_tracks.num_skipped = num_skipped
