"""Handling of tracks that can no longer be read, of dead workers, and of lost processes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from m2v_finetune.config import OnBadTrack
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import problem_list
from m2v_finetune.data.reading import BatchInfo
from m2v_finetune.data.workers import WorkerError, read_batches
from m2v_finetune.errors import Stopped, UserError

logger = logging.getLogger(__name__)

# Messages of the backends of torch.distributed when another process is gone.
LOST_RANK_ERRORS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


class DataError(UserError):
    """Data that a run cannot continue with; its earlier steps are saved."""

    code = "data-unreadable"


@dataclass(kw_only=True)
class BadTrackPolicy:
    """Policy for tracks that were readable at the start of the run and no longer are.

    Attributes:
        on_bad_track: ``stop`` at the first, or ``skip`` them.
        max_bad_fraction: Largest allowed share of such tracks in a split.
        timeout_seconds: Longest time of a worker for a batch; 0 for no limit.
        num_tracks: Number of tracks of each split that were readable at the start.
        num_skipped: Number of the others, which were left out then.
        found: Reasons for tracks skipped since, by split and id.
    """

    on_bad_track: OnBadTrack = "stop"
    max_bad_fraction: float = 0.0
    timeout_seconds: float = 0.0
    num_tracks: Mapping[str, int] = field(default_factory=dict)
    num_skipped: Mapping[str, int] = field(default_factory=dict)
    found: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, split: str, bad_tracks: Mapping[str, str]) -> None:
        """Skip tracks, with a warning for each new one, or stop; the same on every process.

        Args:
            split: Split of the tracks.
            bad_tracks: Reasons why they cannot be read, by id.

        Raises:
            DataError: The policy is to stop, or too many cannot be read.
        """
        known = self.found.get(split, {})
        new = {name: why for name, why in sorted(bad_tracks.items()) if name not in known}
        if not new:
            return
        title = "Tracks that were readable at the start of the run are no longer readable"
        if self.on_bad_track == "stop":
            raise DataError(
                problem_list(
                    title,
                    list(new.values()),
                    "Repair them, or skip them with --data.on_bad_track skip.",
                ),
                code="tracks-no-longer-readable",
            )
        total, num_bad = self.num_tracks[split], len(known) + len(new)
        if num_bad > self.max_bad_fraction * total:
            raise DataError(
                problem_list(
                    f"{title}: {num_bad} of {total} of the split '{split}', where data.max_bad_fraction "
                    f"allows a share of {self.max_bad_fraction:g}",
                    [*known.values(), *new.values()],
                    "Is a drive missing? Repair them, or raise data.max_bad_fraction.",
                ),
                code="tracks-too-many-unreadable",
            )
        self.found[split] = {**known, **new}
        for why in new.values():
            logger.warning("Skipped from now on: %s", why)

    def num_lost(self, split: str) -> int:
        """Return the number of tracks of a split that were left out, at the start or since."""
        return self.num_skipped.get(split, 0) + len(self.found.get(split, {}))


def gather_errors(
    accelerator: Accelerator,
    failure: str | UserError | None,
    bad_tracks: Mapping[str, str],
    *,
    stopped: Stopped | None = None,
) -> dict[str, str]:
    """Return the bad tracks of all processes, the same on each.

    Every process has to call this. It exchanges one number if there is no error.

    Args:
        accelerator: Accelerator of the run.
        failure: Reason why this process cannot continue, if any; the code of an error is kept.
        bad_tracks: Bad tracks of this process.
        stopped: Exception of a signal to this process, if any.

    Raises:
        Stopped: A process received a signal to stop.
        DataError: A process cannot continue.
    """
    if accelerator.num_processes > 1:
        is_well = torch.tensor(
            failure is None and not bad_tracks and stopped is None, device=accelerator.device
        )
        num_well = int(accelerator.reduce(is_well.int(), reduction="sum"))
        if num_well == accelerator.num_processes:
            return {}
    number = None if stopped is None else stopped.signal_number
    gathered = gather_object([(failure, dict(bad_tracks), number)])
    failures = [why for why, _, _ in gathered if why is not None]
    if failures:
        codes = [why.code for why in failures if isinstance(why, UserError)]
        raise DataError("\n".join(map(str, failures)), code=codes[0] if codes else None)
    for _, _, number in gathered:
        if number is not None:
            raise Stopped(number, "")
    return {name: why for _, bad, _ in gathered for name, why in bad.items()}


def usable_to_all(
    usable: Mapping[str, Sequence[CheckedTrack]], num_skipped: Mapping[str, int]
) -> tuple[dict[str, list[CheckedTrack]], dict[str, int]]:
    """Return the tracks that every process can read, and the number of the others, by split.

    A drive or a server may fail for a single process, but all need the same windows.

    Args:
        usable: Tracks that this process can read.
        num_skipped: Number of tracks that this process skipped.

    Raises:
        UserError: No track is left in a split.
    """
    ids = {split: {one.track.id for one in members} for split, members in usable.items()}
    gathered = gather_object([ids])
    common = {split: set.intersection(*(theirs[split] for theirs in gathered)) for split in usable}
    for split, left in common.items():
        if not left:
            raise UserError(
                f"None of the tracks of the split '{split}' can be read by all processes.",
                code="split-without-tracks",
            )
    return (
        {split: [o for o in usable[split] if o.track.id in left] for split, left in common.items()},
        {split: n + len(ids[split]) - len(common[split]) for split, n in num_skipped.items()},
    )


class StepReader:
    """Reader of the batches of optimizer steps, with the tracks of their windows.

    Args:
        loader: Loader of `training_loader`.
        accelerator: Accelerator of the run.
        bad_track_policy: Policy for tracks that cannot be read.

    Attributes:
        track_ids: Tracks of each batch of the step, on this process.
    """

    def __init__(
        self, loader: DataLoader[Any], *, accelerator: Accelerator, bad_track_policy: BadTrackPolicy
    ) -> None:
        self.loader = loader
        self.accelerator = accelerator
        self.bad_track_policy = bad_track_policy
        self.track_ids: list[list[str]] = []
        self._unsynced: dict[str, str] = {}  # bad tracks not yet sent to other processes

    def read(self) -> Iterator[list[Tensor]]:
        """Yield the tensors of each batch, and record its tracks.

        Raises:
            DataError: No window can be read, or a worker failed.
        """
        try:
            for *parts, info in read_batches(self.loader):
                assert isinstance(info, BatchInfo)
                self._unsynced |= info.bad_tracks
                if not parts:
                    message = "Windows cannot be read, nor any that were tried instead"
                    advice = "Is a drive missing?"
                    raise DataError(problem_list(message, list(info.bad_tracks.values()), advice))
                self.track_ids.append(info.track_ids)
                yield parts
        except WorkerError as error:
            raise DataError(str(error), code=error.code) from error

    def read_step(self, batches: Iterator[list[Tensor]], num_batches: int) -> list[list[Tensor]]:
        """Return the batches of a step, after the processes have exchanged errors.

        So no process waits for the gradients of one that has stopped.

        Args:
            batches: Output of `read`.
            num_batches: Number of batches of a step, on this process.

        Raises:
            DataError: A process cannot continue, or the policy is to stop; the same on every process.
        """
        self.track_ids = []
        failure, parts = None, []
        try:
            parts = list(islice(batches, num_batches))
        except DataError as fault:
            failure = fault
        self.sync(failure)
        return parts

    def sync(self, failure: UserError | None = None) -> None:
        """Exchange the tracks that could not be read since the last call between the processes.

        Args:
            failure: Reason why this process cannot continue, if any.

        Raises:
            DataError: A process cannot continue, or the policy is to stop; the same on every process.
        """
        unsynced, self._unsynced = self._unsynced, {}
        self.bad_track_policy.take("train", gather_errors(self.accelerator, failure, unsynced))

    def not_finite(self, losses: Sequence[Tensor]) -> tuple[bool, list[str]]:
        """Return the suspect batches of a skipped step, the same on every process.

        Args:
            losses: Scalar losses of the batches of the step, or of equal parts of them after an OOM retry.

        Returns:
            Whether a loss is not finite; and these batches, or all batches if there are none,
            each with its process and its tracks.
        """
        of_batches = torch.stack(list(losses)).view(len(self.track_ids), -1).sum(dim=1)
        is_finite = torch.isfinite(of_batches).tolist()
        process = self.accelerator.process_index + 1
        gathered = gather_object(
            [
                (is_good, f"batch {number} of process {process}: {', '.join(tracks)}")
                for number, (tracks, is_good) in enumerate(
                    zip(self.track_ids, is_finite, strict=True), start=1
                )
            ]
        )
        bad = [line for is_good, line in gathered if not is_good]
        return bool(bad), bad or [line for _, line in gathered]


@contextmanager
def explain_lost_rank(accelerator: Accelerator) -> Iterator[None]:
    """Turn errors of torch.distributed after the death of another process into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not any(
            word in str(error) for word in LOST_RANK_ERRORS
        ):
            raise
        raise UserError(
            f"Process {accelerator.process_index} of {accelerator.num_processes} stops: another one is gone "
            f"({str(error).splitlines()[0]}). The reason is in its own messages or in the system's "
            "log (out of memory?). The last checkpoint is complete.",
            code="process-lost",
        ) from error
