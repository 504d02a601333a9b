"""The tracks of a run, compared with those at another place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.saved_tracks import (
    load_checked,
    require_same_files,
    resampled_ids,
    save_checked,
)
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks


def write(path: Path, num_samples: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(num_samples).uniform(-0.5, 0.5, num_samples)
    soundfile.write(path, noise, 16_000)


def checked(folder: Path):
    tracks, _ = load_tracks(str(folder), label_column="genre")
    splits = split_tracks(
        tracks, group_columns=["artist"], validation_fraction=0.2, test_fraction=0.2, seed=0
    )
    return check_splits(splits, on_bad_track="skip", show_progress=False)[0]


@pytest.fixture
def music(tmp_path):
    for n in range(10):
        write(tmp_path / "music" / ("jazz", "pop")[n % 2] / f"{n}.wav", 2000 + n)
    return tmp_path / "music"


@pytest.fixture
def kept(music, tmp_path):
    path = tmp_path / "tracks.json"
    save_checked(path, checked(music))
    return path


def moved(music: Path) -> Path:
    return music.rename(music.with_name("renamed"))


def copied(music: Path) -> Path:
    return Path(shutil.copytree(music, music.with_name("copy"), copy_function=shutil.copyfile))


def linked(music: Path) -> Path:
    link = music.with_name("link")
    link.symlink_to(music)
    return link


@pytest.mark.parametrize("move", [moved, copied, linked])
def test_the_same_files_at_another_place(music, kept, move):
    now = checked(move(music))
    require_same_files(kept, now)
    splits = {name: [one.track for one in members] for name, members in now.items()}
    loaded, skipped = load_checked(kept, splits)
    assert loaded == now
    assert not any(skipped.values())
    assert resampled_ids(kept) == set()


def longer(folder: Path) -> None:
    write(folder / "jazz" / "0.wav", 3000)


def other_format(folder: Path) -> None:
    samples, rate = soundfile.read(folder / "jazz" / "0.wav")
    soundfile.write(folder / "jazz" / "0.wav", samples, rate, subtype="PCM_24")


def gone(folder: Path) -> None:
    (folder / "jazz" / "0.wav").unlink()


def unreadable(folder: Path) -> None:
    (folder / "jazz" / "0.wav").write_bytes(b"no audio")


def another_name(folder: Path) -> None:
    (folder / "jazz" / "0.wav").rename(folder / "jazz" / "zero.wav")


def another_label(folder: Path) -> None:
    (folder / "jazz" / "0.wav").rename(folder / "pop" / "0.wav")


@pytest.mark.parametrize(
    "change", [longer, other_format, gone, unreadable, another_name, another_label]
)
def test_other_files_at_another_place_are_named(music, kept, change):
    folder = moved(music)
    change(folder)
    with raises("run-data-changed", "jazz/0.wav", "--data.source"):
        require_same_files(kept, checked(folder))


def test_what_was_kept_states_sizes(music, kept):
    content = json.loads(kept.read_text())
    for members in content.values():
        for name, info in members.items():
            assert info["num_bytes"] == (music / name).stat().st_size
            assert info["audio"]["num_frames"] == 2000 + int(Path(name).stem)
