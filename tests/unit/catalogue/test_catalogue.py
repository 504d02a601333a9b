"""Tables of predictions: equal to `TaskModel.predict`, complete, and resumed by id after kills."""

import csv
import faulthandler
import io
import json
import os
import random
import re
import shutil
import signal
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import soundfile
import torch
from support.forked import Forked
from support.matrix import exhaustive
from support.messages import names, raises
from support.models import build_tagger

from m2v_finetune import cli
from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.backbones import load_backbone
from m2v_finetune.calibration import PlattScaling, TemperatureScaling
from m2v_finetune.catalogue import stream, tracks
from m2v_finetune.catalogue.embeddings import Embeddings, load_network
from m2v_finetune.catalogue.items import Item
from m2v_finetune.catalogue.predictions import NamedModel, Predictions
from m2v_finetune.catalogue.sources import read_items
from m2v_finetune.catalogue.stream import WindowStream
from m2v_finetune.catalogue.tracks import track_rows
from m2v_finetune.cli import build_parser
from m2v_finetune.cli.predict import split_models
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data import workers
from m2v_finetune.data.feature_tables import CATALOGUE_FILE, read_table
from m2v_finetune.data.features import read_vector_splits
from m2v_finetune.data.manifest import Track
from m2v_finetune.model import TaskModel
from m2v_finetune.model.fingerprint import model_fingerprint
from m2v_finetune.model.novelty import Novelty
from m2v_finetune.similarity import VectorTable
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.separation import Separation
from m2v_finetune.tasks.tagging import Tagging

HOLD = """
import sys, time
from pathlib import Path
from m2v_finetune.files import lock
lock(Path(sys.argv[1]))
time.sleep(60)
"""
RATE = 16_000
NUM_FILES = 60
NOVELTY_BOUND = 8.5
"""Near the middle of the distances of the files, so that some are unknown."""
TASKS = {
    "tags": Tagging(
        labels=("drums", "piano", "slow, sad"),
        label_column="tags",
        calibration=PlattScaling(slopes=(2.0, 0.5, 1.0), intercepts=(0.3, -0.2, 0.0)),
        thresholds=(0.5, 0.1, None),
    ),
    "genre": Genre(
        labels=("rock", "jazz"),
        label_column="genre",
        calibration=TemperatureScaling(temperature=0.3),
    ),
    "beats": BeatTracking(label_column="beats"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models, whose heads differ and whose backbones are the same."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, task) in enumerate(TASKS.items()):
        torch.manual_seed(seed)
        model = TaskModel.build(
            task=task,
            backbone=BackboneConfig(source="random-small"),
            head=HeadConfig(kind="mlp", hidden_size=16),
            tuning=TuningConfig(),
            window_seconds=0.5,
        )
        if name != "beats":
            generator = torch.Generator().manual_seed(0)
            model.novelty = Novelty.fit(
                torch.randn(50, model.backbone.hidden_size, generator=generator)
            )
            model.novelty.bounds.copy_(torch.tensor([float("inf"), NOVELTY_BOUND]))
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of 0.2 to 1.4 s, in two depths."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "album").mkdir()
    for number in range(NUM_FILES):
        place = folder / "album" if number % 3 == 0 else folder
        write_sound(place / f"{number:03d}.wav", number, seconds=0.2 + 0.2 * (number % 7))
    return folder


def write_sound(path: Path, seed: int, *, seconds: float) -> None:
    samples = np.random.default_rng(seed).standard_normal(round(RATE * seconds), dtype=np.float32)
    soundfile.write(path, 0.3 * samples, RATE, subtype="FLOAT")


def m2v(*words: object, code: int = 0, input: object = None) -> str:
    """Run the command line in a fork of a warm process, and return standard error."""
    done = Forked(["m2v", *map(str, words)], input=input)
    _, stderr = done.communicate(300)
    assert done.returncode == code, stderr
    return stderr


def rows_of(folder: Path) -> list[dict]:
    """Read the table as pandas and DuckDB do; each id is there once."""
    rows = parquet.read_table(folder).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return sorted(rows, key=lambda row: row["id"])


@pytest.mark.slow
def test_predictions_equal_those_of_each_model_alone(models: Path, music: Path, tmp_path: Path):
    output = tmp_path / "out"
    words = [*(models / name for name in TASKS), music, "--output", output]
    stderr = m2v("predict", *words, "--num-workers", 2, "--shard-tracks", 16)
    assert f"{NUM_FILES} computed now" in stderr
    rows = rows_of(output)
    assert [row["id"] for row in rows] == sorted(
        str(path.relative_to(music)) for path in music.rglob("*.wav")
    )
    unknown: dict[str, list[bool]] = {name: [] for name in TASKS}
    for name in TASKS:
        model = TaskModel.from_pretrained(models / name)
        for row in rows:
            alone = model.predict(row["path"])
            found = row[f"prediction_{name}"]
            if name == "beats":
                text = alone.render("json", path=Path(), top=1, timeline=False, is_first=True)
                assert {"path": ".", **json.loads(found)} == json.loads(text)
            else:
                # Other neighbours in a batch may change the last bit of a matrix product.
                assert found["scores"] == pytest.approx(alone.scores, abs=1e-6)
                assert found["labels"] == alone.decided
                assert found["novelty"] == pytest.approx(alone.novelty, rel=1e-5)
                unknown[name].append(alone.is_unknown)
            assert row["duration"] == pytest.approx(soundfile.info(row["path"]).duration)
            assert row[f"model_{name}"] == str(models / name)
    assert {True, False} == set(unknown["tags"]) == set(unknown["genre"])
    assert set(rows[0]) >= {"error", *(f"version_{name}" for name in TASKS)}


def test_models_of_one_backbone_share_its_pass(models: Path, music: Path):
    def computed(names: list[str]) -> tuple[Predictions, list[dict]]:
        loaded = [
            NamedModel(name=name, source=name, model=TaskModel.from_pretrained(models / name))
            for name in names
        ]
        analysis = Predictions(loaded)
        calls.clear()
        for one in loaded:
            one.model.backbone.network.feature_extractor.register_forward_hook(
                lambda *_: calls.append(1)
            )
        items = read_items([str(music)], standard_input=io.BytesIO()).items[:20]
        found = sorted(track_rows(analysis, items, batch_size=4))
        return analysis, [row for track in found for row in track.rows]

    calls: list[int] = []
    together, rows = computed(["tags", "genre"])
    assert len(together.passes) == len(together.layouts) == 1
    for name in ("tags", "genre"):
        _, own = computed([name])
        assert [row["prediction"] for row in own] == [row[f"prediction_{name}"] for row in rows]
    both, _ = computed(["tags", "beats"])  # windows of beats overlap
    assert len(both.passes) == len(both.layouts) == 2


def run(*words: object) -> None:
    """Run the command line in this process."""
    arguments = cli.build_parser().parse_args(list(map(str, words)))
    arguments.command(arguments)


@pytest.mark.slow
def test_models_of_a_command_line_come_before_its_sources(tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").touch()
    for words, num_models in (
        (["a.onnx", "b.onnx", "song.wav"], 2),
        ([str(tmp_path / "one"), str(tmp_path / "one"), "me/model", str(tmp_path)], 3),
        (["a.onnx", "song.wav", "b.onnx"], 1),
        (["me/model", "music/song.mp3", "b.wav"], 1),
    ):
        models, sources = split_models(build_parser().parse_args(["predict", *words]))
        assert models == words[:num_models]
        assert sources == words[num_models:]


@pytest.mark.parametrize(
    ("format", "num_kills"),
    [("parquet", 5), *exhaustive(("parquet", 20), ("jsonl", 20), ("csv", 20))],
)
def test_a_table_after_kills_equals_an_undisturbed_one(
    models: Path, music: Path, tmp_path: Path, format: str, num_kills: int
):
    def words(output: Path) -> list[str]:
        options = ["--shard-tracks", 4, "--batch-size", 2, "--num-workers", 1, "--format", format]
        found = ["predict", models / "tags", models / "genre", music, "--output", output, *options]
        return list(map(str, found))

    m2v(*words(tmp_path / "undisturbed"))
    expected = contents(tmp_path / "undisturbed")
    assert len(expected) > 10

    generator = random.Random(0)
    output = tmp_path / "0"
    num_found = []
    for number in range(num_kills):
        running = Forked(["m2v", *words(output)])
        until = len(contents(output)) + generator.randrange(4)
        while len(contents(output)) < until and running.poll() is None:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.2))
        running.kill()
        running.wait(60)
        found = contents(output)
        num_found.append(len(found))
        # A file that is there is complete.
        assert found.items() <= expected.items()
        if len(found) == len(expected):
            output = tmp_path / str(number + 1)
    assert len(set(num_found)) > num_kills // 4
    m2v(*words(output))
    assert contents(output) == expected


def test_a_table_is_the_same_however_many_batches_are_computed_at_once(
    models: Path, music: Path, tmp_path: Path, monkeypatch
):
    words = [models / "tags", models / "genre", music, "--batch-size", "2"]
    found, used = [], []
    in_order = tracks.in_order

    def watched(function, batches, *, at_once):
        used.extend([at_once] * (at_once > 1))
        return in_order(function, batches, at_once=at_once)

    monkeypatch.setattr(tracks, "in_order", watched)
    for count in (1, 3):
        monkeypatch.setattr(tracks, "batches_at_once", lambda _, count=count: count)
        run("predict", *words, "--output", tmp_path / f"{count}")
        found.append(contents(tmp_path / f"{count}"))
    assert used
    assert found[0] == found[1]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the shards, which equal runs write byte for byte."""
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}


def test_tracks_that_are_added_or_repaired_join_the_table(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, output = tmp_path / "songs", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        write_sound(folder / f"{number}.wav", number, seconds=0.5)
    (folder / "late.wav").write_bytes(b"")
    words = ["predict", models / "tags", folder, "--output", output, "--num-workers", 0]
    with raises("catalogue-errors", "1 of 7"):
        run(*words, "--shard-tracks", 3, "--fail-on-error")
    alone = ["predict", models / "tags", folder / "late.wav", "--output", tmp_path / "alone"]
    with raises("catalogue-errors", "1 of 1"):
        run(*alone, "--num-workers", 0)
    assert len(rows_of(tmp_path / "alone")) == 1
    before = rows_of(output)
    write_sound(folder / "late.wav", 7, seconds=0.5)
    (folder / "0.wav").unlink()
    write_sound(folder / "new.wav", 8, seconds=0.5)
    run(*words)
    assert names(capsys.readouterr().err, 1, 6)
    assert [row for row in rows_of(output) if row["id"] != "new.wav"] == before
    run(*words, "--retry-errors")
    assert re.search(r"\b1 more\b", capsys.readouterr().err)
    after = rows_of(output)
    assert len(after) == 8
    assert not any(row["error"] for row in after)
    assert [row for row in after if row["id"][0].isdigit()] == before[:6]
    run(*words, "--overwrite")
    assert [row["id"] for row in rows_of(output)] == sorted(path.name for path in folder.iterdir())


def test_a_table_that_was_killed_while_it_was_written_is_overwritten(
    models: Path, music: Path, tmp_path: Path
):
    output = tmp_path / "out"
    words = ["predict", models / "tags", music / "001.wav", "--num-workers", 0, "--output", output]
    run(*words)
    whole = contents(output)
    for name in (".part-00000.parquet.part", f".{CATALOGUE_FILE}.part"):
        (output / name).write_bytes(b"half")
    run(*words, "--overwrite")
    assert contents(output) == whole
    (output / CATALOGUE_FILE).unlink()  # killed while the table was deleted
    (output / "part-00000.parquet").rename(output / ".part-00000.parquet.part")
    run(*words)
    assert contents(output) == whole


def test_the_id_of_another_file_is_refused_and_a_file_that_was_moved_resumes(
    models: Path, tmp_path: Path
):
    for number, name in enumerate("AB"):
        (tmp_path / name / "x").mkdir(parents=True)
        write_sound(tmp_path / name / "x" / "t.wav", number, seconds=0.5)
    words = ["predict", models / "tags", "--num-workers", 0, "--output", tmp_path / "out"]
    run(*words[:2], tmp_path / "A", *words[2:])
    before = contents(tmp_path / "out")
    with raises("catalogue-duplicate-id", "A/x/t.wav", "B/x/t.wav"):
        run(*words[:2], tmp_path / "B", *words[2:])
    (tmp_path / "A").rename(tmp_path / "moved")
    run(*words[:2], tmp_path / "moved", *words[2:])
    (tmp_path / "link").symlink_to(tmp_path / "moved")
    (tmp_path / "A").symlink_to(tmp_path / "moved")
    run(*words[:2], tmp_path / "link", *words[2:])
    assert contents(tmp_path / "out") == before


def cut(path: Path, *, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


BAD_SHARDS = {
    "cut CSV": ("csv", lambda path: cut(path, num_bytes=30)),
    "CSV cut before its last line end": ("csv", lambda path: cut(path, num_bytes=1)),
    "CSV cut in the middle": ("csv", lambda path: cut(path, num_bytes=path.stat().st_size // 2)),
    "JSONL of a number": ("jsonl", lambda path: path.write_text("5\n")),
    "JSONL without an id": ("jsonl", lambda path: path.write_text('{"id": null, "error": null}\n')),
    "JSONL with a number as error": (
        "jsonl",
        lambda path: path.write_text('{"id": "a", "error": 5}'),
    ),
    "cut Parquet": ("parquet", lambda path: cut(path, num_bytes=30)),
}


@pytest.mark.parametrize("case", BAD_SHARDS)
def test_a_damaged_shard_is_named(models: Path, music: Path, tmp_path: Path, case: str):
    format, damage = BAD_SHARDS[case]
    words = ["predict", models / "tags", music, "--num-workers", 0, "--format", format]
    run(*words, "--output", tmp_path / "out")
    shard = tmp_path / "out" / f"part-00000.{format}"
    damage(shard)
    with raises("catalogue-shard-unreadable", shard):
        run(*words, "--output", tmp_path / "out")


def test_a_shard_of_another_table_is_named(models: Path, music: Path, tmp_path: Path):
    words = ["embed", "random-small", music / "001.wav", "--num-workers", 0, "--output"]
    run(*words, tmp_path / "mean")
    run(*words, tmp_path / "first", "--layer", 1)
    shutil.copy(tmp_path / "first" / "part-00000.parquet", tmp_path / "mean")
    with raises("catalogue-shard-unreadable", tmp_path / "mean"):
        run(*words, tmp_path / "mean")
    with raises("vectors-table-unreadable", tmp_path / "mean"):
        read_table(tmp_path / "mean", {"001.wav": music / "001.wav"})
    with raises("vectors-unreadable", tmp_path / "mean"):
        VectorTable.open(tmp_path / "mean")
    VectorTable.open(tmp_path / "first")


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_rows_of_another_shard_and_doubled_rows_are_refused(
    music: Path, tmp_path: Path, format: str, models: Path
):
    words = ["predict", models / "tags", music, "--num-workers", 0, "--format", format]
    words += ["--shard-tracks", 16, "--output", tmp_path / "out"]
    run(*words)
    first, second = sorted((tmp_path / "out").glob("part-*"))[:2]
    whole = second.read_bytes()
    shutil.copy(first, second)
    with raises("catalogue-shard-unreadable", second, "another shard"):
        run(*words)
    second.write_bytes(whole)
    run(*words)
    if format == "jsonl":
        lines = whole.splitlines(keepends=True)
        second.write_bytes(b"".join([lines[0], *lines]))
        with raises("catalogue-shard-unreadable", second, "one id"):
            run(*words)


def test_tracks_that_do_not_arrive_end_the_command(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """PyTorch passes over the batches that a worker could not send."""
    read = tracks.read_batches

    def losing(loader):
        for number, batch in enumerate(read(loader)):
            if number != 1:
                yield batch

    words = ["embed", "random-small", music, "--num-workers", 0, "--batch-size", 8]
    with monkeypatch.context() as patch:
        patch.setattr(tracks, "read_batches", losing)
        with raises("worker-lost-batch", "--num-workers"):
            run(*words, "--output", tmp_path / "out")
    run(*words, "--output", tmp_path / "out")
    run(*words, "--output", tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_workers_are_those_that_fit_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    usage = shutil.disk_usage(tmp_path)._replace(free=64_000_000)
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert workers.fitting_workers(4, 5_000_000) == 4
    assert not caplog.records
    assert workers.fitting_workers(16, 5_000_000) == 4
    assert workers.fitting_workers(2, 50_000_000) == 0
    assert [names(one.getMessage(), "64.0 MB") for one in caplog.records] == [True, True]
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "none")  # not Linux
    assert workers.fitting_workers(16, 50_000_000) == 16


def test_a_path_is_that_of_the_file_which_the_system_opens(
    models: Path, music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    shutil.copy(music / "001.wav", tmp_path / "x.wav")
    shutil.copy(music / "002.wav", tmp_path / "other" / "x.wav")
    (tmp_path / "link").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "m.csv").write_text("path\nlink/../x.wav\n")
    monkeypatch.chdir(tmp_path)
    words = ["predict", models / "tags", "--num-workers", 0]
    for number, source in enumerate(("link/../x.wav", "m.csv", tmp_path / "link" / ".." / "x.wav")):
        run(*words[:2], source, *words[2:], "--output", tmp_path / f"out-{number}")
        [row] = rows_of(tmp_path / f"out-{number}")
        assert row["path"] == str(tmp_path / "other" / "x.wav")
        assert row["duration"] == inspect_audio(music / "002.wav").duration_seconds


def test_the_version_of_a_model_is_of_its_settings_too(models: Path, tmp_path: Path):
    TaskModel.from_pretrained(models / "tags").save_pretrained(tmp_path / "all", weights="all")
    versions = [model_fingerprint(TaskModel.from_pretrained(tmp_path / "all"))]
    file = tmp_path / "all" / "config.json"
    config = file.read_text()
    assert '"hidden_act": "gelu"' in config
    file.write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    versions.append(model_fingerprint(TaskModel.from_pretrained(tmp_path / "all")))
    assert versions[0] != versions[1]


def test_a_folder_whose_name_is_no_utf8_takes_a_table(models: Path, music: Path, tmp_path: Path):
    output = tmp_path / os.fsdecode(b"caf\xe9")
    for _ in range(2):
        run("predict", models / "tags", music / "001.wav", "--num-workers", 0, "--output", output)
    assert len(list(output.glob("part-*.parquet"))) == 1


def test_long_cells_of_a_csv_are_read_again(models: Path, music: Path, tmp_path: Path):
    words = ["predict", models / "tags", music / "001.wav", "--num-workers", 0, "--format", "csv"]
    run(*words, "--output", tmp_path / "out")
    shard = tmp_path / "out" / "part-00000.csv"
    [row] = csv.DictReader(shard.read_text().splitlines())
    name = next(key for key in row if key not in ("id", "path", "error"))
    row[name] = "x" * 200_000
    with shard.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    run(*words, "--output", tmp_path / "out")
    assert "x" * 200_000 in shard.read_text()


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "1e9"])
def test_windows_of_no_length_are_refused(music: Path, tmp_path: Path, seconds: str):
    with raises({"0": "window-too-short"}.get(seconds, "settings-range")):
        run(
            *("embed", "random-small", music / "001.wav", "--output", tmp_path / "out"),
            *("--window-seconds", seconds),
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(models: Path, music: Path, tmp_path: Path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for output in (tmp_path / "dangling", Path("/proc/x/y")):
        with raises("output-not-writable", output):
            run("predict", models / "tags", music / "001.wav", "--output", output)


def test_another_table_is_refused(models: Path, music: Path, tmp_path: Path):
    output, song = tmp_path / "out", music / "001.wav"
    words = [song, "--num-workers", 0, "--output"]
    run("predict", models / "tags", *words, output)
    before = contents(output)
    changed = TaskModel.from_pretrained(models / "tags")
    with torch.no_grad():
        next(changed.head.parameters()).add_(1e-3)
    changed.save_pretrained(tmp_path / "tags")
    for other in (tmp_path / "tags", models / "genre"):
        with raises("catalogue-other-table", output, "tags"):
            run("predict", other, *words, output)
    with raises("catalogue-other-table", "parquet", "csv"):
        run("predict", models / "tags", *words, output, "--format", "csv")
    with raises("catalogue-other-table", "predictions", "embeddings"):
        run("embed", models / "tags", *words, output)
    with raises("catalogue-folder-not-empty", "001.wav"):
        run("predict", models / "tags", *words, music / "")
    holder = Forked(["-c", HOLD, output / ".lock"])
    while "process" not in (output / ".lock").read_text():
        time.sleep(0.01)
    try:
        with raises("output-locked", output, holder.pid):
            run("predict", models / "tags", *words, output)
    finally:
        holder.kill()
        holder.wait(60)
    assert contents(output) == before


def test_words_that_make_no_table_are_refused(models: Path, music: Path, tmp_path: Path):
    tags, genre, song = models / "tags", models / "genre", music / "001.wav"
    with raises("catalogue-not-a-table", "genre"):
        run("predict", tags, genre, song)
    with raises("catalogue-not-a-table"):
        run("predict", tags, song, "--output", tmp_path / "out.csv", "--overwrite")
    with raises("catalogue-option", "--timeline"):
        run("predict", tags, song, "--output", tmp_path / "out", "--timeline")
    with raises("catalogue-duplicate-model", "tags"):
        run("predict", tags, tags, song, "--output", tmp_path / "out")
    with raises("catalogue-source-missing", "nowhere"):
        run("predict", tags, tmp_path / "nowhere", "--output", tmp_path / "out")
    with raises("embed-window-of-model", "0.5"):
        run("embed", tags, song, "--output", tmp_path / "out", "--window-seconds", 2)
    with raises("catalogue-not-a-folder", "out.csv", "--format"):
        run("embed", tags, song, "--output", tmp_path / "out.csv")
    with raises("embed-no-such-layer", "9"):
        run("embed", "random-small", song, "--output", tmp_path / "out", "--layer", 9)
    torch.manual_seed(0)
    separation = Separation(
        stems=("drums", "other"), label_column="stems", sample_rate=8000, num_channels=1
    )
    TaskModel.build(
        task=separation,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(hidden_size=16),
        tuning=TuningConfig(),
        window_seconds=0.5,
    ).save_pretrained(tmp_path / "stems")
    with raises("catalogue-no-stems"):
        run("predict", tmp_path / "stems", song, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.csv").exists()


def test_sources_name_tracks_by_id(music: Path, tmp_path: Path):
    def ids(*sources: object, listed: bytes = b"") -> list[str]:
        found = read_items(list(map(str, sources)), standard_input=io.BytesIO(listed))
        assert all(Path(item.path).is_file() for item in found.items)
        return [item.id for item in found.items]

    song, other = music / "001.wav", music / "album" / "000.wav"
    assert ids(song, song) == [str(song)]
    assert ids(music)[-3:] == ["album/051.wav", "album/054.wav", "album/057.wav"]
    assert ids("-", listed=f"{song}\n\n{other}\r\n".encode()) == [str(song), str(other)]
    assert ids("-", listed=f"{song}\0{other}".encode()) == [str(song), str(other)]
    (tmp_path / "list").write_bytes(f"{song}\n{other}\n".encode())
    with (tmp_path / "list").open("rb") as file:
        options = ["--output", tmp_path / "out", "--layer", 0, "--num-workers", 0]
        m2v("embed", "random-small", "-", *options, input=file)
    assert [row["id"] for row in rows_of(tmp_path / "out")] == [str(song), str(other)]
    rows = {"id": ["b", "a"], "path": [str(song), str(other)], "year": [1, 2]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "songs.parquet")
    (tmp_path / "songs.csv").write_text(f"file_name,id\n{song},b\n{other},\n")
    (tmp_path / "songs.jsonl").write_text(json.dumps({"path": str(song), "id": 7}))
    assert ids(tmp_path / "songs.parquet") == ["a", "b"]
    assert ids(tmp_path / "songs.csv") == [str(other), "b"]
    assert ids(tmp_path / "songs.jsonl") == ["7"]

    (tmp_path / "twice.csv").write_text(f"path,id\n{song},b\n{other},b\n")
    with raises("catalogue-duplicate-id", "b: ", song, other):
        ids(tmp_path / "twice.csv")
    (tmp_path / "bad.csv").write_text(f"path\n{song}\n\n ''\n../out.wav\n ,\n".replace(" ,\n", ""))
    with raises("manifest-bad-lines", "../out.wav"):
        ids(tmp_path / "bad.csv")
    with raises("catalogue-empty"):
        ids("-")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with raises("catalogue-empty", ".txt (1). Name"):
        ids(tmp_path / "texts")
    parquet.write_table(pyarrow.table({"file": ["a"]}), tmp_path / "none.parquet")
    with raises("manifest-no-path-column", "file"):
        ids(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("path")
    with raises("manifest-not-parquet", "text.parquet"):
        ids(tmp_path / "text.parquet")


def test_each_kind_of_bad_file_is_a_row_with_its_reason(models: Path, tmp_path: Path):
    for number in range(90):
        write_sound(tmp_path / f"{number:02d}.wav", number, seconds=0.3)
    good = (tmp_path / "00.wav").read_bytes()
    write_sound(tmp_path / "long.wav", 0, seconds=3.0)
    long = (tmp_path / "long.wav").read_bytes()
    bad = {
        "empty": b"",
        "text": b"This is no music.",
        "zeros": bytes(5000),
        "header alone": good[:44],
        "truncated": long[: len(long) // 2],
        "flac, truncated": encoded_flac()[:600],
        "not finite": good[:-400] + np.full(100, np.nan, np.float32).tobytes(),
        "infinite in the middle": long[:90_000] + b"\x00\x00\x80\x7f" * 10 + long[90_040:],
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "missing.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "long.wav").unlink()
    listed = "".join(f"{path}\n" for path in sorted(tmp_path.glob("*.wav")))
    items = read_items(["-"], standard_input=io.BytesIO(listed.encode())).items
    model = TaskModel.from_pretrained(models / "tags")
    analysis = Predictions([NamedModel(name="tags", source="tags", model=model)])
    rows = {
        Path(row["id"]).stem: row
        for track in track_rows(analysis, items, batch_size=8)
        for row in track.rows
    }
    assert len(rows) == len(items) == 101
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert errors.keys() == {*bad, "pipe", "folder", "missing"}
    assert all(row["prediction"] is None for row in rows.values() if row["error"])
    assert all(row["prediction"]["scores"] for row in rows.values() if not row["error"])
    codes = {name: error.split(":")[0] for name, error in errors.items()}
    assert codes == {
        "empty": "audio-empty",
        "missing": "audio-not-found",
        "pipe": "audio-not-a-file",
        "folder": "audio-not-a-file",
        "not finite": "audio-not-finite",
        "infinite in the middle": "audio-not-finite",
        "truncated": "audio-truncated",
        "flac, truncated": "audio-truncated",
        "text": "audio-unreadable",
        "zeros": "audio-unreadable",
        "header alone": "audio-unreadable",
    }


def encoded_flac() -> bytes:
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).standard_normal(RATE, dtype=np.float32)
    soundfile.write(buffer, 0.3 * samples, RATE, format="FLAC")
    return buffer.getvalue()


@pytest.mark.slow
def test_a_file_that_crashes_its_decoder_is_a_row(
    models: Path, music: Path, monkeypatch: pytest.MonkeyPatch
):
    items = read_items([str(music)], standard_input=io.BytesIO()).items[:24]
    model = NamedModel(name="tags", source="tags", model=TaskModel.from_pretrained(models / "tags"))
    analysis = Predictions([model])
    units = [(0, 8), (8, 16), (16, 24)]

    def rows(killed: dict[int, signal.Signals]) -> dict[int, list[dict]]:
        def crash(path: Path):
            for number, one in killed.items():
                if str(path) == items[number].path:
                    faulthandler.disable()
                    os.kill(os.getpid(), one)
            return inspect_audio(path)

        monkeypatch.setattr(stream, "inspect_audio", crash)
        found = list(track_rows(analysis, items, batch_size=4, num_workers=2, units=units))
        assert len({track.number for track in found}) == len(found) == len(items)
        return {track.number: track.rows for track in found}

    expected = rows({})
    found = rows({3: signal.SIGSEGV, 11: signal.SIGABRT})
    for number in (3, 11):
        [row] = found.pop(number)
        assert row["error"].startswith("audio-crashed: ")
        assert items[number].path in row["error"]
        assert row["prediction"] is None
    for number, [row] in found.items():
        assert row["prediction"]["scores"] == pytest.approx(
            expected[number][0]["prediction"]["scores"], abs=1e-6
        )
        assert row["error"] is None
    with raises("worker-died", items[5].path):
        rows({5: signal.SIGKILL})


def test_a_file_of_any_length_needs_the_memory_of_a_batch(tmp_path: Path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        for _ in range(20 * 60):
            file.write(np.zeros(RATE, np.int16))
    model = load_network("random-small")
    embeddings = Embeddings("random-small", model, layer=0, window_seconds=1.0)
    stream = WindowStream(
        items=[Item("long", str(path))],
        units=[(0, 1)],
        layouts=embeddings.layouts,
        batch_size=4,
        num_workers=0,
    )
    tracemalloc.start()
    try:
        assert sum(len(batch.owners) for batch in stream) == 20 * 60
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4e6  # the file has 77 MB as float32


@pytest.mark.parametrize("pool", ["track", "windows"])
@pytest.mark.parametrize("source", ["tags", "random-small"])
@pytest.mark.parametrize("layer", [None, 2])
def test_embeddings_equal_embed(models: Path, music: Path, pool, source: str, layer: int | None):
    network = load_network(str(models / source) if source == "tags" else source)
    seconds = None if source == "tags" else 0.4
    embeddings = Embeddings(source, network, layer=layer, pool=pool, window_seconds=seconds)
    path = music / "013.wav"  # 1.4 s
    items = [Item("a", str(path)), Item("b", str(music / "004.wav"))]
    tracks = dict(track_rows(embeddings, items, batch_size=2))
    found = np.stack([row["vector"] for row in tracks[0]])
    options = {} if seconds is None else {"window_seconds": seconds}
    expected = network.embed(path, layer=layer, pool=pool, batch_size=2, **options)
    if source == "random-small" and layer is None:
        expected = expected.mean(axis=-2)
    np.testing.assert_allclose(found, np.atleast_2d(expected), atol=1e-6)
    if pool == "windows":
        hop = network.hop_seconds if seconds is None else seconds
        times = [row["time"] for row in tracks[0]]
        assert times == pytest.approx([*np.arange(len(times) - 1) * hop, 1.4 - (seconds or 0.5)])


@pytest.mark.slow
def test_a_table_of_embeddings_is_trained_from(music: Path, tmp_path: Path):
    output = tmp_path / "vectors"
    run("embed", "random-small", music, "--output", output, "--num-workers", 0)
    (file := next(output.glob("part-*.parquet")))
    assert b"weights" in parquet.read_schema(file).metadata[b"m2v_finetune"]
    vectors, errors = read_table(
        output, {name: music / name for name in ("001.wav", "album/000.wav", "other.wav")}
    )
    assert not errors
    backbone = load_network("random-small")
    assert vectors.keys() == {"001.wav", "album/000.wav"}
    for name, rows in vectors.items():
        expected = backbone.embed(music / name).mean(axis=0)
        np.testing.assert_allclose(rows, expected[None], atol=1e-6)

    def track(name: str) -> Track:
        return Track(
            id=name,
            path=music / name,
            split="train",
            columns={},
            origin="songs.csv:1",
            folder=music,
        )

    splits = {"train": [track("001.wav"), track("album/000.wav")]}
    read, _ = read_vector_splits(splits, output, on_bad_track="stop")
    for one in read["train"]:
        np.testing.assert_array_equal(one.vectors, vectors[one.track.id])
    with raises("data-bad-tracks", "other.wav", "no row with this id"):
        read_vector_splits({"train": [track("other.wav")]}, output, on_bad_track="stop")
    # The same ids in another folder are other songs; a folder that was moved is the same.
    other = replace(track("001.wav"), path=music / "002.wav")
    with raises("data-bad-tracks", music / "001.wav", "another file"):
        read_vector_splits({"train": [other]}, output, on_bad_track="stop")
    moved = replace(track("001.wav"), path=tmp_path / "gone.wav")
    read_vector_splits({"train": [moved]}, output, on_bad_track="stop")


def test_a_table_of_embeddings_is_of_one_network(tmp_path):
    """Settings that change no weight change the vectors, and so the table."""
    load_backbone("random-small").save_pretrained(tmp_path)
    before = Embeddings("net", load_backbone(tmp_path)).identity
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5}))
    assert Embeddings("net", load_backbone(tmp_path)).identity != before
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Embeddings("net", load_backbone(tmp_path)).identity == before
    model = build_tagger(method="lora")
    of_model = Embeddings("model", model).identity
    model.tuning = replace(model.tuning, lora_alpha=1)
    assert Embeddings("model", model).identity != of_model
