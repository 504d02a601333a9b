"""Paths that lead nowhere: what they may have meant is named."""

import os
import unicodedata
from pathlib import Path

import pytest
from support.messages import raises

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.cli import main
from m2v_finetune.data.checking import check_tracks
from m2v_finetune.data.manifest import tracks_from_rows
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.path_hints import did_you_mean
from m2v_finetune.tasks.beats import BeatTracking

NFC, NFD = "Café.wav", unicodedata.normalize("NFD", "Café.wav")

MEANT = {  # what is there, what was written, and what else the hint says
    "a backslash": ("music/a.wav", "music\\a.wav", ""),
    "backslashes": ("x/y/a.wav", "x\\y\\a.wav", ""),
    "a space at the end": ("a.wav", "a.wav ", "spaces"),
    "a space in front": ("a.wav", " a.wav", "spaces"),
    "a space at the end, on the disk": ("a /b.wav", "a/b.wav", "spaces"),
    "NFD for NFC": (NFC, NFD, "Unicode"),
    "NFC for NFD": (NFD, NFC, "Unicode"),
    "upper case": ("Song.WAV", "song.wav", ""),
    "upper case of a folder": ("Music/a.wav", "music/a.wav", ""),
    "another suffix": ("a.flac", "a.wav", ""),
    "no suffix": ("a.flac", "a", ""),
    "percent signs": ("a b.wav", "a%20b.wav", ""),
    "case, folder and suffix": ("Music/A.mp3", "music\\a.wav", ""),
}


def make(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize("case", MEANT)
def test_what_a_path_may_have_meant_is_named(tmp_path, case):
    there, written, more = MEANT[case]
    path = make(tmp_path, there)
    hint = did_you_mean(tmp_path / written)
    assert hint.startswith(f" Did you mean {str(path)!r}")
    assert more in hint
    assert ("(" in hint) == bool(more)


def test_a_path_from_home_and_an_address(tmp_path, monkeypatch):
    path = make(tmp_path / "home", "a b.wav")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for written in ("~/a b.wav", f"file://{tmp_path}/home/a%20b.wav"):
        assert repr(str(path)) in did_you_mean(tmp_path / "music" / written)


@pytest.mark.parametrize("written", ["b.wav", "none/a.wav", "a.wav", "", "a\0.wav", "x" * 5000])
def test_where_nothing_is_like_it_nothing_is_reported(tmp_path, written):
    make(tmp_path, "a.wav")
    assert did_you_mean(tmp_path / written) == ""


def test_a_folder_that_changes_is_read_again(tmp_path):
    assert did_you_mean(tmp_path / "a.wav") == ""
    path = make(tmp_path, "A.wav")
    os.utime(tmp_path, (1, 1))
    assert str(path) in did_you_mean(tmp_path / "a.wav")


@pytest.mark.parametrize("case", MEANT)
def test_the_check_of_audio_and_of_annotations_hints(tmp_path, case):
    there, written, _ = MEANT[case]
    path = make(tmp_path, there)
    rows = [(2, {"path": written, "beats": written})]
    tracks = tracks_from_rows(rows, folder=tmp_path, name="songs.csv")
    values = ("songs.csv:2: ", tmp_path / written, repr(str(path)))
    with raises("data-bad-tracks", *values):
        check_tracks(tracks, on_bad_track="stop", show_progress=False)
    with raises("labels-unusable", *values):
        BeatTracking(label_column="beats").check_labels(tracks)


@pytest.mark.parametrize("written", ["Songs.csv", "songs.jsonl", "songs", "songs.csv "])
def test_a_source_hints(tmp_path, monkeypatch, written):
    make(tmp_path, "songs.csv")
    monkeypatch.chdir(tmp_path)
    for source in (written, str(tmp_path / written)):
        with raises("data-not-found", repr(str(tmp_path / "songs.csv"))):
            load_tracks(source, label_column="tags")


@pytest.mark.parametrize("case", MEANT)
def test_a_file_to_predict_hints(tmp_path, monkeypatch, case):
    there, written, _ = MEANT[case]
    path = make(tmp_path, there)
    monkeypatch.chdir(tmp_path)
    for given in (written, str(tmp_path / written)):
        with raises("audio-not-found", repr(str(path))):
            inspect_audio(Path(given))


@pytest.mark.parametrize(
    ("written", "code"), [("Runs/model", "hub-unreachable"), ("runs/a/Model", "model-missing")]
)
def test_a_model_hints(tmp_path, monkeypatch, written, code):
    """The first looks like an id of the Hub."""
    there = make(tmp_path, f"{written.lower()}/config.json").parent
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with raises(code, repr(str(there))):
        TaskModel.from_pretrained(written)


@pytest.mark.parametrize("command", ["train tagging", "plan"])
def test_a_config_hints(tmp_path, monkeypatch, capsys, command):
    path = make(tmp_path, "tagging/Mine.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--config", "tagging/mine.yaml"])
    assert ended.value.code == 2
    assert repr(str(path)) in "".join(capsys.readouterr().err.split("\n"))
