"""Sampled notes and probes of benchmarks/held_out_sound.py, on small data with known answers."""

import struct

import numpy as np
import pytest
from held_out_features import kept, pooled
from held_out_probes import PENALTIES, Regression, choose_penalty, fit_frames
from real_sound import drawn_split
from sampled_notes import read_patches, read_soundfont, without_doubles

from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.genre import Genre

TONE = (8000 * np.sin(2 * np.pi * 440 * np.arange(2205) / 22050)).astype("<i2")


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def soundfont() -> bytes:
    """A font with one preset, program 56, of a stereo pair whose zone has the root key 69."""
    zones = struct.pack("<Hh", 58, 69) + struct.pack("<Hh", 53, 0) + struct.pack("<Hh", 53, 1)
    header = "<20sIIIIIBbHH"
    samples = [
        struct.pack(header, b"left", 0, 2205, 100, 2000, 22050, 60, 0, 1, 4),
        struct.pack(header, b"right", 2205, 4410, 2300, 4200, 22050, 60, 0, 0, 2),
        struct.pack(header, b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0),
    ]
    parts = [
        chunk(
            b"phdr",
            struct.pack("<20sHHH12x", b"Trumpet", 56, 0, 0)
            + struct.pack("<20sHHH12x", b"EOP", 0, 0, 1),
        ),
        chunk(b"pbag", struct.pack("<HHHH", 0, 0, 1, 0)),
        chunk(b"pgen", struct.pack("<Hh", 41, 0)),
        chunk(b"inst", struct.pack("<20sH", b"Trumpet", 0) + struct.pack("<20sH", b"EOI", 3)),
        chunk(b"ibag", struct.pack("<8H", 0, 0, 1, 0, 2, 0, 3, 0)),
        chunk(b"igen", zones),
        chunk(b"shdr", b"".join(samples)),
    ]
    data = chunk(b"LIST", b"sdta" + chunk(b"smpl", np.concatenate([TONE, TONE]).tobytes()))
    body = b"sfbk" + data + chunk(b"LIST", b"pdta" + b"".join(parts))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_a_sound_font_gives_program_root_key_and_the_left_of_a_pair(tmp_path):
    path = tmp_path / "font.sf2"
    path.write_bytes(soundfont())
    [note] = read_soundfont(path)
    assert (note.name, note.program, note.pitch, note.rate_hz) == ("left", 56, 69, 22050)
    assert note.loop == (100, 2000)
    np.testing.assert_array_equal(note.samples, TONE.astype(np.float32) / 32768)
    held = note.held(0.5)
    assert len(held) == 11025
    np.testing.assert_array_equal(held[2000:3900], held[100:2000])


@pytest.mark.parametrize("is_unsigned", [False, True])
def test_a_patch_gives_the_pitch_of_its_root_frequency(tmp_path, is_unsigned):
    header = bytearray(129 + 63 + 47)
    header[198] = 1
    wave = bytearray(96)
    size = 2 * len(TONE)
    struct.pack_into("<IIIHIII", wave, 8, size, 200, 4000, 22050, 0, 0, 440_000)
    wave[55] = 1 | 4 | (2 if is_unsigned else 0)
    data = (TONE.astype(np.int32) + 32768).astype("<u2") if is_unsigned else TONE
    (tmp_path / "056_Trumpet.pat").write_bytes(bytes(header) + bytes(wave) + data.tobytes())
    [note] = read_patches(tmp_path)
    assert (note.program, note.pitch, note.loop) == (56, 69, (100, 2000))
    np.testing.assert_allclose(note.samples, TONE / 32768, atol=1e-7)
    assert len(without_doubles(iter([note, note]))) == 1


def test_features_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return [np.ones(3), np.zeros((2, 4))]

    first, again = (kept(tmp_path, "name", "about", compute) for _ in range(2))
    other = kept(tmp_path, "name", "else", compute)
    assert len(calls) == 2
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_pooling_is_mean_and_deviation():
    assert pooled(np.array([[1.0, 4.0], [3.0, 4.0]])).tolist() == [2.0, 4.0, 1.0, 0.0]


def test_regression_scores_have_a_column_for_each_class():
    random = np.random.default_rng(0)
    targets = np.arange(80) % 3
    inputs = np.concatenate([random.normal(size=(80, 5)), 4 * np.eye(3)[targets]], axis=1)
    task = Genre(labels=("a", "b", "c", "d"), label_column="genre")
    penalty = choose_penalty(task, inputs, targets, seed=0)
    assert penalty in PENALTIES
    scores = Regression(inputs, targets, penalty).scores(inputs, count=4)
    assert scores.shape == (80, 4)
    assert (scores.argmax(axis=1) == targets).mean() > 0.95
    assert not scores[:, 3].any()


@pytest.mark.slow
def test_a_linear_layer_on_frames_finds_the_beats():
    import torch

    random = torch.Generator().manual_seed(0)
    targets = (torch.rand(4000, 1, generator=random) < 0.05).float().repeat(1, 2)
    inputs = torch.randn(4000, 6, generator=random) + 4 * targets[:, :1]
    task = BeatTracking(label_column="beats")
    layer = fit_frames(inputs.half(), targets, task.loss, seed=0)
    with torch.inference_mode():
        scores = layer(inputs).sigmoid()
    assert scores[targets[:, 0] == 1].mean() > 0.9
    assert scores[targets[:, 0] == 0].mean() < 0.2


def test_a_name_is_always_in_the_same_split():
    splits = [drawn_split(f"note {index}", train=0.5, validation=0.2) for index in range(1000)]
    assert splits == [drawn_split(f"note {i}", train=0.5, validation=0.2) for i in range(1000)]
    assert 400 < splits.count("train") < 600
    assert 120 < splits.count("validation") < 280
