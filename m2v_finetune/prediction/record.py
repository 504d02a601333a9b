"""Record of an unfinished output: the finished files, and the length of their results.

It is beside the output, or in the folder of the results, until all are written. Its first line names the
model and options; then it has a line for each music file, written before the result:

    {"model": "9f2c...", "version": "0.1.0", "format": "csv", "timeline": false, "top": 10}
    {"file": "one.wav", "num_bytes": 88244, "mtime_ns": 1764380000000000000, "end": 61, "checksum": 36322339}

So a result that was only written in part is found and cut off, and an output that was changed since is
refused. An output without a record is finished, or of another program.
"""

import fcntl
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from m2v_finetune.errors import UserError

RECORD_SUFFIX = ".unfinished"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Line of a record: a music file whose result is written, or being written.

    Attributes:
        file: Name of the music file, as it was typed.
        num_bytes: Its size.
        mtime_ns: Time of its last change, in nanoseconds.
        end: Length of the output with the result, in bytes; 0 where the result has a file of its own.
        checksum: CRC-32 of the output up to there; 0 where the result has a file of its own.
    """

    file: str
    num_bytes: int
    mtime_ns: int
    end: int = 0
    checksum: int = 0

    @classmethod
    def of(cls, path: Path, *, end: int = 0, checksum: int = 0) -> "Entry":
        """Return the entry of a music file as it is now."""
        status = path.stat()
        return cls(
            file=str(path),
            num_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            end=end,
            checksum=checksum,
        )

    def is_of_changed_file(self) -> bool:
        """Return True if the music file has changed; one that is gone was not changed."""
        try:
            status = Path(self.file).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) != (self.num_bytes, self.mtime_ns)


@dataclass
class Record:
    """Record of an output, locked by this process.

    Attributes:
        output: Path of the output, for messages.
        path: Path of the record.
        file: Open file of the record.
        entries: Its lines, without the header.
        line_ends: Ends of the header and of each entry.
    """

    output: Path
    path: Path
    file: BinaryIO
    entries: list[Entry] = field(default_factory=list)
    line_ends: list[int] = field(default_factory=list)

    @classmethod
    @contextmanager
    def open(cls, path: Path, header: Mapping[str, object], *, output: Path) -> Iterator["Record"]:
        """Make the record of an output, or read that of a command that did not finish; closed at the end.

        Raises:
            UserError: It is one of another command, another process writes to it, or it cannot be
                written.
        """
        with disk_errors(path):
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with os.fdopen(number, "r+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"Another process is writing {output}. Wait for it, or name another --output.",
                    code="output-locked",
                ) from error
            except OSError:
                pass  # a disk without locks
            # A last line without its end was being written when the process was killed.
            lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
            record = cls(output=output, path=path, file=file)
            if lines:
                record._read(lines, header)
            else:
                with disk_errors(path):
                    os.truncate(path, 0)
                    file.seek(0)
                    record._append(header)
            yield record

    def _read(self, lines: Sequence[bytes], header: Mapping[str, object]) -> None:
        """Read lines as far as they are valid.

        Raises:
            UserError: The lines are not a record, or one of other options.
        """
        try:
            then = json.loads(lines[0])
        except (ValueError, RecursionError):
            then = None
        if not isinstance(then, dict) or then.keys() != header.keys():
            raise UserError(
                self.refusal("its record cannot be read"), code="output-record-unreadable"
            )
        other = [name for name, value in header.items() if then[name] != value]
        if other:
            raise UserError(
                self.refusal(f"it was started with another {', '.join(other)}"),
                code="output-other-settings",
            )
        end = len(lines[0])
        self.line_ends.append(end)
        for line in lines[1:]:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError, RecursionError):
                break  # a disk lost the last writes
            end += len(line)
            self.entries.append(entry)
            self.line_ends.append(end)

    def keep(self, num_entries: int) -> None:
        """Delete all entries but the first ones, and unreadable lines after them."""
        if not self.line_ends:  # a new record
            return
        del self.entries[num_entries:]
        del self.line_ends[num_entries + 1 :]
        with disk_errors(self.path):
            os.truncate(self.path, self.line_ends[-1])
            self.file.seek(0, os.SEEK_END)

    def add(self, entry: Entry) -> None:
        """Append an entry, before its result is written."""
        self._append(asdict(entry))

    def _append(self, content: Mapping[str, object]) -> None:
        write_all(self.file, (json.dumps(content) + "\n").encode())

    def finish(self) -> None:
        """Delete the record: the output is finished."""
        self.path.unlink()

    def require_named(self, done: Iterable[str], files: Sequence[Path]) -> None:
        """Raise `UserError` if the record has a file that the command does not name."""
        others = Counter(done) - Counter(map(str, files))
        if others:
            other = next(iter(others))
            raise UserError(
                self.refusal(f"it has results of files that are not named now, such as {other}"),
                code="output-other-files",
            )

    def refusal(self, why: str) -> str:
        """Return a message that the output cannot be resumed."""
        return (
            f"{self.output} is unfinished, and {why}. Only the command that started it resumes it. To start "
            f"again, delete it and {self.path}; or name another --output."
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into a `UserError` that names the file."""
    try:
        yield
    except BrokenPipeError:
        raise  # of standard output
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written: {error.strerror}. Free space, or choose another "
            "location by --output. Results that were written before are complete.",
            code="output-not-writable",
        ) from error


def write_all(file: BinaryIO, content: bytes) -> None:
    """Write all bytes to an unbuffered file.

    Raises:
        OSError: They cannot be written; some may be.
    """
    left = memoryview(content)
    while left:
        left = left[os.write(file.fileno(), left) :]


def checksums(path: Path, ends: Sequence[int]) -> tuple[int, list[int]]:
    """Return the size of a file, 0 if there is none, and its CRC-32 up to each position inside it.

    Args:
        path: File.
        ends: Positions, ascending.
    """
    found: list[int] = []
    if not path.exists():
        return 0, found
    size = path.stat().st_size
    checksum = position = 0
    with path.open("rb") as file:
        for end in ends:
            if not position <= end <= size:
                break
            while position < end:
                chunk = file.read(min(CHUNK_BYTES, end - position))
                checksum = zlib.crc32(chunk, checksum)
                position += len(chunk)
            found.append(checksum)
    return size, found
