"""Tasks with one class a track: genre, instrument, singer, technique, and what all of them share."""

import doctest
import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss
from support.clip_tracks import (
    draw_classes,
    evaluated_clips,
    listed_problems,
    make_splits,
    make_track,
)
from support.messages import error_message, fails, names, raises

import m2v_finetune.tasks.classification as classification_module
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.tasks.genre import Genre, GenreConfig
from m2v_finetune.tasks.instrument import Instrument, InstrumentConfig
from m2v_finetune.tasks.singer import Singer, SingerConfig
from m2v_finetune.tasks.technique import Technique, TechniqueConfig

TASKS = [
    (Genre, GenreConfig, "genre"),
    (Instrument, InstrumentConfig, "instrument"),
    (Singer, SingerConfig, "singer"),
    (Technique, TechniqueConfig, "technique"),
]
TRAIN = ("rock", "jazz", ["rock"], " blues ")
SHIFTED = LabelTransform(semitones=3, rate=1.5, offset_seconds=1.0)


def build(splits=None, **settings) -> Genre:
    splits = splits or make_splits("genre", train=TRAIN, validation=["jazz"], test=["blues"])
    return Genre.from_tracks(GenreConfig(**settings), splits)


def message_of(code, splits=None, **settings) -> str:
    with raises(code) as raised:
        build(splits, **settings)
    return str(raised.value)


# -- labels ---------------------------------------------------------------------------------------


def test_examples_in_docstrings():
    results = doctest.testmod(classification_module)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(("task_class", "config_class", "column"), TASKS)
@pytest.mark.parametrize("train", [["a", "a"], [1, "1", 1.0], ["a", None]])
def test_a_single_class_is_refused(task_class, config_class, column, train):
    with raises("labels-single-class", f"'{train[0]}'"):
        task_class.from_tracks(config_class(), make_splits(column, train=train))


@pytest.mark.parametrize(("task_class", "config_class", "column"), TASKS)
def test_each_task_has_a_column_and_a_name_of_its_own(task_class, config_class, column):
    splits = make_splits(column, train=["b", "a"], validation=["a"], test=["b"])
    task = task_class.from_tracks(config_class(), splits)
    assert (task.name, task.label_column, task.labels) == (column, column, ("a", "b"))
    assert task.num_outputs == 2
    assert config_class().label_column == column
    assert task.selection_metric in task.metric_names


def test_classes_are_those_of_the_training_split_in_order():
    assert build().labels == ("blues", "jazz", "rock")


def test_numbers_are_ordered_by_value_before_text():
    cells = [10, "9", "rock", 100, "²"]
    assert build(make_splits("genre", train=cells)).labels == ("9", "10", "100", "rock", "²")


def test_classes_can_be_chosen_in_an_order_of_ones_own():
    task = build(labels=["rock", "blues", "jazz"])
    assert task.labels == ("rock", "blues", "jazz")
    assert task.targets(make_track({"genre": "jazz"}), IDENTITY) == 2


def test_another_column_can_be_named():
    task = build(make_splits("style", train=["waltz", "march"]), label_column="style")
    assert (task.labels, task.label_column) == (("march", "waltz"), "style")


def test_a_missing_column_is_refused_with_those_that_exist():
    message = error_message(build, make_splits("style", train=["waltz"]))
    assert names(message, "'genre'", "style")
    assert "--task.label_column" in message


def test_labels_that_differ_in_case_are_named(caplog):
    build(make_splits("style", train=["Rock", "rock", "pop"]), label_column="style")
    [record] = caplog.records
    assert "Rock, rock" in record.getMessage()
    assert "pop" not in record.getMessage()


@pytest.mark.parametrize("labels", [[], ["rock", "jazz", "rock"]])
def test_no_class_and_a_class_twice_are_refused(labels):
    message = message_of("labels-not-distinct", labels=labels)
    assert str(labels) in message
    assert "task.labels" in message


def test_classes_that_no_training_track_has_are_all_listed():
    message = message_of("labels-not-in-training", labels=["rock", "polka", "jazz", "blues", "ska"])
    assert listed_problems(message) == ["polka", "ska"]
    assert "blues, jazz, rock" in message


# What is no class: one of a kind on each line, from line 3 of songs.csv on.
NAN = float("nan")
NO_CLASS = [
    None,
    "",
    "  ",
    ";",
    [],
    ["jazz", "rock"],
    "jazz;rock",
    [["jazz"]],
    [None],
    NAN,
    {"a": 1},
]


def test_every_track_without_exactly_one_known_class_is_listed_and_none_is_dropped():
    splits = make_splits(
        "genre", train=["rock", *NO_CLASS, "jazz"], validation=["polka", "jazz"], test=["Rock"]
    )
    del splits["train"][1].columns["genre"]  # the same as None
    message = message_of("labels-unusable", splits)
    assert listed_problems(message) == [
        *(
            f"songs.csv:{n}: one class is needed, found {cell!r}"
            for n, cell in enumerate(NO_CLASS, 3)
        ),
        "songs.csv:15: unknown class 'polka'",
        "songs.csv:17: unknown class 'Rock'",
    ]
    assert names(message, "genre", len(NO_CLASS) + 2, "jazz, rock")


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        (0, "0"),
        (0.0, "0"),
        ("0", "0"),
        (1980, "1980"),
        (1980.0, "1980"),
        (3.5, "3.5"),
        (False, "false"),
        (True, "true"),
        (["no"], "no"),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_numbers_and_booleans_are_classes_like_their_text(cell, label):
    splits = make_splits("genre", train=[cell, "other"], validation=[label], test=[cell])
    task = Genre.from_tracks(GenreConfig(), splits)
    assert set(task.labels) == {label, "other"}
    targets = {
        float(task.targets(track, IDENTITY)) for track in (*splits["validation"], *splits["test"])
    }
    assert targets == {task.labels.index(label)}
    assert Genre.from_tracks(GenreConfig(labels=[label, "other"]), splits).labels[0] == label


def test_a_class_of_training_tracks_that_is_not_chosen_is_listed():
    message = message_of("labels-unusable", labels=["rock", "jazz"])
    assert listed_problems(message) == [
        "songs.csv:5: unknown class 'blues'",
        "songs.csv:7: unknown class 'blues'",
    ]


def test_training_tracks_without_any_class_are_listed_too():
    message = message_of(
        "labels-unusable", make_splits("genre", train=["", "a;b"], validation=["jazz"])
    )
    assert [line.split(":")[1] for line in listed_problems(message)] == ["2", "3", "4"]


def test_tracks_that_a_model_does_not_know_are_listed():
    task = build()
    task.check_labels(make_splits("genre", test=TRAIN)["test"])
    with raises("labels-unusable") as raised:
        task.check_labels(make_splits("genre", test=["jazz", "polka", None])["test"])
    assert listed_problems(str(raised.value)) == [
        "songs.csv:3: unknown class 'polka'",
        "songs.csv:4: one class is needed, found None",
    ]


# -- targets and what is saved --------------------------------------------------------------------


def test_targets_are_numbers_of_classes_and_do_not_move():
    task = build()
    for label_transform in (IDENTITY, SHIFTED):
        targets = [task.targets(make_track({"genre": cell}), label_transform) for cell in TRAIN]
        assert [target.tolist() for target in targets] == [2, 1, 2, 0]
        assert {(target.shape, target.dtype) for target in targets} == {((), np.dtype(np.float32))}


@pytest.mark.parametrize(("task_class", "config_class", "column"), TASKS)
def test_a_task_comes_back_from_what_is_saved(task_class, config_class, column):
    task = task_class(labels=("b", "ä, c"), label_column=column)
    saved = task.to_dict()
    assert saved == {"name": column, "labels": ["b", "ä, c"], "label_column": column}
    assert task_class.from_dict(saved) == task


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"labels": None}, ("labels", "None")),
        ({"labels": "rock"}, ("labels", "'rock'")),
        ({"labels": ["rock", 3]}, ("labels", "['rock', 3]")),
        ({"labels": []}, ("labels",)),
        ({"labels": ["rock", "rock"]}, ("labels",)),
        ({"label_column": None}, ("label_column", "None")),
        ({"label_column": 5}, ("label_column", "5")),
    ],
)
def test_damaged_settings_of_a_model_are_refused(damage, named):
    with fails(ValueError, *named):
        Genre.from_dict(build().to_dict() | damage)


@pytest.mark.parametrize("key", ["labels", "label_column"])
def test_settings_of_a_model_that_lack_a_key_are_refused(key):
    saved = build().to_dict()
    del saved[key]
    with pytest.raises(KeyError, match=key):
        Genre.from_dict(saved)


# -- loss and metrics -----------------------------------------------------------------------------


def test_the_loss_is_cross_entropy_and_scores_are_probabilities():
    task = build()
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0])  # as targets come from the loader
    scores = task.activate(logits)
    by_hand = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores.numpy(), by_hand, rtol=1e-12)
    expected = log_loss(classes.long(), by_hand, labels=[0, 1, 2])
    assert task.loss(logits, classes).item() == pytest.approx(expected, abs=1e-9)


def test_metrics_and_summary_are_scikit_learns():
    task = build()
    classes, scores = draw_classes(60, 3)
    predictions = scores.argmax(axis=1)
    evaluated = evaluated_clips(classes, scores)
    values = task.compute_metrics(evaluated)
    assert values == {
        "accuracy": pytest.approx(accuracy_score(classes, predictions), abs=1e-12),
        "macro_f1": pytest.approx(f1_score(classes, predictions, average="macro"), abs=1e-12),
    }
    assert 0.4 < values["accuracy"] < 1
    report = task.summarize(evaluated, seed=0)
    assert set(report["metrics"]) == set(task.metric_names) == set(values)
    for name, value in values.items():
        metric = report["metrics"][name]
        assert metric["value"] == value
        assert metric["low"] < value < metric["high"]
    assert report["confusion"] == confusion_matrix(classes, predictions).tolist()
    assert list(report["per_label"]) == list(task.labels)
    assert "mean over the classes" in report["about_metrics"]


def test_a_class_that_no_track_has_counts_in_no_mean():
    task = build()
    evaluated = evaluated_clips(np.array([0, 2]), np.eye(3)[[0, 2]])
    assert task.compute_metrics(evaluated) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert task.summarize(evaluated, seed=0)["labels_left_out"] == ["jazz"]
    assert not any(math.isnan(value) for value in task.compute_metrics(evaluated).values())


def test_a_row_is_label_prediction_and_every_probability():
    [evaluated] = evaluated_clips(np.array([1]), np.array([[0.25, 0.25, 0.5]]))
    assert build().prediction_row(evaluated) == {
        "label": "jazz",
        "prediction": "rock",
        "blues": 0.25,
        "jazz": 0.25,
        "rock": 0.5,
    }


@pytest.mark.parametrize(("task_class", "config_class", "column"), TASKS)
def test_the_picture_is_the_confusion_matrix(task_class, config_class, column, tmp_path):
    task = task_class(labels=("a", "b", "c"), label_column=column)
    evaluated = evaluated_clips(*draw_classes(12, 3))
    results = task.summarize(evaluated, seed=0)
    captions = task.plot(
        tmp_path, results=results, evaluated=evaluated, tracks=[], predict=pytest.fail
    )
    assert list(captions) == ["confusion.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert re.match("[A-Z]", captions["confusion.png"])
