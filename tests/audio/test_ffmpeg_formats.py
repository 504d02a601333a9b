"""What ffmpeg decodes: whole, exact, in bounded memory; only its sound counts."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.encoded_audio import bursts, decoded_by_ffmpeg, encoded, ffmpeg, needs, read_whole
from support.matrix import exhaustive
from support.messages import raises

from m2v_finetune.audio.decode import inspect_audio, read_audio, read_channels, read_excerpt
from m2v_finetune.audio.sounds import ffmpeg as decoded
from m2v_finetune.errors import AudioError

pytestmark = needs("ffmpeg")

RATE = 44_100
FORMATS = {
    "aac.m4a": ("-c:a", "aac"),
    "faststart.m4a": ("-c:a", "aac", "-movflags", "+faststart"),
    "alac.m4a": ("-c:a", "alac"),
    "fragments.mp4": (
        "-c:a",
        "aac",
        "-movflags",
        "+frag_keyframe+empty_moov",
        "-frag_duration",
        "300000",
    ),
    "dash.mp4": ("-c:a", "aac", "-movflags", "+dash+frag_keyframe", "-frag_duration", "300000"),
    "pcm.mov": ("-c:a", "pcm_s24le"),
    "adts.aac": ("-c:a", "aac"),
    "v1.wma": ("-c:a", "wmav1"),
    "v2.wma": ("-c:a", "wmav2"),
    "opus.webm": ("-c:a", "libopus"),
    "vorbis.webm": ("-c:a", "libvorbis"),
    "live.webm": ("-c:a", "libopus", "-live", "1"),
    "flac.mka": ("-c:a", "flac"),
    "pcm.mkv": ("-c:a", "pcm_s16le"),
    "opus.mp4": ("-c:a", "libopus"),
    "ac3.mka": ("-c:a", "ac3"),
}
LOSSLESS = ("alac.m4a", "pcm.mov", "flac.mka", "pcm.mkv")


SOME = ("aac.m4a", "fragments.mp4", "pcm.mov", "adts.aac", "v2.wma", "opus.webm", "flac.mka")
"""One of each way to store packets and times; the others run with `make exhaustive`."""


def some(*left_out: str) -> list:
    """Return all formats but these, most of them for `make exhaustive` alone."""
    others = [name for name in FORMATS if name not in (*SOME, *left_out)]
    return [*(name for name in SOME if name not in left_out), *exhaustive(*others)]


def encode(folder: Path, name: str, samples, *options: str, rate: int = RATE) -> bytes:
    source = folder / "source.wav"
    soundfile.write(source, samples, rate)
    ffmpeg("-i", source, *options, folder / name)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[bytes, bytes]]:
    folder = tmp_path_factory.mktemp("files")
    return {
        name: tuple(
            encode(folder, f"{number}-{name}", bursts(seconds, rate=RATE, seed=number), *options)
            for number, seconds in enumerate((2.0, 1.1))
        )
        for name, options in FORMATS.items()
    }


def by_ffmpeg(folder: Path, name: str, content: bytes) -> np.ndarray:
    (folder / name).write_bytes(content)
    return decoded_by_ffmpeg(folder / name)[0].mean(axis=1)


def assert_is(path: Path, content: bytes, expected: np.ndarray) -> None:
    path.write_bytes(content)
    whole = read_whole(path)
    assert len(whole) == len(expected)
    np.testing.assert_allclose(whole, expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_one_file(name, files, tmp_path):
    expected = by_ffmpeg(tmp_path, name, files[name][0])
    assert_is(tmp_path / "a", files[name][0], expected)
    if name in LOSSLESS:
        source = bursts(2.0, rate=RATE).mean(axis=1)
        np.testing.assert_allclose(expected, source, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 0), *exhaustive(((0, 1),), ((1, 0),), ((0, 0),))])
@pytest.mark.parametrize("name", some())
def test_joined_files_are_read_one_after_the_other(name, order, files, tmp_path):
    """ffmpeg reads the first alone, and of some says nothing."""
    contents = [files[name][number] for number in order]
    expected = [by_ffmpeg(tmp_path, name, content) for content in contents]
    if name == "adts.aac":  # one stream, which goes on: so ffmpeg reads it
        whole = by_ffmpeg(tmp_path, name, b"".join(contents))
        assert len(whole) == sum(map(len, expected))
        expected = [whole]
    assert_is(tmp_path / "a", b"".join(contents), np.concatenate(expected))


@pytest.mark.parametrize("name", some())
def test_junk_before_and_behind_is_no_sound(name, files, tmp_path):
    content = files[name][0]
    expected = by_ffmpeg(tmp_path, name, content)
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 8, 0]) + bytes(1024)
    assert_is(tmp_path / "a", tag + content, expected)
    if (
        name == "live.webm"
    ):  # of unknown length: ffmpeg takes what follows for elements, and complains
        return
    assert_is(tmp_path / "b", content + b"TAG" + bytes(125), expected)
    assert_is(tmp_path / "c", content + bytes(20_000), expected)


@pytest.mark.parametrize("name", some("adts.aac"))
def test_other_bytes_behind_are_named(name, files, tmp_path):
    content = files[name][0]
    junk = np.random.default_rng(1).bytes(30_000)
    (tmp_path / "a").write_bytes(content + junk)
    try:
        whole = read_whole(tmp_path / "a")
    except AudioError as error:
        assert str(tmp_path / "a") in str(error)  # noqa: PT017 (either is right)
    else:
        np.testing.assert_allclose(whole, by_ffmpeg(tmp_path, name, content), atol=1e-6)


@pytest.mark.parametrize("other", ["noise", "mp3", *exhaustive("text", "wav")])
@pytest.mark.parametrize("name", ["aac.m4a", "v2.wma", "opus.webm"])
def test_another_file_behind_is_no_truncated_element(name, other, files, tmp_path):
    others = {
        "noise": np.random.default_rng(1).bytes(30_000),
        "text": b"<html>not found</html>" * 1_000,
        "wav": encoded("WAV", "PCM_16"),
        "mp3": encoded("MP3"),
    }
    path = tmp_path / "a"
    path.write_bytes(files[name][0] + others[other])
    with raises("audio-trailing-data", path):
        inspect_audio(path)


@pytest.mark.parametrize(
    "packets", ["eq(n,10)", *exhaustive("between(n,9,14)", "gte(n,6)*not(mod(n,7))")]
)
@pytest.mark.parametrize("name", some("adts.aac", "v1.wma", "v2.wma", "pcm.mov", "dash.mp4"))
def test_lost_packets_are_refused(name, packets, files, tmp_path):
    """Timestamps tell: what follows a lost packet would be too early. ffmpeg reports nothing."""
    (tmp_path / name).write_bytes(files[name][0])
    path = tmp_path / f"lost.{name}"
    drop = f"noise=drop='{packets}'"
    ffmpeg("-i", tmp_path / name, "-c", "copy", "-strict", "-2", "-bsf:a", drop, path)
    for read in (
        inspect_audio,
        partial(read_audio, sample_rate=RATE),
        partial(read_excerpt, sample_rate=RATE, start_sample=100, num_samples=100),
    ):
        with raises("audio-damaged", path, "aresample=async=1"):
            read(path)


@pytest.mark.parametrize("name", ["v1.wma", "v2.wma"])
def test_wma_that_lost_a_tenth_of_a_second_is_refused(name, files, tmp_path):
    content = files[name][0]
    noise = np.random.default_rng(0).bytes(5_000)
    path = tmp_path / "a.wma"
    path.write_bytes(content[:15_000] + noise + content[20_000:])
    with raises("audio-damaged", path):
        inspect_audio(path)
    drop = "noise=drop='between(n,15,19)'"
    (tmp_path / name).write_bytes(content)
    ffmpeg("-y", "-i", tmp_path / name, "-c", "copy", "-bsf:a", drop, path)
    with raises("audio-damaged", path, "aresample=async=1"):
        inspect_audio(path)


def test_the_remedy_for_lost_packets_keeps_the_times(files, tmp_path):
    (tmp_path / "a.mka").write_bytes(files["flac.mka"][0])
    drop = "noise=drop='eq(n,5)'"
    ffmpeg("-i", tmp_path / "a.mka", "-c", "copy", "-bsf:a", drop, tmp_path / "b.mka")
    remedy = "aresample=async=1:min_hard_comp=0.01"
    ffmpeg("-i", tmp_path / "b.mka", "-af", remedy, tmp_path / "c.flac")
    whole = read_audio(tmp_path / "a.mka", sample_rate=RATE)
    fixed = read_audio(tmp_path / "c.flac", sample_rate=RATE)
    assert abs(len(fixed) - len(whole)) < 0.002 * RATE
    shift = np.argmax(np.correlate(fixed[-25_000:], whole[-20_000:-5_000], "valid"))
    assert shift == pytest.approx(5_000, abs=0.002 * RATE)


@pytest.mark.parametrize("name", ["flac.mka", "flac.mp4", "ac3.mka"])
def test_one_changed_byte_in_a_codec_with_checksums_is_refused(name, tmp_path):
    codec = name.split(".")[0]
    content = encode(tmp_path, name, bursts(2.0, rate=RATE), "-c:a", codec, "-strict", "-2")
    path = tmp_path / "a"
    for share in (0.4, 0.6, 0.8):
        changed = bytearray(content)
        changed[int(share * len(content))] ^= 0xFF
        path.write_bytes(changed)
        with raises("audio-damaged", path):
            inspect_audio(path)


@pytest.mark.parametrize("codec", ["aac", *exhaustive("libopus", "flac")])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("delay", [0.5, *exhaustive(2.0)])
def test_sound_that_starts_later_than_the_picture(delay, container, codec, tmp_path):
    """As a player plays it, silence comes first, so that times are those of the player."""
    rate = 48_000
    soundfile.write(tmp_path / "a.wav", bursts(2.0, rate=rate), rate)
    path = tmp_path / f"a.{container}"
    picture = ("-f", "lavfi", "-i", "testsrc=d=4:r=25:s=64x64")
    delayed = ("-itsoffset", str(delay), "-i", tmp_path / "a.wav")
    ffmpeg(*picture, *delayed, "-c:v", "mpeg4", "-c:a", codec, "-strict", "-2", path)
    ffmpeg("-i", path, "-vn", "-af", "aresample=async=1:first_pts=0", tmp_path / "a.flac")
    played = read_audio(tmp_path / "a.flac", sample_rate=rate)
    whole = read_whole(path)
    assert len(whole) == pytest.approx(len(played), abs=0.002 * rate)
    start = int(delay * rate) - 1_100  # of AAC, the delay of the codec before it
    assert not whole[:start].any()
    at = start + 2_000
    shift = np.argmax(
        np.correlate(whole[at : at + 40_000], played[at + 5_000 : at + 35_000], "valid")
    )
    assert shift == pytest.approx(5_000, abs=0.002 * rate)
    channels = read_channels(
        path, sample_rate=rate, start_sample=at, num_samples=1_000, num_channels=2
    )
    np.testing.assert_allclose(channels.mean(axis=0), whole[at : at + 1_000], atol=1e-6)


@pytest.mark.slow
def test_silence_is_put_before_long_sound(tmp_path, monkeypatch):
    """In blocks, also where it is longer or shorter than one."""
    monkeypatch.setattr(decoded, "_BLOCK_FRAMES", 7_001)
    for codec, delay in (("flac", 0.15), ("flac", 1.0)):
        test_sound_that_starts_later_than_the_picture(delay, "mkv", codec, tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()


@pytest.mark.parametrize("share", [0.4, *exhaustive(0.8)])
@pytest.mark.parametrize("name", some())
def test_a_file_that_was_cut_is_refused(name, share, files, tmp_path):
    content = files[name][0]
    for number, before in enumerate((b"", files[name][1])):
        path = tmp_path / f"{number}"
        path.write_bytes(before + content[: int(share * len(content))])
        with pytest.raises(AudioError) as raised:
            inspect_audio(path)
        assert raised.value.code in ("audio-truncated", "audio-damaged")
        assert str(path) in str(raised.value)


def test_parts_of_other_sample_rates_are_refused(files, tmp_path):
    other = encode(tmp_path, "b.m4a", bursts(1.0, rate=22_050), "-c:a", "alac", rate=22_050)
    (tmp_path / "a.m4a").write_bytes(files["alac.m4a"][0] + other)
    with raises("audio-joined-files", "a.m4a: "):
        inspect_audio(tmp_path / "a.m4a")


LAYOUTS = {
    "stereo": (RATE, 2),
    "mono": (RATE, 1),
    "16 kHz": (16_000, 2),
    "16 kHz mono": (16_000, 1),
}
LAYOUTS |= {"5.1": (RATE, 6)}


def adts(folder: Path, layout: str, seconds: float = 1.0) -> bytes:
    """Return AAC of a rate and channels."""
    rate, channels = LAYOUTS[layout]
    samples = bursts(seconds, rate=rate, channels=channels)
    return encode(folder, f"{layout}.aac", samples, "-y", rate=rate)


@pytest.mark.parametrize(
    "layouts",
    [
        ("stereo", "16 kHz mono"),
        ("16 kHz mono", "stereo"),
        ("stereo", "mono"),
        ("stereo", "stereo", "16 kHz"),
        ("stereo", "5.1", "stereo"),
        *exhaustive((("mono", "stereo"),), (("16 kHz", "stereo"),), (("5.1", "mono", "16 kHz"),)),
    ],
)
@pytest.mark.parametrize(
    "between",
    [b"", b"ID3\x04\x00\x00\0\0\x08\0" + bytes(1024), *exhaustive(b"TAG" + bytes(125))],
    ids=["", "ID3v2", "ID3v1"],
)
def test_adts_of_other_layouts_is_refused(between, layouts, tmp_path):
    """ffmpeg makes one stream of it, with rate and channels of the first."""
    path = tmp_path / "joined.aac"
    path.write_bytes(between.join(adts(tmp_path, layout) for layout in layouts))
    with raises("audio-joined-files", path):
        inspect_audio(path)


def test_adts_with_a_frame_of_another_layout_is_refused(tmp_path):
    content = bytearray(adts(tmp_path, "stereo", 2.0))
    middle = content.index(content[:3], len(content) // 2)
    content[middle + 3] ^= 0xC0  # one channel, or three
    (tmp_path / "a.aac").write_bytes(content)
    with raises("audio-damaged", "a.aac: "):
        inspect_audio(tmp_path / "a.aac")


@pytest.mark.parametrize("channels", [6, *exhaustive(1, 2)])
@pytest.mark.parametrize("name", LOSSLESS)
def test_the_mean_is_that_of_the_channels(name, channels, tmp_path):
    """Not ffmpeg's own mix, which weighs them."""
    if name == "alac.m4a" and channels == 6:
        pytest.skip("ffmpeg writes ALAC of 5.1 in another order")
    samples = bursts(0.5, rate=RATE, channels=channels)
    encode(tmp_path, name, samples, *FORMATS[name])
    whole = read_audio(tmp_path / name, sample_rate=RATE)
    np.testing.assert_array_equal(whole, read_audio(tmp_path / "source.wav", sample_rate=RATE))
    assert inspect_audio(tmp_path / name).num_channels == channels


def test_channels_are_kept_where_they_are_read(tmp_path):
    """Also where the mean was read before, of which alone something is kept."""
    samples = bursts(1.0, rate=RATE)
    path = tmp_path / "a.m4a"
    encode(tmp_path, path.name, samples, "-c:a", "alac")
    location = {"sample_rate": RATE, "start_sample": 5_000, "num_samples": 9_000}
    for _ in range(2):
        mean = read_excerpt(path, **location)
        channels = read_channels(path, num_channels=2, **location)
        np.testing.assert_allclose(channels, samples[5_000:14_000].T, atol=1e-4)
        np.testing.assert_array_equal(mean, read_channels(path, num_channels=1, **location)[0])


def with_cover(folder: Path, samples, cover: bytes, *, picture: str = "jpg") -> bytes:
    """Return an M4A whose cover was replaced after it was written."""
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64", "-frames:v", "1", folder / f"c.{picture}")
    soundfile.write(folder / "source.wav", samples, RATE)
    ffmpeg(
        *("-i", folder / "source.wav", "-i", folder / f"c.{picture}", "-map", "0", "-map", "1"),
        *("-c:a", "aac", "-c:v", "copy", "-disposition:v:0", "attached_pic", folder / "a.m4a"),
    )
    content = (folder / "a.m4a").read_bytes()
    image = (folder / f"c.{picture}").read_bytes()
    assert image in content
    return content.replace(image, (cover * (1 + len(image) // len(cover)))[: len(image)])


@pytest.mark.parametrize("picture", ["jpg", *exhaustive("png")])
@pytest.mark.parametrize(
    "cover",
    [
        b"\0",
        b"<html>not found</html>",
        b"\xff\xd8" + b"\xff\xdb\xff\xd6" * 99,
        *exhaustive(
            b"\xff\xd8\xff\xe0",
            b"\x89PNG\r\n\x1a\n" + b"\xff" * 99,
            b"GIF89a" + b"\x01" * 99,
            b"BM" + b"\x99" * 99,
        ),
    ],
)
def test_a_cover_that_cannot_be_decoded_does_not_count(cover, picture, tmp_path):
    samples = bursts(1.0, rate=RATE)
    path = tmp_path / "b.m4a"
    path.write_bytes(with_cover(tmp_path, samples, cover, picture=picture))
    np.testing.assert_array_equal(
        read_audio(path, sample_rate=RATE), read_audio(tmp_path / "a.m4a", sample_rate=RATE)
    )


@pytest.mark.parametrize("cover", [None, b"<html>not found</html>"])
def test_sound_that_cannot_be_decoded_counts(cover, tmp_path):
    samples = bursts(2.0, rate=RATE)
    content = bytearray(with_cover(tmp_path, samples, cover or b"\0"))
    if cover is None:
        content = bytearray((tmp_path / "a.m4a").read_bytes())
    start = content.index(b"mdat") + 3_000
    content[start : start + 3_000] = np.random.default_rng(0).bytes(3_000)
    (tmp_path / "b.m4a").write_bytes(content)
    with raises("audio-damaged", "b.m4a: ", "[aac"):
        inspect_audio(tmp_path / "b.m4a")


def test_no_sound_at_all(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:duration=1", tmp_path / "a.mp4")
    with raises("audio-damaged", "a.mp4: "):
        inspect_audio(tmp_path / "a.mp4")


PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from m2v_finetune.audio.decode import inspect_audio, read_excerpt
path = Path(sys.argv[1])
audio = inspect_audio(path)
last = {"start_sample": audio.num_frames - 1000, "num_samples": 1000}
part = read_excerpt(path, sample_rate=audio.sample_rate, **last)
# Not ru_maxrss, which starts with that of the process that started this one.
status = Path("/proc/self/status").read_text().splitlines()
peak_kib = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print(audio.num_frames, peak_kib, part.mean(), flush=True)
"""


@pytest.mark.exhaustive
def test_more_than_4_gib_of_decoded_sound_is_read_whole_in_bounded_memory(tmp_path):
    """Eight channels at 192 kHz, each of another level: small, and quick to decode."""
    levels = np.arange(1, 9) / 16
    soundfile.write(tmp_path / "short.wav", np.tile(levels, (20 * 192_000, 1)), 192_000)
    ffmpeg("-i", tmp_path / "short.wav", "-c:a", "flac", tmp_path / "short.mka")
    ffmpeg("-stream_loop", "35", "-i", tmp_path / "short.mka", "-c", "copy", tmp_path / "long.mka")
    num_frames = 36 * 20 * 192_000
    assert num_frames * 8 * 4 > 1 << 32
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "long.mka"],
        capture_output=True,
        text=True,
        check=True,
    )
    found, peak_kib, mean = result.stdout.split()
    assert int(found) == num_frames
    assert int(peak_kib) < 400 << 10
    assert float(mean) == pytest.approx(levels.mean(), abs=1e-4)


def test_decoded_sound_leaves_nothing_behind_when_the_process_is_killed(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    encode(tmp_path, "a.m4a", bursts(2.0, rate=RATE), "-c:a", "alac")
    program = f"""
import sys, time
from m2v_finetune.audio.sounds import ffmpeg
ffmpeg._MAX_MEMORY_BYTES = 1000
{PROGRAM}
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "a.m4a"],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout.readline()
    held = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    assert any(name.startswith(str(temporary)) and "deleted" in name for name in held)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert list(temporary.iterdir()) == []


def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    """A limit on the size of files is what a test can set; it is refused as a full disk is."""
    encode(tmp_path, "a.m4a", bursts(3.0, rate=RATE), "-c:a", "alac")
    program = f"""
import resource
from m2v_finetune.audio.sounds import ffmpeg
from m2v_finetune.errors import run_command
ffmpeg._MAX_MEMORY_BYTES = 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
def command():
    try:
        {PROGRAM.strip().replace(chr(10), chr(10) + "        ")}
    except Exception as error:
        print(type(error).__name__)
        raise
run_command(command)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.m4a"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "UserError" in result.stdout, "an AudioError would be skipped as a bad track"
    assert str(tmp_path) in result.stderr
    assert "TMPDIR" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.m4a", "source.wav"]
