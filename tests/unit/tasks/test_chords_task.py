"""The chords task: annotations, targets that move in time and pitch, and chords of perfect windows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import messages
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
from support.messages import raises

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.label_transform import LabelTransform
from m2v_finetune.config import HeadConfig
from m2v_finetune.data.loader import Window
from m2v_finetune.errors import UserError
from m2v_finetune.labels.chords import CHORDS, Segment, read_lab, write_lab
from m2v_finetune.tasks.chords import (
    ChordRecognition,
    ChordsConfig,
    ChordsPrediction,
    without_gaps,
)

TASK = ChordRecognition(label_column="chords")
NONE = CHORDS.index("N")


def lab(folder, *rows, name="song.lab"):
    (folder / name).write_text("".join(f"{a}\t{b}\t{label}\n" for a, b, label in rows))
    return name


# -- annotations ----------------------------------------------------------------------------------


def test_every_bad_annotation_is_listed_with_file_and_line(tmp_path):
    lab(tmp_path, (0, 2, "C:maj"), (1.5, 3, "A:min"), (3, 2.5, "G"), name="a.lab")
    lab(tmp_path, (0, 1, "C:maj"), (1, 2, "H:maj"), (2, 3, "C:wrong"), name="b.lab")
    lab(tmp_path, (0, 1, "C:maj"), (1.5, 2, "X"), (2, 3, "Bb:7/3"), name="good.lab")
    (tmp_path / "empty.lab").write_text("")
    named = ["a.lab", "b.lab", "good.lab", "empty.lab", "gone.lab", ""]
    tracks = [
        make_track(tmp_path, name=f"{n}.wav", origin=f"songs.csv:{n + 2}", chords=chords)
        for n, chords in enumerate(named)
    ]
    with pytest.raises(UserError) as raised:
        ChordRecognition.from_tracks(ChordsConfig(), {"train": tracks[:2], "test": tracks[2:]})
    message = str(raised.value)
    assert messages.names(message, "(7)")
    for problem in (
        f"{tmp_path}/a.lab:2: the start 1.5 is before the end 2.0 of line 1",
        f"{tmp_path}/a.lab:3: the end 2.5 is not after the start 3.0",
        f"{tmp_path}/b.lab:2: 'H:maj' is not a chord",
        f"{tmp_path}/b.lab:3: 'C:wrong' is not a chord",
        f"{tmp_path}/empty.lab: no segment",
        f"songs.csv:6: there is no file {tmp_path}/gone.lab",
        "songs.csv:7: no path in the column 'chords', but ''",
    ):
        assert problem in message, problem
    assert "good.lab" not in message
    TASK.check_labels([tracks[2]])


def test_settings_survive(tmp_path):
    task = ChordRecognition(label_column="harmony")
    saved = json.loads(json.dumps(task.to_dict()))
    assert saved == {"name": "chords", "label_column": "harmony"}
    assert ChordRecognition.from_dict(saved) == task
    track = make_track(tmp_path, harmony=lab(tmp_path, (0, 1, "N")))
    made = ChordRecognition.from_tracks(ChordsConfig(label_column="harmony"), {"train": [track]})
    assert made == task


# -- targets --------------------------------------------------------------------------------------

ROWS = [
    (0.0, 1.25, "C:maj7"),
    (1.25, 1.2725, "Eb:min"),  # hardly a frame long
    (1.2725, 2.0, "G:sus4"),
    (2.5, 3.75, "F#:min/b3"),
    (3.75, 5.2, "N"),
    (5.2, 8.0, "X"),
]
CLASSES = ["C:maj", "D#:min", None, "F#:min", "N", None]


@pytest.mark.parametrize("start_sample", [0, 1, 12_345, 48_000, 70_001])
@pytest.mark.parametrize("rate", sorted(GRIDS))
@pytest.mark.parametrize("semitones", [0, 5, -3])
def test_a_frame_has_the_chord_that_sounds_at_its_centre(rate, start_sample, semitones, tmp_path):
    track = make_track(tmp_path, chords=lab(tmp_path, *ROWS))
    grid = GRIDS[rate]
    window = Window(start_sample=start_sample, num_samples=5 * grid.sample_rate, grid=grid)
    targets = TASK.frame_targets(
        track, window.start_seconds + window.frame_times_seconds, semitones=semitones
    )
    for time, target in zip(centres(window), targets.tolist(), strict=True):
        sounding = [c for (a, b, _), c in zip(ROWS, CLASSES, strict=True) if a <= time < b]
        expected = -1
        if sounding and sounding[0] == "N":
            expected = NONE
        elif sounding and sounding[0]:
            root = CHORDS.index(sounding[0]) % 12
            expected = (root + semitones) % 12 + 12 * (CHORDS.index(sounding[0]) >= 12)
        assert target == expected, time


@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_windows_that_overlap_agree(rate, tmp_path):
    track = make_track(tmp_path, chords=lab(tmp_path, *ROWS))
    grid = GRIDS[rate]

    def targets(first, seconds):
        num_samples = seconds * grid.sample_rate
        window = Window(start_sample=320 * first, num_samples=num_samples, grid=grid)
        return TASK.frame_targets(
            track, window.start_seconds + window.frame_times_seconds, semitones=0
        )

    whole = targets(0, 8)
    assert set(whole) == {CHORDS.index(c) if c else -1 for c in CLASSES}
    for first in (1, 63, 200):
        part = targets(first, 3)
        np.testing.assert_array_equal(part, whole[first : first + len(part)])


# -- loss -----------------------------------------------------------------------------------------


def test_the_loss_is_what_one_computes_by_hand():
    logits = torch.zeros(1, 4, 25)
    logits[0, 1, 3] = 2.0
    logits[0, 2, 24] = -1.0
    targets = torch.tensor([[0.0, 3.0, 24.0, -1.0]])
    expected = [
        math.log(25),
        math.log(24 + math.exp(2)) - 2,
        math.log(24 + math.exp(-1)) + 1,
    ]
    assert TASK.loss(logits, targets).item() == pytest.approx(sum(expected) / 3, rel=1e-6)
    probabilities = TASK.activate(logits)
    assert probabilities[0, 1, 3].item() == pytest.approx(math.exp(2) / (24 + math.exp(2)))
    assert probabilities.sum(dim=-1)[0].tolist() == pytest.approx([1.0] * 4)


def test_frames_without_a_class_do_not_count():
    logits = torch.randn(2, 3, 25, requires_grad=True)
    loss = TASK.loss(logits, torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 7.0, -1.0]]))
    loss.backward()
    assert (logits.grad.abs().sum(dim=-1) > 0).tolist() == [[False] * 3, [False, True, False]]
    nothing = TASK.loss(torch.randn(1, 3, 25), torch.full((1, 3), -1.0))
    assert nothing.item() == 0.0


# -- augmentation ---------------------------------------------------------------------------------

SUNG = [
    (0.0, 1.5, "C:maj"),
    (1.5, 3.0, "A:min"),
    (3.0, 4.4, "F#:maj"),
    (4.4, 6.1, "D:min"),
    (6.1, 8.0, "G:maj"),
]


def triad(label):
    """The pitch classes of a triad, from theory and not from this package."""
    names = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
    root, quality = label.split(":")
    return [(names.index(root) + i) % 12 for i in (0, 4 if quality == "maj" else 3, 7)]


@pytest.fixture(scope="module")
def sung(tmp_path_factory):
    """A track of 8 s on which sines play chords, around middle C."""
    folder = tmp_path_factory.mktemp("sung")
    time = np.arange(8 * 16000) / 16000
    samples = np.zeros(len(time))
    for start, end, label in SUNG:
        sounds = (time >= start) & (time < end)
        for pitch_class in triad(label):
            samples[sounds] += 0.2 * np.sin(
                2 * np.pi * 440 * 2 ** ((pitch_class + 60 - 69) / 12) * time[sounds]
            )
    return checked_track(folder, samples, chords=lab(folder, *SUNG))


def chord_of(samples, time):
    """The triad whose three pitch classes are the loudest around a time; None for silence."""
    first, stop = round((time - 0.12) * 16000), round((time + 0.12) * 16000)
    part = samples[max(0, first) : stop]
    if np.abs(part).max() < 0.01:
        return "N"
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 16))
    hertz = np.fft.rfftfreq(1 << 16, 1 / 16000)
    keep = (hertz > 120) & (hertz < 1100)
    pitches = 12 * np.log2(hertz[keep] / 440) + 9
    chroma = np.zeros(12)
    for pitch_class in range(12):
        beside = np.abs((pitches - pitch_class + 6) % 12 - 6) < 0.4
        chroma[pitch_class] = spectrum[keep][beside].max()
    return max(CHORDS[:24], key=lambda label: chroma[triad(label)].min())


AUGMENTATIONS = {
    "still": [],
    "up": [{"name": "pitch_shift", "min_semitones": 3, "max_semitones": 3}],
    "rounded": [{"name": "pitch_shift", "min_semitones": -2.4, "max_semitones": -1.6}],
    "later": [{"name": "shift", "min_shift": 0.15, "max_shift": 0.15, "rollover": False}],
    "earlier": [{"name": "shift", "min_shift": -0.2, "max_shift": -0.2, "rollover": False}],
    "faster": [{"name": "time_stretch", "min_rate": 1.25, "max_rate": 1.25}],
}
AUGMENTATIONS["all"] = [*AUGMENTATIONS["up"], *AUGMENTATIONS["faster"], *AUGMENTATIONS["later"]]


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_chords_move_with_the_audio(name, sung):
    window = Window(start_sample=11_111, num_samples=5 * 16000, grid=GRIDS[50])
    apply = augment(TASK, *AUGMENTATIONS[name])[0] if AUGMENTATIONS[name] else None
    samples, targets = TASK.example(sung, window, apply)
    times = window.frame_times_seconds
    changes = times[1:][np.diff(targets) != 0]
    away = [t for t in times if np.abs(np.append(changes, [0, 5]) - t).min() > 0.15]
    assert len(away) > 100
    learned = [CHORDS[int(targets[np.searchsorted(times, t)])] for t in away[::5]]
    detected = [chord_of(samples, t) for t in away[::5]]
    assert learned == detected
    assert len(set(learned)) >= 3
    if name == "up":
        assert "D#:maj" in learned  # C major, up three
    if name == "rounded":
        assert "G:min" in learned  # A minor, down two


def test_the_border_of_a_chord_moves_exactly(sung):
    window = Window(start_sample=0, num_samples=5 * 16000, grid=GRIDS[50])
    label_transform = LabelTransform(rate=1.25, offset_seconds=0.4, source_end_seconds=4.8)
    _, targets = TASK.example(sung, window, lambda samples: (samples, label_transform))
    times = window.frame_times_seconds
    for start, end, label in [*SUNG[:3], (4.4, 4.8, "D:min")]:
        expected = (times >= start / 1.25 + 0.4) & (times < end / 1.25 + 0.4)
        np.testing.assert_array_equal(targets == CHORDS.index(label), expected)
    silent = (times < 0.4) | (times >= 4.8 / 1.25 + 0.4)
    np.testing.assert_array_equal(targets == NONE, silent)


def test_what_cannot_be_followed_is_refused():
    assert TASK.transformed_effects() == {Effect.PITCH, Effect.TIME}
    assert set(Effect) - TASK.allowed_effects() - TASK.transformed_effects() == {Effect.SILENCE}
    for bad, code in (
        ({"name": "time_mask"}, "transform-changes-labels"),
        ({"name": "shift"}, "transform-rollover"),
        ({"name": "pitch_shift", "method": "librosa_phase_vocoder"}, "transform-method-inexact"),
    ):
        with raises(code):
            augment(TASK, bad)


# -- from windows to a track ----------------------------------------------------------------------

PLAYED = [
    (0.0, 2.013, "C:maj"),
    (2.013, 3.1, "A:min"),
    (3.1, 5.55, "N"),
    (5.55, 5.95, "D#:min"),
    (5.95, 9.0, "B:maj"),
    (9.0, 13.377, "C:maj"),
]


def one_hot(rows, *, certainty=0.9):
    def score(times):
        scores = np.full((len(times), 25), (1 - certainty) / 24)
        for start, end, label in rows:
            scores[(times >= start) & (times < end), CHORDS.index(label)] = certainty
        return scores

    return score


@pytest.mark.parametrize("hop_seconds", [1.3, 2.5, 5.0])
@pytest.mark.parametrize("rate", sorted(GRIDS))
def test_chords_are_found_from_perfect_windows(rate, hop_seconds, tmp_path):
    # What was annotated as D#:min is told as Eb:min7, and N stays N.
    reference = [(a, b, {"D#:min": "Eb:min7"}.get(label, label)) for a, b, label in PLAYED]
    track = silent_track(tmp_path, 13.377, chords=lab(tmp_path, *reference))
    windows = windows_of(track, GRIDS[rate], hop_seconds=hop_seconds)
    prediction = TASK.predict(track, with_scores(windows, one_hot(PLAYED)))
    assert [s.label for s in prediction.segments] == [label for *_, label in PLAYED]
    found = np.array([(s.start_seconds, s.end_seconds) for s in prediction.segments])
    half_frame = 0.5 / rate
    assert np.abs(found - [row[:2] for row in PLAYED]).max() <= half_frame + 1e-3
    assert found[0, 0] == 0
    assert found[-1, 1] == track.audio.duration_seconds
    np.testing.assert_array_equal(found[1:, 0], found[:-1, 1])
    evaluated = TASK.evaluate_track(track, prediction)
    assert evaluated["majmin"] == pytest.approx(1, abs=0.005)
    assert evaluated["root"] == pytest.approx(1, abs=0.005)
    assert evaluated["majmin_seconds"] == pytest.approx(13.377)
    np.testing.assert_allclose(prediction.probabilities.sum(axis=-1), 1, atol=1e-6)


def test_exact_chords_have_recall_one(tmp_path):
    """Borders in the middle between two frames are met exactly."""
    rows = [(0.0, 2.02246875, "C:maj"), (2.02246875, 5.0, "E:min")]
    track = silent_track(tmp_path, 5.0, chords=lab(tmp_path, *rows))
    windows = windows_of(track, GRIDS[50], window_seconds=2.0, hop_seconds=1.0)
    prediction = TASK.predict(track, with_scores(windows, one_hot(rows)))
    assert TASK.evaluate_track(track, prediction) == {
        "majmin": pytest.approx(1.0, abs=1e-12),
        "root": pytest.approx(1.0, abs=1e-12),
        "majmin_seconds": 5.0,
        "root_seconds": 5.0,
    }


def test_a_file_shorter_than_a_window(tmp_path):
    track = silent_track(tmp_path, 1.5, chords="unused")
    [window] = windows_of(track, GRIDS[50])
    rows = [(0.0, 1.0, "C:maj"), (1.0, 1.5, "G:maj"), (1.5, 5.0, "N")]
    prediction = TASK.predict(track, with_scores([window], one_hot(rows)))
    assert [(s.label, round(s.end_seconds, 2)) for s in prediction.segments] == [
        ("C:maj", 1.0),
        ("G:maj", 1.5),
    ]


def test_a_flicker_is_smoothed(tmp_path):
    track = silent_track(tmp_path, 4.0, chords="unused")
    windows = windows_of(track, GRIDS[50], window_seconds=2.0, hop_seconds=1.0)
    rows = [(0.0, 2.0, "C:maj"), (2.0, 2.02, "C:min"), (2.02, 4.0, "C:maj")]
    prediction = TASK.predict(track, with_scores(windows, one_hot(rows, certainty=0.7)))
    assert [s.label for s in prediction.segments] == ["C:maj"]


# -- judging --------------------------------------------------------------------------------------


def prediction_of(*rows):
    return ChordsPrediction(
        segments=[Segment(start_seconds=a, end_seconds=b, label=label) for a, b, label in rows],
        frame_times_seconds=np.zeros(0),
        probabilities=np.zeros((0, 25)),
    )


def test_time_that_is_in_no_class_does_not_count(tmp_path):
    reference = [(0.5, 2.5, "C:maj"), (3.0, 4.0, "G:sus4"), (4.0, 7.0, "A:min"), (7.0, 8.0, "X")]
    track = silent_track(tmp_path, 8.0, chords=lab(tmp_path, *reference))
    found = prediction_of((0.0, 1.5, "C:maj"), (1.5, 5.0, "G:maj"), (5.0, 8.0, "A:maj"))
    evaluated = TASK.evaluate_track(track, found)
    # Majmin: 2 s of C, half right, and 3 s of A minor, all wrong. Root: also 1 s of G, and 2 of 3 s of A.
    assert evaluated["majmin_seconds"] == pytest.approx(5.0)
    assert evaluated["majmin"] == pytest.approx(1 / 5)
    assert evaluated["root_seconds"] == pytest.approx(6.0)
    assert evaluated["root"] == pytest.approx((1 + 1 + 2) / 6)


def test_gaps_are_filled_with_what_nobody_named():
    rows = [(0.0, 1.0, "C"), (1.5, 2.0, "G"), (2.0, 3.0, "N")]
    segments = [Segment(start_seconds=a, end_seconds=b, label=c) for a, b, c in rows]
    filled = [(s.start_seconds, s.end_seconds, s.label) for s in without_gaps(segments)]
    assert filled == [rows[0], (1.0, 1.5, "X"), *rows[1:]]


def test_tracks_count_by_their_seconds():
    evaluated = [
        {"majmin": 1.0, "majmin_seconds": 30.0, "root": 1.0, "root_seconds": 40.0},
        {"majmin": 0.0, "majmin_seconds": 10.0, "root": 0.5, "root_seconds": 40.0},
        {"majmin": math.nan, "majmin_seconds": 0.0, "root": 1.0, "root_seconds": 20.0},
    ]
    values = TASK.compute_metrics(evaluated)
    assert values == {"majmin": 0.75, "root": 0.8}
    assert TASK.selection_metric in values
    report = TASK.summarize(evaluated, seed=0)
    assert report["scored_seconds"] == {"majmin": 40.0, "root": 100.0}
    for name, value in values.items():
        entry = report["metrics"][name]
        assert entry["value"] == pytest.approx(value, rel=1e-12)
        assert entry["low"] <= value <= entry["high"]
    assert math.isnan(TASK.compute_metrics(evaluated[2:])["majmin"])
    assert TASK.prediction_row(evaluated[0]) == evaluated[0]
    assert "over all tracks" in report["about_metrics"]


# -- what a prediction is written as --------------------------------------------------------------


PREDICTION = prediction_of((0.0, 1.2345678, "C:maj"), (1.2345678, 2.0, "N"), (2.0, 3.5, "F#:min"))


def render(kind):
    return PREDICTION.render(kind, path=Path("a/b.mp3"), top=3, timeline=False, is_first=True)


def test_text_and_json_of_chords():
    lines = render("text").splitlines()
    assert lines[0] == "a/b.mp3"
    assert [line.split() for line in lines[1:]] == [
        ["0.000000", "1.234568", "C:maj"],
        ["1.234568", "2.000000", "N"],
        ["2.000000", "3.500000", "F#:min"],
    ]
    assert "\t" not in render("text")
    assert json.loads(render("json")) == {
        "path": "a/b.mp3",
        "chords": [
            {"start_seconds": 0.0, "end_seconds": 1.235, "label": "C:maj"},
            {"start_seconds": 1.235, "end_seconds": 2.0, "label": "N"},
            {"start_seconds": 2.0, "end_seconds": 3.5, "label": "F#:min"},
        ],
    }
    assert render("json").count("\n") == 1


def test_a_lab_file_reads_back(tmp_path):
    assert TASK.formats == {"text": None, "json": None, "lab": ".lab"}
    PREDICTION.write("lab", tmp_path / "out.lab")
    segments = read_lab(tmp_path / "out.lab")
    assert [s.label for s in segments] == ["C:maj", "N", "F#:min"]
    times = np.array([(s.start_seconds, s.end_seconds) for s in segments])
    expected = [(s.start_seconds, s.end_seconds) for s in PREDICTION.segments]
    np.testing.assert_allclose(times, expected, atol=5.1e-7)
    write_lab(tmp_path / "again.lab", segments)
    assert (tmp_path / "again.lab").read_text() == (tmp_path / "out.lab").read_text()


def test_a_picture_is_drawn(sung, tmp_path):
    def predict(checked):
        return TASK.predict(checked, with_scores(windows_of(checked, GRIDS[50]), one_hot(SUNG)))

    captions = TASK.plot(tmp_path, results={}, evaluated=[], tracks=[sung], predict=predict)
    assert {path.name for path in tmp_path.iterdir()} == set(captions) == {"chords.png"}


def test_the_head_has_a_logit_for_each_chord():
    head = TASK.build_head(HeadConfig(kind="linear"), hidden_size=4, grid=GRIDS[50])
    assert head(torch.randn(2, 7, 4)).shape == (2, 7, 25)
    assert TASK.describe_head(HeadConfig(kind="linear")) == (
        "linear, dropout 0.2, at each frame, standardised"
    )
