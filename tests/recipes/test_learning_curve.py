"""Learning curve: nested subsets, one feature cache, a resume without runs, and the power law."""

import json

import numpy as np
import pytest
from scipy.optimize import curve_fit
from support.clip_tracks import write_styles
from support.messages import raises
from support.processes import run_ranks
from support.runs import reset_accelerate

from m2v_finetune import learning_curve
from m2v_finetune.learning_curve import CurveSettings, measure_curve, render_markdown
from m2v_finetune.metrics.power_law import fit_power_laws
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import find_task
from m2v_finetune.training import solved_head

SIZES = (3, 6, 12)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tracks of 1 s of three styles: 12 to train on, 3 for validation, 9 for the test."""
    return write_styles(tmp_path_factory.mktemp("tracks"), {"train": 4, "validation": 1, "test": 3})


def measure(manifest, output, *words, sizes=6, repeats=2):
    reset_accelerate()
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "task.label_column": "style",
        "head.kind": "logistic",
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "cache.folder": output.parent / "cache",
    }
    config = read_config("genre", [*(f"--{k}={v}" for k, v in settings.items()), *words])
    return measure_curve(
        config,
        find_task("genre"),
        CurveSettings(output=output, num_sizes=sizes, num_repeats=repeats),
        command="m2v curve genre",
    )


@pytest.fixture(scope="module")
def done(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves") / "curve"
    changed = pytest.MonkeyPatch()
    changed.setattr(solved_head, "PENALTIES", (10.0, 1.0))
    yield folder, measure(manifest, folder)
    changed.undo()


@pytest.mark.exhaustive
def test_two_processes_run_one_run_after_the_other(manifest, tmp_path):
    """Each run has the processes of the one before, and both read what the first wrote."""
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.windows_per_track": 1,
        "data.num_workers": 0,
        "task.label_column": "style",
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "head.dropout": 0,
        "training.epochs": 1,
        "cache.folder": tmp_path / "cache",
    }
    found = []
    for count in (1, 2):
        output = tmp_path / f"{count}"
        words = ["m2v", "curve", "genre", "--output", str(output), "--repeats", "1"]
        batch = {"training.per_device_batch_size": 4 // count}
        done = run_ranks(count, words, {**settings, **batch})
        assert done.returncode == 0, done.stderr[-3000:]
        points = json.loads((output / "curve.json").read_text())["points"]
        found.append({one["num_tracks"]: one["value"] for one in points})
    assert found[0] == pytest.approx(found[1])


@pytest.mark.slow
def test_points_are_the_means_of_runs_on_nested_subsets(done):
    folder, content = done
    assert [one["num_tracks"] for one in content["points"]] == list(SIZES)
    for point in content["points"]:
        size = point["num_tracks"]
        values = []
        for repeat in range(1 if size == SIZES[-1] else 2):
            run = folder / f"tracks-{size}-repeat-{repeat}"
            results = json.loads((run / "results.json").read_text())
            assert results["num_tracks_of_splits"] == {"train": size, "validation": 3, "test": 9}
            values.append(results["metrics"]["accuracy"]["value"])
        assert not (folder / f"tracks-{SIZES[-1]}-repeat-1").exists()  # it would be the same run
        assert point["repeats"] == pytest.approx(values)
        assert point["value"] == pytest.approx(np.mean(values))
        assert point["low"] <= point["value"] <= point["high"]
    tracks = [
        set(json.loads((folder / f"tracks-{n}-repeat-0" / "tracks.json").read_text())["train"])
        for n in SIZES
    ]
    assert tracks[0] < tracks[1] < tracks[2]
    other = json.loads((folder / "tracks-3-repeat-1" / "tracks.json").read_text())["train"]
    assert set(other) != tracks[0]


def test_table_picture_and_extrapolation_are_written(done):
    folder, content = done
    assert json.loads((folder / "curve.json").read_text()) == content
    assert (folder / "curve.md").read_text() == render_markdown(content)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [one["num_tracks"] for one in content["extrapolated"]] == [24, 48]
    for one in content["extrapolated"]:
        assert one["low"] <= one["high"] <= 1


def test_the_runs_share_one_feature_cache(done):
    folder, _ = done
    # Each track has one window, so that those of training and of evaluation are the same.
    assert len([path for path in (folder.parent / "cache").iterdir() if path.is_dir()]) == 1


@pytest.mark.slow
def test_the_same_command_runs_only_what_is_missing(manifest, done, monkeypatch):
    folder, content = done
    (folder / "tracks-6-repeat-1" / "results.json").unlink()
    seen = []
    real = learning_curve.train_task
    monkeypatch.setattr(
        learning_curve,
        "train_task",
        lambda config, *a, **k: seen.append(config.run.output_dir) or real(config, *a, **k),
    )
    assert measure(manifest, folder) == content
    assert seen == [str(folder / "tracks-6-repeat-1")]


def test_another_curve_in_the_folder_is_refused(manifest, done):
    with raises("run-settings-changed", "head.pooling"):
        measure(manifest, done[0], "--head.pooling=mean_std")


def test_too_few_tracks_are_refused_before_training(manifest, tmp_path):
    with raises("curve-too-few-tracks", 12):
        measure(manifest, tmp_path / "curve", sizes=2)
    with raises("settings-conflict", "data.num_train_tracks"):
        measure(manifest, tmp_path / "curve", "--data.num_train_tracks=5")
    assert not (tmp_path / "curve").exists()


def test_the_power_law_is_that_of_scipy():
    generator = np.random.default_rng(0)
    sizes = np.array([10, 20, 40, 80, 160, 320])
    values = 0.9 - 1.1 * sizes**-0.4 + generator.normal(0, 0.003, size=6)
    laws = fit_power_laws(sizes, values[None], upper=1)
    expected, _ = curve_fit(lambda n, a, b, c: a - b * n**-c, sizes, values, p0=(1, 1, 0.5))
    theirs = expected[0] - expected[1] * 640 ** -expected[2]
    assert laws.at([640])[0, 0] == pytest.approx(theirs, abs=2e-3)


def test_a_falling_curve_is_flat_and_a_limit_is_not_exceeded():
    sizes = [10, 20, 40]
    laws = fit_power_laws(sizes, [[0.6, 0.5, 0.4], [0.2, 0.6, 0.999]], upper=1)
    assert laws.gain[0] == 0
    assert laws.at([80])[0, 0] == pytest.approx(0.5)
    assert laws.limit[1] <= 1
    assert (np.diff(laws.at([10, 100, 1000])) >= 0).all()
