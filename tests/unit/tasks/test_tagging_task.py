"""The tagging task: its labels, the checks of every track's labels, targets and predictions."""

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from support.frames import GRID
from support.messages import error_message, names, raises

from m2v_finetune.audio.augmentation import Effect
from m2v_finetune.audio.decode import inspect_audio, read_audio
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.tasks.clip_prediction import ClipPrediction, WindowPrediction
from m2v_finetune.tasks.clips import EvaluatedClip
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
                Track(
                    id=path.name,
                    path=path,
                    split=name,
                    columns=columns,
                    origin=origin,
                    folder=path.parent,
                )
            )
            line += 1
    return splits


def build(splits=None, **settings) -> Tagging:
    return Tagging.from_tracks(TaggingConfig(**settings), splits or make_splits())


def message_of(code, splits=None, **settings) -> str:
    with raises(code) as raised:
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
    assert task.targets(make_splits()["train"][0], IDENTITY).tolist() == [1.0, 1.0, 0.0]


def test_another_column_can_be_named():
    splits = make_splits([{"genre": "jazz"}], [{"genre": "jazz"}], [{"genre": "jazz"}])
    assert build(splits, label_column="genre").labels == ("jazz",)


def test_a_missing_column_is_refused_with_those_that_exist():
    splits = make_splits([{"genre": "jazz", "artist": "x"}], (), ())
    message = error_message(build, splits)
    assert "'tags'" in message
    assert "artist, genre" in message
    assert "--task.label_column" in message


def test_a_label_that_no_training_track_has_is_refused():
    message = message_of(
        "labels-not-in-training", labels=["rock", "polka", "guitar", "pop", "hiphop"]
    )
    assert "(2)" in message
    assert "task.labels" in message
    assert "- polka\n" in message
    assert "- hiphop\n" in message
    assert "guitar, pop, rock" in message


def test_all_unknown_labels_of_tracks_are_listed():
    splits = make_splits(validation=[{"tags": "pop;polka"}], test=[{"tags": ["ska", "rock"]}])
    message = message_of("labels-unusable", splits)
    assert names(message, "(2)")
    assert "songs.csv:6: unknown label 'polka'" in message
    assert "songs.csv:7: unknown label 'ska'" in message
    assert "--task.ignore_unknown_labels true" in message


def test_labels_of_training_tracks_that_are_not_chosen_are_listed():
    message = message_of("labels-unusable", labels=["rock", "pop"])
    assert names(message, "task.labels", "(2)")
    assert "songs.csv:2: unknown label 'guitar'" in message
    assert "songs.csv:7: unknown label 'guitar'" in message


def test_unknown_labels_can_be_ignored():
    splits = make_splits(validation=[{"tags": "pop;polka"}])
    task = build(splits, ignore_unknown_labels=True)
    assert task.labels == ("guitar", "pop", "rock")
    assert task.targets(splits["validation"][0], IDENTITY).tolist() == [0.0, 1.0, 0.0]
    assert build(splits, labels=["rock"], ignore_unknown_labels=True).labels == ("rock",)


@pytest.mark.parametrize("labels", [[], ["rock", "pop", "rock"]])
def test_no_label_and_a_label_twice_are_refused(labels):
    message = message_of("labels-not-distinct", labels=labels)
    assert str(labels) in message
    assert "task.labels" in message


def test_training_tracks_without_any_label_are_refused():
    message = message_of(
        "labels-not-distinct", make_splits([{"tags": ""}], [{"tags": ""}], [{"tags": ""}])
    )
    assert "[]" in message
    assert "'tags'" in message


# -- targets, loss, metrics -----------------------------------------------------------------------


def test_targets():
    task = build()
    targets = [task.targets(track, IDENTITY) for track in make_splits()["train"]]
    assert np.array(targets).tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert all(target.dtype == np.float32 for target in targets)
    assert task.transformed_effects() == frozenset()  # what is allowed leaves tags as they are
    moved = LabelTransform(semitones=12, rate=1.5, offset_seconds=1.0)
    assert task.targets(make_splits()["train"][0], moved).tolist() == targets[0].tolist()


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
    assert torch.equal(task.activate(logits), torch.sigmoid(logits))


def evaluated_clips(targets: np.ndarray, scores: np.ndarray) -> list[EvaluatedClip]:
    return [EvaluatedClip(target=t, scores=s) for t, s in zip(targets, scores, strict=True)]


def test_metrics_are_scikit_learns():
    task = build()
    generator = np.random.default_rng(0)
    targets = (generator.random((40, 3)) > 0.6).astype(np.float32)
    scores = generator.random((40, 3)).astype(np.float32)
    values = task.compute_metrics(evaluated_clips(targets, scores))
    assert set(values) == set(task.metric_names)
    assert task.selection_metric in values
    assert values["roc_auc"] == pytest.approx(roc_auc_score(targets, scores), abs=1e-9)
    expected = average_precision_score(targets, scores, average="macro")
    assert values["average_precision"] == pytest.approx(expected, abs=1e-9)
    perfect = task.compute_metrics(evaluated_clips(targets, targets))
    assert perfect == {"roc_auc": 1.0, "average_precision": 1.0}


def test_a_report_has_intervals_around_the_values():
    task = build()
    generator = np.random.default_rng(0)
    targets = (generator.random((40, 3)) > 0.6).astype(np.float32)
    scores = generator.random((40, 3)).astype(np.float32)
    evaluated = evaluated_clips(targets, scores)
    report = task.summarize(evaluated, seed=0)
    assert set(report["metrics"]) == set(task.metric_names)
    for name, value in task.compute_metrics(evaluated).items():
        metric = report["metrics"][name]
        assert metric["value"] == pytest.approx(value)
        assert metric["low"] < value < metric["high"]
    assert list(report["per_label"]) == list(task.labels)
    assert "mean over labels" in report["about_metrics"]


def test_pictures_are_one_for_each_metric(tmp_path):
    task = build()
    generator = np.random.default_rng(0)
    targets = (generator.random((20, 3)) > 0.6).astype(np.float32)
    evaluated = evaluated_clips(targets, generator.random((20, 3)).astype(np.float32))
    captions = task.plot(
        tmp_path,
        results=task.summarize(evaluated, seed=0),
        evaluated=evaluated,
        tracks=[],
        predict=pytest.fail,
    )
    assert captions == {
        "per_label_roc_auc.png": "ROC-AUC of each label",
        "per_label_average_precision.png": "average precision of each label",
    }
    assert {path.name for path in tmp_path.iterdir()} == set(captions)


def test_labels_that_the_model_does_not_know_are_listed():
    task = build()
    splits = make_splits(validation=[{"tags": "pop;polka"}], test=[{"tags": ["ska", "rock"]}])
    task.check_labels(splits["train"])
    with raises("labels-unusable") as raised:
        task.check_labels([*splits["validation"], *splits["test"]])
    message = str(raised.value)
    assert "(2)" in message
    assert "songs.csv:6: unknown label 'polka'" in message
    assert "songs.csv:7: unknown label 'ska'" in message
    with raises("manifest-no-label-column", "'tags'"):
        task.check_labels(splits["train"][3:])


# -- a track and its windows ----------------------------------------------------------------------


@pytest.fixture
def checked(tmp_path) -> CheckedTrack:
    """A track of 8.5 s that is rock and guitar."""
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, size=round(8.5 * 16000))
    soundfile.write(path, noise, 16000, subtype="FLOAT")
    track = make_splits(train=[{"tags": "rock;guitar"}])["train"][0]
    return CheckedTrack(track=replace(track, path=path), audio=inspect_audio(path))


def window_at(start_seconds, duration_seconds=5.0) -> Window:
    return Window(
        start_sample=round(start_seconds * 16000),
        num_samples=round(duration_seconds * 16000),
        grid=GRID,
    )


def predict(task, checked) -> ClipPrediction:
    """From two windows, the last one shifted back to the end of the track."""
    scores = np.array([[0.125, 0.5, 0.75], [0.25, 0.5, 0.875]], dtype=np.float32)
    return task.predict(checked, zip([window_at(0.0), window_at(3.5)], scores, strict=True))


def test_a_prediction_is_the_mean_of_the_windows(checked):
    prediction = predict(build(), checked)
    assert prediction.scores == {"guitar": 0.1875, "pop": 0.5, "rock": 0.8125}
    assert prediction.top(2) == [("rock", 0.8125), ("pop", 0.5)]
    assert len(prediction.top(9)) == 3
    for count in (-1, 0, 1.5):
        with raises("settings-range", repr(count)):
            prediction.top(count)
    assert prediction.label == "rock"
    assert len(prediction.timeline) == 2
    last = prediction.timeline[1]
    assert (last.start_seconds, last.end_seconds) == (3.5, 8.5)
    assert last.scores == {"guitar": 0.25, "pop": 0.5, "rock": 0.875}


def test_the_time_line_ends_where_a_short_track_does(checked):
    windows = [(window_at(0.0, 20.0), np.zeros(3, dtype=np.float32))]
    [only] = build().predict(checked, iter(windows)).timeline
    assert (only.start_seconds, only.end_seconds) == (0.0, 8.5)


def test_a_track_is_evaluated_by_its_labels_and_scores(checked):
    task = build()
    evaluated = task.evaluate_track(checked, predict(task, checked))
    assert evaluated.target.tolist() == [1.0, 0.0, 1.0]
    assert evaluated.scores.tolist() == [0.1875, 0.5, 0.8125]
    assert evaluated.scores.dtype == np.float32
    assert task.prediction_row(evaluated) == {"guitar": 0.1875, "pop": 0.5, "rock": 0.8125}


def test_an_example_is_the_window_augmented_and_the_targets(checked):
    task = build()
    whole = read_audio(checked.track.path, sample_rate=16000)
    samples, targets = task.example(checked, window_at(2.0), None)
    np.testing.assert_array_equal(samples, whole[32000:112000])
    assert targets.tolist() == [1.0, 0.0, 1.0]
    quieter, targets = task.example(checked, window_at(2.0), lambda x: (0.5 * x, IDENTITY))
    np.testing.assert_array_equal(quieter, 0.5 * samples)
    assert targets.tolist() == [1.0, 0.0, 1.0]
    [plain] = task.inputs(checked, window_at(2.0))
    np.testing.assert_array_equal(plain, samples)


# -- what a prediction is written as --------------------------------------------------------------

PREDICTION = ClipPrediction(
    scores={"drums": 0.25, "slow, sad": 0.75},
    timeline=[
        WindowPrediction(
            start_seconds=0.0, end_seconds=2.5, scores={"drums": 0.5, "slow, sad": 0.5}
        ),
        WindowPrediction(
            start_seconds=2.5, end_seconds=5.0, scores={"drums": 0.0, "slow, sad": 1.0}
        ),
    ],
)


def render(kind: str, *, top=10, timeline=False, is_first=True) -> str:
    return PREDICTION.render(
        kind, path=Path("a/song.mp3"), top=top, timeline=timeline, is_first=is_first
    )


def test_text_of_a_prediction():
    assert render("text") == "a/song.mp3\n  0.750  slow, sad\n  0.250  drums\n"
    assert render("text", top=1, timeline=True).splitlines() == [
        "a/song.mp3",
        "  0.750  slow, sad",
        "      0.00 -     2.50 s  drums 0.500",
        "      2.50 -     5.00 s  slow, sad 1.000",
    ]


def test_json_of_a_prediction():
    plain = {"path": "a/song.mp3", "scores": PREDICTION.scores}
    assert json.loads(render("json")) == plain
    assert json.loads(render("json", timeline=True)) == plain | {
        "timeline": [asdict(window) for window in PREDICTION.timeline]
    }
    assert render("json").count("\n") == 1


def test_csv_of_a_prediction():
    header, row = csv.reader(io.StringIO(render("csv")))
    assert header == ["path", "drums", "slow, sad"]
    assert row == ["a/song.mp3", "0.25", "0.75"]
    assert render("csv", is_first=False) == render("csv").partition("\n")[2]
    header, *rows = csv.reader(io.StringIO(render("csv", timeline=True)))
    assert header == ["path", "start_seconds", "end_seconds", "drums", "slow, sad"]
    assert rows[1] == ["a/song.mp3", "2.500", "5.000", "0", "1"]


def test_all_formats_are_printed():
    assert set(Tagging.formats) == {"text", "json", "csv"}
    assert set(Tagging.formats.values()) == {None}


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


def test_labels_of_one_class_in_a_split_are_named(caplog):
    rows = {
        "train": [{"tags": ["drums", "piano", "voice"]}],
        "validation": [{"tags": ["drums", "piano"]}, {"tags": ["drums"]}],
        "test": [{"tags": ["drums"]}, {"tags": ["piano", "voice"]}],
    }
    build(make_splits(**rows))
    message = [record.getMessage() for record in caplog.records]
    assert len(message) == 2
    assert message[0].startswith(
        "Each of the 2 tracks of the split 'validation' has the label 'drums'"
    )
    assert message[1].startswith(
        "None of the 2 tracks of the split 'validation' has the label 'voice'"
    )


@pytest.mark.parametrize("labels", [None, ["drums"]])
def test_labels_that_all_training_tracks_have_are_refused(labels):
    tracks = [{"tags": "drums;piano"}, {"tags": ["piano", "drums"]}]
    if labels is not None:
        tracks[0] = {"tags": "drums"}
    splits = make_splits(train=tracks, validation=[{"tags": ""}], test=[{"tags": "drums"}])
    with raises("labels-constant", "2 training tracks", "drums"):
        build(splits, labels=labels, ignore_unknown_labels=labels is not None)
    build(make_splits(train=[*tracks, {"tags": ""}]), ignore_unknown_labels=True)
