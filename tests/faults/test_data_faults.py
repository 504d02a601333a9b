"""Data that turns bad in the middle of training: real files, real workers, real signals."""

import gc
import json
import os
import re
import shutil
import signal
import threading
import time
import traceback
from contextlib import contextmanager
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from support import messages, runs
from support.matrix import exhaustive
from support.messages import raises, resumed_after, stops_after
from support.runs import read_metrics as lines

from m2v_finetune.audio.decode import read_excerpt
from m2v_finetune.config import (
    BackboneConfig,
    HeadConfig,
    OptimizerConfig,
    TrainingConfig,
    TuningConfig,
)
from m2v_finetune.data import reading, workers
from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.saved_tracks import load_checked, save_checked
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.checkpoint_files import find_checkpoint
from m2v_finetune.training.faults import BadTrackPolicy


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(reading, "RETRY_PAUSES_SECONDS", (0.0, 0.0))


@pytest.fixture
def music(small_manifest, tmp_path):
    """The small manifest with files of its own, to be damaged: 16 to train on, 8 to validate."""
    lines = []
    for number, line in enumerate(small_manifest.read_text().splitlines()):
        row = json.loads(line)
        location = tmp_path / "music" / f"{row['split']}-{number}{Path(row['path']).suffix}"
        location.parent.mkdir(exist_ok=True)
        shutil.copyfile(row["path"], location)
        lines.append(json.dumps(row | {"path": location.name}))
    manifest = tmp_path / "music" / "manifest.jsonl"
    manifest.write_text("\n".join(lines))
    return runs.load_splits(manifest)


def build_trainer(
    split,
    folder,
    *,
    on_bad_track="stop",
    share=0.2,
    workers=0,
    seconds=60,
    accumulation=2,
    standardize=False,
    **training,
):
    runs.reset_accelerate()
    set_seed(0)
    kept = folder.parent / f"{folder.name}-tracks.json"
    if kept.is_file():
        splits, skipped = load_checked(kept, split)
    else:
        splits, skipped = check_splits(split, on_bad_track="stop", show_progress=False)
        save_checked(kept, splits)
    task = Tagging.from_tracks(TaggingConfig(), split)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(standardize=standardize),
        tuning=TuningConfig(method="lora"),
        window_seconds=1.0,
    )
    return runs.build_trainer(
        model,
        splits,
        folder,
        accelerator=Accelerator(gradient_accumulation_steps=accumulation),
        training=TrainingConfig(
            epochs=2,
            per_device_batch_size=2,
            gradient_accumulation_steps=accumulation,
            log_every_steps=1,
            **training,
        ),
        optimization=OptimizerConfig(learning_rate=1e-2, backbone_learning_rate=1e-3),
        num_workers=workers,
        bad_tracks=BadTrackPolicy(
            on_bad_track=on_bad_track,
            max_bad_fraction=share,
            timeout_seconds=seconds,
            num_tracks={name: len(members) for name, members in splits.items()},
            num_skipped=skipped,
        ),
    )


def same_weights(one, other):
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def at_batch(loop, number, do):
    """Do something before a batch is asked for, from 1."""
    read = loop.steps.reader.read

    def counted():
        counted.calls += 1
        if counted.calls > 1:  # the first reading is of the first epoch; others are as they are
            yield from read()
            return
        for count, parts in enumerate(read(), start=1):
            if count == number:
                do()
            yield parts

    counted.calls = 0
    loop.steps.reader.read = counted


@pytest.mark.slow
@pytest.mark.parametrize("bad_split", ["train", *exhaustive("validation")])
def test_a_file_that_turns_unreadable_stops_the_run_and_nothing_is_lost(music, tmp_path, bad_split):
    straight = build_trainer(music, tmp_path / "straight")
    fitted = straight.fit()

    stopped = build_trainer(music, tmp_path / "stopped")
    # The last one that the first epoch reads: in the second batch of its step.
    order = [index for batch in stopped.batches for _, index in batch]
    track = music["train"][order[-1]] if bad_split == "train" else music["validation"][5]
    whole = track.path.read_bytes()
    at_batch(stopped, 3, lambda: track.path.write_bytes(whole[:3000]))
    with pytest.raises(UserError) as error:
        stopped.fit()
    step = 3 if bad_split == "train" else 4
    message = str(error.value)
    assert f"{track.origin}: {track.path}: " in message
    assert resumed_after(message) == (step, 8)
    assert "--run.resume auto" in message

    track.path.write_bytes(whole)  # repaired
    resumed = build_trainer(music, tmp_path / "stopped")
    assert resumed.fit() == fitted
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    assert same_weights(resumed, straight)


@pytest.mark.slow
def test_a_file_that_turns_into_a_pipe_stops_a_run_without_workers(music, tmp_path):
    """Which would wait for the pipe's writer without end."""
    loop = build_trainer(music, tmp_path / "run", workers=0)
    track = music["train"][[index for batch in loop.batches for _, index in batch][-1]]

    def replace():
        track.path.unlink()
        os.mkfifo(track.path)

    def ring(number, frame):
        raise AssertionError("it waits")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(300)
    at_batch(loop, 3, replace)
    with raises("tracks-no-longer-readable") as error:
        loop.fit()
    assert f"{track.origin}: {track.path}: " in str(error.value)
    assert resumed_after(str(error.value)) == (3, 8)
    signal.alarm(0)


@pytest.mark.exhaustive
def test_a_file_that_turns_unreadable_before_the_first_step_stops_the_run(music, tmp_path):
    """While it is measured what the head reads: what was measured without it is not kept."""
    straight = build_trainer(music, tmp_path / "straight", standardize=True)
    straight.fit()

    stopped = build_trainer(music, tmp_path / "stopped", standardize=True)
    track = music["train"][[index for batch in stopped.batches for _, index in batch][-1]]
    whole = track.path.read_bytes()
    at_batch(stopped, 3, lambda: track.path.write_bytes(whole[:3000]))
    with raises(
        "tracks-no-longer-readable", f"{track.origin}: {track.path}: ", "--run.resume auto"
    ):
        stopped.fit()
    assert find_checkpoint(stopped.run.folder.checkpoints) is None

    track.path.write_bytes(whole)
    again = build_trainer(music, tmp_path / "stopped", standardize=True)
    again.fit()
    assert same_weights(again, straight)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")


@pytest.mark.exhaustive
def test_under_skip_other_windows_take_the_places_and_a_resumed_run_is_the_same(
    music, tmp_path, caplog
):
    runs = []
    whole = {}
    for num_workers in (0, 2):
        loop = build_trainer(
            music, tmp_path / str(num_workers), on_bad_track="skip", workers=num_workers
        )
        for track in (music["train"][3], music["train"][7], music["validation"][2]):
            whole.setdefault(track.path, track.path.read_bytes())
            track.path.write_bytes(b"RIFF")
        loop.fit()
        assert {split: len(found) for split, found in loop.run.bad_tracks.found.items()} == {
            "train": 2,
            "validation": 1,
        }
        runs.append(loop)
        if num_workers == 0:
            for path, content in whole.items():
                path.write_bytes(content)
    assert lines(tmp_path / "0") == lines(tmp_path / "2")
    assert same_weights(*runs)
    assert loop.run.bad_tracks.num_lost("train") == 2
    assert (
        f"Skipped from now on: {music['train'][3].origin}: {music['train'][3].path}" in caplog.text
    )

    # Stopped and gone on with, while the files are still bad: the windows are the same.
    for path, content in whole.items():
        path.write_bytes(content)
    stopped = build_trainer(music, tmp_path / "stopped", on_bad_track="skip")
    for path in whole:
        path.write_bytes(b"RIFF")
    take = stopped.steps.take

    def take_and_ask(batches, *, number, **others):
        stopped.stop.arrived = number == 5
        return take(batches, number=number, **others)

    stopped.steps.take = take_and_ask
    with stops_after(5, 8):
        stopped.fit()
    resumed = build_trainer(music, tmp_path / "stopped", on_bad_track="skip")
    resumed.fit()
    assert lines(tmp_path / "stopped") == lines(tmp_path / "0")
    assert resumed.run.bad_tracks.found == runs[0].run.bad_tracks.found
    assert same_weights(resumed, runs[0])


def test_a_drive_that_is_gone_stops_a_run_that_may_skip(music, tmp_path):
    loop = build_trainer(music, tmp_path / "run", on_bad_track="skip", share=0.2)
    at_batch(loop, 3, lambda: [track.path.unlink() for track in music["train"]])
    with raises("data-unreadable", "Stopped after step 1"):
        loop.fit()
    assert find_checkpoint(loop.run.folder.checkpoints) == loop.checkpoint is not None


def test_more_than_the_allowed_share_stops_a_run(music, tmp_path):
    loop = build_trainer(music, tmp_path / "run", on_bad_track="skip", share=0.2)
    at_batch(loop, 1, lambda: [music["train"][i].path.write_bytes(b"x") for i in range(6)])
    with raises("tracks-too-many-unreadable", "of 16", "0.2", "data.max_bad_fraction"):
        loop.fit()


def test_a_network_drive_that_fails_for_a_moment_is_tried_again(music, tmp_path):
    loop = build_trainer(music, tmp_path / "run")
    windows = loop.loader.dataset.windows
    calls = []

    def flaky(checked, window, augment):
        calls.append(checked.track.id)
        if calls.count(checked.track.id) < 3:
            raise OSError(5, "Input/output error")
        return loop.model.task.example(checked, window, augment)

    object.__setattr__(windows, "example", flaky)
    _, _, info = loop.loader.dataset[0, 0]
    assert info.bad_tracks == {}
    assert len(calls) == 3


def release_workers(loop, raised):
    """Release dead workers, which torch would report to later tests of this process."""
    while raised is not None:
        traceback.clear_frames(raised.__traceback__)
        raised = raised.__cause__ or raised.__context__
    loop.loader._iterator = None
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where"),
    [
        ("dies", "training"),
        *exhaustive(("hangs", "evaluation"), ("hangs", "training"), ("dies", "evaluation")),
    ],
)
def test_a_worker_that_fails_is_named_with_its_track(music, tmp_path, how, where, monkeypatch):
    def fail():
        os.kill(os.getpid(), signal.SIGKILL) if how == "dies" else time.sleep(1000)

    loop = build_trainer(music, tmp_path / "run", workers=2, seconds=5)
    order = [index for batch in loop.batches for _, index in batch]
    track = music["train"][order[9]] if where == "training" else music["validation"][5]
    task = loop.model.task
    example, inputs = task.example, task.inputs

    def fatal_example(checked, window, augment):
        if checked.track.id == track.id:
            fail()
        return example(checked, window, augment)

    def fatal_inputs(checked, window):
        if checked.track.id == track.id:
            fail()
        return inputs(checked, window)

    object.__setattr__(loop.loader.dataset.windows, "example", fatal_example)
    monkeypatch.setattr(type(task), "inputs", staticmethod(fatal_inputs))
    start_time = time.monotonic()
    with pytest.raises(UserError) as error:
        loop.fit()
    assert time.monotonic() - start_time < 60
    message = str(error.value)
    assert messages.names(message, track.origin, track.path)
    assert ("died" if how == "dies" else "no audio for 5 s") in message
    # A death is noticed at once, before what was read ahead is used.
    step = r"\d" if how == "dies" else "2" if where == "training" else "4"
    assert re.search(rf"Stopped after step {step} of 8, which is saved", message)
    assert find_checkpoint(loop.run.folder.checkpoints) == loop.checkpoint is not None
    release_workers(loop, error.value)


def make_not_finite(loop, track, what):
    """Let the head say infinity of the batch that holds a window of this track."""

    calls = []

    def damage(head, inputs, logits):
        if not head.training:
            return logits
        calls.append(1)
        is_its_batch = (
            track.id
            in loop.steps.reader.track_ids[(len(calls) - 1) % len(loop.steps.reader.track_ids)]
        )
        if is_its_batch and loop.progress.epoch == 0:
            return logits * torch.inf if what == "loss" else BadGradient.apply(logits)
        return logits

    loop.model.head.register_forward_hook(damage)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * torch.nan


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_a_step_that_is_not_finite_is_named_with_batch_and_tracks(music, tmp_path, caplog, what):
    loop = build_trainer(music, tmp_path / "run", on_nonfinite="skip")
    order = [index for batch in loop.batches for _, index in batch]
    names = [music["train"][index].id for index in order]
    make_not_finite(loop, music["train"][order[6]], what)  # the second batch of the second step
    loop.fit()
    assert loop.progress.num_skipped_steps == 1
    text = " ".join(caplog.text.split())
    batch = f"{names[6]}, {names[7]}"
    if what == "loss":
        assert batch in text
        assert names[4] not in text
    else:
        assert re.search(rf"{names[4]}, {names[5]}\b.*{batch}", text)

    stopped = build_trainer(music, tmp_path / "stopped", on_nonfinite="stop")
    make_not_finite(stopped, music["train"][order[6]], what)
    with raises("training-not-finite", what, "step 2", batch):
        stopped.fit()
    resumed = build_trainer(music, tmp_path / "stopped", on_nonfinite="stop")
    resumed.fit()
    straight = build_trainer(music, tmp_path / "straight")
    straight.fit()
    assert same_weights(resumed, straight)  # the step was taken again, with nothing lost


def test_a_file_that_became_shorter_is_a_bad_track(music):
    track = music["train"][0]
    with raises("audio-excerpt-outside"):
        read_excerpt(track.path, sample_rate=16_000, start_sample=16_000 * 500, num_samples=16_000)


def test_a_run_that_resumes_needs_the_tracks_that_it_started_with(music, tmp_path):
    splits, _ = check_splits(music, on_bad_track="stop", show_progress=False)
    save_checked(tmp_path / "tracks.json", splits)
    again, skipped = load_checked(tmp_path / "tracks.json", music)
    assert again == splits
    assert set(skipped.values()) == {0}
    gone = music | {"train": music["train"][1:]}
    with raises("run-tracks-missing", "(1):", "train: "):
        load_checked(tmp_path / "tracks.json", gone)
    whole = json.loads((tmp_path / "tracks.json").read_text())
    [name, *_] = whole["train"]
    audio = whole["train"][name]["audio"] | {"num_frames": "many"}
    wrong = whole["train"] | {name: whole["train"][name] | {"audio": audio}}
    for content in ([], {}, whole | {"test": {}}, whole | {"train": wrong}):
        (tmp_path / "tracks.json").write_text(json.dumps(content))
        with raises("run-tracks-unreadable"):
            load_checked(tmp_path / "tracks.json", music)
    (tmp_path / "tracks.json").unlink()
    with raises("run-tracks-unreadable", "No such file"):
        load_checked(tmp_path / "tracks.json", music)


@pytest.mark.exhaustive
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_named(music, tmp_path, monkeypatch):
    """The connection breaks before the signal arrives: the same error as of any dead worker."""
    loop = build_trainer(music, tmp_path / "run", workers=1, seconds=5)
    example = loop.model.task.example

    def example_and_death(checked, window, augment):
        # First it no longer serves the memory of its batches, then it dies.
        threading.Timer(2, resource_sharer.stop).start()
        threading.Timer(4, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
        return example(checked, window, augment)

    object.__setattr__(loop.loader.dataset.windows, "example", example_and_death)

    @contextmanager
    def late(self):
        time.sleep(3)  # a batch is in the queue, and can no longer be fetched
        yield

    monkeypatch.setattr(workers._SigchldGuard, "enabled", late)
    with raises("worker-died", "DataLoader worker (pid ") as error:
        loop.fit()
    release_workers(loop, error.value)


def test_a_broken_connection_without_a_dead_worker_stays_a_fault_of_the_program(
    music, tmp_path, monkeypatch
):
    """Nothing that the program itself breaks is called a worker that died."""
    loop = build_trainer(music, tmp_path / "run", workers=1, seconds=5)
    monkeypatch.setattr(workers, "HANDOVER_SECONDS", 0.2)

    def broken(checked, window, augment):
        raise EOFError("a bug")

    object.__setattr__(loop.loader.dataset.windows, "example", broken)
    with pytest.raises(EOFError, match="a bug"):
        loop.fit()
