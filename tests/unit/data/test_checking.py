"""The check before training: every file that cannot be used is named, all at once."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.data.checking import check_splits, check_tracks
from m2v_finetune.data.loader import TrackWindows, read_window
from m2v_finetune.data.manifest import Track

RATE_HZ = 16_000


def make_track(path: Path, line: int, split: str = "train") -> Track:
    origin = f"songs.csv:{line}"
    return Track(
        id=path.name, path=path, split=split, columns={}, origin=origin, folder=path.parent
    )


def write_noise(path: Path, seconds: float = 1.0) -> Path:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, int(RATE_HZ * seconds))
    soundfile.write(path, noise, RATE_HZ)
    return path


@pytest.fixture
def tracks(tmp_path: Path) -> list[Track]:
    """Two good files, and one of each kind of bad ones between them."""
    paths = [write_noise(tmp_path / "good.wav")]
    paths.append(tmp_path / "missing.mp3")
    paths.append(tmp_path / "empty.mp3")
    paths[-1].touch()
    paths.append(tmp_path / "text.flac")
    paths[-1].write_text("This is no audio, however long it is. " * 50)
    for suffix in ("wav", "flac", "ogg", "mp3"):
        paths.append(write_noise(tmp_path / f"truncated.{suffix}", 8.0))
        os.truncate(paths[-1], paths[-1].stat().st_size // 2)
    paths.append(tmp_path / "header-only.wav")
    soundfile.write(paths[-1], np.zeros(0), RATE_HZ)
    paths.append(tmp_path / "folder.mp3")
    paths[-1].mkdir()
    paths.append(tmp_path / "pipe.wav")
    os.mkfifo(paths[-1])
    paths.append(tmp_path / "device.wav")
    paths[-1].symlink_to("/dev/zero")
    paths.append(write_noise(tmp_path / "good.flac", 2.0))
    return [make_track(path, line) for line, path in enumerate(paths, start=2)]


def is_good(track: Track) -> bool:
    return track.id.startswith("good")


def test_good_tracks_are_measured_in_their_order(tmp_path):
    paths = [write_noise(tmp_path / f"{n}.wav", 0.1 * n) for n in range(1, 10)]
    tracks = [make_track(path, n) for n, path in enumerate(paths)]
    checked, problems = check_tracks(tracks, on_bad_track="stop", show_progress=False)
    assert [c.track for c in checked] == tracks
    assert [c.audio.num_frames for c in checked] == [int(RATE_HZ * 0.1 * n) for n in range(1, 10)]
    assert problems == []


def test_all_bad_tracks_are_listed_at_once(tracks):
    with raises("data-bad-tracks") as raised:
        check_tracks(tracks, on_bad_track="stop", show_progress=False)
    message = str(raised.value)
    lines = message.splitlines()
    assert lines[0] == (f"Of {len(tracks)} tracks, these cannot be used ({len(tracks) - 2}):")
    listed = lines[1:-1]
    bad = [track for track in tracks if not is_good(track)]
    assert len(listed) == len(bad) == 11
    for line, track in zip(listed, bad, strict=True):
        assert f"{track.origin}: {track.path}:" in line
    for name, word in {
        "missing.mp3": "no such file",
        "empty.mp3": "empty file",
        "text.flac": "no audio",
        "truncated.wav": "truncated",
        "truncated.flac": "truncated",
        "truncated.ogg": "truncated",
        "truncated.mp3": "truncated",
        "header-only.wav": "no samples",
        "folder.mp3": "directory",
        "pipe.wav": "a pipe, a device or a socket",
        "device.wav": "a pipe, a device or a socket",
    }.items():
        assert word in next(line for line in listed if name in line)
    assert "--data.on_bad_track skip" in lines[-1]


def test_bad_tracks_can_be_skipped(tracks, caplog):
    with caplog.at_level(logging.WARNING):
        checked, problems = check_tracks(tracks, on_bad_track="skip", show_progress=False)
    assert [c.track for c in checked] == [track for track in tracks if is_good(track)]
    assert len(problems) == 11
    assert all(problem in caplog.text for problem in problems)


def test_skipping_all_is_refused(tracks):
    bad = [track for track in tracks if not is_good(track)]
    with raises("data-bad-tracks", "11 tracks", "(11)"):
        check_tracks(bad, on_bad_track="skip", show_progress=False)


def in_split(tracks: list[Track], names: str) -> dict[str, list[Track]]:
    full = {"t": "train", "v": "validation", "e": "test"}
    moved = [
        make_track(track.path, line, split=full[name])
        for line, (track, name) in enumerate(zip(tracks, names, strict=True))
    ]
    return {name: [t for t in moved if t.split == name] for name in full.values()}


def test_skipped_tracks_are_counted_by_split(tmp_path):
    names = ["good-1.wav", "gone-1.wav", "good-2.wav", "gone-2.wav", "gone-3.wav", "good-3.wav"]
    for name in names:
        if name.startswith("good"):
            write_noise(tmp_path / name)
    tracks = [make_track(tmp_path / name, line) for line, name in enumerate(names)]
    usable, num_skipped = check_splits(
        in_split(tracks, "ttveee"), on_bad_track="skip", show_progress=False
    )
    assert num_skipped == {"train": 1, "validation": 0, "test": 2}
    assert {name: [c.track.id for c in members] for name, members in usable.items()} == {
        "train": ["good-1.wav"],
        "validation": ["good-2.wav"],
        "test": ["good-3.wav"],
    }
    with raises("data-bad-tracks", "6 tracks", "(3)") as raised:
        check_splits(in_split(tracks, "ttveee"), on_bad_track="stop", show_progress=False)
    assert str(raised.value).count("no such file") == 3


def test_a_split_without_a_usable_track_is_refused(tmp_path):
    tracks = [make_track(write_noise(tmp_path / f"{n}.wav"), n) for n in range(2)]
    tracks.append(make_track(tmp_path / "gone.wav", 2))
    with raises("data-no-usable-track", "'test'"):
        check_splits(in_split(tracks, "tve"), on_bad_track="skip", show_progress=False)


def test_a_hundred_bad_tracks_are_all_named(tmp_path):
    missing = [
        Track(
            id=str(n),
            path=tmp_path / f"{n}.wav",
            split=None,
            columns={},
            origin=f"m.csv:{n}",
            folder=tmp_path,
        )
        for n in range(100)
    ]
    with raises("data-bad-tracks") as raised:
        check_tracks(missing, on_bad_track="stop", show_progress=False)
    assert all(f"m.csv:{n}: " in str(raised.value) for n in range(100))


def test_a_file_of_one_frame_has_one_sample_at_any_rate(tmp_path):
    soundfile.write(tmp_path / "click.wav", np.full(1, 0.5, dtype=np.float32), 44100)
    track = make_track(tmp_path / "click.wav", 1)
    [checked], _ = check_tracks([track], on_bad_track="stop", show_progress=False)
    windows = TrackWindows(
        [checked],
        inputs=lambda checked, window: (read_window(checked, window),),
        grid=FrameGrid(sample_rate=16000, stride_samples=320, receptive_field_samples=400),
        window_samples=400,
        hop_samples=400,
        on_frames=False,
    )
    _, (waveform,) = windows[0]
    assert waveform.shape == (400,)
    assert np.isfinite(waveform.numpy()).all()


@pytest.mark.slow
def test_a_file_that_nothing_ends_is_named_and_the_process_ends(tmp_path):
    """A drive that hangs, as a read that waits: the thread cannot be ended, the process has to."""
    paths = [write_noise(tmp_path / name) for name in ("hangs.wav", "good.wav")]
    manifest = tmp_path / "songs.csv"
    manifest.write_text("path\n" + "".join(f"{path.name}\n" for path in paths))
    program = f"""
import os
from m2v_finetune.audio import decode
from m2v_finetune.data import checking, sources
from m2v_finetune.errors import run_command

def read_head(path, real=decode._require_file):
    if path.name == "hangs.wav":
        os.mkfifo(str(path) + ".pipe")
        open(str(path) + ".pipe").read()
    return real(path)

def check():
    tracks, _ = sources.load_tracks({str(manifest)!r}, label_column=None)
    checking.check_tracks(tracks, on_bad_track="stop", timeout_seconds=0.5, show_progress=False)

decode._require_file = read_head
run_command(check)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2, ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[0].endswith("No audio file could be checked for 0.5 s. These are being read (1):")
    assert str(paths[0]) in lines[1]
    assert "good.wav" not in ended.stderr
