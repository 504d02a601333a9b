"""Names of files: any bytes are legal, and no part of a name is a command to a decoder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.encoded_audio import RATE, bursts, ffmpeg, read_whole

from m2v_finetune.audio.decode import inspect_audio, read_audio
from m2v_finetune.audio.resample_cache import resampled_of, write_resampled
from m2v_finetune.errors import AudioError, UserError

NAMES = [
    b"caf\xe9",  # Latin-1
    b"\xff\xfe\x80",
    "café 音楽 🎵".encode(),
    b"-i",
    b"concat:a|b",
    b"a,,start,0,end,9,,:b",
    b"%03d [x]*?",
    b"a\nb\t'\"\\$(x)",
    b"http:",
    b"x" * 240,
]
SUFFIXES = [".wav", ".flac", ".ogg", ".mp3", ".raw", ""]


def path_of(folder: Path, name: bytes, suffix: str) -> Path:
    return folder / os.fsdecode(name + suffix.encode())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_is_read(name, suffix, tmp_path):
    known = suffix if suffix in (".wav", ".flac", ".ogg", ".mp3") else ".flac"
    soundfile.write(tmp_path / f"source{known}", bursts(), RATE)
    path = path_of(tmp_path, name, suffix)
    shutil.copy(tmp_path / f"source{known}", path)
    expected = read_audio(tmp_path / f"source{known}", sample_rate=RATE)
    np.testing.assert_array_equal(read_whole(path), expected)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_is_read_by_ffmpeg(name, tmp_path):
    soundfile.write(tmp_path / "source.wav", bursts(), RATE)
    ffmpeg("-i", tmp_path / "source.wav", "-c:a", "alac", tmp_path / "source.m4a")
    expected = read_audio(tmp_path / "source.wav", sample_rate=RATE)
    content = (tmp_path / "source.m4a").read_bytes()
    path = path_of(tmp_path, name, ".m4a")
    path.write_bytes(content)
    np.testing.assert_allclose(read_whole(path), expected, atol=1e-6)
    path.write_bytes(content + content)  # parts are named by offsets in the same argument
    np.testing.assert_allclose(read_whole(path), np.tile(expected, 2), atol=1e-6)
    path.write_bytes(content[:-100])
    with pytest.raises(AudioError) as caught:
        inspect_audio(path)
    assert str(caught.value).encode("utf-8")


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_copy_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))
    path = path_of(tmp_path, name, ".wav")
    soundfile.write(tmp_path / "source.wav", bursts(), RATE)
    shutil.copy(tmp_path / "source.wav", path)
    record, is_new = write_resampled(
        path, inspect_audio(path), sample_rate=RATE, file_format="flac"
    )
    assert is_new
    copy = resampled_of(path, record, RATE)
    samples = copy.read_excerpt(start_sample=100, num_samples=1000)
    expected = read_audio(path, sample_rate=RATE)[100:1100]
    np.testing.assert_allclose(samples, expected, atol=2**-15)


@pytest.mark.parametrize("content", [b"", b"no sound", b"RIFF\x10\0\0\0WAVEdata"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_messages_can_be_printed_and_written(name, content, tmp_path):
    path = path_of(tmp_path, name, ".wav")
    path.write_bytes(content)
    with pytest.raises(AudioError) as caught:
        inspect_audio(path)
    message = str(caught.value)
    assert message.encode("utf-8")
    (tmp_path / "log.txt").write_text(message, encoding="utf-8")
    assert os.fsdecode(name).encode("utf-8", "backslashreplace").decode() in message


def test_a_message_is_printed_in_any_locale(tmp_path):
    program = """
import os, sys
from pathlib import Path
from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.errors import run_command
run_command(lambda: inspect_audio(Path(os.fsdecode(sys.argv[1]))))
"""
    for encoding in ("utf-8", "ascii"):
        result = subprocess.run(
            [sys.executable, "-c", program, bytes(tmp_path) + b"/caf\xe9.wav"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert result.returncode == 2, result.stderr
        assert b"caf\\udce9.wav: " in result.stderr


def test_a_message_is_the_text_it_was_made_of():
    assert str(UserError("a\nb é 音")) == "a\nb é 音"
    assert str(UserError("a\udce9\ud800")) == "a\\udce9\\ud800"
