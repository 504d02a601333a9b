"""Write resampled copies of a data set at the rate of a backbone, for the loader."""

import logging
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m2v_finetune.audio.resample_cache import (
    CACHE_VARIABLE,
    ResampledFormat,
    ResampledRecord,
    read_record,
    resampled_folder,
    resampled_of,
    write_resampled,
)
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import DISK_ERRORS, AudioError, UserError
from m2v_finetune.files import NoHomeError, lock

logger = logging.getLogger(__name__)

BYTES_PER_SAMPLE = 2
LOCK_FILE = ".lock"
"""File in the folder of copies that names the process that writes there."""


@dataclass(frozen=True, kw_only=True)
class ResamplingResult:
    """Result of `resample_tracks`.

    Attributes:
        folder: Folder of the copies.
        num_written: Copies written now.
        num_kept: Copies that were there.
        problems: Reasons why the other tracks could not be converted.
        original_bytes: Size of the files that have a copy.
        resampled_bytes: Size of their copies.
        seconds: Duration of the conversion.
    """

    folder: Path
    num_written: int
    num_kept: int
    problems: list[str]
    original_bytes: int
    resampled_bytes: int
    seconds: float


def resample_tracks(
    tracks: Sequence[CheckedTrack],
    *,
    sample_rate: int,
    file_format: ResampledFormat = "flac",
    num_processes: int,
    verify: bool = False,
    show_progress: bool = True,
) -> ResamplingResult:
    """Write mono copies of all tracks; those that are there stay, so that it can be stopped at any time.

    Args:
        tracks: Tracks to copy; the originals are only read.
        sample_rate: Sample rate of the copies in Hz.
        file_format: File format of the copies.
        num_processes: Number of processes that decode.
        verify: Check the checksums of existing copies, and write again those that differ.
        show_progress: Show a bar on standard error.

    Raises:
        UserError: The disk is too full, the folder cannot be made, another conversion writes there, or a
            process died.
        OSError: A copy cannot be written.
    """
    start_time = time.monotonic()
    kept: list[ResampledRecord] = []
    missing: list[CheckedTrack] = []
    for checked in tracks:
        record = _current_record(checked, sample_rate)
        if record is None or record.format != file_format or verify:
            missing.append(checked)
        else:
            kept.append(record)
    folder = resampled_folder(sample_rate)
    with _alone_in(folder):
        _require_space(missing, sample_rate)
        made, problems = _resample_all(
            missing,
            sample_rate=sample_rate,
            file_format=file_format,
            num_processes=num_processes,
            verify=verify,
            show_progress=show_progress,
        )
    written = [record for record, is_new in made if is_new]
    kept += [record for record, is_new in made if not is_new]
    records = [*kept, *written]
    return ResamplingResult(
        folder=folder,
        num_written=len(written),
        num_kept=len(kept),
        problems=problems,
        original_bytes=sum(record.num_bytes for record in records),
        resampled_bytes=sum(record.resampled_num_bytes for record in records),
        seconds=time.monotonic() - start_time,
    )


def with_resampled(
    tracks: Sequence[CheckedTrack], *, sample_rate: int, only: Collection[str] | None = None
) -> list[CheckedTrack]:
    """Set the resampled copies of tracks that have one, and warn of tracks that changed since.

    Args:
        tracks: Tracks in any order, which is kept.
        sample_rate: Sample rate of the backbone, in Hz.
        only: Ids of the tracks with a copy that may be read; all if None. A resumed run reads the same files
            as at its start.

    Raises:
        UserError: A copy of ``only`` is missing, or older than its track.
    """
    try:
        folder = resampled_folder(sample_rate)
        if not folder.is_dir() and only is None:
            return list(tracks)
        next(folder.iterdir(), None)
    except FileNotFoundError:
        pass  # of a resumed run: its copies are gone, which is reported below
    except (NoHomeError, OSError) as error:
        if only:
            raise UserError(
                f"The run was started with resampled copies, which cannot be read now: {error}. "
                f"{CACHE_VARIABLE} names their folder.",
                code="run-copies-missing",
            ) from error
        logger.warning(
            "Converted copies are not used, and the original files are read: %s. Their folder can "
            "be named by the environment variable %s.",
            error,
            CACHE_VARIABLE,
        )
        return list(tracks)
    found, changed = [], []
    for checked in tracks:
        is_asked = only is None or checked.track.id in only
        record = read_record(checked.track.path, sample_rate) if is_asked else None
        path = checked.track.path
        if record is not None and _is_current(record, checked, sample_rate):
            found.append(replace(checked, resampled=resampled_of(path, record, sample_rate)))
        else:
            found.append(checked)
            if record is not None or (only is not None and is_asked):
                changed.append(f"{checked.track.origin}: {path}")
    if changed and only is not None:
        raise UserError(
            problem_list(
                "The run was started with resampled copies that are missing now, or older than these files",
                changed,
                f"`m2v data convert SOURCE` writes them again; {CACHE_VARIABLE} names their folder.",
                limit=5,
            ),
            code="run-copies-missing",
        )
    if changed:
        logger.warning(
            problem_list(
                "Resampled copies are missing, or older than the last change of these files, so the files "
                "themselves are read",
                changed,
                "`m2v data convert SOURCE` writes the copies again.",
                limit=5,
            )
        )
    return found


def _current_record(checked: CheckedTrack, sample_rate: int) -> ResampledRecord | None:
    record = read_record(checked.track.path, sample_rate)
    return record if record and _is_current(record, checked, sample_rate) else None


def _is_current(record: ResampledRecord, checked: CheckedTrack, sample_rate: int) -> bool:
    try:
        return record.is_current(checked.track.path, checked.audio, sample_rate)
    except OSError:  # the original is gone since it was checked
        return False


def _resample_all(
    tracks: Sequence[CheckedTrack],
    *,
    sample_rate: int,
    file_format: ResampledFormat,
    num_processes: int,
    verify: bool,
    show_progress: bool,
) -> tuple[list[tuple[ResampledRecord, bool]], list[str]]:
    """Run `write_resampled` for each track in processes; return its results, and the reasons of failures."""
    made: list[tuple[ResampledRecord, bool]] = []
    problems: dict[int, str] = {}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show_progress,
        transient=True,
    )
    # Fresh processes: a fork would copy whatever threads the caller has.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_leave_signals)
    try:
        with bar:
            bar_task = bar.add_task("Converting", total=len(tracks))
            jobs = {
                pool.submit(
                    write_resampled,
                    checked.track.path,
                    checked.audio,
                    sample_rate=sample_rate,
                    file_format=file_format,
                    verify=verify,
                ): number
                for number, checked in enumerate(tracks)
            }
            for job in as_completed(jobs):
                number = jobs[job]
                try:
                    made.append(job.result())
                except (AudioError, OSError) as error:
                    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                        raise
                    problems[number] = f"{tracks[number].track.origin}: {error}"
                bar.advance(bar_task)
    except BrokenProcessPool as error:
        raise UserError(
            f"A process that converts audio died ({error}). The machine may be out of memory: lower "
            "--processes. Run the same command again to resume.",
            code="resample-worker-died",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return made, [problems[number] for number in sorted(problems)]


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Create the folder for copies, and lock it against other conversions.

    Raises:
        UserError: The folder cannot be created, or another conversion writes there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file = lock(folder / LOCK_FILE)
    except BlockingIOError as error:
        raise UserError(
            f"Another `m2v data convert` is writing to {folder}: {error.strerror}. Wait for it, or stop "
            "it: the written copies stay, and the same command resumes from there.",
            code="resample-locked",
        ) from error
    except OSError as error:
        raise UserError(
            f"The folder {folder} for copies cannot be created ({error.strerror}). Name another by the "
            f"environment variable {CACHE_VARIABLE}, for recipes too.",
            code="resample-folder-not-writable",
        ) from error
    try:
        yield
    finally:
        os.close(lock_file)


def _require_space(missing: Sequence[CheckedTrack], sample_rate: int) -> None:
    """Check that the copies fit, as if they were WAV.

    Raises:
        UserError: They do not.
    """
    needed = BYTES_PER_SAMPLE * sum(checked.audio.num_samples(sample_rate) for checked in missing)
    folder = resampled_folder(sample_rate)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free; the copies need up to "
            f"{needed / 1e6:,.0f} MB. Free some, or name another folder by the environment variable "
            f"{CACHE_VARIABLE}, for recipes too.",
            code="resample-disk-full",
        )


def _leave_signals() -> None:
    """Ignore Ctrl-C: the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
