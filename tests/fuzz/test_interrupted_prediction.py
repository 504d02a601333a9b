"""`m2v predict` stopped anywhere: the same command makes of it what one that was never stopped makes.

Each case runs in a child of this process, which has the models in memory. ``M2V_FUZZ_INPUTS=1000`` tries that
many moments of each format.
"""

import contextlib
import functools
import io
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import soundfile
import torch
from support.matrix import exhaustive

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.prediction import Rendering, predict_files
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.chords import ChordRecognition
from m2v_finetune.tasks.separation import Separation
from m2v_finetune.tasks.tagging import Tagging
from m2v_finetune.tasks.transcription import Transcription

NUM_INPUTS = int(os.environ.get("M2V_FUZZ_INPUTS", "0"))
NUM_FILES = 4
BAD_FILE = 2
TASKS = {
    "tagging": Tagging(labels=("drums", "piano, loud", "é"), label_column="tags"),
    "beats": BeatTracking(label_column="beats"),
    "chords": ChordRecognition(label_column="chords"),
    "transcription": Transcription(label_column="notes", sustain=True, onset_threshold=0.02),
    "separation": Separation(
        stems=("drums", "other"), label_column="stems", sample_rate=8000, num_channels=1
    ),
}
FORMATS = {
    "csv": ("tagging", Rendering(format="csv")),
    "csv with the time line": ("tagging", Rendering(format="csv", timeline=True)),
    "json": ("tagging", Rendering(format="json", timeline=True)),
    "text": ("tagging", Rendering(format="text", top=2)),
    "json of beats": ("beats", Rendering(format="json")),
    "beats": ("beats", Rendering(format="beats")),
    "lab": ("chords", Rendering(format="lab")),
    "midi": ("transcription", Rendering(format="midi")),
    "wav": ("separation", Rendering(format="wav")),
}
# One file of results, and one for each track.
SOME = ("csv", "beats")
SOME_FORMATS = [*SOME, *exhaustive(*(name for name in FORMATS if name not in SOME))]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("m2v_finetune.data.reading.RETRY_PAUSES_SECONDS", ())


@pytest.fixture(scope="module")
def models():
    made = {}
    for name, task in TASKS.items():
        torch.manual_seed(0)
        made[name] = TaskModel.build(
            task=task,
            backbone=BackboneConfig(source="random-small"),
            head=HeadConfig(kind="linear" if name == "separation" else "mlp", hidden_size=8),
            tuning=TuningConfig(),
            window_seconds=0.3,
        ).eval()
    return made


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Files of which one is damaged, at a place that is seen when it is read; one has a strange name."""
    folder = tmp_path_factory.mktemp("songs")
    paths = [folder / f"song-{number}.wav" for number in range(NUM_FILES - 1)]
    paths.append(folder / os.fsdecode(b"caf\xe9.wav"))
    for number, path in enumerate(paths):
        rate = 16_000 if number != BAD_FILE else 48_000
        samples = 0.3 * np.random.default_rng(number).standard_normal((4 + number) * rate // 10)
        if number == BAD_FILE:
            samples = np.concatenate([samples, np.zeros(70_000)])
            samples[100] = np.nan
        soundfile.write(os.fsencode(path), samples, rate, format="WAV", subtype="FLOAT")
    return paths


def predict(model, songs, rendering, output):
    nowhere = io.TextIOWrapper(io.BytesIO(), errors="backslashreplace")  # as the command has it
    with contextlib.redirect_stdout(nowhere):
        return predict_files(model, songs, rendering=rendering, output=output, on_bad_file="skip")


def contents(output):
    """Return all that is at an output: of stems the samples, as a WAV file has the time in it."""
    if output.is_file():
        return output.read_bytes()
    return {
        path.relative_to(output): soundfile.read(os.fsencode(path))[0].tolist()
        if path.suffix == ".wav"
        else path.read_bytes()
        for path in output.rglob("*")
        if path.is_file()
    }


def results(output):
    """Return what is at an output, but for the record."""
    found = contents(output)
    if isinstance(found, bytes):
        return found
    return {path: one for path, one in found.items() if path.suffix != ".unfinished"}


def left_over(output):
    """Return what is beside an output, and hidden in it."""
    hidden = output.rglob(".*") if output.is_dir() else []
    records = output.rglob("*.unfinished") if output.is_dir() else []
    return [*output.parent.glob(f"{output.name}.*"), *hidden, *records]


def run_in_child(work):
    """Fork; return the number of the child, which does a piece of work and ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return pid


@pytest.fixture(scope="module")
def whole(models, songs, tmp_path_factory):
    """Function of a format: what a command that was never stopped made, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def made(name):
        task, rendering = FORMATS[name]
        output = folder / name
        predict(models[task], songs[:1], rendering, folder / f"{name}, first")  # which takes longer
        start_time = time.monotonic()
        done = predict(models[task], songs, rendering, output)
        assert done.num_computed == NUM_FILES - 1
        assert not left_over(output)
        content = contents(output)
        assert name != "midi" or len(content) == NUM_FILES - 1
        return content, time.monotonic() - start_time

    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", ["csv", *exhaustive("wav", "json", "beats")])
def test_killed_at_any_moment(name, models, songs, whole, tmp_path, record_property):
    task, rendering = FORMATS[name]
    expected, seconds = whole(name)
    outcomes = {"resumed": 0, "whole already": 0}
    for seed in range(NUM_INPUTS or 6):
        output = tmp_path / f"out-{seed}"
        pid = run_in_child(lambda o=output: predict(models[task], songs, rendering, o))
        time.sleep(0.8 * seconds * random.Random(f"{name}-{seed}").random())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        check_part(output, rendering, expected)
        is_started = output.is_file() or (output.is_dir() and any(output.iterdir()))
        is_finished = is_started and not any(
            path.suffix == ".unfinished" for path in left_over(output)
        )
        if is_finished:
            outcomes["whole already"] += 1
        else:
            predict(models[task], songs, rendering, output)
            outcomes["resumed"] += 1
        assert contents(output) == expected, seed
        assert not left_over(output)
    record_property(f"fuzzed predictions, killed: {name}", f"{sum(outcomes.values())}, {outcomes}")


def check_part(output, rendering, expected):
    """Assert that what a command left is part of the whole; every file that has its name is whole."""
    if not output.exists():
        return
    found = contents(output)
    if isinstance(expected, bytes):
        assert expected.startswith(found)
        return
    for path, content in found.items():
        if not any(part.startswith(".") or part.endswith(".unfinished") for part in path.parts):
            assert content == expected[path]


@pytest.mark.parametrize("name", SOME_FORMATS)
def test_killed_at_each_write(name, models, songs, whole, tmp_path, record_property):
    """The process ends in the middle of the n-th write, before the n-th renaming, before it deletes."""
    task, rendering = FORMATS[name]
    expected, _ = whole(name)
    num_deaths = 0
    for number in range(100):
        output = tmp_path / f"out-{number}"

        def work(output=output, number=number):
            _die_at(number)
            predict(models[task], songs, rendering, output)

        _, status = os.waitpid(run_in_child(work), 0)
        check_part(output, rendering, expected)
        if os.waitstatus_to_exitcode(status) == 0:  # there were not so many writes
            assert contents(output) == expected
            break
        num_deaths += 1
        predict(models[task], songs, rendering, output)
        assert contents(output) == expected, number
        assert not left_over(output)
    assert num_deaths >= 2 * (NUM_FILES - 1)
    record_property(f"fuzzed predictions, killed at a write: {name}", f"{num_deaths}, all resumed")


def _die_at(number):
    """Let this process end at the n-th call that changes the disk."""
    left = [number]
    write, rename, unlink = os.write, os.replace, os.unlink

    def is_last():
        left[0] -= 1
        return left[0] < 0

    def half_written(file, content):
        if is_last():
            write(file, bytes(content)[: len(content) // 2])
            os._exit(9)
        return write(file, content)

    def never_named(*arguments, **options):
        if is_last():
            os._exit(9)
        return rename(*arguments, **options)

    def never_deleted(*arguments, **options):
        if is_last():
            os._exit(9)
        return unlink(*arguments, **options)

    os.write, os.replace, os.unlink = half_written, never_named, never_deleted


@pytest.mark.parametrize("name", FORMATS)
def test_cut_anywhere(name, models, songs, whole, tmp_path, record_property):
    """A power cut may lose the end of any file: the output is completed or refused, and never another."""
    task, rendering = FORMATS[name]
    expected, _ = whole(name)
    initial = tmp_path / "begun"
    _, status = os.waitpid(
        run_in_child(lambda: _stop_at_last(models[task], songs, rendering, initial)), 0
    )
    assert os.waitstatus_to_exitcode(status) == 1
    outcomes = {"resumed": 0, "refused": 0}
    for seed in range(NUM_INPUTS or 8):
        rng = random.Random(f"{name}-{seed}")
        output = tmp_path / f"out-{seed}"
        record = output.with_name(f"{output.name}.unfinished")
        if initial.is_dir():
            shutil.copytree(initial, output)
            record = output / "predictions.unfinished"
        else:
            shutil.copy(initial, output)
            shutil.copy(initial.with_name("begun.unfinished"), record)
            if seed > 0 and rng.random() < 0.7:
                os.truncate(output, rng.randrange(output.stat().st_size + 1))
        if seed > 0 and rng.random() < 0.7:  # the first is whole
            os.truncate(record, rng.randrange(record.stat().st_size + 1))
        before = results(output)
        try:
            predict(models[task], songs, rendering, output)
            outcomes["resumed"] += 1
            assert contents(output) == expected, seed
        except UserError:
            outcomes["refused"] += 1
            assert results(output) == before, seed
    assert outcomes["resumed"] > 0
    record_property(f"fuzzed predictions, cut: {name}", f"{sum(outcomes.values())}, {outcomes}")


def _stop_at_last(model, songs, rendering, output):
    """Predict all files but the last, and end as if by Ctrl-C."""
    task = type(model.task)
    compute = task.predict

    def stopped(self, checked, windows):
        if checked.track.path == songs[-1]:
            raise KeyboardInterrupt
        return compute(self, checked, windows)

    task.predict = stopped
    predict(model, songs, rendering, output)
