"""Metrics as functions of counts of draws: with each track once they are the task's metrics."""

import numpy as np
import pytest
from support.clip_tracks import draw_classes, evaluated_clips

from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.separation import Separation
from m2v_finetune.tasks.tagging import Tagging

NUM_TRACKS = 30
RNG = np.random.default_rng(0)


def classes(name, labels, **settings):
    task = TASKS[name](labels=tuple(labels), label_column="c", **settings)
    return task, evaluated_clips(*draw_classes(NUM_TRACKS, len(task.labels)))


def made_cases():
    yield classes("genre", "abcd")
    yield classes("pitch", ["60", "61", "72"])
    key = TASKS["key"].from_settings(TASKS["key"].settings_class())
    yield key, evaluated_clips(*draw_classes(NUM_TRACKS, 24))
    targets, scores = RNG.random((2, NUM_TRACKS, 3))
    yield Tagging(labels=("a", "b", "c"), label_column="c"), evaluated_clips(targets > 0.6, scores)
    emotion = TASKS["emotion"](labels=("v", "a"), means=(0.0, 0.0), stds=(1.0, 1.0))
    yield emotion, evaluated_clips(targets[:, :2], scores[:, :2])
    for name in ("beats", "chords", "structure", "melody", "transcription"):
        task = TASKS[name].from_settings(TASKS[name].settings_class())
        names = list(task.metric_names)
        seconds = [f"{one}_seconds" for one in names] if name == "chords" else []
        tracks = [dict(zip(names + seconds, RNG.random(20), strict=False)) for _ in range(9)]
        tracks[2][names[0]] = np.nan
        if seconds:
            tracks[2][seconds[0]] = 0.0  # nothing counts there
        yield task, tracks
    separation = Separation.from_settings(Separation.settings_class())
    stems = separation.stems
    yield (
        separation,
        [{stem: {"sdr": RNG.random(), "si_sdr": RNG.random()} for stem in stems} for _ in range(9)],
    )


CASES = list(made_cases())


@pytest.mark.parametrize(("task", "evaluated"), CASES, ids=[task.name for task, _ in CASES])
def test_each_track_once_gives_the_metrics(task, evaluated):
    once = np.ones((1, len(evaluated)), dtype=np.int32)
    summary = task.summarize(evaluated, seed=0)
    found = {name: float(one(once)[0]) for name, one in task.statistics(evaluated).items()}
    expected = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert found == pytest.approx(expected)
    of_labels = task.label_statistics(evaluated)
    if "per_label" in summary:
        assert set(of_labels) == set(summary["per_label"])
    for label, statistics in of_labels.items():
        for name, one in statistics.items():
            if "per_label" in summary:
                value = summary["per_label"][label][name]
                assert float(one(once)[0]) == pytest.approx(value)


@pytest.mark.parametrize(("task", "evaluated"), CASES, ids=[task.name for task, _ in CASES])
def test_counts_are_repeated_tracks(task, evaluated):
    counts = RNG.multinomial(len(evaluated), np.full(len(evaluated), 1 / len(evaluated)))
    repeated = [one for one, n in zip(evaluated, counts, strict=True) for _ in range(n)]
    expected = task.compute_metrics(repeated)
    found = task.statistics(evaluated)
    for name, value in expected.items():
        drawn = found[name](counts[None].astype(np.int32))[0]
        assert drawn == pytest.approx(value, nan_ok=True)
