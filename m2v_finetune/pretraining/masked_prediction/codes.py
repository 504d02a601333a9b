"""Precomputed codes of a neural codec as labels: one ``.npy`` file a track, (codebooks, frames) at 75 Hz."""

import os
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.paths import path_problem
from m2v_finetune.errors import UserError
from m2v_finetune.path_hints import did_you_mean

MAGIC = b"\x93NUMPY"
CODE_RATE_HZ = 75
"""Frames a second of EnCodec at 24 kHz (arXiv 2210.13438)."""
TOLERANCE_SECONDS = 0.1
"""Largest difference in length of a track and its codes."""


def codes_file(folder: Path, checked: CheckedTrack) -> Path:
    """Return the file of the codes of a track.

    Raises:
        UserError: There is none that can be read, or it is outside of the folder.
    """
    name = f"{checked.track.id}.npy"
    outside = path_problem(name, folder, checked.track.path_rule)
    if outside is not None:
        raise UserError(outside, code="codes-outside")
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing.{did_you_mean(path.absolute())}", code="codes-missing")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: no permission.", code="codes-missing")
    return path


def read_codes(
    folder: Path,
    checked: CheckedTrack,
    *,
    grid: FrameGrid,
    num_codebooks: int,
    codebook_size: int,
) -> NDArray[np.int16]:
    """Return the codes of a track at the frames of the encoder, (num_codebooks, frames).

    A frame has the code whose time span, of 1 / 75 s, has its centre in it: the nearest one.

    Args:
        folder: Folder with ``<id>.npy`` for each track.
        checked: Track.
        grid: Frames of the encoder.
        num_codebooks: Number of codebooks to use, from the first.
        codebook_size: Number of codes.

    Raises:
        UserError: The file is missing, or has no such codes, or is of another length than the track.
    """
    path = codes_file(folder, checked)
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError("it is no .npy file of integers (codebooks, frames)")
        codes = np.load(path, allow_pickle=False)
        if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu" or codes.ndim != 2:
            raise ValueError("it is no .npy file of integers (codebooks, frames)")
        if len(codes) < num_codebooks or codes.shape[1] == 0:
            raise ValueError(f"its shape is {codes.shape}, and {num_codebooks} codebooks are used")
        codes = codes[:num_codebooks]
        if codes.min() < 0 or codes.max() >= codebook_size:
            raise ValueError(
                f"its codes are {codes.min()} to {codes.max()}, and codebook_size is {codebook_size}"
            )
        seconds = codes.shape[1] / CODE_RATE_HZ
        length = checked.audio.duration_seconds
        if abs(seconds - length) > TOLERANCE_SECONDS:
            raise ValueError(
                f"it has {seconds:.2f} s at {CODE_RATE_HZ} Hz, and the track {length:.2f} s"
            )
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(
            f"{path} has no codes of the track: {error}.",
            code="codes-invalid",
        ) from error
    num_frames = grid.num_frames(checked.audio.num_samples(grid.sample_rate))
    nearest = np.floor(grid.times(num_frames) * CODE_RATE_HZ).astype(np.int64)
    return codes[:, np.minimum(nearest, codes.shape[1] - 1)].astype(np.int16)
