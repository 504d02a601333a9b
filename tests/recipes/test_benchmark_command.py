"""`m2v benchmark` on a small tree of manifests: the table, going on after a stop, and what it skips."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.messages import raises

from m2v_finetune.benchmarking import BenchmarkSettings, run_benchmark
from m2v_finetune.benchmarking.rows import MODELS, TABLE
from m2v_finetune.benchmarking.run import LEARNING_RATES
from m2v_finetune.benchmarking.table import render_markdown
from m2v_finetune.cli import main
from m2v_finetune.data.benchmarks import BENCHMARKS
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.errors import Stopped
from m2v_finetune.model import TaskModel
from m2v_finetune.training.checkpoint_files import STATE_FILE

NUM_TRACKS = {"train": 8, "validation": 6, "test": 8}
SMALL = {"learning_rates": (1e-3, 1e-2), "epochs": 1, "num_workers": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Manifests of EmoMusic and MagnaTagATune that name clips of the quickstart."""
    folder = tmp_path_factory.mktemp("data")
    left = dict(NUM_TRACKS)
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if left[row["split"]]:
            left[row["split"]] -= 1
            row["path"] = str(QUICKSTART_DIR / row["path"])
            row["tags"] = [tag for tag in row["tags"] if tag in ("drums", "minor")]
            rows.append(row)
    for name in ("emomusic", "magnatagatune"):
        (folder / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name / "manifest.jsonl").write_text(text, encoding="utf-8")
    return folder


def settings(root, output, **changes):
    given = {"backbone": "random-small", "tasks": ("emotion",), "num_seeds": 2, **changes}
    return BenchmarkSettings(root=root, output=output, **given)


def times(folder: Path) -> dict[str, int]:
    """When each finished run was finished, and its last step saved."""
    files = [*folder.rglob("results.json"), *folder.rglob(STATE_FILE)]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_the_table_and_a_second_call_that_runs_nothing(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked, frozen_features = [], TaskModel.frozen_features

    def count(model, waveforms):
        asked.append(len(waveforms))
        return frozen_features(model, waveforms)

    monkeypatch.setattr(TaskModel, "frozen_features", count)
    output = tmp_path / "out"
    content = run_benchmark(settings(root, output), **SMALL)
    # Two rates and two seeds ask the network once of each window of each split.
    kept = [len(np.load(path)) for path in (tmp_path / "cache").rglob("sums.npy")]
    assert len(kept) == 3
    assert sum(asked) == sum(kept)
    assert json.loads((output / "benchmark.json").read_text()) == content
    (entry,) = content["rows"]
    assert entry["name"] == "emotion-emomusic"
    assert entry["num_tracks"] == NUM_TRACKS["test"]
    assert content["has_random_weights"] is True

    # The rate is that of the better validation; only its runs judged the test.
    runs = {path.parent.name: json.loads(path.read_text()) for path in output.rglob("results.json")}
    best = f"{entry['learning_rate']:g}"
    other = "0.01" if best == "0.001" else "0.001"
    assert set(runs) == {f"rate-{best}-seed-0", f"rate-{best}-seed-1", f"rate-{other}-seed-0"}
    assert entry["searched"] == {
        rate: runs[f"rate-{rate}-seed-0"]["validation"]["r2"] for rate in ("0.001", "0.01")
    }
    assert entry["searched"][best] >= entry["searched"][other]
    assert {name for name, run in runs.items() if run["split"] == "test"} == {
        f"rate-{best}-seed-0",
        f"rate-{best}-seed-1",
    }
    assert not (output / entry["name"] / f"rate-{other}-seed-0" / "predictions.csv").exists()

    # The numbers are those of the runs, in per cent.
    of_seeds = [runs[f"rate-{best}-seed-{seed}"]["metrics"]["r2_arousal"] for seed in range(2)]
    metric = entry["metrics"]["r2_arousal"]
    values = [100 * one["value"] for one in of_seeds]
    assert metric["mean"] == pytest.approx(np.mean(values))
    assert (metric["lowest_seed"], metric["highest_seed"]) == pytest.approx(
        (min(values), max(values))
    )
    assert metric["low"] == pytest.approx(100 * np.mean([one["low"] for one in of_seeds]))
    assert metric["high"] == pytest.approx(100 * np.mean([one["high"] for one in of_seeds]))
    assert metric["reported"]["MERT-v1-95M"]["value"] == 76.4
    assert "2306.00107" in metric["reported"]["MERT-v1-95M"]["paper"]

    printed = capsys.readouterr().out
    text = (output / "benchmark.md").read_text()
    for part in ("RANDOM WEIGHTS", "not measured", f"{metric['mean']:.1f}", "R2 of arousal, %"):
        assert part in printed
        assert part in text
    assert text == render_markdown(content)
    (line,) = (line for line in text.splitlines() if "R2 of valence" in line)
    assert line.endswith("| 61.7 | 52.1 | 60.0 | 61.2 |")

    # The settings of a run are those of a recipe.
    made = yaml.safe_load((output / entry["name"] / f"rate-{best}-seed-1/config.yaml").read_text())
    assert made["run"]["seed"] == 1
    assert made["optimizer"]["learning_rate"] == entry["learning_rate"]
    assert made["training"]["per_device_batch_size"] == 64
    assert (made["tuning"]["method"], made["head"]["hidden_size"]) == ("probe", 512)
    assert made["backbone"]["layer_weighting"] == "softmax"
    assert made["task"] == {"target_columns": ["arousal", "valence"]}

    before = times(output)
    assert run_benchmark(settings(root, output), **SMALL) == content
    assert times(output) == before
    with raises("run-settings-changed", "finished runs are kept"):
        run_benchmark(settings(root, output, backbone="music2vec-v1"), **SMALL)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_second_run_and_going_on(number, root, tmp_path):
    output = tmp_path / "out"
    given = settings(root, output, tasks=("tagging",), num_seeds=1)
    second = output / "tagging-magnatagatune" / "rate-0.01-seed-0"

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not second.joinpath("config.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=stop)
    earlier = signal.getsignal(number)
    watcher.start()
    try:
        with pytest.raises(Stopped) as stopped:
            run_benchmark(given, **SMALL)
    finally:
        watcher.join()
    assert stopped.value.signal_number == number
    assert str(stopped.value).endswith(f"\n  {given.command()}")
    assert given.command() == (
        f"m2v benchmark --backbone random-small --root {root} --tasks tagging --seeds 1 "
        f"--output {output}"
    )
    assert signal.getsignal(number) == earlier
    assert not (output / "benchmark.json").exists()
    first = f"tagging-magnatagatune/rate-0.001-seed-0/checkpoints/epoch-00001-step-00000001/{STATE_FILE}"
    before = times(output)
    assert first in before
    assert not (second / "results.json").exists()
    if number == signal.SIGINT:  # as if it had arrived a moment earlier, while the folder was made
        (second / "config.yaml").unlink()
        for path in [*second.glob("tensorboard"), *second.glob("metrics.jsonl")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (second / "checkpoints").iterdir():
            shutil.rmtree(path)

    content = run_benchmark(given, **SMALL)
    assert times(output)[first] == before[first]  # trained once
    assert {entry["name"] for entry in content["rows"]} == {"tagging-magnatagatune"}
    assert len(content["rows"][0]["searched"]) == 2


def test_what_is_skipped_and_why(root, tmp_path, capsys):
    with raises("benchmark-nothing-to-run"):
        run_benchmark(settings(root / "none", tmp_path, tasks=()), **SMALL)
    message = capsys.readouterr().err
    for row in TABLE:
        folder = root / "none" / row.data_set
        assert (
            f"Skips {row.name}: there is no {folder / row.manifest}; "
            f"create it with: m2v data prepare {row.data_set} --root {folder}\n"
        ) in message
    with raises("benchmark-nothing-to-run"):
        run_benchmark(
            settings(root, tmp_path, backbone="jukebox", tasks=(), features=tmp_path), **SMALL
        )
    message = capsys.readouterr().err
    assert (
        f"Skips genre-gtzan: there are no vectors in {tmp_path / 'gtzan_ff/jukebox'}\n" in message
    )
    assert (
        "Skips chords-billboard: a task of frames needs more than one vector for a clip" in message
    )
    (tmp_path / "gtzan_ff" / "jukebox").mkdir(parents=True)
    with raises("benchmark-nothing-to-run"):
        run_benchmark(
            settings(root, tmp_path, backbone="jukebox", tasks=("genre",), features=tmp_path),
            **SMALL,
        )
    assert "m2v data prepare gtzan --root" in (message := capsys.readouterr().err)
    assert "--without-audio" in message
    with raises("benchmark-task-unknown", " jazz ", "tagging,"):
        run_benchmark(settings(root, tmp_path, tasks=("jazz",)), **SMALL)


@pytest.mark.exhaustive
def test_a_row_on_vectors(tmp_path):
    """The truth is in the vectors, so the probe finds it; no audio is there."""
    folder = tmp_path / "representations" / "emomusic" / "jukebox"
    folder.mkdir(parents=True)
    (tmp_path / "emomusic").mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.append(row)
        noise = 0.1 * generator.normal(size=4)
        vector = np.array([row["arousal"], row["valence"], *noise], dtype=np.float32)
        np.save(folder / f"{row['id']}.npy", vector)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "emomusic" / "manifest.jsonl").write_text(text, encoding="utf-8")
    given = settings(
        tmp_path,
        tmp_path / "out",
        backbone="jukebox",
        features=tmp_path / "representations",
        num_seeds=1,
    )
    content = run_benchmark(given, learning_rates=(1e-2,), epochs=6, num_workers=0)
    (entry,) = content["rows"]
    assert content["has_random_weights"] is False
    assert entry["metrics"]["r2_valence"]["reported"]["Jukebox-5B"]["value"] == 61.7
    for metric in entry["metrics"].values():
        assert 50 < metric["low"] <= metric["mean"] <= metric["high"] <= 100
    assert "Probes on vectors: jukebox" in (tmp_path / "out" / "benchmark.md").read_text()
    assert given.command().startswith(
        f"m2v benchmark --backbone jukebox --root {tmp_path} --features {given.features} "
    )


def test_the_command_and_its_default_folder(tmp_path, capsys):
    words = ["--backbone", "jukebox", "--root", str(tmp_path), "--features", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", *words, "--tasks", "genre", "emotion"])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("Skips ") == 2
    assert str(tmp_path / "emomusic" / "jukebox") in message
    given = BenchmarkSettings(backbone="m-a-p/MERT-v1-95M", root=tmp_path)
    assert given.folder == Path("benchmarks-m-a-p-MERT-v1-95M")
    assert given.num_seeds == 3
    assert LEARNING_RATES == (1e-4, 5e-4, 1e-3, 5e-3, 1e-2)


def test_the_table_is_that_of_the_configs(repository):
    """Each row is what the probe's config has, but for the rate and augmentation of labels."""
    configs = {}
    for path in sorted((repository / "configs").glob("*/*-probe.yaml")):
        content = yaml.safe_load(path.read_text())
        configs[path.parent.name, content["data"]["source"]] = content
    assert len(configs) == len(TABLE) == 20
    assert len({row.name for row in TABLE}) == 20
    for row in TABLE:
        content = configs.pop((row.task.name, f"data/{row.data_set}/{row.manifest}"))
        data, training = content["data"], content["training"]
        assert row.window_seconds == data["window_seconds"], row.name
        assert row.hop_seconds == data.get("hop_seconds"), row.name
        assert row.windows_per_track == data.get("windows_per_track", 1), row.name
        assert row.per_device_batch_size == training["per_device_batch_size"], row.name
        assert training["per_device_batch_size"] * training["gradient_accumulation_steps"] == 64
        assert row.epochs == training["epochs"], row.name
        assert row.patience == training["early_stopping_patience"], row.name
        assert row.task.name in BENCHMARKS[row.data_set].recipes
        assert all(len(numbers) == len(MODELS) for numbers in row.reported.values())


def test_reported_numbers_are_those_of_the_configs_headers(repository):
    """The headers were written from the papers by themselves; a slip in one of both is seen here."""
    texts = {
        (path.parent.name, yaml.safe_load(path.read_text())["data"]["source"]): path.read_text()
        for path in (repository / "configs").glob("*/*-probe.yaml")
    }
    num_seen = 0
    for row in TABLE:
        text = texts[row.task.name, f"data/{row.data_set}/{row.manifest}"]
        for numbers in row.reported.values():
            for number in (number for number in numbers if number is not None):
                assert f"{number:.1f}" in text, (row.name, number)
                num_seen += 1
    assert num_seen == 67
