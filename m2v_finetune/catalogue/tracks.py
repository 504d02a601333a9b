"""Rows of tracks: windows from the stream, through the networks, to the rows of each finished track."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from m2v_finetune.audio.decode import AudioInfo
from m2v_finetune.catalogue.analysis import Analysis, Array, Pass, Row
from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.stream import StreamBatch, WindowStream, as_checked, stream_loader
from m2v_finetune.data.values import printable
from m2v_finetune.data.workers import WorkerError, fitting_workers, read_batches
from m2v_finetune.micro_batching import ForwardPass
from m2v_finetune.threads import batches_at_once, in_order


class TrackRows(NamedTuple):
    """Rows of a track.

    Attributes:
        number: Number of the track among the items.
        rows: Rows, with all columns of the schema; one with ``error`` where the track cannot be read.
    """

    number: int
    rows: list[Row]


def track_rows(
    analysis: Analysis,
    items: Sequence[Item],
    *,
    batch_size: int,
    num_workers: int = 0,
    units: Sequence[tuple[int, int]] | None = None,
) -> Iterator[TrackRows]:
    """Yield the rows of tracks, each when its last window is computed, in any order.

    A file at which a process that reads audio crashes gets a row with the error; the others are read on.

    Args:
        analysis: What is computed.
        items: Tracks.
        batch_size: Windows of a batch, which is filled across files.
        num_workers: Number of processes that read audio; with 0 this one does, and a crash ends it.
        units: First and last number, exclusive, of the tracks that are read by one process; all tracks are
            one unit if None.

    Raises:
        WorkerError: A process that reads audio died without a crash, such as for want of memory; or what it
            read did not arrive.
        torch.OutOfMemoryError: A single window does not fit into memory.
    """
    missing = [(0, len(items))] if units is None else list(units)
    window_bytes = 4 * max(layout.window_samples for layout in analysis.layouts)
    num_workers = fitting_workers(num_workers, batch_size * window_bytes)
    done: set[int] = set()
    crashed: dict[int, tuple[str, str]] = {}
    while missing:
        stream = WindowStream(
            items=items,
            units=missing,
            layouts=analysis.layouts,
            batch_size=batch_size,
            num_workers=num_workers,
            crashed=crashed,
        )
        try:
            for track in _stream_rows(analysis, items, stream):
                if track.number not in done:
                    done.add(track.number)
                    yield track
            lost = [number for one in missing for number in range(*one) if number not in done]
            if lost:
                raise WorkerError(
                    f"{len(lost):,} tracks were read and did not arrive, such as {items[lost[0]].path}. The "
                    "shared memory of the processes that read audio is full: give it more (docker run "
                    "--shm-size), or lower --num-workers or --batch-size. The same command resumes.",
                    code="worker-lost-batch",
                )
            return
        except WorkerError as error:
            if not error.crashed_at:
                raise
            for number in error.crashed_at:
                crashed[number] = (
                    "audio-crashed",
                    f"The process that read {items[number].path} crashed. The file may be damaged in a way "
                    "that its decoder does not detect: convert it, such as with ffmpeg.",
                )
            # Units are read again as a whole, so that their batches stay the same.
            missing = [one for one in missing if not done.issuperset(range(*one))]


def _stream_rows(
    analysis: Analysis, items: Sequence[Item], stream: WindowStream
) -> Iterator[TrackRows]:
    """Yield the rows of the tracks of a stream."""
    runners = [_Runner(one) for one in analysis.passes]
    tracks = _OpenTracks(analysis, items)
    waiting: tuple[StreamBatch, dict[int, list[Tensor]]] | None = None

    def start(batch: StreamBatch) -> dict[int, list[Tensor]]:
        return {
            number: runner.start(batch.waveforms)
            for number, runner in enumerate(runners)
            if runner.one_pass.layout == batch.layout and batch.owners
        }

    at_once = min(batches_at_once(one.network) for one in analysis.passes)
    for batch, started in in_order(start, read_batches(stream_loader(stream)), at_once=at_once):
        # A GPU computes this batch while the outputs of the one before become rows.
        if waiting is not None:
            yield from tracks.take(*waiting)
        waiting = (batch, started)
    if waiting is not None:
        yield from tracks.take(*waiting)


class _Runner:
    """A pass, whose outputs are computed as one tensor."""

    def __init__(self, one_pass: Pass) -> None:
        self.one_pass = one_pass
        self.forward = ForwardPass(one_pass.network, self._side_by_side, stays_on_device=True)
        self.shapes: list[torch.Size] = []

    def start(self, waveforms: Tensor) -> list[Tensor]:
        """Return the outputs for a batch, on the device, where they may not be computed yet."""
        flat = self.forward(waveforms)
        sizes = [shape.numel() for shape in self.shapes]
        parts = flat.split(sizes, dim=1)  # type: ignore[no-untyped-call]
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _side_by_side(self, waveforms: Tensor) -> Tensor:
        """Return all outputs of windows side by side, (batch, numbers)."""
        outputs = self.one_pass.compute(waveforms)
        self.shapes = [output.shape[1:] for output in outputs]
        return torch.cat([output.float().flatten(1) for output in outputs], dim=1)


class _OpenTracks:
    """Tracks of which windows are still to come.

    Attributes:
        open: Length of the audio of each track, and the outputs of its windows so far, by pass and window.
    """

    def __init__(self, analysis: Analysis, items: Sequence[Item]) -> None:
        self.analysis = analysis
        self.items = items
        self.open: dict[int, tuple[AudioInfo, list[list[list[Array]]]]] = {}

    def take(self, batch: StreamBatch, started: Mapping[int, list[Tensor]]) -> Iterator[TrackRows]:
        """Add the outputs of a batch, and yield the tracks that are finished by it."""
        for number, audio in batch.opened.items():
            self.open[number] = audio, [[] for _ in self.analysis.passes]
        for which, outputs in started.items():
            arrays = [output.cpu().numpy() for output in outputs]
            for position, number in enumerate(batch.owners):
                if number in self.open:  # else an earlier window of it could not be read
                    self.open[number][1][which].append([array[position] for array in arrays])
        for number, (code, message) in batch.errors.items():
            opened = self.open.pop(number, None)
            yield self._rows(
                number, opened and opened[0], [{"error": printable(f"{code}: {message}")}]
            )
        for number in dict.fromkeys([*batch.opened, *batch.owners]):
            if number in self.open:
                yield from self._finished(number)

    def _finished(self, number: int) -> Iterator[TrackRows]:
        """Yield the rows of a track if all its windows are there."""
        audio, outputs = self.open[number]
        item = self.items[number]
        windows = [
            layout.windows(audio.num_samples(layout.grid.sample_rate))
            for layout in self.analysis.layouts
        ]
        if all(
            len(found) == len(windows[one.layout])
            for one, found in zip(self.analysis.passes, outputs, strict=True)
        ):
            del self.open[number]
            rows = self.analysis.rows(item, as_checked(item, audio), windows, outputs)
            yield self._rows(number, audio, rows)

    def _rows(self, number: int, audio: AudioInfo | None, rows: list[Row]) -> TrackRows:
        item = self.items[number]
        known = {
            **dict.fromkeys(self.analysis.schema.names),
            **self.analysis.constants,
            "id": item.id,
            "path": printable(item.path),
            "duration": None if audio is None else audio.duration_seconds,
        }
        return TrackRows(number, [{**known, **row} for row in rows])
