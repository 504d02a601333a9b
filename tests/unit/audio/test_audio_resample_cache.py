"""Converted copies against their originals: the same music, at the same time, within the rounding."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import raises

from m2v_finetune.audio import resample_cache
from m2v_finetune.audio.decode import inspect_audio, read_audio, read_excerpt
from m2v_finetune.audio.resample_cache import (
    read_record,
    resampled_folder,
    resampled_of,
    write_resampled,
)

STEP = 2.0**-15
RESAMPLER_EDGE = 2e-6  # of two excerpts of one file, at full scale


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))


def write_music(path: Path, *, rate: int, channels: int, peak: float = 0.4) -> Path:
    """Chirps, different in each channel, with clicks: 4 s that tell every shift."""
    times = np.arange(4 * rate) / rate
    sound = np.stack(
        [np.sin(2 * np.pi * (200 + 300 * (c + 1) * times) * times) for c in range(channels)]
    )
    sound = sound * peak
    sound[:, rate :: rate // 2] = peak
    subtype = {"wav": "FLOAT", "flac": "PCM_24"}.get(path.suffix[1:])
    soundfile.write(path, sound.T, rate, subtype=subtype)
    return path


def convert(path: Path, sample_rate: int = 16_000, file_format="flac", **options):
    return write_resampled(
        path, inspect_audio(path), sample_rate=sample_rate, file_format=file_format, **options
    )


@pytest.mark.parametrize("block_seconds", [300, 1])
@pytest.mark.parametrize("file_format", ["flac", "wav"])
@pytest.mark.parametrize(
    ("name", "rate", "channels", "wanted"),
    [
        ("a.mp3", 44_100, 2, 16_000),
        ("a.mp3", 48_000, 1, 24_000),
        ("a.flac", 44_100, 2, 24_000),
        ("a.wav", 22_050, 2, 16_000),
        ("a.wav", 16_000, 1, 16_000),
        ("a.ogg", 44_100, 2, 16_000),
        ("a.wav", 8_000, 3, 16_000),
    ],
)
def test_a_copy_equals_its_original(
    tmp_path, monkeypatch, name, rate, channels, wanted, file_format, block_seconds
):
    monkeypatch.setattr(resample_cache, "_BLOCK_SECONDS", block_seconds)
    path = write_music(tmp_path / name, rate=rate, channels=channels)
    record, is_new = convert(path, wanted, file_format)
    assert is_new
    resampled = resampled_of(path, record, wanted)
    length = inspect_audio(path).num_samples(wanted)
    stored = inspect_audio(resampled.path)
    assert (stored.sample_rate, stored.num_frames, stored.num_channels) == (wanted, length, 1)
    whole = read_audio(path, sample_rate=wanted)
    for start, stop in [(0, length), (wanted + 123, 3 * wanted), (length - 5_000, length)]:
        excerpt = resampled.read_excerpt(start_sample=start, num_samples=stop - start)
        error = np.abs(excerpt - whole[start:stop]).max()
        assert error <= record.scale * STEP / 2 + RESAMPLER_EDGE
        assert error > 0 or rate == wanted


def test_clicks_stay_where_they_are(tmp_path):
    """Against the times at which they were written: neither coding nor resampling moves them."""
    clicks = np.zeros(44_100 * 6, dtype=np.float32)
    times = np.array([0.5, 1.25, 2.0, 3.7, 5.9])
    clicks[np.rint(times * 44_100).astype(int)] = 0.9
    path = tmp_path / "clicks.mp3"
    soundfile.write(path, clicks, 44_100)
    record, _ = convert(path)
    resampled = resampled_of(path, record, 16_000)
    for time in times:
        start = round((time - 0.1) * 16_000)
        near = resampled.read_excerpt(start_sample=start, num_samples=3_000)
        direct = read_excerpt(path, sample_rate=16_000, start_sample=start, num_samples=3_000)
        assert np.abs(near).argmax() == np.abs(direct).argmax()
        assert (start + np.abs(near).argmax()) / 16_000 == pytest.approx(time, abs=1 / 16_000)


@settings(max_examples=20, deadline=None)
@given(peak=st.floats(1e-4, 8.0), is_negative=st.booleans())
def test_no_peak_is_clipped_and_no_quiet_track_coarse(tmp_path_factory, peak, is_negative):
    path = tmp_path_factory.mktemp("peak") / "a.wav"
    samples = np.linspace(-peak / 2, peak / 2, 2_000)
    samples[1_000] = -peak if is_negative else peak
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    record, _ = convert(path, file_format="wav")
    read = resampled_of(path, record, 16_000).read_excerpt(start_sample=0, num_samples=2_000)
    assert record.scale / 2 <= peak * (1 + STEP)
    assert peak <= record.scale
    assert np.abs(read - samples.astype(np.float32)).max() <= record.scale * STEP / 2 * (1 + 1e-6)


@pytest.mark.parametrize("lowest", [-32_768, -32_767, -5_000])
def test_sixteen_bits_at_the_same_rate_are_kept_to_the_bit(tmp_path, lowest):
    integers = np.random.default_rng(0).integers(lowest, 1 - lowest - 1, 3_000).astype(np.int16)
    integers[:2] = lowest, min(-lowest, 32_767)
    soundfile.write(tmp_path / "a.wav", integers, 16_000, subtype="PCM_16")
    record, _ = convert(tmp_path / "a.wav")
    read = resampled_of(tmp_path / "a.wav", record, 16_000).read_excerpt(
        start_sample=0, num_samples=3_000
    )
    assert (read == integers / np.float32(32_768)).all()


def test_silence_stays_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)
    record, _ = convert(tmp_path / "a.wav")
    resampled = resampled_of(tmp_path / "a.wav", record, 16_000)
    assert not resampled.read_excerpt(start_sample=0, num_samples=100).any()


def test_a_copy_that_is_there_stays(tmp_path):
    path = write_music(tmp_path / "a.mp3", rate=44_100, channels=1)
    first, is_new = convert(path)
    assert is_new
    file = resampled_of(path, first, 16_000).path
    before = file.stat().st_mtime_ns
    for verify in (False, True):
        assert convert(path, verify=verify) == (first, False)
    assert file.stat().st_mtime_ns == before
    assert sorted(p.suffix for p in resampled_folder(16_000).rglob("*") if p.is_file()) == [
        ".flac",
        ".json",
    ]


def test_the_same_bytes_with_another_date_are_the_same(tmp_path):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)
    first, _ = convert(path)
    os.utime(path, ns=(1, 1))
    assert not first.is_current(path, inspect_audio(path), 16_000)
    second, is_new = convert(path)
    assert (second.mtime_ns, is_new, second.sha256) == (1, False, first.sha256)
    assert second.is_current(path, inspect_audio(path), 16_000)


def test_another_content_is_noticed(tmp_path):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)
    first, _ = convert(path)
    status = path.stat()
    write_music(path, rate=16_000, channels=1, peak=0.3)
    assert path.stat().st_size == status.st_size
    assert not first.is_current(path, inspect_audio(path), 16_000)
    second, is_new = convert(path)
    assert is_new
    assert second.sha256 != first.sha256
    # With size and date as before only the checksum tells.
    write_music(path, rate=16_000, channels=1, peak=0.2)
    os.utime(path, ns=(second.mtime_ns, second.mtime_ns))
    assert second.is_current(path, inspect_audio(path), 16_000)
    assert convert(path) == (second, False)
    third, is_new = convert(path, verify=True)
    assert is_new
    assert third.sha256 not in (first.sha256, second.sha256)


def test_a_damaged_copy_is_named_and_written_again(tmp_path):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)
    record, _ = convert(path)
    resampled = resampled_of(path, record, 16_000)
    whole = resampled.path.read_bytes()
    resampled.path.write_bytes(whole[:2_000])
    assert not record.is_current(path, inspect_audio(path), 16_000)
    with raises("audio-truncated", "m2v data convert SOURCE --verify"):
        resampled.read_excerpt(start_sample=50_000, num_samples=1_000)
    assert convert(path) == (record, True)
    assert resampled.path.read_bytes() == whole
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    resampled.path.write_bytes(flipped)
    assert convert(path) == (record, False)
    assert convert(path, verify=True) == (record, True)
    assert resampled.path.read_bytes() == whole


def test_one_copy_for_a_file_in_another_format(tmp_path):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)
    flac, _ = convert(path)
    wav, is_new = convert(path, file_format="wav")
    assert is_new
    assert not resampled_of(path, flac, 16_000).path.exists()
    assert resampled_of(path, wav, 16_000).path.exists()
    assert read_record(path, 16_000) == wav
    assert read_record(path, 24_000) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"audio": 3}', '{"format": "../x", "audio": {}}']
)
def test_a_damaged_record_is_no_record(tmp_path, text):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)
    record, _ = convert(path)
    [location] = resampled_folder(16_000).rglob("*.json")
    location.write_text(text)
    assert read_record(path, 16_000) is None
    assert convert(path) == (record, True)


def test_half_a_copy_cannot_exist(tmp_path, monkeypatch):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resample_cache.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        convert(path)
    assert not [p for p in resampled_folder(16_000).rglob("*") if p.is_file()]


def test_a_link_and_its_file_share_a_copy(tmp_path):
    path = write_music(tmp_path / "a.wav", rate=16_000, channels=1)
    record, _ = convert(path)
    (tmp_path / "link.wav").symlink_to(path)
    assert convert(tmp_path / "link.wav") == (record, False)
