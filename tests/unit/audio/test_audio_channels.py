"""Excerpts with their channels: those of the whole file, repeated or mixed down where asked."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from support.messages import fails, raises

from m2v_finetune.audio.decode import inspect_audio, read_audio, read_channels, read_excerpt

RATE = 44100
FORMATS = ("wav", "flac", "mp3", "ogg")


def noise(num_channels: int, seconds: float = 3.0) -> np.ndarray:
    """Channels that differ, (samples, channels)."""
    generator = np.random.default_rng(0)
    return generator.normal(scale=0.1, size=(round(seconds * RATE), num_channels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    location = tmp_path_factory.mktemp("channels")
    for num_channels, name in ((1, "mono"), (2, "stereo")):
        for suffix in FORMATS:
            soundfile.write(location / f"{name}.{suffix}", noise(num_channels), RATE)
    soundfile.write(location / "three.wav", noise(3), RATE)
    return location


def read(path, *, num_channels, sample_rate=RATE, start=0, stop=None):
    stop = inspect_audio(path).num_samples(sample_rate) if stop is None else stop
    return read_channels(
        path,
        sample_rate=sample_rate,
        start_sample=start,
        num_samples=stop - start,
        num_channels=num_channels,
    )


def test_stereo_is_kept(folder):
    whole, rate = soundfile.read(folder / "stereo.wav", dtype="float32")
    assert rate == RATE
    samples = read(folder / "stereo.wav", num_channels=2)
    assert samples.shape == (2, 3 * RATE)
    assert samples.dtype == np.float32
    assert samples.flags.c_contiguous
    np.testing.assert_array_equal(samples, whole.T)
    assert np.abs(samples[0] - samples[1]).max() > 0.1


def test_one_channel_is_repeated(folder):
    whole, _ = soundfile.read(folder / "mono.wav", dtype="float32")
    samples = read(folder / "mono.wav", num_channels=2, start=77, stop=9_000)
    np.testing.assert_array_equal(samples, np.stack([whole[77:9_000]] * 2))
    samples[0] = 1.0
    assert samples[1].max() < 1.0, "channels do not share memory"
    np.testing.assert_array_equal(
        read(folder / "mono.wav", num_channels=1, stop=500), whole[None, :500]
    )


@pytest.mark.parametrize("name", ["stereo.wav", "stereo.mp3", "three.wav"])
@pytest.mark.parametrize("sample_rate", [RATE, 16000])
def test_mixed_down_it_is_the_excerpt(name, sample_rate, folder):
    excerpt = read_excerpt(
        folder / name, sample_rate=sample_rate, start_sample=1_234, num_samples=8_000
    )
    samples = read(folder / name, num_channels=1, sample_rate=sample_rate, start=1_234, stop=9_234)
    np.testing.assert_array_equal(samples, excerpt[None])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("sample_rate", [RATE, 16000, 24000, 48000])
def test_excerpts_equal_the_whole_file(suffix, sample_rate, folder):
    path = folder / f"stereo.{suffix}"
    whole = read(path, num_channels=2, sample_rate=sample_rate)
    assert whole.shape == (2, inspect_audio(path).num_samples(sample_rate))
    np.testing.assert_allclose(
        whole.mean(axis=0), read_audio(path, sample_rate=sample_rate), atol=1e-6
    )
    if suffix == "wav" and sample_rate != RATE:
        raw, _ = soundfile.read(path, dtype="float32")
        for channel in (0, 1):
            expected = soxr.resample(raw[:, channel], RATE, sample_rate)
            np.testing.assert_allclose(whole[channel], expected[: whole.shape[1]], atol=1e-6)
    length = whole.shape[1]
    for start, stop in ((0, 100), (length // 3, length // 3 + 5_000), (length - 777, length)):
        part = read(path, num_channels=2, sample_rate=sample_rate, start=start, stop=stop)
        np.testing.assert_allclose(part, whole[:, start:stop], atol=2e-6)


def test_other_channels_than_requested_are_refused(folder):
    with raises("audio-channel-count", "three.wav: 3 channels", "1 or 2"):
        read(folder / "three.wav", num_channels=2, stop=100)


def test_what_is_not_inside_the_track_is_a_bug(folder):
    with fails(ValueError, folder / "stereo.wav", 3 * RATE + 1):
        read(folder / "stereo.wav", num_channels=2, start=0, stop=3 * RATE + 1)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_damage_in_one_channel_is_named(num_channels, tmp_path):
    samples = noise(2, 1.0).astype(np.float32)
    samples[22_050, 1] = np.nan
    soundfile.write(tmp_path / "bad.wav", samples, RATE, subtype="FLOAT")
    with raises("audio-not-finite", "0.500 s"):
        read(tmp_path / "bad.wav", num_channels=num_channels, stop=RATE)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_a_file_that_was_cut_off_is_named(num_channels, folder, tmp_path):
    path = tmp_path / "cut.mp3"
    content = (folder / "stereo.mp3").read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with raises("audio-truncated"):
        read(path, num_channels=num_channels, start=2 * RATE, stop=2 * RATE + 4000)
