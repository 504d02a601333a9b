"""Sources on this machine: manifests, folders, and what ships. tests/hub has those of the Hub."""

import json
from collections import Counter
from pathlib import Path

import pytest
from support.messages import raises

from m2v_finetune.data.manifest import MANIFEST_NAMES, DatasetInfo
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.data.sources import load_tracks


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def load(source: Path | str):
    return load_tracks(str(source), label_column="tags")


def found(folder: Path) -> dict[str, tuple[str | None, list[str]]]:
    tracks, _ = load(folder)
    assert all(track.path == folder / track.id for track in tracks)
    return {track.id: (track.split, track.columns["tags"]) for track in tracks}


@pytest.mark.parametrize("name", ["songs.csv", "songs.jsonl"])
def test_a_manifest(tmp_path, name):
    rows = {"songs.csv": "path,tags\na.mp3,rock\n", "songs.jsonl": '{"path": "a.mp3"}\n'}
    (tmp_path / name).write_text(rows[name])
    (track,), info = load(tmp_path / name)
    assert track.path == tmp_path / "a.mp3"
    assert info == DatasetInfo(name=tmp_path.name)


def test_a_path_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "songs.csv").write_text("path\na.mp3\n")
    (track,), _ = load("~/songs.csv")
    assert track.path == tmp_path / "a.mp3"


def test_a_manifest_beside_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("songs.csv").write_text("path\na.mp3\n")
    (track,), info = load("songs.csv")
    assert track.path == tmp_path / "a.mp3"
    assert info.name == tmp_path.name


@pytest.mark.parametrize("name", MANIFEST_NAMES)
def test_a_folder_with_a_manifest(tmp_path, name):
    row = '{"path": "a.mp3"}' if name.endswith("jsonl") else "path\na.mp3"
    (tmp_path / name).write_text(row + "\n")
    info = {"name": "mine", "title": "My songs", "licence": "CC0-1.0"}
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    touch(tmp_path, "jazz/b.mp3")  # the manifest is what counts
    tracks, dataset = load(tmp_path)
    assert [track.id for track in tracks] == ["a.mp3"]
    assert dataset == DatasetInfo(**info)


def test_a_folder_per_label(tmp_path):
    touch(
        tmp_path,
        "jazz/a.mp3",
        "jazz/b.WAV",
        "jazz/album 1/c.flac",
        "hip hop/d.ogg",
        "hip hop/cover.jpg",
        "notes.txt",
        "hip hop/._d.ogg",
        ".trash/e.mp3",
    )
    assert found(tmp_path) == {
        "hip hop/d.ogg": (None, ["hip hop"]),
        "jazz/a.mp3": (None, ["jazz"]),
        "jazz/album 1/c.flac": (None, ["jazz"]),
        "jazz/b.WAV": (None, ["jazz"]),
    }


def test_a_folder_per_label_files_them_under_the_column_of_the_task(tmp_path):
    touch(tmp_path, "jazz/a.mp3")
    (track,), info = load_tracks(str(tmp_path), label_column="genre")
    assert track.columns == {"genre": ["jazz"]}
    assert info.name == tmp_path.name


def test_a_folder_per_split_and_label(tmp_path):
    touch(tmp_path, "train/jazz/a.mp3", "Valid/jazz/b.mp3", "test/pop/c.mp3", "test/pop/x/d.mp3")
    touch(tmp_path, ".cache/x.json", "figures/plot.png")  # hold no audio
    assert found(tmp_path) == {
        "Valid/jazz/b.mp3": ("validation", ["jazz"]),
        "test/pop/c.mp3": ("test", ["pop"]),
        "test/pop/x/d.mp3": ("test", ["pop"]),
        "train/jazz/a.mp3": ("train", ["jazz"]),
    }


def test_what_ships():
    tracks, info = load("quickstart")
    assert Counter(track.split for track in tracks) == {"train": 160, "validation": 48, "test": 72}
    assert all(track.path.is_file() for track in tracks)
    assert all(track.path.is_relative_to(QUICKSTART_DIR) for track in tracks)
    assert info.title
    assert info.licence


@pytest.mark.parametrize("names", [[], ["song.mp3"], ["jazz/notes.txt"], ["train/a.mp3"]])
def test_a_folder_without_labels_is_refused(tmp_path, names):
    touch(tmp_path, *names)
    with raises("folder-no-audio", tmp_path, "manifest.jsonl", "jazz/song.mp3"):
        load(tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "no/where/at/all", "folder/songs.csv", "s.jsonl"])
def test_nothing_at_the_source_is_refused(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    legal = (".csv", ".jsonl", "folder per label", "user/name", "quickstart")
    with raises("data-not-found", f"'{source}'", *legal):
        load(source)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "song.mp3").touch()
    with raises("manifest-unknown-format", "song.mp3", ".csv", ".jsonl"):
        load(tmp_path / "song.mp3")
