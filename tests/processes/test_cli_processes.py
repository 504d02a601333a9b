"""The command `m2v` as a process: signals, readers that go away, locales."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.forked import Forked
from support.matrix import exhaustive

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.model import TaskModel
from m2v_finetune.prediction import Rendering, predict_files
from m2v_finetune.tasks.tagging import Tagging

SONG = QUICKSTART_DIR / "audio" / "test-000.ogg"
M2V = [sys.executable, "-c", "from m2v_finetune.cli import main; main()"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Tagging(labels=("drums", "piano"), label_column="tags"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(),
        window_seconds=2.0,
    )
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save_pretrained(folder)
    return folder


def m2v(*words, stdout=subprocess.PIPE, **variables):
    return subprocess.Popen(
        [*M2V, *map(os.fsencode, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | variables,
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_signal_keeps_what_is_done_and_the_same_command_resumes(saved, tmp_path, number, code):
    output = tmp_path / "out.csv"
    songs = [SONG] * 100
    running = Forked(["m2v", "predict", saved, *songs, "--output", output])
    while not output.exists() or output.stat().st_size < 200:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=300)
    assert running.returncode == code
    assert "Traceback" not in stderr
    if number != signal.SIGKILL:
        assert "out.csv" in stderr
    lines = output.read_bytes().splitlines(keepends=True)
    assert 2 < len(lines) < 101
    assert all(line.endswith(b"\n") for line in lines)
    assert len(set(lines[1:])) == 1
    done = predict_files(
        TaskModel.from_pretrained(saved),
        songs[: len(lines)],
        rendering=Rendering(format="csv"),
        output=output,
        on_bad_file="stop",
    )
    assert done.num_resumed >= len(lines) - 2
    assert output.read_bytes().splitlines(keepends=True)[: len(lines)] == lines


@pytest.mark.exhaustive
def test_a_reader_that_wants_one_line(saved):
    reader, writer = os.pipe()
    running = m2v("predict", saved, *[SONG] * 20, "--top", "1", stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.readline() == f"{SONG}\n"
    _, stderr = running.communicate(timeout=300)
    assert (running.returncode, stderr) == (141, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "variables"),
    [
        ("csv", {"LC_ALL": "C"}),
        *exhaustive(("json", {"PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"})),
    ],
)
def test_names_of_any_bytes_in_a_locale_of_ascii(saved, tmp_path, kind, variables):
    odd = tmp_path / os.fsdecode(b"caf\xe9 \xe2\x99\xab.ogg")
    shutil.copy(SONG, odd)
    running = m2v("predict", saved, odd, "--format", kind, **variables)
    stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    if kind == "json":
        assert Path(json.loads(stdout.decode())["path"]) == odd
    else:
        shown = f"{tmp_path}/caf\\udce9 \u266b.ogg,"
        assert stdout.decode().splitlines()[1].startswith(shown)
