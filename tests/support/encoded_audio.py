"""Files of many containers for tests, and an independent decoder to compare with."""

import io
import re
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2v_finetune.audio.decode import inspect_audio, read_audio, read_excerpt

RATE = 16_000


def needs(*programs: str):
    """Skip a test where a program is not installed."""
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def bursts(seconds: float = 1.0, *, rate: int = RATE, channels: int = 2, seed: int = 0):
    """Bursts of noise over a tone, (frames, channels), each channel another: hard on lossy decoders."""
    time = np.arange(round(rate * seconds)) / rate
    generator = np.random.default_rng(seed)
    noise = generator.normal(scale=0.15, size=(len(time), channels))
    tones = 0.2 * np.sin(2 * np.pi * (220 + 60 * seed + 90 * np.arange(channels)) * time[:, None])
    return np.clip(np.exp(-((time * 4) % 1) * 12)[:, None] * noise + tones, -0.99, 0.99)


def encoded(kind: str, subtype: str | None = None, samples=None, rate: int = RATE) -> bytes:
    """Return the bytes of a file that libsndfile writes."""
    buffer = io.BytesIO()
    samples = bursts() if samples is None else samples
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def mean_of(content: bytes) -> np.ndarray:
    """Return the mean of the channels as libsndfile reads them in one go, without this package."""
    with soundfile.SoundFile(io.BytesIO(content)) as sound:
        if not sound.seekable() or sound.subtype.startswith("DWVW"):
            sound.seekable = lambda: False
        samples = sound.read(sound.frames, dtype="float32", always_2d=True)
        header_bytes = {"WAV": 60, "W64": 144}.get(sound.format)
        if sound.subtype == "GSM610" and header_bytes is not None:
            # Of a byte of padding libsndfile makes a block.
            samples = samples[: (len(content) - header_bytes) // 65 * 320]
    return samples.mean(axis=1)


def run(*command: str | Path) -> bytes:
    """Run a program and return what it writes to its standard output."""
    result = subprocess.run(
        [str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    return result.stdout


def ffmpeg(*options: str | Path) -> bytes:
    """Run ffmpeg quietly."""
    return run("ffmpeg", "-v", "error", "-nostdin", "-y", *options)


def lame(folder: Path, name: str, samples, *options: str, rate: int = 44100) -> bytes:
    """Return an MP3 of lame, which writes an Info or Xing header with delay and padding."""
    soundfile.write(folder / "lame.wav", samples, rate)
    run("lame", "--quiet", *options, folder / "lame.wav", folder / name)
    return (folder / name).read_bytes()


def decoded_by_ffmpeg(path: Path) -> tuple[np.ndarray, int]:
    """Return what ffmpeg decodes, (frames, channels), and its rate."""
    content = ffmpeg(
        *("-i", f"file:{path}", "-map", "0:a:0", "-map_metadata", "-1"),
        *("-c:a", "pcm_f32be", "-f", "au", "pipe:1"),
    )
    offset, _, _, rate, channels = struct.unpack_from(">5I", content, 4)
    samples = np.frombuffer(content, ">f4", offset=offset).reshape(-1, channels)
    return samples.astype(np.float32), rate


def read_whole(path: Path) -> np.ndarray:
    """Read a file at its own rate, and check that excerpts equal the whole, to both ends."""
    audio = inspect_audio(path)
    whole = read_audio(path, sample_rate=audio.sample_rate)
    assert len(whole) == audio.num_frames
    length = min(700, len(whole))
    starts = [0, len(whole) - length, len(whole) // 2 - length // 2, len(whole) // 3, 1]
    for start in starts:
        start = min(start, len(whole) - length)
        part = read_excerpt(
            path, sample_rate=audio.sample_rate, start_sample=start, num_samples=length
        )
        np.testing.assert_allclose(part, whole[start : start + length], atol=1e-6)
    return whole


def ogg_pages(content: bytes) -> list[bytes]:
    """Return the pages of an Ogg file."""
    starts = [match.start() for match in re.finditer(rb"OggS\0", content)]
    return [content[start:stop] for start, stop in pairwise([*starts, len(content)])]


def shifted_ogg(content: bytes, offset: int, *, first_page: int = 0) -> bytes:
    """Add to the positions of the pages of an Ogg stream, from a page on."""
    pages = ogg_pages(content)
    for number in range(first_page, len(pages)):
        page = bytearray(pages[number])
        (position,) = struct.unpack_from("<q", page, 6)
        if position > 0:
            struct.pack_into("<q", page, 6, position + offset)
            page[22:26] = bytes(4)
            struct.pack_into("<I", page, 22, _ogg_checksum(page))
        pages[number] = bytes(page)
    return b"".join(pages)


def _ogg_checksum(page: bytes) -> int:
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    return checksum
