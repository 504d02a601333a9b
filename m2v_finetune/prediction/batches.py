"""Batches of the windows of files: short files share a batch, a longer file has batches of its own.

The batches depend on the files that a command names, and not on those that an earlier command predicted. So a
command that was stopped and started again gives the same numbers, to the bit.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrackWindows
from m2v_finetune.data.reading import track_loader
from m2v_finetune.data.workers import read_batches
from m2v_finetune.errors import AudioError
from m2v_finetune.model import NotFiniteError, TaskModel, check_file, score_batches, scored
from m2v_finetune.tasks import Prediction
from m2v_finetune.threads import batches_at_once
from m2v_finetune.variation import OutputVariation

BATCH_WINDOWS = 16
UNIT_FILES = 64
"""Files after which a new batch starts, so that a resumed command looks at few files that are done."""


@dataclass(eq=False)
class File:
    """A music file.

    Attributes:
        number: Its number among the files of the command.
        is_done: Whether an earlier command predicted it.
        checked: It, with the length of its audio.
        status: Size and time of change, when the length was read.
        num_windows: Number of its windows.
    """

    number: int
    is_done: bool
    checked: CheckedTrack
    status: tuple[int, int]
    num_windows: int

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.checked.track.path

    def has_changed(self) -> bool:
        """Return whether the file is another one since its length was read."""
        return self.status != _status(self.path)


class FilePredictions:
    """Predictions of files, in order.

    Args:
        model: Model, on its device.
        paths: Music files.
        is_done: Whether an earlier command predicted each.
    """

    def __init__(self, model: TaskModel, paths: Sequence[Path], *, is_done: Sequence[bool]) -> None:
        self.model = model
        self.paths = paths
        self.is_done = is_done
        self.variation = OutputVariation()
        self._problems: deque[tuple[int, AudioError]] = deque()

    def __iter__(self) -> Iterator[tuple[Path, Prediction | AudioError | NotFiniteError]]:
        """Yield each file that is not done, with its prediction or the reason why it has none.

        Stems are computed while they are read. A prediction is to be used before the next one.

        Raises:
            torch.OutOfMemoryError: A single window does not fit into memory.
        """
        rows = score_batches(
            self.model,
            self._batches(),
            at_once=batches_at_once(self.model),
            variation=self.variation,
            raises_not_finite=False,
        )
        for first in rows:
            file = first[0]
            # Counted: the first row of the next file would be computed before this one is written.
            of_file = chain([first], islice(rows, file.num_windows - 1))
            yield from self._problems_before(file.number)
            if not file.is_done:
                yield file.path, self._predict(file, of_file)
            deque(of_file, maxlen=0)
        yield from self._problems_before(len(self.paths))

    def _predict(self, file: File, rows: Iterator[Any]) -> Prediction | AudioError | NotFiniteError:
        """Return the prediction of a file; of one that was changed meanwhile, that of its new content."""
        try:
            result: Prediction | AudioError | NotFiniteError = self.model.task.predict(
                file.checked, scored(rows)
            )
        except (AudioError, NotFiniteError) as error:
            result = error
        if file.has_changed():
            try:
                return self.model.predict(file.path, variation=self.variation)
            except (AudioError, NotFiniteError) as error:
                return error
        return result

    def _problems_before(self, number: int) -> Iterator[tuple[Path, AudioError]]:
        while self._problems and self._problems[0][0] < number:
            bad, error = self._problems.popleft()
            yield self.paths[bad], error

    def _batches(self) -> Iterator[tuple[Sequence[File], TrackWindows, Any]]:
        """Yield batches, each with its files and all their windows."""
        for start in range(0, len(self.paths), UNIT_FILES):
            unit = range(start, min(start + UNIT_FILES, len(self.paths)))
            if all(self.is_done[number] for number in unit):
                continue
            for files in self._together(unit):
                if all(file.is_done for file in files):
                    continue
                windows = self.model.track_windows([file.checked for file in files])
                loader = track_loader(windows, batch_size=BATCH_WINDOWS, num_workers=0)
                for batch in read_batches(loader):
                    yield files, windows, batch

    def _together(self, unit: range) -> Iterator[list[File]]:
        """Yield lists of files whose windows fit in a batch; a longer file is alone."""
        together: list[File] = []
        num_windows = 0
        for number in unit:
            path = self.paths[number]
            try:
                status = _status(path)
                checked = check_file(path)
            except AudioError as error:
                if not self.is_done[number]:
                    self._problems.append((number, error))
                continue
            file = File(
                number,
                self.is_done[number],
                checked,
                status,
                len(self.model.track_windows([checked])),
            )
            if together and num_windows + file.num_windows > BATCH_WINDOWS:
                yield together
                together, num_windows = [], 0
            together.append(file)
            num_windows += file.num_windows
        if together:
            yield together


def _status(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file; zeros if there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
