"""Outputs for predictions: standard output, one file, or a file for each piece of music."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from m2v_finetune.errors import UserError
from m2v_finetune.files import write_atomically
from m2v_finetune.prediction.record import (
    RECORD_SUFFIX,
    Entry,
    Record,
    checksums,
    disk_errors,
    write_all,
)
from m2v_finetune.tasks import Prediction
from m2v_finetune.tasks.clip_prediction import ClipPrediction

FOLDER_RECORD = f"predictions{RECORD_SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """Content to write for each prediction.

    Attributes:
        format: One of the formats of the model's task.
        timeline: True to write each window or frame too.
        top: Number of labels to write, if labels are ranked.
        decide: True to write the decided labels in place of scores.
    """

    format: str
    timeline: bool = False
    top: int = 10
    decide: bool = False

    def render(self, prediction: Prediction, path: Path, *, is_first: bool) -> str:
        """Return the text of a prediction, with a header if it is the first and the format has one."""
        if self.decide:
            assert isinstance(prediction, ClipPrediction)
            return prediction.render_decided(self.format, path=path, is_first=is_first)
        return prediction.render(
            self.format, path=path, top=self.top, timeline=self.timeline, is_first=is_first
        )


class Output(Protocol):
    """Destination of results."""

    @property
    def is_empty(self) -> bool:
        """Whether it has no results, of this command or an earlier one."""
        ...

    def take_done(self, path: Path) -> bool:
        """Return True if an earlier command finished a file; a name that is typed twice is done twice."""

    def put(self, path: Path, prediction: Prediction) -> None:
        """Write a result.

        Raises:
            AudioError: The music file, which may be read while the result is written, is damaged.
            UserError: The result cannot be written. Results that were written before are complete.
        """

    def finish(self) -> None:
        """Finish, and delete an output without results."""

    def where(self) -> str:
        """Return the end of a message about the number of finished files."""


@dataclass
class Printed:
    """Standard output."""

    rendering: Rendering
    is_empty: bool = True

    def take_done(self, path: Path) -> bool:
        """Return False: nothing was done before."""
        return False

    def put(self, path: Path, prediction: Prediction) -> None:
        """Print a result."""
        text = self.rendering.render(prediction, path, is_first=self.is_empty)
        print(text, end="", flush=True)  # noqa: T201 (the output of the command)
        self.is_empty = False

    def finish(self) -> None:
        """Do nothing."""

    def where(self) -> str:
        """Return the end of a message about the number of finished files."""
        return "."


@contextmanager
def open_output(
    output: Path,
    files: Sequence[Path],
    rendering: Rendering,
    suffix: str | None,
    header: Mapping[str, object],
) -> Iterator[Output]:
    """Give a new output, or one that an earlier command did not finish, and close it at the end.

    Args:
        output: A file; a folder where results have files of their own.
        files: Music files to predict.
        rendering: Content to write for each.
        suffix: Suffix of the files of results; None where all go to one.
        header: Settings that identify this command.

    Raises:
        UserError: The output is finished, not of this program, of another command, or cannot be written.
    """
    if suffix is None:
        record_path = output.with_name(output.name + RECORD_SUFFIX)
        if output.is_dir():
            raise UserError(
                f"--output {output} is a folder. Name a new file.", code="output-is-folder"
            )
        if output.exists() and not record_path.exists():
            raise UserError(
                f"{output} exists, and is not overwritten. Name a new file.", code="output-exists"
            )
        with Record.open(record_path, header, output=output) as record:
            yield OneFile(output, files, rendering, record)
        return
    in_folder = FilesInFolder(output, files, rendering.format, suffix)
    with Record.open(output / FOLDER_RECORD, header, output=output) as record:
        in_folder.resume(record)
        yield in_folder


class OneFile:
    """File to which results are appended."""

    def __init__(
        self, output: Path, files: Sequence[Path], rendering: Rendering, record: Record
    ) -> None:
        """Open a new file, or an unfinished one, without a result that was only written in part.

        Raises:
            UserError: The file was changed, has results of other files, or cannot be written.
        """
        self.rendering = rendering
        self.output = output
        self.record = record
        entries = record.entries
        record.require_named((entry.file for entry in entries), files)
        record.keep(self._num_complete())
        self.end = entries[-1].end if entries else 0
        self.checksum = entries[-1].checksum if entries else 0
        self.done = Counter(entry.file for entry in entries)
        with disk_errors(output):
            number = os.open(output, os.O_WRONLY | os.O_CREAT, 0o666)
            self.file = os.fdopen(number, "wb", buffering=0)
            self._cut()

    @property
    def is_empty(self) -> bool:
        """Whether it has no results."""
        return self.end == 0

    def _num_complete(self) -> int:
        """Return the number of results that are complete and of unchanged files, from the first on.

        Raises:
            UserError: The file was changed.
        """
        entries = self.record.entries
        size, found = checksums(self.output, [entry.end for entry in entries])
        complete = entries[: len(found)]
        # Part of the next result may follow the complete ones.
        is_more_legal = len(found) < len(entries)
        is_more = size > (complete[-1].end if complete else 0)
        if found != [entry.checksum for entry in complete] or (is_more and not is_more_legal):
            raise UserError(self.record.refusal("its content has changed"), code="output-changed")
        changed = (number for number, one in enumerate(complete) if one.is_of_changed_file())
        return next(changed, len(complete))

    def take_done(self, path: Path) -> bool:
        """Return True if an earlier command finished a music file."""
        return _take(self.done, path)

    def put(self, path: Path, prediction: Prediction) -> None:
        """Append a result."""
        text = self.rendering.render(prediction, path, is_first=self.is_empty)
        content = text.encode(errors="backslashreplace")  # of a file name that is not UTF-8
        end, checksum = self.end + len(content), zlib.crc32(content, self.checksum)
        try:
            with disk_errors(self.output):
                self.record.add(Entry.of(path, end=end, checksum=checksum))
                write_all(self.file, content)
        except UserError:
            with suppress(OSError):
                self._cut()
            raise
        self.end, self.checksum = end, checksum

    def _cut(self) -> None:
        os.ftruncate(self.file.fileno(), self.end)
        self.file.seek(self.end)

    def finish(self) -> None:
        """Flush the file to the disk, and delete the record."""
        with disk_errors(self.output):
            os.fsync(self.file.fileno())
            self.file.close()
            if self.is_empty:
                self.output.unlink()
            self.record.finish()

    def where(self) -> str:
        """Return the end of a message about the number of finished files."""
        return f", in {self.output}. The same command resumes."


class FilesInFolder:
    """File, or folder, for each piece of music, by its name."""

    def __init__(self, folder: Path, files: Sequence[Path], kind: str, suffix: str) -> None:
        """Make the folder, unless it is there.

        Raises:
            UserError: A file would be overwritten or written twice, or the folder cannot be made.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"--output {folder} is a file. The format '{kind}' needs a folder.",
                code="output-is-file",
            )
        self.folder = folder
        self.files = files
        self.kind = kind
        self.suffix = suffix
        self.done: Counter[str] = Counter()
        destinations = Counter(map(self._destination, files))
        twice = [str(destination) for destination, count in destinations.items() if count > 1]
        if twice:
            raise UserError(
                f"These would be written twice, by files of the same name: {', '.join(twice)}. Predict such "
                "files by themselves, each into another --output.",
                code="output-duplicate-names",
            )
        if not (folder / FOLDER_RECORD).exists():
            self._refuse_existing(files)
        self.is_made = not folder.exists()
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)

    def resume(self, record: Record) -> None:
        """Find the results of an unfinished command.

        Raises:
            UserError: Another file would be overwritten, or the record has results of other files.
        """
        self.record = record
        entries = record.entries
        self.is_empty = not entries
        record.require_named({entry.file for entry in entries}, self.files)
        record.keep(len(entries))
        self.done.update(
            {
                entry.file
                for entry in entries
                if self._destination(Path(entry.file)).exists() and not entry.is_of_changed_file()
            }
        )
        own = {entry.file for entry in entries}
        self._refuse_existing([path for path in self.files if str(path) not in own])

    def _destination(self, path: Path) -> Path:
        return self.folder / f"{path.stem}{self.suffix}"

    def _refuse_existing(self, files: Sequence[Path]) -> None:
        taken = [
            str(destination)
            for destination in map(self._destination, files)
            if destination.exists()
        ]
        if taken:
            raise UserError(
                f"These would be written, but exist: {', '.join(taken)}. Nothing is overwritten; choose "
                "another folder by --output.",
                code="output-exists",
            )

    def take_done(self, path: Path) -> bool:
        """Return True if an earlier command finished a music file."""
        return _take(self.done, path)

    def put(self, path: Path, prediction: Prediction) -> None:
        """Write a result under another name, and rename it when it is complete."""
        destination = self._destination(path)
        with disk_errors(destination):
            self.record.add(Entry.of(path))
            write_atomically(
                destination, lambda unfinished: prediction.write(self.kind, unfinished)
            )
        self.is_empty = False
        print(destination, flush=True)  # noqa: T201 (the output of the command)

    def finish(self) -> None:
        """Delete the record, and the folder if it is new and empty."""
        with disk_errors(self.folder):
            self.record.finish()
            if self.is_made and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def where(self) -> str:
        """Return the end of a message about the number of finished files."""
        return f", in {self.folder}. The same command resumes."


def _take(done: Counter[str], path: Path) -> bool:
    is_done = done[str(path)] > 0
    done[str(path)] -= is_done
    return is_done
