"""Audio files whose headers promise less, more or nothing, joined, with junk before, between and behind.

Each ends in the whole sound, equal to the reference, or in an `AudioError` that names the file: never in less
sound, nor in another exception. Sound behind damage in the middle is at its right time, or the file is
refused. Changes are drawn by a seeded generator; ``M2V_FUZZ_INPUTS=10000`` tries that many of each container,
and an input that fails is named with its seed.
"""

import io
import os
import random
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.encoded_audio import ogg_pages, shifted_ogg
from support.matrix import exhaustive

from m2v_finetune.audio.containers.mpeg_frames import parse_frame
from m2v_finetune.audio.decode import inspect_audio, read_audio, read_excerpt
from m2v_finetune.errors import AudioError

NUM_INPUTS = int(os.environ.get("M2V_FUZZ_INPUTS", "0"))
RATE = 16_000
TOLERANCE_FRAMES = (
    2304 + 1024
)  # what a file may lack at its end: two MPEG frames, or those and a block


def sound(seed: int, seconds: float) -> np.ndarray:
    time = np.arange(round(RATE * seconds)) / RATE
    noise = np.random.default_rng(seed).normal(scale=0.1, size=(len(time), 2))
    return 0.3 * np.sin(2 * np.pi * (200 + 70 * seed) * time)[:, None] + noise


def encoded(seed: int, seconds: float, kind: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    samples = sound(seed, seconds)
    if subtype in ("GSM610", "G721_32"):
        samples = samples[:, :1]
    soundfile.write(buffer, samples, RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


def reference(content: bytes) -> np.ndarray:
    with soundfile.SoundFile(io.BytesIO(content)) as opened:
        frames = opened.frames
        if opened.subtype == "GSM610":  # of a byte of padding libsndfile makes a block
            frames = (len(content) - 60) // 65 * 320
        return opened.read(frames, dtype="float32", always_2d=True).mean(axis=1)


@dataclass(frozen=True)
class Kind:
    """A container.

    Attributes:
        format: As libsndfile names it.
        subtype: Of its samples.
        size: Where it states how much there is: what precedes the number, and its format.
        unknown: Numbers that state nothing.
    """

    format: str
    subtype: str
    size: tuple[bytes, str] | None = None
    unknown: tuple[int, ...] = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)


KINDS = {
    "wav": Kind("WAV", "PCM_16", (b"data", "<I")),
    "wav-float": Kind("WAV", "FLOAT", (b"data", "<I")),
    "wav-adpcm": Kind("WAV", "IMA_ADPCM", (b"data", "<I")),
    "wav-gsm": Kind("WAV", "GSM610", (b"data", "<I")),
    "rf64": Kind("RF64", "PCM_16", (b"ds64", "<Q"), (0, 2**64 - 1)),
    "w64": Kind(
        *("W64", "PCM_24"),
        (bytes.fromhex("64617461f3acd3118cd100c04f8edb8a"), "<Q"),
        (0, 2**64 - 1),
    ),
    "aiff": Kind("AIFF", "PCM_16", (b"SSND", ">I")),
    "caf": Kind("CAF", "PCM_16", (b"data", ">Q"), (0, 2**64 - 1)),
    "au": Kind("AU", "PCM_16", (b".snd\x00\x00\x00\x18", ">I")),
    "au-g721": Kind("AU", "G721_32", (b".snd\x00\x00\x00\x18", ">I")),
    "flac": Kind("FLAC", "PCM_16"),
    "vorbis": Kind("OGG", "VORBIS"),
    "opus": Kind("OGG", "OPUS"),
    "mp3": Kind("MP3", "MPEG_LAYER_III"),
}


def tag(rng: random.Random) -> bytes:
    """Return something that is no sound: tags, zeros."""
    size = rng.choice([1, 100, 1_000, 9_000, 70_000])
    syncsafe = bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
    return rng.choice(
        [
            b"ID3\x04\x00\x00" + syncsafe + bytes(size),
            b"ID3\x03\x00\x00" + syncsafe + rng.randbytes(size),
            b"TAG" + bytes(125),
            b"APETAGEX" + struct.pack("<4I8x", 2000, size + 32, 1, 0xA0000000) + rng.randbytes(size)
            + b"APETAGEX" + struct.pack("<4I8x", 2000, size + 32, 1, 0x80000000),
            bytes(size),
        ]
    )  # fmt: skip


def junk(rng: random.Random) -> bytes:
    """Return bytes that may be anything: noise, text, pages, headers without sound."""
    size = rng.choice([1, 3, 128, 1_000, 9_000, 70_000])
    return rng.choice(
        [
            rng.randbytes(size),
            b"<html>not found</html>" * (size // 20),
            b"\xff\xfb\x90\x64" * (size // 4),
            b"fLaC" + rng.randbytes(size),
            b"RIFF\xff\xff\xff\xffWAVE" + rng.randbytes(size),
            b"OggS\x00\x02" + rng.randbytes(size),
            tag(rng),
        ]
    )


def with_other_size(
    content: bytes, kind: Kind, rng: random.Random, *, only_less: bool
) -> tuple[bytes, bool]:
    """Change what the header states; return whether it states less than there is, but something."""
    assert kind.size is not None
    marker, form = kind.size
    place = content.index(marker) + len(marker) + (12 if marker == b"ds64" else 0)
    (stated,) = struct.unpack_from(form, content, place)
    size = rng.choice(
        [
            *kind.unknown,
            rng.randrange(stated),
            stated // 2,
            stated + rng.randrange(1, 1 + stated),
            2 * stated,
            rng.getrandbits(8 * struct.calcsize(form)),
        ]
    )
    if only_less and stated < size not in kind.unknown:
        size = stated // 3
    changed = bytearray(content)
    struct.pack_into(form, changed, place, size)
    return bytes(changed), 64 < size <= stated


def with_other_counts(content: bytes, name: str, rng: random.Random) -> bytes:
    """Change the samples that FLAC counts, or the frames and bytes that MP3 does."""
    changed = bytearray(content)
    if name == "flac":
        (stated,) = struct.unpack_from(">I", content, 22)
        count = rng.choice([0, 1, rng.randrange(stated), 2 * stated, stated + 5_000])
        struct.pack_into(">I", changed, 22, count)
    elif name == "mp3":
        place = min(at for word in (b"Info", b"Xing") if (at := content.find(word)) > 0)
        for offset in rng.choice([(8,), (12,), (8, 12)]):
            (stated,) = struct.unpack_from(">I", content, place + offset)
            share = rng.choice([0, 0.3, 0.99, 1.01, 3.0])
            struct.pack_into(">I", changed, place + offset, int(share * stated))
    return bytes(changed)


def drawn(name: str, files: list[bytes], rng: random.Random) -> tuple[bytes, list[np.ndarray], int]:
    """Return a file, the sounds it holds, and how many frames more than they may be read."""
    kind = KINDS[name]
    chosen = rng.choices(files, k=rng.choice([1, 1, 2, 3]))
    expected = [reference(content) for content in chosen]
    before, between, behind = (rng.choice([b"", b"", tag(rng), junk(rng)]) for _ in range(3))
    excess = 0
    if rng.random() < 0.5:
        number = rng.randrange(len(chosen))
        if kind.size is not None:
            before_last = number < len(chosen) - 1
            chosen[number], is_less = with_other_size(
                chosen[number], kind, rng, only_less=before_last
            )
            if not is_less:  # then nothing tells what follows from samples
                between = behind = b""
        else:
            chosen[number] = with_other_counts(chosen[number], name, rng)
        if name == "mp3":  # of a stream that is counted wrongly, delay and padding stay
            excess = 4 * 1152
    return before + between.join(chosen) + behind, expected, excess


def read_all(path: Path) -> np.ndarray:
    audio = inspect_audio(path)
    whole = read_audio(path, sample_rate=audio.sample_rate)
    assert len(whole) == audio.num_frames
    length = min(500, len(whole))
    for start in (len(whole) // 3, len(whole) - length):
        part = read_excerpt(
            path, sample_rate=audio.sample_rate, start_sample=start, num_samples=length
        )
        np.testing.assert_allclose(part, whole[start : start + length], atol=1e-6)
    return whole


def is_inside(part: np.ndarray, whole: np.ndarray) -> bool:
    """Tell whether a sound is in another, sample by sample but for its ends."""
    inner = part[1_200:-1_200]
    probe = inner[:64]
    starts = np.lib.stride_tricks.sliding_window_view(whole, 64)
    hits = np.flatnonzero(np.abs(starts - probe).max(axis=1) < 2e-5)
    return any(
        np.abs(whole[at : at + len(inner)] - inner).max() < 2e-5
        for at in hits
        if at + len(inner) <= len(whole)
    )


@pytest.mark.parametrize("name", KINDS)
def test_whole_and_equal_or_refused_by_name(name, tmp_path, record_property):
    kind = KINDS[name]
    files = [
        encoded(seed, seconds, kind.format, kind.subtype)
        for seed, seconds in enumerate((1.0, 1.0, 0.45))
    ]
    outcomes = {"whole": 0, "refused": 0}
    path = tmp_path / "sound"
    for seed in range(NUM_INPUTS or 12):
        content, expected, excess = drawn(name, files, random.Random(f"{name}-{seed}"))
        path.write_bytes(content)
        try:
            whole = read_all(path)
        except AudioError as error:
            assert str(path) in str(error)  # noqa: PT017 (either is right)
            outcomes["refused"] += 1
            continue
        except BaseException as error:
            error.add_note(f"seed {seed} of {name}")
            raise
        joined = np.concatenate(expected)
        if excess:
            is_right = len(joined) - 1152 <= len(whole) <= len(joined) + excess
            is_right = is_right and all(is_inside(part, whole) for part in expected)
        else:  # to 8 bytes of the last samples
            missing = len(joined) - len(whole)
            is_right = 0 <= missing <= (320 if kind.subtype == "GSM610" else 16)
            is_right = is_right and np.abs(whole - joined[: len(whole)]).max() < 2e-5
        assert is_right, f"seed {seed} of {name}: {len(whole)} of {len(joined)} frames"
        outcomes["whole"] += 1
    assert min(outcomes.values()) > 0
    record_property(f"fuzzed header of {name}", f"{sum(outcomes.values())} inputs, {outcomes}")


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_was_cut_is_refused_or_lacks_nothing(name, tmp_path, record_property):
    kind = KINDS[name]
    files = [encoded(seed, 1.0, kind.format, kind.subtype) for seed in range(2)]
    outcomes = {"whole": 0, "refused": 0}
    path = tmp_path / "sound"
    for seed in range(NUM_INPUTS or 8):
        rng = random.Random(f"cut-{name}-{seed}")
        chosen = rng.choices(files, k=rng.choice([1, 2]))
        content = b"".join(chosen)
        first = len(content) - len(chosen[-1])
        path.write_bytes(content[: rng.randrange(first + 1_500, len(content))])
        try:
            whole = read_all(path)
        except AudioError as error:
            assert str(path) in str(error)  # noqa: PT017 (either is right)
            outcomes["refused"] += 1
            continue
        joined = np.concatenate([reference(one) for one in chosen])
        assert len(whole) >= len(joined) - TOLERANCE_FRAMES, f"seed {seed} of {name}"
        length = min(len(whole), len(joined)) - 1_200
        assert np.abs(whole - joined[: len(whole)])[:length].max() < 2e-5, f"seed {seed} of {name}"
        outcomes["whole"] += 1
    assert outcomes["refused"] > 0
    record_property(f"fuzzed cut {name}", f"{sum(outcomes.values())} inputs, {outcomes}")


@pytest.mark.parametrize("name", ["vorbis", *exhaustive("opus")])
def test_positions_of_ogg(name, tmp_path, record_property):
    """From the first page on they may count fewer frames; between two pages no packet may be lost."""
    kind = KINDS[name]
    files = [encoded(seed, 6.0 + seed, kind.format, kind.subtype) for seed in range(2)]
    outcomes = {"whole": 0, "refused": 0}
    path = tmp_path / "sound"
    for seed in range(NUM_INPUTS or 16):
        rng = random.Random(f"positions-{name}-{seed}")
        chosen = rng.choices(files, k=rng.choice([1, 2]))
        expected = np.concatenate([reference(one) for one in chosen])
        number = rng.randrange(len(chosen))
        offset = -rng.randrange(1, 1 << rng.choice([4, 12, 20, 40]))
        inner = rng.choice([0, rng.randrange(3, len(ogg_pages(chosen[number])) - 1)])
        if inner:
            offset *= rng.choice([-1, 1])
        chosen[number] = shifted_ogg(chosen[number], offset, first_page=inner)
        path.write_bytes(b"".join(chosen))
        note = f"seed {seed} of {name}: {offset} from page {inner} on"
        try:
            whole = read_all(path)
        except AudioError as error:
            assert error.code == "audio-damaged"  # noqa: PT017 (either is right)
            assert abs(offset) > 0.004 * RATE, note
            assert inner, note
            outcomes["refused"] += 1
            continue
        assert not inner or abs(offset) <= 0.004 * 48_000, note
        # A jump that is tolerated may be before the end, where positions cut the last block.
        assert abs(len(whole) - len(expected)) <= (abs(offset) if inner else 0), note
        if len(whole) == len(expected):
            assert np.abs(whole - expected).max() < 2e-5, note
        outcomes["whole"] += 1
    assert min(outcomes.values()) > 0
    record_property(f"fuzzed positions of {name}", f"{sum(outcomes.values())} inputs, {outcomes}")


# Sizes of samples near those that programs state which do not know them.
BOUNDS = (0x7F000000, 0x7FFFF000, 0x80000000, 0x80001000, 0xFF000000, 0xFFFFFFFF)


def test_true_sizes_of_wav_near_those_of_pipes(tmp_path, record_property):
    """A sparse file, with sound in its last second; chunks and tags behind it are no sound."""
    content = encoded(0, 1.0, "WAV", "PCM_16")
    header, end = bytearray(content[:44]), content[44:]
    path = tmp_path / "sound"
    for seed in range(NUM_INPUTS or 12):
        rng = random.Random(f"true-size-{seed}")
        shift = rng.randrange(1 << rng.choice([4, 12, 20])) * rng.choice([-1, 1])
        num_bytes = (rng.choice(BOUNDS) + shift) // 4 * 4
        num_bytes = min(num_bytes, 0xFFFFFFFC)
        chunks = [
            name + struct.pack("<I", size) + rng.randbytes(size)
            for name in rng.choices([b"LIST", b"id3 ", b"bext", b"cue "], k=rng.randrange(4))
            for size in [2 * rng.randrange(10_000)]
        ]
        struct.pack_into("<I", header, 40, num_bytes)
        with path.open("wb") as file:
            file.write(header)
            file.seek(44 + num_bytes - len(end))
            file.write(end + b"".join(chunks) + rng.choice([b"", b"TAG" + bytes(125)]))
        note = f"seed {seed}: {num_bytes:#x} bytes, {len(chunks)} chunks"
        num_frames = inspect_audio(path).num_frames
        assert num_frames == num_bytes // 4, note
        last = read_excerpt(
            path, sample_rate=RATE, start_sample=num_frames - RATE, num_samples=RATE
        )
        np.testing.assert_array_equal(last, reference(content), err_msg=note)
    record_property("fuzzed true sizes", f"{NUM_INPUTS or 12} inputs")


@pytest.mark.slow
def test_joined_adts(tmp_path, record_property):
    """Of one layout whole, of several refused: ffmpeg remixes all to the first."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    files = {}
    for rate, channels in ((RATE, 1), (RATE, 2), (44_100, 2)):
        soundfile.write(tmp_path / "source.wav", sound(0, 1.0)[:, :channels], rate)
        path = tmp_path / "one.aac"
        quiet = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", tmp_path / "source.wav"]
        subprocess.run([*quiet, path], check=True)
        files[rate, channels] = path.read_bytes(), inspect_audio(path).num_frames
    outcomes = {"whole": 0, "refused": 0}
    path = tmp_path / "sound"
    for seed in range(NUM_INPUTS or 12):
        rng = random.Random(f"adts-{seed}")
        pool = rng.sample(list(files), k=rng.choice([1, 2]))
        layouts = rng.choices(pool, k=rng.choice([2, 3]))
        between = rng.choice([b"", b"ID3\x04\0\0\0\0\1\0" + bytes(128), b"TAG" + bytes(125)])
        path.write_bytes(between.join(files[layout][0] for layout in layouts))
        note = f"seed {seed}: {layouts}"
        try:
            whole = read_all(path)
        except AudioError as error:
            assert error.code == "audio-joined-files", note  # noqa: PT017 (either is right)
            assert len(set(layouts)) > 1, note
            outcomes["refused"] += 1
            continue
        assert len(set(layouts)) == 1, note
        assert len(whole) == sum(files[layout][1] for layout in layouts), note
        outcomes["whole"] += 1
    assert min(outcomes.values()) > 0
    record_property("fuzzed joined ADTS", f"{sum(outcomes.values())} inputs, {outcomes}")


# What ffmpeg decodes here, by its options.
FFMPEG_KINDS = {
    "aac.m4a": ("-c:a", "aac"),
    "faststart.m4a": ("-c:a", "aac", "-movflags", "+faststart"),
    "alac.m4a": ("-c:a", "alac"),
    "adts.aac": ("-c:a", "aac"),
    "fragments.mp4": ("-c:a", "aac", "-movflags", "+frag_keyframe", "-frag_duration", "300000"),
    "v2.wma": ("-c:a", "wmav2"),
    "opus.webm": ("-c:a", "libopus"),
    "flac.mka": ("-c:a", "flac"),
    "info.mp3": ("-c:a", "libmp3lame"),
    "bare.mp3": ("-c:a", "libmp3lame", "-write_xing", "0"),
    "layer2.mp2": ("-c:a", "mp2"),
    "vorbis.ogg": ("-c:a", "libvorbis"),
}
SECONDS = 6.0


def encoded_by_ffmpeg(folder: Path, name: str) -> tuple[bytes, np.ndarray]:
    """Return a file, and the mean of its channels by ffmpeg alone."""
    soundfile.write(folder / "source.wav", sound(0, SECONDS), RATE)
    quiet = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i"]
    subprocess.run([*quiet, folder / "source.wav", *FFMPEG_KINDS[name], folder / name], check=True)
    decoded = subprocess.run(
        [*quiet, folder / name, "-f", "f32le", "-c:a", "pcm_f32le", "pipe:1"],
        check=True,
        capture_output=True,
    ).stdout
    return (folder / name).read_bytes(), np.frombuffer(decoded, "<f4").reshape(-1, 2).mean(axis=1)


def units(content: bytes) -> list[int]:
    """Return the starts of pages, of MPEG frames, of FLAC or ADTS frames, or of any 512 bytes."""
    if content.startswith(b"OggS"):
        return [match.start() for match in re.finditer(rb"OggS\0", content)]
    if content.startswith(b"fLaC"):
        sync = re.compile(rb"\xff[\xf8\xf9][\xc0-\xcf]")
        return [match.start() for match in sync.finditer(content)]
    tag_bytes = 10 + int.from_bytes(content[8:10], "big") if content[:3] == b"ID3" else 0
    frames = [tag_bytes]  # of ffmpeg, below 128 bytes
    if content[:2] == b"\xff\xf1":
        frames = [0]
        while frames[-1] + 7 < len(content):
            header = int.from_bytes(content[frames[-1] + 3 : frames[-1] + 6], "big")
            frames.append(frames[-1] + (header >> 5 & 0x1FFF))
        return frames
    while (frame := parse_frame(content[frames[-1] : frames[-1] + 4])) is not None:
        frames.append(frames[-1] + frame.num_bytes)
    return frames if len(frames) > 20 else list(range(0, len(content), 512))


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes, float, float]:
    """Return a name, a file with damage in its middle, and the share of the file before it, and with it."""
    at = round(rng.uniform(0.3, 0.6) * len(content))
    size = rng.choice([1, 13, 200, 3_000, len(content) // 20])
    starts = units(content)
    number = min(range(len(starts)), key=lambda number: abs(starts[number] - at))
    number = min(max(1, number), len(starts) - 4)
    count = rng.choice([1, 1, 2])
    first, last = starts[number], starts[number + count]
    name = rng.choice(["hole", "changed byte", "noise", "zeros", "lost unit", "unit twice"])
    if name == "lost unit":
        return name, content[:first] + content[last:], first / len(content), last / len(content)
    if name == "unit twice":
        return name, content[:last] + content[first:], first / len(content), last / len(content)
    if name == "changed byte":
        size = 1
    other = {
        "hole": b"",
        "changed byte": bytes([content[at] ^ rng.randrange(1, 256)]),
        "noise": rng.randbytes(size),
        "zeros": bytes(size),
    }[name]
    changed = content[:at] + other + content[at + size :]
    return name, changed, at / len(content), (at + size) / len(content)


def shift_of(whole: np.ndarray, expected: np.ndarray, start: int) -> int:
    """Return by how many samples the sound from a sample on is later than expected."""
    reach = 4_000
    part = expected[start : start + 8_000]
    searched = whole[max(0, start - reach) : start + len(part) + reach]
    size = 1 << (len(searched) + len(part)).bit_length()
    spectrum = np.fft.rfft(searched, size) * np.conj(np.fft.rfft(part, size))
    peak = int(np.argmax(np.fft.irfft(spectrum, size)[: len(searched) - len(part) + 1]))
    return peak - min(start, reach)


# Frames without numbers, in files that do not count them: that one is missing, or twice, cannot be noticed.
# Nor that one is twice, where a header may count too few (MP3).
UNNOTICED = {
    "lost unit": ("bare.mp3", "layer2.mp2", "adts.aac"),
    "unit twice": ("bare.mp3", "layer2.mp2", "adts.aac", "info.mp3", "mp3"),
}


# Without checksums: a changed byte in the middle is not noticed, and all other sound stays where it is.
WITHOUT_CHECKSUMS = {
    *("wav", "wav-float", "wav-adpcm", "wav-gsm", "rf64", "w64", "aiff", "caf", "au", "au-g721"),
    *("mp3", "info.mp3", "bare.mp3", "layer2.mp2", "adts.aac"),
}


def assert_in_place(path: Path, expected: np.ndarray, stop: float, note: str) -> None:
    """Assert that sound well before and well behind damage is where it was, also in an excerpt.

    Args:
        path: File.
        expected: Sound without damage.
        stop: Share of the file up to the end of the damage.
        note: Description of the damage.
    """
    whole = read_all(path)
    assert abs(len(whole) - len(expected)) <= TOLERANCE_FRAMES, note
    behind = round((stop + 0.1) * len(expected))
    assert shift_of(whole, expected, round(0.02 * len(expected))) == 0, note
    assert shift_of(whole, expected, behind) == 0, note
    rate = inspect_audio(path).sample_rate
    part = read_excerpt(path, sample_rate=rate, start_sample=behind, num_samples=9_000)
    assert shift_of(part, expected[behind:], 500) == 0, note


# ffmpeg reads them, each in a process; one of those with tables of packets stays.
SLOW_KINDS = ("aac.m4a", "faststart.m4a", "flac.mka", "adts.aac", "au-g721", "v2.wma", "alac.m4a")


@pytest.mark.parametrize(
    "name",
    [name for name in (*KINDS, *FFMPEG_KINDS) if name not in SLOW_KINDS] + exhaustive(*SLOW_KINDS),
)
def test_damage_in_the_middle_moves_no_sound(name, tmp_path, record_property):
    if name in FFMPEG_KINDS:
        if shutil.which("ffmpeg") is None:
            pytest.skip("needs ffmpeg")
        content, expected = encoded_by_ffmpeg(tmp_path, name)
    else:
        content = encoded(0, SECONDS, KINDS[name].format, KINDS[name].subtype)
        expected = reference(content)
    outcomes = {"in place": 0, "refused": 0}
    path = tmp_path / "sound"
    path.write_bytes(content)
    assert_in_place(path, expected, 0.3, f"{name} without damage")
    for seed in range(NUM_INPUTS or 8):
        what, changed, start, stop = damaged(content, random.Random(f"damage-{name}-{seed}"))
        if name in UNNOTICED.get(what, ()):
            continue
        path.write_bytes(changed)
        note = f"seed {seed} of {name}: {what} from {start:.3f} to {stop:.3f}"
        try:
            assert_in_place(path, expected, stop, note)
        except AudioError as error:
            assert str(path) in str(error)  # noqa: PT017 (either is right)
            outcomes["refused"] += 1
            continue
        except BaseException as error:
            error.add_note(note)
            raise
        outcomes["in place"] += 1
    assert outcomes["refused"] > 0
    assert outcomes["in place"] > 0 or name not in WITHOUT_CHECKSUMS
    record_property(f"fuzzed damage in {name}", f"{sum(outcomes.values())} inputs, {outcomes}")
