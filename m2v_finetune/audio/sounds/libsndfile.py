"""Audio that libsndfile decodes: a file, or a part of one."""

import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import soundfile

from m2v_finetune.audio.containers.source import (
    GET_AGAIN,
    TOLERANCE_FRAMES,
    Part,
    PartFile,
    truncated,
)
from m2v_finetune.audio.sounds.sound import TAIL_FRAMES, Frames
from m2v_finetune.errors import AudioError

# Frames decoded and thrown away after a seek in a lossy file. An MPEG frame may use bits of
# earlier ones (the bit reservoir), an Ogg block overlaps its neighbour (Vorbis: at most 8192
# frames). Without this, the first 750 frames after a seek were wrong in an MP3 of variable rate.
_DECODER_SETTLING_FRAMES = 32768

_BLOCK_FRAMES = 1 << 20

# Two frames of GSM 06.10, as WAV and W64 hold them.
_GSM_BLOCK_BYTES, _GSM_BLOCK_FRAMES = 65, 320


class LibsndfileSound:
    """File, or a part of one, that libsndfile decodes.

    Args:
        path: File.
        part: Part of the file.

    Raises:
        AudioError: It cannot be decoded, or holds more or fewer frames than its header states.
    """

    is_downmixed = False

    def __init__(self, path: Path, part: Part) -> None:
        self.path, self.part = path, part
        self._open(as_file=part.is_file)
        if part.is_file and part.head and self._sound.frames < (part.num_frames or 0):
            self.close()
            self._open(as_file=False)
        self.sample_rate: int = self._sound.samplerate
        self.num_channels: int = self._sound.channels
        self.num_frames: int = self._sound.frames
        try:
            self._check_length()
        except soundfile.LibsndfileError as error:
            self.close()
            raise self._damaged(0, self.num_frames) from error
        except AudioError:
            self.close()
            raise

    def _open(self, *, as_file: bool) -> None:
        """Open the file itself, or the part as a file."""
        self._file: Any = (
            self.path.open("rb", buffering=0) if as_file else PartFile(self.path, self.part)
        )
        self._is_file = as_file
        # By number, so that nothing of its name matters: neither a suffix, nor bytes that are not UTF-8.
        source = self._file.fileno() if as_file else self._file
        try:
            self._sound: Any = soundfile.SoundFile(source, closefd=False)
        except soundfile.LibsndfileError as error:
            self._file.close()
            if self.part.missing_bytes:
                raise self._too_short() from error
            raise AudioError(
                f"{self.path}: no audio that can be read ({error.error_string.strip(' .')}). Convert it "
                "to WAV, FLAC, MP3 or OGG, or remove it from the data.",
                code="audio-unreadable",
            ) from error
        self._is_seekable = self._sound.seekable() and not self._sound.subtype.startswith("DWVW")
        if not self._is_seekable:
            # soundfile queries this, and seeks after each read; for DWVW libsndfile returns a wrong value.
            self._sound.seekable = lambda: False
        self._was_read = False
        self._position = 0

    def _check_length(self) -> None:
        """Compare the decoder's length with the content of the container."""
        sound, part = self._sound, self.part
        if sound.frames == 0 and not part.missing_bytes:
            raise AudioError(
                f"{self.path}: no samples: the file has a header only. {GET_AGAIN}",
                code="audio-no-samples",
            )
        if sound.frames == np.iinfo(np.int64).max:
            raise AudioError(
                f"{self.path}: the header does not state the length. Write the file again, for example "
                "with: ffmpeg -i FILE NEW.flac",
                code="audio-no-length",
            )
        if part.num_frames is not None:
            if sound.frames < part.num_frames - TOLERANCE_FRAMES:
                raise self._too_long()
            self.num_frames = min(sound.frames, part.num_frames)
        num_bytes = (part.samples_stop or part.num_bytes) - part.samples_start
        if sound.subtype == "GSM610" and sound.format in ("WAV", "W64"):
            # libsndfile 1.2.2 takes a byte of padding for another block.
            self.num_frames = min(sound.frames, num_bytes // _GSM_BLOCK_BYTES * _GSM_BLOCK_FRAMES)
        # A hole in the middle is as likely as a cut, and one byte less makes noise of the samples behind it.
        if part.missing_bytes:
            raise self._too_short()
        has_packets = sound.format in ("FLAC", "OGG", "MP3") or sound.subtype.startswith("MPEG")
        tolerance_frames = TOLERANCE_FRAMES if has_packets else 0
        if sound.frames * part.rest_bytes > tolerance_frames * num_bytes:
            raise AudioError(
                f"{self.path}: {part.rest_bytes} bytes follow the sound that its header counts, and are "
                "neither tag nor chunk. If they are sound, of a recording that was interrupted, write the "
                "file again (WAV, AIFF, AU: sox --ignore-length FILE NEW.wav). Else cut them off.",
                code="audio-trailing-data",
            )
        if self._is_seekable and not has_packets:
            sound.seek(sound.frames)  # the decoder is then at the end of the samples
            self._check_all_is_read()

    def _check_all_is_read(self) -> None:
        """Raise if audio follows the decoder's position in the file."""
        if self.part.samples_stop is None:
            return
        location = (
            os.lseek(self._file.fileno(), 0, os.SEEK_CUR) if self._is_file else self._file.tell()
        )
        unread = self.part.samples_stop - location
        if unread * self.num_frames > TOLERANCE_FRAMES * (location - self.part.samples_start):
            raise self._too_long()

    def _damaged(self, start: int, stop: int) -> AudioError:
        return AudioError(
            f"{self.path}: damaged or truncated: of {start / self.sample_rate:.2f} s to "
            f"{stop / self.sample_rate:.2f} s not all can be decoded. Get the file again, write it again "
            "with ffmpeg (ffmpeg -i FILE NEW.flac), or remove it from the data.",
            code="audio-damaged",
        )

    def _too_short(self) -> AudioError:
        found = self.part.num_bytes - self.part.samples_start
        return truncated(
            self.path,
            f"its header promises {found + self.part.missing_bytes} bytes of samples, but {found} are there",
        )

    def _too_long(self) -> AudioError:
        return AudioError(
            f"{self.path}: its header promises {self.num_frames / self.sample_rate:.2f} s, but the file "
            "continues after them. Write it again, for example with: ffmpeg -i FILE NEW.flac",
            code="audio-trailing-data",
        )

    def read(self, start: int, stop: int) -> Frames:
        """Read frames start to stop, (frames, channels); fewer where the file ends early."""
        is_behind = not self._is_seekable and start < self._position
        # libsndfile 1.2.2 seeks to wrong positions in Ogg after the end was read.
        if is_behind or (self._was_read and self._sound.format == "OGG"):
            self.close()
            self._open(as_file=self._is_file)
        self._was_read = True
        position = self._start_decoding_at(start)
        try:
            if self._is_seekable:
                self._sound.seek(position)
            else:
                position = self._position
                while start - position > _BLOCK_FRAMES:
                    position += len(self._decode(_BLOCK_FRAMES))
            frames = self._decode(stop - position)
        except MemoryError as error:
            raise AudioError(
                f"{self.path}: its header promises {self.num_frames / self.sample_rate:.0f} s, more than the "
                f"memory holds. {GET_AGAIN}",
                code="audio-length-implausible",
            ) from error
        except soundfile.LibsndfileError as error:
            raise self._damaged(position, stop) from error
        self._position = position + len(frames)
        return frames[start - position :]

    def _start_decoding_at(self, start: int) -> int:
        """Return the frame at which to decode, so that the decoder has settled at ``start``."""
        sound = self._sound
        if start == 0 or not (sound.format in ("MP3", "OGG") or sound.subtype.startswith("MPEG")):
            return start
        position = start
        if sound.subtype == "VORBIS" and self.part.last_page_frame is not None:
            position = min(position, self.part.last_page_frame)
        return max(0, position - _DECODER_SETTLING_FRAMES)

    def _decode(self, num_frames: int) -> Frames:
        frames: Frames = self._sound.read(num_frames, dtype="float32", always_2d=True)
        return frames

    def read_tail(self) -> tuple[int, Frames]:
        """Return the number of frames that can be decoded, and the last ones."""
        first = max(0, self.num_frames - TAIL_FRAMES)
        tail = self.read(first, self.num_frames)
        num_frames = first + len(tail)
        if num_frames < self.num_frames:
            num_frames = 0
            while len(
                block := self.read(num_frames, min(num_frames + _BLOCK_FRAMES, self.num_frames))
            ):
                tail = block
                num_frames += len(block)
        if num_frames == 0 or self.num_frames - num_frames > TOLERANCE_FRAMES:
            raise truncated(
                self.path,
                f"its header promises {self.num_frames / self.sample_rate:.2f} s, but only "
                f"{num_frames / self.sample_rate:.2f} s can be decoded",
            )
        self._check_all_is_read()
        return num_frames, tail

    def close(self) -> None:
        """Close the file."""
        self._sound.close()
        self._file.close()


def refuse_unknown(path: Path) -> NoReturn:
    """Raise for a file of unknown structure, with libsndfile's reason if it cannot read the file."""
    LibsndfileSound(path, Part(start=0, stop=path.stat().st_size, is_file=True)).close()
    raise AudioError(
        f"{path}: unsupported format: its header cannot be compared with its content, so truncated audio "
        "would not be noticed. Convert it to WAV or FLAC, for example with: sox FILE NEW.wav",
        code="audio-unsupported-format",
    )
