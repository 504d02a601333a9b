"""A model that is told the answer reaches the top of every metric of each clip task.

Nothing is trained: what the head would give is made from the labels of the clips that ship, and goes the
way of all outputs, through `scores`, `predict`, `judge`, `values` and `report`, to what `m2v predict`
prints.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.frames import GRID

from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.audio.windows import window_starts
from m2v_finetune.cli import main
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.checking import CheckedTrack, check_tracks
from m2v_finetune.data.loader import Window
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.classification import Classification
from m2v_finetune.tasks.clip_prediction import ClipPrediction
from m2v_finetune.tasks.clips import ClipTask
from m2v_finetune.tasks.emotion import Emotion, EmotionConfig
from m2v_finetune.tasks.genre import Genre, GenreConfig
from m2v_finetune.tasks.instrument import Instrument, InstrumentConfig
from m2v_finetune.tasks.key import Key, KeyConfig
from m2v_finetune.tasks.pitch import Pitch, PitchConfig
from m2v_finetune.tasks.singer import Singer, SingerConfig
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.tasks.technique import Technique, TechniqueConfig

TASKS: dict[str, tuple[type[ClipTask], Any, str]] = {
    "emotion": (Emotion, EmotionConfig(), "quickstart"),
    "genre": (Genre, GenreConfig(label_column="style"), "quickstart"),
    "instrument": (Instrument, InstrumentConfig(), "quickstart-notes"),
    "key": (Key, KeyConfig(), "quickstart"),
    "pitch": (Pitch, PitchConfig(), "quickstart-notes"),
    "singer": (Singer, SingerConfig(), "quickstart-voices"),
    "tagging": (Tagging, TaggingConfig(), "quickstart"),
    "technique": (Technique, TechniqueConfig(), "quickstart-voices"),
}
NUM_TRACKS = 24
WINDOW_SECONDS = 2.0
SURE = 20.0
"""Logit of what is right; that of the rest is its negative."""


@pytest.fixture(scope="module")
def tested() -> dict[str, tuple[Any, list[CheckedTrack]]]:
    """Each task, made of all tracks of its data, and some of their test tracks."""
    found = {}
    for name, (task_class, config, source) in TASKS.items():
        tracks, _ = load_tracks(source, label_column=config.label_column)
        splits = {
            split: [track for track in tracks if track.split == split]
            for split in ("train", "validation", "test")
        }
        task = task_class.from_tracks(config, splits)
        step = max(1, len(splits["test"]) // NUM_TRACKS)
        chosen = splits["test"][::step][:NUM_TRACKS]
        checked, _ = check_tracks(chosen, on_bad_track="stop", show_progress=False)
        assert len(checked) > NUM_TRACKS // 2
        found[name] = task, checked
    return found


def windows_of(checked: CheckedTrack) -> list[Window]:
    """Where the windows of a track lie, as a model has them."""
    num_samples = round(WINDOW_SECONDS * GRID.sample_rate)
    starts = window_starts(checked.audio.num_samples(GRID.sample_rate), num_samples, num_samples)
    return [Window(start_sample=start, num_samples=num_samples, grid=GRID) for start in starts]


def oracle(task: Any, checked: CheckedTrack) -> np.ndarray:
    """What a head gives that knows the answer: (num_outputs,)."""
    target = task.targets(checked.track, IDENTITY)
    if isinstance(task, Emotion):
        return (target - np.array(task.means)) / np.array(task.stds)
    if isinstance(task, Classification):
        return np.where(np.arange(task.num_outputs) == target, SURE, -SURE)
    return np.where(target > 0, SURE, -SURE)


def predict(task: Any, checked: CheckedTrack, outputs: np.ndarray) -> ClipPrediction:
    """From outputs (windows, num_outputs), or the same (num_outputs,) of every window."""
    windows = windows_of(checked)
    rows = np.broadcast_to(outputs, (len(windows), task.num_outputs))
    scores = task.activate(torch.tensor(rows, dtype=torch.float32)).numpy()
    prediction = task.predict(checked, zip(windows, scores, strict=True))
    assert isinstance(prediction, ClipPrediction)
    return prediction


def evaluate(task: Any, tracks: Sequence[CheckedTrack], outputs: Sequence[np.ndarray]) -> list[Any]:
    return [
        task.evaluate_track(checked, predict(task, checked, row))
        for checked, row in zip(tracks, outputs, strict=True)
    ]


# -- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_is_given_the_answer_reaches_the_top_of_every_metric(name, tested):
    task, tracks = tested[name]
    evaluated = evaluate(task, tracks, [oracle(task, checked) for checked in tracks])
    values = task.compute_metrics(evaluated)
    assert task.selection_metric in values
    assert values == pytest.approx(dict.fromkeys(values, 1.0), abs=1e-6)
    metrics = task.summarize(evaluated, seed=0)["metrics"]
    assert set(metrics) == set(task.metric_names) >= set(values)
    for metric, entry in metrics.items():
        top = 0.0 if metric.startswith("rmse_") else 1.0
        assert [entry["value"], entry["low"], entry["high"]] == pytest.approx([top] * 3, abs=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_is_given_the_answers_of_other_tracks_does_not(name, tested):
    task, tracks = tested[name]
    answers = [oracle(task, checked) for checked in tracks]
    half = len(tracks) // 2  # neighbours are often alike
    evaluated = evaluate(task, tracks, answers[half:] + answers[:half])
    for metric, value in task.compute_metrics(evaluated).items():
        assert value < 0.75, metric


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_least_for_the_answer(name, tested):
    task, tracks = tested[name]
    targets = torch.from_numpy(np.stack([task.targets(c.track, IDENTITY) for c in tracks]))
    outputs = torch.from_numpy(np.stack([oracle(task, c) for c in tracks])).float()
    assert task.loss(outputs, targets).item() == pytest.approx(0, abs=1e-5)
    assert task.loss(outputs.roll(len(tracks) // 2, dims=0), targets).item() > 0.5
    assert task.loss(outputs.clone().requires_grad_(), targets).requires_grad


@pytest.mark.parametrize("name", TASKS)
def test_the_windows_of_a_track_decide_together(name, tested):
    """One window of all is told the answer of another track; the mean is still the track's."""
    task, tracks = tested[name]
    wrong = dict(zip([c.track.id for c in tracks], tracks[1:] + tracks[:1], strict=True))
    evaluated, num_mixed = [], 0
    for checked in tracks:
        rows = np.stack([oracle(task, checked)] * len(windows_of(checked)))
        if len(rows) > 2:
            rows[-1] = oracle(task, wrong[checked.track.id])
            num_mixed += 1
        prediction = predict(task, checked, rows)
        means = np.mean([list(w.scores.values()) for w in prediction.timeline], axis=0)
        assert list(prediction.scores.values()) == pytest.approx(means.tolist(), abs=1e-6)
        evaluated.append(task.evaluate_track(checked, prediction))
    values = task.compute_metrics(evaluated)
    if name == "emotion":
        assert 0 < values["r2"] < 0.99
    else:
        assert values == pytest.approx(dict.fromkeys(values, 1.0))
    assert num_mixed == len(tracks) or name not in ("emotion", "genre", "key", "tagging")


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_the_answer(name, tested):
    task, tracks = tested[name]
    evaluated = evaluate(task, tracks, [oracle(task, checked) for checked in tracks])
    rows = [task.prediction_row(one) for one in evaluated]
    assert all(list(row) == list(rows[0]) for row in rows)
    for row in rows:
        if isinstance(task, Emotion):
            for label in task.labels:
                assert row[label] == pytest.approx(row[f"true_{label}"], abs=1e-5)
        elif isinstance(task, Classification):
            assert row["prediction"] == row["label"]


# -- what is printed ------------------------------------------------------------------------------


def text_of(prediction: ClipPrediction, kind: str, *, top=3, timeline=False, is_first=True) -> str:
    path = Path("a/song, live.mp3")
    return prediction.render(kind, path=path, top=top, timeline=timeline, is_first=is_first)


@pytest.mark.parametrize("name", TASKS)
def test_formats_of_the_answer(name, tested):
    task, [checked, *_] = tested[name]
    prediction = predict(task, checked, oracle(task, checked))
    windows = windows_of(checked)
    reference = task.prediction_row(task.evaluate_track(checked, prediction))
    num_shown = len(task.labels) if isinstance(task, Emotion) else min(3, len(task.labels))

    head, *lines = text_of(prediction, "text").splitlines()
    assert head == "a/song, live.mp3"
    assert len(lines) == num_shown
    if isinstance(task, Classification):
        assert lines[0] == f"  1.000  {reference['label']}"
    if isinstance(task, Emotion):
        assert lines == [f"  {reference[label]:.3f}  {label}" for label in task.labels]
    with_windows = text_of(prediction, "text", timeline=True).splitlines()
    assert with_windows[: 1 + num_shown] == [head, *lines]
    assert len(with_windows) == 1 + num_shown + len(windows)
    assert all(" s  " in line for line in with_windows[1 + num_shown :])

    content = json.loads(text_of(prediction, "json", timeline=True))
    assert content["path"] == head
    assert list(content["scores"]) == list(task.labels)
    assert content["scores"] == pytest.approx(
        {k: v for k, v in reference.items() if k in task.labels}
    )
    assert [w["start_seconds"] for w in content["timeline"]] == [w.start_seconds for w in windows]
    assert content["timeline"][-1]["end_seconds"] == pytest.approx(checked.audio.duration_seconds)
    assert "timeline" not in json.loads(text_of(prediction, "json"))

    header, row = csv.reader(io.StringIO(text_of(prediction, "csv")))
    assert header == ["path", *task.labels]
    assert row[0] == head
    numbers = [float(cell) for cell in row[1:]]
    assert numbers == pytest.approx(list(content["scores"].values()), rel=1e-5)
    assert len(list(csv.reader(io.StringIO(text_of(prediction, "csv", is_first=False))))) == 1
    header, *rows = csv.reader(io.StringIO(text_of(prediction, "csv", timeline=True)))
    assert header == ["path", "start_seconds", "end_seconds", *task.labels]
    assert [float(cells[1]) for cells in rows] == [w.start_seconds for w in windows]


@pytest.fixture(scope="module")
def models(tested, tmp_path_factory) -> dict[str, Path]:
    """A model folder for each task, its head not trained."""
    folders = {}
    for name, (task, _) in tested.items():
        model = TaskModel.build(
            task=task,
            backbone=BackboneConfig(source="random-small", num_layers=1),
            head=HeadConfig(kind="linear"),
            tuning=TuningConfig(),
            window_seconds=WINDOW_SECONDS,
        )
        folders[name] = tmp_path_factory.mktemp(name) / "model"
        model.save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("name", TASKS)
def test_m2v_predict_prints_what_a_saved_model_states(name, tested, models, capsys):
    task, tracks = tested[name]
    paths = [str(checked.track.path) for checked in tracks[:2]]

    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(models[name]), *paths, *arguments])
        output = capsys.readouterr()
        assert ended.value.code == 0, output.err
        return output.out

    outputs = [json.loads(line) for line in printed("--format", "json").splitlines()]
    model = TaskModel.from_pretrained(models[name])
    assert model.task == task  # all of it was saved
    for one, path in zip(outputs, paths, strict=True):
        assert one == {"path": path, "scores": pytest.approx(model.predict(path).scores, abs=1e-5)}
        assert list(one["scores"]) == list(task.labels)
        if isinstance(task, Classification):
            assert sum(one["scores"].values()) == pytest.approx(1)
    header, *rows = csv.reader(io.StringIO(printed("--format", "csv", "--timeline")))
    assert header == ["path", "start_seconds", "end_seconds", *task.labels]
    assert len(rows) == sum(len(windows_of(checked)) for checked in tracks[:2])
    lines = printed("--top", "1").splitlines()
    assert [line for line in lines if not line.startswith("  ")] == paths
    assert len(lines) == 2 * (1 + (len(task.labels) if isinstance(task, Emotion) else 1))
