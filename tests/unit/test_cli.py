"""The command `m2v`, each subcommand in this process: what it prints, and its exit code."""

import copy
import csv
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from support.messages import noting_run_command, raises

from m2v_finetune import __version__, cli
from m2v_finetune.backbones.checkpoints import CHECKPOINTS
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.benchmarks import BENCHMARKS
from m2v_finetune.data.checking import check_tracks
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import main as train
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.training.evaluation import measure
from m2v_finetune.variation import MIN_STD, MIN_TRACKS

AUDIO = QUICKSTART_DIR / "audio"
SONG, OTHER_SONG = AUDIO / "test-000.ogg", AUDIO / "test-001.ogg"
LABELS = ("drums", "piano", "slow, sad")  # a comma must not break a CSV


class Outcome(NamedTuple):
    """How a command ended: exit code, output, and the code of the `UserError` that ended it."""

    code: int
    stdout: str
    stderr: str
    error: str | None = None


M2v = Callable[..., Outcome]


@pytest.fixture
def m2v(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> M2v:
    """Run the command line."""
    monkeypatch.setenv("COLUMNS", "200")
    codes: list[str | None] = []
    monkeypatch.setattr(cli, "run_command", noting_run_command(codes))

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return Outcome(int(ended.value.code or 0), *capsys.readouterr(), codes[-1])

    return run


@pytest.fixture(scope="module")
def model() -> TaskModel:
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Tagging(labels=LABELS, label_column="tags"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(),
        window_seconds=2.0,
    )
    return model.eval()


@pytest.fixture(scope="module")
def saved(model: TaskModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def beat_tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose predictions have files of their own."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=BeatTracking(label_column="beats"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(),
        window_seconds=2.0,
    )
    folder = tmp_path_factory.mktemp("beats") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """A manifest of eight clips, six of them of the split test."""
    rows = [
        {"path": str(AUDIO / f"test-{i:03d}.ogg"), "split": "test", "tags": list(LABELS[: i % 4])}
        for i in range(6)
    ]
    rows += [
        {"path": str(AUDIO / f"train-{i:03d}.ogg"), "split": "train", "tags": ["drums"]}
        for i in range(2)
    ]
    path = tmp_path / "songs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_refused(outcome: Outcome, error: str, *values: object) -> None:
    """Assert that a command ended with an error of this code, whose message names these values."""
    assert (outcome.code, outcome.error) == (2, error), outcome
    assert outcome.stdout == ""
    # Logging may come before: the message is the last one, and is one.
    message = outcome.stderr.rpartition("error: ")[2]
    assert re.findall("^error: ", outcome.stderr, re.MULTILINE) == ["error: "]
    assert "Traceback" not in outcome.stderr
    for value in values:
        assert str(value) in message


def test_version_and_help(m2v: M2v) -> None:
    assert m2v("--version") == (0, f"m2v-finetune {__version__}\n", "", None)
    code, stdout, *_ = m2v("--help")
    assert code == 0
    for command in ("backbones", "data prepare", "data check", "predict", "evaluate", "push"):
        assert f"m2v {command}" in stdout
    for words in (["predict"], ["data", "prepare"], ["push"], ["evaluate"], ["data", "check"]):
        assert m2v(*words, "--help").stdout.startswith(f"usage: m2v {' '.join(words)}")


@pytest.mark.parametrize("arguments", [[], ["data"], ["dance"], ["predict"], ["push", "model"]])
def test_incomplete_command(m2v: M2v, arguments: list[str]) -> None:
    code, stdout, stderr, _ = m2v(*arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("usage: m2v")


def test_backbones(m2v: M2v) -> None:
    code, stdout, *_ = m2v("backbones")
    assert code == 0
    lines = {line.split()[0]: line.split() for line in stdout.splitlines() if line.strip()}
    assert len(CHECKPOINTS) == 7
    for name, known in CHECKPOINTS.items():
        numbers = [known.num_layers, known.hidden_size, known.sample_rate, known.frame_rate]
        assert lines[name][1:6] == [*map(str, numbers), known.licence]


# -- data -----------------------------------------------------------------------------------------


PLAN_CONFIG = Path(__file__).parents[2] / "configs" / "tagging" / "quickstart.yaml"
PLAN = ["plan", "--config", str(PLAN_CONFIG), "--data.window_seconds", "1"]


def test_plan(m2v: M2v) -> None:
    done = m2v(*PLAN, "--memory", "11GB", "--training.per_device_batch_size", "4")
    assert done.code == 0
    message = " ".join(done.stdout.split())
    for part in ("weights", "gradients", "optimizer", "activations", "workspace", "peak"):
        assert part in message
    assert re.search(r"\bCUDA\b.* fp16\. 50 labels ", message)
    assert "--training.per_device_batch_size 4 --training.gradient_accumulation_steps 1" in message


@pytest.mark.slow
def test_plan_of_pretraining(m2v: M2v) -> None:
    config = PLAN_CONFIG.parents[1] / "pretrain" / "adaptation.yaml"
    settings = ("--data.window_seconds", "1", "--training.per_device_batch_size", "2")
    done = m2v("plan", "--config", str(config), "--memory", "1GB", *settings)
    assert done.code == 0
    message = " ".join(done.stdout.split())
    assert re.search(r"\bCUDA\b.* fp16\. Evaluation .* 16 ", message)
    assert "1.00 GB" in message
    assert "--training.per_device_batch_size 2 --training.gradient_accumulation_steps 1" in message


@pytest.mark.slow
def test_plan_of_what_cannot_be_planned(m2v: M2v, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine.yaml"
    shutil.copy(PLAN_CONFIG, elsewhere)
    assert_refused(m2v("plan", "--config", elsewhere), "task-unknown", "--task", *TASKS)
    assert m2v(*PLAN, "--training.mixed_precision", "bf16").code == 0
    assert_refused(m2v(*PLAN, "--memory", "lots"), "settings-range", "--memory", "'lots'", "11GB")
    assert_refused(m2v(*PLAN, "--memory", "11"), "settings-range", "--memory", "11 bytes", "11GB")
    misspelled = m2v(*PLAN, "--tuning.metod", "lora")
    assert_refused(misspelled, "config-invalid", "tuning.metod", "tuning.method")
    missing = tmp_path / "nowhere" / "mine.yaml"
    assert_refused(m2v("plan", "--config", missing), "config-not-found", missing)


@pytest.mark.slow
def test_a_plan_of_what_does_not_fit_ends_as_an_error(m2v: M2v) -> None:
    done = m2v(*PLAN, "--memory", "2MB")
    assert (done.code, done.error) == (2, "plan-no-fit")
    assert "--optimizer.name adafactor" in done.stdout  # a setting that takes less
    assert done.stderr.startswith("error: ")
    assert "2.0 MB" in done.stderr


def test_check_of_good_data(m2v: M2v, songs: Path) -> None:
    hours = sum(soundfile.info(AUDIO / f"test-{i:03d}.ogg").duration for i in range(6))
    hours += sum(soundfile.info(AUDIO / f"train-{i:03d}.ogg").duration for i in range(2))
    code, stdout, *_ = m2v("data", "check", songs)
    assert code == 0
    name = songs.parent.name
    first, *labels = stdout.splitlines()
    assert re.fullmatch(rf"{name}: .* 8 tracks .*\({hours / 3600:.2f} h\)\.", first)
    assert all(re.match(r"Column \w+: ", line) for line in labels)


@pytest.mark.slow
def test_convert_twice(m2v: M2v, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2V_CACHE", str(songs.parent / "cache"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    command = ("data", "convert", songs, "--backbone", "MERT-v1-95M", "--processes", 1)
    try:
        code, stdout, *_ = m2v(*command)
        assert code == 0
        again = m2v(*command, "--verify").stdout
        bad = songs.parent / "two.csv"
        bad.write_text(f"path\n{SONG}\nabsent.mp3\n")
        stopped = m2v("data", "convert", bad, "--processes", 1)
        skipped = m2v("data", "convert", bad, "--processes", 1, "--on-bad-track", "skip")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert re.search(r"8 of 8 .* mono .* 24000 Hz .* FLAC: 8 .*, 0 ", stdout)
    assert re.search(r"8 of 8 .* 24000 Hz .* FLAC: 0 .*, 8 .*verified", again)
    assert "verified" not in stdout
    [*copies] = (songs.parent / "cache" / "audio" / "24000hz").rglob("*.flac")
    assert {soundfile.info(copy).samplerate for copy in copies} == {24_000}
    assert len(copies) == 8
    assert_refused(stopped, "data-bad-tracks", "absent.mp3", "--on-bad-track skip")
    assert skipped.code == 0
    assert re.search(r"1 of 2 .* 16000 Hz ", skipped.stdout)


def test_check_of_bad_data(m2v: M2v, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no music at all")
    shutil.copy(SONG, tmp_path / "good.ogg")
    lines = [
        "path,tags",
        "absent.flac,drums",
        "empty.wav,drums",
        "text.mp3,drums",
        "good.ogg,drums",
    ]
    (tmp_path / "songs.csv").write_text("\n".join(lines) + "\n")
    outcome = m2v("data", "check", tmp_path / "songs.csv")
    assert_refused(
        outcome,
        "data-bad-tracks",
        "4 tracks",
        "(3)",
        f"songs.csv:2: {tmp_path / 'absent.flac'}: ",
        f"songs.csv:3: {tmp_path / 'empty.wav'}: ",
        f"songs.csv:4: {tmp_path / 'text.mp3'}: ",
    )
    assert "good.ogg" not in outcome.stderr
    missing = tmp_path / "none.csv"
    assert_refused(m2v("data", "check", missing), "data-not-found", missing)


def test_prepare_of_an_unknown_data_set(m2v: M2v, tmp_path: Path) -> None:
    outcome = m2v("data", "prepare", "fma", "--root", tmp_path / "fma")
    assert_refused(outcome, "benchmark-unknown", "'fma'", *BENCHMARKS)
    assert not (tmp_path / "fma").exists()


# -- predict --------------------------------------------------------------------------------------


def test_predict_text(m2v: M2v, model: TaskModel, saved: Path) -> None:
    prediction = model.predict(SONG)
    code, stdout, *_ = m2v("predict", saved, SONG, OTHER_SONG)
    assert code == 0
    lines = stdout.splitlines()
    assert len(lines) == 2 * (1 + len(LABELS))
    assert lines[0] == str(SONG)
    assert lines[4] == str(OTHER_SONG)
    best_first = sorted(prediction.scores.items(), key=lambda item: -item[1])
    assert lines[1:4] == [f"  {score:.3f}  {tag}" for tag, score in best_first]
    shown = m2v("predict", saved, SONG, "--top", "1").stdout.splitlines()
    assert shown == lines[:2]


def test_predict_text_along_the_time_line(m2v: M2v, model: TaskModel, saved: Path) -> None:
    timeline = model.predict(SONG).timeline
    lines = m2v("predict", saved, SONG, "--timeline", "--top", "1").stdout.splitlines()
    assert len(lines) == 2 + len(timeline)
    for line, window in zip(lines[2:], timeline, strict=True):
        tag, score = max(window.scores.items(), key=lambda item: item[1])
        times = f"{window.start_seconds:8.2f} - {window.end_seconds:8.2f} s"
        assert line == f"  {times}  {tag} {score:.3f}"


def test_predict_json(m2v: M2v, model: TaskModel, saved: Path) -> None:
    code, stdout, *_ = m2v("predict", saved, SONG, OTHER_SONG, "--format", "json")
    assert code == 0
    first, second = map(json.loads, stdout.splitlines())
    assert first == {"path": str(SONG), "scores": model.predict(SONG).scores}
    assert second["path"] == str(OTHER_SONG)
    assert first["scores"] != second["scores"]
    stdout = m2v("predict", saved, SONG, "--format", "json", "--timeline").stdout
    timeline = json.loads(stdout)["timeline"]
    assert timeline[0].keys() == {"start_seconds", "end_seconds", "scores"}
    assert timeline[0]["start_seconds"] == 0.0
    assert timeline[-1]["end_seconds"] == pytest.approx(soundfile.info(SONG).duration, abs=1e-3)
    means = {label: np.mean([window["scores"][label] for window in timeline]) for label in LABELS}
    assert means == pytest.approx(first["scores"], abs=1e-6)


def test_predict_decides(m2v: M2v, model: TaskModel, saved: Path, tmp_path: Path) -> None:
    # Thresholds between the scores of two songs, where one of them is above.
    by_song = [model.predict(path).scores for path in (SONG, OTHER_SONG)]
    middle = [sum(scores[label] for scores in by_song) / 2 for label in model.task.labels]
    limits = [None, *middle[1:]]
    undecided = m2v("predict", saved, SONG, "--decide")
    assert_refused(undecided, "model-without-thresholds", "--run.resume auto")
    model.task = replace(model.task, thresholds=tuple(limits))
    try:
        model.save_pretrained(tmp_path / "model")
        expected = [model.predict(path).decided for path in (SONG, OTHER_SONG)]
    finally:
        model.task = replace(model.task, thresholds=())
    for labels, scores in zip(expected, by_song, strict=True):
        above = zip(model.task.labels[1:], limits[1:], strict=True)
        assert labels == [label for label, limit in above if scores[label] >= limit]
    assert expected[0] != expected[1]
    words = ("predict", tmp_path / "model", SONG, OTHER_SONG, "--decide")
    lines = m2v(*words).stdout.splitlines()
    assert lines[0] == f"{SONG}: {', '.join(expected[0]) or 'none'}"
    found = [json.loads(line) for line in m2v(*words, "--format", "json").stdout.splitlines()]
    assert found[1] == {"path": str(OTHER_SONG), "labels": expected[1]}
    rows = list(csv.reader(io.StringIO(m2v(*words, "--format", "csv").stdout)))
    assert rows == [
        ["path", "labels"],
        [str(SONG), ";".join(expected[0])],
        [str(OTHER_SONG), ";".join(expected[1])],
    ]
    assert_refused(m2v(*words, "--timeline"), "settings-conflict", "--timeline")


def test_predict_csv(m2v: M2v, model: TaskModel, saved: Path) -> None:
    code, stdout, *_ = m2v("predict", saved, SONG, OTHER_SONG, "--format", "csv")
    assert code == 0
    header, *rows = csv.reader(io.StringIO(stdout))
    assert header == ["path", *LABELS]
    assert [row[0] for row in rows] == [str(SONG), str(OTHER_SONG)]
    expected = list(model.predict(SONG).scores.values())
    assert list(map(float, rows[0][1:])) == pytest.approx(expected, rel=1e-6)


def test_predict_csv_along_the_time_line(m2v: M2v, model: TaskModel, saved: Path) -> None:
    timelines = [model.predict(path).timeline for path in (SONG, OTHER_SONG)]
    stdout = m2v("predict", saved, SONG, OTHER_SONG, "--format", "csv", "--timeline").stdout
    header, *rows = csv.reader(io.StringIO(stdout))
    assert header == ["path", "start_seconds", "end_seconds", *LABELS]
    assert len(rows) == sum(map(len, timelines))
    for row, window in zip(rows, timelines[0] + timelines[1], strict=True):
        expected = [window.start_seconds, window.end_seconds, *window.scores.values()]
        assert list(map(float, row[1:])) == pytest.approx(expected, abs=1e-3)


def test_predict_writes_a_new_file_and_never_over_one(
    m2v: M2v, saved: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tags.json"
    printed = m2v("predict", saved, SONG, "--format", "json").stdout
    arguments = ["predict", saved, SONG, "--format", "json", "--output", output]
    assert m2v(*arguments)[:2] == (0, "")
    assert output.read_text() == printed
    output.write_text("mine")
    assert_refused(m2v(*arguments), "output-exists", output)
    assert output.read_text() == "mine"


def test_predict_into_a_folder_that_is_not_there(m2v: M2v, saved: Path, tmp_path: Path) -> None:
    output = tmp_path / "no" / "tags.json"
    outcome = m2v("predict", saved, SONG, "--output", output)
    assert_refused(outcome, "output-no-parent", output.parent, "--output")


def test_predict_of_files_that_cannot_be_read(m2v: M2v, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").touch()
    outcome = m2v("predict", saved, SONG, tmp_path / "absent.mp3", tmp_path / "empty.mp3")
    bad = [f"{tmp_path / name}: " for name in ("absent.mp3", "empty.mp3")]
    assert_refused(outcome, "predict-unreadable-files", *bad, "--on-bad-file skip")
    assert str(SONG) not in outcome.stderr


def test_predict_with_what_is_no_model(m2v: M2v, saved: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert_refused(m2v("predict", missing, SONG), "model-missing", missing)
    assert_refused(m2v("predict", tmp_path, SONG), "model-missing", tmp_path, "config.json")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(saved)
    inside = tmp_path / "run" / "model"
    assert_refused(m2v("predict", tmp_path / "run", SONG), "model-missing", f"{inside} does")
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert_refused(m2v("predict", broken, SONG), "model-weights-damaged", weights)


def test_predict_in_a_format_that_the_model_does_not_have(m2v: M2v, saved: Path) -> None:
    outcome = m2v("predict", saved, SONG, "--format", "midi")
    assert_refused(outcome, "output-unknown-format", "'midi'", "tagging", "text, json, csv")


def test_the_first_format_is_the_default(m2v: M2v, saved: Path) -> None:
    assert m2v("predict", saved, SONG) == m2v("predict", saved, SONG, "--format", "text")


def test_predict_writes_a_file_for_each_song_and_never_over_one(
    m2v: M2v, beat_tracker: Path, tmp_path: Path
) -> None:
    output = tmp_path / "beats"
    arguments = ["predict", beat_tracker, SONG, OTHER_SONG, "--format", "beats"]
    code, stdout, *_ = m2v(*arguments, "--output", output)
    written = [output / "test-000.beats", output / "test-001.beats"]
    assert code == 0
    assert stdout.splitlines() == list(map(str, written))
    assert sorted(output.iterdir()) == written
    model = TaskModel.from_pretrained(beat_tracker)
    for song, path in zip((SONG, OTHER_SONG), written, strict=True):
        times = [float(line.split()[0]) for line in path.read_text().splitlines()]
        assert times == pytest.approx(model.predict(song).times_seconds, abs=1e-3)
    # A folder may be there, but none of the files.
    written[0].write_text("mine")
    written[1].unlink()
    outcome = m2v(*arguments, "--output", output)
    assert_refused(outcome, "output-exists", written[0], "--output")
    assert str(written[1]) not in outcome.stderr
    assert written[0].read_text() == "mine"
    assert not written[1].exists()


def test_predict_that_would_write_two_songs_to_one_file(
    m2v: M2v, beat_tracker: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    twin = Path(shutil.copy(SONG, tmp_path / "other"))
    output = tmp_path / "beats"
    arguments = ["predict", beat_tracker, SONG, twin, "--format", "beats", "--output", output]
    assert_refused(m2v(*arguments), "output-duplicate-names", output / "test-000.beats")
    assert not output.exists()


def test_files_need_a_folder_to_lie_in(m2v: M2v, beat_tracker: Path, tmp_path: Path) -> None:
    arguments = ["predict", beat_tracker, SONG, "--format", "beats"]
    assert_refused(m2v(*arguments), "output-not-named", "'beats'", "--output")
    file = tmp_path / "file"
    file.write_text("mine")
    assert_refused(m2v(*arguments, "--output", file), "output-is-file", file, "'beats'")
    assert file.read_text() == "mine"
    outcome = m2v(*arguments, "--output", tmp_path / "no" / "beats")
    assert_refused(outcome, "output-no-parent", tmp_path / "no", "--output")


def test_a_model_whose_answer_is_not_finite_is_refused(
    m2v: M2v, saved: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if name.startswith("head."))
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, broken / "model.safetensors")
    outcome = m2v("predict", broken, SONG)
    assert_refused(outcome, "model-output-not-finite", SONG)


@pytest.mark.parametrize(
    ("name", "starts"),
    [
        ("tags.csv", "path,drums"),
        ("tags.JSON", '{"path"'),
        ("t.jsonl", '{"path"'),
        ("t.txt", str(SONG)),
    ],
)
def test_the_name_of_the_output_states_the_format(
    m2v: M2v, saved: Path, tmp_path: Path, name: str, starts: str
) -> None:
    assert m2v("predict", saved, SONG, "--output", tmp_path / name).code == 0
    assert (tmp_path / name).read_text().startswith(starts)
    text = tmp_path / "text.csv"
    assert m2v("predict", saved, SONG, "--format", "text", "--output", text).code == 0
    assert text.read_text().startswith(str(SONG))


def test_an_output_named_like_a_format_that_the_model_does_not_have(
    m2v: M2v, beat_tracker: Path, tmp_path: Path
) -> None:
    outcome = m2v("predict", beat_tracker, SONG, "--output", tmp_path / "beats.csv")
    assert_refused(outcome, "output-unknown-format", "'csv'", "beats", "--format")
    for name in ("song.beats", "beats.parquet", "beats.xyz"):
        outcome = m2v("predict", beat_tracker, SONG, "--output", tmp_path / name)
        assert_refused(outcome, "output-unknown-format", name, ".txt", ".json", "--format")
    assert list(tmp_path.iterdir()) == []


def test_predict_resumes_without_bad_files_and_lists_them(
    m2v: M2v, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.mp3").touch()
    command = ("predict", saved, SONG, tmp_path / "empty.mp3", OTHER_SONG, "--format", "csv")
    code, stdout, stderr, _ = m2v(*command, "--on-bad-file", "skip")
    assert code == 0
    assert [row[0] for row in csv.reader(io.StringIO(stdout))] == [
        "path",
        str(SONG),
        str(OTHER_SONG),
    ]
    assert f"{tmp_path / 'empty.mp3'}: " in stderr
    assert str(SONG) not in stderr


@pytest.mark.slow
def test_predict_states_that_outputs_hardly_vary(
    m2v: M2v, model: TaskModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dull = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in dull.head.parameters():
            parameter *= 0.01
    dull.save_pretrained(tmp_path / "dull")
    songs = [AUDIO / f"test-{number:03d}.ogg" for number in range(MIN_TRACKS)]
    outcome = m2v("predict", tmp_path / "dull", *songs, "--format", "csv")
    assert outcome.code == 0
    assert "training.epochs" in outcome.stderr
    assert "optimizer.learning_rate" in outcome.stderr
    assert m2v("predict", tmp_path / "dull", *songs[1:], "--format", "csv").stderr == ""
    manifest = tmp_path / "songs.jsonl"
    rows = [{"path": str(song), "tags": LABELS[: i % 4]} for i, song in enumerate(songs)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = m2v("evaluate", tmp_path / "dull", manifest)
    assert outcome.code == 0
    assert "training.epochs" in caplog.text  # without pytest it goes to standard error
    measured = json.loads(outcome.stdout)
    assert measured["outputs_hardly_vary"] is True
    assert 0 < measured["output_std"] < MIN_STD


# -- evaluate -------------------------------------------------------------------------------------


def test_evaluate_is_in_float32_whatever_a_variable_has(
    m2v: M2v, saved: Path, songs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    chosen = []
    score = TaskModel.score
    monkeypatch.setattr(
        TaskModel,
        "score",
        lambda self, *parts: (chosen.append(torch.is_autocast_enabled("cpu")), score(self, *parts))[
            1
        ],
    )
    assert m2v("evaluate", saved, songs).code == 0
    assert chosen
    assert not any(chosen)


@pytest.mark.slow
def test_evaluate_equals_the_results_of_the_same_model(
    m2v: M2v, model: TaskModel, saved: Path, songs: Path
) -> None:
    tracks, _ = load_tracks(str(songs), label_column="tags")
    checked, _ = check_tracks([t for t in tracks if t.split == "test"], on_bad_track="stop")
    code, stdout, *_ = m2v("evaluate", saved, songs)
    assert code == 0
    measured = json.loads(stdout)
    assert measured == json.loads(json.dumps(measure(model, checked)))
    assert measured["num_tracks"] == 6
    assert 0 <= measured["metrics"]["roc_auc"]["low"] <= measured["metrics"]["roc_auc"]["high"] <= 1
    assert json.loads(m2v("evaluate", saved, songs, "--split", "train").stdout)["num_tracks"] == 2


def test_evaluate_on_data_that_do_not_fit(
    m2v: M2v, saved: Path, songs: Path, tmp_path: Path
) -> None:
    outcome = m2v("evaluate", saved, songs, "--split", "validation")
    assert_refused(outcome, "split-empty", "'validation'", tmp_path.name)
    odd = tmp_path / "odd.jsonl"
    odd.write_text(songs.read_text().replace('"piano"', '"kazoo"'))
    assert_refused(m2v("evaluate", saved, odd), "labels-unusable", "odd.jsonl:3: ", "'kazoo'")
    unlabelled = tmp_path / "bare.jsonl"
    unlabelled.write_text(json.dumps({"path": str(SONG)}) + "\n")
    assert_refused(m2v("evaluate", saved, unlabelled), "manifest-no-label-column", "'tags'")


# -- push -----------------------------------------------------------------------------------------


def test_push_of_what_is_no_model(m2v: M2v, tmp_path: Path) -> None:
    """Nothing is asked of the Hub; pushes that reach it are tests of their own."""
    assert_refused(m2v("push", "no/folder", "me/tagger"), "model-not-found", "no/folder", "model/")
    assert_refused(m2v("push", tmp_path, "me/tagger"), "model-missing", tmp_path, "config.json")


def test_push_to_what_is_no_repository(
    m2v: M2v, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: {"name": "me"})
    outcome = m2v("push", saved, "not a repository")
    assert_refused(outcome, "hub-invalid-id", "'not a repository'")


@pytest.mark.parametrize(
    ("words", "code"),
    [([], "task-missing"), (["--data.source", "x"], "task-missing"), (["jazz"], "task-unknown")],
)
def test_training_without_a_task_names_all_tasks(words, code):
    with raises(code, *TASKS):
        train(words)
