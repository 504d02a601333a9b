"""Read audio files: mono float32 at the rate of the backbone, complete or an excerpt.

libsndfile (through soundfile) decodes WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF and more; soxr resamples.
MP4/M4A, AAC, WMA and WebM go through an `ffmpeg` on the PATH, which decodes the complete file: convert a data
set of such files once. `containers` compares the header of a file with its content.

An excerpt equals the same slice of the complete file, for three reasons: positions are exact
rationals, so that the resampler starts on the same phase; a margin around the excerpt fills the
resampler's filter; and decoders start early enough to settle after a seek.

The last file stays open, as the next window is often of the same file: in an MP3 of an hour a seek takes
longer than reading a window, and ffmpeg would decode all of it again. Each thread and worker process has
its own open file, and a changed file is opened again, so all of them may call these functions.
"""

import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from m2v_finetune.audio.containers.find import find_container
from m2v_finetune.audio.containers.source import GET_AGAIN
from m2v_finetune.audio.sounds.ffmpeg import DecodedSound
from m2v_finetune.audio.sounds.joined import JoinedSound
from m2v_finetune.audio.sounds.libsndfile import LibsndfileSound, refuse_unknown
from m2v_finetune.audio.sounds.sound import Frames, Sound, mean_of_channels
from m2v_finetune.errors import AudioError
from m2v_finetune.path_hints import did_you_mean

# Samples on either side of an excerpt for soxr's HQ filter, at the slower of the two rates.
# Measured on white noise at nine pairs of rates: an excerpt differs from the complete file by up to
# 7e-5 with 64, 1e-6 with 128 and float32 rounding (2e-7) with 192 or more.
_RESAMPLER_MARGIN_SAMPLES = 256
LARGEST_SAMPLE = 100.0
"""Full scale is 1; recordings in floating point exceed it a little, integers as floating point by far."""


class ExcerptError(AudioError, ValueError):
    """Excerpt that is not inside the track: a mistake of the caller, or a file that has changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInfo:
    """Length and layout of an audio file.

    Attributes:
        sample_rate: Rate of the file in Hz.
        num_frames: Length in frames (samples of one channel) at that rate, at least 1.
        num_channels: Number of channels.
    """

    sample_rate: int
    num_frames: int
    num_channels: int

    @property
    def duration_seconds(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate

    def num_samples(self, sample_rate: int) -> int:
        """Length of the file after resampling, as `read_audio` and `read_excerpt` count it.

        Computed exactly, then rounded to the nearest integer, halves up; at least 1.

        Args:
            sample_rate: Rate after resampling in Hz.

        Returns:
            Length in samples.
        """
        return _num_resampled(self.num_frames, self.sample_rate, sample_rate)


def inspect_audio(path: Path) -> AudioInfo:
    """Read the header and the end of an audio file.

    The end is read because a damaged file may be shorter than its header states.

    Args:
        path: File.

    Returns:
        Layout of the file. `num_frames` counts the frames that can be decoded.

    Raises:
        AudioError: The file is missing, empty, unreadable, no audio, truncated, of unknown
            length, without a sample, or NaN or infinite at its end.
    """
    with _open(path) as sound:
        num_frames, tail = sound.read_tail()
        _require_finite(path, tail, num_frames - len(tail), sound.sample_rate)
        return AudioInfo(
            sample_rate=sound.sample_rate, num_frames=num_frames, num_channels=sound.num_channels
        )


def read_audio(path: Path, *, sample_rate: int) -> NDArray[np.float32]:
    """Read a complete file.

    Args:
        path: File.
        sample_rate: Wanted rate in Hz.

    Returns:
        The mean of the channels, shape (num_samples,), where num_samples is
        `inspect_audio(path).num_samples(sample_rate)`; full scale is [-1, 1].

    Raises:
        AudioError: Errors of `inspect_audio`, or the file holds NaN or infinite samples.
    """
    with _open(path) as sound:
        num_frames, _ = sound.read_tail()
        samples = _read_frames(path, sound, 0, num_frames, downmix=True)
        if len(samples) < num_frames:
            raise _ended_early(path, len(samples) / sound.sample_rate)
        return resample(samples, sound.sample_rate, sample_rate)


def read_excerpt(
    path: Path, *, sample_rate: int, start_sample: int, num_samples: int
) -> NDArray[np.float32]:
    """Read a part of a file, without decoding the samples before it.

    Args:
        path: File.
        sample_rate: Wanted rate in Hz; positions count at this rate.
        start_sample: First sample, from 0.
        num_samples: Number of samples, at least 1.

    Returns:
        The mean of the channels, shape (num_samples,); equal to
        `read_audio(path, sample_rate=sample_rate)[start_sample:start_sample + num_samples]` up to
        float32 rounding.

    Raises:
        ExcerptError: The excerpt is not inside the track.
        AudioError: The file cannot be opened, ends early, or holds NaN or infinite samples.
    """
    return _read_part(
        path,
        sample_rate=sample_rate,
        start_sample=start_sample,
        num_samples=num_samples,
        downmix=True,
    )


def read_channels(
    path: Path, *, sample_rate: int, start_sample: int, num_samples: int, num_channels: int
) -> NDArray[np.float32]:
    """Read a part of a file with its channels.

    Args:
        path: File.
        sample_rate: Wanted rate in Hz; positions count at this rate.
        start_sample: First sample, from 0.
        num_samples: Number of samples, at least 1.
        num_channels: Wanted channels. One is the mean of those of the file; a file with one channel
            gives several that are the same.

    Returns:
        Shape (num_channels, num_samples).

    Raises:
        ExcerptError: The excerpt is not inside the track.
        AudioError: Errors of `read_excerpt`, or the file has several channels, but not as many as wanted.
    """
    part = _read_part(
        path,
        sample_rate=sample_rate,
        start_sample=start_sample,
        num_samples=num_samples,
        downmix=num_channels == 1,
    )
    channels = part.reshape(num_samples, -1).T
    if len(channels) not in (1, num_channels):
        raise AudioError(
            f"{path}: {len(channels)} channels, where 1 or {num_channels} are expected. Convert it.",
            code="audio-channel-count",
        )
    return np.ascontiguousarray(np.broadcast_to(channels, (num_channels, num_samples)))


def _read_part(
    path: Path, *, sample_rate: int, start_sample: int, num_samples: int, downmix: bool
) -> NDArray[np.float32]:
    """Read (num_samples,), or (num_samples, channels) without downmix; see `read_excerpt`."""
    stop_sample = start_sample + num_samples
    with _open(path, downmix=downmix) as sound:
        total_samples = _num_resampled(sound.num_frames, sound.sample_rate, sample_rate)
        if start_sample < 0 or num_samples < 1 or stop_sample > total_samples:
            raise ExcerptError(
                f"samples {start_sample} to {stop_sample} are not inside {path}, which has "
                f"{total_samples} at {sample_rate} Hz. If it had more before, the file was changed: put the "
                "earlier one back.",
                code="audio-excerpt-outside",
            )
        # Frame i * ratio.numerator is exactly sample i * ratio.denominator, for integer i.
        ratio = Fraction(sound.sample_rate, sample_rate)
        margin_samples = (
            0 if ratio == 1 else math.ceil(_RESAMPLER_MARGIN_SAMPLES * max(Fraction(1), 1 / ratio))
        )
        step = max(0, start_sample - margin_samples) // ratio.denominator
        first_frame = step * ratio.numerator
        first_sample = step * ratio.denominator
        stop_frame = min(sound.num_frames, math.ceil((stop_sample + margin_samples) * ratio))
        frames = _read_frames(path, sound, first_frame, stop_frame, downmix=downmix)
        if len(frames) == 0:
            raise _ended_early(path, start_sample / sample_rate)
        samples = resample(frames, sound.sample_rate, sample_rate)
        samples = samples[start_sample - first_sample : stop_sample - first_sample]
        if len(samples) < num_samples:
            raise _ended_early(path, (start_sample + len(samples)) / sample_rate)
        return np.ascontiguousarray(samples)


def _num_resampled(num_frames: int, from_rate: int, to_rate: int) -> int:
    """Round num_frames * to_rate / from_rate to the nearest integer, halves up, at least 1."""
    return max(1, (2 * num_frames * to_rate + from_rate) // (2 * from_rate))


def resample(samples: NDArray[np.float32], from_rate: int, to_rate: int) -> NDArray[np.float32]:
    """Resample (n,) or (n, channels) along the first axis, to n * to_rate / from_rate, rounded."""
    if from_rate == to_rate:
        return samples
    resampled: NDArray[np.float32] = soxr.resample(samples, from_rate, to_rate, quality="HQ")
    # soxr rounds the length in floating point, which may differ from the exact rule by one.
    num_samples = _num_resampled(len(samples), from_rate, to_rate)
    missing = max(0, num_samples - len(resampled))
    return np.pad(resampled[:num_samples], [(0, missing)] + [(0, 0)] * (samples.ndim - 1))


class _LastFile(threading.local):
    """File that a thread has open.

    Attributes:
        key: Process (a forked one shares the position in the file, and must open its own), path, and
            the file's state; empty for none.
        sound: Open file.
    """

    key: tuple[Any, ...] = ()
    sound: Sound | None = None

    def close(self) -> None:
        """Close it, if there is one."""
        if self.sound is not None:
            self.key = ()
            self.sound.close()
            self.sound = None


_last_file = _LastFile()


@contextmanager
def _open(path: Path, *, downmix: bool = True) -> Iterator[Sound]:
    """Open a file that has at least one frame; with its channels, unless ``downmix``."""
    status = _require_file(path)
    version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    sound = _last_file.sound
    if (
        sound is None
        or _last_file.key != (os.getpid(), path, *version)
        or (sound.is_downmixed and not downmix)
    ):
        _last_file.close()
        sound = _open_sound(path, version, downmix=downmix)
        _last_file.sound, _last_file.key = sound, (os.getpid(), path, *version)
    try:
        yield sound
    except BaseException:
        _last_file.close()
        raise


def _open_sound(path: Path, version: tuple[int, ...], *, downmix: bool) -> Sound:
    """Open a file with the decoder that its content needs."""
    container = find_container(path, version)
    if container.needs_ffmpeg:
        return DecodedSound(path, container.parts, downmix=downmix)
    if not container.parts:
        refuse_unknown(path)
    if len(container.parts) == 1:
        return LibsndfileSound(path, container.parts[0])
    return JoinedSound(path, container.parts)


def _require_file(path: Path) -> os.stat_result:
    """Return the status of a regular file (or of the target of a link) that can be read and is not empty."""
    try:
        status = path.stat()  # before it is opened: opening a pipe waits for its writer
        if not stat.S_ISREG(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, a device or a socket"
            raise AudioError(
                f"{path}: {kind}, where an audio file is expected.", code="audio-not-a-file"
            )
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except FileNotFoundError as error:
        advice = did_you_mean(path.absolute())
        if not advice and re.search(r"(^|/)[a-z][a-z0-9]+:/", str(path)):
            advice = " It is an address: download the file, and give its path."
        elif not advice:
            advice = " Check the path, and the audio directory that it is joined to."
        raise AudioError(f"{path}: no such file.{advice}", code="audio-not-found") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"{path!s}: cannot be read ({error}).", code="audio-unreadable") from error
    if is_empty:
        raise AudioError(f"{path}: empty file (0 bytes). {GET_AGAIN}", code="audio-empty")
    return status


def _read_frames(
    path: Path, sound: Sound, start: int, stop: int, *, downmix: bool
) -> NDArray[np.float32]:
    """Read frames start to stop, (frames,) or (frames, channels); fewer where the file ends early."""
    frames = sound.read(start, stop)
    _require_finite(path, frames, start, sound.sample_rate)
    return mean_of_channels(frames) if downmix else frames


def _require_finite(path: Path, frames: Frames, start: int, sample_rate: int) -> None:
    """Refuse NaN and infinite samples in frames from ``start`` on."""
    is_finite = np.isfinite(frames)
    if not is_finite.all():
        bad_frame = start + int(np.argmin(is_finite.all(axis=1)))
        raise AudioError(
            f"{path}: NaN or infinite samples, the first at {bad_frame / sample_rate:.3f} s. "
            "Write the file again from its source, or remove it from the data.",
            code="audio-not-finite",
        )
    if frames.size and max(frames.max(), -frames.min()) > LARGEST_SAMPLE:
        raise AudioError(
            f"{path}: samples up to {np.abs(frames).max():g}, and full scale is 1. Write the file again with "
            "samples in [-1, 1]: 16-bit integers, for example, divided by 32768.",
            code="audio-out-of-range",
        )


def _ended_early(path: Path, end_seconds: float) -> AudioError:
    return AudioError(
        f"{path}: damaged or truncated: nothing can be decoded after {end_seconds:.2f} s, although "
        f"the header promises more. {GET_AGAIN}",
        code="audio-truncated",
    )
