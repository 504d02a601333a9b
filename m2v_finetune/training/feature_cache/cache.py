"""The cache itself: one store for each split, filled where features are missing or damaged."""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from m2v_finetune.data.cached_windows import CachedWindows, SampledWindows, unique_windows
from m2v_finetune.data.checking import NUM_THREADS, CheckedTrack
from m2v_finetune.data.feature_store import FeatureStore, evict_unused
from m2v_finetune.data.loader import Inputs, SampledWindow, TrainingWindows
from m2v_finetune.data.workers import WorkerError
from m2v_finetune.errors import DISK_ERRORS, UserError
from m2v_finetune.files import file_identity, free_bytes, why_unwritable
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.training.faults import gather_errors
from m2v_finetune.training.feature_cache.computation import compute_features
from m2v_finetune.training.run import Run
from m2v_finetune.training.sizes import megabytes

logger = logging.getLogger(__name__)


class FeatureCache:
    """Cached features of a run, by split.

    Attributes:
        windows: Windows of the training split, with the number of cached variants.
        track_ids: Ids of the tracks of each split.
        stores: Feature store of each split; two may be one.
        num_bytes: Size of all stores of the run.
        limit_bytes: Largest size of all stores in the folder, including those of other runs.
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
        shared: Sequence[CheckedTrack] = (),
    ) -> None:
        """Plan the stores; nothing is written.

        Args:
            model: Model with tuning and head, and with frozen layers.
            windows: Windows of the training split.
            splits: Tracks by split; those of ``train`` are in ``windows``.
            folder: Parent folder of the stores.
            dtype: ``float16`` or ``float32``.
            limit_bytes: Largest size of all stores in the folder.
            num_workers: Number of worker processes that read audio, for each process.
            about: Plain data that determine the features of a window, with its audio, position and variant.
            augmentation: Plain data of the augmentation, which also determine those of a training window.
            shared: Tracks of all splits, in an order that does not depend on them. The stores have the
                windows of all, so that runs with other splits of them share the stores.
        """
        assert isinstance(model.task, ClipTask | FrameTask)
        layout = model.feature_layout
        assert layout is not None
        self.model = model
        self.task = model.task
        self.windows = windows
        self.sampled_windows: dict[str, list[SampledWindow]] = {}
        self.track_ids = {
            split: {checked.track.id for checked in tracks} for split, tracks in splits.items()
        }
        for split, tracks in splits.items():
            tracks = shared or tracks
            if split == "train":
                all_windows = replace(windows, tracks=tracks)
                self.sampled_windows[split] = unique_windows(_all_windows(all_windows))
            else:
                track_windows = model.track_windows(tracks)
                self.sampled_windows[split] = [
                    SampledWindow(checked=tracks[number], window=window, augment=None, variant="")
                    for number, window in track_windows.locations
                ]
        identities = _identities(
            shared or [one for tracks in splits.values() for one in tracks],
            model.backbone.sample_rate,
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
        folders = {one.folder: one.num_bytes for one in self.stores.values()}
        self.num_bytes = sum(folders.values())
        self._locks: list[BinaryIO] = []  # as long as the run lives
        self.limit_bytes = limit_bytes
        self.num_workers = num_workers

    def training_windows(self) -> CachedWindows:
        """Return the training windows with cached features."""
        return CachedWindows(
            windows=self.windows,
            store=self.stores["train"],
            targets=self.task.window_targets,
        )

    def inputs(self, split: str) -> Inputs:
        """Return the function that reads the features of a window of a split, for evaluation."""
        return self.stores[split].inputs

    def fill(self, *splits: str, run: Run, batch_size: int) -> None:
        """Compute missing and damaged features of splits; each process computes its share.

        An interrupted computation resumes.

        Args:
            *splits: Names of the splits.
            run: Run with its processes and its policy for bad tracks.
            batch_size: Batch size in windows.

        Raises:
            DataError: A track cannot be read, or a worker failed.
            UserError: The disk refuses to write, memory ran out, features exceed the range of the precision,
                or the processes do not share the folder.
        """
        for split in splits:
            self._fill_split(split, run, batch_size=batch_size)

    def _fill_split(self, split: str, run: Run, *, batch_size: int) -> None:
        store, accelerator = self.stores[split], run.accelerator
        failure: str | UserError | None = None
        if accelerator.is_main_process:
            try:
                if why_unwritable(store.folder.parent) is None:
                    self._evict_unused(store.folder.parent)
                self._locks.append(_open(store))
            except UserError as error:
                failure = error
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                failure = _cannot_write(store, error)
        gather_errors(accelerator, failure, {})  # the other processes wait for it
        start_time = time.monotonic()
        share = range(accelerator.process_index, len(store.keys), accelerator.num_processes)
        is_done = store.is_done()
        rows = [row for row in share if not store.is_valid(row)]
        num_damaged = int(is_done[rows].sum())
        if num_damaged:
            logger.warning(
                "%s has damaged features of %d windows. They are computed again.",
                store.folder,
                num_damaged,
            )
        bad_tracks: dict[str, str] = {}
        try:
            bad_tracks = compute_features(
                self.model,
                store,
                SampledWindows(
                    sampled_windows=self.sampled_windows[split],
                    load_waveform=self.task.load_waveform,
                    rows=rows,
                ),
                accelerator=accelerator,
                batch_size=batch_size,
                num_workers=self.num_workers,
                timeout_seconds=run.bad_tracks.timeout_seconds,
                title=f"Caching features ({split})",
            )
        except WorkerError as error:
            failure = error
        except FileNotFoundError as error:
            failure = UserError(
                f"{error.filename} was deleted while this run wrote to it. Start again with the same "
                "command and --run.resume auto.",
                code="cache-deleted",
            )
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            failure = _cannot_write(store, error)
        bad_tracks = gather_errors(accelerator, failure, bad_tracks)
        own_bad = {name: why for name, why in bad_tracks.items() if name in self.track_ids[split]}
        run.bad_tracks.take(split, own_bad)
        accelerator.wait_for_everyone()
        _check_shared(store, bad_tracks | run.bad_tracks.found.get(split, {}))
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
                "Deleted the %d least recently used feature caches in %s, to keep within cache.max_size.",
                len(deleted),
                folder,
            )
        if not is_enough:
            logger.warning(
                "%s will exceed cache.max_size: other runs are using the other caches in it.",
                folder,
            )


def _all_windows(windows: TrainingWindows) -> Iterable[SampledWindow]:
    assert windows.num_variants is not None
    for epoch in range(windows.num_variants):
        for index in range(len(windows)):
            yield windows.sample((epoch, index))


def _identities(tracks: Sequence[CheckedTrack], sample_rate: int) -> dict[str, str]:
    """Return the identity of the audio of each track, by its id; empty if its file is gone."""

    def identity(checked: CheckedTrack) -> str:
        resampled = checked.resampled
        try:
            if resampled is not None and resampled.sample_rate == sample_rate:
                return f"{file_identity(resampled.path)} x {resampled.scale}"
            return file_identity(checked.track.path)
        except OSError:
            return ""  # reading it will report it

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(identity, tracks)
        return {checked.track.id: one for checked, one in zip(tracks, found, strict=True)}


def _open(store: FeatureStore) -> BinaryIO:
    """Create the files if they are missing or invalid; return the open lock file."""
    lock_file = None
    with suppress(FileNotFoundError):
        lock_file = store.lock()  # first, so that nothing deletes them after the validation
    problem = store.validate()
    if problem is None and lock_file is not None:
        store.touch()
        return lock_file
    if store.folder.exists():
        logger.warning("%s: all features are computed again.", problem)
    free = free_bytes(store.folder)
    if free < store.num_bytes:
        raise UserError(
            f"The disk of {store.folder.parent} has {megabytes(free)} free; the cache needs "
            f"{megabytes(store.num_bytes)}. Free some, choose another disk with --cache.folder, or set "
            "cache.use to off.",
            code="cache-disk-full",
        )
    if lock_file is not None:
        lock_file.close()
    store.create()
    return store.lock()


def _cannot_write(store: FeatureStore, error: OSError) -> str:
    return (
        f"{store.folder} cannot be written: {error.strerror}. Free space, or choose another disk with "
        "--cache.folder. Features that are already there stay."
    )


def _check_shared(store: FeatureStore, bad_tracks: Mapping[str, str]) -> None:
    """Raise `UserError` if other processes wrote to a disk that this one cannot access."""
    missing = sum(
        key[0] not in bad_tracks
        for key, is_done in zip(store.keys, store.is_done(), strict=True)
        if not is_done
    )
    if missing:
        raise UserError(
            f"{missing} windows that other processes cached are not in {store.folder} on this machine. "
            "Choose a folder that all machines share with --cache.folder.",
            code="cache-not-shared",
        )
