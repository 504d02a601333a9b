"""The run folder: what may be begun in it, and what may go on."""

import json
import logging
import shlex
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec

import pytest
from support.messages import logged, raises

from m2v_finetune.config import DataConfig, OptimizerConfig, RecipeConfig, RunConfig, TrainingConfig
from m2v_finetune.files import write_json
from m2v_finetune.training.run_folder import RunFolder, choose_folder
from m2v_finetune.training.sizes import require_space

CONFIG = RecipeConfig(data=DataConfig(source="songs.csv"))


def test_a_run_resumes_with_what_may_change(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    written = folder.config.read_bytes(), folder.environment.read_bytes()
    may = replace(
        CONFIG,
        data=replace(CONFIG.data, num_workers=7),
        training=TrainingConfig(epochs=99, trackers=["wandb"]),
        run=RunConfig(output_dir=str(folder.path), resume="auto", keep_checkpoints=1),
    )
    caplog.set_level(logging.INFO)
    folder.create(may)
    assert (folder.config.read_bytes(), folder.environment.read_bytes()) == written
    assert logged(caplog, "training.epochs", 20, 99) == 1
    assert logged(caplog, "run.keep_checkpoints", 2, 1) == 1
    assert logged(caplog, "run.output_dir") == 0
    # The next time goes on with them too.
    words = shlex.split(folder.resume_command())
    assert words[words.index("--training.epochs") + 1] == "99"
    assert words[words.index("--training.trackers") + 1] == '["wandb"]'
    assert words.count("--run.output_dir") == 1


def test_a_run_resumes_with_its_total_batch_divided_otherwise(tmp_path):
    """As the message says where memory has run out."""
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    smaller = TrainingConfig(per_device_batch_size=4, gradient_accumulation_steps=4)
    folder.create(replace(CONFIG, training=smaller, run=RunConfig(memory="8GB")))
    other = replace(smaller, gradient_accumulation_steps=2)
    # Two processes share it; one alone would have half.
    folder.create(replace(CONFIG, training=other), num_processes=2)
    total = "The total batch was 16 windows x 1 accumulated x 1 processes = 16, now {} = {}"
    with raises("run-settings-changed") as caught:
        folder.create(replace(CONFIG, training=other))
    assert "other settings (3)" in str(caught.value)
    assert total.format("4 windows x 2 accumulated x 1 processes", 8) in str(caught.value)
    assert "training.gradient_accumulation_steps" in str(caught.value)
    with raises("run-settings-changed") as caught:  # with no setting changed
        folder.create(CONFIG, num_processes=2)
    assert "other settings (1)" in str(caught.value)
    assert total.format("16 windows x 1 accumulated x 2 processes", 32) in str(caught.value)


def test_music_at_another_place_may_resume_where_its_tracks_are_known(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    moved = replace(CONFIG, data=replace(CONFIG.data, source="elsewhere/songs.csv"))
    assert not folder.is_moved("elsewhere/songs.csv")  # nothing to compare with
    with raises("run-settings-changed", "data.source was 'songs.csv', now 'elsewhere") as caught:
        folder.create(moved)
    assert "ln -s" in str(caught.value)
    folder.tracks.write_text("{}")
    assert folder.is_moved("elsewhere/songs.csv")
    assert not folder.is_moved("songs.csv")
    caplog.set_level(logging.INFO)
    folder.create(moved)
    assert logged(caplog, "data.source", "'songs.csv'", "'elsewhere/songs.csv'") == 1
    words = shlex.split(folder.resume_command())
    assert words[words.index("--data.source") + 1] == "elsewhere/songs.csv"
    other = replace(moved, data=replace(moved.data, window_seconds=1.0))
    with raises("run-settings-changed", "(1)"):
        folder.create(other)


@pytest.mark.parametrize("content", [b"", b"[1]", b"data: null", b"data: [1]", b"\xff", b"a: ["])
def test_damaged_settings_are_no_music_at_another_place(tmp_path, content):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    folder.tracks.write_text("{}")
    folder.config.write_bytes(content)
    assert not folder.is_moved("songs.csv")


def test_names_that_are_not_utf8_are_written(tmp_path, monkeypatch):
    name = "m\udcfcsik/\udce9.csv"
    config = replace(CONFIG, data=replace(CONFIG.data, source=name))
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--data.source", name])
    folder = RunFolder(tmp_path / "run")
    folder.create(config)
    assert name in json.loads(folder.environment.read_text())["command"]
    folder.create(config)  # what was written is what is read
    write_json(folder.results, {"title": name})
    assert json.loads(folder.results.read_text()) == {"title": name}


def test_a_run_that_resumes_on_other_threads_reports_it(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG, num_threads=2)
    caplog.set_level(logging.INFO)
    folder.create(CONFIG, num_threads=2)
    assert caplog.text == ""
    folder.create(CONFIG, num_threads=16)
    assert logged(caplog, 2, 16) == 1
    lines = folder.resumes.read_text().splitlines()
    assert [json.loads(line)["num_threads"] for line in lines] == [2, 16]


def test_a_run_that_resumes_in_another_precision_reports_it(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG, precision="bf16")
    folder.create(CONFIG, precision="bf16")
    assert caplog.text == ""
    folder.create(CONFIG, precision="no")
    assert logged(caplog, "bf16", "no") == 1
    assert "--training.mixed_precision bf16" in " ".join(caplog.text.split())
    lines = folder.resumes.read_text().splitlines()
    assert [json.loads(line)["mixed_precision"] for line in lines] == ["bf16", "no"]


def test_the_setting_of_the_precision_may_change_while_the_precision_stays(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG, precision="bf16")
    kept = replace(CONFIG, training=replace(CONFIG.training, mixed_precision="bf16"))
    folder.create(kept, precision="bf16")
    assert "resumes in" not in caplog.text
    other = replace(CONFIG, training=replace(CONFIG.training, mixed_precision="no"))
    with raises("run-settings-changed", "training.mixed_precision", "'auto'", "'no'"):
        folder.create(other, precision="no")
    environment = json.loads(folder.environment.read_text())
    del environment["mixed_precision"]  # nobody knows it
    write_json(folder.environment, environment)
    with raises("run-settings-changed", "training.mixed_precision"):
        folder.create(kept, precision="bf16")


DEEP = 100_000 * b"["


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"[1]", b"{}", b"\xff\xfe\xff", DEEP),
        *(b'{"num_processes": 1, "num_threads": %s}' % value for value in (b"null", b"0")),
        *(
            b'{"num_processes": %s, "num_threads": 1}' % value
            for value in (b"null", b'"1"', b"[1]", b"{}", b"0")
        ),
    ],
)
def test_a_run_does_not_resume_where_its_processes_are_not_known(tmp_path, content):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    if content is None:
        folder.environment.unlink()
    else:
        folder.environment.write_bytes(content)
    with raises("run-environment-unreadable", folder.environment):
        folder.create(CONFIG)


def test_a_run_does_not_resume_with_other_settings(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    written = folder.config.read_bytes()
    other = replace(
        CONFIG,
        data=replace(CONFIG.data, window_seconds=1.0),
        optimizer=OptimizerConfig(learning_rate=0.1),
        run=RunConfig(seed=7),
    )
    with raises("run-settings-changed") as caught:
        folder.create(other)
    message = str(caught.value)
    assert "other settings (3)" in message
    assert "data.window_seconds was None, now 1.0" in message
    assert "optimizer.learning_rate was None, now 0.1" in message
    assert "run.seed was 0, now 7" in message
    assert folder.config.read_bytes() == written


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[1]", b"a: [", b"\xff\xfe\xff", b"data: null", b"data: [1]", b"data: words"),
        *(b"data: {source: 2026-13-45}", b"data: " + DEEP),
        *(b"training: {per_device_batch_size: %s}" % value for value in (b"null", b"'8'", b"[8]")),
    ],
)
def test_damaged_settings_of_a_run_are_named(tmp_path, content):
    folder = RunFolder(tmp_path / "run")
    folder.create(CONFIG)
    folder.config.write_bytes(content)
    with raises("run-config-unreadable", folder.config):
        folder.create(CONFIG)


def test_only_a_run_is_gone_on_with(tmp_path):
    (tmp_path / "config.yaml").write_text("precious: 1")
    with raises("run-folder-no-run", tmp_path):
        choose_folder(str(tmp_path), task="tagging", resume="auto")
    assert (tmp_path / "config.yaml").read_text() == "precious: 1"
    fresh = choose_folder(str(tmp_path / "new"), task="tagging", resume="auto")
    fresh.create(CONFIG)
    assert choose_folder(str(fresh.path), task="tagging", resume="auto").is_a_run
    with raises("run-folder-not-empty", fresh.path):
        choose_folder(str(fresh.path), task="tagging", resume="never")


def test_a_run_is_alone_in_its_folder_as_long_as_it_lives(tmp_path):
    folder = RunFolder(tmp_path / "run")
    program = (
        "import sys, time; from pathlib import Path; "
        "from m2v_finetune.training.run_folder import RunFolder; "
        f"RunFolder(Path({str(folder.path)!r})).lock(); print('locked', flush=True); time.sleep(60)"
    )
    folder.path.mkdir()
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with raises("run-already-active", folder.path, f"process {other.pid} on "):
            folder.lock()
        other.kill()
        other.wait()
    folder.lock()  # of one that was killed nothing is left
    folder.create(CONFIG)


def test_lines_that_were_lost_are_named(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.metrics.write_text("12345")
    folder.cut_metrics(3)
    assert (folder.metrics.read_text(), caplog.text) == ("123", "")
    folder.cut_metrics(7)
    assert logged(caplog, 3, 7) == 1
    folder.metrics.unlink()
    folder.cut_metrics(7)
    assert logged(caplog, 0, 7) == 1


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "accelerate launch --num_processes 1 "),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"},
            "ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node 2 ",
        ),
        (
            {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            "torchrun --nnodes 2 --rdzv_backend c10d --rdzv_endpoint HOST:29500 --nproc_per_node 4 ",
        ),
    ],
)
def test_the_resume_command_starts_as_many_processes(tmp_path, monkeypatch, environment, launcher):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert RunFolder(tmp_path).resume_command().startswith(launcher)


@pytest.mark.parametrize(
    ("module", "words", "program"),
    [
        (None, ["/bin/m2v", "train", "genre", "--a.b", "c"], "/bin/m2v train genre"),
        (None, ["/bin/m2v", "train", "genre"], "/bin/m2v train genre"),
        (None, ["my recipes/genre.py", "--a.b=c", "d"], "'my recipes/genre.py'"),
        (
            "m2v_finetune.__main__",
            ["/x/__main__.py", "train", "key", "--a.b", "c"],
            "-m m2v_finetune train key",
        ),
        ("mine.__main__", ["/x/__main__.py", "--a.b", "c"], "-m mine"),
    ],
)
def test_the_resume_command_names_program_and_task(tmp_path, monkeypatch, module, words, program):
    monkeypatch.setattr(sys, "argv", words)
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    command = RunFolder(tmp_path).resume_command()
    assert f"launch --num_processes 1 {program} --config {tmp_path}/config.yaml" in command


def test_the_resume_command_can_be_pasted(tmp_path):
    words = shlex.split(RunFolder(tmp_path / "my run").resume_command())
    assert words[words.index("--run.output_dir") + 1] == str(tmp_path / "my run")


def test_a_full_disk_is_noticed_before_training(tmp_path):
    require_space(tmp_path / "not" / "yet", 1)
    with raises("disk-space-too-small", "1,000,000,000,000 MB"):
        require_space(tmp_path, 10**18)
