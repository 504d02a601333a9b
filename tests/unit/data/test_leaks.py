"""One file in two splits: named, and where such tracks are skipped, what is measured stays whole."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.leaks import leaking_tracks
from m2v_finetune.data.manifest import Track, tracks_from_rows

SPLITS = ("train", "validation", "test")


def write(path: Path, seed: int) -> Path:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, 2000)
    soundfile.write(path, samples, 16_000)
    return path


def tracks_of(folder: Path, names: dict[str, list[str]]) -> dict[str, list[Track]]:
    rows = [{"path": name, "split": split} for split, members in names.items() for name in members]
    tracks = tracks_from_rows(list(enumerate(rows, start=2)), folder=folder, name="songs.csv")
    return {split: [track for track in tracks if track.split == split] for split in names}


def soft(folder: Path, old: str, new: str) -> None:
    (folder / new).symlink_to(old)


def hard(folder: Path, old: str, new: str) -> None:
    os.link(folder / old, folder / new)


def of_a_folder(folder: Path, old: str, new: str) -> None:
    (folder / "linked").symlink_to(".")
    (folder / new).symlink_to(f"linked/{old}")


@pytest.mark.parametrize("link", [soft, hard, of_a_folder])
@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ("train", "validation", "validation"),
        ("train", "test", "test"),
        ("validation", "test", "test"),
    ],
)
def test_links_over_two_splits_of_a_manifest(tmp_path, link, one, other, kept, caplog):
    names = {split: [f"{split}.wav"] for split in SPLITS}
    for number, split in enumerate(SPLITS):
        write(tmp_path / f"{split}.wav", number)
    write(tmp_path / "same.wav", 3)
    link(tmp_path, "same.wav", "again.wav")
    names[one].append("same.wav")
    names[other].append("again.wav")
    splits = tracks_of(tmp_path, names)
    lost, stays = ("same.wav", "again.wav") if kept == other else ("again.wav", "same.wav")
    leaves = one if kept == other else other
    with raises("data-bad-tracks", "(1)", f"'{lost}' in {leaves} ", f"'{stays}' in {kept}"):
        check_splits(splits, on_bad_track="stop", show_progress=False)
    usable, skipped = check_splits(splits, on_bad_track="skip", show_progress=False)
    left = {split: [checked.track.id for checked in members] for split, members in usable.items()}
    assert left == {s: [n for n in members if n != lost] for s, members in names.items()}
    assert sum(skipped.values()) == 1
    assert lost in caplog.text


def test_links_within_a_split_and_copies_are_no_leak(tmp_path):
    for number, split in enumerate(SPLITS):
        write(tmp_path / f"{split}.wav", number)
    soft(tmp_path, "train.wav", "again.wav")
    write(tmp_path / "copy.wav", 0)  # another file: what is in it is not compared
    names = {"train": ["train.wav", "again.wav"], "validation": ["validation.wav"]}
    splits = tracks_of(tmp_path, names | {"test": ["test.wav", "copy.wav"]})
    usable, _ = check_splits(splits, on_bad_track="stop", show_progress=False)
    assert sum(map(len, usable.values())) == 5


def test_a_file_in_all_splits_stays_in_the_test():
    tracks = [
        Track(id=split, path=Path("a"), split=split, columns={}, origin=split, folder=Path())
        for split in SPLITS
    ]
    assert set(leaking_tracks(tracks, ["a"] * 3)) == {"train", "validation"}
    assert not leaking_tracks(tracks, ["a", "b", "c"])
