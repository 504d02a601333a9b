"""Labels of masked prediction: features, clusters, codes; segments that are added, and replayed music."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.messages import raises

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.backbones.checkpoints import SHIPPED_DIR
from m2v_finetune.config import (
    InitialBackboneConfig,
    MaskedPredictionConfig,
    PretrainingConfig,
    UnlabelledDataConfig,
)
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.manifest import Track
from m2v_finetune.pretraining.building import build_pretraining_model, pretraining_windows
from m2v_finetune.pretraining.masked_prediction import labels as labels_module
from m2v_finetune.pretraining.masked_prediction.clusters import (
    Clusters,
    load_clusters,
    track_features,
)
from m2v_finetune.pretraining.masked_prediction.codes import read_codes
from m2v_finetune.pretraining.masked_prediction.labels import find_clusters, label_tracks
from m2v_finetune.pretraining.masked_prediction.mixing import Mixing
from m2v_finetune.pretraining.masked_prediction.windows import LabelledWindows
from m2v_finetune.pretraining.model import start_backbone
from m2v_finetune.pretraining.replay import ReplayedWindows, replay_split
from m2v_finetune.pretraining.windows import MaskedWindows, unlabelled_example

RATE = 16_000
GRID = FrameGrid(sample_rate=RATE, stride_samples=320, receptive_field_samples=400)
CONFIG = MaskedPredictionConfig(log_mel_clusters=6, chroma_clusters=4, fit_frames=200)


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    """Five tracks of tones and noise; the last is shorter than a window of 1 s."""
    folder = tmp_path_factory.mktemp("music")
    generator = np.random.default_rng(0)
    made = []
    for number, seconds in enumerate((2.0, 2.5, 3.0, 2.0, 0.6)):
        times = np.arange(round(seconds * RATE)) / RATE
        samples = 0.2 * np.sin(2 * np.pi * 110 * (number + 2) * times * (1 + (times > 1)))
        path = folder / f"{number}.wav"
        soundfile.write(path, samples + 0.02 * generator.standard_normal(len(times)), RATE)
        made.append(checked(path))
    return made


def checked(path):
    track = Track(
        id=path.name, path=path, split=None, columns={}, origin=path.name, folder=path.parent
    )
    return CheckedTrack(track=track, audio=inspect_audio(path))


def of_codes(folder, *, num_codebooks):
    return MaskedPredictionConfig(
        log_mel_clusters=0,
        chroma_clusters=0,
        codes=str(folder),
        num_codebooks=num_codebooks,
        codebook_size=256,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "labels"


def test_features_are_those_of_librosa_at_the_centres_of_frames(tracks):
    feature = pytest.importorskip("librosa").feature
    samples, _ = soundfile.read(tracks[2].track.path)
    num_frames = GRID.num_frames(len(samples))
    assert num_frames == 149
    ours = track_features(tracks[2], GRID, ["log_mel", "chroma"], first=0, num_frames=num_frames)
    for name, size in (("log_mel", 2048), ("chroma", 4096)):
        # The first frame starts so that its centre is sample 200, that of the encoder's first frame.
        padded = np.pad(samples, (size // 2 - 200, size))
        spectrum = {"y": padded, "sr": RATE, "n_fft": size, "hop_length": 320, "center": False}
        if name == "log_mel":
            power = feature.melspectrogram(**spectrum, n_mels=229, fmin=30)
            theirs = 10 * np.log10(np.maximum(power, 1e-10))
        else:
            theirs = feature.chroma_stft(**spectrum, n_chroma=264, tuning=0.0)
        theirs = theirs.T[:num_frames]
        found = ours[name].numpy()
        assert found.shape == theirs.shape
        # Samples of 16 bits and spectra in float32.
        assert np.abs(found - theirs).max() < 2e-4 * np.abs(theirs).max()
    # A part of the frames has the same features.
    part = track_features(tracks[2], GRID, ["chroma"], first=40, num_frames=7)["chroma"]
    torch.testing.assert_close(part, ours["chroma"][40:47], rtol=0, atol=1e-6)


def test_features_in_double_precision_are_exactly_those_of_librosa():
    librosa = pytest.importorskip("librosa")
    from m2v_finetune.pretraining.masked_prediction.spectra import FEATURES, frame_features

    samples = np.random.default_rng(0).standard_normal(12_000)
    for rate in (16_000, 24_000):
        grid = FrameGrid(sample_rate=rate, stride_samples=320, receptive_field_samples=400)
        mel, chroma = (
            frame_features(torch.from_numpy(samples), grid, FEATURES[name]).numpy()
            for name in ("log_mel", "chroma")
        )
        common = {"y": samples, "sr": rate, "hop_length": 320, "center": False}
        theirs = librosa.feature.melspectrogram(
            **common, n_fft=2048, n_mels=229, fmin=30, dtype=np.float64
        )
        np.testing.assert_allclose(10 ** (mel / 10), theirs.T, rtol=1e-6)
        theirs = librosa.feature.chroma_stft(
            **common, n_fft=4096, n_chroma=264, tuning=0.0, dtype=np.float64
        )
        np.testing.assert_allclose(chroma, theirs.T, rtol=1e-5, atol=1e-6)


def test_labels_are_the_nearest_centres_and_are_computed_once(tracks, cache, monkeypatch):
    clusters = find_clusters(CONFIG, tracks[:3], grid=GRID, seed=0, show_progress=False)
    assert clusters.sizes == {"log_mel": 6, "chroma": 4}
    labels = label_tracks(CONFIG, tracks, clusters, show_progress=False)
    assert not labels.problems
    for one in tracks:
        num_frames = GRID.num_frames(one.audio.num_samples(RATE))
        features = track_features(one, GRID, clusters.centres, first=0, num_frames=num_frames)
        stored = labels.read(one.track.id, first=0, num_frames=num_frames + 3)
        assert (stored[:, num_frames:] == -1).all()
        for row, name in zip(stored, clusters.centres, strict=True):
            distances = torch.cdist(features[name].double(), clusters.centres[name].double())
            least = distances.amin(dim=1)
            chosen = distances[torch.arange(num_frames), torch.from_numpy(row[:num_frames]).long()]
            torch.testing.assert_close(chosen, least, rtol=1e-5, atol=1e-5)
    counts = Counter(
        label
        for one in tracks[:3]
        for label in labels.read(one.track.id, first=0, num_frames=95)[0].tolist()
    )
    assert len(counts) > 2
    entropies = labels.entropies(tracks)
    assert 0.5 < entropies["log_mel"] <= np.log(6)

    # The second time everything is read.
    def forbidden(*arguments, **named):
        raise AssertionError("computed again")

    monkeypatch.setattr(labels_module, "fit_clusters", forbidden)
    monkeypatch.setattr(labels_module, "labels_of", forbidden)
    again = find_clusters(CONFIG, tracks[:3], grid=GRID, seed=0, show_progress=False)
    assert again.fingerprint == clusters.fingerprint
    assert label_tracks(CONFIG, tracks, again, show_progress=False).paths == labels.paths
    # Other tracks or settings are others.
    with pytest.raises(AssertionError, match="computed again"):
        find_clusters(CONFIG, tracks[:2], grid=GRID, seed=0, show_progress=False)
    with pytest.raises(AssertionError, match="computed again"):
        find_clusters(CONFIG, tracks[:3], grid=GRID, seed=1, show_progress=False)


def test_a_track_shorter_than_a_frame_has_no_labels(tracks, tmp_path):
    path = tmp_path / "click.wav"
    soundfile.write(path, np.ones(300), RATE)
    clusters = find_clusters(CONFIG, tracks, grid=GRID, seed=0, show_progress=False)
    labels = label_tracks(CONFIG, [tracks[0], checked(path)], clusters, show_progress=False)
    assert [*labels.problems] == ["click.wav"]
    assert [*labels.paths] == [tracks[0].track.id]


def test_files_of_clusters(tracks, tmp_path):
    clusters = Clusters(grid=GRID, centres={"log_mel": torch.randn(6, 229)})
    path = tmp_path / "clusters.safetensors"
    clusters.save(path)
    loaded = load_clusters(path, grid=GRID, sizes={"log_mel": 6})
    assert loaded.fingerprint == clusters.fingerprint
    other = FrameGrid(sample_rate=24_000, stride_samples=320, receptive_field_samples=400)
    with raises("clusters-other", "24000"):
        load_clusters(path, grid=other, sizes={"log_mel": 6})
    with raises("clusters-other", "(7, 229)"):
        load_clusters(path, grid=GRID, sizes={"log_mel": 7})
    path.write_bytes(b"no clusters")
    with raises("clusters-unreadable", path):
        load_clusters(path, grid=GRID, sizes={"log_mel": 6})
    many = MaskedPredictionConfig(log_mel_clusters=9999, chroma_clusters=0, fit_frames=200)
    with raises("clusters-too-few-frames", "9999", "log_mel"):
        find_clusters(many, tracks, grid=GRID, seed=0, show_progress=False)


def test_codes_are_those_of_the_nearest_time(tracks, tmp_path):
    track = tracks[0]  # 2 s
    codes = np.arange(3 * 150).reshape(3, 150) % 256
    np.save(tmp_path / "0.wav.npy", codes)
    settings = {"grid": GRID, "num_codebooks": 2, "codebook_size": 256}
    found = read_codes(tmp_path, track, **settings)
    centres = (np.arange(150) + 0.5) / 75
    for frame, seconds in enumerate(GRID.times(99)):
        nearest = np.abs(centres - seconds).argmin()
        assert found[:, frame].tolist() == codes[:2, nearest].tolist()
    config = of_codes(tmp_path, num_codebooks=2)
    clusters = find_clusters(config, [track], grid=GRID, seed=0, show_progress=False)
    labels = label_tracks(config, tracks[:2], clusters, show_progress=False)
    assert np.array_equal(labels.read("0.wav", first=5, num_frames=4), found[:, 5:9])
    assert [*labels.problems] == ["1.wav"]
    with raises("labels-missing", "1.wav.npy"):
        labels.require_all(on_bad_track="stop")
    labels.require_all(on_bad_track="skip")


def test_networks_of_one_frame_rate_have_labels_of_their_own(tracks, tmp_path):
    """Codes alone: the frames of another receptive field are at other times."""
    np.save(tmp_path / "0.wav.npy", np.arange(150)[None] % 256)
    config = of_codes(tmp_path, num_codebooks=1)
    wide = FrameGrid(sample_rate=RATE, stride_samples=320, receptive_field_samples=2288)
    for grid in (GRID, wide):
        clusters = find_clusters(config, tracks[:1], grid=grid, seed=0, show_progress=False)
        labels = label_tracks(config, tracks[:1], clusters, show_progress=False)
        found = labels.read("0.wav", first=0, num_frames=20)[0]
        assert found.tolist() == np.floor(grid.times(20) * 75).astype(int).tolist()


def test_two_tracks_of_one_id_are_refused(tracks, tmp_path):
    """Own music in a folder "replay", beside replayed music."""
    path = tmp_path / "0.wav"
    path.write_bytes(tracks[0].track.path.read_bytes())
    clusters = find_clusters(CONFIG, tracks, grid=GRID, seed=0, show_progress=False)
    with raises("labels-duplicate-id", "0.wav"):
        label_tracks(CONFIG, [tracks[0], checked(path)], clusters, show_progress=False)


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        (np.zeros((2, 150)), "integers"),
        (np.zeros((1, 150), dtype=int), "2 codebooks are used"),
        (np.full((2, 150), 256), "256 to 256"),
        (np.full((2, 150), -1), "-1 to -1"),
        (np.zeros((2, 140), dtype=int), "1.87 s"),
        (np.zeros(150, dtype=int), "integers"),
    ],
)
def test_codes_that_are_none(tracks, tmp_path, codes, problem):
    np.save(tmp_path / "0.wav.npy", codes)
    with raises("codes-invalid", "0.wav.npy", problem):
        read_codes(tmp_path, tracks[0], grid=GRID, num_codebooks=2, codebook_size=256)


def windows_of(tracks, *, labels, mixing=None, windows_per_track=1):
    masked = MaskedWindows(
        windows=TrainingWindows(
            tracks=tracks,
            example=unlabelled_example,
            grid=GRID,
            window_samples=RATE,
            windows_per_track=windows_per_track,
            augmentation=None,
            seed=0,
            multiple_of=GRID.stride_samples,
        ),
        mask_probability=0.8,
        mask_span_frames=5,
        min_mask_spans=2,
    )
    return LabelledWindows(masked=masked, labels=labels, mixing=mixing)


@pytest.fixture
def labels(tracks):
    clusters = find_clusters(CONFIG, tracks, grid=GRID, seed=0, show_progress=False)
    return label_tracks(CONFIG, tracks, clusters, show_progress=False)


def test_windows_have_the_labels_of_their_frames(tracks, labels):
    windows = windows_of(tracks, labels=labels)
    starts = set()
    for epoch in range(3):
        for index, one in enumerate(tracks):
            waveforms, of_frames, mask, target = windows[epoch, index]
            start = windows.masked.windows.sample((epoch, index)).window.start_sample
            starts.add(start % 320)
            assert waveforms.shape == (1, RATE)
            assert torch.equal(mask, target)
            features = track_features(
                one, GRID, labels.clusters.centres, first=start // 320, num_frames=49
            )
            expected = labels.clusters.labels(features)
            exists = GRID.num_frames(one.audio.num_samples(RATE)) - start // 320
            assert (of_frames.numpy() == expected)[:, :exists].mean() > 0.99  # but for ties
            assert (of_frames[:, exists:] == -1).all()
    assert starts == {0}


def test_the_settings_of_masks_windows_and_mixing_are_those_of_the_run(tracks, labels):
    config = PretrainingConfig(
        objective="masked_prediction",
        data=UnlabelledDataConfig(source="x", window_seconds=1.0),
        backbone=InitialBackboneConfig(architecture=str(SHIPPED_DIR / "random_small")),
        masked_prediction=replace(
            CONFIG,
            mask_probability=0.01,
            mask_span_frames=2,
            min_mask_spans=5,
            mix_probability=1.0,
            mix_max_segments=1,
            mix_min_seconds=0.2,
            mix_max_seconds=0.5,
        ),
    )
    model = build_pretraining_model(start_backbone(config.backbone), config)
    splits = {"train": tracks[:3], "validation": tracks[3:]}
    training, validation = pretraining_windows(model, splits, config, labels)
    starts, added = set(), []
    for epoch in range(10):
        (mixed, clean), _, mask, _ = training[epoch, 2]
        starts.add(training.masked.windows.sample((epoch, 2)).window.start_sample)
        assert mask.sum() >= 6  # five spans of two frames may overlap
        added.append(int((mixed - clean).count_nonzero()) / RATE)
    assert len(starts) > 5
    assert {start % GRID.stride_samples for start in starts} == {0}
    assert min(added) > 0.15
    assert 0.35 < max(added) <= 0.5
    for index, one in enumerate(tracks[3:]):
        (same, clean), of_frames, mask, _ = validation[0, index]
        assert torch.equal(same, clean)
        num_real = min(49, GRID.num_frames(one.audio.num_samples(RATE)))
        assert (of_frames[0] >= 0).sum() == num_real
        assert mask[:num_real].sum() >= 6
        assert not mask[num_real:].any()


def test_segments_of_other_tracks_are_added_to_the_input_alone(tracks, labels):
    mixing = Mixing(
        tracks=tracks,
        probability=0.5,
        max_segments=3,
        min_seconds=0.2,
        max_seconds=0.3,
        seed=0,
    )
    windows, plain = (
        windows_of(tracks, labels=labels, mixing=mixing),
        windows_of(tracks, labels=labels),
    )
    num_mixed, lengths = 0, []
    for epoch in range(20):
        (mixed, clean), *others = windows[epoch, 2]
        (expected,), *plain_others = plain[epoch, 2]
        assert torch.equal(clean, expected)
        assert all(torch.equal(a, b) for a, b in zip(others, plain_others, strict=True))
        again = windows[epoch, 2][0][0]
        assert torch.equal(mixed, again)
        added = (mixed - clean).nonzero().flatten()
        num_mixed += len(added) > 0
        lengths.append(len(added) / RATE)
    assert 5 <= num_mixed <= 15
    assert max(lengths) > 0.3  # of two and more
    assert max(lengths) <= 0.9
    # Never of the track itself: here it is the only one with sound.
    silent = [checked(write_silence(one.track.path)) for one in tracks[:2]]
    one_sound = Mixing(
        tracks=[tracks[2], *silent],
        probability=1.0,
        max_segments=3,
        min_seconds=0.2,
        max_seconds=0.3,
        seed=0,
    )
    sampled = plain.masked.windows.sample((0, 2))
    waveform = plain[0, 2][0][0].numpy()
    for epoch in range(5):
        assert np.array_equal(one_sound.mix(waveform, sampled, epoch=epoch, name="a"), waveform)


def write_silence(path):
    silent = path.with_name(f"silent-{path.name}")
    soundfile.write(silent, np.zeros(RATE), RATE)
    return silent


def test_replayed_windows_are_a_share_and_take_turns(tracks, labels):
    own = windows_of(tracks[:3], labels=labels, windows_per_track=4)
    general = windows_of(tracks[2:], labels=labels)
    both = ReplayedWindows(own=own, replayed=general, share=0.2)
    assert len(both) == 15
    seen = []
    for epoch in range(4):
        for index in (0, 11):
            assert all(map(torch.equal, both[epoch, index], own[epoch, index]))
        for index in range(12, 15):
            turn, item = both.replayed_item(epoch, index)
            assert all(map(torch.equal, both[epoch, index], general[turn, item]))
            seen.append((turn, item))
    assert sorted(seen) == [(turn, item) for turn in range(4) for item in range(3)]
    names = [both.track_of(index, epoch).id for epoch in range(4) for index in range(12, 15)]
    assert names == [f"{2 + item}.wav" for _, item in seen]
    assert both.track_of(11, 3) == own.track_of(11, 3)


def test_the_tracks_of_replay_have_names_of_their_own(tracks):
    folder = str(Path(tracks[0].track.path).parent)
    assert replay_split(UnlabelledDataConfig(source="x")) == ({}, None)
    replayed, dataset = replay_split(UnlabelledDataConfig(source="x", replay=folder))
    [(name, members)] = replayed.items()
    assert dataset.name == Path(folder).name
    assert name == "replay"
    assert {"replay/0.wav", "replay/4.wav"} <= {track.id for track in members}
    assert {track.split for track in members} == {"replay"}
    with raises("settings-range", "data.replay_share"):
        UnlabelledDataConfig(source="x", replay_share=1.0)
