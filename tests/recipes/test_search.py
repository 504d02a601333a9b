"""Search of settings: the same trials after a kill, validation alone, one cache, a config to train."""

import json
import math
import multiprocessing
import os
import shutil
import time

import optuna
import pytest
import yaml
from support.clip_tracks import write_styles
from support.forked import Forked
from support.messages import raises
from support.processes import cpu_environment
from support.runs import reset_accelerate

from m2v_finetune.search import search_settings
from m2v_finetune.search import study as study_module
from m2v_finetune.search.space import parse_space
from m2v_finetune.settings import read_config

OVER = ("optimizer.learning_rate=log(1e-4,1e-1)", "tuning.method=probe,lora", "tuning.r=int(1,4)")
NUM_TRIALS = 5


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Tracks of 1 s of three styles."""
    return write_styles(tmp_path_factory.mktemp("tracks"), {"train": 4, "validation": 3, "test": 1})


def words(manifest, cache):
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "data.windows_per_track": 1,
        "task.label_column": "style",
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "training.epochs": 2,
        "run.seed": 2,  # two probes among five trials
        "training.per_device_batch_size": 4,
        "cache.folder": cache,
    }
    return [f"--{key}={value}" for key, value in settings.items()]


def search(manifest, output, *, over=OVER, trials=NUM_TRIALS, more=()):
    reset_accelerate()
    return search_settings(
        "genre",
        [*words(manifest, output.parent / "cache"), *more],
        over,
        output=output,
        num_trials=trials,
        command="m2v search genre",
    )


def command(manifest, output, trials=NUM_TRIALS):
    over = [word for one in OVER for word in ("--over", one)]
    return [
        *("m2v", "search", "genre", *over, "--trials", str(trials), "--output", str(output)),
        *words(manifest, output.parent / "cache"),
    ]


@pytest.fixture(scope="module")
def done(manifest, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "search"
    return folder, search(manifest, folder)


@pytest.mark.slow
def test_trials_are_of_validation_alone_and_skip_unused_settings(done):
    folder, content = done
    assert json.loads((folder / "search.json").read_text()) == content
    assert [one["number"] for one in content["trials"]] == list(range(NUM_TRIALS))
    methods = {one["settings"]["tuning.method"] for one in content["trials"]}
    assert methods == {"probe", "lora"}
    for one in content["trials"]:
        assert one["state"] in ("complete", "pruned")
        assert ("tuning.r" in one["settings"]) == (one["settings"]["tuning.method"] == "lora")
        run = folder / "trials" / f"trial-{one['number']:04d}"
        if one["state"] == "complete":
            results = json.loads((run / "results.json").read_text())
            assert results["split"] == "validation"
            assert results["validation"]["accuracy"] == one["value"]
        assert not (run / "test_tracks.jsonl").exists()
        assert not (run / "model").exists()
    best = max(one["value"] for one in content["trials"] if one["value"] is not None)
    assert content["trials"][content["best"]]["value"] == best
    probes = [one for one in content["trials"] if one["settings"]["tuning.method"] == "probe"]
    assert len(probes) > 1
    stores = [path for path in (folder.parent / "cache").iterdir() if path.is_dir()]
    assert len(stores) <= 2  # all probes share it


def test_table_picture_and_config_are_written(done):
    folder, content = done
    best = content["trials"][content["best"]]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["tuning"]["method"] == best["settings"]["tuning.method"]
    assert config["optimizer"]["learning_rate"] == best["settings"]["optimizer.learning_rate"]
    assert config["run"]["output_dir"] is None
    read_config("genre", [f"--config={folder / 'config.yaml'}"])
    first = (folder / "search.md").read_text().splitlines()[2]
    assert first.startswith(f"| {content['best']} |")
    assert sum(content["importance"].values()) == pytest.approx(1)
    assert (folder / "importance.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive  # a kill at the level of the search is in the test of model and pruner below
def test_killed_and_resumed_ends_in_the_same_trials(manifest, done, tmp_path):
    folder, content = done
    output = tmp_path / "search"
    shutil.copytree(folder.parent / "cache", tmp_path / "cache")
    running = Forked(command(manifest, output), environment=cpu_environment())
    log = output / "trials" / "trial-0002" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and "validation" in log.read_text()):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.kill()
    running.wait()
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{output / 'study.db'}")
    assert [one.state.name for one in study.get_trials()][2] == "RUNNING"
    assert search(manifest, output) == content


@pytest.mark.exhaustive
def test_two_processes_share_the_trials(manifest, done, tmp_path):
    output = tmp_path / "search"
    shutil.copytree(done[0].parent / "cache", tmp_path / "cache")
    both = [Forked(command(manifest, output, 3), environment=cpu_environment()) for _ in range(2)]
    written = [one.communicate(300) for one in both]
    assert [one.wait() for one in both] == [0, 0], written
    content = search(manifest, output, trials=3)
    assert [one["number"] for one in content["trials"]] == [0, 1, 2]
    assert {one["state"] for one in content["trials"]} == {"complete"}
    taken = [
        sum(f"Trial {number}: " in " ".join(err.split()) for number in range(3))
        for _, err in written
    ]
    assert sorted(taken) == [1, 2]


def test_a_trial_below_the_median_is_stopped(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "NUM_UNPRUNED", 1)
    values = {0: 0.9, 1: 0.1}

    def train(config, task, *, is_search, on_epoch):
        number = int(config.run.output_dir[-4:])
        for epoch in range(1, 5):  # the median pruner compares from the first epoch
            on_epoch(epoch, {"accuracy": values[number]})
        return type("Run", (), {"results": {"validation": {"accuracy": values[number]}}})

    monkeypatch.setattr(study_module, "train_task", train)
    content = search(manifest, tmp_path / "search", over=OVER[:1], trials=2)
    assert [one["state"] for one in content["trials"]] == ["complete", "pruned"]
    assert content["trials"][1]["num_epochs"] < 4


def test_a_trial_with_the_settings_of_another_takes_its_result(manifest, tmp_path, monkeypatch):
    values = {"probe": 0.5, "lora": 0.7}
    trained = []

    def train(config, task, *, is_search, on_epoch):
        trained.append(config.tuning.method)
        on_epoch(1, {"accuracy": values[trained[-1]]})
        return type("Run", (), {"results": {"validation": {"accuracy": values[trained[-1]]}}})

    monkeypatch.setattr(study_module, "train_task", train)
    content = search(manifest, tmp_path / "search", over=["tuning.method=probe,lora"], trials=6)
    assert sorted(trained) == ["lora", "probe"]
    for one in content["trials"]:
        assert one["value"] == values[one["settings"]["tuning.method"]]
        assert one["num_epochs"] == 1
    assert search(manifest, tmp_path / "search", over=["tuning.method=probe,lora"]) == content


def test_a_trial_that_diverges_fails_alone(manifest, tmp_path):
    """Trained in earnest: the gradients of the first trial are soon not finite."""
    over = ["optimizer.learning_rate=log(1e-3,1e30)"]
    content = search(manifest, tmp_path / "search", over=over, trials=4)
    states = {one["number"]: one["state"] for one in content["trials"]}
    assert set(states.values()) == {"complete", "fail"}
    failed = next(one for one in content["trials"] if one["state"] == "fail")
    assert failed["settings"]["optimizer.learning_rate"] > 1e3
    assert "finite" in failed["error"]
    assert search(manifest, tmp_path / "search", over=over, trials=4) == content


KILLED = 9


def test_trials_by_model_and_pruner_are_the_same_after_a_kill(manifest, tmp_path, monkeypatch):
    """Beyond the first random and unpruned trials, with a metric that is a function of the settings."""

    def train(config, task, *, is_search, on_epoch):
        distance = abs(math.log10(config.optimizer.learning_rate) + 2.5) + config.head.dropout
        number = int(config.run.output_dir[-4:])
        for epoch in range(1, 5):
            on_epoch(epoch, {"accuracy": (1 - 0.2 * distance) * epoch / 4})
            if number == kill["number"] and epoch == 1:
                os._exit(KILLED)
        return type("Run", (), {"results": {"validation": {"accuracy": 1 - 0.2 * distance}}})

    monkeypatch.setattr(study_module, "train_task", train)
    over = ["optimizer.learning_rate=log(1e-5,1e-1)", "head.dropout=uniform(0,0.5)"]
    kill = {"number": None}
    whole = search(manifest, tmp_path / "whole", over=over, trials=16)
    states = [one["state"] for one in whole["trials"]]
    assert "pruned" in states[8:]
    kill = {"number": 8 + states[8:].index("complete")}  # in it, after its first epoch
    child = multiprocessing.get_context("fork").Process(
        target=search, args=(manifest, tmp_path / "cut"), kwargs={"over": over, "trials": 16}
    )
    child.start()
    child.join()
    assert child.exitcode == KILLED
    kill = {"number": None}
    assert search(manifest, tmp_path / "cut", over=over, trials=16) == whole


@pytest.mark.exhaustive
def test_settings_that_conflict_fail_one_trial(manifest, tmp_path):
    over = ["backbone.layer_weighting=softmax,conv1d"]
    more = ["--head.kind=logistic"]
    content = search(manifest, tmp_path / "search", over=over, trials=4, more=more)
    states = {
        one["settings"]["backbone.layer_weighting"]: one["state"] for one in content["trials"]
    }
    assert states == {"softmax": "complete", "conv1d": "fail"}
    failed = next(one for one in content["trials"] if one["state"] == "fail")
    assert "layer_weighting" in failed["error"]


@pytest.mark.parametrize(
    "over",
    [
        ["optimizer.rate=1,2"],
        ["optimizer.learning_rate=log(0,1)"],
        ["optimizer.learning_rate=log(1,0.1)"],
        ["tuning.method=probe"],
        ["tuning.r=int(a,b)"],
        ["tuning.r=1,2", "tuning.r=3,4"],
        ["run.output_dir=a,b"],
        ["data.source=a,b"],
        ["data.folds=2,3"],
        ["data.validation_fraction=uniform(0.1,0.3)"],
        ["run.seed=int(1,5)"],
        ["task.label_column=style,other"],
        ["publish.private=true,false"],
        ["tuning.method=probe,nonsense"],
        ["training.mixup=1,2"],
        ["head.dropout=uniform(0.5,1.6)"],
        ["tuning.r=int(0,8)"],
    ],
)
def test_what_cannot_be_searched_is_refused(over, manifest, tmp_path):
    with raises("search-space-invalid"):
        search(manifest, tmp_path / "search", over=over)
    assert not (tmp_path / "search").exists()


def test_another_search_in_the_folder_is_refused(manifest, done, tmp_path):
    with raises("run-settings-changed", "--over"):
        search(manifest, done[0], over=OVER[:2])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with raises("output-exists"):
        search(manifest, tmp_path / "full")


def test_numbers_and_values_are_parsed():
    known = {"a.b": 1, "a.c": 1, "tuning.method": "probe"}
    found = parse_space(["a.b=log(1e-5, 1e-2)", "tuning.method=probe,lora", "a.c=int(1,8)"], known)
    assert [one.key for one in found] == ["tuning.method", "a.b", "a.c"]
    assert (found[1].low, found[1].high, found[2].kind) == (1e-5, 1e-2, "int")
