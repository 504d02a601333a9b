"""Random windows of the training tracks: augmentation, mixing and the sampling of tracks."""

from collections.abc import Sequence
from functools import partial

from m2v_finetune.audio.augmentation import build_augmentation
from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.features import vector_example
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.mixup import Mixup
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks import Task
from m2v_finetune.tasks.classification import Classification
from m2v_finetune.tasks.clips import ClipTask


def training_windows(
    model: TaskModel, tracks: Sequence[CheckedTrack], config: RecipeConfig
) -> TrainingWindows:
    """Return the random windows of the training tracks, with their augmentation.

    Args:
        model: Model to train.
        tracks: Training tracks.
        config: All settings, completed.

    Raises:
        UserError: An augmentation is unknown, or invalidates the labels; or the task has no such sampling.
    """
    assert config.data.windows_per_track is not None
    task, grid = model.task, model.backbone.frame_grid
    if config.data.features is not None:
        assert isinstance(task, ClipTask)
        return TrainingWindows(
            tracks=tracks,
            example=partial(vector_example, targets=task.targets),
            grid=grid,
            window_samples=model.window_samples,
            windows_per_track=config.data.windows_per_track,
            augmentation=None,
            seed=config.run.seed,
            track_classes=_track_classes(task, tracks, config),
        )
    return TrainingWindows(
        tracks=tracks,
        example=task.example,
        grid=grid,
        window_samples=model.window_samples,
        windows_per_track=config.data.windows_per_track,
        augmentation=build_augmentation(
            config.augmentation.transforms,
            sample_rate=task.sample_rate or model.backbone.sample_rate,
            allowed_effects=task.allowed_effects(),
            transformed_effects=task.transformed_effects(),
            task=task.name,
        ),
        seed=config.run.seed,
        num_variants=config.data.num_variants,
        mixup=_mixup(task, config),
        track_classes=_track_classes(task, tracks, config),
    )


def _mixup(task: Task, config: RecipeConfig) -> Mixup | None:
    """Return the mixing of windows, if it is set; refuse it for tasks with targets of frames or stems."""
    alpha = config.augmentation.mixup_alpha
    if alpha == 0:
        return None
    if not isinstance(task, ClipTask):
        raise UserError(
            f"augmentation.mixup_alpha is {alpha}, but {task.name} has targets in time, which do not mix. "
            "Set it to 0.",
            code="mixup-unsupported",
        )
    return Mixup(alpha=alpha, num_outputs=task.num_outputs, seed=config.run.seed)


def _track_classes(
    task: Task, tracks: Sequence[CheckedTrack], config: RecipeConfig
) -> Sequence[int]:
    """Return the class of each track for balanced sampling; empty for uniform sampling."""
    if config.data.sampling == "uniform":
        return ()
    if not isinstance(task, Classification):
        raise UserError(
            f"data.sampling is 'balanced', but {task.name} has not one class for each track. Set it to "
            "uniform.",
            code="sampling-unsupported",
        )
    return [int(task.targets(checked.track, IDENTITY)) for checked in tracks]
