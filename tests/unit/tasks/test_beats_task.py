"""The beats task: annotations, targets that move with the audio, and what becomes of perfect windows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frame_tracks import (
    GRIDS,
    augment,
    centres,
    checked_track,
    make_track,
    silent_track,
    windows_of,
    with_scores,
)
from support.messages import names, raises

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import UserError
from m2v_finetune.labels.beats import read_beats
from m2v_finetune.tasks.beats import BeatsConfig, BeatsPrediction, BeatTracking

TASK = BeatTracking(label_column="beats")


def write_beats(folder, times, positions=None, *, name="song.beats"):
    lines = [f"{time:.6f}" for time in times]
    if positions is not None:
        lines = [f"{line}\t{position}" for line, position in zip(lines, positions, strict=True)]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return name


def beat_grid(bpm, beats_per_bar, *, first=0.3, seconds=20.0):
    times = np.arange(first, seconds - 0.2, 60 / bpm)
    return times, np.arange(len(times)) % beats_per_bar + 1


# -- annotations ----------------------------------------------------------------------------------


def test_an_annotation_that_continues_after_its_audio_is_listed(tmp_path):
    write_beats(tmp_path, [0.5, 1.0, 10.4], name="near.beats")
    write_beats(tmp_path, [500, 1000, 1500], name="milliseconds.beats")
    near = silent_track(tmp_path, 10, name="near.wav", beats="near.beats").track
    far = silent_track(tmp_path, 10, name="far.wav", beats="milliseconds.beats").track
    TASK.check_labels([near])
    values = ("milliseconds.beats", "1500.000 s", "far.wav", "10.000 s")
    with raises("labels-unusable", *values) as raised:
        TASK.check_labels([near, far])
    assert "near" not in str(raised.value)


def test_every_bad_annotation_is_listed_with_file_and_line(tmp_path):
    (tmp_path / "a.beats").write_text("0.5 1\n0.4 2\n1.0 2\nsoon 3\n")
    (tmp_path / "b.beats").write_text("0.5 1\n1.0 first\n1.5\n")
    (tmp_path / "good.beats").write_text("0.5 1\n1.0 2\n")
    (tmp_path / "times.beats").write_text("0.5\n1.0\n")
    named = ["a.beats", "good.beats", "gone.beats", "b.beats", 7, "times.beats"]
    tracks = [
        make_track(tmp_path, name=f"{n}.wav", origin=f"songs.csv:{n + 2}", beats=beats)
        for n, beats in enumerate(named)
    ]
    for check in (
        lambda: TASK.check_labels(tracks),
        lambda: BeatTracking.from_tracks(BeatsConfig(), {"train": tracks[:2], "test": tracks[2:]}),
    ):
        with pytest.raises(UserError) as raised:
            check()
        message = str(raised.value)
        assert names(message, "(6)")
        for problem in (
            f"{tmp_path}/a.beats:2: the time 0.4 is not after 0.5 of line 1",
            f"{tmp_path}/a.beats:4: 'soon' is not a number",
            f"{tmp_path}/b.beats:2: the position 'first'",
            f"{tmp_path}/b.beats:3: 1 cells instead of time and position",
            f"songs.csv:4: there is no file {tmp_path}/gone.beats",
            "songs.csv:6: no path in the column 'beats', but 7",
        ):
            assert problem in message, problem
        assert "good.beats" not in message
        assert "times.beats" not in message
    TASK.check_labels([tracks[1], tracks[5]])
    with raises("manifest-no-label-column", "'beats'"):
        TASK.check_labels([make_track(tmp_path)])


def test_settings_survive(tmp_path):
    task = BeatTracking(label_column="taps")
    saved = json.loads(json.dumps(task.to_dict()))
    assert saved == {"name": "beats", "label_column": "taps"}
    assert BeatTracking.from_dict(saved) == task
    name = write_beats(tmp_path, [0.5, 1.0])
    made = BeatTracking.from_tracks(
        BeatsConfig(label_column="taps"), {"train": [make_track(tmp_path, taps=name)]}
    )
    assert made == task


# -- targets --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rate=st.sampled_from(sorted(GRIDS)),
    start=st.integers(0, 60_000),
    beats_ms=st.lists(st.integers(0, 6000), min_size=1, max_size=12, unique=True).map(sorted),
)
def test_a_beat_is_in_the_frame_whose_centre_is_nearest(rate, start, beats_ms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("beats")
    beats = np.array(beats_ms) / 1000
    positions = np.arange(len(beats)) % 3 + 1
    track = make_track(folder, beats=write_beats(folder, beats, positions))
    window = Window(start_sample=start, num_samples=2 * GRIDS[rate].sample_rate, grid=GRIDS[rate])
    times = centres(window)
    targets = TASK.frame_targets(
        track, window.start_seconds + window.frame_times_seconds, semitones=0
    )
    # Frames before and behind the window, too: a beat there may touch its first or last frame.
    stride = 320 / GRIDS[rate].sample_rate
    around = times[0] + stride * np.arange(-400, len(times) + 400)
    for column, events in ((0, beats), (1, beats[positions == 1])):
        expected = np.zeros(len(around), dtype=np.float32)
        nearest = [int(np.abs(around - t).argmin()) for t in events if abs(t - times[0]) < 5]
        for frame in nearest:
            for beside in (frame - 1, frame + 1):
                expected[beside % len(around)] = 0.5
        expected[nearest] = 1.0
        np.testing.assert_array_equal(targets[:, column], expected[400 : 400 + len(times)])


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_windows_that_overlap_agree(rate, tmp_path):
    grid = GRIDS[rate]
    rng = np.random.default_rng(0)
    beats = np.cumsum(rng.uniform(0.2, 0.7, size=30))
    track = make_track(tmp_path, beats=write_beats(tmp_path, beats, np.arange(30) % 4 + 1))

    def targets(first_frame, seconds):
        window = Window(
            start_sample=320 * first_frame, num_samples=seconds * grid.sample_rate, grid=grid
        )
        return TASK.frame_targets(
            track, window.start_seconds + window.frame_times_seconds, semitones=0
        )

    whole = targets(0, 14)
    assert (whole == 1).sum(axis=0).tolist() == [
        int((beats < 13.98).sum()),
        int((beats[::4] < 13.98).sum()),
    ]
    for first in (1, 37, 250, 401):
        part = targets(first, 4)
        np.testing.assert_array_equal(part, whole[first : first + len(part)])


def test_downbeats_that_nobody_annotated_are_not_learned(tmp_path):
    track = silent_track(tmp_path, 4.0, beats=write_beats(tmp_path, [0.5, 1.5]))
    [window] = windows_of(track, GRIDS[50], window_seconds=4.0)
    _, targets = TASK.example(track, window, None)
    assert np.isnan(targets[:, 1]).all()
    assert (targets[:, 0] == 1).sum() == 2
    outputs = torch.randn(1, *targets.shape, requires_grad=True)
    loss = TASK.loss(outputs, torch.from_numpy(targets)[None])
    loss.backward()
    assert loss.isfinite()
    assert (outputs.grad[..., 1] == 0).all()
    assert (outputs.grad[..., 0] != 0).all()
    only_beats = TASK.loss(outputs[..., :1], torch.from_numpy(targets)[None, :, :1])
    assert loss.item() == pytest.approx(only_beats.item(), rel=1e-6)


# -- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_what_one_computes_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [-2.0, 3.0]]])
    targets = torch.tensor([[[1.0, 0.0], [0.5, math.nan], [0.0, 1.0]]])

    def softplus(x):
        return math.log1p(math.exp(x))

    # A beat weighs five times what no beat weighs.
    expected = [
        5 * math.log(2),
        math.log(2),
        0.5 * 5 * math.log(2) + 0.5 * math.log(2),
        softplus(-2.0),
        5 * softplus(-3.0),
    ]
    assert TASK.loss(logits, targets).item() == pytest.approx(sum(expected) / 5, rel=1e-6)
    assert TASK.activate(logits)[0, 2].tolist() == pytest.approx(
        [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3))]
    )


# -- augmentation ---------------------------------------------------------------------------------

CLICKS = np.arange(0.25, 11.9, 0.5)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A track of 12 s with a short burst of noise at each beat."""
    folder = tmp_path_factory.mktemp("clicks")
    samples = np.zeros(12 * 16000)
    burst = np.random.default_rng(0).normal(size=96) * np.hanning(96)
    for time in CLICKS:
        start = round(time * 16000) - 48
        samples[start : start + 96] = 0.5 * burst
    return checked_track(
        folder, samples, beats=write_beats(folder, CLICKS, np.arange(len(CLICKS)) % 4 + 1)
    )


def click_times(samples):
    """Times of bursts: the centre of energy around each that stands out."""
    energy = np.convolve(np.square(samples, dtype=np.float64), np.ones(80), "same")
    loud = np.flatnonzero(energy > 0.15 * energy.max())
    groups = np.split(loud, np.flatnonzero(np.diff(loud) > 1600) + 1)
    return np.array([(energy[g] * g).sum() / energy[g].sum() for g in groups]) / 16000


def shift(seconds):
    share = seconds / 5  # of a window
    return {"name": "shift", "min_shift": share, "max_shift": share, "rollover": False}


def stretch(rate):
    return {"name": "time_stretch", "min_rate": rate, "max_rate": rate}


@pytest.mark.parametrize("start_sample", [0, 32123])
@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [shift(0.731)],
        [shift(-1.234)],
        [stretch(1.25)],
        [stretch(0.8)],
        [shift(1.1), stretch(1.25)],
        [stretch(0.8), shift(-0.333), stretch(1.1)],
    ],
    ids=["still", "later", "earlier", "faster", "slower", "later-faster", "three"],
)
def test_beats_move_with_the_audio(transforms, start_sample, clicks):
    window = Window(start_sample=start_sample, num_samples=5 * 16000, grid=GRIDS[50])
    apply, applied = augment(TASK, *transforms) if transforms else (None, [])
    samples, targets = TASK.example(clicks, window, apply)
    assert samples.shape == (5 * 16000,)
    assert targets.shape == (249, 2)
    detected = click_times(samples)
    times = window.frame_times_seconds
    learned = times[targets[:, 0] == 1]
    assert len(learned) >= 6
    # Each way, but for what lies at a border, where half a burst may be heard.
    edges = [0.0, 5.0]
    if applied:
        [label_transform] = applied
        edges += label_transform.times(
            np.clip(
                [label_transform.source_start_seconds, label_transform.source_end_seconds], 0, 5
            )
        ).tolist()

    def inside(found):
        return [t for t in found if min(abs(t - edge) for edge in edges) > 0.06]

    assert len(inside(detected)) >= 5
    for time in inside(detected):
        assert np.abs(learned - time).min() <= 0.02, time
    for time in inside(learned):
        assert np.abs(detected - time).min() <= 0.02, time
    # Downbeats are every fourth beat.
    downbeats = times[targets[:, 1] == 1]
    assert len(downbeats) >= 1
    assert set(downbeats) <= set(learned)


def test_what_was_moved_over_an_edge_is_silent_wherever_it_is_moved_then(clicks):
    window = Window(start_sample=0, num_samples=5 * 16000, grid=GRIDS[50])
    apply, _ = augment(TASK, shift(2.0), shift(-2.0))
    samples, targets = TASK.example(clicks, window, apply)
    lost = window.frame_times_seconds > 3.0
    assert np.abs(samples[round(3.01 * 16000) :]).max() < 1e-6
    assert (targets[lost] == 0).all()
    assert (targets[~lost, 0] == 1).sum() == 6


def test_what_moves_time_inexactly_is_refused():
    assert set(Effect) - TASK.allowed_effects() == TASK.transformed_effects() == {Effect.TIME}
    for bad, code in (
        ({**shift(1.0), "rollover": True}, "transform-rollover"),
        ({**stretch(1.1), "method": "librosa_phase_vocoder"}, "transform-method-inexact"),
    ):
        with raises(code):
            augment(TASK, bad)


# -- from windows to a track ----------------------------------------------------------------------


def activation(times, events, *, width=0.012):
    """A bump at each event, by its exact time."""
    if len(events) == 0:
        return np.zeros(len(times))
    return np.exp(-0.5 * (np.abs(times[:, None] - events).min(axis=1) / width) ** 2)


def perfect(times_seconds, positions):
    downbeats = times_seconds[positions == 1]
    return lambda times: np.stack(
        [activation(times, times_seconds), activation(times, downbeats)], axis=-1
    )


@pytest.mark.parametrize(("rate", "beats_per_bar"), [(50, 3), (50, 4), (75, 3)])
@pytest.mark.parametrize("bpm", [60, 83, 120, 143, 171, 200])
def test_a_click_track_is_found_from_perfect_windows(bpm, beats_per_bar, rate, tmp_path):
    times, positions = beat_grid(bpm, beats_per_bar)
    track = silent_track(tmp_path, 20.0, beats=write_beats(tmp_path, times, positions))
    windows = windows_of(track, GRIDS[rate])
    prediction = TASK.predict(track, with_scores(windows, perfect(times, positions)))
    evaluated = TASK.evaluate_track(track, prediction)
    assert evaluated == dict.fromkeys(TASK.metric_names, 1.0)
    assert prediction.tempo_bpm == pytest.approx(bpm, rel=0.005)
    assert len(prediction.times_seconds) == len(times)
    assert np.abs(prediction.times_seconds - times).max() < 0.006
    assert (prediction.positions == 1).tolist() == (positions == 1).tolist()


@pytest.mark.parametrize("rate", sorted(GRIDS))
@pytest.mark.parametrize("hop_seconds", [0.7, 2.0, 2.5, 5.0])
@pytest.mark.parametrize("seconds", [20.0, 13.377, 5.0, 2.5, 0.3])
def test_windows_are_joined_on_the_exact_grid(seconds, hop_seconds, rate, tmp_path):
    track = silent_track(tmp_path, seconds, beats="unused")
    windows = windows_of(track, GRIDS[rate], hop_seconds=hop_seconds)
    prediction = TASK.predict(
        track, with_scores(windows, lambda t: np.stack([np.sin(t), np.cos(t)], axis=-1) ** 2)
    )
    times = prediction.frame_times_seconds
    # Every frame that lies in the track, but for less than a frame that no window reaches.
    grid = GRIDS[rate]
    possible = grid.num_frames(round(seconds * grid.sample_rate))
    assert len(times) in (possible, possible - 1)
    np.testing.assert_allclose(times, grid.times(len(times)), atol=1e-12)
    expected = np.stack([np.sin(times), np.cos(times)], axis=-1) ** 2
    # Where windows only touch, the frame over the border is as the one beside it.
    tolerance = 0.025 if hop_seconds == 5.0 else 1e-6
    np.testing.assert_allclose(prediction.activations, expected, atol=tolerance)


def test_a_file_shorter_than_a_window_has_beats_only_where_it_is(tmp_path):
    times = np.array([0.2, 0.7, 1.2, 1.7, 2.2, 2.7, 3.2, 3.7])
    track = silent_track(tmp_path, 2.0, beats="unused")
    [window] = windows_of(track, GRIDS[50])
    prediction = TASK.predict(track, with_scores([window], perfect(times, np.arange(8) % 4 + 1)))
    assert prediction.frame_times_seconds[-1] < 2.0
    np.testing.assert_allclose(prediction.times_seconds, times[:4], atol=0.005)


def test_silence_has_no_beats(tmp_path):
    track = silent_track(tmp_path, 6.0, beats=write_beats(tmp_path, [1.0, 2.0, 3.0], [1, 2, 1]))
    windows = windows_of(track, GRIDS[50])
    prediction = TASK.predict(track, with_scores(windows, lambda t: np.zeros((len(t), 2))))
    assert len(prediction.times_seconds) == 0
    assert math.isnan(prediction.tempo_bpm)
    evaluated = TASK.evaluate_track(track, prediction)
    assert evaluated == dict.fromkeys(TASK.metric_names, 0.0)
    assert "no tempo, 0 beats, 0 downbeats" in render(prediction, "text")
    assert json.loads(render(prediction, "json"))["tempo_bpm"] is None
    prediction.write("beats", tmp_path / "out.beats")
    assert len(read_beats(tmp_path / "out.beats").times_seconds) == 0


# -- judging --------------------------------------------------------------------------------------


def evaluated_tracks(folder):
    """One with downbeats, right but for its downbeats; one of times only, half of them found."""
    times, positions = beat_grid(120, 4, seconds=12.0)
    first = silent_track(
        folder, 12.0, name="a.wav", beats=write_beats(folder, times, positions, name="a.beats")
    )
    second = silent_track(
        folder, 12.0, name="b.wav", beats=write_beats(folder, times, name="b.beats")
    )
    wrong_bars = np.roll(positions, 1)
    evaluated = []
    for track, found, bars in ((first, times, wrong_bars), (second, times[::2], positions[::2])):
        prediction = BeatsPrediction(
            times_seconds=found,
            positions=bars,
            tempo_bpm=60 / float(np.median(np.diff(found))),
            frame_times_seconds=np.zeros(0),
            activations=np.zeros((0, 2)),
        )
        evaluated.append(TASK.evaluate_track(track, prediction))
    return evaluated, len(times)


def test_downbeats_that_nobody_annotated_are_not_evaluated(tmp_path):
    evaluated, num_beats = evaluated_tracks(tmp_path)
    with_bars, without = evaluated
    assert with_bars["f_measure"] == 1.0
    assert with_bars["downbeat_f_measure"] == 0.0
    assert (with_bars["tempo_accuracy_1"], with_bars["tempo_accuracy_2"]) == (1.0, 1.0)
    found = math.ceil(num_beats / 2)
    assert without["f_measure"] == pytest.approx(2 * found / (num_beats + found))
    assert math.isnan(without["downbeat_f_measure"])
    assert (without["tempo_accuracy_1"], without["tempo_accuracy_2"]) == (0.0, 1.0)
    values = TASK.compute_metrics(evaluated)
    assert list(values) == list(TASK.metric_names)
    assert values["f_measure"] == pytest.approx((1 + without["f_measure"]) / 2, rel=1e-12)
    assert values["downbeat_f_measure"] == 0.0
    assert values["tempo_accuracy_1"] == 0.5
    assert math.isnan(TASK.compute_metrics([without])["downbeat_f_measure"])


def test_a_report_has_the_values_with_intervals(tmp_path):
    evaluated, _ = evaluated_tracks(tmp_path)
    report = TASK.summarize(evaluated, seed=0)
    assert report["num_scored_tracks"]["f_measure"] == 2
    assert report["num_scored_tracks"]["downbeat_f_measure"] == 1
    for name, value in TASK.compute_metrics(evaluated).items():
        entry = report["metrics"][name]
        assert entry["value"] == pytest.approx(value, rel=1e-12)
        assert entry["low"] <= entry["value"] <= entry["high"]
    nothing = TASK.summarize(evaluated[1:], seed=0)["metrics"]["downbeat_f_measure"]
    assert nothing == {"value": None, "low": None, "high": None}
    assert "70 ms" in report["about_metrics"]
    assert TASK.prediction_row(evaluated[0]) == evaluated[0]
    assert TASK.selection_metric in report["metrics"]


# -- what a prediction is written as --------------------------------------------------------------


PREDICTION = BeatsPrediction(
    times_seconds=np.array([0.5001234, 1.0, 1.5]),
    positions=np.array([3, 1, 2]),
    tempo_bpm=120.0,
    frame_times_seconds=np.zeros(0),
    activations=np.zeros((0, 2)),
)


def render(prediction, kind, *, timeline=False):
    return prediction.render(kind, path=Path("a/b.mp3"), top=3, timeline=timeline, is_first=True)


def test_text_and_json_of_beats():
    assert render(PREDICTION, "text") == "a/b.mp3\n  120.0 bpm, 3 beats, 1 downbeats\n"
    assert render(PREDICTION, "text", timeline=True).splitlines()[2:] == [
        "     0.500  3",
        "     1.000  1",
        "     1.500  2",
    ]
    text = render(PREDICTION, "json")
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "path": "a/b.mp3",
        "tempo_bpm": 120.0,
        "beats_seconds": [0.5, 1.0, 1.5],
        "positions": [3, 1, 2],
    }


def test_a_beats_file_reads_back(tmp_path):
    assert TASK.formats == {"text": None, "json": None, "beats": ".beats"}
    PREDICTION.write("beats", tmp_path / "out.beats")
    beats = read_beats(tmp_path / "out.beats")
    np.testing.assert_allclose(beats.times_seconds, PREDICTION.times_seconds, atol=5.1e-7)
    assert beats.positions.tolist() == [3, 1, 2]
    np.testing.assert_allclose(beats.downbeats_seconds, PREDICTION.downbeats_seconds)


def test_a_picture_is_drawn(clicks, tmp_path):
    windows = windows_of(clicks, GRIDS[50])

    def predict(checked):
        return TASK.predict(
            checked, with_scores(windows, perfect(CLICKS, np.arange(len(CLICKS)) % 4 + 1))
        )

    captions = TASK.plot(tmp_path, results={}, evaluated=[], tracks=[clicks], predict=predict)
    assert {path.name for path in tmp_path.iterdir()} == set(captions) == {"beats.png"}


# -- the head -------------------------------------------------------------------------------------


def test_the_head_reads_each_frame():
    head = TASK.build_head(HeadConfig(kind="mlp", hidden_size=8), hidden_size=4, grid=GRIDS[50])
    assert head(torch.randn(2, 7, 4)).shape == (2, 7, 2)
    assert TASK.describe_head(HeadConfig(kind="mlp", hidden_size=8)) == (
        "MLP with one hidden layer of 8, dropout 0.2, at each frame, standardised"
    )
    with raises("head-unsupported-setting", "head.pooling is 'attention'"):
        TASK.build_head(HeadConfig(pooling="attention"), hidden_size=4, grid=GRIDS[50])
