"""Decision whether a run uses the cache, from its settings and data."""

import logging
from dataclasses import replace
from pathlib import Path

from accelerate.utils import gather_object

from m2v_finetune.audio.resample_cache import data_cache_folder
from m2v_finetune.backbones.backbone import CONV_ENCODER
from m2v_finetune.config import RecipeConfig, parse_bytes
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.errors import UserError
from m2v_finetune.files import NoHomeError, expand_home, why_unwritable
from m2v_finetune.model import FeatureLayout, TaskModel
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.training.defaults import choose_num_variants
from m2v_finetune.training.feature_cache.cache import FeatureCache
from m2v_finetune.training.feature_cache.keys import (
    as_json,
    describe_augmentation,
    describe_features,
)
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_tracks import Splits, shared_tracks
from m2v_finetune.training.sizes import megabytes

logger = logging.getLogger(__name__)


def plan_cache(
    config: RecipeConfig,
    model: TaskModel,
    windows: TrainingWindows,
    splits: Splits,
    run: Run,
) -> tuple[FeatureCache | None, TrainingWindows, str]:
    """Decide whether a run uses the feature cache, from its settings and data alone.

    So a resumed run decides the same. Folds and subsets of training tracks read the same files, with the
    features of all their tracks. If the cache cannot be written, a run trains without it, on the same
    windows: its results are the same, even if it resumes on a machine that can write the cache.

    Args:
        config: All settings.
        model: Model with tuning and head.
        windows: Windows of the training split.
        splits: Tracks by split.
        run: Run, with the mixed precision of the network.

    Returns:
        The cache, or None; the training windows without it; and a line for the run summary, which may be
        empty.

    Raises:
        UserError: ``cache.use`` is ``on`` and nothing can be cached, or the cache does not fit.
    """
    settings = config.cache
    layout = model.feature_layout
    shared = shared_tracks(splits, config, run)
    mixed_precision = run.accelerator.mixed_precision
    is_wanted = settings.use == "on" or (
        settings.use == "auto" and model.tuning.method == "probe" and config.data.features is None
    )
    if not is_wanted:
        return None, windows, ""
    if not isinstance(model.task, ClipTask | FrameTask):
        return _without(config, windows, f"{model.task.name} needs the waveform of the mixture")
    if config.training.teacher is not None:
        return _without(config, windows, "the teacher needs the waveforms of windows")
    if windows.mixup is not None:
        return _without(config, windows, "augmentation.mixup_alpha mixes the waveforms of windows")
    if layout is None:
        return _without(config, windows, "no layer of the backbone is frozen")
    num_variants = 1
    if replace(windows, tracks=shared or windows.tracks).is_random:
        assert config.data.windows_per_track is not None
        num_variants = config.data.num_variants or choose_num_variants(
            shared or windows.tracks, model.window_seconds
        )
        if not shared and not model.head_config.is_solved:
            num_variants = min(num_variants, config.training.epochs * config.data.windows_per_track)
    limit_bytes = parse_bytes("cache.max_size", settings.max_size)
    in_variants = replace(windows, num_variants=num_variants)
    folder, why = None, None
    try:
        folder = cache_folder(settings.folder)
    except NoHomeError as error:
        why = str(error)
    if why := _of_any_process(why):
        return _without_folder(in_variants, why)
    assert folder is not None
    cache = FeatureCache(
        model,
        in_variants,
        splits,
        folder=folder,
        dtype=settings.precision,
        limit_bytes=limit_bytes,
        num_workers=config.data.num_workers,
        about=as_json(describe_features(model, layout, mixed_precision=mixed_precision)),
        augmentation=as_json(describe_augmentation(config, model)),
        shared=shared,
    )
    if cache.num_bytes > limit_bytes:
        return _without(
            config,
            windows,
            f"it would take {megabytes(cache.num_bytes)}, and cache.max_size is {settings.max_size}",
            "Raise cache.max_size, set cache.precision to float16, shorten the windows, lower "
            "data.num_variants, or average over time in the head (head.pooling mean).",
        )
    if why := _of_any_process(_why_unusable(cache, folder)):
        return _without_folder(in_variants, why)
    return cache, in_variants, _described(cache, layout, num_variants)


def cache_folder(folder: str | None) -> Path:
    """Return the folder of the setting ``cache.folder``.

    Raises:
        NoHomeError: It is in an unknown home folder.
    """
    return data_cache_folder() if folder is None else expand_home(folder)


def _why_unusable(cache: FeatureCache, folder: Path) -> str | None:
    """Return the reason why this process cannot write the cache; None if it can, or if it is complete."""
    no_folder = why_unwritable(folder)
    for store in cache.stores.values():
        if (why := no_folder or store.why_unwritable()) and not store.is_complete():
            return why
    return None


def _of_any_process(why: str | None) -> str | None:
    """Return the first reason of any process, the same on each; every process has to call this."""
    return next((one for one in gather_object([why]) if one is not None), None)


def _without_folder(windows: TrainingWindows, why: str) -> tuple[None, TrainingWindows, str]:
    """Return the plan without a cache, as its folder cannot be written, and warn."""
    logger.warning(
        "The run continues without the cache and computes the features in each epoch: %s. To cache them, "
        "name a folder with write access by --cache.folder.",
        why,
    )
    return None, windows, f"not used: {why}"


def _without(
    config: RecipeConfig, windows: TrainingWindows, why: str, advice: str = ""
) -> tuple[None, TrainingWindows, str]:
    if config.cache.use == "on":
        raise UserError(
            f"cache.use is 'on', but nothing can be cached: {why}. {advice or 'Set it to auto.'}",
            code="cache-impossible",
        )
    return None, windows, f"not used: {why}. {advice}".strip()


def _described(cache: FeatureCache, layout: FeatureLayout, num_variants: int) -> str:
    what = (
        "output of the conv encoder"
        if layout.depth == CONV_ENCODER
        else f"hidden state {layout.depth}, the input of the layers above"
        if layout.start_frames
        else "hidden states of the frozen backbone"
    )
    counts = {one.folder: len(one.keys) for one in cache.stores.values()}
    drawn = (
        f"{num_variants} variants of the training windows, which take turns (set "
        "--data.num_variants for more); "
        if cache.windows.is_random
        else ""
    )
    [folder] = {one.folder.parent for one in cache.stores.values()}
    return (
        f"{what}, computed once: {sum(counts.values())} windows, {megabytes(cache.num_bytes)}; "
        f"{drawn}in {folder}"
    )
