"""Files of checkpoints: written and hashed, found and validated, tidied.

A checkpoint is a folder of ``checkpoints/``. It is written under a temporary name, flushed to the disk and
renamed. Its manifest holds the size and the SHA-256 of each file, which are compared before it is read.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from accelerate.utils import gather_object

from m2v_finetune.data.manifest import problem_list
from m2v_finetune.errors import UserError
from m2v_finetune.files import UNFINISHED, require_readable

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"
BEST_FILE = "best.safetensors"
MANIFEST_FILE = "manifest.json"
DAMAGED = "damaged-{name}"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the newest last; copies under other names are left out."""
    if not folder.exists():
        return []
    # Not glob, to which a folder that may not be read is empty.
    return sorted(
        path for path in folder.iterdir() if re.fullmatch(r"epoch-\d+-step-\d+", path.name)
    )


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps before a checkpoint, from its name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest valid checkpoint, and log the damaged ones that are newer.

    Returns:
        None where there is no checkpoint.

    Raises:
        UserError: There are checkpoints, and all are damaged, or one may not be read.
    """
    problems: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        problem = _validate(path)
        if problem is None:
            for damaged in problems:
                logger.warning("A checkpoint is damaged and not used: %s", damaged)
            return path
        problems.append(f"{path}: {problem}")
    if problems:
        raise UserError(
            problem_list(
                "The run cannot resume, as all of its checkpoints are damaged",
                problems,
                "Start again in another --run.output_dir. If a copy or a disk did this, check both.",
            ),
            code="checkpoint-all-damaged",
        )
    return None


def find_common_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of `find_checkpoint`, which has to be the same on all processes.

    Raises:
        UserError: On every process: one of them found no valid one, or another one than the first process.
    """
    checkpoint, problem, digest = None, None, None
    code = "checkpoint-all-damaged"
    try:
        checkpoint = find_checkpoint(folder)
        if checkpoint is not None:
            digest = hashlib.sha256((checkpoint / MANIFEST_FILE).read_bytes()).hexdigest()
    except UserError as error:
        problem, code = str(error), error.code
    name = None if checkpoint is None else checkpoint.name
    gathered = gather_object([(name, digest, problem, code)])
    for _, _, theirs, their_code in gathered:
        if theirs is not None:
            raise UserError(theirs, code=their_code)
    others = [number for number, one in enumerate(gathered, start=1) if one != gathered[0]]
    if others:
        first, other = gathered[0], gathered[others[0] - 1]
        raise UserError(
            f"The processes do not see the same run in {folder}: process 1 of {len(gathered)} would resume "
            f"from {first[0] or 'the start'}, process {others[0]} from {other[0] or 'the start'}"
            f"{' of other content' if other[0] == first[0] else ''}. Every machine has to see the run "
            "folder: give --run.output_dir as a full path on a drive that all share.",
            code="run-folder-not-shared",
        )
    return checkpoint


def tidy(folder: Path, checkpoint: Path | None) -> None:
    """Remove unfinished files of a killed process, and rename damaged checkpoints.

    Args:
        folder: ``checkpoints/`` of the run.
        checkpoint: Result of `find_checkpoint`: those that are newer are damaged.
    """
    for left in folder.glob(UNFINISHED.format(name="*")):
        _remove(left)
    for path in reversed(checkpoints_in(folder)):
        if path == checkpoint:
            return
        aside = folder / DAMAGED.format(name=path.name)
        with suppress(FileNotFoundError):
            _remove(aside)
        path.rename(aside)
        logger.warning("It is now %s, and can be deleted.", aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class _HashedFile:
    """File that is written once, with its size and SHA-256.

    Attributes:
        error: Error of the disk; torch.save raises another one in its place.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write data, and add it to the hash."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


def write_flushed(path: Path, write: Callable[[Any], object]) -> dict[str, Any]:
    """Write a file, flush it to the disk, and return its entry of the manifest."""
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        try:
            write(hashed)
        except RuntimeError:
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": hashed.num_bytes, "sha256": hashed.digest.hexdigest()}


def _read_manifest(checkpoint: Path) -> Mapping[str, Mapping[str, Any]]:
    files: dict[str, dict[str, Any]] = json.loads((checkpoint / MANIFEST_FILE).read_bytes())[
        "files"
    ]
    return {
        name: {"bytes": entry["bytes"], "sha256": entry["sha256"]} for name, entry in files.items()
    }


def _validate(checkpoint: Path) -> str | None:
    """Return the first fault of a checkpoint; None where it is valid.

    Raises:
        UserError: Its files may not be read, so that nothing is known of them.
    """
    try:
        for path in checkpoint.iterdir():
            require_readable(path)
    except PermissionError as error:
        raise UserError(
            f"{error.filename} cannot be read: {error.strerror}. Check its owner (ls -l), and get access to "
            "it; the run then resumes.",
            code="checkpoint-not-readable",
        ) from error
    except OSError:
        pass  # the checks that follow name it
    try:
        files = _read_manifest(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST_FILE} is missing or damaged"
    if files.keys() != {STATE_FILE, BEST_FILE}:
        return f"its {MANIFEST_FILE} is damaged"
    for name, entry in files.items():
        try:
            size = (checkpoint / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, not the {entry['bytes']} of {MANIFEST_FILE}"
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} does not have the SHA-256 of {MANIFEST_FILE}"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
