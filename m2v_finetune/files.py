"""Atomic writes of files, JSON, free space, and locks of one process."""

import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from m2v_finetune.errors import UserError

logger = logging.getLogger(__name__)

UNFINISHED = ".{name}.part"
MAX_DIGITS = 1000
"""Digits of an integer in JSON; Python converts no more than some thousand."""
END_BYTES = 65536
"""Bytes of each end of a file in its identity."""


class NoHomeError(UserError):
    """Path below an unknown home folder, as in a container without one."""

    code = "home-unknown"


def caches_folder() -> Path:
    """Return the folder for caches: below ``$XDG_CACHE_HOME``, else ``~/.cache``.

    Raises:
        NoHomeError: There is neither.
    """
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "m2v-finetune"


def expand_home(path: str | Path) -> Path:
    """Return a path with the user's home folder in place of ``~``.

    Raises:
        NoHomeError: It is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise NoHomeError(
            f"{path} cannot be found, as its home folder is unknown. Set HOME, or name a path without ~."
        ) from error


def require_readable(path: Path) -> None:
    """Open a file, so that libraries do not call one without permission missing or damaged.

    Raises:
        OSError: The file cannot be opened; it names the file.
    """
    with path.open("rb"):
        pass


def parse_json(
    text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return the content of JSON.

    Args:
        text: JSON.
        object_pairs_hook: Function that makes an object of its pairs, as of `json.loads`.

    Raises:
        ValueError: It is not JSON, or has an integer of too many digits; the message describes it.
        RecursionError: It is nested too deep.
    """
    return json.loads(text, parse_int=_parse_int, object_pairs_hook=object_pairs_hook)


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits, which is too long")
    return int(digits)


def why_unwritable(folder: Path) -> str | None:
    """Return why files cannot be written in a folder, which may not exist yet; None if they can.

    Nothing is written, and a later write may still fail.
    """
    try:
        parents = (folder.absolute(), *folder.absolute().parents)
        there = next(parent for parent in parents if os.path.lexists(parent))
        if not there.is_dir():
            return f"{there} is not a folder"
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"the disk of {there} is read-only"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"no right to write to {there}"
    return None


def file_identity(path: Path) -> str:
    """Return a hash of a file, independent of its path: of size, time of change, and both its ends.

    Reading whole files would cost more than the rest of an epoch from cached features. A file that is
    written gets another time; files of one size and time, as they come from an archive, differ at their
    ends.
    """
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(0, status.st_size - END_BYTES))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    parents = (folder.resolve(), *folder.resolve().parents)
    return shutil.disk_usage(next(parent for parent in parents if parent.exists())).free


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Bytes of a name that are not UTF-8 are escaped as in JSON.
    encoded = text.encode(errors="backslashreplace")
    write_atomically(path, lambda unfinished: unfinished.write_bytes(encoded))


def append_json(path: Path, content: Any) -> None:
    """Append JSON to a file, as one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def json_number(value: float) -> float | None:
    """Return a number for JSON: None if it is not finite."""
    return value if math.isfinite(value) else None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary name, flush the result, and rename it: all or nothing.

    Args:
        path: A file, which is replaced if it is there, or a folder, which must not be.
        write: Makes a file, or a folder of files, of the name that it is given.

    Raises:
        OSError: The disk does not take it.
    """
    unfinished = path.with_name(UNFINISHED.format(name=path.name))
    _delete(unfinished)  # of a process that was killed
    try:
        write(unfinished)
        for file in unfinished.iterdir() if unfinished.is_dir() else [unfinished]:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        unfinished.replace(path)
    except BaseException:
        _delete(unfinished)
        raise
    flush_folder(path.parent)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together: if the disk does not take all of them, none is there.

    Args:
        folder: Made if needed; files of these names in it are replaced.
        contents: Content of each file, by its name.

    Raises:
        OSError: The disk does not take them; it names the file.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = {name: folder / UNFINISHED.format(name=name) for name in contents}
    try:
        for name, content in contents.items():
            try:
                with unfinished[name].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(folder / name)) from error
        for name, path in unfinished.items():
            path.replace(folder / name)
    except BaseException:
        for path in unfinished.values():
            path.unlink(missing_ok=True)
        if is_new:
            folder.rmdir()
        raise
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def lock(path: Path) -> int:
    """Lock a file for this process, until it is closed or the process ends, also after a kill.

    The lock belongs to the process, not to the file: workers that outlive it for seconds have no lock.

    Args:
        path: Lock file, created if needed; its content names the process, and is ignored without a lock.

    Returns:
        The descriptor to close.

    Raises:
        BlockingIOError: Another process has the lock; `strerror` names it.
        OSError: The file cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.read(file, 1000).decode(errors="replace") or "another process"
        os.close(file)
        raise BlockingIOError(error.errno, holder) from error
    except OSError as error:
        logger.warning(
            "The disk of %s has no locks (%s): see that no other process is at work there.",
            path.parent,
            error.strerror,
        )
    os.truncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def as_json(content: Mapping[str, Any]) -> str:
    """Return one line of JSON."""
    return json.dumps(content, ensure_ascii=False) + "\n"
