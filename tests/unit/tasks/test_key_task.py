"""The key task: spellings, transposition over all 24 keys, and the score of mir_eval."""

import mir_eval
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix
from support.clip_tracks import (
    draw_classes,
    evaluated_clips,
    listed_problems,
    make_splits,
    make_track,
)
from support.messages import fails, raises

from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.tasks.key import Key, KeyConfig

TONICS = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
KEYS = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS]


def build(splits=None, **config) -> Key:
    splits = splits or make_splits("key", train=["C major"], validation=["A minor"])
    return Key.from_tracks(KeyConfig(**config), splits)


def target_of(text: str, *, semitones: float = 0.0) -> int:
    target = build().targets(make_track({"key": text}), LabelTransform(semitones=semitones))
    assert (target.shape, target.dtype) == ((), np.dtype(np.float32))
    assert target == int(target)
    return int(target)


# -- labels ---------------------------------------------------------------------------------------


def test_all_keys_are_learned_whichever_occur():
    task = build(make_splits("mood", train=["E minor"]), label_column="mood")
    assert list(task.labels) == KEYS
    assert task.num_outputs == 24
    assert task.label_column == "mood"


def test_one_key_on_all_training_tracks_is_named(caplog):
    build(make_splits("key", train=["C:maj", "C major"], test=["A minor"]))
    assert "'C major'" in caplog.text
    caplog.clear()
    build(make_splits("key", train=["C:maj", "G major"], test=["A minor"]))
    assert not caplog.records


def test_targets_are_the_numbers_of_keys_however_they_are_spelled():
    assert [target_of(key) for key in KEYS] == list(range(24))
    spelled = ["Bb major", "A#min", "F#:min", "c minor", "Db maj", "Ebm", "Cb major", " E  minor "]
    keys = ["A# major", "A# minor", "F# minor", "C minor", "C# major", "D# minor", "B major"]
    assert [KEYS[target_of(text)] for text in spelled] == [*keys, "E minor"]


NO_KEY = {
    "C dorian": "the mode 'dorian', which is neither major nor minor",
    "C major / A minor": "names more than one key",
    "C major, C major": "names more than one key",
    "C major; C major": "one key is needed, found 'C major; C major'",
    ("C major", "C major"): "one key is needed, found ['C major', 'C major']",
    "C": "names no mode; write 'C major' or 'C minor'",
    "H major": "names no key",
    "": "one key is needed, found ''",
    None: "one key is needed, found None",
    0: "names no key",
}


def test_every_track_without_exactly_one_key_is_listed_and_none_is_dropped():
    cells = [list(cell) if isinstance(cell, tuple) else cell for cell in NO_KEY]
    splits = make_splits("key", train=["C major", *cells[:8]], test=["A minor", *cells[8:]])
    with raises("labels-unusable") as raised:
        build(splits)
    listed = listed_problems(str(raised.value))
    lines = [*range(3, 11), 12, 13]
    assert len(listed) == len(lines)
    for problem, line, expected in zip(listed, lines, NO_KEY.values(), strict=True):
        assert problem.startswith(f"songs.csv:{line}: ")
        assert expected in problem
    assert "C major, C# major, D major" in str(raised.value)


def test_a_missing_column_is_refused_with_those_that_exist():
    with raises("manifest-no-label-column", "'key'", ": tonality"):
        build(make_splits("tonality", train=["C major"]))


# -- transposition --------------------------------------------------------------------------------

keys = st.integers(0, 23)
semitones = st.integers(-24, 24)


@given(key=keys, up=semitones)
def test_transposing_by_k_semitones_moves_the_key_by_k(key, up):
    is_minor, tonic = divmod(key, 12)
    assert target_of(KEYS[key], semitones=up) == 12 * is_minor + (tonic + up) % 12


@given(key=keys, first=semitones, then=semitones)
def test_two_transpositions_are_one_by_their_sum(key, first, then):
    moved = KEYS[target_of(KEYS[key], semitones=first)]
    assert target_of(moved, semitones=then) == target_of(KEYS[key], semitones=first + then)


@pytest.mark.parametrize("key", range(24))
def test_each_key_goes_through_its_twelve_and_comes_back(key):
    passed = [target_of(KEYS[key], semitones=up) for up in range(12)]
    assert sorted(passed) == list(range(key // 12 * 12, key // 12 * 12 + 12))
    assert target_of(KEYS[key], semitones=12) == target_of(KEYS[key], semitones=-12) == key


def test_a_key_moves_with_pitch_alone():
    task, track = build(), make_track({"key": "D minor"})
    moved = LabelTransform(rate=1.5, offset_seconds=2.0, source_start_seconds=1.0)
    assert task.targets(track, moved) == task.targets(track, IDENTITY) == KEYS.index("D minor")


# -- what is saved --------------------------------------------------------------------------------


def test_it_comes_back_from_what_is_saved():
    saved = build().to_dict()
    assert saved == {"name": "key", "labels": KEYS, "label_column": "key"}
    assert Key.from_dict(saved) == build()


@pytest.mark.parametrize(
    "labels", [KEYS[:23], KEYS[::-1], [*KEYS[:23], "B dorian"], [*KEYS, "N"], [], None]
)
def test_labels_of_a_model_that_are_not_the_keys_are_refused(labels):
    with fails(ValueError, "labels"):
        Key.from_dict(build().to_dict() | {"labels": labels})


# -- metrics and pictures -------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(keys, keys), min_size=1, max_size=40))
def test_the_score_is_that_of_mir_eval(pairs):
    classes, predictions = np.array(pairs).T
    report = build().summarize(evaluated_clips(classes, np.eye(24)[predictions]), seed=0)
    expected = [mir_eval.key.weighted_score(KEYS[t], KEYS[a]) for t, a in pairs]
    assert report["metrics"]["mirex_score"]["value"] == pytest.approx(np.mean(expected))
    assert sum(kind["count"] for kind in report["error_kinds"].values()) == len(pairs)


def test_metrics_and_summary():
    task = build()
    classes, scores = draw_classes(72, 24)
    predictions = scores.argmax(axis=1)
    evaluated = evaluated_clips(classes, scores)
    values = task.compute_metrics(evaluated)
    report = task.summarize(evaluated, seed=0)
    assert task.selection_metric == "mirex_score"
    assert set(values) == set(task.metric_names) == set(report["metrics"])
    assert values["accuracy"] == pytest.approx(accuracy_score(classes, predictions))
    assert values["accuracy"] < values["mirex_score"] < 1
    for name, value in values.items():
        metric = report["metrics"][name]
        assert metric["low"] < metric["value"] == value < metric["high"]
    assert report["confusion"] == confusion_matrix(classes, predictions, labels=range(24)).tolist()
    for weight in ("1 for the right key", "0.5", "0.3", "0.2", "mir_eval", "error_kinds"):
        assert weight in report["about_metrics"]


def test_the_kinds_of_errors_have_other_codes():
    predictions = ["C major", "G major", "F major", "A minor", "C minor", "F# major"]
    scores = np.eye(24)[[KEYS.index(predicted) for predicted in predictions]]
    report = build().summarize(evaluated_clips(np.zeros(6), scores), seed=0)
    names = ["correct", "fifth", "fifth below", "relative", "parallel", "other"]
    assert {kind: entry["count"] for kind, entry in report["error_kinds"].items()} == dict.fromkeys(
        names, 1
    )
    assert report["metrics"]["mirex_score"]["value"] == pytest.approx((1 + 0.5 + 0.3 + 0.2) / 6)


def test_a_row_is_label_prediction_and_every_probability():
    [evaluated] = evaluated_clips(np.array([21]), np.eye(24)[[0]])
    row = build().prediction_row(evaluated)
    assert list(row) == ["label", "prediction", *KEYS]
    assert (row["label"], row["prediction"], row["C major"], row["B minor"]) == (
        "A minor",
        "C major",
        1.0,
        0.0,
    )


@pytest.mark.slow
def test_pictures_are_the_circle_of_fifths_and_the_confusion_matrix(tmp_path):
    task = build()
    evaluated = evaluated_clips(*draw_classes(48, 24))
    captions = task.plot(
        tmp_path,
        results=task.summarize(evaluated, seed=0),
        evaluated=evaluated,
        tracks=[],
        predict=pytest.fail,
    )
    assert set(captions) == {"key_errors.png", "confusion.png"}
    for name in captions:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == set(captions)
