"""What the frozen part of a network says of the windows of a run, computed once and kept.

Of a probe these are the hidden states that its layer weighting uses; where something of the network
learns, also the state from which what learns goes on. A run reads them in place of audio, for training
and for judging; runs of the same backbone, audio and windows share them.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from m2v_finetune.backbones.backbone import CONV_ENCODER
from m2v_finetune.config import RecipeConfig, parse_bytes
from m2v_finetune.data.checking import NUM_THREADS, CheckedTrack
from m2v_finetune.data.feature_store import (
    CachedWindows,
    FeatureStore,
    SampledWindows,
    evict_unused,
    file_identity,
    unique_windows,
)
from m2v_finetune.data.loader import Inputs, SampledWindow, TrainingWindows
from m2v_finetune.data.reading import WorkerError, read_batches, track_loader
from m2v_finetune.errors import DISK_ERRORS, UserError
from m2v_finetune.files import NoHomeError, caches_folder, expand_home, why_unwritable
from m2v_finetune.model import FeatureLayout, NotFiniteError, TaskModel
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.training.defaults import choose_num_variants
from m2v_finetune.training.faults import gather_errors
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_folder import free_bytes

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""To be raised where other code reads, augments or computes something else of the same settings."""
# What of a network's settings changes nothing of what it computes.
NAMES_OF_SETTINGS = ("_name_or_path", "architectures", "transformers_version", "dtype")


class FeatureCache:
    """The stored states of a run, by split.

    Attributes:
        windows: Of the training split, with as many versions as are stored.
        stores: The arrays of each split.
        num_bytes: Of all of them.
        limit_bytes: Of all in the folder, those of other runs too.
    """

    def __init__(
        self,
        model: TaskModel,
        windows: TrainingWindows,
        splits: Mapping[str, Sequence[CheckedTrack]],
        *,
        folder: Path,
        dtype: str,
        limit_bytes: int,
        num_workers: int,
        about: Mapping[str, Any],
        augmentation: Mapping[str, Any] | None = None,
    ) -> None:
        """Lay out what is stored; nothing is written.

        Args:
            model: Tuned and headed, with a frozen prefix.
            windows: Of the training split.
            splits: The tracks; those of ``train`` are in ``windows``.
            folder: Holds a folder for each set of windows.
            dtype: ``float16`` or ``float32``.
            limit_bytes: Of all in the folder.
            num_workers: Number of processes that read audio, for each process.
            about: What decides what is said of a window, beside audio, place and version; as JSON has it.
            augmentation: What does of a window to train on, too.
        """
        assert isinstance(model.task, ClipTask | FrameTask)
        layout = model.feature_layout
        assert layout is not None
        self.model = model
        self.task = model.task
        self.windows = windows
        self.sampled_windows: dict[str, list[SampledWindow]] = {}
        for split, tracks in splits.items():
            if split == "train":
                self.sampled_windows[split] = unique_windows(_all_windows(windows))
            else:
                track_windows = model.track_windows(tracks)
                self.sampled_windows[split] = [
                    SampledWindow(checked=tracks[number], window=window, augment=None, variant="")
                    for number, window in track_windows.locations
                ]
        identities = _identities(
            [one for tracks in splits.values() for one in tracks], model.backbone.sample_rate
        )
        self.stores = {}
        for split, sampled_windows in self.sampled_windows.items():
            rows = [(identities[one.checked.track.id], *one.key[1:]) for one in sampled_windows]
            of_split = {**about, "augmentation": augmentation if split == "train" else None}
            key = hashlib.sha256(json.dumps([of_split, dtype, rows], sort_keys=True).encode())
            self.stores[split] = FeatureStore(
                folder=folder / key.hexdigest(),
                keys=[one.key for one in sampled_windows],
                shape=(layout.num_rows, layout.feature_size),
                dtype=dtype,
                about=of_split,
            )
        self.num_bytes = sum(one.num_bytes for one in self.stores.values())
        self._locks: list[BinaryIO] = []  # as long as the run lives
        self.limit_bytes = limit_bytes
        self.num_workers = num_workers

    def training_windows(self) -> CachedWindows:
        """Return what is trained on."""
        return CachedWindows(
            windows=self.windows,
            store=self.stores["train"],
            targets=self.task.window_targets,
        )

    def inputs(self, split: str) -> Inputs:
        """Return what reads a window of a split that is judged."""
        return self.stores[split].inputs

    def fill(
        self,
        split: str,
        run: Run,
        *,
        batch_size: int,
    ) -> None:
        """Compute what is missing or damaged, each process its share.

        A computation that was interrupted goes on where it was.

        Args:
            split: Whose windows.
            run: Processes, and the policy for bad tracks.
            batch_size: Windows of a batch.

        Raises:
            DataError: A track cannot be read, or a worker failed.
            UserError: The disk does not take what is written, memory ran out, the numbers do not fit the
                precision, or the processes do not share the folder.
        """
        store, accelerator, bad_track_policy = (
            self.stores[split],
            run.accelerator,
            run.bad_tracks,
        )
        failure: str | None = None
        if accelerator.is_main_process:
            try:
                if why_unwritable(store.folder.parent) is None:
                    self._evict_unused(store.folder.parent)
                self._locks.append(_open(store))
            except UserError as error:
                failure = str(error)
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                failure = _cannot_write(store, error)
        gather_errors(accelerator, failure, {})  # which the others wait for
        start_time = time.monotonic()
        share = range(accelerator.process_index, len(store.keys), accelerator.num_processes)
        is_done = store.is_done()
        rows = [row for row in share if not store.is_valid(row)]
        num_damaged = int(is_done[rows].sum())
        if num_damaged:
            logger.warning(
                "%s is damaged at %d of its windows, which are computed again.",
                store.folder,
                num_damaged,
            )
        bad_tracks: dict[str, str] = {}
        try:
            bad_tracks = self._compute(
                store,
                SampledWindows(
                    sampled_windows=self.sampled_windows[split],
                    load_waveform=self.task.load_waveform,
                    rows=rows,
                ),
                accelerator=accelerator,
                batch_size=batch_size,
                num_workers=self.num_workers,
                timeout_seconds=bad_track_policy.timeout_seconds,
                title=f"Caching what the network says ({split})",
            )
        except WorkerError as error:
            failure = str(error)
        except FileNotFoundError as error:
            failure = (
                f"{error.filename} is gone: something deleted it while this run wrote to it. Begin again, "
                "by the same command with --run.resume auto."
            )
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            failure = _cannot_write(store, error)
        bad_track_policy.take(split, gather_errors(accelerator, failure, bad_tracks))
        accelerator.wait_for_everyone()
        self._check_shared(store, bad_track_policy.found.get(split, {}))
        own = torch.tensor(len(rows), device=accelerator.device)
        if computed := int(accelerator.reduce(own, reduction="sum")):
            seconds = time.monotonic() - start_time
            logger.info("Cached %d windows of the split '%s' in %.1f s.", computed, split, seconds)

    def _evict_unused(self, folder: Path) -> None:
        deleted, is_enough = evict_unused(
            folder,
            needed_bytes=self.num_bytes,
            limit_bytes=self.limit_bytes,
            kept=[one.folder for one in self.stores.values()],
        )
        if deleted:
            logger.info(
                "Deleted %d of the oldest sets of cached states in %s: with this run's they would take more "
                "than cache.max_size.",
                len(deleted),
                folder,
            )
        if not is_enough:
            logger.warning(
                "%s will take more than cache.max_size: other runs are using the rest of it.",
                folder,
            )

    def _compute(
        self,
        store: FeatureStore,
        windows: SampledWindows,
        *,
        accelerator: Accelerator,
        batch_size: int,
        num_workers: int,
        timeout_seconds: float,
        title: str,
    ) -> dict[str, str]:
        """Compute and write windows; return the tracks that cannot be read, and why."""
        model, bad_tracks = self.model.eval(), {}
        if not windows.rows:
            return {}
        loader = track_loader(
            windows,
            batch_size=batch_size,
            num_workers=num_workers,
            timeout_seconds=timeout_seconds,
        )
        with progress_bar(accelerator) as bar:
            task = bar.add_task(title, total=len(windows))
            for indices, parts, bad in read_batches(loader):
                for index, error in bad.items():
                    bad_tracks[windows.sampled_windows[windows.rows[index]].checked.track.id] = str(
                        error
                    )
                if len(indices):
                    samples, label_transform = parts
                    rows = [windows.rows[index] for index in indices.tolist()]
                    try:
                        with torch.inference_mode(), accelerator.autocast():
                            features = model.frozen_features(
                                samples.to(accelerator.device, non_blocking=True)
                            )
                    except torch.OutOfMemoryError as error:
                        raise UserError(
                            f"Caching ran out of memory with {batch_size} windows at once. Lower "
                            "training.eval_batch_size. What is cached already stays.",
                            code="cache-out-of-memory",
                        ) from error
                    values = features.float().cpu().numpy()
                    names = [windows.sampled_windows[row].checked.track.origin for row in rows]
                    store.write(
                        rows, _in_precision(values, store.dtype, names), label_transform.numpy()
                    )
                bar.advance(task, len(indices) + len(bad))
        return bad_tracks

    def _check_shared(self, store: FeatureStore, bad_tracks: Mapping[str, str]) -> None:
        """Raise `UserError` where other processes wrote to a disk that this one does not see."""
        missing = sum(
            key[0] not in bad_tracks
            for key, is_done in zip(store.keys, store.is_done(), strict=True)
            if not is_done
        )
        if missing:
            raise UserError(
                f"{missing} windows that other processes cached are not in {store.folder} here. Choose a "
                "folder that all machines share by --cache.folder.",
                code="cache-not-shared",
            )


def plan_cache(
    config: RecipeConfig,
    model: TaskModel,
    windows: TrainingWindows,
    splits: Mapping[str, Sequence[CheckedTrack]],
    *,
    mixed_precision: str,
) -> tuple[FeatureCache | None, TrainingWindows, str]:
    """Decide whether a run uses the cache, from its settings and data alone.

    So a run that goes on decides the same. Where the cache cannot be written, a run does without, on the
    windows that it would have with it: it gives the same, also if it goes on where the cache can be written.

    Args:
        config: All settings.
        model: Tuned and headed.
        windows: Of the training split.
        splits: The tracks.
        mixed_precision: That the network computes in.

    Returns:
        The cache, or None; the windows to train on without it; and a line for the first log, empty where
        there is nothing to say.

    Raises:
        UserError: ``cache.use`` is ``on`` and nothing can be kept, or it does not fit.
    """
    settings = config.cache
    layout = model.feature_layout
    is_wanted = settings.use == "on" or (
        settings.use == "auto" and model.tuning.method == "probe" and config.data.features is None
    )
    if not is_wanted:
        return None, windows, ""
    if not isinstance(model.task, ClipTask | FrameTask):
        return _without(config, windows, f"{model.task.name} needs the waveform of the mixture")
    if layout is None:
        return _without(config, windows, "all of the network learns")
    num_variants = 1
    if windows.is_random:
        assert config.data.windows_per_track is not None
        chosen = config.data.num_variants or choose_num_variants(
            windows.tracks, model.window_seconds
        )
        num_variants = min(chosen, config.training.epochs * config.data.windows_per_track)
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
        about=_as_json(_about(model, layout, mixed_precision=mixed_precision)),
        augmentation=_as_json(_augmentation(config, model)),
    )
    if cache.num_bytes > limit_bytes:
        return _without(
            config,
            windows,
            f"it would take {_megabytes(cache.num_bytes)}, and cache.max_size is {settings.max_size}",
            "Raise cache.max_size, set cache.precision to float16, take shorter windows or fewer "
            "data.num_variants, or a head that averages over time (head.pooling mean).",
        )
    if why := _of_any_process(_why_unusable(cache, folder)):
        return _without_folder(in_variants, why)
    return cache, in_variants, _described(cache, layout, num_variants)


def cache_folder(folder: str | None) -> Path:
    """Return the folder of the setting ``cache.folder``.

    Raises:
        NoHomeError: It is in a home folder that nobody knows.
    """
    return caches_folder() if folder is None else expand_home(folder)


def _why_unusable(cache: FeatureCache, folder: Path) -> str | None:
    """Return why this process can neither write the cache nor find all of it there, if so."""
    no_folder = why_unwritable(folder)
    for store in cache.stores.values():
        if (why := no_folder or store.why_unwritable()) and not store.is_complete():
            return why
    return None


def _of_any_process(why: str | None) -> str | None:
    """Return the first reason that a process has, the same on each; every process has to call this."""
    return next((one for one in gather_object([why]) if one is not None), None)


def _without_folder(windows: TrainingWindows, why: str) -> tuple[None, TrainingWindows, str]:
    """Go on without the cache, whose folder cannot be written, and say so."""
    logger.warning(
        "The run goes on without the cache, and computes in each epoch what the network says: %s. To have "
        "it computed once, name a folder that can be written by --cache.folder.",
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
        "the conv encoder's features"
        if layout.depth == CONV_ENCODER
        else f"hidden state {layout.depth}, from which the layers above go on"
        if layout.start_frames
        else "hidden states of the frozen backbone"
    )
    count = sum(len(one.keys) for one in cache.stores.values())
    drawn = (
        f"{num_variants} drawn versions of the training windows, which take turns (more by "
        "--data.num_variants give more variety); "
        if cache.windows.is_random
        else ""
    )
    [folder] = {one.folder.parent for one in cache.stores.values()}
    return (
        f"{what}, computed once: {count} windows, {_megabytes(cache.num_bytes)}; {drawn}in {folder}"
    )


def _about(model: TaskModel, layout: FeatureLayout, *, mixed_precision: str) -> dict[str, Any]:
    backbone = model.backbone
    return {
        "format_version": FORMAT_VERSION,
        "weights": model.base_fingerprint,
        "network": {k: v for k, v in backbone.settings.items() if k not in NAMES_OF_SETTINGS},
        "num_layers": backbone.num_layers,
        "normalize": backbone.normalize,
        "sample_rate": backbone.sample_rate,
        "window_samples": model.window_samples,
        "layout": asdict(layout),
        "mixed_precision": mixed_precision,
    }


def _augmentation(config: RecipeConfig, model: TaskModel) -> dict[str, Any] | None:
    transforms = config.augmentation.transforms
    if not transforms:
        return None
    return {
        "transforms": transforms,
        "files": _files_named(transforms),
        # A task says how labels follow a transform, and so what of it may be drawn.
        "task": model.task.to_dict(),
    }


def _as_json(content: Any) -> Any:
    """Return plain data as JSON gives it back: tuples are lists, and keys are text."""
    return json.loads(json.dumps(content))


def _files_named(transforms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the identities of the files, such as impulse responses, that transforms name."""
    named = [Path(value) for one in transforms for value in one.values() if isinstance(value, str)]
    files = [
        file
        for path in named
        for file in ([path] if path.is_file() else sorted(path.rglob("*")))
        if file.is_file()
    ]
    return [file_identity(file) for file in files]


def _all_windows(windows: TrainingWindows) -> Iterable[SampledWindow]:
    assert windows.num_variants is not None
    for epoch in range(windows.num_variants):
        for index in range(len(windows)):
            yield windows.sample((epoch, index))


def _identities(tracks: Sequence[CheckedTrack], sample_rate: int) -> dict[str, str]:
    """Return what tells the audio of each track, by its id, from all other; empty where it is gone."""

    def identity(checked: CheckedTrack) -> str:
        resampled = checked.resampled
        try:
            if resampled is not None and resampled.sample_rate == sample_rate:
                return f"{file_identity(resampled.path)} x {resampled.scale}"
            return file_identity(checked.track.path)
        except OSError:
            return ""  # as will be noticed when it is read

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(identity, tracks)
        return {checked.track.id: one for checked, one in zip(tracks, found, strict=True)}


def _open(store: FeatureStore) -> BinaryIO:
    """Make the files where they are missing, or not what they should be; return what holds them."""
    lock_file = None
    with suppress(FileNotFoundError):
        lock_file = store.lock()  # first, so that nothing deletes them after they were looked at
    problem = store.validate()
    if problem is None and lock_file is not None:
        store.touch()
        return lock_file
    if store.folder.exists():
        logger.warning("%s: all of it is computed again.", problem)
    free = free_bytes(store.folder)
    if free < store.num_bytes:
        raise UserError(
            f"The disk of {store.folder.parent} has {_megabytes(free)} free; the cache needs "
            f"{_megabytes(store.num_bytes)}. Free some, choose another disk by --cache.folder, or set "
            "cache.use to off.",
            code="cache-disk-full",
        )
    if lock_file is not None:
        lock_file.close()
    store.create()
    return store.lock()


def _cannot_write(store: FeatureStore, error: OSError) -> str:
    return (
        f"{store.folder} cannot be written: {error.strerror}. Free space, or choose another disk by "
        "--cache.folder; what is there already stays."
    )


def _in_precision(values: Any, dtype: str, names: Sequence[str]) -> Any:
    """Return values in the precision of the store.

    Raises:
        NotFiniteError: They hold nan or infinity.
        UserError: They do not fit into float16.
    """
    is_finite = np.isfinite(values).all(axis=(1, 2))
    if not is_finite.all():
        raise NotFiniteError(names[int(np.argmin(is_finite))])
    with np.errstate(over="ignore"):
        cast_values = values.astype(dtype)
    if not np.isfinite(cast_values).all():
        raise UserError(
            f"Hidden states of up to {np.abs(values).max():.4g} do not fit into float16, which ends at "
            "65504. Set cache.precision to float32.",
            code="cache-precision",
        )
    return cast_values


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
