"""The pitch task: MIDI numbers as classes, right within an octave class, moved by a shift of pitch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from support.clip_tracks import (
    draw_classes,
    evaluated_clips,
    listed_problems,
    make_splits,
    make_track,
)
from support.messages import error_message, fails, names, raises

from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.tasks.pitch import Pitch, PitchConfig


def build(splits=None, **config) -> Pitch:
    splits = splits or make_splits("pitch", train=range(128))
    return Pitch.from_tracks(PitchConfig(**config), splits)


def message_of(code, splits=None, **settings) -> str:
    with raises(code) as raised:
        build(splits, **settings)
    return str(raised.value)


# -- labels ---------------------------------------------------------------------------------------


def test_pitches_are_ordered_by_value_however_they_are_written():
    # A CSV has text, a JSONL numbers; NSynth's names have leading zeros.
    splits = make_splits("pitch", train=[100, "60", "060", " 9 ", 60, [61]], test=["009"])
    task = build(splits)
    assert task.labels == ("9", "60", "61", "100")
    assert [task.targets(track, IDENTITY).tolist() for track in splits["train"]] == [
        3,
        1,
        1,
        0,
        1,
        2,
    ]
    assert task.targets(splits["test"][0], IDENTITY) == 0


def test_pitches_can_be_chosen():
    assert build(make_splits("pitch", train=[60, 62]), labels=[62, 60]).labels == ("62", "60")
    message = message_of(
        "labels-not-in-training", make_splits("pitch", train=[60, 62]), labels=[60, 61, 62]
    )
    assert listed_problems(message) == ["61"]
    message = message_of(
        "labels-unusable", make_splits("pitch", train=[60, 62, 64]), labels=[60, 62]
    )
    assert listed_problems(message) == ["songs.csv:4: unknown class '64'"]


NO_PITCH = [-1, 128, "128", "-1", 60.25, "60.5", "A4", "²", None, "", [60, 61], "60;61", True]


def test_every_pitch_that_is_none_is_listed_and_none_is_dropped():
    splits = make_splits("pitch", train=[60, *NO_PITCH, 62], validation=[61], test=[0, 60, 127])
    message = message_of("labels-unusable", splits)
    assert listed_problems(message) == [
        *(
            f"songs.csv:{line}: a MIDI number from 0 to 127 is needed, found {cell!r}"
            for line, cell in enumerate(NO_PITCH, start=3)
        ),
        "songs.csv:17: unknown class '61'",
        "songs.csv:18: unknown class '0'",
        "songs.csv:20: unknown class '127'",
    ]


def test_a_missing_column_is_refused_with_those_that_exist():
    message = error_message(build, make_splits("note", train=[60]))
    assert names(message, "'pitch'", "note")


# -- targets --------------------------------------------------------------------------------------


@given(st.data())
def test_transposing_by_k_semitones_moves_the_pitch_by_k(data):
    pitch = data.draw(st.integers(0, 127))
    semitones = data.draw(st.integers(-pitch, 127 - pitch))
    task = build()
    target = task.targets(make_track({"pitch": pitch}), LabelTransform(semitones=semitones))
    assert task.labels[int(target)] == str(pitch + semitones)
    assert (target.shape, target.dtype) == ((), np.dtype(np.float32))


def test_a_pitch_moves_with_pitch_alone():
    task, track = build(), make_track({"pitch": 64})
    moved = LabelTransform(rate=1.5, offset_seconds=2.0, source_start_seconds=1.0)
    assert task.targets(track, moved) == task.targets(track, IDENTITY) == 64


# -- what is saved --------------------------------------------------------------------------------


def test_it_comes_back_from_what_is_saved():
    task = build(make_splits("midi", train=[60, 62]), label_column="midi")
    assert task.to_dict() == {"name": "pitch", "labels": ["60", "62"], "label_column": "midi"}
    assert Pitch.from_dict(task.to_dict()) == task


@pytest.mark.parametrize("labels", [["60", "A4"], ["128"], ["-1"], ["060"], [60], ["60", "60"], []])
def test_labels_of_a_model_that_are_no_pitches_are_refused(labels):
    with fails(ValueError, "labels"):
        Pitch.from_dict(build().to_dict() | {"labels": labels})


# -- metrics and pictures -------------------------------------------------------------------------


def test_metrics_are_scikit_learns_and_octaves_are_forgiven():
    task = build(make_splits("pitch", train=[36, 47, 48, 49, 60, 72]))
    classes, scores = draw_classes(60, 6)
    predictions = scores.argmax(axis=1)
    pitches = np.array([int(label) for label in task.labels])
    within_octaves = accuracy_score(pitches[classes] % 12, pitches[predictions] % 12)
    evaluated = evaluated_clips(classes, scores)
    values = task.compute_metrics(evaluated)
    assert values == {
        "accuracy": pytest.approx(accuracy_score(classes, predictions)),
        "pitch_class_accuracy": pytest.approx(within_octaves),
        "macro_f1": pytest.approx(f1_score(classes, predictions, average="macro")),
    }
    assert values["accuracy"] < values["pitch_class_accuracy"] < 1
    report = task.summarize(evaluated, seed=0)
    # The log and the card name every metric of a report.
    assert set(report["metrics"]) == set(task.metric_names) == set(values)
    for name, value in values.items():
        metric = report["metrics"][name]
        assert metric["low"] < metric["value"] == value < metric["high"]
    assert list(report["per_label"]) == list(task.labels)
    assert "octave" in report["about_metrics"]


def test_a_pitch_whole_octaves_away_is_right_within_its_class_alone():
    task = build(make_splits("pitch", train=[48, 55, 60, 72]))
    scores = np.eye(4)[[3, 2, 1, 2]]  # 72 for 48, 60 for 60, 55 for 48, 60 for 55
    values = task.compute_metrics(evaluated_clips(np.array([0, 2, 0, 1]), scores))
    assert (values["accuracy"], values["pitch_class_accuracy"]) == (0.25, 0.5)


def test_a_row_is_label_prediction_and_every_probability():
    task = build(make_splits("pitch", train=[60, 72]))
    [evaluated] = evaluated_clips(np.array([1]), np.array([[0.75, 0.25]]))
    assert task.prediction_row(evaluated) == {
        "label": "72",
        "prediction": "60",
        "60": 0.75,
        "72": 0.25,
    }


def test_the_picture_is_the_confusion_matrix(tmp_path):
    task = build(make_splits("pitch", train=range(40, 80)))
    evaluated = evaluated_clips(*draw_classes(80, 40))
    captions = task.plot(
        tmp_path,
        results=task.summarize(evaluated, seed=0),
        evaluated=evaluated,
        tracks=[],
        predict=pytest.fail,
    )
    assert set(captions) == {"confusion.png"} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
