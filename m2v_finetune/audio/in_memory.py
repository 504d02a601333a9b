"""Sound in memory as a file, for what reads files: then every form of input takes the same way."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

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

MAX_CHANNELS = 64


@contextmanager
def audio_file(audio: AudioInput, sample_rate: int | None = None) -> Iterator[Path]:
    """Yield the path of a file with a sound.

    Args:
        audio: One of

            - the path of a file, which is yielded as it is;
            - an array or tensor of floating-point numbers, (samples,) or (channels, samples), full scale
              [-1, 1], with ``sample_rate``;
            - the audio of a row of `datasets`: a mapping, or its decoder, with ``array`` and
              ``sampling_rate``;
            - a file object that is open for reading bytes, at the start of an encoded file.
        sample_rate: Sample rate of an array, in Hz.

    Raises:
        UserError: The type, shape or numbers are none of these, or the rate is missing or not wanted.
    """
    if isinstance(audio, str | Path):
        _refuse_rate(sample_rate, "a file has its own")
        yield Path(audio)
        return
    with tempfile.TemporaryDirectory(prefix="m2v-audio-") as folder:
        path = Path(folder) / "audio"
        if hasattr(audio, "read"):
            _refuse_rate(sample_rate, "an encoded file has its own")
            path.write_bytes(_read_bytes(audio))
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


def _read_bytes(file: Any) -> bytes:
    content = file.read()
    if not isinstance(content, bytes):
        raise UserError(
            "The file object gives text. Open the audio file in binary mode: open(path, 'rb').",
            code="audio-input-type",
        )
    return content


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
    if hasattr(audio, "detach"):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()
    if not isinstance(audio, np.ndarray | list | tuple):
        raise UserError(
            f"Audio is a {type(audio).__name__}. Give a path, an array or tensor with sample_rate, the audio "
            "of a row of datasets, or a file object.",
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
    if samples.ndim not in (1, 2) or samples.size == 0 or _has_time_first(samples):
        raise UserError(
            f"The array has the shape {samples.shape}. Give (samples,), or (channels, samples): array.T "
            "turns (samples, channels) around.",
            code="audio-input-shape",
        )
    rate = _checked_rate(sample_rate)
    if not np.isfinite(samples).all():
        raise UserError("The array holds NaN or infinity.", code="audio-input-not-finite")
    return samples.astype(np.float32), rate


def _checked_rate(value: Any) -> int:
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or isinstance(value, bool) or not value > 0 or value != value // 1:
        raise UserError(
            f"sample_rate is {value!r}. Give the sample rate of the array in Hz, such as 44100.",
            code="audio-input-rate",
        )
    return int(value)


def _has_time_first(samples: NDArray[Any]) -> bool:
    return samples.ndim == 2 and samples.shape[0] > min(MAX_CHANNELS, samples.shape[1])
