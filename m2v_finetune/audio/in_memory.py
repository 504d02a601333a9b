"""Sound in memory as a file, for what reads files: then every form of input takes the same way."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from m2v_finetune.audio.decode import LARGEST_SAMPLE
from m2v_finetune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class DecodedAudio(Protocol):
    """Audio of a row of `datasets`: a mapping or decoder with ``array`` and ``sampling_rate``."""

    def __getitem__(self, key: str, /) -> Any:
        """Return one of them."""


AudioInput: TypeAlias = (
    "str | Path | NDArray[Any] | Tensor | Sequence[Any] | DecodedAudio | BinaryIO"
)
"""A path; an array or tensor with its sample rate; a row's audio of `datasets`; or a binary file object."""

MAX_CHANNELS = 8
"""Channels of an array: more are a batch of sounds, or (samples, channels)."""
LOWEST_RATE, HIGHEST_RATE = 1000, 1_000_000
"""Sample rates of an array, in Hz; others are numbers in kHz, or of something else."""


@contextmanager
def audio_file(audio: AudioInput, sample_rate: int | None = None) -> Iterator[Path]:
    """Yield the path of a file with a sound.

    Args:
        audio: One of

            - the path of a file, which is yielded as it is;
            - an array or tensor of floating-point numbers, (samples,) or (channels, samples), full scale
              [-1, 1], with ``sample_rate``;
            - the audio of a row of `datasets`: a mapping, or its decoder, with ``array`` and
              ``sampling_rate``; or one that is not decoded, with ``bytes`` or ``path``;
            - a file object that is open for reading bytes, of an encoded file; it is read from its start
              if it can seek.
        sample_rate: Sample rate of an array, in Hz.

    Raises:
        UserError: The type, shape or numbers are none of these, or the rate is missing or not wanted.
    """
    if isinstance(audio, str | Path):
        _refuse_rate(sample_rate, "a file has its own")
        yield Path(audio)
        return
    encoded = _encoded_row(audio)
    if isinstance(encoded, str):
        _refuse_rate(sample_rate, "a file has its own")
        yield Path(encoded)
        return
    with tempfile.TemporaryDirectory(prefix="m2v-audio-") as folder:
        path = Path(folder) / "audio"
        if encoded is not None or hasattr(audio, "read"):
            _refuse_rate(sample_rate, "an encoded file has its own")
            path.write_bytes(_read_bytes(audio) if encoded is None else encoded)
        else:
            samples, rate = _samples_and_rate(audio, sample_rate)
            soundfile.write(path, samples.T, rate, format="WAV", subtype="FLOAT")
        try:
            yield path
        except UserError as error:
            # The temporary path means nothing to the caller.
            error.args = (str(error).replace(str(path), "audio"),)
            raise


def _refuse_rate(sample_rate: int | None, reason: str) -> None:
    if sample_rate is not None:
        raise UserError(
            f"sample_rate is {sample_rate!r}, but {reason}. Leave it out.", code="audio-input-rate"
        )


def _encoded_row(audio: Any) -> str | bytes | None:
    """Return path or bytes of the audio of a row of `datasets` that is not decoded; None for other input."""
    if not isinstance(audio, Mapping) or "array" in audio:
        return None
    for key, kind in (("bytes", bytes), ("path", str)):
        value = audio.get(key)
        if isinstance(value, kind) and value:
            return value
    return None


def _read_bytes(file: Any) -> bytes:
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError, TypeError) as error:  # closed, open for writing, no file of bytes
        raise UserError(
            f"The file object cannot be read ({error}). Open the file in binary mode: open(path, 'rb').",
            code="audio-input-type",
        ) from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise UserError(
            f"The file object gives {type(content).__name__}, not bytes. Open the audio file in binary mode: "
            "open(path, 'rb').",
            code="audio-input-type",
        )
    if not content:
        raise UserError(
            "The file object has no bytes: the file is empty, or was read to its end. Open it again.",
            code="audio-empty",
        )
    return bytes(content)


def _samples_and_rate(audio: Any, sample_rate: int | None) -> tuple[NDArray[np.float32], int]:
    """Return samples, (samples,) or (channels, samples), and their rate."""
    is_row = isinstance(audio, Mapping) or hasattr(audio, "get_all_samples")
    if is_row:
        _refuse_rate(sample_rate, "a row of a data set has its own")
        try:
            audio, sample_rate = audio["array"], audio["sampling_rate"]
        except (KeyError, TypeError) as error:
            raise UserError(
                "The mapping has no 'array' and 'sampling_rate', as the audio of a row of datasets has: "
                f"{', '.join(map(str, audio))}.",
                code="audio-input-type",
            ) from error
    elif isinstance(audio, list | tuple) and audio and getattr(audio[0], "ndim", 0) > 0:
        raise UserError(
            f"A list of {len(audio)} sounds was given, and one is expected. Call for each of them; the "
            "channels of a sound are an array (channels, samples).",
            code="audio-input-shape",
        )
    if hasattr(audio, "detach"):
        try:
            audio = audio.detach().cpu()
            audio = (audio.float() if audio.is_floating_point() else audio).numpy()
        except (TypeError, RuntimeError) as error:  # sparse, or without numbers
            raise UserError(
                f"The tensor cannot become an array ({error}). Give a dense tensor.",
                code="audio-input-type",
            ) from error
    if not isinstance(audio, np.ndarray | list | tuple) or isinstance(audio, np.ma.MaskedArray):
        raise UserError(
            f"Audio is of the type {type(audio).__name__}. Give a path, an array or tensor with sample_rate, "
            "the audio of a row of datasets, or a file object: io.BytesIO(...) makes one of bytes.",
            code="audio-input-type",
        )
    try:
        samples = np.asarray(audio)
    except ValueError as error:
        raise UserError(
            f"The list cannot become an array ({error}). Give channels of one length.",
            code="audio-input-shape",
        ) from error
    if not np.issubdtype(samples.dtype, np.floating):
        raise UserError(
            f"The array is of {samples.dtype}. Give floating-point numbers in [-1, 1]: 16-bit integers, for "
            "example, divided by 32768.",
            code="audio-input-type",
        )
    if samples.size == 0:
        raise UserError(f"The array of shape {samples.shape} is empty.", code="audio-input-shape")
    if samples.ndim not in (1, 2) or _has_time_first(samples):
        raise UserError(
            f"The array has the shape {samples.shape}. Give (samples,), or (channels, samples) with at most "
            f"{MAX_CHANNELS} channels, and not more channels than samples. If this is (samples, channels), "
            "array.T turns it around.",
            code="audio-input-shape",
        )
    rate = _checked_rate(sample_rate)
    if not np.isfinite(samples).all():
        raise UserError("The array holds NaN or infinity.", code="audio-input-not-finite")
    largest = float(np.abs(samples).max())
    if largest > LARGEST_SAMPLE:
        raise UserError(
            f"The array has samples up to {largest:g}. Give floating-point numbers in [-1, 1]: 16-bit "
            "integers, for example, divided by 32768.",
            code="audio-input-range",
        )
    return samples.astype(np.float32), rate


def _checked_rate(value: Any) -> int:
    if (
        hasattr(value, "item") and getattr(value, "ndim", 0) == 0
    ):  # a row of numpy's or torch's format
        value = value.item()
    is_number = isinstance(value, int | float | np.integer | np.floating)
    is_rate = is_number and not isinstance(value, bool) and LOWEST_RATE <= value <= HIGHEST_RATE
    if not is_rate or value != value // 1:
        raise UserError(
            f"sample_rate is {value!r}. Give the sample rate of the array in Hz, such as 44100; it is from "
            f"{LOWEST_RATE} to {HIGHEST_RATE}.",
            code="audio-input-rate",
        )
    return int(value)


def _has_time_first(samples: NDArray[Any]) -> bool:
    return samples.ndim == 2 and samples.shape[0] > min(MAX_CHANNELS, samples.shape[1])
