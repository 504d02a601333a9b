"""Length and samples of every container that is read, beside ffmpeg, an independent decoder.

Most are equal to the bit. Where they are not, the case states how far they are apart, and why.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.encoded_audio import bursts, decoded_by_ffmpeg, ffmpeg, needs, read_whole, run

from m2v_finetune.audio.decode import inspect_audio, read_audio, read_channels

pytestmark = needs("ffmpeg")

RATE = 44_100
SOURCES = {number: bursts(1.5, rate=RATE, channels=number) for number in (1, 2, 6)}
EXACT = 0.0
FLOAT32 = 5e-6  # both decode in float32, in another order


@dataclass(frozen=True)
class Case:
    """A file, and how far two decoders may be apart.

    Attributes:
        name: Of the file.
        options: Of the encoder.
        tolerance: Largest difference of a sample.
        extra_frames: Frames that ffmpeg has more at the end.
        channels: Of what is encoded.
    """

    name: str
    options: tuple[str, ...] = ()
    tolerance: float = EXACT
    extra_frames: int = 0
    channels: int = 2

    def __str__(self) -> str:
        return " ".join((self.name, *self.options, f"of {self.channels}"))

    @property
    def samples(self) -> np.ndarray:
        """What is encoded, (frames, channels)."""
        return SOURCES[self.channels]


def exhaustive(case: Case):
    return pytest.param(case, marks=pytest.mark.exhaustive)


def by_libsndfile(kind: str, *subtypes: str, **facts) -> list[Case]:
    return [Case(f"a.{kind.lower()}", (kind, subtype), **facts) for subtype in subtypes]


PCM = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
LIBSNDFILE = [
    *by_libsndfile("WAV", *PCM, "PCM_U8"),
    *by_libsndfile("WAVEX", *PCM, "PCM_U8"),
    *by_libsndfile("RF64", *PCM, "PCM_U8"),
    *by_libsndfile("W64", *PCM, "PCM_U8"),
    *by_libsndfile("AIFF", *PCM, "PCM_U8", "PCM_S8"),
    *by_libsndfile("CAF", *PCM, "PCM_S8", "ALAC_16", "ALAC_24", "ALAC_32"),
    *by_libsndfile("AU", *PCM, "PCM_S8"),
    *by_libsndfile("NIST", "PCM_S8", "PCM_16", "PCM_24", "PCM_32", "ULAW", "ALAW"),
    *by_libsndfile("FLAC", "PCM_S8", "PCM_16", "PCM_24"),
    *by_libsndfile("WAV", "PCM_16", "FLOAT", channels=6),
    *by_libsndfile("FLAC", "PCM_16", channels=6),
    *by_libsndfile("WAV", "GSM610", channels=1),
    *by_libsndfile("W64", "GSM610", channels=1),
    # ffmpeg decodes the whole last block, whose end the header leaves out.
    *by_libsndfile("AIFF", "GSM610", channels=1, extra_frames=90),
    # ADPCM: the two round in other places, and errors add up within a block.
    *by_libsndfile("WAV", "IMA_ADPCM", tolerance=5e-3),
    *by_libsndfile("W64", "IMA_ADPCM", tolerance=5e-3),
    *by_libsndfile("AIFF", "IMA_ADPCM", tolerance=5e-3),
    *by_libsndfile("WAV", "MS_ADPCM", tolerance=3e-2),
    *by_libsndfile("W64", "MS_ADPCM", tolerance=3e-2),
    *by_libsndfile("OGG", "VORBIS", tolerance=FLOAT32),
    *by_libsndfile("MP3", "MPEG_LAYER_III", tolerance=FLOAT32),
]
OPUS = 5e-4  # ffmpeg's own decoder of Opus, against libopus

LAME = [
    # With an Info or Xing header both cut delay and padding: the length is that of the source.
    Case("constant.mp3", ("-b", "128"), FLOAT32),
    Case("high.mp3", ("-b", "320"), FLOAT32),
    Case("mono.mp3", ("-b", "64"), FLOAT32, channels=1),
    Case("variable.mp3", ("-V", "2"), FLOAT32),
    Case("mono, variable.mp3", ("-V", "5"), FLOAT32, channels=1),
    Case("average.mp3", ("--abr", "150"), FLOAT32),
    Case("joint.mp3", ("-m", "j", "-b", "128"), FLOAT32),
    Case("two mono.mp3", ("-m", "d", "-b", "192"), FLOAT32),
    Case("checked.mp3", ("-p", "-b", "128"), FLOAT32),
    Case("mpeg2.mp3", ("--resample", "22.05", "-b", "64"), FLOAT32),
    Case("mpeg2.5.mp3", ("--resample", "11.025", "-b", "32"), FLOAT32),
    Case("8 kHz.mp3", ("--resample", "8", "-b", "32"), FLOAT32, channels=1),
    Case("tagged.mp3", ("--tt", "x", "--id3v2-only", "--pad-id3v2-size", "9000"), FLOAT32),
    Case("old tag.mp3", ("--tt", "x", "--id3v1-only"), FLOAT32),
    # Without one, neither cuts anything.
    Case("no header.mp3", ("-t", "-b", "128"), FLOAT32),
    Case("no header, variable.mp3", ("-t", "-V", "3"), FLOAT32),
]

FFMPEG = [
    Case("lavf.mp3", ("-c:a", "libmp3lame", "-q:a", "4"), FLOAT32),
    Case("no header.mp3", ("-c:a", "libmp3lame", "-q:a", "4", "-write_xing", "0"), FLOAT32),
    Case("layer2.mp2", ("-c:a", "mp2"), 1e-4),  # ffmpeg rounds to 16 bits
    Case("mp3 in.wav", ("-c:a", "libmp3lame"), FLOAT32),
    Case("vorbis.ogg", ("-c:a", "libvorbis"), FLOAT32),
    Case("vorbis 5.1.ogg", ("-c:a", "libvorbis"), FLOAT32, channels=6),
    Case("opus.opus", ("-c:a", "libopus"), OPUS),
    Case("opus mono.opus", ("-c:a", "libopus"), OPUS, channels=1),
    Case("opus 5.1.opus", ("-c:a", "libopus"), OPUS, channels=6),
    Case("16.flac", ("-c:a", "flac")),
    Case("24.flac", ("-c:a", "flac", "-sample_fmt", "s32")),
    Case("slow.flac", ("-c:a", "flac", "-compression_level", "12")),
    Case("large blocks.flac", ("-c:a", "flac", "-frame_size", "32768")),
    Case("plain.wav"),
    Case("rf64.wav", ("-rf64", "always")),
    Case("ima.wav", ("-c:a", "adpcm_ima_wav"), 5e-3),
    Case("ms.wav", ("-c:a", "adpcm_ms"), 3e-2),
    Case("gsm.wav", ("-c:a", "libgsm_ms", "-ar", "8000"), channels=1),
    Case("plain.w64"),
    Case("plain.caf"),
    Case("plain.aiff"),
    Case("little.aifc", ("-c:a", "pcm_s16le", "-f", "aiff")),
    Case("plain.au"),
    Case("ulaw.au", ("-c:a", "pcm_mulaw")),
]
LOSSLESS, LOSSY = 120, 15


@dataclass(frozen=True)
class Source:
    """A file that ffmpeg decodes here too: its sound beside the source.

    Attributes:
        case: The file.
        decibels: How far the error is below the sound.
        delay: Frames that come before the source; less than 0 if its first are missing.
    """

    case: Case
    decibels: float = LOSSY
    delay: int = 0

    def __str__(self) -> str:
        return str(self.case)


THROUGH_FFMPEG = [
    Source(Case("aac.m4a", ("-c:a", "aac"))),
    Source(Case("aac 5.1.m4a", ("-c:a", "aac"), channels=6), 7),
    Source(Case("alac.m4a", ("-c:a", "alac")), LOSSLESS),
    # Without an edit list, the first block is the delay of the codec.
    Source(
        Case("fragments.mp4", ("-c:a", "aac", "-movflags", "+frag_keyframe+empty_moov")), delay=1024
    ),
    Source(Case("opus.mp4", ("-c:a", "libopus"))),
    Source(Case("mp3.mp4", ("-c:a", "libmp3lame"))),
    Source(Case("aac.3gp", ("-c:a", "aac"))),
    Source(Case("pcm.mov", ("-c:a", "pcm_s24le")), LOSSLESS),
    Source(Case("adts.aac", ("-c:a", "aac")), delay=1024),
    # The decoder of ffmpeg leaves out the first block that its encoder writes.
    Source(Case("1.wma", ("-c:a", "wmav1")), delay=-2048),
    Source(Case("2.wma", ("-c:a", "wmav2")), delay=-2048),
    Source(Case("opus.webm", ("-c:a", "libopus"))),
    Source(Case("vorbis.webm", ("-c:a", "libvorbis"))),
    Source(Case("flac.mka", ("-c:a", "flac")), LOSSLESS),
    Source(Case("ac3.mka", ("-c:a", "ac3")), delay=256),
    Source(Case("mp3.mkv", ("-c:a", "libmp3lame")), delay=1105),
]
# Each container with 16 bits, and each coding once, of WAV where it has that.
FEW = [
    case
    for number, case in enumerate(LIBSNDFILE)
    if case.options[1] == "PCM_16"
    or case.options[1] not in {other.options[1] for other in LIBSNDFILE[:number]}
    or case.extra_frames
]
SOX = [
    *(Case(f"sox.{kind}") for kind in ("wav", "aiff", "au", "caf", "w64", "sph", "flac")),
    Case("sox.ogg", (), FLOAT32),
    Case("ulaw.wav", ("-e", "mu-law")),
    Case("gsm.wav", ("-e", "gsm-full-rate", "-r", "8000"), channels=1),
]


def compare(path: Path, case: Case) -> None:
    expected, rate = decoded_by_ffmpeg(path)
    audio = inspect_audio(path)
    assert (audio.sample_rate, audio.num_channels) == (rate, expected.shape[1])
    assert len(expected) - audio.num_frames == case.extra_frames
    expected = expected[: audio.num_frames]
    tolerance = case.tolerance + 1e-7  # of the mean
    np.testing.assert_allclose(read_whole(path), expected.mean(axis=1), atol=tolerance, rtol=0)
    channels = read_channels(
        path,
        sample_rate=rate,
        start_sample=0,
        num_samples=audio.num_frames,
        num_channels=audio.num_channels,
    )
    assert channels.shape == expected.T.shape
    if audio.num_channels <= 2:  # the order of more differs between containers
        np.testing.assert_allclose(channels, expected.T, atol=2 * tolerance, rtol=0)


@pytest.mark.parametrize(
    "case", [case if case in FEW else exhaustive(case) for case in LIBSNDFILE], ids=str
)
def test_what_libsndfile_writes(case, tmp_path):
    kind, subtype = case.options
    soundfile.write(tmp_path / case.name, case.samples, RATE, format=kind, subtype=subtype)
    compare(tmp_path / case.name, case)


def test_opus_of_libsndfile(tmp_path):
    samples = bursts(1.0, rate=48_000)
    soundfile.write(tmp_path / "a.opus", samples, 48_000, format="OGG", subtype="OPUS")
    compare(tmp_path / "a.opus", Case("a.opus", (), OPUS))


@needs("lame")
@pytest.mark.parametrize("case", LAME, ids=str)
def test_what_lame_writes(case, tmp_path):
    soundfile.write(tmp_path / "source.wav", case.samples, RATE)
    run("lame", "--quiet", *case.options, tmp_path / "source.wav", tmp_path / case.name)
    compare(tmp_path / case.name, case)
    if "-t" not in case.options:
        audio = inspect_audio(tmp_path / case.name)
        assert audio.num_frames == pytest.approx(
            len(case.samples) * audio.sample_rate / RATE, abs=1
        )


@pytest.mark.parametrize(
    "case",
    FFMPEG,
    ids=str,
)
def test_what_ffmpeg_writes(case, tmp_path):
    soundfile.write(tmp_path / "source.wav", case.samples, RATE, subtype="PCM_24")
    ffmpeg("-i", tmp_path / "source.wav", *case.options, tmp_path / case.name)
    compare(tmp_path / case.name, case)


def delay_of(found: np.ndarray, source: np.ndarray) -> int:
    """Return how many frames later than in its source a sound is, where the two correlate most."""
    size = 1 << (len(found) + len(source)).bit_length()
    spectrum = np.fft.rfft(found, size) * np.conj(np.fft.rfft(source, size))
    peak = int(np.argmax(np.fft.irfft(spectrum, size)))
    return peak if peak < len(found) else peak - size


def decibels_below(found: np.ndarray, source: np.ndarray, delay: int) -> float:
    """Return how far the error is below the sound, where both have it."""
    found, source = found[max(0, delay) :], source[max(0, -delay) :]
    source = source[: len(found)]
    error = np.square(found[: len(source)] - source).sum() / np.square(source).sum()
    return -10 * np.log10(error)


@pytest.mark.parametrize("source", THROUGH_FFMPEG, ids=str)
def test_what_ffmpeg_decodes_here_too(source, tmp_path):
    """Beside the sound that was encoded: nothing is missing, at the right time and in its channel."""
    case = source.case
    soundfile.write(tmp_path / "source.wav", case.samples, RATE, subtype="PCM_24")
    path = tmp_path / case.name
    ffmpeg("-i", tmp_path / "source.wav", *case.options, path)
    read_whole(path)
    whole = read_audio(path, sample_rate=RATE)
    expected = case.samples.mean(axis=1)
    assert delay_of(whole, expected) == source.delay
    assert decibels_below(whole, expected, source.delay) > source.decibels
    assert 0 <= len(whole) - len(expected) - source.delay < 2_000  # to the end of a block
    assert inspect_audio(path).num_channels == case.channels
    if case.channels <= 2:  # the order of more differs between containers
        channels = read_channels(
            path,
            sample_rate=RATE,
            start_sample=0,
            num_samples=len(whole),
            num_channels=case.channels,
        )
        for found, one in zip(channels, case.samples.T, strict=True):
            assert decibels_below(found, one, source.delay) > source.decibels - 3


@needs("sox")
@pytest.mark.parametrize("case", SOX, ids=str)
def test_what_sox_writes(case, tmp_path):
    soundfile.write(tmp_path / "source.wav", case.samples, RATE)
    run("sox", "-D", tmp_path / "source.wav", *case.options, tmp_path / case.name)
    compare(tmp_path / case.name, case)


@pytest.mark.parametrize(
    ("kind", "subtype", "decibels"),
    [
        ("WAV", "G721_32", 15),
        ("AU", "G721_32", 15),
        ("AU", "G723_24", 9),
        ("AU", "G723_40", 18),
        ("AIFF", "DWVW_16", 70),
        ("AIFF", "DWVW_24", 70),
    ],
)
def test_what_ffmpeg_decodes_wrongly_or_not_at_all(kind, subtype, decibels, tmp_path):
    """Beside the source: the share of the error in the sound, which ffmpeg's own G.721 does not reach."""
    source = SOURCES[1][:, 0]
    soundfile.write(tmp_path / "a", source, RATE, format=kind, subtype=subtype)
    found = read_whole(tmp_path / "a")[: len(source)]
    error = np.square(found - source).sum() / np.square(source).sum()
    assert -10 * np.log10(error) > decibels
