"""M4A, MP4, AAC, WMA, Matroska and WebM, decoded by the program ffmpeg.

ffmpeg cannot seek in these to an exact sample, so the complete file is decoded once, as a stream. It is mixed
down if only the mean is read, and kept in memory up to 64 MiB, else in a temporary file without a name.
The system deletes this file when the process ends, also after a kill.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from m2v_finetune.audio.containers.source import GET_AGAIN, Part
from m2v_finetune.audio.sounds.sound import TAIL_FRAMES, Frames, mean_of_channels
from m2v_finetune.errors import DISK_ERRORS, AudioError, UserError

_MAX_MEMORY_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
_BLOCK_FRAMES = 1 << 18

# Sound that starts less late is late by the delay of its codec (of WMA two blocks).
_MAX_CODEC_DELAY_SECONDS = 0.1
_MAX_SILENCE_SECONDS = 3600


class DecodedSound:
    """Decoded sound of a file.

    Args:
        path: File.
        parts: Files that it holds, one after the other.
        downmix: Keep the mean of the channels alone.

    Raises:
        AudioError: ffmpeg is missing, or cannot decode the file.
        UserError: The decoded audio cannot be written.
    """

    def __init__(self, path: Path, parts: Sequence[Part], *, downmix: bool) -> None:
        self.is_downmixed = downmix
        self.sample_rate = self.num_channels = self.num_frames = 0
        self._path = path
        folder = _temporary_folder()
        self._samples = tempfile.SpooledTemporaryFile(max_size=_MAX_MEMORY_BYTES, dir=folder)  # noqa: SIM115 (kept)
        try:
            for part in parts:
                source = f"file:{path}"
                if not part.is_file:
                    source = f"subfile,,start,{part.start},end,{part.stop},,:{source}"
                self._decode(source, part.max_drift_seconds)
        except OSError as error:
            self.close()
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(
                f"{path}: {folder} cannot store its decoded audio ({error.strerror}): free space there, set "
                "the environment variable TMPDIR to a folder with more, or convert the file to FLAC.",
                code="audio-no-disk-space",
            ) from error
        except BaseException:
            self.close()
            raise
        if self.num_frames == 0:
            self.close()
            raise AudioError(
                f"{path}: no samples: ffmpeg finds no sound in it. {GET_AGAIN}",
                code="audio-no-samples",
            )

    def _decode(self, source: str, max_drift_seconds: float | None) -> None:
        """Append the audio of a source to the decoded audio, and compare it with its timestamps."""
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            raise AudioError(
                f"{self._path}: M4A, AAC, WMA and WebM files need the program ffmpeg, which is not on the "
                "PATH. Install it, or convert the file to WAV, FLAC, MP3 or OGG.",
                code="audio-needs-ffmpeg",
            )
        command = [ffmpeg, "-v", "repeat+error", "-nostdin", "-err_detect", "crccheck"]
        command += ["-vn", "-sn", "-dn", "-i", source]
        # AU is the one header with rate and channels that states no length: any length goes through a pipe.
        command += [
            "-map",
            "0:a:0",
            "-map_metadata",
            "-1",
            "-c:a",
            "pcm_f32be",
            "-f",
            "au",
            "pipe:1",
        ]
        first_frame = self.num_frames
        with tempfile.TemporaryFile() as messages, tempfile.TemporaryFile() as timestamps:
            # A line for each decoded block, with its time and length.
            number = timestamps.fileno()
            command += ["-map", "0:a:0", "-c:a", "pcm_s16le", "-f", "framecrc", f"pipe:{number}"]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
                pass_fds=[number],
            )
            assert process.stdout is not None
            try:
                self._take(process.stdout)
            except BaseException:
                process.kill()
                raise
            finally:
                process.stdout.close()
                process.wait()
            messages.seek(0)
            text = messages.read(_BLOCK_BYTES).decode(errors="replace")
            lines = text.strip().splitlines()
            span = _span(timestamps)
        # ffmpeg exits with 0 after it has skipped packets that it could not decode.
        if lines:
            others = _other_decoders(ffmpeg, source)
            lines = [line for line in lines if not line.startswith(others)]
        if process.returncode != 0 or lines:
            reason = lines[0] if lines else f"exit code {process.returncode}"
            raise AudioError(
                f"{self._path}: damaged, truncated or without audio: ffmpeg reports: {reason}. {GET_AGAIN}",
                code="audio-damaged",
            )
        if max_drift_seconds is not None and span is not None:
            self._follow_timestamps(first_frame, *span, max_drift_seconds)

    def _follow_timestamps(
        self, first_frame: int, start: int, stop: int, max_drift_seconds: float
    ) -> None:
        """Put silence before sound that starts late; refuse sound of another length than its timestamps.

        Args:
            first_frame: First frame of the sound.
            start: Frame at which it starts by its timestamps, counted from the start of the file.
            stop: Frame at which it ends.
            max_drift_seconds: Deviation that is tolerated.
        """
        missing_seconds = (stop - start - (self.num_frames - first_frame)) / self.sample_rate
        silence_seconds = start / self.sample_rate
        if abs(missing_seconds) > max_drift_seconds or silence_seconds > _MAX_SILENCE_SECONDS:
            found_seconds = (self.num_frames - first_frame) / self.sample_rate
            raise AudioError(
                f"{self._path}: damaged: by its timestamps the sound lasts from {silence_seconds:.3f} s to "
                f"{stop / self.sample_rate:.3f} s, but {found_seconds:.3f} s can be decoded, so that sound "
                f"is at wrong times. {GET_AGAIN} If it was recorded with pauses, this puts silence there: "
                "ffmpeg -i FILE -af aresample=async=1:min_hard_comp=0.01 NEW.flac",
                code="audio-damaged",
            )
        if silence_seconds > _MAX_CODEC_DELAY_SECONDS:
            self._insert_silence(first_frame, start)

    def _insert_silence(self, first_frame: int, num_frames: int) -> None:
        """Put zeros before a frame, and move what follows, the last first."""
        num_channels = 1 if self.is_downmixed else self.num_channels
        for start in reversed(range(first_frame, self.num_frames, _BLOCK_FRAMES)):
            block = self.read(start, start + _BLOCK_FRAMES)
            self._samples.seek(4 * num_channels * (start + num_frames))
            self._samples.write(block.tobytes())
        self._samples.seek(4 * num_channels * first_frame)
        for start in range(0, num_frames, _BLOCK_FRAMES):
            length = min(_BLOCK_FRAMES, num_frames - start)
            self._samples.write(bytes(4 * num_channels * length))
        self._samples.seek(0, os.SEEK_END)
        self.num_frames += num_frames

    def _take(self, stream: IO[bytes]) -> None:
        """Write the frames of a stream, mixed down if requested, to the samples."""
        header = stream.read(24)
        if len(header) < 24:
            return  # ffmpeg has reported why
        offset, _, _, sample_rate, num_channels = np.frombuffer(header[4:], ">u4").tolist()
        stream.read(offset - 24)
        if self.num_frames and (sample_rate, num_channels) != (self.sample_rate, self.num_channels):
            raise AudioError(
                f"{self._path}: files joined in one, with {self.sample_rate} Hz and {self.num_channels} "
                f"channels, and with {sample_rate} Hz and {num_channels}. Get the parts again, as files of "
                "their own.",
                code="audio-joined-files",
            )
        self.sample_rate, self.num_channels = sample_rate, num_channels
        frame_bytes = 4 * num_channels
        while block := stream.read(_BLOCK_BYTES // frame_bytes * frame_bytes):
            whole = len(block) // frame_bytes * frame_bytes
            frames = np.frombuffer(block[:whole], ">f4").reshape(-1, num_channels)
            frames = frames.astype(np.float32)
            if self.is_downmixed:
                frames = mean_of_channels(frames)
            self._samples.write(frames.tobytes())
            self.num_frames += len(frames)

    def read(self, start: int, stop: int) -> Frames:
        """Read frames start to stop, (frames, channels), or (frames, 1) of mixed-down audio."""
        num_channels = 1 if self.is_downmixed else self.num_channels
        num_frames = max(0, min(stop, self.num_frames) - start)
        frames = np.empty((num_frames, num_channels), np.float32)
        self._samples.seek(4 * num_channels * start)
        content = frames.reshape(-1).view(np.uint8).data
        while content:
            content = content[self._samples.readinto(content) :]
        return frames

    def read_tail(self) -> tuple[int, Frames]:
        """Return the length and the last frames."""
        return self.num_frames, self.read(max(0, self.num_frames - TAIL_FRAMES), self.num_frames)

    def close(self) -> None:
        """Delete the decoded audio."""
        self._samples.close()


def _temporary_folder() -> str:
    """Return the folder for decoded sound: TMPDIR, or one on a disk, as /tmp is often memory."""
    disk = "/var/tmp"  # noqa: S108 (files without a name)
    if not os.environ.get("TMPDIR") and os.access(disk, os.W_OK):
        return disk
    return tempfile.gettempdir()


def _span(timestamps: IO[bytes]) -> tuple[int, int] | None:
    """Return first and last time, in frames, in ffmpeg's list of decoded blocks; None if it is empty."""
    timestamps.seek(0)
    head = [line for line in timestamps.read(4096).splitlines() if not line.startswith(b"#")]
    if not head:
        return None
    timestamps.seek(-min(4096, timestamps.tell()), os.SEEK_END)
    last = timestamps.read().splitlines()[-1]
    # Source: libavformat/framecrcenc.c: number of the stream, dts, pts, duration, size, checksum.
    start = int(head[0].split(b",")[2])
    _, _, stop, duration, *_ = (field.strip() for field in last.split(b","))
    return start, int(stop) + int(duration)


def _other_decoders(ffmpeg: str, source: str) -> tuple[str, ...]:
    """Return the starts of lines of ffmpeg about pictures, subtitles and data in a file."""
    described = subprocess.run(
        [ffmpeg, "-hide_banner", "-nostdin", "-i", source],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    ).stderr.decode(errors="replace")
    names = re.findall(r"^ *Stream #.*: (?:Video|Subtitle|Data|Attachment): (\w+)", described, re.M)
    return tuple(f"[{name} @ " for name in names)
