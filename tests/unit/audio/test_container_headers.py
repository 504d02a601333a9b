"""Headers that state less, more or nothing; joined files; junk: whole and exact, or refused by name."""

import io
import os
import shutil
import struct
import subprocess
from functools import partial

import numpy as np
import pytest
import soundfile
from support.encoded_audio import (
    RATE,
    bursts,
    encoded,
    ffmpeg,
    mean_of,
    needs,
    ogg_pages,
    read_whole,
    run,
    shifted_ogg,
)
from support.matrix import exhaustive
from support.messages import raises

from m2v_finetune.audio.decode import inspect_audio, read_audio, read_excerpt
from m2v_finetune.audio.sounds.libsndfile import LibsndfileSound
from m2v_finetune.errors import AudioError

MONO = bursts(channels=1)

# What libsndfile writes, by the name of the case.
FILES = {
    "wav": encoded("WAV", "PCM_16"),
    "wav-u8": encoded("WAV", "PCM_U8"),
    "wav-24-bit": encoded("WAV", "PCM_24"),
    "wav-float": encoded("WAV", "FLOAT"),
    "wav-ulaw": encoded("WAV", "ULAW"),
    "wav-ima-adpcm": encoded("WAV", "IMA_ADPCM"),
    "wav-ms-adpcm": encoded("WAV", "MS_ADPCM"),
    "wav-gsm": encoded("WAV", "GSM610", MONO),
    "wav-g721": encoded("WAV", "G721_32", MONO),
    "wav-extensible": encoded("WAVEX", "PCM_16"),
    "rf64": encoded("RF64", "PCM_16"),
    "w64": encoded("W64", "PCM_16"),
    "w64-gsm": encoded("W64", "GSM610", MONO),
    "aiff": encoded("AIFF", "PCM_16"),
    "aifc-float": encoded("AIFF", "FLOAT"),
    "aifc-gsm": encoded("AIFF", "GSM610", MONO),
    "aifc-dwvw": encoded("AIFF", "DWVW_16", MONO),
    "caf": encoded("CAF", "PCM_24"),
    "caf-alac": encoded("CAF", "ALAC_16"),
    "au": encoded("AU", "PCM_16"),
    "au-g721": encoded("AU", "G721_32", MONO),
    "au-g723": encoded("AU", "G723_40", MONO),
    "nist": encoded("NIST", "PCM_16"),
    "flac": encoded("FLAC", "PCM_16"),
    "flac-24-bit": encoded("FLAC", "PCM_24", bursts(3.0)),
    "vorbis": encoded("OGG", "VORBIS"),
    "opus": encoded("OGG", "OPUS"),
    "mp3": encoded("MP3"),
}
JUNK_TAG = b"ID3\x04\x00\x00" + bytes([0, 0, 8, 0]) + bytes(1024)
JUNK = np.random.default_rng(5).bytes(40_000)


def ape_tag(num_bytes: int) -> bytes:
    """Return an APEv2 tag with header and footer around an item."""
    value = bytes(range(1, 251)) * (num_bytes // 250)
    item = struct.pack("<2I", len(value), 2) + b"Cover\0" + value
    ends = [
        b"APETAGEX" + struct.pack("<4I8x", 2000, len(item) + 32, 1, flags)
        for flags in (0xA0000000, 0x80000000)
    ]
    return ends[0] + item + ends[1]


# Where each container states the bytes of its samples: what precedes it, its format, what it counts besides.
SIZES = {
    "wav": (b"data", "<I", 0),
    "wav-u8": (b"data", "<I", 0),
    "wav-24-bit": (b"data", "<I", 0),
    "wav-float": (b"data", "<I", 0),
    "wav-ulaw": (b"data", "<I", 0),
    "wav-ima-adpcm": (b"data", "<I", 0),
    "wav-gsm": (b"data", "<I", 0),
    "wav-g721": (b"data", "<I", 0),
    "wav-extensible": (b"data", "<I", 0),
    "w64": (bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), "<Q", 24),
    "aiff": (b"SSND", ">I", 8),
    "aifc-float": (b"SSND", ">I", 8),
    "caf": (b"data", ">Q", 4),
    "au": (b".snd\x00\x00\x00\x18", ">I", 0),
    "au-g721": (b".snd\x00\x00\x00\x18", ">I", 0),
}
CUT = ("audio-truncated", "audio-damaged", "audio-unreadable")
"""Codes of a file whose end is not there: at a frame, within one, within the header."""
UNKNOWN_32 = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x7F000000, 0x80000000, 0xFFFFFFFF - 36)
UNKNOWN_64 = (0, 2**64 - 1, 2**63 - 1)


def offset_of_size(name: str) -> int:
    marker = SIZES[name][0]
    return FILES[name].index(marker) + len(marker)


def with_size(name: str, size: int) -> bytes:
    content = bytearray(FILES[name])
    struct.pack_into(SIZES[name][1], content, offset_of_size(name), size)
    return bytes(content)


def stated(name: str) -> int:
    (size,) = struct.unpack_from(SIZES[name][1], FILES[name], offset_of_size(name))
    return size


def assert_whole(path, content: bytes, expected: np.ndarray) -> None:
    path.write_bytes(content)
    whole = read_whole(path)
    assert len(whole) == len(expected)
    np.testing.assert_allclose(whole, expected, atol=2e-6)


def assert_refused(path, content: bytes, *codes: str) -> None:
    """Assert that both ways of reading refuse a file, with one of these codes."""
    path.write_bytes(content)
    reads = (
        inspect_audio,
        lambda path: read_audio(path, sample_rate=16_000),
    )
    for read in reads:
        with pytest.raises(AudioError) as caught:
            read(path)
        assert caught.value.code in codes, caught.value
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_untouched(name, tmp_path):
    assert_whole(tmp_path / "a", FILES[name], mean_of(FILES[name]))


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("name", FILES)
def test_the_same_file_several_times(name, times, tmp_path):
    """`cat a a`: equal headers, equal stream numbers, equal counts."""
    expected = np.concatenate([mean_of(FILES[name])] * times)
    assert_whole(tmp_path / "a", FILES[name] * times, expected)


@pytest.mark.parametrize("seconds", [0.3, 2.5])
@pytest.mark.parametrize("name", FILES)
def test_joined_with_another_one(name, seconds, tmp_path):
    layout = soundfile.info(io.BytesIO(FILES[name]))
    second = encoded(
        layout.format, layout.subtype, bursts(seconds, channels=layout.channels, seed=3)
    )
    expected = np.concatenate([mean_of(FILES[name]), mean_of(second)])
    assert_whole(tmp_path / "a", FILES[name] + second, expected)
    assert_whole(tmp_path / "b", second + FILES[name], np.roll(expected, len(mean_of(second))))


@pytest.mark.parametrize(
    "junk",
    [
        b"TAG" + bytes(125),
        ape_tag(2_000),
        bytes(9_000),
        bytes(200_000),
    ],
    ids=["ID3v1", "APEv2", "zeros", "many zeros"],
)
@pytest.mark.parametrize("name", FILES)
def test_junk_behind_is_no_sound(name, junk, tmp_path):
    assert_whole(tmp_path / "a", FILES[name] + junk, mean_of(FILES[name]))


@pytest.mark.parametrize("size", [64, 3_000, 100_000])
@pytest.mark.parametrize("name", FILES)
def test_a_tag_before_is_no_sound(name, size, tmp_path):
    tag = b"ID3\x04\x00\x00" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    assert_whole(tmp_path / "a", tag + FILES[name], mean_of(FILES[name]))
    assert_whole(tmp_path / "b", tag + bytes(9_000) + FILES[name], mean_of(FILES[name]))


@pytest.mark.parametrize("name", [name for name in FILES if name != "mp3"])
def test_a_file_that_was_cut_is_refused(name, tmp_path):
    content = FILES[name]
    assert_refused(tmp_path / "a", content[: len(content) * 2 // 3], *CUT)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_a_pipe_states_is_no_promise(name, tmp_path):
    unknown = UNKNOWN_64 if SIZES[name][1].endswith("Q") else UNKNOWN_32
    for number, size in enumerate(unknown):
        path = tmp_path / str(number)
        assert_whole(path, with_size(name, size), mean_of(FILES[name]))


@pytest.mark.parametrize("name", SIZES)
def test_a_size_of_nothing_but_what_it_counts_besides(name, tmp_path):
    assert_whole(tmp_path / "a", with_size(name, SIZES[name][2]), mean_of(FILES[name]))


@pytest.mark.parametrize("name", SIZES)
def test_a_size_below_what_is_there_is_refused(name, tmp_path):
    size = stated(name) // 2 // 8 * 8
    assert_refused(tmp_path / "a", with_size(name, size), "audio-trailing-data")


@pytest.mark.parametrize("name", SIZES)
def test_a_size_above_what_is_there_is_refused(name, tmp_path):
    assert_refused(tmp_path / "a", with_size(name, 2 * stated(name)), *CUT)


@pytest.mark.parametrize("size", [0, 8, 1000, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize(
    ("name", "form"), [("wav", "<I"), ("aiff", ">I"), ("wav-extensible", "<I")]
)
def test_the_size_of_the_whole_file_does_not_matter(name, form, size, tmp_path):
    content = bytearray(FILES[name])
    struct.pack_into(form, content, 4, size)
    assert_whole(tmp_path / "a", bytes(content), mean_of(FILES[name]))


@pytest.mark.parametrize("frames", [0, 100, 10**6])
def test_the_frames_that_aiff_states_do_not_matter(frames, tmp_path):
    content = bytearray(FILES["aiff"])
    struct.pack_into(">I", content, content.index(b"COMM") + 10, frames)
    assert_whole(tmp_path / "a", bytes(content), mean_of(FILES["aiff"]))


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1])
def test_an_rf64_that_states_no_size(size, tmp_path):
    content = bytearray(FILES["rf64"])
    struct.pack_into("<Q", content, content.index(b"ds64") + 16, size)
    assert_whole(tmp_path / "a", bytes(content), mean_of(FILES["rf64"]))


@pytest.mark.parametrize(
    ("size", "code"), [(1000, "audio-trailing-data"), (10**6, "audio-truncated")]
)
def test_an_rf64_that_states_another_size_is_refused(size, code, tmp_path):
    content = bytearray(FILES["rf64"])
    struct.pack_into("<Q", content, content.index(b"ds64") + 16, size)
    assert_refused(tmp_path / "a", bytes(content), code)


def test_bw64_is_read_as_rf64(tmp_path):
    content = b"BW64" + FILES["rf64"][4:]
    assert_whole(tmp_path / "a", content, mean_of(FILES["rf64"]))


def test_chunks_behind_the_samples_are_no_sound(tmp_path):
    """Of W64, libsndfile itself takes them for samples."""
    chunk = b"LIST" + struct.pack("<I", 20_000) + JUNK[:20_000]
    assert_whole(tmp_path / "a", FILES["wav"] + chunk, mean_of(FILES["wav"]))
    guid = b"levl" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
    aligned = FILES["w64"] + bytes(-len(FILES["w64"]) % 8)
    chunk = guid + struct.pack("<Q", 20_024) + JUNK[:20_000]
    assert_whole(tmp_path / "b", aligned + chunk, mean_of(FILES["w64"]))


@pytest.mark.parametrize("name", ["wav", "wav-float", "wav-extensible", "aiff", "w64", "caf"])
def test_a_second_chunk_of_samples_is_named(name, tmp_path):
    """libsndfile reports an internal error; others read the first alone."""
    content = FILES[name]
    marker, _, _ = SIZES[name]
    path = tmp_path / "a"
    path.write_bytes(content + content[content.index(marker) :])
    with raises("audio-two-data-chunks", path, len(content)):
        inspect_audio(path)


def test_unknown_bytes_behind_the_samples_are_refused(tmp_path):
    for name in ("wav", "aiff", "w64", "au", "caf", "nist"):
        assert_refused(tmp_path / name, FILES[name] + JUNK, "audio-trailing-data")


@pytest.mark.parametrize(
    "chunk",
    [
        b"LIST" + struct.pack("<I", 200) + JUNK[:200],
        b"id3 " + struct.pack("<I", 0x2020) + JUNK[:0x2020],
        b"bext" + struct.pack("<I", 3) + b"abc" + b"LIST" + struct.pack("<I", 4) + b"INFO",
    ],
    ids=["LIST", "id3", "two"],
)
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAVEX", "ULAW"), ("AIFF", "PCM_24")],
)
def test_a_chunk_without_the_byte_that_aligns_it(kind, subtype, chunk, tmp_path):
    content = encoded(kind, subtype, MONO[:9_001])
    unpadded = content[: len(content) - 1]
    if kind == "AIFF":
        if chunk.startswith(b"bext"):
            return
        chunk = chunk[:4] + chunk[7:3:-1] + chunk[8:]
        place = unpadded.index(b"SSND") + 4  # libsndfile counts the byte that aligns as a sample's
        size = struct.pack(">I", len(unpadded) - place - 4)
        unpadded = unpadded[:place] + size + unpadded[place + 4 :]
    assert_whole(tmp_path / "a", unpadded + chunk, mean_of(content))
    assert_whole(tmp_path / "b", content + chunk, mean_of(content))
    joined = np.concatenate([mean_of(content)] * 2)
    assert_whole(tmp_path / "c", unpadded + chunk + bytes(len(chunk) % 2) + content, joined)


SILENCE = {
    name: encoded(layout.format, layout.subtype, np.zeros((9_000, layout.channels)))
    for name in SIZES
    for layout in [soundfile.info(io.BytesIO(FILES[name]))]
    if layout.subtype in ("PCM_16", "PCM_24", "FLOAT")
}


@pytest.mark.parametrize("name", SILENCE)
def test_silence_of_a_size_that_is_not_known(name, tmp_path):
    """Zeros behind the end that a header states are padding elsewhere."""
    content = SILENCE[name]
    _, form, overhead = SIZES[name]
    for number, size in enumerate((overhead, *(UNKNOWN_64 if form.endswith("Q") else UNKNOWN_32))):
        changed = bytearray(content)
        struct.pack_into(form, changed, offset_of_size(name), size)
        silence = mean_of(content)
        assert_whole(tmp_path / f"{number}", bytes(changed), silence)
        assert_whole(tmp_path / f"{number} tag", bytes(changed) + b"TAG" + bytes(125), silence)
        joined = np.concatenate([silence, mean_of(FILES[name])])
        assert_whole(tmp_path / f"{number} joined", bytes(changed) + FILES[name], joined)


@pytest.mark.parametrize("name", SILENCE)
def test_a_header_alone_has_no_samples(name, tmp_path):
    _, form, overhead = SIZES[name]
    place = offset_of_size(name)
    header = bytearray(SILENCE[name][: place + struct.calcsize(form) + overhead % 16])
    if name == "au":
        header = bytearray(SILENCE[name][:24])
    path = tmp_path / "a"
    for size in (0, overhead):
        struct.pack_into(form, header, place, size)
        path.write_bytes(header)
        with raises("audio-no-samples", path):
            inspect_audio(path)


def sparse_wav(path, *, stated_bytes: int, num_bytes: int, behind: bytes = b""):
    """Write a WAV of silence that takes no room, with sound in its last second."""
    header = bytearray(FILES["wav"][:44])
    struct.pack_into("<I", header, 40, stated_bytes)
    end = encoded("WAV", "PCM_16", bursts(seed=2))[44:]
    with path.open("wb") as file:
        file.write(header)
        os.truncate(path, 44 + num_bytes)
        file.seek(44 + num_bytes - len(end))
        file.write(end + behind)
    return mean_of(bytes(FILES["wav"][:44]) + end)


LIST = b"LIST" + struct.pack("<I", 20_000) + JUNK[:20_000]


def assert_ends_with(path, num_bytes: int, end: np.ndarray) -> None:
    audio = inspect_audio(path)
    assert audio.num_frames == num_bytes // 4
    start = audio.num_frames - len(end)
    last = read_excerpt(path, sample_rate=RATE, start_sample=start, num_samples=len(end))
    np.testing.assert_array_equal(last, end)


@pytest.mark.parametrize(
    "num_bytes",
    [
        *(0x7F000000, 0x7FFFFFFC, 0xFF000000, 0xFFFFFF00),
        *exhaustive(0x7FFFF000, 0x80000000, 0x80000FFC, 0xFFFFFFFC),
        *exhaustive((1 << 32) + 0x7FFFF000),
    ],
)
@pytest.mark.parametrize(
    "behind",
    [LIST, *exhaustive(b"", LIST + b"id3 " + LIST[4:], b"TAG" + bytes(125), JUNK_TAG)],
    ids=["LIST", "nothing", "two", "ID3v1", "ID3v2"],
)
def test_a_size_near_that_of_pipes_that_is_right(behind, num_bytes, tmp_path):
    """Of a recorder that starts another file at 2 or 4 GB."""
    path = tmp_path / "a.wav"
    stated = num_bytes % (1 << 32)
    end = sparse_wav(path, stated_bytes=stated, num_bytes=num_bytes, behind=behind)
    assert_ends_with(path, num_bytes, end)


@pytest.mark.exhaustive
@pytest.mark.parametrize("stated", [0x7FFFF000, 0x7F000000, 0x80000000, 0xFFFFFFFF])
def test_a_pipe_of_more_bytes_than_it_states(stated, tmp_path):
    num_bytes = min(stated, 0x80000000) + 4_000_000
    end = sparse_wav(tmp_path / "a.wav", stated_bytes=stated, num_bytes=num_bytes)
    assert_ends_with(tmp_path / "a.wav", num_bytes, end)


@pytest.mark.parametrize("excess", [0, 1 << 32])
def test_a_wav_above_4_gib_has_a_size_that_wrapped_around(excess, tmp_path):
    num_bytes = (1 << 32) + 4_000_000 + excess
    end = sparse_wav(tmp_path / "a.wav", stated_bytes=4_000_000, num_bytes=num_bytes)
    assert_ends_with(tmp_path / "a.wav", num_bytes, end)


def test_a_wav_of_3_gb_that_was_cut_is_no_pipe(tmp_path):
    """Sizes above 2 GiB are not all of programs that do not know them."""
    sparse_wav(tmp_path / "a.wav", stated_bytes=3_000_000_000, num_bytes=4_000_000)
    with raises("audio-truncated", "a.wav"):
        inspect_audio(tmp_path / "a.wav")


@needs("ffmpeg")
@pytest.mark.parametrize(
    "options",
    [
        ("-f", "wav"),
        ("-f", "wav", "-rf64", "always"),
        ("-f", "wav", "-rf64", "auto"),
        ("-f", "w64"),
        ("-f", "aiff"),
        ("-f", "au"),
        ("-f", "flac"),
        ("-f", "mp3"),
        ("-f", "ogg", "-c:a", "libvorbis"),
        ("-f", "opus"),
        ("-f", "adts"),
        ("-f", "asf"),
        ("-f", "webm", "-c:a", "libopus"),
        ("-f", "matroska", "-c:a", "flac"),
        ("-f", "mp4", "-movflags", "frag_keyframe+empty_moov"),
    ],
    ids=" ".join,
)
def test_what_ffmpeg_writes_to_a_pipe(options, tmp_path):
    (tmp_path / "source.wav").write_bytes(FILES["wav"])
    (tmp_path / "piped").write_bytes(ffmpeg("-i", tmp_path / "source.wav", *options, "pipe:1"))
    audio = inspect_audio(tmp_path / "piped")
    seconds = audio.num_frames / audio.sample_rate
    assert seconds == pytest.approx(1.0, abs=0.15)
    whole = read_whole(tmp_path / "piped")
    if options[1] in ("wav", "w64", "aiff", "au", "flac", "matroska"):
        np.testing.assert_allclose(whole, mean_of(FILES["wav"]), atol=2e-6)


@needs("sox")
@pytest.mark.parametrize("kind", ["wav", "aiff", "aifc", "au", "w64", "sph", "flac", "ogg"])
def test_what_sox_writes_to_a_pipe(kind, tmp_path):
    """Its W64 has its header three times: twice before the samples, and after them."""
    (tmp_path / "source.wav").write_bytes(FILES["wav"])
    (tmp_path / "piped").write_bytes(run("sox", tmp_path / "source.wav", "-t", kind, "-"))
    whole = read_whole(tmp_path / "piped")
    tolerance = 0.2 if kind == "ogg" else 2e-6
    np.testing.assert_allclose(whole, mean_of(FILES["wav"]), atol=tolerance)


@needs("sox")
@pytest.mark.parametrize("name", ["wav", "aiff", "au"])
def test_the_remedy_for_a_size_that_is_too_small(name, tmp_path):
    """The message names sox --ignore-length."""
    path = tmp_path / f"a.{name}"
    path.write_bytes(with_size(name, 1000))
    with raises("audio-trailing-data", "sox --ignore-length FILE NEW.wav"):
        inspect_audio(path)
    run("sox", "--ignore-length", path, tmp_path / "new.wav")
    assert_whole(tmp_path / "b", (tmp_path / "new.wav").read_bytes(), mean_of(FILES[name]))


@pytest.mark.parametrize("times", [1, 2])
def test_flac_that_counts_no_samples_or_too_few(times, tmp_path):
    for name in ("flac", "flac-24-bit"):
        content = FILES[name]
        expected = np.concatenate([mean_of(content)] * times)
        for count in (0, 1, 5_000, len(mean_of(content)) - 1):
            changed = bytearray(content)
            changed[21] &= 0xF0
            changed[22:26] = count.to_bytes(4, "big")
            assert_whole(tmp_path / f"{name} {count}", bytes(changed) * times, expected)


@pytest.mark.parametrize("change", ["lost", "twice", "three twice", "swapped", "none"])
def test_a_flac_frame_that_is_missing_or_there_twice(change, tmp_path):
    """Its position is that of a packet of ffmpeg."""
    if shutil.which("ffprobe") is None:
        pytest.skip("needs ffprobe")
    path = tmp_path / "a.flac"
    whole = encoded("FLAC", "PCM_16", bursts(3.0))
    path.write_bytes(whole)
    listed = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "packet=pos", "-of", "csv=p=0", path],
        capture_output=True,
        text=True,
        check=True,
    )
    a, b, c, d, *_ = (int(line.strip(",")) for line in listed.stdout.split()[1:])
    path.write_bytes(
        {
            "lost": whole[:a] + whole[b:],
            "twice": whole[:b] + whole[a:],
            "three twice": whole[:d] + whole[a:],
            "swapped": whole[:a] + whole[b:c] + whole[a:b] + whole[c:],
            "none": whole,
        }[change]
    )
    if change == "none":
        assert inspect_audio(path).num_frames > 0
        return
    with raises("audio-damaged", path, "FLAC"):
        inspect_audio(path)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 65000, 96000, 192000])
def test_flac_whose_header_has_another_rate_than_its_frames_is_refused(rate, tmp_path):
    samples = bursts(1.0)
    soundfile.write(tmp_path / "a.flac", samples, rate, subtype="PCM_16")
    assert inspect_audio(tmp_path / "a.flac").sample_rate == rate
    changed = bytearray((tmp_path / "a.flac").read_bytes())
    changed[18] ^= 0x10  # of the 20 bits of the rate
    (tmp_path / "a.flac").write_bytes(changed)
    with raises("audio-damaged", f"{rate} Hz"):
        inspect_audio(tmp_path / "a.flac")


def test_flac_that_counts_too_many_samples_is_refused(tmp_path):
    changed = bytearray(FILES["flac"])
    changed[22:26] = (50_000).to_bytes(4, "big")
    assert_refused(tmp_path / "a", bytes(changed), *CUT)


NO_COUNT = bytearray(FILES["flac"])
NO_COUNT[21] &= 0xF0
NO_COUNT[22:26] = bytes(4)
FLACS = {
    "plain": FILES["flac"],
    "24 bit": FILES["flac-24-bit"],
    "no count": bytes(NO_COUNT),
    "joined": FILES["flac"] * 2,
    "silent": encoded("FLAC", "PCM_16", np.zeros((9_001, 2))),
    "odd length": encoded("FLAC", "PCM_16", bursts(8.0)[:100_003]),
    "6 channels": encoded("FLAC", "PCM_16", bursts(channels=6)),
}


@pytest.mark.parametrize("num_bytes", [9, 100, 5_000, 70_000])
@pytest.mark.parametrize("name", FLACS)
def test_unknown_bytes_behind_flac_are_refused(name, num_bytes, tmp_path):
    path = tmp_path / "a"
    junk = b"\x55" + JUNK[: num_bytes - 2].ljust(num_bytes - 2, b"x") + b"\x55"
    for content in (junk, junk + b"TAG" + bytes(125)):
        path.write_bytes(FLACS[name] + content)
        with raises("audio-trailing-data", path, "FLAC"):
            inspect_audio(path)
    path.write_bytes(FLACS[name])
    whole = read_whole(path)
    for content in (junk[:8], b"TAG" + b"x" * 125, bytes(9_000)):
        assert_whole(path, FLACS[name] + content, whole)


@needs("ffmpeg")
@pytest.mark.parametrize("share", [0.1, 2 / 3, 0.9])
@pytest.mark.parametrize("name", ["24 bit", "odd length", "joined"])
def test_flac_that_was_cut_is_named_with_what_can_be_decoded(name, share, tmp_path):
    before = FILES["flac"] if name == "joined" else b""
    content = FILES["flac-24-bit"] if name == "joined" else FLACS[name]
    path = tmp_path / "a.flac"
    path.write_bytes(content[: int(share * len(content))])
    decoder = subprocess.run(
        ["ffmpeg", "-v", "quiet", "-i", path, "-f", "s32le", "-"], capture_output=True, check=False
    )
    seconds = len(decoder.stdout) / 8 / RATE
    promised = len(mean_of(content)) / RATE
    path.write_bytes(before + path.read_bytes())
    with raises("audio-truncated", path, f"promises {promised:.2f} s", f"at {seconds:.2f} s"):
        inspect_audio(path)


def test_flac_of_silence_behind_sound_of_the_same_length(tmp_path):
    """Nothing in either header, and no count at the end, tells of the other."""
    for seconds in (1.0, 20.0):
        loud = encoded("FLAC", "PCM_16", bursts(seconds))
        silent = encoded("FLAC", "PCM_16", np.zeros_like(bursts(seconds)))
        for first, second in ((loud, silent), (silent, loud)):
            expected = np.concatenate([mean_of(first), mean_of(second)])
            assert_whole(tmp_path / "a", first + second, expected)


@pytest.mark.parametrize("name", ["vorbis", "opus"])
def test_ogg_streams_that_were_recorded_from_the_middle(name, tmp_path):
    """Positions of a radio stream do not begin at zero; then Vorbis keeps the block that it begins in."""
    content = shifted_ogg(FILES[name], 480_000)
    (tmp_path / "a").write_bytes(content)
    whole = read_whole(tmp_path / "a")
    expected = mean_of(FILES[name])
    excess = len(whole) - len(expected)
    assert 0 <= excess <= (1_024 if name == "vorbis" else 0)
    np.testing.assert_allclose(whole[excess + 2_000 :], expected[2_000:], atol=1e-5)
    joined = np.concatenate([whole, mean_of(FILES[name])])
    assert_whole(tmp_path / "b", content + FILES[name], joined)


def test_ogg_without_its_first_page_is_refused(tmp_path):
    content = FILES["vorbis"]
    second = content.index(b"OggS", 4)
    assert_refused(tmp_path / "a", content[second:], "audio-damaged")
    third = content.index(b"OggS", second + 4)
    assert_refused(tmp_path / "b", content[third:] + content, "audio-damaged")


def flipped(content: bytes, location: int) -> bytes:
    """Return bytes of which one is inverted."""
    changed = bytearray(content)
    changed[location] ^= 0xFF
    return bytes(changed)


# Pages of an Ogg file, with the middle one damaged in one way.
OGG_DAMAGE = {
    "byte of sound": lambda pages, at: [*pages[:at], flipped(pages[at], 900), *pages[at + 1 :]],
    "byte of a position": lambda pages, at: [*pages[:at], flipped(pages[at], 7), *pages[at + 1 :]],
    "byte of a length": lambda pages, at: [*pages[:at], flipped(pages[at], 30), *pages[at + 1 :]],
    "lost page": lambda pages, at: [*pages[:at], *pages[at + 1 :]],
    "lost first page of sound": lambda pages, _: [*pages[:2], *pages[3:]],
    "lost pages": lambda pages, at: [*pages[:at], *pages[at + 2 :]],
    "page twice": lambda pages, at: [*pages[:at], pages[at], *pages[at:]],
    "pages in another order": lambda pages, at: [
        *pages[:at],
        pages[at + 1],
        pages[at],
        *pages[at + 2 :],
    ],
    "zeros": lambda pages, at: [*pages[:at], bytes(len(pages[at])), *pages[at + 1 :]],
    "hole": lambda pages, at: [*pages[:at], pages[at][:1000], pages[at][3000:], *pages[at + 1 :]],
    "junk between pages": lambda pages, at: [*pages[:at], b"junk", *pages[at:]],
}


@pytest.mark.parametrize("damage", OGG_DAMAGE)
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_with_a_damaged_or_missing_page_is_refused(subtype, damage, tmp_path):
    """libsndfile moves the sound behind it towards the start, and reports nothing."""
    content = encoded("OGG", subtype, bursts(8.0))
    pages = ogg_pages(content)
    assert len(pages) >= 6
    damaged = b"".join(OGG_DAMAGE[damage](pages, len(pages) // 2))
    path = tmp_path / "a"
    for changed in (damaged, damaged + content, content + damaged, JUNK_TAG + damaged):
        path.write_bytes(changed)
        for read in (
            inspect_audio,
            partial(read_audio, sample_rate=RATE),
            partial(read_excerpt, sample_rate=RATE, start_sample=10 * RATE, num_samples=100),
        ):
            with raises("audio-damaged", path, "Ogg"):
                read(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_cut_ogg_stream_before_another_is_refused(subtype, tmp_path):
    content = encoded("OGG", subtype, bursts(8.0))
    path = tmp_path / "a"
    for first in (b"".join(ogg_pages(content)[:-1]), content[: len(content) // 2]):
        path.write_bytes(first + content)
        with raises("audio-damaged", path, "Ogg"):
            inspect_audio(path)


@pytest.mark.parametrize("num_missing", [1, 40_000, 100_000])
def test_a_decoder_that_ends_early_is_no_shorter_sound(num_missing, tmp_path, monkeypatch):
    """Whatever the container: at the tail all is there, and from the start it is not."""
    path = tmp_path / "a"
    path.write_bytes(encoded("WAV", "PCM_16", bursts(8.0)))
    whole = inspect_audio(path)
    read = LibsndfileSound.read

    def read_less(sound: LibsndfileSound, start: int, stop: int) -> np.ndarray:
        frames = read(sound, start, stop)
        return frames if start > 0 else frames[: whole.num_frames - num_missing]

    monkeypatch.setattr(LibsndfileSound, "read", read_less)
    with raises("audio-truncated", path):
        read_audio(path, sample_rate=RATE)
    with raises("audio-truncated", path):
        read_excerpt(path, sample_rate=RATE, start_sample=0, num_samples=whole.num_frames)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", ["wav", "mp3", "vorbis"])
def test_the_tail_is_decoded_once_to_inspect_a_file(name, times, tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(FILES[name] * times)
    calls = []
    read = LibsndfileSound.read
    monkeypatch.setattr(
        LibsndfileSound, "read", lambda *arguments: calls.append(arguments) or read(*arguments)
    )
    inspect_audio(path)
    assert len(calls) == times


def test_parts_of_other_learning_rates_or_channels_are_refused(tmp_path):
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF"):
        first = encoded(kind)
        for number, other in enumerate(
            (encoded(kind, samples=bursts(channels=1)), encoded(kind, rate=22_050))
        ):
            assert_refused(tmp_path / f"{kind} {number}", first + other, "audio-joined-files")


@pytest.mark.parametrize(
    "kind",
    ["AVR", "HTK", "MAT4", "MAT5", "MPC2K", "PAF", "PVF", "SDS", "IRCAM", "VOC", "XI", "SVX"],
)
def test_formats_whose_length_is_not_compared_are_refused(kind, tmp_path):
    """Cut or joined, libsndfile reads them without a word; of VOC it reads the heads of blocks as sound."""
    subtype = "DPCM_16" if kind == "XI" else "PCM_16"
    content = encoded(kind, subtype, MONO)
    assert_refused(tmp_path / "a", content, "audio-unsupported-format")
