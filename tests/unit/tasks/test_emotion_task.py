"""The emotion task: any numbers, learned standardised, judged in their own units."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error, r2_score, root_mean_squared_error
from sklearn.preprocessing import StandardScaler
from support.clip_tracks import evaluated_clips, listed_problems, make_track
from support.messages import fails, names, raises

from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform
from m2v_finetune.data.manifest import Track
from m2v_finetune.tasks.clip_prediction import ClipPrediction, WindowPrediction
from m2v_finetune.tasks.emotion import Emotion, EmotionConfig

TRAIN = [(1.0, 10.0), (2.0, 20.0), ("3.0", " 30 "), (4, "4e1"), (10.0, -50.0)]
NUMBERS = np.array([[float(cell) for cell in row] for row in TRAIN])


def make_splits(train=TRAIN, validation=(), *, columns=("arousal", "valence")):
    """Tracks with numbers in two columns; None leaves a cell out."""
    splits: dict[str, list[Track]] = {"train": [], "validation": []}
    for line, row in enumerate([*train, *validation], start=2):
        split = "train" if line < 2 + len(train) else "validation"
        cells = {name: cell for name, cell in zip(columns, row, strict=True) if cell is not None}
        splits[split].append(make_track(cells, line=line, split=split))
    return splits


def build(splits=None, **config) -> Emotion:
    return Emotion.from_tracks(EmotionConfig(**config), splits or make_splits())


def message_of(code, splits=None, **settings) -> str:
    with raises(code) as raised:
        build(splits, **settings)
    return str(raised.value)


# -- labels ---------------------------------------------------------------------------------------


def test_numbers_are_standardised_by_the_training_tracks():
    task = build(make_splits(validation=[(1000, 1000)]))
    scaler = StandardScaler().fit(NUMBERS)
    assert task.labels == ("arousal", "valence")
    np.testing.assert_allclose(task.means, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(task.stds, scaler.scale_, rtol=1e-12)
    assert (task.num_outputs, task.label_column) == (2, "arousal")


def test_columns_of_ones_own_keep_their_order():
    splits = make_splits(columns=("tempo", "danceability"))
    task = build(splits, target_columns=["danceability", "tempo"])
    assert task.labels == ("danceability", "tempo")
    assert task.targets(splits["train"][0], IDENTITY).tolist() == [10.0, 1.0]
    one = build(splits, target_columns=["tempo"])
    assert one.metric_names == {
        "r2": "R2",
        "r2_tempo": "R2 of tempo",
        "rmse_tempo": "RMSE of tempo",
    }


@pytest.mark.parametrize("columns", [[], ["valence", "valence"]])
def test_no_column_and_a_column_twice_are_refused(columns):
    with raises("target-columns-not-distinct", "task.target_columns", columns):
        EmotionConfig(target_columns=columns)


def test_a_missing_column_is_refused_with_those_that_exist_and_the_key_that_names_them():
    message = message_of("column-missing", make_splits(columns=("energy", "valence")))
    assert "'arousal'" in message
    assert "energy, valence" in message
    assert "--task.target_columns" in message
    assert "label_column" not in message


NO_NUMBER = ["", "high", "nan", math.nan, "inf", -math.inf, True, [1.0], {}, 10**400, None]


def test_every_cell_that_is_no_number_is_listed_and_none_is_dropped():
    train = [*TRAIN, *((cell, 1.0) for cell in NO_NUMBER)]
    message = message_of("labels-unusable", make_splits(train, [(1.0, 2.0), ("x", "y")]))
    lines = range(2 + len(TRAIN), 2 + len(train))
    assert listed_problems(message) == [
        *(
            f"songs.csv:{line}: arousal is {cell!r}, which is not a finite number"
            for line, cell in zip(lines, NO_NUMBER, strict=True)
        ),
        "songs.csv:19: arousal is 'x', which is not a finite number",
        "songs.csv:19: valence is 'y', which is not a finite number",
    ]
    assert f"({len(NO_NUMBER) + 2}):" in message


@pytest.mark.parametrize("constant", [5, 0.1, "0.30", 1e9 + 0.1])
def test_a_column_that_never_changes_is_refused(constant):
    # The computed deviation of three times 0.1 is not 0.
    rows = [(constant, 1.0), (constant, 2.0), (constant, 3.0)]
    message = message_of("targets-constant", make_splits(rows, [(6, 4.0)]))
    assert names(message, "arousal")
    assert "task.target_columns" in message
    assert build(make_splits(rows), target_columns=["valence"]).labels == ("valence",)


def test_tracks_that_cannot_be_evaluated_are_listed():
    task = build()
    task.check_labels(make_splits()["train"])
    with raises("labels-unusable") as raised:
        task.check_labels(make_splits([(1.0, None), (1.0, 2.0)])["train"])
    assert "'valence'" not in listed_problems(str(raised.value))[0]
    assert listed_problems(str(raised.value)) == [
        "songs.csv:2: valence is None, which is not a finite number"
    ]


# -- targets, loss, what is saved -----------------------------------------------------------------


def test_targets_are_in_their_own_units_and_do_not_move():
    task = build()
    for label_transform in (IDENTITY, LabelTransform(semitones=3, rate=2.0, offset_seconds=1.0)):
        targets = [task.targets(track, label_transform) for track in make_splits()["train"]]
        assert {target.dtype for target in targets} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(targets, NUMBERS)


def test_the_loss_is_the_mean_squared_error_of_standardised_numbers():
    task = build()
    outputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    standardised = StandardScaler().fit_transform(NUMBERS)
    expected = mean_squared_error(standardised, outputs.numpy())
    loss = task.loss(outputs, torch.from_numpy(NUMBERS))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_scores_are_in_the_units_of_the_data():
    task = build()
    standardised = torch.from_numpy(StandardScaler().fit_transform(NUMBERS))
    np.testing.assert_allclose(task.activate(standardised).numpy(), NUMBERS, atol=1e-9)
    assert task.loss(standardised, task.activate(standardised)).item() == pytest.approx(
        0, abs=1e-20
    )


@given(scale=st.floats(1e-3, 1e4), offset=st.floats(-1e4, 1e4))
def test_the_loss_does_not_depend_on_the_unit(scale, offset):
    numbers = NUMBERS * scale + offset
    task = build(make_splits([tuple(row) for row in numbers.tolist()]))
    outputs = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
    loss = task.loss(outputs, torch.from_numpy(numbers)).item()
    assert loss == pytest.approx(build().loss(outputs, torch.from_numpy(NUMBERS)).item(), rel=1e-3)


def test_it_comes_back_from_what_is_saved():
    task = build()
    saved = json.loads(json.dumps(task.to_dict()))
    assert set(saved) == {"name", "labels", "means", "stds"}
    assert Emotion.from_dict(saved) == task


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ({"labels": ["arousal"]}, ("means", "stds", "labels")),
        ({"labels": []}, ("labels",)),
        ({"means": [1.0]}, ("means", "stds", "labels")),
        ({"means": [1.0, math.nan]}, ("means", "stds", "labels")),
        ({"means": ["a", "b"]}, ("a",)),
        ({"stds": [1.0, 0.0]}, ("means", "stds", "labels")),
        ({"stds": [1.0, -1.0]}, ("means", "stds", "labels")),
        ({"stds": [1.0, math.inf]}, ("means", "stds", "labels")),
        ({"stds": [math.nan, 1.0]}, ("means", "stds", "labels")),
        ({"stds": []}, ("means", "stds", "labels")),
    ],
    ids=str,
)
def test_damaged_settings_of_a_model_are_refused(damage, named):
    with fails(ValueError, *named):
        Emotion.from_dict(build().to_dict() | damage)


@pytest.mark.parametrize("key", ["labels", "means", "stds"])
def test_settings_of_a_model_that_lack_a_key_are_refused(key):
    saved = build().to_dict()
    del saved[key]
    with pytest.raises(KeyError, match=key):
        Emotion.from_dict(saved)


# -- metrics, pictures, what is printed -----------------------------------------------------------


def draw_data(*, num_tracks=40) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(num_tracks, 2)) * [1.0, 20.0] + [5.0, -100.0]
    predictions = reference + generator.normal(size=reference.shape) * [0.5, 15.0]
    return reference.astype(np.float32), predictions.astype(np.float32)


def test_metrics_and_summary_are_scikit_learns():
    task = build()
    reference, predictions = draw_data()
    evaluated = evaluated_clips(reference, predictions)
    per_target = r2_score(reference, predictions, multioutput="raw_values")
    errors = root_mean_squared_error(reference, predictions, multioutput="raw_values")
    expected = {
        "r2": per_target.mean(),
        "r2_arousal": per_target[0],
        "r2_valence": per_target[1],
        "rmse_arousal": errors[0],
        "rmse_valence": errors[1],
    }
    report = task.summarize(evaluated, seed=0)
    assert set(report["metrics"]) == set(task.metric_names) == set(expected)
    for name, value in expected.items():
        metric = report["metrics"][name]
        assert metric["value"] == pytest.approx(value, rel=1e-5)
        assert metric["low"] < metric["value"] < metric["high"]
    watched = ("r2", "r2_arousal", "r2_valence")
    assert task.selection_metric in watched
    assert task.compute_metrics(evaluated) == {
        name: report["metrics"][name]["value"] for name in watched
    }
    assert "own units" in report["about_metrics"]


def test_r2_of_numbers_that_are_all_equal_does_not_exist():
    task = build()
    evaluated = evaluated_clips(np.full((4, 2), 3.0), draw_data(num_tracks=4)[1])
    assert all(math.isnan(value) for value in task.compute_metrics(evaluated).values())
    assert task.summarize(evaluated, seed=0)["metrics"]["r2"]["value"] is None


def test_a_row_is_target_and_prediction_of_each_column():
    [evaluated] = evaluated_clips(np.array([[1.0, 2.0]]), np.array([[1.5, 2.5]]))
    assert build().prediction_row(evaluated) == {
        "true_arousal": 1.0,
        "true_valence": 2.0,
        "arousal": 1.5,
        "valence": 2.5,
    }


def test_the_picture_is_predictions_over_labels(tmp_path):
    task = build()
    evaluated = evaluated_clips(*draw_data())
    captions = task.plot(
        tmp_path,
        results=task.summarize(evaluated, seed=0),
        evaluated=evaluated,
        tracks=[],
        predict=pytest.fail,
    )
    assert set(captions) == {"regression.png"} == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "regression.png").read_bytes().startswith(b"\x89PNG")


def test_numbers_do_not_compete_in_text():
    numbers = {"arousal": -0.5, "valence": 2.0}
    window = WindowPrediction(start_seconds=0.0, end_seconds=5.0, scores=numbers)
    prediction = ClipPrediction(scores=numbers, timeline=[window], is_ranking=False)
    text = prediction.render("text", path=Path("a.mp3"), top=1, timeline=True, is_first=True)
    assert text.splitlines() == [
        "a.mp3",
        "  -0.500  arousal",
        "  2.000  valence",
        "      0.00 -     5.00 s  arousal -0.500, valence 2.000",
    ]
