"""Decoding: excerpts equal the whole file, and damaged files are named."""

import multiprocessing
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.messages import fails, raises

from m2v_finetune.audio.decode import AudioInfo, inspect_audio, read_audio, read_excerpt
from m2v_finetune.errors import AudioError

FORMATS = ("wav", "flac", "mp3", "ogg")
RATES = ((44100, 16000), (48000, 24000), (22050, 16000), (16000, 16000), (44100, 24000))
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def music(sample_rate: int, seconds: float = 4.0) -> np.ndarray:
    """Bursts of noise over a tone, in stereo: hard on bit reservoirs and block switching."""
    time = np.arange(int(sample_rate * seconds) + 77) / sample_rate
    noise = np.random.default_rng(0).normal(scale=0.2, size=len(time))
    left = np.exp(-((time * 4) % 1) * 12) * noise + 0.2 * np.sin(2 * np.pi * 220 * time)
    return np.stack([left, 0.5 * np.roll(left, 99)], axis=1)


@pytest.fixture(scope="module")
def audio_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for rate in {rate for rate, _ in RATES}:
        for name in FORMATS:
            soundfile.write(folder / f"{rate}.{name}", music(rate), rate)
    opus = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(folder / "48000.opus", music(48000), 48000, **opus)
    return folder


def encode_with_ffmpeg(folder: Path, name: str, *options: str) -> Path:
    source = folder / "source.wav"
    soundfile.write(source, music(44100, 12.0), 44100)
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(source), *options, str(folder / name)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return folder / name


def worst_difference(path: Path, sample_rate: int, num_random: int = 8) -> float:
    """Largest difference between excerpts and the whole file, both ends included."""
    whole = read_audio(path, sample_rate=sample_rate)
    num_samples = sample_rate // 4
    last = len(whole) - num_samples
    # Every tenth of the last two seconds: the last page of an Ogg file is the hard part.
    starts = [0, 1, last, *range(last, max(0, last - 2 * sample_rate), -sample_rate // 5)]
    starts += np.random.default_rng(1).integers(0, last, size=num_random).tolist()
    worst = 0.0
    for start in starts:
        excerpt = read_excerpt(
            path, sample_rate=sample_rate, start_sample=start, num_samples=num_samples
        )
        assert excerpt.dtype == np.float32
        assert excerpt.shape == (num_samples,)
        worst = max(worst, float(np.abs(excerpt - whole[start : start + num_samples]).max()))
    return worst


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rates", RATES)
def test_excerpts_equal_the_whole_file(audio_dir, name, rates):
    assert worst_difference(audio_dir / f"{rates[0]}.{name}", rates[1]) < 1e-6


def test_excerpts_of_opus_equal_the_whole_file(audio_dir):
    assert worst_difference(audio_dir / "48000.opus", 16000) < 1e-6


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(FORMATS), rates=st.sampled_from(RATES))
def test_any_excerpt_equals_the_whole_file(audio_dir, data, name, rates):
    path = audio_dir / f"{rates[0]}.{name}"
    whole = read_audio(path, sample_rate=rates[1])
    start = data.draw(st.integers(0, len(whole) - 1))
    num_samples = data.draw(st.integers(1, min(8000, len(whole) - start)))
    excerpt = read_excerpt(path, sample_rate=rates[1], start_sample=start, num_samples=num_samples)
    np.testing.assert_allclose(excerpt, whole[start : start + num_samples], atol=1e-6)


def read(path: Path, start: int) -> np.ndarray:
    return read_excerpt(path, sample_rate=16000, start_sample=start, num_samples=4000)


@pytest.mark.parametrize("name", FORMATS)
def test_an_open_file_gives_the_bits_of_one_opened_anew(audio_dir, tmp_path, name):
    path, other = audio_dir / f"44100.{name}", audio_dir / "16000.wav"
    for start in (50000, 4000, 58000, 0, 30000):
        inspect_audio(path)  # reads to the end
        from_open = read(path, start)
        read(other, 0)  # closes the first
        np.testing.assert_array_equal(from_open, read(path, start))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_was_replaced_is_read_anew(tmp_path, name):
    path = tmp_path / f"a.{name}"
    soundfile.write(path, music(16000), 16000)
    before = read(path, 0)
    soundfile.write(path, music(16000)[::-1], 16000)
    assert not np.array_equal(before, read(path, 0))
    path.unlink()
    with raises("audio-not-found"):
        read(path, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_a_forked_process_does_not_move_the_place_in_the_file(audio_dir, name):
    path = audio_dir / f"44100.{name}"
    whole = read_audio(path, sample_rate=16000)
    context = multiprocessing.get_context("fork")
    read(path, 0)
    for start in (4000, 40000, 8000):
        child = context.Process(target=read, args=(path, 58000 - start))
        child.start()
        found = [read(path, start + step) for step in range(0, 4000, 1000)]
        child.join()
        assert child.exitcode == 0
        for step, excerpt in enumerate(found):
            offset = start + 1000 * step
            np.testing.assert_allclose(excerpt, whole[offset : offset + 4000], atol=1e-6)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("variable_rate.mp3", ["-ac", "1", "-q:a", "3"]),  # the bit reservoir reaches far back
        ("no_length.mp3", ["-b:a", "96k", "-write_xing", "0"]),
        ("long_pages.ogg", ["-c:a", "libvorbis", "-page_duration", "5000000"]),
        ("aac.m4a", ["-c:a", "aac"]),
        ("adts.aac", ["-c:a", "aac"]),
    ],
)
def test_excerpts_equal_the_whole_file_of_other_encoders(tmp_path, name, options):
    path = encode_with_ffmpeg(tmp_path, name, *options)
    num_random = 4 if "aac" in name else 60
    info = inspect_audio(path)
    assert info.sample_rate == 44100
    assert info.num_channels == (1 if name == "variable_rate.mp3" else 2)
    assert info.duration_seconds == pytest.approx(12, abs=0.1)
    assert len(read_audio(path, sample_rate=16000)) == info.num_samples(16000)
    if "aac" not in name:
        assert worst_difference(path, 16000, num_random) < 1e-6
        # Here no margin of the resampler hides what the decoder does after a seek.
        assert worst_difference(path, 44100, num_random) < 1e-6
    else:
        whole = read_audio(path, sample_rate=16000)
        for start in (0, 100_001, len(whole) - 5000):
            part = read_excerpt(path, sample_rate=16000, start_sample=start, num_samples=5000)
            np.testing.assert_allclose(part, whole[start : start + 5000], atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_info_and_content(audio_dir, name):
    info = inspect_audio(audio_dir / f"44100.{name}")
    source = music(44100)
    assert info == AudioInfo(sample_rate=44100, num_frames=len(source), num_channels=2)
    assert info.duration_seconds == len(source) / 44100
    samples = read_audio(audio_dir / f"44100.{name}", sample_rate=44100)
    expected = source.mean(axis=1)
    np.testing.assert_allclose(samples, expected, atol=1e-4 if name in ("wav", "flac") else 0.25)
    # Lossy or not, the time line starts where the source's does.
    spectra = np.fft.rfft(samples) * np.conj(np.fft.rfft(expected))
    assert np.argmax(np.fft.irfft(spectra)) == 0


@given(num_frames=st.integers(1, 10**7), rate=st.integers(1, 200_000), other=st.integers(1, 96000))
def test_num_samples_rounds_to_nearest(num_frames, rate, other):
    info = AudioInfo(sample_rate=rate, num_frames=num_frames, num_channels=1)
    doubled_error = 2 * (info.num_samples(other) * rate - num_frames * other)
    # A track is never without a sample, however short it is.
    assert -rate < doubled_error <= rate or info.num_samples(other) == 1
    assert info.num_samples(rate) == num_frames


@pytest.mark.parametrize("num_frames", [1, 2, 3, 441, 44099, 44101])
@pytest.mark.parametrize("rates", [(44100, 16000), (48000, 24000), (8000, 24000), (320, 147)])
def test_length_after_resampling(tmp_path, num_frames, rates):
    soundfile.write(tmp_path / "a.wav", np.full(num_frames, 0.1), rates[0])
    info = inspect_audio(tmp_path / "a.wav")
    if info.num_samples(rates[1]) > 0:
        samples = read_audio(tmp_path / "a.wav", sample_rate=rates[1])
        assert len(samples) == info.num_samples(rates[1])


def test_a_tone_keeps_its_pitch_and_place(tmp_path):
    time = np.arange(44100 * 2) / 44100
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), 44100)
    part = read_excerpt(tmp_path / "a.wav", sample_rate=16000, start_sample=12345, num_samples=4000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(12345, 16345) / 16000)
    np.testing.assert_allclose(part, expected, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "ogg"])
def test_truncated_files_are_refused(audio_dir, tmp_path, name, fraction):
    content = (audio_dir / f"44100.{name}").read_bytes()
    path = tmp_path / f"cut.{name}"
    path.write_bytes(content[: int(len(content) * fraction)])
    for check in (inspect_audio, lambda path: read_audio(path, sample_rate=16000)):
        with pytest.raises(AudioError) as caught:
            check(path)
        assert str(path) in str(caught.value)
        assert "truncated" in str(caught.value) or "malformed" in str(caught.value)
    with pytest.raises((AudioError, ValueError)):
        read_excerpt(path, sample_rate=16000, start_sample=62000, num_samples=1000)


def test_a_truncated_mp3_is_refused_by_excerpt(audio_dir, tmp_path):
    content = (audio_dir / "44100.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    with raises("audio-truncated", "155 frames"):
        read_excerpt(tmp_path / "cut.mp3", sample_rate=16000, start_sample=50000, num_samples=9000)


@needs_ffmpeg
def test_a_truncated_m4a_is_refused(tmp_path):
    path = encode_with_ffmpeg(tmp_path, "a.m4a", "-c:a", "aac", "-movflags", "+faststart")
    path.write_bytes(path.read_bytes()[:60000])
    with raises("audio-truncated", "a.m4a: "):
        inspect_audio(path)


def test_m4a_without_ffmpeg_states_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"\x00\x00\x00\x10ftypM4A \x00\x00\x00\x00")
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises("audio-needs-ffmpeg", "a.m4a: ", "ffmpeg"):
        inspect_audio(tmp_path / "a.m4a")


@needs_ffmpeg
def test_variable_rate_mp3_without_length_is_read_whole(tmp_path):
    """libsndfile guesses its length by the first frame: half of what there is."""
    path = encode_with_ffmpeg(tmp_path, "a.mp3", "-q:a", "7", "-write_xing", "0")
    assert soundfile.info(path).frames < 0.8 * 12 * 44100
    whole = read_audio(path, sample_rate=44100)
    assert len(whole) == pytest.approx(12 * 44100, abs=3 * 1152)
    assert worst_difference(path, 44100, 20) < 1e-6


@needs_ffmpeg
def test_mp3_whose_length_is_guessed_too_long(tmp_path):
    """Without a length header, libsndfile takes a tag at the end of the file for audio."""
    options = ("-ar", "16000", "-ac", "1", "-b:a", "32k", "-write_xing", "0")
    path = encode_with_ffmpeg(tmp_path, "a.mp3", *options)
    true_info = inspect_audio(path)
    path.write_bytes(path.read_bytes() + b"APETAGEX" + bytes(800))
    assert soundfile.info(path).duration > true_info.duration_seconds + 0.15
    assert inspect_audio(path) == true_info
    whole = read_audio(path, sample_rate=16000)
    assert len(whole) == true_info.num_samples(16000)
    start = len(whole) - 5000
    part = read_excerpt(path, sample_rate=16000, start_sample=start, num_samples=5000)
    np.testing.assert_allclose(part, whole[start:], atol=1e-6)
    with raises("audio-excerpt-outside"):
        read_excerpt(path, sample_rate=16000, start_sample=start, num_samples=5001)


@needs_ffmpeg
def test_streamed_wav_and_flac(tmp_path):
    """A program that writes to a pipe cannot state the length."""
    path = encode_with_ffmpeg(tmp_path, "a.wav", "-f", "wav")
    for name, options in (("p.wav", ["-f", "wav"]), ("p.flac", ["-f", "flac"])):
        command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), *options, "pipe:1"]
        piped = subprocess.run(command, check=True, capture_output=True).stdout
        (tmp_path / name).write_bytes(piped)
    for name in ("p.wav", "p.flac"):
        assert inspect_audio(tmp_path / name) == inspect_audio(path)
        assert worst_difference(tmp_path / name, 16000) < 1e-6


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("zero.mp3", b"", "audio-empty"),
        ("text.mp3", b"these are words, not music " * 50, "audio-unreadable"),
        ("page.wav", b"<html>not found</html>", "audio-unreadable"),
        ("headless.raw", b"abc" * 100, "audio-unreadable"),
        ("one_byte.wav", b"\xff", "audio-unreadable"),
    ],
)
def test_files_that_are_no_audio(tmp_path, name, content, code):
    (tmp_path / name).write_bytes(content)
    with raises(code, f"{name}: "):
        inspect_audio(tmp_path / name)


def test_missing_directory_and_no_samples(tmp_path):
    with raises("audio-not-found", "gone.wav: ") as raised:
        inspect_audio(tmp_path / "gone.wav")
    assert "address" not in str(raised.value)
    for address in (Path("https://a.org/b.wav"), tmp_path / "s3://a/b.wav"):
        with raises("audio-not-found", "address", "download"):
            inspect_audio(address)
    with raises("audio-not-a-file", "a directory"):
        inspect_audio(tmp_path)
    for name in ("a.wav", "a.ogg"):
        soundfile.write(tmp_path / name, np.zeros((0, 1)), 16000)
        with raises("audio-no-samples", f"{name}: "):
            inspect_audio(tmp_path / name)


def test_a_wav_named_mp3_opens(audio_dir, tmp_path):
    shutil.copy(audio_dir / "44100.wav", tmp_path / "a.mp3")
    assert inspect_audio(tmp_path / "a.mp3") == inspect_audio(audio_dir / "44100.wav")
    assert worst_difference(tmp_path / "a.mp3", 16000) < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, value):
    samples = np.zeros(16000, dtype=np.float32)
    samples[8000] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with raises("audio-not-finite", "0.500 s"):
        read_audio(tmp_path / "a.wav", sample_rate=16000)
    with raises("audio-not-finite", "0.500 s"):
        read_excerpt(tmp_path / "a.wav", sample_rate=16000, start_sample=7000, num_samples=2000)
    read_excerpt(tmp_path / "a.wav", sample_rate=16000, start_sample=0, num_samples=2000)


@pytest.mark.parametrize("peak", [7369.0, 1e18, 3e38])
def test_samples_far_above_full_scale_are_refused(tmp_path, peak):
    """Integers that were written as floating point, and numbers whose squares overflow."""
    path = tmp_path / "loud.wav"
    samples = np.zeros(8000, dtype=np.float32)
    samples[4000] = -peak
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    for rate in (16000, 24000):
        with raises("audio-out-of-range", "loud.wav"):
            read_audio(path, sample_rate=rate)
    samples[4000] = -3.0  # a little above is usual
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    assert read_audio(path, sample_rate=16000).min() == -3.0


@pytest.mark.parametrize("position", [(-1, 10), (0, 0), (0, 10**6), (10**6, 1)])
def test_excerpts_outside_the_track_are_the_callers_error(audio_dir, position):
    with fails(ValueError, audio_dir / "44100.wav"):
        read_excerpt(
            audio_dir / "44100.wav",
            sample_rate=16000,
            start_sample=position[0],
            num_samples=position[1],
        )


def test_threads_read_what_one_reader_reads(audio_dir):
    def read(start):
        return read_excerpt(
            audio_dir / "44100.mp3", sample_rate=16000, start_sample=start, num_samples=4000
        )

    starts = list(range(0, 56000, 4000))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(read, starts))
    for start, samples in zip(starts, together, strict=True):
        np.testing.assert_array_equal(samples, read(start))
