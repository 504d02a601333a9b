"""Cache of resampled audio: mono copies of audio files at the sample rate of a backbone.

A copy is FLAC or WAV of 16 bits in a folder of its own (`resampled_folder`), named by a hash of the
original's path. A record beside it names the original: size, time of change, SHA-256. So the path of
the original is enough to find its copy, and a copy is not used after the original has changed.

Samples are divided by a power of two so that the loudest is between a half and full scale, and rounded to
the nearest of 65536 steps, without dither: samples differ from the original by at most 2**-16 of that
power, MP3s beyond full scale are not clipped, and quiet tracks lose nothing. The record holds the power,
and `ResampledAudio.read_excerpt` multiplies by it.
"""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from numpy.typing import NDArray

from m2v_finetune.audio.decode import AudioInfo, read_excerpt
from m2v_finetune.errors import AudioError
from m2v_finetune.files import caches_folder, expand_home, write_atomically

CACHE_VARIABLE = "M2V_CACHE"
ResampledFormat = Literal["flac", "wav"]

# Part of every key: raise it where copies of the same file would become others.
_VERSION = 1

_FULL_SCALE = 32768  # of 16 bits
_QUIETEST_SCALE = 2.0**-24

# A track is decoded in pieces of this length, so that an hour of stereo does not fill the memory.
_BLOCK_SECONDS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class ResampledAudio:
    """Copy that can be read.

    Attributes:
        path: File.
        sample_rate: Its rate in Hz.
        scale: Factor for its samples.
    """

    path: Path
    sample_rate: int
    scale: float

    def read_excerpt(self, *, start_sample: int, num_samples: int) -> NDArray[np.float32]:
        """Read a part, as `decode.read_excerpt` reads it of the original, up to the rounding.

        Returns:
            Shape (num_samples,).

        Raises:
            AudioError: The copy is gone or damaged.
        """
        try:
            samples = read_excerpt(
                self.path,
                sample_rate=self.sample_rate,
                start_sample=start_sample,
                num_samples=num_samples,
            )
        except AudioError as error:
            raise AudioError(
                f"{error} It is a resampled copy: write it again by `m2v data convert SOURCE --verify`.",
                code=error.code,
            ) from error
        samples *= np.float32(self.scale)
        return samples


@dataclass(frozen=True, kw_only=True, slots=True)
class ResampledRecord:
    """Record of an original and its copy.

    Attributes:
        original: Path of the original, without links.
        num_bytes: Its size.
        mtime_ns: When it was last changed, in nanoseconds.
        sha256: Checksum of its bytes.
        audio: Its rate, length and channels.
        format: File format of the copy.
        resampled_num_bytes: Size of the copy.
        resampled_sha256: Checksum of the bytes of the copy.
        scale: Factor for the samples of the copy.
    """

    original: str
    num_bytes: int
    mtime_ns: int
    sha256: str
    audio: AudioInfo
    format: ResampledFormat
    resampled_num_bytes: int
    resampled_sha256: str
    scale: float

    def is_current(self, path: Path, audio: AudioInfo, sample_rate: int) -> bool:
        """Return True if the original is as it was, by size and time of change, and the copy is there."""
        status = path.stat()
        return (
            (status.st_size, status.st_mtime_ns) == (self.num_bytes, self.mtime_ns)
            and self.audio == audio
            and self.has_file(path, sample_rate)
        )

    def has_file(self, path: Path, sample_rate: int) -> bool:
        """Return True if the copy is there, in its size."""
        output = _resampled_path(path, sample_rate, self.format)
        return output.is_file() and output.stat().st_size == self.resampled_num_bytes

    def is_same_content(self, path: Path, sample_rate: int) -> bool:
        """Return True if, by checksums, original and copy are unchanged."""
        output = _resampled_path(path, sample_rate, self.format)
        return _sha256(path) == self.sha256 and _sha256(output) == self.resampled_sha256


def resampled_folder(sample_rate: int) -> Path:
    """Return the folder of the copies at a rate; it may not exist.

    Raises:
        NoHomeError: It is below an unknown home folder.
    """
    return data_cache_folder() / "audio" / f"{sample_rate}hz"


def data_cache_folder() -> Path:
    """Return the folder for what is computed once from the audio of a data set; it may not exist.

    It is the folder that the environment variable M2V_CACHE names, else ``$XDG_CACHE_HOME/m2v-finetune`` or
    ``~/.cache/m2v-finetune``.

    Raises:
        NoHomeError: It is below an unknown home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    return (expand_home(named) if named else caches_folder()).absolute()


def read_record(path: Path, sample_rate: int) -> ResampledRecord | None:
    """Return the record of the copy of a file; None where there is none that can be read."""
    record_path = _record_path(path, sample_rate)
    try:
        text = record_path.read_bytes()
    except OSError:
        return None
    try:
        content = json.loads(text)
        record = ResampledRecord(**{**content, "audio": AudioInfo(**content["audio"])})
    except (ValueError, TypeError, KeyError, RecursionError):  # it is damaged
        return None
    return record if record.format in ("flac", "wav") else None


def resampled_of(path: Path, record: ResampledRecord, sample_rate: int) -> ResampledAudio:
    """Return the copy that a record describes."""
    return ResampledAudio(
        path=_resampled_path(path, sample_rate, record.format),
        sample_rate=sample_rate,
        scale=float(record.scale),
    )


def write_resampled(
    path: Path,
    audio: AudioInfo,
    *,
    sample_rate: int,
    file_format: ResampledFormat,
    verify: bool = False,
) -> tuple[ResampledRecord, bool]:
    """Write the copy of a file, unless it is there.

    Copy and record are written under temporary names and renamed, the record last: half a copy cannot
    exist.

    Args:
        path: Original.
        audio: Result of `decode.inspect_audio`.
        sample_rate: Sample rate of the copy, in Hz.
        file_format: FLAC takes about half the space of WAV; WAV is read faster.
        verify: True to compare checksums of original and copy, not only size and time of change.

    Returns:
        Record of the copy, and whether it was written now.

    Raises:
        AudioError: The original cannot be decoded.
        OSError: The copy cannot be written.
    """
    known = read_record(path, sample_rate)
    if known is not None and known.format == file_format and known.has_file(path, sample_rate):
        is_current = known.is_current(path, audio, sample_rate)
        if is_current and not verify:
            return known, False
        if known.audio == audio and known.is_same_content(path, sample_rate):
            if not is_current:  # the same bytes with another date
                known = replace(known, mtime_ns=path.stat().st_mtime_ns)
                _write_record(path, sample_rate, known)
            return known, False
    status = path.stat()  # first, so that a later change is noticed
    samples = _decode(path, audio, sample_rate)
    scale = _scale(samples)
    rounded = np.rint(samples * np.float32(_FULL_SCALE / scale))
    integers = np.clip(rounded, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
    output = _resampled_path(path, sample_rate, file_format)
    output.parent.mkdir(parents=True, exist_ok=True)
    options = {"format": file_format.upper(), "subtype": "PCM_16"}
    write_atomically(output, lambda part: soundfile.write(part, integers, sample_rate, **options))
    record = ResampledRecord(
        original=os.path.realpath(path),
        num_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        sha256=_sha256(path),
        audio=audio,
        format=file_format,
        resampled_num_bytes=output.stat().st_size,
        resampled_sha256=_sha256(output),
        scale=scale,
    )
    _write_record(path, sample_rate, record)
    if known is not None and known.format != file_format:
        _resampled_path(path, sample_rate, known.format).unlink(missing_ok=True)
    return record, True


def _decode(path: Path, audio: AudioInfo, sample_rate: int) -> NDArray[np.float32]:
    """Return the complete track, (num_samples,), decoded in chunks."""
    num_samples = audio.num_samples(sample_rate)
    samples = np.empty(num_samples, dtype=np.float32)
    for start in range(0, num_samples, _BLOCK_SECONDS * sample_rate):
        block = samples[start : start + _BLOCK_SECONDS * sample_rate]
        block[:] = read_excerpt(
            path, sample_rate=sample_rate, start_sample=start, num_samples=len(block)
        )
    return samples


def _scale(samples: NDArray[np.float32]) -> float:
    """Return the least power of two that samples can be divided by to be written without clipping."""
    peak = max(float(np.abs(samples).max()), _QUIETEST_SCALE)
    scale = 2.0 ** math.ceil(math.log2(peak))
    # The highest step is one below full scale.
    is_clipped = np.rint(samples.max() * np.float32(_FULL_SCALE / scale)) >= _FULL_SCALE
    return 2.0 * scale if is_clipped else scale


def _resampled_path(path: Path, sample_rate: int, file_format: ResampledFormat) -> Path:
    return _record_path(path, sample_rate).with_suffix(f".{file_format}")


def _record_path(path: Path, sample_rate: int) -> Path:
    key = hashlib.sha256(f"{_VERSION} {os.path.realpath(path)}".encode(errors="surrogateescape"))
    name = key.hexdigest()[:32]
    return resampled_folder(sample_rate) / name[:2] / f"{name}.json"


def _write_record(path: Path, sample_rate: int, record: ResampledRecord) -> None:
    text = json.dumps(asdict(record), indent=2) + "\n"
    write_atomically(
        _record_path(path, sample_rate), lambda part: part.write_text(text, encoding="utf-8")
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
