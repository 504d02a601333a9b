"""The separation task: stems, what the model takes of them, and stems joined in bounded memory."""

import json
import math
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from support.frame_tracks import GRIDS, augment, checked_track, make_track, windows_of
from support.messages import fails, raises

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.decode import AudioInfo, inspect_audio
from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.audio.windows import window_starts
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import AudioError
from m2v_finetune.tasks.separation import Separation, SeparationConfig, Stems
from m2v_finetune.tasks.separation.stem_files import stem_path

NAMES = ("vocals", "drums", "bass")


def build(*, sample_rate=16000, num_channels=1, stems=NAMES) -> Separation:
    return Separation(
        stems=stems, label_column="stems", sample_rate=sample_rate, num_channels=num_channels
    )


def true_stems(seconds, sample_rate, *, num_channels=1, num_stems=3, seed=0):
    """Noise of different levels, never silent, (stems, channels, samples)."""
    rng = np.random.default_rng(seed)
    shape = (num_stems, num_channels, round(seconds * sample_rate))
    levels = np.array([0.3, 0.1, 0.2, 0.05])[:num_stems, None, None]
    return (levels * rng.normal(size=shape)).astype(np.float32)


def stem_track(folder, stems, sample_rate, *, name="song", names=NAMES, suffix=".wav"):
    """Write stems and their sum, the mixture."""
    location = folder / f"{name}-stems"
    location.mkdir()
    for stem, samples in zip(names, stems, strict=True):
        soundfile.write(location / f"{stem}{suffix}", samples.T, sample_rate, subtype="FLOAT")
    mixture = stems.sum(axis=0).T
    return checked_track(folder, mixture, sample_rate, name=f"{name}.wav", stems=location.name)


def frame_windows(checked, grid, *, window_seconds=1.0, hop_seconds=0.5):
    """Windows as a model lays them out for a task that is not ``on_frames``."""
    num_samples, hop = (round(s * grid.sample_rate) for s in (window_seconds, hop_seconds))
    starts = window_starts(checked.audio.num_samples(grid.sample_rate), num_samples, hop)
    return [Window(start_sample=s, num_samples=num_samples, grid=grid) for s in starts]


def oracle(task, checked, windows, stems):
    """Each window with what is in it of given stems: read by the task, as the mixture is."""
    folder = checked.track.folder
    for window in windows:
        cut = []
        for number, one in enumerate(stems):
            path = folder / f"told-{number}.wav"
            if not path.exists():
                soundfile.write(path, one.T, task.sample_rate, subtype="FLOAT")
            twin = replace(checked, track=replace(checked.track, path=path))
            cut.append(task.inputs(twin, window)[1])
        yield window, np.stack(cut)


# -- annotations ----------------------------------------------------------------------------------


def test_every_bad_stem_is_listed(tmp_path):
    stems = true_stems(0.5, 16000, num_channels=2)
    tracks = []
    for n, name in enumerate(["good", "gone", "short", "bad", "none", "wide"]):
        track = stem_track(tmp_path, stems, 16000, name=name).track
        tracks.append(replace(track, origin=f"songs.csv:{n + 2}"))
    (tmp_path / "gone-stems" / "drums.wav").unlink()
    soundfile.write(tmp_path / "short-stems" / "bass.wav", stems[0].T[:-5], 16000)
    soundfile.write(tmp_path / "short-stems" / "drums.wav", np.zeros((9000, 2)), 16000)
    (tmp_path / "bad-stems" / "vocals.wav").write_bytes(b"no audio at all, but text")
    for path in (tmp_path / "none-stems").iterdir():
        path.unlink()
    (tmp_path / "none-stems").rmdir()
    soundfile.write(tmp_path / "wide-stems" / "vocals.wav", np.zeros((8000, 3)), 16000)
    soundfile.write(tmp_path / "wide.wav", np.zeros((8000, 4)), 16000)
    tracks.append(make_track(tmp_path, name="good.wav", origin="songs.csv:8", stems=None))

    config = SeparationConfig(stems=list(NAMES), sample_rate=16000)
    with raises("stems-unusable") as raised:
        Separation.from_tracks(config, {"train": tracks[:3], "test": tracks[3:]})
    message = str(raised.value)
    assert "(8)" in message
    for problem in (
        f"songs.csv:3: {tmp_path}/gone-stems has no stem 'drums'",
        f"songs.csv:4: {tmp_path}/short-stems/bass.wav lasts 0.4997 s, its mixture 0.5000 s",
        f"songs.csv:4: {tmp_path}/short-stems/drums.wav lasts 0.5625 s, its mixture 0.5000 s",
        f"songs.csv:5: {tmp_path}/bad-stems/vocals.wav: no audio that can be read",
        "songs.csv:6: there is no folder of stems at 'none-stems'",
        f"songs.csv:7: {tmp_path}/wide.wav has 4 channels, where 1 or 2 are expected",
        f"songs.csv:7: {tmp_path}/wide-stems/vocals.wav has 3 channels, where 1 or 2 are expected",
        "songs.csv:8: no folder of stems in the column, but None",
        "vocals, drums, bass (task.stems)",
    ):
        assert problem in message, problem
    assert "good-stems" not in message
    # Whatever its channels, a file can be mixed down to one.
    build().check_labels([tracks[5]])
    with raises("manifest-no-label-column", "'stems'"):
        build().check_labels([make_track(tmp_path)])


def test_a_mixture_that_cannot_be_read_is_left_to_the_check_of_tracks(tmp_path):
    checked = stem_track(tmp_path, true_stems(0.5, 16000), 16000)
    checked.track.path.write_bytes(b"no audio")
    build().check_labels([checked.track])
    with pytest.raises(AudioError):
        inspect_audio(checked.track.path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_stem_is_found_whatever_its_suffix(suffix, tmp_path):
    (tmp_path / f"drums{suffix}").touch()
    (tmp_path / "vocals.txt").touch()
    assert stem_path(tmp_path, "drums") == tmp_path / f"drums{suffix}"
    assert stem_path(tmp_path, "vocals") is None


@pytest.mark.parametrize(
    ("settings", "code", "legal"),
    [
        ({"stems": ["vocals"]}, "stems-not-distinct", "task.stems is ['vocals']"),
        ({"stems": ["a", "b", "a"]}, "stems-not-distinct", "task.stems is ['a', 'b', 'a']"),
        ({"num_channels": 3}, "num-channels-illegal", "1 or 2"),
        ({"sample_rate": 4000}, "sample-rate-illegal", "8000 Hz"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, code, legal):
    with raises(code, legal):
        SeparationConfig(**settings)


def test_settings_survive(tmp_path):
    track = stem_track(tmp_path, true_stems(0.5, 8000, num_channels=2), 8000).track
    config = SeparationConfig(stems=list(NAMES), sample_rate=8000, num_channels=2)
    task = Separation.from_tracks(config, {"train": [track]})
    assert task == build(sample_rate=8000, num_channels=2)
    saved = json.loads(json.dumps(task.to_dict()))
    assert Separation.from_dict(saved) == task
    assert task.num_outputs == 3
    with fails(ValueError, "labels"):
        Separation.from_dict({**saved, "stems": ["a", "a"]})


# -- what the model takes -------------------------------------------------------------------------


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 16000), (44100, 24000), (8000, 24000)])
def test_an_example_is_a_mixture_its_stems_and_the_backbone_input(rates, num_channels, tmp_path):
    sample_rate, backbone_rate = rates
    grid = GRIDS[backbone_rate // 320]
    stems = true_stems(3.0, sample_rate, num_channels=num_channels)
    checked = stem_track(tmp_path, stems, sample_rate)
    task = build(sample_rate=sample_rate, num_channels=num_channels)
    whole_waveform = soxr.resample(stems.sum(axis=0).mean(axis=0), sample_rate, backbone_rate)
    for start in (0, 4_567, 2 * backbone_rate):  # the last of these ends where the track does
        window = Window(start_sample=start, num_samples=backbone_rate, grid=grid)
        waveform, mixture, cut = task.example(checked, window, None)
        assert waveform.shape == (backbone_rate,)
        first_sample = start * sample_rate // backbone_rate
        # A window lasts some samples longer, so that windows meet whatever the two rates are.
        spare = cut.shape[-1] - sample_rate
        assert 0 <= spare <= 5
        known = min(cut.shape[-1], stems.shape[-1] - first_sample)
        np.testing.assert_array_equal(
            cut[..., :known], stems[..., first_sample : first_sample + known]
        )
        assert (cut[..., known:] == 0).all()
        np.testing.assert_allclose(mixture, cut.sum(axis=0), atol=1e-6)
        # The filter of the resampler meets the borders of the window.
        inner = slice(400, -400)
        aligned = whole_waveform[start : start + backbone_rate][inner]
        if (start * sample_rate) % backbone_rate == 0:
            np.testing.assert_allclose(waveform[inner], aligned, atol=2e-4)
        waveform_again, mixture_again = task.inputs(checked, window)
        np.testing.assert_allclose(mixture_again, mixture, atol=1e-6)
        np.testing.assert_allclose(waveform_again, waveform, atol=1e-5)
        assert {part.dtype for part in (waveform, mixture, cut)} == {np.dtype(np.float32)}


def test_a_track_shorter_than_a_window_is_padded(tmp_path):
    stems = true_stems(0.3, 44100, num_channels=2)
    checked = stem_track(tmp_path, stems, 44100)
    task = build(sample_rate=44100, num_channels=2)
    window = Window(start_sample=0, num_samples=16000, grid=GRIDS[50])
    waveform, mixture, cut = task.example(checked, window, None)
    assert waveform.shape == (16000,)
    np.testing.assert_array_equal(cut[..., : stems.shape[-1]], stems)
    assert (cut[..., stems.shape[-1] :] == 0).all()
    assert (mixture[..., stems.shape[-1] :] == 0).all()
    assert np.abs(waveform[4900:]).max() < 1e-3


def test_all_stems_are_augmented_alike(tmp_path):
    stems = true_stems(2.0, 16000, num_channels=2)
    checked = stem_track(tmp_path, stems, 16000)
    task = build(num_channels=2)
    window = Window(start_sample=0, num_samples=16000, grid=GRIDS[50])
    _, mixture, plain = task.example(checked, window, None)
    gain = {"name": "gain", "min_gain_db": -6.0206, "max_gain_db": -6.0206}
    apply, _ = augment(task, gain, {"name": "polarity_inversion"})
    waveform, quieter, cut = task.example(checked, window, apply)
    np.testing.assert_allclose(cut, -0.5 * plain, atol=1e-5)
    np.testing.assert_allclose(quieter, -0.5 * mixture, atol=1e-5)
    np.testing.assert_allclose(waveform, quieter.mean(axis=0)[:16000], atol=1e-6)
    # Something that moves: by the same amount in all.
    shift = {"name": "shift", "min_shift": 0.25, "max_shift": 0.25, "fade_duration": 0.0}
    _, moved, cut = task.example(checked, window, augment(task, shift)[0])
    amount = round(0.25 * plain.shape[-1])
    np.testing.assert_allclose(cut, np.roll(plain, amount, axis=-1), atol=1e-6)
    np.testing.assert_allclose(moved, cut.sum(axis=0), atol=1e-6)
    _, same, _ = task.example(checked, window, lambda samples: (samples, IDENTITY))
    np.testing.assert_array_equal(same, mixture)


def test_noise_which_is_in_no_stem_is_refused():
    task = build()
    assert set(Effect) - task.allowed_effects() == {Effect.NOISE}
    assert task.transformed_effects() == frozenset()
    with raises("transform-changes-labels", "adds noise"):
        augment(task, {"name": "gaussian_snr"})


def test_the_loss_is_the_mean_absolute_error():
    outputs = torch.tensor([[[[0.5, -1.0]], [[0.0, 2.0]]]])
    targets = torch.tensor([[[[0.0, 1.0]], [[0.25, 2.0]]]])
    assert build().loss(outputs, targets).item() == pytest.approx((0.5 + 2 + 0.25 + 0) / 4)
    assert torch.equal(build().activate(outputs), outputs)


@pytest.mark.parametrize(("sample_rate", "n_fft"), [(44100, 4096), (16000, 2048), (8000, 1024)])
def test_the_head_masks_a_spectrogram_of_a_tenth_of_a_second(sample_rate, n_fft):
    task = build(sample_rate=sample_rate, num_channels=2)
    head = task.build_head(HeadConfig(hidden_size=8), hidden_size=4, grid=GRIDS[50])
    assert (head.n_fft, head.hop_samples) == (n_fft, n_fft // 4)
    mixture = torch.randn(2, 2, sample_rate)
    stems = head.eval()(torch.randn(2, 49, 4), mixture)
    assert stems.shape == (2, 3, 2, sample_rate)
    torch.testing.assert_close(stems.sum(dim=1), mixture, atol=1e-4, rtol=0)
    assert "hidden size 8, dropout 0.2" in task.describe_head(HeadConfig(hidden_size=8))


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({"pooling": "attention"}, "head-unsupported-setting", "head.pooling is 'attention'"),
        ({"kind": "mlp"}, "head-unsupported-setting", "head.kind is 'mlp'"),
        ({"hidden_size": 7}, "head-odd-hidden-size", "head.hidden_size is 7"),
    ],
)
def test_settings_that_a_mask_has_not_are_refused(settings, code, named):
    with raises(code, named):
        build().build_head(HeadConfig(**settings), hidden_size=4, grid=GRIDS[50])


# -- from windows to a track ----------------------------------------------------------------------


@pytest.mark.parametrize("hop_seconds", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 16000), (44100, 24000), (8000, 24000)])
def test_windows_are_joined_to_the_track(rates, hop_seconds, tmp_path):
    """At lengths that the two rates round differently."""
    sample_rate, backbone_rate = rates
    task = build(sample_rate=sample_rate)
    for more in (0, 1, 2, 3):
        folder = tmp_path / str(more)
        folder.mkdir()
        stems = true_stems(3.2 + more / sample_rate, sample_rate)
        checked = stem_track(folder, stems, sample_rate)
        windows = frame_windows(checked, GRIDS[backbone_rate // 320], hop_seconds=hop_seconds)
        assert len(windows) >= 4
        joined = task.predict(checked, oracle(task, checked, windows, stems))
        assert joined.num_samples == stems.shape[-1]
        arrays = joined.arrays()
        assert list(arrays) == list(NAMES)
        np.testing.assert_allclose(np.stack(list(arrays.values())), stems, atol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 2, 50, 4000, 44099, 44101])
def test_a_file_of_any_length_keeps_its_length(num_samples, tmp_path):
    task = build(sample_rate=44100)
    stems = true_stems(num_samples / 44100, 44100)
    checked = stem_track(tmp_path, stems, 44100)
    windows = frame_windows(checked, GRIDS[50])
    arrays = task.predict(checked, oracle(task, checked, windows, stems)).arrays()
    np.testing.assert_allclose(np.stack(list(arrays.values())), stems, atol=1e-6)


def with_noise(stems, sample_rate, sdrs_db, *, seed=9):
    """Estimates whose SDR is known in each whole second."""
    noise = np.random.default_rng(seed).normal(size=stems.shape)
    for second in range(stems.shape[-1] // sample_rate):
        part = slice(second * sample_rate, (second + 1) * sample_rate)
        energy, of_noise = (np.sum(x[..., part] ** 2, axis=(1, 2)) for x in (stems, noise))
        factor = np.sqrt(energy / of_noise * 10 ** (-np.asarray(sdrs_db) / 10))
        noise[..., part] *= factor[:, None, None]
    return (stems + noise).astype(np.float32)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_stems_with_noise_have_the_sdr_of_the_noise(num_channels, tmp_path):
    task = build(sample_rate=16000, num_channels=num_channels)
    stems = true_stems(5.0, 16000, num_channels=num_channels)
    checked = stem_track(tmp_path, stems, 16000)
    estimates = with_noise(stems, 16000, [12.0, 3.0, -4.0])
    windows = frame_windows(checked, GRIDS[75], hop_seconds=0.41)
    evaluated = task.evaluate_track(
        checked, task.predict(checked, oracle(task, checked, windows, estimates))
    )
    assert {stem: scores["sdr"] for stem, scores in evaluated.items()} == pytest.approx(
        {"vocals": 12.0, "drums": 3.0, "bass": -4.0}, abs=1e-3
    )
    for number, stem in enumerate(NAMES):
        reference, estimate = (x[number].ravel().astype(float) for x in (stems, estimates))
        target = (reference @ estimate) / (reference @ reference) * reference
        expected = 10 * np.log10((target @ target) / np.sum((estimate - target) ** 2))
        assert evaluated[stem]["si_sdr"] == pytest.approx(expected, abs=1e-3)
    row = task.prediction_row(evaluated)
    assert row["sdr_drums"] == evaluated["drums"]["sdr"]
    assert row["si_sdr_bass"] == evaluated["bass"]["si_sdr"]
    assert len(row) == 6


def test_seconds_without_an_error_do_not_count(tmp_path):
    task = build()
    stems = true_stems(3.0, 16000)
    checked = stem_track(tmp_path, stems, 16000)
    for exact, expected in ((slice(0, 32000), 7.0), (slice(0, 48000), math.nan)):
        estimates = with_noise(stems, 16000, [7.0] * 3)
        estimates[..., exact] = stems[..., exact]
        prediction = Stems(NAMES, sample_rate=16000, num_samples=48000, chunks=iter([estimates]))
        evaluated = task.evaluate_track(checked, prediction)
        assert evaluated["vocals"]["sdr"] == pytest.approx(expected, abs=1e-3, nan_ok=True)


def test_a_report_is_the_median_of_tracks_and_the_mean_of_stems():
    task = build(stems=("a", "b"))
    evaluated = [
        {"a": {"sdr": a, "si_sdr": a - 1}, "b": {"sdr": b, "si_sdr": b + 1}}
        for a, b in ((1.0, 10.0), (2.0, 20.0), (6.0, math.nan))
    ]
    values = task.compute_metrics(evaluated)
    assert values == pytest.approx(
        {"sdr": 8.5, "sdr_a": 2.0, "sdr_b": 15.0, "si_sdr": 8.5, "si_sdr_a": 1.0, "si_sdr_b": 16.0}
    )
    assert list(values) == list(task.metric_names)
    assert task.selection_metric in values
    report = task.summarize(evaluated, seed=0)
    assert report["metrics"]["sdr"]["value"] == pytest.approx(8.5)
    assert report["num_scored_tracks"]["sdr_b"] == 2
    assert "median over tracks" in report["about_metrics"]
    nothing = [{stem: {"sdr": math.nan, "si_sdr": math.nan} for stem in ("a", "b")}]
    assert all(math.isnan(value) for value in task.compute_metrics(nothing).values())


# -- any length, in bounded memory ----------------------------------------------------------------

LONG_SECONDS = 150
LONG_RATE = 8000
PEAK_BYTES = 4_000_000  # of 9,600,000 that the two stems have


def long_windows(checked):
    """Windows of a known signal, made one by one: stem k of the sample n is (n % 1000 + k) / 1000."""
    grid = GRIDS[50]
    for window in frame_windows(checked, grid, window_seconds=5.0, hop_seconds=2.5):
        positions = window.start_sample // 2 + np.arange(40_002)
        ramp = (positions % 1000).astype(np.float32)
        yield window, np.stack([ramp, ramp + 1])[:, None] / np.float32(1000)


def test_minutes_are_written_in_bounded_memory(tmp_path):
    task = build(sample_rate=LONG_RATE, stems=("a", "b"))
    audio = AudioInfo(sample_rate=LONG_RATE, num_frames=LONG_SECONDS * LONG_RATE, num_channels=1)
    checked = CheckedTrack(track=make_track(tmp_path), audio=audio)
    task.predict(checked, long_windows(checked)).render(
        "json", path=Path("a"), top=1, timeline=False, is_first=True
    )  # what is imported or cached once
    tracemalloc.start()
    try:
        task.predict(checked, long_windows(checked)).write("wav", tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES
    for number, stem in enumerate(("a", "b")):
        samples, rate = soundfile.read(tmp_path / "out" / f"{stem}.wav", dtype="float32")
        assert (rate, len(samples)) == (LONG_RATE, LONG_SECONDS * LONG_RATE)
        expected = (np.arange(len(samples)) % 1000 + number) / 1000
        np.testing.assert_allclose(samples, expected, atol=1e-6)


def test_minutes_are_evaluated_in_bounded_memory(tmp_path):
    task = build(sample_rate=LONG_RATE, stems=("a", "b"))
    (tmp_path / "stems").mkdir()
    positions = np.arange(LONG_SECONDS * LONG_RATE) % 1000
    for number, stem in enumerate(("a", "b")):
        reference = (positions + number + 100) / 1000  # each estimate is a tenth too low
        soundfile.write(tmp_path / "stems" / f"{stem}.wav", reference, LONG_RATE, subtype="FLOAT")
    audio = inspect_audio(tmp_path / "stems" / "a.wav")
    checked = CheckedTrack(track=make_track(tmp_path, stems="stems"), audio=audio)
    windows = long_windows(checked)
    tracemalloc.start()
    try:
        evaluated = task.evaluate_track(checked, task.predict(checked, windows))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PEAK_BYTES
    energy = np.mean(((positions + 100) / 1000) ** 2)
    assert evaluated["a"]["sdr"] == pytest.approx(10 * np.log10(energy / 0.1**2), abs=0.01)


# -- what a prediction is written as --------------------------------------------------------------


def prediction_of(stems, *, chunks=(0, 1000, 1500, 16000)):
    parts = (stems[..., start:stop] for start, stop in pairwise(chunks))
    return Stems(NAMES, sample_rate=16000, num_samples=stems.shape[-1], chunks=parts)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_written_files_equal_the_arrays(num_channels, tmp_path):
    assert Separation.formats == {"text": None, "json": None, "wav": ""}
    stems = 5 * true_stems(1.0, 16000, num_channels=num_channels)  # beyond full scale, too
    assert np.abs(stems).max() > 1.5
    arrays = prediction_of(stems).arrays()
    prediction_of(stems).write("wav", tmp_path / "song")
    assert {p.name for p in tmp_path.iterdir()} == {"song"}
    assert {p.name for p in (tmp_path / "song").iterdir()} == {f"{name}.wav" for name in NAMES}
    for name, expected in arrays.items():
        samples, rate = soundfile.read(
            tmp_path / "song" / f"{name}.wav", dtype="float32", always_2d=True
        )
        assert rate == 16000
        assert samples.shape == (16000, num_channels)
        np.testing.assert_array_equal(samples.T, expected)
    np.testing.assert_array_equal(np.stack(list(arrays.values())), stems)


def test_nothing_is_half_written(tmp_path):
    stems = true_stems(1.0, 16000)

    def chunks():
        yield stems[..., :8000]
        raise AudioError("the file ends here")

    broken = Stems(NAMES, sample_rate=16000, num_samples=16000, chunks=chunks())
    with pytest.raises(AudioError, match="ends here"):
        broken.write("wav", tmp_path / "song")
    assert list(tmp_path.iterdir()) == []


def test_text_and_json_are_the_levels():
    stems = np.ones((3, 2, 16000), dtype=np.float32) * np.array([1.0, 0.1, 0.0])[:, None, None]

    def render(kind):
        return prediction_of(stems).render(
            kind, path=Path("a/b.mp3"), top=3, timeline=False, is_first=True
        )

    assert render("text").splitlines() == [
        "a/b.mp3",
        "      0.0 dB  vocals",
        "    -20.0 dB  drums",
        "   -120.0 dB  bass",
    ]
    assert json.loads(render("json")) == {
        "path": "a/b.mp3",
        "levels_db": {"vocals": 0.0, "drums": -20.0, "bass": -120.0},
    }


@pytest.mark.slow
def test_a_picture_is_drawn_of_the_first_seconds_alone(tmp_path):
    task = build()
    stems = true_stems(2.0, 16000)
    checked = stem_track(tmp_path, stems, 16000)
    audio = replace(checked.audio, num_frames=30 * 16000)
    soundfile.write(checked.track.path, np.zeros(30 * 16000), 16000)
    windows = windows_of(replace(checked, audio=audio), GRIDS[50])
    seen = []

    def predict(_):
        def scores():
            for window in windows:
                seen.append(window.start_seconds)
                yield window, np.random.default_rng(0).normal(size=(3, 1, 80_002)).astype("f4")

        return task.predict(replace(checked, audio=audio), scores())

    folder = tmp_path / "plots"
    folder.mkdir()
    captions = task.plot(folder, results={}, evaluated=[], tracks=[checked], predict=predict)
    assert {path.name for path in folder.iterdir()} == set(captions) == {"separation.png"}
    assert max(seen) <= 12.5, "no more is separated than is shown"
