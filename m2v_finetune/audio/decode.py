"""Read audio files: mono float32 at the rate of the backbone, whole or by excerpt.

libsndfile (through soundfile) decodes WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF and more; soxr
resamples. MP4/M4A, AAC, WMA and WebM go through an `ffmpeg` on the PATH, which decodes the whole
file: convert a data set of such files once.

An excerpt equals the same slice of the whole file. Three things make it so: positions are exact
rationals, so that the resampler starts on the same phase; a margin around the excerpt fills the
resampler's filter; and decoders start early enough to settle after a seek.

The file that was read last stays open, as the next window is often of the same one: in an MP3 of an hour
the way to a window takes longer than the window, and ffmpeg would decode all of it again. Threads and
worker processes have one each, and a file that has changed is opened again, so they may call these
functions at will.
"""

import io
import math
import os
import re
import shutil
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from m2v_finetune.errors import AudioError

# Samples on either side of an excerpt for soxr's HQ filter, at the slower of the two rates.
# Measured on white noise at nine pairs of rates: an excerpt differs from the whole file by up to
# 7e-5 with 64, 1e-6 with 128 and float32 rounding (2e-7) with 192 or more.
_RESAMPLER_MARGIN_SAMPLES = 256

# Frames decoded and thrown away after a seek in a lossy file. An MPEG frame may use bits of
# earlier ones (the bit reservoir), an Ogg block overlaps its neighbour (Vorbis: at most 8192
# frames). Without this, the first 750 frames after a seek were wrong in an MP3 of variable rate.
_DECODER_SETTLING_FRAMES = 32768

# How far the end of a file may lie before the end that its header promises: two MPEG frames.
_TOLERANCE_FRAMES = 2304

# The part of a file that `inspect_audio` decodes at its end.
_TAIL_FRAMES = 65536

# An Ogg page is at most 27 + 255 + 255 * 255 bytes long. Source: RFC 3533, section 6.
_MAX_OGG_PAGE_BYTES = 65307

_GET_AGAIN = "Get the file again, or remove it from the data."


class ExcerptError(AudioError, ValueError):
    """An excerpt that is not inside the track: a mistake of the caller, or a file that has changed."""


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

    The end is read because headers promise what a damaged file does not hold.

    Args:
        path: The file.

    Returns:
        Its layout. `num_frames` counts what can be decoded.

    Raises:
        AudioError: The file is missing, empty, unreadable, no audio, truncated, of unknown
            length, or without a sample.
    """
    with _open(path) as sound:
        first_frame = max(0, sound.frames - _TAIL_FRAMES)
        num_frames = first_frame + len(
            _read_frames(path, sound, first_frame, sound.frames, downmix=True)
        )
        if num_frames < sound.frames:
            num_frames = len(_read_frames(path, sound, 0, sound.frames, downmix=True))
        _check_length(path, sound, num_frames)
        return AudioInfo(
            sample_rate=sound.samplerate, num_frames=num_frames, num_channels=sound.channels
        )


def read_audio(path: Path, *, sample_rate: int) -> NDArray[np.float32]:
    """Read a whole file.

    Args:
        path: The file.
        sample_rate: Wanted rate in Hz.

    Returns:
        The mean of the channels, shape (num_samples,), where num_samples is
        `inspect_audio(path).num_samples(sample_rate)`; full scale is [-1, 1].

    Raises:
        AudioError: As `inspect_audio`, or the file holds NaN or infinite samples.
    """
    with _open(path) as sound:
        samples = _read_frames(path, sound, 0, sound.frames, downmix=True)
        _check_length(path, sound, len(samples))
        return resample(samples, sound.samplerate, sample_rate)


def read_excerpt(
    path: Path, *, sample_rate: int, start_sample: int, num_samples: int
) -> NDArray[np.float32]:
    """Read a part of a file, without decoding what lies before it.

    Args:
        path: The file.
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
        path: The file.
        sample_rate: Wanted rate in Hz; positions count at this rate.
        start_sample: First sample, from 0.
        num_samples: Number of samples, at least 1.
        num_channels: Wanted channels. One is the mean of those of the file; a file with one channel
            gives several that are the same.

    Returns:
        Shape (num_channels, num_samples).

    Raises:
        ExcerptError: The excerpt is not inside the track.
        AudioError: As `read_excerpt`, or the file has several channels, but not as many as wanted.
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
            f"{path}: {len(channels)} channels, where 1 or {num_channels} are expected. Convert it."
        )
    return np.ascontiguousarray(np.broadcast_to(channels, (num_channels, num_samples)))


def _read_part(
    path: Path, *, sample_rate: int, start_sample: int, num_samples: int, downmix: bool
) -> NDArray[np.float32]:
    """Read (num_samples,), or (num_samples, channels) without downmix; `read_excerpt` says the rest."""
    stop_sample = start_sample + num_samples
    with _open(path) as sound:
        total_samples = _num_resampled(sound.frames, sound.samplerate, sample_rate)
        if start_sample < 0 or num_samples < 1 or stop_sample > total_samples:
            raise ExcerptError(
                f"samples {start_sample} to {stop_sample} are not inside {path}, which has "
                f"{total_samples} at {sample_rate} Hz. If it had more before, the file was changed: put the "
                "earlier one back."
            )
        # Frame i * ratio.numerator is exactly sample i * ratio.denominator, for whole i.
        ratio = Fraction(sound.samplerate, sample_rate)
        margin_samples = (
            0 if ratio == 1 else math.ceil(_RESAMPLER_MARGIN_SAMPLES * max(Fraction(1), 1 / ratio))
        )
        step = max(0, start_sample - margin_samples) // ratio.denominator
        first_frame = step * ratio.numerator
        first_sample = step * ratio.denominator
        stop_frame = min(sound.frames, math.ceil((stop_sample + margin_samples) * ratio))
        frames = _read_frames(path, sound, first_frame, stop_frame, downmix=downmix)
        if len(frames) == 0:
            raise _ended_early(path, start_sample / sample_rate)
        samples = resample(frames, sound.samplerate, sample_rate)
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
    """The file that a thread has open.

    Attributes:
        key: The process (one that was forked shares the place in the file, and must open its own), path, and
            what changes with the file; empty for none.
        sound: The open file.
    """

    key: tuple[Any, ...] = ()
    sound: Any = None

    def close(self) -> None:
        """Close it, if there is one."""
        if self.key:
            self.key = ()
            self.sound.close()
            self.sound = None


_last_file = _LastFile()


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Give a file as a soundfile.SoundFile with at least one frame, or say why it cannot be."""
    head = _read_head(path)
    status = path.stat()
    key = (os.getpid(), path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if key != _last_file.key:
        _last_file.close()
        _last_file.sound = _open_sound(path, head)
        _last_file.key = key
    try:
        yield _last_file.sound
    except BaseException:
        _last_file.close()
        raise
    if (
        _last_file.sound.format == "OGG"
    ):  # libsndfile 1.2.2 seeks to wrong places after the end was read
        _last_file.close()


def _open_sound(path: Path, head: bytes) -> Any:
    """Open a file that begins with ``head``; `_open` says the rest."""
    # As bytes: soundfile does not take a name that is no UTF-8 as text.
    source: Any = (
        io.BytesIO(_decode_with_ffmpeg(path)) if _needs_ffmpeg(head) else os.fsencode(path)
    )
    try:
        sound = soundfile.SoundFile(source)
    # TypeError is soundfile's answer to a file named .raw, whose layout nobody states.
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", "raw samples without a header").strip(" .")
        if reason.startswith("File does not exist"):  # It does; so ends the search for MP3 frames.
            reason = "Format not recognised"
        raise AudioError(
            f"{path}: no audio that can be read ({reason}). Convert it to WAV, FLAC, MP3 or OGG, "
            "or remove it from the data."
        ) from error
    try:
        if sound.frames == 0:
            raise AudioError(f"{path}: no samples: the file has a header only. {_GET_AGAIN}")
        if sound.frames == np.iinfo(np.int64).max:
            raise AudioError(
                f"{path}: the header does not state the length. Write the file again, for example "
                "with: ffmpeg -i FILE NEW.flac"
            )
        _check_container(path, sound)
    except AudioError:
        sound.close()
        raise
    return sound


def _read_head(path: Path) -> bytes:
    """Return the first bytes of a regular file (or of what a link leads to) that is not empty."""
    try:
        mode = path.stat().st_mode  # before it is opened: opening a pipe waits for its writer
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
            raise AudioError(f"{path}: {kind}, where an audio file is expected.")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise AudioError(
            f"{path}: no such file. Check the path, and the audio directory that it is joined to."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioError(f"{path!s}: cannot be read ({error}).") from error
    if not head:
        raise AudioError(f"{path}: empty file (0 bytes). {_GET_AGAIN}")
    return head


def _read_frames(
    path: Path, sound: Any, start: int, stop: int, *, downmix: bool
) -> NDArray[np.float32]:
    """Read frames start to stop, (frames,) or (frames, channels); fewer where the file ends early."""
    position = start
    if start > 0 and (sound.format in ("MP3", "OGG") or sound.subtype.startswith("MPEG")):
        position = start - _DECODER_SETTLING_FRAMES
        if sound.subtype == "VORBIS":
            position = min(position, _last_ogg_page_start(path) - _DECODER_SETTLING_FRAMES)
        position = max(0, position)
    try:
        sound.seek(position)
        frames = sound.read(stop - position, dtype="float32", always_2d=True)[start - position :]
    except MemoryError as error:
        raise AudioError(
            f"{path}: its header promises {sound.frames / sound.samplerate:.0f} s, more than the memory "
            f"holds. {_GET_AGAIN}"
        ) from error
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{path}: damaged or truncated: {position / sound.samplerate:.2f} s to "
            f"{stop / sound.samplerate:.2f} s cannot be decoded. Get the file again, write it again "
            "with ffmpeg (ffmpeg -i FILE NEW.flac), or remove it from the data."
        ) from error
    is_finite = np.isfinite(frames)
    if not is_finite.all():
        bad_frame = start + int(np.argmin(is_finite.all(axis=1)))
        raise AudioError(
            f"{path}: NaN or infinite samples, the first at {bad_frame / sound.samplerate:.3f} s. "
            "Write the file again from its source, or remove it from the data."
        )
    return _mean_of_channels(frames) if downmix else frames


def _mean_of_channels(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (frames,) of (frames, channels): channel by channel, ten times as fast as `mean` along them."""
    total: NDArray[np.float32] = frames[:, 0].copy()
    for channel in range(1, frames.shape[1]):
        total += frames[:, channel]
    total /= np.float32(frames.shape[1])
    return total


def _check_length(path: Path, sound: Any, num_frames: int) -> None:
    """Raise if the frames that can be decoded are not what the file holds."""
    missing_frames = sound.frames - num_frames
    is_guess = sound.format == "MP3" and not _has_mp3_length_header(path)
    if is_guess and missing_frames == 0:
        _check_mp3_is_read_to_its_end(path)
    elif num_frames == 0 or (missing_frames > _TOLERANCE_FRAMES and not is_guess):
        raise AudioError(
            f"{path}: truncated: its header promises {sound.frames / sound.samplerate:.2f} s, but "
            f"only {num_frames / sound.samplerate:.2f} s can be decoded. {_GET_AGAIN}"
        )


def _ended_early(path: Path, end_seconds: float) -> AudioError:
    return AudioError(
        f"{path}: damaged or truncated: nothing can be decoded after {end_seconds:.2f} s, although "
        f"the header promises more. {_GET_AGAIN}"
    )


# What libsndfile logs for a chunk of samples that is longer than the rest of the file, in WAV and
# AIFF. It goes on without an error, with the shorter length.
_SHORT_CHUNK = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)

# Programs that write to a pipe cannot know the size and state one near the largest.
_UNKNOWN_CHUNK_BYTES = 0x7FFFF000


def _check_container(path: Path, sound: Any) -> None:
    """Raise if the container says that its end is missing, where libsndfile does not mind."""
    if sound.format == "OGG":
        _, is_last = _last_ogg_page(path)
        if not is_last:
            raise AudioError(
                f"{path}: truncated: the Ogg stream stops at "
                f"{sound.frames / sound.samplerate:.2f} s without its closing page. {_GET_AGAIN}"
            )
    elif match := _SHORT_CHUNK.search(sound.extra_info):
        stated_bytes, found_bytes = int(match[1]), int(match[2])
        missing_frames = sound.frames * (stated_bytes - found_bytes) / max(1, found_bytes)
        if stated_bytes < _UNKNOWN_CHUNK_BYTES and missing_frames > _TOLERANCE_FRAMES:
            raise AudioError(
                f"{path}: truncated: its header promises {stated_bytes} bytes of samples, but "
                f"{found_bytes} are there. {_GET_AGAIN}"
            )


def _last_ogg_page(path: Path) -> tuple[int, bool]:
    """Find the last page of an Ogg file.

    Returns:
        The frame at which the page starts (0 if that is not near), and whether it is complete and
        marked as the end of the stream.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 4 * _MAX_OGG_PAGE_BYTES))
        tail = file.read()
    # Source: RFC 3533, section 6, for the layout of a page.
    last = tail.rfind(b"OggS", 0, len(tail) - 23)
    if last < 0:
        return 0, False
    flags = tail[last + 5]
    lacing = tail[last + 27 : last + 27 + tail[last + 26]]
    is_complete = len(tail) >= last + 27 + len(lacing) + sum(lacing)
    start_frame = -1
    page = last
    # A page on which no packet ends has position -1: take the one before it.
    while start_frame < 0 and (page := tail.rfind(b"OggS", 0, page)) >= 0:
        (start_frame,) = struct.unpack_from("<q", tail, page + 6)
    return max(0, start_frame), is_complete and bool(flags & 4)


def _last_ogg_page_start(path: Path) -> int:
    """Return the frame at which seeking stops being right.

    libsndfile 1.2.2 lands up to one block off when it seeks into the last page of a Vorbis stream,
    whose end is cut, and right everywhere before; reading on from there is right too.
    """
    return _last_ogg_page(path)[0]


def _has_mp3_length_header(path: Path) -> bool:
    """Say whether an MP3 states its length; if not, libsndfile guesses it from the file's size."""
    with path.open("rb") as file:
        head = file.read(10)
        # Source: ID3v2.4, section 3.1: the tag's size, seven bits a byte, header not counted.
        if head[:3] == b"ID3":
            file.seek(
                10
                + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            )
        else:
            file.seek(0)
        first_frames = file.read(4096)
    return any(tag in first_frames for tag in (b"Xing", b"Info", b"VBRI"))


def _check_mp3_is_read_to_its_end(path: Path) -> None:
    """Raise if libsndfile's guess of an MP3's length leaves much of the file unread."""
    with path.open("rb") as file, soundfile.SoundFile(file) as sound:
        sound.seek(max(0, sound.frames - _TAIL_FRAMES))
        sound.read(dtype="float32")
        read_bytes, num_bytes = file.tell(), path.stat().st_size
    if read_bytes < 0.95 * num_bytes:
        raise AudioError(
            f"{path}: an MP3 of variable bit rate that does not state its length: only "
            f"{read_bytes} of {num_bytes} bytes would be read. Write the file again, for example "
            "with: ffmpeg -i FILE NEW.flac"
        )


def _needs_ffmpeg(head: bytes) -> bool:
    """Recognise, by the first bytes, MP4/M4A, AAC (ADTS), WMA (ASF) and WebM (Matroska)."""
    is_adts = head[0] == 0xFF and len(head) > 1 and head[1] & 0xF6 == 0xF0
    return head[4:8] == b"ftyp" or is_adts or head[:4] in (b"\x30\x26\xb2\x75", b"\x1a\x45\xdf\xa3")


def _decode_with_ffmpeg(path: Path) -> bytes:
    """Decode a whole file to a WAV of float32 in memory."""
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        raise AudioError(
            f"{path}: M4A, AAC, WMA and WebM files need the program ffmpeg, which is not on the "
            "PATH. Install it, or convert the file to WAV, FLAC, MP3 or OGG."
        )
    command = [ffmpeg, "-v", "error", "-nostdin", "-i", f"file:{path}", "-map", "0:a:0"]
    command += ["-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    # ffmpeg exits with 0 after it has skipped what it could not decode.
    if result.returncode != 0 or result.stderr:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[0] if lines else f"exit code {result.returncode}"
        raise AudioError(
            f"{path}: damaged, truncated or without audio: ffmpeg says: {reason}. {_GET_AGAIN}"
        )
    return result.stdout
