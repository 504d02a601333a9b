"""The melody task: annotations, targets that move, pitch of perfect windows, metrics against mir_eval."""

import json
import math
from pathlib import Path

import mido
import mir_eval
import numpy as np
import pytest
import torch
from support.frame_tracks import (
    GRIDS,
    augment,
    checked_track,
    make_track,
    silent_track,
    windows_of,
    with_scores,
)
from support.messages import raises

from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.data.loader import Window
from m2v_finetune.decoding.melody import LOWEST_BIN_HZ, NUM_BINS
from m2v_finetune.labels.melody import read_melody
from m2v_finetune.metrics.melody import melody_scores
from m2v_finetune.tasks.melody import MelodyConfig, MelodyExtraction, MelodyPrediction

TASK = MelodyExtraction(label_column="melody")
# Start and end in seconds, and frequency: a song of 6 s.
SUNG = [(0.5, 1.5, 220.0), (1.5, 2.7, 330.0), (3.0, 4.4, 261.6), (4.4, 6.0, 987.77)]


def hz_at(times, rows=SUNG):
    found = np.zeros(len(times))
    for start, end, hz in rows:
        found[(times >= start) & (times < end)] = hz
    return found


def csv(folder, name="song.csv", *, seconds=6.0, hop=256 / 44100, separator=","):
    """A file as MedleyDB has them."""
    times = np.arange(0, seconds, hop)
    lines = [f"{t:.9f}{separator}{hz:.3f}\n" for t, hz in zip(times, hz_at(times), strict=True)]
    (folder / name).write_text("".join(lines))
    return name


def test_layouts_are_read_alike(tmp_path):
    read = [
        read_melody(tmp_path / csv(tmp_path, f"{number}.csv", separator=separator))
        for number, separator in enumerate((",", "\t", " , "))
    ]
    for melody in read:
        np.testing.assert_allclose(
            melody.at(np.array([0.2, 0.6, 2.9, 5.0, 7.0])), [0, 220, 0, 987.77, 0]
        )
    (tmp_path / "guess.csv").write_text("0,-220\n0.01,330\n")  # negative: no melody, a guess
    assert read_melody(tmp_path / "guess.csv").at(np.array([0.0, 0.01])).tolist() == [0, 330]


def test_the_track_melody_of_a_midi_file_counts(tmp_path):
    file = mido.MidiFile(ticks_per_beat=500)  # a millisecond a tick
    for name, pitch in (("PIANO", 40), ("MELODY", 69)):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
        track += [
            mido.Message("note_on", note=pitch, velocity=64, time=100),
            mido.Message("note_off", note=pitch, velocity=0, time=300),
        ]
        file.tracks.append(track)
    file.save(tmp_path / "song.mid")
    melody = read_melody(tmp_path / "song.mid")
    times = np.array([0.05, 0.1, 0.25, 0.39, 0.41, 3.0])
    np.testing.assert_allclose(melody.at(times), [0, 440, 440, 440, 0, 0])
    file.tracks[1].name = "vocals"
    file.save(tmp_path / "other.mid")
    with raises("labels-unreadable", "no track is named 'melody'", "vocals"):
        read_melody(tmp_path / "other.mid")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0,220\n0.01\n", ":2: 1 cells"),
        ("0,220\n0.01,la\n", ":2: 'la' is not a frequency"),
        ("0,220\n0,220\n", ":2: the time 0.0 is not after 0.0 of line 1"),
        ("0,220\n0.5,220\n", ":2: the time 0.5 is more than 0.1 s after"),
        ("0,nan\n", ":1: the frequency nan"),
        ("0,5.4\n", ":1: the frequency 5.4"),  # octaves, not Hz
        ("time,frequency\n", ":1: 'time' is not a number of seconds"),
    ],
)
def test_bad_lines_are_named(text, problem, tmp_path):
    (tmp_path / "song.csv").write_text(text)
    with raises("melody-bad-lines", problem):
        read_melody(tmp_path / "song.csv")


def test_targets_follow_pitch_and_time(tmp_path):
    track = silent_track(tmp_path, 6.0, melody=csv(tmp_path))
    window = Window(start_sample=0, num_samples=5 * 16000, grid=GRIDS[50])
    times = window.frame_times_seconds
    _, targets = TASK.example(track, window, lambda x: (x, LabelTransform(semitones=2)))
    away = np.abs(times[:, None] - [0.5, 1.5, 2.7, 3.0, 4.4]).min(axis=1) > 0.006
    np.testing.assert_allclose(targets[away], hz_at(times)[away] * 2 ** (2 / 12), rtol=1e-6)
    transform = LabelTransform(rate=1.25, offset_seconds=0.4, source_end_seconds=4.8)
    _, moved = TASK.example(track, window, lambda x: (x, transform))
    sources = (times - 0.4) * 1.25
    expected = np.where((sources >= 0) & (sources < 4.8), hz_at(sources), 0)
    assert (np.abs(moved - expected) < 1e-3).mean() > 0.97
    with raises("transform-changes-labels"):
        augment(TASK, {"name": "time_mask"})


def test_the_loss_is_what_one_computes_by_hand():
    logits = torch.zeros(2, 3, 1 + NUM_BINS)
    logits[0, 1, 0] = 2.0
    targets = torch.tensor([[0.0, 220.0, 0.0], [0.0, 0.0, 5000.0]])  # the last is above the bins
    voicing = [math.log(2), math.log1p(math.exp(-2)), math.log(2), *[math.log(2)] * 3]
    # Uniform pitches have the cross-entropy log(bins) for a target of any shape.
    expected = (sum(voicing[:3]) / 3 + math.log(NUM_BINS) + sum(voicing[3:]) / 3) / 2
    assert TASK.loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)
    best = round(60 * math.log2(220 / LOWEST_BIN_HZ))
    logits[0, 1, 1 + best - 3 : 1 + best + 4] = 4.0
    assert TASK.loss(logits, targets).item() < expected - 1


def perfect(times):
    """Voicing and Gaussian probabilities of the true pitch."""
    hz = hz_at(times)
    position = 60 * np.log2(np.maximum(hz, LOWEST_BIN_HZ) / LOWEST_BIN_HZ)
    pitches = np.exp(-0.5 * ((np.arange(NUM_BINS) - position[:, None]) / 1.25) ** 2)
    return np.concatenate(
        [(hz > 0)[:, None] * 0.8, pitches / pitches.sum(1, keepdims=True)], axis=1
    )


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_a_model_that_is_given_the_answer_reaches_the_top(rate, tmp_path):
    track = silent_track(tmp_path, 6.0, melody=csv(tmp_path, seconds=5.9))
    prediction = TASK.predict(track, with_scores(windows_of(track, GRIDS[rate]), perfect))
    voiced = prediction.is_voiced
    cents = 1200 * np.log2(
        prediction.frequencies_hz[voiced] / hz_at(prediction.times_seconds)[voiced]
    )
    assert np.abs(cents).max() < 1  # far finer than a bin
    scores = TASK.evaluate_track(track, prediction)
    assert scores.keys() == TASK.metric_names.keys()
    for name in ("overall_accuracy", "raw_pitch_accuracy", "raw_chroma_accuracy", "voicing_recall"):
        assert scores[name] > 0.98, name
    assert scores["voicing_false_alarm"] < 0.05  # borders are half a frame off at most


def test_scores_are_those_of_mir_eval():
    rng = np.random.default_rng(0)
    times = np.arange(400) / 100
    reference = np.where(rng.random(400) < 0.7, 220 * 2.0 ** rng.integers(-1, 2, 400), 0.0)
    estimate = reference * 2 ** rng.normal(0, 0.04, 400) * 2.0 ** rng.integers(0, 2, 400)
    estimate[rng.random(400) < 0.2] *= -1
    estimate[reference == 0] = np.where(rng.random((reference == 0).sum()) < 0.5, 300, -300)
    found = melody_scores(times, reference, times, estimate)
    expected = mir_eval.melody.evaluate(times, reference, times, estimate)
    for name, score in found.items():
        word = name.replace("_", " ").title()
        assert score == pytest.approx(expected[word]), name
    # Without a melody only the accuracy and false alarms are defined.
    scores = melody_scores(times, np.zeros(400), times, estimate)
    assert [name for name, score in scores.items() if not math.isnan(score)] == [
        "voicing_false_alarm",
        "overall_accuracy",
    ]


def test_time_after_the_last_line_is_without_melody(tmp_path):
    (tmp_path / "song.csv").write_text("0,220\n0.01,220\n")
    track = silent_track(tmp_path, 1.0, melody="song.csv")
    times = GRIDS[50].times(50)
    always = MelodyPrediction(
        times_seconds=times, frequencies_hz=np.full(50, 220.0), voicing=np.ones(50)
    )
    scores = TASK.evaluate_track(track, always)
    assert (scores["raw_pitch_accuracy"], scores["voicing_false_alarm"]) == (1, 1)
    assert scores["overall_accuracy"] < 0.1


def test_formats(tmp_path):
    prediction = MelodyPrediction(
        times_seconds=np.array([0.01, 0.03, 0.05]),
        frequencies_hz=np.array([-200.0, 220.0, 440.126]),
        voicing=np.array([0.2, 0.9, 0.9]),
    )

    def render(kind, timeline=False):
        return prediction.render(kind, path=Path("a.mp3"), top=3, timeline=timeline, is_first=True)

    assert render("text") == "a.mp3\n  melody in 67% of the time, 220.0 to 440.1 Hz\n"
    assert render("text", timeline=True).splitlines()[2].split() == ["0.010", "0.00", "Hz"]
    assert json.loads(render("json")) == {
        "path": "a.mp3",
        "times_seconds": [0.01, 0.03, 0.05],
        "frequencies_hz": [0.0, 220.0, 440.13],
    }
    prediction.write("f0", tmp_path / "a.csv")
    np.testing.assert_allclose(
        read_melody(tmp_path / "a.csv").frequencies_hz, [0, 220, 440.126], atol=1e-3
    )
    shown = prediction.show(tmp_path / "a.mp3")
    assert [picture.ndim for picture in shown.pictures.values()] == [3]


def test_settings_survive_and_a_picture_is_drawn(tmp_path):
    with raises("settings-range", "task.voicing_threshold"):
        MelodyConfig(voicing_threshold=1.0)
    task = MelodyExtraction(label_column="f0", voicing_threshold=0.3)
    assert MelodyExtraction.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert make_track(tmp_path, f0="x").columns == {"f0": "x"}
    track = checked_track(tmp_path, np.zeros(6 * 8000), 8000, melody=csv(tmp_path))

    def predict(checked):
        return TASK.predict(checked, with_scores(windows_of(checked, GRIDS[50]), perfect))

    captions = TASK.plot(
        tmp_path / "plots", results={}, evaluated=[], tracks=[track], predict=predict
    )
    assert {path.name for path in (tmp_path / "plots").iterdir()} == set(captions)
