"""Windows of the tracks of a catalogue, in batches that are filled across files.

Tracks are divided into units. Each unit is read by one process, file after file and window after window, so
that a file is opened once, and a file of any length needs the memory of a batch. The batches of a unit depend
on the unit alone, neither on the number of processes nor on what was computed before: a run that was killed
and started again gives the same numbers, to the bit.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from m2v_finetune.audio.decode import AudioInfo, inspect_audio
from m2v_finetune.catalogue.analysis import Layout
from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.stores import local_copy
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import read_window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.workers import WorkerStatus
from m2v_finetune.errors import AudioError, UserError

RETRY_PAUSES_SECONDS = (0.2, 1.0)
"""Pauses before a file is opened again after an error of the system, as network drives fail for moments."""


class StreamBatch(NamedTuple):
    """Windows of one layout, with news about files.

    Attributes:
        layout: Index of the layout.
        owners: Number of the track of each window; windows of a track are in order.
        waveforms: (windows, window_samples).
        opened: Length of the audio of each track whose first window is in this batch or a later one.
        errors: Code and message of each track that cannot be read; its windows are to be ignored.
    """

    layout: int
    owners: list[int]
    waveforms: Tensor
    opened: dict[int, AudioInfo]
    errors: dict[int, tuple[str, str]]


@dataclass
class WindowStream(IterableDataset[StreamBatch]):
    """Batches of windows of all units; each process reads every n-th unit.

    Attributes:
        items: Tracks.
        units: First and last number, exclusive, of the tracks of each unit.
        layouts: Layouts of windows.
        batch_size: Windows of a batch; the last one of a unit and layout may be smaller.
        num_workers: Number of processes.
        crashed: Code and message of tracks at which a process crashed; they are not read.
        worker_status: Track that each process reads.
    """

    items: Sequence[Item]
    units: Sequence[tuple[int, int]]
    layouts: Sequence[Layout]
    batch_size: int
    num_workers: int
    crashed: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Share the table of the processes."""
        self.worker_status = WorkerStatus(self.num_workers)

    def __iter__(self) -> Iterator[StreamBatch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for start, stop in self.units[first::step]:
            yield from self._read_unit(range(start, stop))

    def origins(self, items: Sequence[int]) -> list[str]:
        """Return the paths of tracks, for messages."""
        return [self.items[number].path for number in items]

    def _read_unit(self, numbers: range) -> Iterator[StreamBatch]:
        owners: list[list[int]] = [[] for _ in self.layouts]
        waveforms: list[list[Tensor]] = [[] for _ in self.layouts]
        opened: dict[int, AudioInfo] = {}
        errors: dict[int, tuple[str, str]] = {}

        def take(layout: int) -> StreamBatch:
            windows = waveforms[layout]
            batch = StreamBatch(
                layout,
                owners[layout],
                torch.stack(windows) if windows else torch.empty(0),
                dict(opened),
                dict(errors),
            )
            owners[layout], waveforms[layout] = [], []
            opened.clear()
            errors.clear()
            return batch

        for number in numbers:
            if number in self.crashed:
                errors[number] = self.crashed[number]
                continue
            self.worker_status.write(number)
            try:
                item = self.items[number]
                with local_copy(item.path) as path:
                    item = item._replace(path=path)
                    checked = as_checked(item, _retried(inspect_audio, Path(path)))
                    opened[number] = checked.audio
                    for index, layout in enumerate(self.layouts):
                        length = checked.audio.num_samples(layout.grid.sample_rate)
                        for window in layout.windows(length):
                            samples = torch.from_numpy(_retried(read_window, checked, window))
                            waveforms[index].append(samples)
                            owners[index].append(number)
                            if len(owners[index]) == self.batch_size:
                                yield take(index)
            except (UserError, OSError) as error:
                code = error.code if isinstance(error, UserError) else AudioError.code
                errors[number] = (code, str(error))
            finally:
                self.worker_status.write(-1)
        for index in range(len(self.layouts)):
            if owners[index]:
                yield take(index)
        if opened or errors:
            yield take(0)


def as_checked(item: Item, audio: AudioInfo) -> CheckedTrack:
    """Return a track with the length of its audio."""
    path = Path(item.path)
    track = Track(
        id=item.id, path=path, split=None, columns={}, origin=item.path, folder=path.parent
    )
    return CheckedTrack(track=track, audio=audio)


def _retried(read: Any, *arguments: Any) -> Any:
    """Read, with retries after an error of the system; a file that is missing or damaged stays so."""
    for pause_seconds in RETRY_PAUSES_SECONDS:
        try:
            return read(*arguments)
        except (AudioError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or isinstance(
                cause, FileNotFoundError | PermissionError
            ):
                raise
            time.sleep(pause_seconds)
    return read(*arguments)


def stream_loader(stream: WindowStream) -> DataLoader[StreamBatch]:
    """Return the batches of a stream, to be read by `workers.read_batches`, in the order of arrival."""
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=stream.num_workers,
        generator=torch.Generator(),
        collate_fn=_unchanged,
        in_order=False,
        pin_memory=torch.cuda.is_available(),
    )


def _unchanged(batch: Any) -> Any:
    return batch
