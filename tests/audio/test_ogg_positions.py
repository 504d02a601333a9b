"""Ogg whose pages end at other positions than their packets: all frames are read, or it is refused."""

from functools import partial

import numpy as np
import pytest
import soundfile
from support.encoded_audio import (
    bursts,
    decoded_by_ffmpeg,
    encoded,
    ffmpeg,
    mean_of,
    needs,
    read_whole,
    shifted_ogg,
)
from support.matrix import exhaustive
from support.messages import raises

from m2v_finetune.audio.decode import inspect_audio, read_audio, read_excerpt

RATE = 48_000
SUBTYPES = ("VORBIS", "OPUS")
FILES = {
    subtype: encoded("OGG", subtype, bursts(8.0, rate=RATE), rate=RATE) for subtype in SUBTYPES
}
TOLERANCES = {"VORBIS": 5e-6, "OPUS": 5e-4}  # beside the decoders of ffmpeg


def by_ffmpeg(path):
    return decoded_by_ffmpeg(path)[0].mean(axis=1)


@needs("ffmpeg")
@pytest.mark.parametrize("start", ["2.013", *exhaustive("0.02", "3.5", "6.99")])
@pytest.mark.parametrize("channels", [2, *exhaustive(1, 6)])
@pytest.mark.parametrize("coder", ["libvorbis", "libopus"])
def test_a_cut_without_decoding_is_read_as_ffmpeg_reads_it(coder, channels, start, tmp_path):
    """Its first page has more frames than its position counts."""
    soundfile.write(tmp_path / "a.wav", bursts(8.0, rate=RATE, channels=channels), RATE)
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", coder, tmp_path / "a.ogg")
    cut = tmp_path / "cut.ogg"
    ffmpeg("-ss", start, "-i", tmp_path / "a.ogg", "-c", "copy", cut)
    expected = by_ffmpeg(cut)
    whole = read_whole(cut)
    assert len(whole) == len(expected)
    np.testing.assert_allclose(whole, expected, atol=TOLERANCES[coder[3:].upper()])


@needs("ffmpeg")
@pytest.mark.parametrize("coder", ["libvorbis", "libopus"])
@pytest.mark.parametrize("page", ["1000000", *exhaustive("20000", "5000000")])
def test_positions_from_timestamps_in_milliseconds(page, coder, tmp_path):
    """As of WebM whose packets were copied: each page ends some frames beside its packets."""
    rate = 44_100 if coder == "libvorbis" else RATE
    soundfile.write(tmp_path / "a.wav", bursts(6.0, rate=rate), rate)
    ffmpeg("-i", tmp_path / "a.wav", "-c:a", coder, tmp_path / "a.webm")
    path = tmp_path / "a.ogg"
    ffmpeg("-i", tmp_path / "a.webm", "-c", "copy", "-page_duration", page, path)
    expected = by_ffmpeg(path)
    whole = read_whole(path)
    assert abs(len(whole) - len(expected)) <= 0.002 * rate
    length = min(len(whole), len(expected))
    tolerance = TOLERANCES[coder[3:].upper()]
    np.testing.assert_allclose(whole[:length], expected[:length], atol=tolerance)


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("offset", [-4_410, -66_150, *exhaustive(-1, -(2**40))])
def test_positions_that_count_fewer_frames_from_the_first_page_on(offset, subtype, tmp_path):
    path = tmp_path / "a"
    content = FILES[subtype]
    changed = shifted_ogg(content, offset)
    for one, number in ((changed, 1), (changed + content, 2), (content + changed, 2)):
        path.write_bytes(one)
        expected = np.concatenate([mean_of(content)] * number)
        whole = read_whole(path)
        assert len(whole) == len(expected)
        np.testing.assert_allclose(whole, expected, atol=2e-6)


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("offset", [-20_000, -960, 960, 20_000, 2**40])
def test_positions_that_jump_between_two_pages_are_refused(offset, subtype, tmp_path):
    """Sound was lost there, or is there twice: what follows is at another time than its position."""
    path = tmp_path / "a"
    changed = shifted_ogg(FILES[subtype], offset, first_page=5)
    for content in (changed, changed + FILES[subtype], shifted_ogg(changed, -4_410)):
        path.write_bytes(content)
        for read in (
            inspect_audio,
            partial(read_audio, sample_rate=RATE),
            partial(read_excerpt, sample_rate=RATE, start_sample=100, num_samples=100),
        ):
            with raises("audio-damaged", path, "Ogg"):
                read(path)


@needs("ffmpeg")
@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize(
    "packets", ["between(n,200,206)", *exhaustive("between(n,150,260)", "not(mod(n,90))")]
)
def test_lost_packets_are_refused(packets, subtype, tmp_path):
    (tmp_path / "a.ogg").write_bytes(FILES[subtype])
    path = tmp_path / "lost.ogg"
    ffmpeg("-i", tmp_path / "a.ogg", "-c", "copy", "-bsf:a", f"noise=drop='{packets}'", path)
    with raises("audio-damaged", path, "Ogg"):
        inspect_audio(path)
