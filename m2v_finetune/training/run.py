"""A run: its processes, its folder and its policy for tracks that cannot be read."""

import atexit
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator, PartialState

from m2v_finetune.config import AnyRecipeConfig, RunConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.errors import DISK_ERRORS, FULL_ERRORS, UserError, disk_advice
from m2v_finetune.model import TaskModel
from m2v_finetune.training.checkpoint_files import checkpoints_in
from m2v_finetune.training.faults import BadTrackPolicy, explain_lost_rank
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.signals import stop_on_signals
from m2v_finetune.training.sizes import results_bytes
from m2v_finetune.training.starting import start


@dataclass(kw_only=True)
class Run:
    """New or resumed run; `Run.open` starts it.

    Attributes:
        accelerator: Device, precision and processes.
        folder: Run folder.
        settings: Seed, and number and interval of checkpoints.
        bad_tracks: Policy for tracks that cannot be read, with those found so far.
        start: Facts about the model, backbone and files that the run starts from (`start_record`).
        labels: Hash of the labels of each track, by its id; None for tracks without.
        unused: Training tracks that ``data.num_train_tracks`` leaves out.
    """

    accelerator: Accelerator
    folder: RunFolder
    settings: RunConfig
    bad_tracks: BadTrackPolicy = field(default_factory=BadTrackPolicy)
    start: dict[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str | None] = field(default_factory=dict)
    unused: list[CheckedTrack] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, config: AnyRecipeConfig, *, task: str) -> Iterator["Run"]:
        """Start the processes and choose the run folder; nothing is written yet.

        Within the block, a signal or the death of another process ends the run with a message.

        Args:
            config: All settings.
            task: Name of the task, or ``pretrain``.

        Raises:
            UserError: The run folder may not be used, or the processes do not find each other.
            Stopped: A signal arrived.
        """
        # An error may leave others in the middle of an exchange, in which leaving would wait.
        atexit.unregister(_leave_processes)
        accelerator, folder = start(config, task=task)
        data = config.data
        bad_tracks = BadTrackPolicy(
            on_bad_track=data.on_bad_track,
            max_bad_fraction=data.max_bad_fraction,
            timeout_seconds=data.timeout_seconds,
        )
        with stop_on_signals(folder.resume_advice), explain_lost_rank(accelerator):
            try:
                yield cls(
                    accelerator=accelerator,
                    folder=folder,
                    settings=config.run,
                    bad_tracks=bad_tracks,
                )
            except OSError as error:  # printed by `run_command`
                if error.errno in DISK_ERRORS and folder.is_a_run:
                    error.add_note(f"Then resume with:\n  {folder.resume_command()}")
                raise
        for tracker in accelerator.trackers:
            tracker.finish()
        atexit.register(_leave_processes)  # not now: another run may follow, such as the next fold

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes and logs."""
        return bool(self.accelerator.is_main_process)

    @property
    def num_processes(self) -> int:
        """Number of processes that train."""
        return int(self.accelerator.num_processes)

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return bool(checkpoints_in(self.folder.checkpoints))

    @contextmanager
    def writing_results(self, model: TaskModel) -> Iterator[None]:
        """Turn disk errors after training into a `UserError`: the trained weights are saved."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            is_full = error.errno in FULL_ERRORS
            where = self.folder.path if error.filename is None or is_full else error.filename
            needs = f"Results, pictures and model take up to {results_bytes(model):,} bytes. "
            raise UserError(
                f"Training is done, and saved, but its results cannot be written to {where}: "
                f"{error.strerror}. {needs if is_full else ''}{disk_advice(error)} Then resume with:\n"
                f"  {self.folder.resume_command()}",
                code="run-folder-disk",
            ) from error


def wait_for_processes() -> None:
    """Wait for the other processes, such as until the first has written the files of a run."""
    PartialState().wait_for_everyone()


def _leave_processes() -> None:
    """Leave the group of the processes of a run."""
    PartialState().destroy_process_group()
