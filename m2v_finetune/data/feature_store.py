"""Disk cache for the features of windows: a folder of plain files that are read as memory maps.

A folder holds three arrays of NumPy's format, with a row for each window, and ``about.json``:

    features.npy   output of the network, (windows, rows, feature_size), float16 or float32
    label_transforms.npy    transform of the labels by augmentation, (windows, 5), float64
    sums.npy     a checksum of both for each window that is done, (windows,), uint64; 0 for the others

A row is written before its checksum, with ordinary writes, so that processes may write rows of their
own at the same time; a computation that dies resumes at the rows that have none. Nothing that is
read is ever executed.
"""

import fcntl
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import NotCachedError
from m2v_finetune.files import why_unwritable

ABOUT_FILE = "about.json"
FEATURES_FILE = "features.npy"
LABEL_TRANSFORMS_FILE = "label_transforms.npy"
SUMS_FILE = "sums.npy"
LABEL_TRANSFORM_FIELDS = [one.name for one in fields(LabelTransform)]
IS_DONE = 1 << 32
"""Added to a checksum of 32 bits, so that no window that is done has a 0."""

Array = NDArray[Any]


@dataclass(frozen=True)
class FeatureStore:
    """Arrays of one folder, with the keys of their rows.

    Attributes:
        folder: Path of the folder.
        keys: Unique key of each window, in the order of the rows (`SampledWindow.key`).
        shape: Shape of the features of a window, (rows, feature_size).
        dtype: ``float16`` or ``float32``.
        about: Human-readable description in ``about.json``, beside shape and precision.
    """

    folder: Path
    keys: Sequence[tuple[str, int, str]]
    shape: tuple[int, int]
    dtype: str
    about: Mapping[str, Any]

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and precision of each file."""
        count = len(self.keys)
        return {
            FEATURES_FILE: ((count, *self.shape), self.dtype),
            LABEL_TRANSFORMS_FILE: ((count, len(LABEL_TRANSFORM_FIELDS)), "float64"),
            SUMS_FILE: ((count,), "uint64"),
        }

    @property
    def num_bytes(self) -> int:
        """Size of the files, but for their headers."""
        return sum(
            int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.arrays.values()
        )

    def validate(self) -> str | None:
        """Return the path and the problem of a file that is missing or invalid; None if all are valid."""
        path = self.folder / ABOUT_FILE
        try:
            if json.loads(path.read_text(encoding="utf-8")) != self._about():
                return f"{path} describes other features"
            for name, expected in self.arrays.items():
                path = self.folder / name
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                if (array.shape, array.dtype.name) != expected:
                    return f"{path} has shape {array.shape} and {array.dtype}"
        except (OSError, ValueError, EOFError, RecursionError) as error:
            return f"{path} cannot be read ({error})"
        return None

    def create(self) -> None:
        """Create empty files, in place of invalid ones.

        They are created beside and renamed, so that the folder is complete or absent.
        """
        unfinished = self.folder.with_name(f"{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, (shape, dtype) in self.arrays.items():
            open_memmap(unfinished / name, mode="w+", dtype=dtype, shape=shape)
        text = json.dumps(self._about(), indent=2, ensure_ascii=False) + "\n"
        (unfinished / ABOUT_FILE).write_bytes(text.encode(errors="backslashreplace"))
        if self.folder.is_dir() and self.validate() is not None:
            shutil.rmtree(self.folder)
        try:
            unfinished.rename(self.folder)
        except OSError:
            shutil.rmtree(unfinished)
            if self.validate() is not None:  # else another run made them just now
                raise

    def why_unwritable(self) -> str | None:
        """Return the reason why this process cannot write or create the files; None if it can."""
        for name in self.arrays:
            path = self.folder / name
            if os.path.exists(path) and not os.access(path, os.W_OK):  # noqa: PTH110 (Path raises)
                return f"no right to write to {path}"
        return why_unwritable(self.folder)

    def is_complete(self) -> bool:
        """Return whether all windows are stored and valid, so that nothing has to be written."""
        return self.validate() is None and all(self.is_valid(row) for row in range(len(self.keys)))

    def touch(self) -> None:
        """Mark the files as used now."""
        with suppress(OSError):  # of another user, or on a read-only disk
            os.utime(self.folder / SUMS_FILE)

    def lock(self) -> BinaryIO:
        """Return an open file: until it is closed, `evict_unused` deletes nothing of these."""
        file = (self.folder / SUMS_FILE).open("rb" if self.why_unwritable() else "r+b")
        with suppress(OSError):  # a disk without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def write(self, rows: Sequence[int], features: Array, label_transform: Array) -> None:
        """Write the features of windows, then their checksums, which mark them as done.

        Args:
            rows: Rows of these windows.
            features: (windows, rows, feature_size), in the precision of the store.
            label_transform: (windows, 5), float64.
        """
        sums = [IS_DONE + _checksum(*both) for both in zip(features, label_transform, strict=True)]
        written = {
            FEATURES_FILE: features,
            LABEL_TRANSFORMS_FILE: label_transform,
            SUMS_FILE: np.array(sums, np.uint64),
        }
        for name, values in written.items():
            # Not through the memory map: a full disk would end the process without a message.
            with (self.folder / name).open("r+b") as file:
                for row, value in zip(rows, values, strict=True):
                    file.seek(self._maps[name].offset + row * value.nbytes)
                    file.write(value.tobytes())

    def is_done(self) -> NDArray[np.bool_]:
        """Return a mask of the windows that were written, (windows,)."""
        return np.asarray(self._maps[SUMS_FILE] != 0, dtype=np.bool_)

    def is_valid(self, row: int) -> bool:
        """Return True if a window was written and its checksum is right."""
        maps = self._maps
        both = maps[FEATURES_FILE][row], maps[LABEL_TRANSFORMS_FILE][row]
        return int(maps[SUMS_FILE][row]) == IS_DONE + _checksum(*both)

    def read(self, key: tuple[str, int, str]) -> tuple[Array, LabelTransform]:
        """Return the features of a window, (rows, feature_size), and the transform of its labels.

        Raises:
            NotCachedError: Nothing is stored, as its track could not be read.
        """
        row = self._rows[key]
        if not self._maps[SUMS_FILE][row]:
            raise NotCachedError(
                f"nothing is stored in {self.folder}: it could not be read",
                code="cache-window-missing",
            )
        label_transform = dict(
            zip(
                LABEL_TRANSFORM_FIELDS, self._maps[LABEL_TRANSFORMS_FILE][row].tolist(), strict=True
            )
        )
        return np.array(self._maps[FEATURES_FILE][row]), LabelTransform(**label_transform)

    def inputs(self, checked: CheckedTrack, window: Window) -> tuple[Array, ...]:
        """Return the features of a window of a track, in place of its waveform."""
        features, _ = self.read((checked.track.id, window.start_sample, ""))
        return (features,)

    def _about(self) -> dict[str, Any]:
        return {**self.about, "shape": list(self.shape), "precision": self.dtype}

    @cached_property
    def _rows(self) -> dict[tuple[str, int, str], int]:
        return {key: row for row, key in enumerate(self.keys)}

    @cached_property
    def _maps(self) -> dict[str, Any]:
        return {
            name: np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            for name in self.arrays
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps out: a process that unpickles this opens its own."""
        return {name: value for name, value in vars(self).items() if name != "_maps"}


def evict_unused(
    folder: Path, *, needed_bytes: int, limit_bytes: int, kept: Collection[Path]
) -> tuple[list[Path], bool]:
    """Delete the least recently used folders, until the needed bytes fit.

    Folders that another run has locked (`FeatureStore.lock`) stay.

    Args:
        folder: Folder of the feature caches; nothing else in it is touched.
        needed_bytes: Size of the caches that stay.
        limit_bytes: Largest size of all caches together.
        kept: Folders that stay.

    Returns:
        The deleted folders, and whether the needed bytes fit.
    """
    others = [
        path
        for path in folder.glob("*")
        if re.fullmatch(r"[0-9a-f]{64}", path.name)
        and os.path.isfile(path / SUMS_FILE)  # noqa: PTH113 (Path raises where a folder cannot be read)
        and path not in kept
    ]
    others.sort(key=lambda path: (path / SUMS_FILE).stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    deleted = []
    for path in others:
        if needed_bytes + sum(sizes.values()) <= limit_bytes:
            break
        if why_unwritable(path) is None and _delete_unless_locked(path):
            deleted.append(path)
            del sizes[path]
    return deleted, needed_bytes + sum(sizes.values()) <= limit_bytes


def _delete_unless_locked(folder: Path) -> bool:
    """Delete a feature cache unless a run has locked it; return whether it is gone."""
    # Another run may have deleted it at the same moment.
    with suppress(FileNotFoundError), (folder / SUMS_FILE).open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a disk without locks
        shutil.rmtree(folder)
    return True


def _checksum(features: Array, label_transform: Array) -> int:
    return zlib.crc32(
        label_transform.tobytes(), zlib.crc32(np.ascontiguousarray(features).data.cast("B"))
    )
