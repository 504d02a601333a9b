"""MP3s that were joined, padded, cut, or whose header counts something else than there is."""

import re
import struct
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.encoded_audio import bursts, decoded_by_ffmpeg, ffmpeg, lame, needs, read_whole
from support.matrix import exhaustive
from support.messages import raises

from m2v_finetune.audio.containers.mpeg_frames import parse_frame
from m2v_finetune.audio.decode import inspect_audio, read_audio, read_excerpt

pytestmark = needs("lame", "ffmpeg")

RATE = 44_100
ID3 = b"ID3\x04\x00\x00" + bytes([0, 0, 8, 0]) + bytes(1024)
PICTURE = b"ID3\x03\x00\x00" + bytes([0, 1, 0x1C, 0x20]) + b"\xff\xfb\x90\x64" * 5000  # 20000 bytes
PARTS = {
    "first": (bursts(2.0, rate=RATE), ("-b", "128")),
    "second": (bursts(1.3, rate=RATE, seed=1), ("-b", "128")),
    "variable": (bursts(1.5, rate=RATE, seed=2), ("-V", "2")),
    "average": (bursts(1.5, rate=RATE, seed=2), ("--abr", "150")),
    "short": (bursts(0.05, rate=RATE, seed=3), ("-b", "320")),
    "checked": (bursts(1.0, rate=RATE, seed=4), ("-p", "-b", "192")),
    "no header": (bursts(1.5, rate=RATE, seed=5), ("-t", "-b", "128")),
    "variable, no header": (bursts(1.5, rate=RATE, seed=6), ("-t", "-V", "4")),
    "mono": (bursts(1.0, rate=RATE, channels=1), ("-b", "64")),
    "mono, no header": (bursts(1.0, rate=RATE, channels=1), ("-t", "-b", "64")),
    "half rate": (bursts(1.0, rate=RATE), ("-b", "64", "--resample", "22.05")),
    "half rate, no header": (bursts(1.0, rate=RATE), ("-t", "-V", "5", "--resample", "22.05")),
    "quarter rate": (bursts(1.0, rate=RATE), ("-b", "32", "--resample", "11.025")),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        name: lame(folder, f"{number}.mp3", samples, *options, rate=RATE)
        for number, (name, (samples, options)) in enumerate(PARTS.items())
    }


def by_ffmpeg(folder: Path, content: bytes) -> np.ndarray:
    path = folder / "by_ffmpeg.mp3"
    path.write_bytes(content)
    return decoded_by_ffmpeg(path)[0].mean(axis=1)


def assert_is(path: Path, content: bytes, expected: np.ndarray) -> None:
    """Compare with samples of ffmpeg, an independent decoder, to float32 rounding of both."""
    path.write_bytes(content)
    whole = read_whole(path)
    assert len(whole) == len(expected)
    np.testing.assert_allclose(whole, expected, atol=5e-6)


@pytest.mark.parametrize("name", PARTS)
def test_one_stream(name, parts, tmp_path):
    assert_is(tmp_path / "a.mp3", parts[name], by_ffmpeg(tmp_path, parts[name]))


@pytest.mark.parametrize(
    ("names", "between"),
    [
        (("first", "second"), b""),
        (("first", "variable"), b""),
        (("variable", "average", "second"), b""),
        (("short", "first", "short"), b""),
        (("checked", "first"), b""),
        (("no header", "first"), b""),
        (("variable, no header", "variable"), b""),
        (("mono", "mono"), b""),
        (("half rate, no header", "half rate"), b""),
        (("first", "second"), ID3),
        (("first", "variable, no header", "first"), ID3),
        (("first", "second"), PICTURE),
        (("first", "second"), b"not sound at all" * 9),
        *exhaustive(
            (("second", "first"), b""),
            (("first", "first"), b""),
            (("half rate", "half rate"), b""),
            (("quarter rate", "quarter rate"), b""),
            (("first", "second"), ID3 + bytes(9_000)),
            (("first", "second"), b"TAG" + bytes(125)),
            (("first", "second"), bytes(3_000)),
        ),
    ],
)
def test_joined_files_are_read_one_after_the_other(names, between, parts, tmp_path):
    """Each as it is read alone: its delay and padding cut. ffmpeg reads the headers between as sound."""
    expected = np.concatenate([by_ffmpeg(tmp_path, parts[name]) for name in names])
    content = between.join(parts[name] for name in names)
    assert_is(tmp_path / "a.mp3", content, expected)
    assert_is(tmp_path / "b.mp3", ID3 + content + b"TAG" + bytes(125), expected)


@pytest.mark.parametrize(
    "names",
    [
        ("first", "no header"),
        ("first", "variable, no header", "no header"),
        ("variable", "variable, no header"),
        ("no header", "variable, no header"),
        ("half rate", "half rate, no header"),
    ],
)
def test_frames_that_follow_without_a_header_belong_to_the_stream(names, parts, tmp_path):
    """Its padding is cut no more, as it is not the end: as ffmpeg reads it."""
    content = b"".join(parts[name] for name in names)
    assert_is(tmp_path / "a.mp3", content, by_ffmpeg(tmp_path, content))


@pytest.mark.parametrize("other", ["mono", "mono, no header", "half rate", "half rate, no header"])
@pytest.mark.parametrize("first", ["first", "no header"])
def test_parts_of_other_sample_rates_or_channels_are_refused(first, other, parts, tmp_path):
    path = tmp_path / "a.mp3"
    path.write_bytes(parts[first] + parts[other])
    with raises("audio-joined-files", "a.mp3: 2 files", "ffmpeg -i FILE"):
        inspect_audio(path)
    # What the message advises gives the whole.
    ffmpeg("-i", path, tmp_path / "new.flac")
    length = inspect_audio(tmp_path / "new.flac").duration_seconds
    seconds = sum(len(PARTS[name][0]) for name in (first, other)) / RATE
    assert length == pytest.approx(seconds, abs=0.2)


def place_of_info(content: bytes) -> int:
    return min(location for word in (b"Info", b"Xing") if (location := content.find(word)) > 0)


def with_counts(content: bytes, *, frames: float = 1.0, num_bytes: float = 1.0) -> bytes:
    """Return an MP3 whose header counts other shares of its frames and bytes."""
    location = place_of_info(content)
    counts = struct.unpack_from(">2I", content, location + 8)
    changed = bytearray(content)
    struct.pack_into(
        ">2I", changed, location + 8, int(frames * counts[0]), int(num_bytes * counts[1])
    )
    return bytes(changed)


COUNTED = ("first", "variable", "half rate", "mono")


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize(
    ("frames", "num_bytes"), [(0, 1), (0, 0.1), (0.3, 1), (0.5, 0.5), (0.9, 0.9)]
)
def test_a_header_that_counts_fewer_frames(name, frames, num_bytes, parts, tmp_path):
    content = with_counts(parts[name], frames=frames, num_bytes=num_bytes)
    expected = by_ffmpeg(tmp_path, parts[name])
    (tmp_path / "a.mp3").write_bytes(content)
    whole = read_whole(tmp_path / "a.mp3")
    # The padding at the end is not cut, as a header that counts wrongly may be of another end.
    assert 0 <= len(whole) - len(expected) <= 2 * 1152
    np.testing.assert_allclose(whole[: len(expected)], expected, atol=5e-6)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_a_header_that_counts_other_bytes_alone(name, share, parts, tmp_path):
    content = with_counts(parts[name], num_bytes=share)
    assert_is(tmp_path / "a.mp3", content, by_ffmpeg(tmp_path, parts[name]))


@pytest.mark.parametrize("name", COUNTED)
def test_a_header_that_counts_more_frames_is_refused(name, parts, tmp_path):
    (tmp_path / "a.mp3").write_bytes(with_counts(parts[name], frames=1.5))
    with raises("audio-truncated", "a.mp3: "):
        inspect_audio(tmp_path / "a.mp3")


@pytest.mark.parametrize("flags", [0, 1, 2, 4, 5])
def test_a_header_that_leaves_counts_out(flags, parts, tmp_path):
    content = bytearray(parts["variable"])
    content[place_of_info(content) + 7] = flags
    path = tmp_path / "a.mp3"
    path.write_bytes(bytes(content) * 2)
    whole = read_whole(path)
    assert len(whole) >= 2 * len(by_ffmpeg(tmp_path, parts["variable"]))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("times", [1, 2])
def test_the_header_of_fraunhofer(share, times, parts, tmp_path):
    """No free encoder writes VBRI: one is put in place of lame's."""
    content = bytearray(parts["variable"])
    location = place_of_info(content)
    frames, num_bytes = struct.unpack_from(">2I", content, location + 8)
    length = 4 + 32 + 140
    header = struct.pack(
        ">4sHHHII", b"VBRI", 1, 1105, 75, int(share * num_bytes), int(share * frames)
    )
    content[4:36] = bytes(32)
    content[36:length] = header.ljust(140, b"\0")
    one = bytes(content)
    bare = one[len_of_first_frame(parts["variable"]) :]
    expected = np.concatenate([by_ffmpeg(tmp_path, bare)] * times)
    assert_is(tmp_path / "a.mp3", one * times, expected)


def len_of_first_frame(content: bytes) -> int:
    """Return where the second frame begins: one word of each header is the same."""
    return content.index(content[:2], place_of_info(content) + 150)


PADDED = [("first", 1), ("first", 4_096), ("first", 2_000_000)]
PADDED += [(name, 9_000) for name in ("variable", "no header", "half rate")]
SIZES = (1, 100, 4_000, 4_096, 9_000, 70_000, 2_000_000)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *PADDED,
        *(
            pytest.param(*one, marks=pytest.mark.exhaustive)
            for one in product(("first", "variable", "no header", "half rate"), SIZES)
            if one not in PADDED
        ),
    ],
)
def test_padding_before_the_first_frame(name, size, parts, tmp_path):
    expected = by_ffmpeg(tmp_path, parts[name])
    for number, before in enumerate((ID3, b"", PICTURE)):
        content = before + bytes(size) + parts[name]
        assert_is(tmp_path / f"{number}.mp3", content, expected)
        assert_is(tmp_path / f"{number}", content, expected)


def test_junk_before_the_first_frame(parts, tmp_path):
    expected = by_ffmpeg(tmp_path, parts["first"])
    for number, junk in enumerate((b"\xff\xfb\x90\x64 and words", parts["second"][-300:])):
        assert_is(tmp_path / f"{number}.mp3", junk + parts["first"], expected)


@pytest.mark.parametrize("share", [0.01, 0.6, *exhaustive(0.001, 0.3, 0.9)])
@pytest.mark.parametrize(
    "names", [("first",), ("variable",), ("first", "second"), ("mono", "mono")]
)
def test_a_stream_that_was_cut_is_refused(names, share, parts, tmp_path):
    before = b"".join(parts[name] for name in names[:-1])
    last = parts[names[-1]]
    path = tmp_path / "a.mp3"
    path.write_bytes(before + last[: max(500, int(share * len(last)))])
    for read in (inspect_audio, lambda path: read_audio(path, sample_rate=RATE)):
        with raises("audio-truncated", "a.mp3: "):
            read(path)


def test_a_hole_is_named(parts, tmp_path):
    content = parts["no header"]
    path = tmp_path / "a.mp3"
    for hole in (bytes(60_000), np.random.default_rng(0).bytes(60_000)):
        path.write_bytes(content[:10_000] + hole + content[10_000:])
        with raises("audio-damaged", "a.mp3: ") as raised:
            inspect_audio(path)
        assert re.search(r" 0\.\d+ s .* 6\d{4} bytes", str(raised.value))


def overwritten(content: bytes, start: int, other: bytes) -> bytes:
    """Return bytes of which some are replaced."""
    return content[:start] + other + content[start + len(other) :]


NOISE = np.random.default_rng(0).bytes(5_000)
DAMAGE = {
    "hole": lambda content, at: content[:at] + content[at + 1_999 :],
    "small hole": lambda content, at: content[:at] + content[at + 13 :],
    "large hole": lambda content, at: content[:at] + content[at + 7_001 :],
    "three holes": lambda content, at: b"".join(
        content[start + 999 : start + at // 2] for start in range(-999, len(content), at // 2)
    ),
    "noise": lambda content, at: overwritten(content, at, NOISE),
    "zeros": lambda content, at: overwritten(content, at, bytes(3_000)),
    "frame header": lambda content, at: overwritten(
        content, content.index(content[:2], at), bytes(1)
    ),
    "bit rate": lambda content, at: overwritten(
        content, content.index(content[:2], at) + 2, bytes([content[2] ^ 0x30])
    ),
    "more bytes": lambda content, at: content[:at] + NOISE[:1_000] + content[at:],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["first", "no header", *exhaustive("variable", "checked", "mp2")])
def test_frames_that_continue_after_a_gap_are_refused(name, damage, parts, tmp_path):
    """A decoder passes over the gap, and all that follows is too early."""
    content = mp2(tmp_path) if name == "mp2" else parts[name]
    damaged = DAMAGE[damage](content, len(content) // 2)
    path = tmp_path / "a.mp3"
    # Short, and so long that the share of the hole is small.
    for changed in (damaged, damaged + content * 12, content * 12 + damaged):
        path.write_bytes(changed)
        for read in (
            inspect_audio,
            partial(read_audio, sample_rate=RATE),
            partial(read_excerpt, sample_rate=RATE, start_sample=100, num_samples=100),
        ):
            with raises("audio-damaged", "a.mp3: "):
                read(path)


@pytest.mark.parametrize("num_frames", [1, 2, 10])
@pytest.mark.parametrize("name", COUNTED)
def test_a_header_that_counts_frames_that_are_missing_without_a_gap(
    name, num_frames, parts, tmp_path
):
    """One frame less moves the sound behind it by 26 ms."""
    content = parts[name]
    frames = frame_starts(content)
    middle = len(frames) // 2
    path = tmp_path / "a.mp3"
    path.write_bytes(content[: frames[middle]] + content[frames[middle + num_frames] :])
    with raises("audio-truncated", f"promises {len(frames) - 1} frames"):
        inspect_audio(path)


def frame_starts(content: bytes) -> list[int]:
    """Return the offset of each frame of an MP3 that starts with one."""
    starts = [0]
    while (frame := parse_frame(content[starts[-1] : starts[-1] + 4])) is not None:
        starts.append(starts[-1] + frame.num_bytes)
    return starts[:-1]


APE_ITEMS = struct.pack("<2I", 900, 2) + b"Cover\0" + bytes(range(1, 226)) * 4
APE_FOOTER = b"APETAGEX" + struct.pack("<4I8x", 2000, len(APE_ITEMS) + 32, 1, 0)


@pytest.mark.parametrize(
    "between",
    [
        b"",
        ID3,
        ID3 + bytes(2_000),
        b"TAG" + bytes(125),
        b"TAG" + b"x" * 125 + PICTURE,
        APE_ITEMS + APE_FOOTER,
        APE_ITEMS + APE_FOOTER + b"TAG" + b"x" * 125 + ID3,
    ],
    ids=["nothing", "ID3v2", "padded", "ID3v1", "ID3v1, ID3v2", "APEv2", "APEv2, ID3v1, ID3v2"],
)
@pytest.mark.parametrize("name", ["no header", *exhaustive("first", "variable, no header")])
def test_frames_without_a_header_behind_tags_are_read(name, between, parts, tmp_path):
    """As one stream, unless those before are a file whose header counts them."""
    second = parts["no header"]
    if between and name == "first":
        expected = np.concatenate([by_ffmpeg(tmp_path, parts[name]), by_ffmpeg(tmp_path, second)])
    else:
        expected = by_ffmpeg(tmp_path, parts[name] + second)
    assert_is(tmp_path / "a.mp3", parts[name] + between + second, expected)


INNER_TAGS = {
    "ID3v2": ID3,
    "ID3v1": b"TAG" + b"x" * 125,
    "APEv2": APE_ITEMS + APE_FOOTER,
    "ID3v1, ID3v2": b"TAG" + b"x" * 125 + PICTURE,
}


@pytest.mark.parametrize("tag", INNER_TAGS)
@pytest.mark.parametrize(
    "name",
    [
        *("no header", "variable, no header", "variable", "mp2"),
        *exhaustive("first", "half rate", "half rate, no header", "mono, no header", "checked"),
    ],
)
def test_tags_between_frames_of_one_stream_are_left_out(name, tag, parts, tmp_path):
    """Frames use bits of those before the tag: decoded without these they are noise."""
    content = mp2(tmp_path) if name == "mp2" else parts[name]
    starts = frame_starts(content)
    tolerance = 1e-4 if name == "mp2" else 5e-6
    expected = by_ffmpeg(tmp_path, content)
    for number, places in enumerate(((0.5,), (0.2, 0.6, 0.85))):
        tagged = content
        for place in reversed(places):
            at = starts[int(place * len(starts))]
            tagged = tagged[:at] + INNER_TAGS[tag] + tagged[at:]
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(tagged)
        whole = read_whole(path)
        assert len(whole) == len(expected)
        np.testing.assert_allclose(whole, expected, atol=tolerance)
        path.write_bytes(ID3 + tagged + tagged)
        if "header" in name or name == "mp2":
            expected_twice = by_ffmpeg(tmp_path, content + content)
        else:
            expected_twice = np.concatenate([expected, expected])
        np.testing.assert_allclose(read_whole(path), expected_twice, atol=tolerance)


def mp2(folder: Path) -> bytes:
    """Return a file of layer 2."""
    soundfile.write(folder / "a.wav", bursts(1.0, rate=RATE), RATE)
    ffmpeg("-i", folder / "a.wav", "-b:a", "192k", folder / "a.mp2")
    return (folder / "a.mp2").read_bytes()


@pytest.mark.parametrize("times", [1, 3])
def test_layer_2_has_no_header(times, tmp_path):
    content = mp2(tmp_path) * times
    (tmp_path / "b.mp2").write_bytes(content)
    whole = read_whole(tmp_path / "b.mp2")
    expected = by_ffmpeg(tmp_path, content)
    assert len(whole) == len(expected)
    np.testing.assert_allclose(whole, expected, atol=1e-4)  # ffmpeg rounds layer 2 to 16 bits


def test_a_free_bit_rate_is_refused(tmp_path):
    content = lame(tmp_path, "a.mp3", bursts(1.0, rate=RATE), "--freeformat", "-b", "400")
    (tmp_path / "a.mp3").write_bytes(content * 2)
    with raises("audio-unsupported-format", "a.mp3: "):
        inspect_audio(tmp_path / "a.mp3")
