"""Real processes of a recipe that are killed, or whose disk fails: nothing is lost."""

import json
import shutil

import pytest
from kills import Run, differences, kill, write_manifest

from m2v_finetune.training.checkpoint_files import STATE_FILE, checkpoints_in, step_of

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    manifest = write_manifest(tmp_path_factory.mktemp("data"))
    # Shorter than `make test-faults`.
    return {
        "data.source": manifest,
        "tuning.method": "lora",
        "training.epochs": 2,
        "data.windows_per_track": 1,
    }


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    run = Run(folder=tmp_path_factory.mktemp("straight") / "run", settings=settings)
    assert kill(run, num_kills=0, seed=0) == []
    return run


def test_a_run_that_is_killed_twice_is_the_run_that_was_not(
    straight, settings, tmp_path, record_property
):
    killed = Run(folder=tmp_path / "run", settings=settings)
    steps = kill(killed, num_kills=2, seed=0, num_steps=16)
    found = differences(killed, straight)
    record_property("killed runs", f"kills: {len(steps)}, differences: {len(found)}")
    assert len(steps) == 2
    assert found == []


def test_a_damaged_checkpoint_and_a_full_disk_lose_nothing(straight, settings, tmp_path):
    """One after the other, on the run that was never killed: its last epoch is done again."""
    run = Run(folder=tmp_path / "run", settings=settings)
    shutil.copytree(straight.folder, run.folder)
    folder = run.folder / "checkpoints"
    before, last = checkpoints_in(folder)
    state = bytearray((last / STATE_FILE).read_bytes())
    state[len(state) // 2] ^= 1
    (last / STATE_FILE).write_bytes(state)

    # A file system that takes no file of more than 100 kB: the log fits, a checkpoint does not. Workers
    # would pass on audio in such files.
    limited = Run(folder=run.folder, settings={**settings, "data.num_workers": 0})
    assert limited.finish(limit_bytes=100_000) == 2, run.log.read_text()
    log = "".join(run.log.read_text().split())  # lines are broken anywhere
    for expected in (
        f"A checkpoint is damaged and not used: {last}: {STATE_FILE} does not have the SHA-256 of",
        "error: The checkpoint after step",
        f"bytes and cannot be written to {run.folder}: File too large. Its disk has",
        f"The checkpoint after step {step_of(before)} is complete. Free space. Then resume with:",
        f"--run.output_dir {run.folder} --run.resume auto --data.num_workers 0",
    ):
        assert "".join(expected.split()) in log, expected
    assert "Traceback" not in log
    assert checkpoints_in(folder) == [before]
    assert {path.name for path in folder.iterdir()} == {before.name, f"damaged-{last.name}"}

    assert run.finish() == 0
    assert differences(run, straight) == []


def test_a_disk_that_is_full_after_training_loses_nothing(straight, settings, tmp_path):
    run = Run(folder=tmp_path / "run", settings={**settings, "data.num_workers": 0})
    shutil.copytree(straight.folder, run.folder)
    shutil.rmtree(run.folder / "model")
    (run.folder / "results.json").unlink()
    checkpoints = checkpoints_in(run.folder / "checkpoints")

    assert run.finish(limit_bytes=100_000) == 2, run.log.read_text()
    log = "".join(run.log.read_text().split())
    for expected in (
        f"error: Training is done, and saved, but its results cannot be written to {run.folder}: File too",
        "large. Results, pictures and model take up to",
        "bytes. Free space. Then resume with:",
        f"--run.output_dir {run.folder} --run.resume auto --data.num_workers 0",
    ):
        assert "".join(expected.split()) in log, expected
    assert "Traceback" not in log
    assert checkpoints_in(run.folder / "checkpoints") == checkpoints
    assert not [path.name for path in run.folder.rglob("*.part")]

    assert run.finish() == 0
    assert differences(run, straight) == []
    assert (run.folder / "model").is_dir()
    earlier, later = (
        json.loads((folder / "results.json").read_text())["seconds"]["training"]
        for folder in (straight.folder, run.folder)
    )
    assert later > earlier > 1  # what the processes before it took counts too
