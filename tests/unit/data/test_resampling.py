"""A converted set: written by processes, found by the loader, and told of in the log."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.audio.resample_cache import resampled_folder
from m2v_finetune.data.checking import CheckedTrack, check_tracks
from m2v_finetune.data.loader import Window, read_window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.resampling import LOCK_FILE, resample_tracks, with_resampled
from m2v_finetune.data.saved_tracks import load_checked, resampled_ids, save_checked

RATE_HZ = 16_000
GRID = FrameGrid(sample_rate=RATE_HZ, stride_samples=320, receptive_field_samples=400)
WINDOW = Window(start_sample=8_000, num_samples=16_000, grid=GRID)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "cache"))


def write_noise(path: Path, *, seed: int = 0, seconds: float = 2.0) -> Path:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (int(22_050 * seconds), 2))
    soundfile.write(path, noise, 22_050)
    return path


@pytest.fixture
def tracks(tmp_path) -> list[CheckedTrack]:
    found = []
    for number, name in enumerate(["a.wav", "b.flac", "c.ogg"]):
        path = write_noise(tmp_path / name, seed=number)
        found.append(
            Track(
                id=name,
                path=path,
                split="train",
                columns={},
                origin=f"songs.csv:{number + 2}",
                folder=tmp_path,
            )
        )
    return check_tracks(found, on_bad_track="stop", show_progress=False)[0]


def convert(tracks, **options):
    options = {"sample_rate": RATE_HZ, "num_processes": 1, "show_progress": False} | options
    return resample_tracks(tracks, **options)


@pytest.mark.slow
def test_the_loader_reads_what_was_converted(tracks, monkeypatch):
    assert with_resampled(tracks, sample_rate=RATE_HZ) == tracks
    originals = [read_window(checked, WINDOW) for checked in tracks]
    done = convert(tracks, num_processes=2)
    assert (done.num_written, done.num_kept, done.problems) == (3, 0, [])
    assert done.original_bytes == sum(c.track.path.stat().st_size for c in tracks)
    again = convert(tracks)
    assert (again.num_written, again.num_kept) == (0, 3)
    assert again.resampled_bytes == done.resampled_bytes > 3 * 30_000
    copied = with_resampled(tracks, sample_rate=RATE_HZ)
    assert with_resampled(tracks, sample_rate=24_000) == tracks
    monkeypatch.setattr("m2v_finetune.data.loader.read_excerpt", None)  # not of the originals
    for checked, original in zip(copied, originals, strict=True):
        np.testing.assert_allclose(read_window(checked, WINDOW), original, atol=2e-5)
    short = Window(start_sample=0, num_samples=50_000, grid=GRID)
    assert read_window(copied[0], short).shape == (50_000,)


def test_windows_at_another_rate_are_read_from_the_file(tracks):
    convert(tracks)
    [copied, *_] = with_resampled(tracks, sample_rate=RATE_HZ)
    grid = FrameGrid(sample_rate=24_000, stride_samples=320, receptive_field_samples=400)
    window = Window(start_sample=100, num_samples=2_000, grid=grid)
    assert (read_window(copied, window) == read_window(tracks[0], window)).all()


@pytest.mark.slow
def test_a_file_that_changed_is_read_itself_and_the_log_is_reported(tracks, caplog):
    convert(tracks)
    path = write_noise(tracks[1].track.path, seed=99)
    with caplog.at_level(logging.WARNING):
        found = with_resampled(tracks, sample_rate=RATE_HZ)
    assert [checked.resampled is not None for checked in found] == [True, False, True]
    [record] = caplog.records
    assert f"songs.csv:3: {path}" in record.getMessage()
    assert "songs.csv:2" not in record.getMessage()
    assert convert(tracks).num_written == 1
    assert all(c.resampled is not None for c in with_resampled(tracks, sample_rate=RATE_HZ))


@pytest.mark.slow
def test_a_run_that_resumes_reads_what_it_started_with(tracks, tmp_path):
    convert(tracks[:2])
    initial = with_resampled(tracks, sample_rate=RATE_HZ)
    save_checked(tmp_path / "tracks.json", {"train": initial})
    convert(tracks)
    loaded, _ = load_checked(tmp_path / "tracks.json", {"train": [c.track for c in tracks]})
    assert loaded["train"] == tracks
    only = resampled_ids(tmp_path / "tracks.json")
    assert only == {"a.wav", "b.flac"}
    assert with_resampled(loaded["train"], sample_rate=RATE_HZ, only=only) == initial
    for path in resampled_folder(RATE_HZ).rglob("*.json"):
        path.unlink()
    with raises("run-copies-missing", *(one.track.origin for one in initial[:2])):
        with_resampled(loaded["train"], sample_rate=RATE_HZ, only=only)
    assert with_resampled(loaded["train"], sample_rate=RATE_HZ, only=()) == tracks


def test_what_cannot_be_decoded_is_a_problem_and_the_others_are_written(tracks):
    whole = tracks[1].track.path.read_bytes()
    tracks[1].track.path.write_bytes(whole[: len(whole) // 2])
    done = convert(tracks)
    assert (done.num_written, len(done.problems)) == (2, 1)
    assert done.problems[0].startswith("songs.csv:3: ")


def test_one_conversion_at_a_time(tracks):
    folder = resampled_folder(RATE_HZ)
    folder.mkdir(parents=True)
    program = (
        "import sys, time; from pathlib import Path; from m2v_finetune.files import lock; "
        f"lock(Path({str(folder / LOCK_FILE)!r})); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with raises("resample-locked", f"process {other.pid} on "):
            convert(tracks)
        other.kill()
        other.wait()
    assert convert(tracks).num_written == 3


def test_a_full_disk_and_a_file_in_the_way_are_messages(tracks, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "m2v_finetune.data.resampling.shutil.disk_usage", lambda _: type("Disk", (), {"free": 9})
    )
    with raises("resample-disk-full", "M2V_CACHE"):
        convert(tracks)
    (tmp_path / "file").touch()
    monkeypatch.setenv("M2V_CACHE", str(tmp_path / "file" / "cache"))
    with raises("resample-folder-not-writable", "M2V_CACHE"):
        convert(tracks)
