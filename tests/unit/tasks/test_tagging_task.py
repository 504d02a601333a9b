"""The tagging task: its labels, the checks of every track's labels, targets and predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.data.manifest import Track
from m2v_finetune.errors import UserError
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig

TRAIN = ({"tags": "rock;guitar"}, {"tags": ["pop", "rock"]}, {"tags": ""}, {})
VALIDATION = ({"tags": "pop"},)
TEST = ({"tags": "rock; guitar"},)


def make_splits(train=TRAIN, validation=VALIDATION, test=TEST) -> dict[str, list[Track]]:
    splits: dict[str, list[Track]] = {}
    line = 2
    for name, rows in {"train": train, "validation": validation, "test": test}.items():
        splits[name] = []
        for columns in rows:
            path = Path(f"/music/{line}.mp3")
            origin = f"songs.csv:{line}"
            splits[name].append(
                Track(id=path.name, path=path, split=name, columns=columns, origin=origin)
            )
            line += 1
    return splits


def build(splits=None, **settings) -> Tagging:
    return Tagging.from_tracks(TaggingConfig(**settings), splits or make_splits())


def message_of(splits=None, **settings) -> str:
    with pytest.raises(UserError) as raised:
        build(splits, **settings)
    return str(raised.value)


# -- labels ---------------------------------------------------------------------------------------


def test_labels_are_those_of_the_training_split_in_order():
    task = build()
    assert task.labels == ("guitar", "pop", "rock")
    assert task.num_outputs == 3


def test_labels_can_be_chosen_in_an_order_of_ones_own():
    task = build(labels=["rock", "guitar", "pop"])
    assert task.labels == ("rock", "guitar", "pop")
    assert task.targets(make_splits()["train"][0]).tolist() == [1.0, 1.0, 0.0]


def test_another_column_can_be_named():
    splits = make_splits([{"genre": "jazz"}], [{"genre": "jazz"}], [{"genre": "jazz"}])
    assert build(splits, label_column="genre").labels == ("jazz",)


def test_a_missing_column_is_refused_with_those_that_exist():
    splits = make_splits([{"genre": "jazz", "artist": "x"}], (), ())
    message = message_of(splits)
    assert "'tags'" in message
    assert "artist, genre" in message
    assert "--task.label_column" in message


def test_a_label_that_no_training_track_has_is_refused():
    message = message_of(labels=["rock", "polka", "guitar", "pop", "hiphop"])
    assert "task.labels that no training track has (2)" in message
    assert "- polka\n" in message
    assert "- hiphop\n" in message
    assert "guitar, pop, rock" in message


def test_all_unknown_labels_of_tracks_are_listed():
    splits = make_splits(validation=[{"tags": "pop;polka"}], test=[{"tags": ["ska", "rock"]}])
    message = message_of(splits)
    assert "on no training track (2)" in message
    assert "songs.csv:6: unknown label 'polka'" in message
    assert "songs.csv:7: unknown label 'ska'" in message
    assert "--task.ignore_unknown_labels true" in message


def test_labels_of_training_tracks_that_are_not_chosen_are_listed():
    message = message_of(labels=["rock", "pop"])
    assert "not in task.labels (2)" in message
    assert "songs.csv:2: unknown label 'guitar'" in message
    assert "songs.csv:7: unknown label 'guitar'" in message


def test_unknown_labels_can_be_ignored():
    splits = make_splits(validation=[{"tags": "pop;polka"}])
    task = build(splits, ignore_unknown_labels=True)
    assert task.labels == ("guitar", "pop", "rock")
    assert task.targets(splits["validation"][0]).tolist() == [0.0, 1.0, 0.0]
    assert build(splits, labels=["rock"], ignore_unknown_labels=True).labels == ("rock",)


@pytest.mark.parametrize("labels", [[], ["rock", "pop", "rock"]])
def test_no_label_and_a_label_twice_are_refused(labels):
    message = message_of(labels=labels)
    assert str(labels) in message
    assert "task.labels" in message


def test_training_tracks_without_any_label_are_refused():
    message = message_of(make_splits([{"tags": ""}], [{"tags": ""}], [{"tags": ""}]))
    assert "at least one" in message
    assert "'tags'" in message


# -- targets, loss, metrics -----------------------------------------------------------------------


def test_targets():
    task = build()
    targets = [task.targets(track) for track in make_splits()["train"]]
    assert np.array(targets).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert all(target.dtype == np.float32 for target in targets)


def test_it_comes_back_from_what_is_saved():
    task = build(label_column="tags")
    assert Tagging.from_dict(task.to_dict()) == task
    assert task.to_dict()["name"] == "tagging"


def test_the_loss_is_the_mean_over_tracks_and_labels():
    task = build()
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 0, 1]])
    expected = log_loss(targets.flatten(), logits.sigmoid().flatten())
    assert task.loss(logits, targets.double()).item() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(task.scores(logits), torch.sigmoid(logits))


def test_a_track_has_the_mean_of_its_windows():
    scores = np.array([[0.0, 0.5, 1.0], [1.0, 0.5, 0.5]], dtype=np.float32)
    aggregated = build().aggregate(scores)
    assert aggregated.tolist() == [0.5, 0.5, 0.75]
    assert aggregated.dtype == np.float32


def test_values_are_scikit_learns():
    task = build()
    generator = np.random.default_rng(0)
    targets = (generator.random((40, 3)) > 0.6).astype(np.float32)
    scores = generator.random((40, 3)).astype(np.float32)
    values = task.values(targets, scores)
    assert set(values) == set(task.metric_names)
    assert task.selection_metric in values
    assert values["roc_auc"] == pytest.approx(roc_auc_score(targets, scores), abs=1e-9)
    expected = average_precision_score(targets, scores, average="macro")
    assert values["average_precision"] == pytest.approx(expected, abs=1e-9)
    assert task.values(targets, targets) == {"roc_auc": 1.0, "average_precision": 1.0}


def test_a_report_has_intervals_around_the_values():
    task = build()
    generator = np.random.default_rng(0)
    targets = (generator.random((40, 3)) > 0.6).astype(np.float32)
    scores = generator.random((40, 3)).astype(np.float32)
    report = task.report(targets, scores, seed=0)
    for name, value in task.values(targets, scores).items():
        metric = report["metrics"][name]
        assert metric["value"] == pytest.approx(value)
        assert metric["low"] < value < metric["high"]


def test_a_prediction():
    scores = np.array([[0.125, 0.5, 0.75], [0.25, 0.5, 0.875]], dtype=np.float32)
    prediction = build().prediction(scores, [(0.0, 5.0), (3.5, 8.5)])
    assert prediction.tags == {"guitar": 0.1875, "pop": 0.5, "rock": 0.8125}
    assert prediction.top(2) == [("rock", 0.8125), ("pop", 0.5)]
    assert len(prediction.timeline) == 2
    last = prediction.timeline[1]
    assert (last.start_seconds, last.end_seconds) == (3.5, 8.5)
    assert last.tags == {"guitar": 0.25, "pop": 0.5, "rock": 0.875}


# -- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "forbidden"),
    [
        ("fast", Effect.TIME),
        ("mood---slow", Effect.TIME),
        ("Quiet", Effect.LEVEL),
        ("low voice", Effect.PITCH),
    ],
)
def test_a_label_forbids_what_would_make_it_false(label, forbidden):
    allowed = Tagging(labels=("rock", label), label_column="tags").allowed_effects()
    assert set(Effect) - allowed == {forbidden}


def test_other_labels_forbid_nothing():
    task = Tagging(labels=("rock", "slowcore", "flow"), label_column="tags")
    assert task.allowed_effects() == frozenset(Effect)
