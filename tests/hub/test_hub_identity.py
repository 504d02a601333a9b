"""Tracks of Hub data sets: known by what the data set says of them, and one recording in one split.

Each case runs what a recipe does first (load, split, check, draw windows) in a process of its own.
"""

import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from hub_server import HubServer
from support.forked import run_forked
from test_hub_datasets import WAVS, audio, parquet

BEGIN = """
import json, sys
from m2v_finetune.audio.windows import random_window_start
from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.errors import UserError

def begin(repo_id, policy):
    try:
        tracks, _ = load_tracks(repo_id, label_column="tags")
        splits = split_tracks(
            tracks, group_columns=["artist"], validation_fraction=0.2, test_fraction=0.2, seed=0
        )
        usable, skipped = check_splits(splits, on_bad_track=policy, show_progress=False)
    except UserError as error:
        return {"error": str(error), "code": error.code}
    every = [one.track for members in usable.values() for one in members]
    return {
        "ids": {name: [one.track.id for one in members] for name, members in usable.items()},
        "starts": {
            track.id: random_window_start(1600, 100, seed=0, epoch=0, track_id=track.id)
            for track in every
        },
        "paths": {track.id: str(track.path) for track in every},
        "skipped": skipped,
    }

policy, *repo_ids = sys.argv[1:]
print(json.dumps({repo_id: begin(repo_id, policy) for repo_id in repo_ids}))
"""

AUDIO = {"audio": datasets.Audio()}
SPLITS = ("train", "validation", "test")


def begin(hub: HubServer, home: Path, *repo_ids: str, policy: str = "stop") -> Any:
    """Do what a run does first; return, by data set, ids by split and windows, or the error."""
    process = run_forked(
        ["-c", BEGIN, policy, *repo_ids],
        environment=os.environ | hub.environment(home),
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def named(*names: str | None) -> list[dict[str, Any]]:
    """Rows whose audio has these names."""
    return [{"audio": {"bytes": WAVS[n], "path": name}} for n, name in enumerate(names)]


WITHOUT_SPLITS = {
    "names": (named("a.wav", "b.wav", "c.wav"), ["a.wav", "b.wav", "c.wav"]),
    "rows": (named(None, None, None), ["0", "1", "2"]),
    "one-name": (named("a.wav", "a.wav", "a.wav"), ["a.wav", "a.wav#2", "a.wav#3"]),
    "paths": (named("/home/me/a.wav", "x/a.wav", None), ["2", "a.wav", "x/a.wav"]),
    "archive-in-a-cache": (
        named("zip://a.wav::/root/.cache/1234", "b.wav", "c.wav"),
        ["a.wav", "b.wav", "c.wav"],
    ),
}


def test_tables_without_splits_are_the_same_everywhere(hub: HubServer, tmp_path: Path) -> None:
    for case, (rows, _) in WITHOUT_SPLITS.items():
        hub.add_repo(f"me/{case}", {"data.parquet": parquet(rows, **AUDIO)}, "dataset")
    repo_ids = [f"me/{case}" for case in WITHOUT_SPLITS]
    here = begin(hub, tmp_path / "here", *repo_ids)
    there = begin(hub, tmp_path / "there" / "deeper", *repo_ids)
    shutil.move(tmp_path / "here", tmp_path / "moved")
    moved = begin(hub, tmp_path / "moved", *repo_ids)
    for case, (_, ids) in WITHOUT_SPLITS.items():
        locations = [found[f"me/{case}"] for found in (here, there, moved)]
        assert all_ids(locations[0]) == ids
        paths = [location.pop("paths") for location in locations]
        assert paths[0] != paths[1] != paths[2]
        assert locations[0] == locations[1] == locations[2], case


def all_ids(found: Any) -> list[str]:
    return sorted(name for members in found["ids"].values() for name in members)


OWN_IDS = {
    "numbers": ("int64", [0, None, 2], ["0", "1.wav", "2"]),
    "floats": ("float64", [0.0, None, 7.0], ["0", "1.wav", "7"]),
    "text": ("string", ["", " ", "x"], ["0.wav", "1.wav", "x"]),
    "booleans": ("bool", [False, True, None], ["2.wav", "false", "true"]),
    "one-number": ("int64", [5, 5, 5], ["5", "5#2", "5#3"]),
}


def test_own_ids_of_tables(hub: HubServer, tmp_path: Path) -> None:
    for case, (kind, values, _) in OWN_IDS.items():
        rows = [{"audio": audio(n), "id": value} for n, value in enumerate(values)]
        table = parquet(rows, **AUDIO, id=datasets.Value(kind))
        hub.add_repo(f"me/{case}", {"data.parquet": table}, "dataset")
    found = begin(hub, tmp_path, *(f"me/{case}" for case in OWN_IDS))
    for case, (_, _, ids) in OWN_IDS.items():
        assert all_ids(found[f"me/{case}"]) == ids, case


def test_rows_of_one_recording_are_two_tracks(hub: HubServer, tmp_path: Path) -> None:
    """As 990 of MTG-Jamendo; where a split is drawn they are on one side."""
    rows = [{"audio": audio(n % 4) | {"path": f"{n}.wav"}} for n in range(12)]
    hub.add_repo("me/twins", {"data.parquet": parquet(rows, **AUDIO)}, "dataset")
    repeated = {"train": [0, 1, 1], "validation": [2], "test": [3, 3]}
    tables = {
        f"{split}.parquet": parquet([{"audio": audio(n)} for n in numbers], **AUDIO)
        for split, numbers in repeated.items()
    }
    hub.add_repo("me/within", tables, "dataset")
    both = begin(hub, tmp_path, "me/twins", "me/within")
    found = both["me/twins"]
    assert sorted(map(len, found["ids"].values())) == [3, 3, 6]
    for members in found["ids"].values():
        recordings = {found["paths"][name] for name in members}
        assert len(members) == 3 * len(recordings)

    assert both["me/within"]["ids"] == {
        "train": ["train/0.wav", "train/1.wav", "train/1.wav#3"],
        "validation": ["validation/2.wav"],
        "test": ["test/3.wav", "test/3.wav#6"],
    }


@pytest.mark.slow
def test_one_recording_in_two_splits_is_named_and_stays_where_it_is_measured(
    hub: HubServer, tmp_path: Path
) -> None:
    numbers = {"train": [0, 1, 2, 3], "validation": [2, 3, 4], "test": [3, 5]}
    tables = {
        f"{split}.parquet": parquet([{"audio": audio(n)} for n in members], **AUDIO)
        for split, members in numbers.items()
    }
    hub.add_repo("me/leak", tables, "dataset")
    folder = {
        f"{split}/jazz/{n}-{split}.wav": WAVS[n]
        for split, members in numbers.items()
        for n in members
    }
    hub.add_repo("me/files", folder, "dataset")
    table = "".join(f"{name},{name.split('/')[0]},jazz\n" for name in folder)
    files = folder | {"metadata.csv": f"file_name,split,tags\n{table}".encode()}
    hub.add_repo("me/listed", files, "dataset")
    names = {
        "me/leak": "{split}/{n}.wav",
        "me/files": "{split}/jazz/{n}-{split}.wav",
        "me/listed": "{split}/jazz/{n}-{split}.wav",
    }
    refused = begin(hub, tmp_path, *names)
    skipped = begin(hub, tmp_path, *names, policy="skip")
    for repo_id, name in names.items():
        assert refused[repo_id]["code"] == "data-bad-tracks"
        error = refused[repo_id]["error"]
        lost = [("train", 2, "validation"), ("train", 3, "test"), ("validation", 3, "test")]
        assert "(3)" in error
        assert "--data.on_bad_track skip" in error
        for split, n, kept in lost:
            ours, other = name.format(split=split, n=n), name.format(split=kept, n=n)
            assert re.search(f"'{ours}' in {split} [^\n]*'{other}' in {kept}", error)

        found = skipped[repo_id]
        left = {"train": [0, 1], "validation": [2, 4], "test": [3, 5]}
        assert found["ids"] == {
            split: [name.format(split=split, n=n) for n in members]
            for split, members in left.items()
        }
        assert found["skipped"] == {"train": 2, "validation": 1, "test": 0}


def test_a_list_that_names_a_file_twice(hub: HubServer, tmp_path: Path) -> None:
    lines = ["0.wav,train", "0.wav,train", "1.wav,validation", "2.wav,test", "./2.wav,test"]
    files = {f"{n}.wav": WAVS[n] for n in range(3)}
    files["metadata.csv"] = "\n".join(["file_name,split", *lines]).encode()
    hub.add_repo("me/listed", files, "dataset")
    assert begin(hub, tmp_path, "me/listed")["me/listed"]["ids"] == {
        "train": ["0.wav", "0.wav#3"],
        "validation": ["1.wav"],
        "test": ["2.wav", "./2.wav"],
    }


@pytest.mark.slow
def test_an_archive_of_a_web_data_set(hub: HubServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for n in range(4):
            for name, content in ((f"{n:03}.wav", WAVS[n]), (f"{n:03}.json", b'{"artist": 0}')):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    hub.add_repo("me/web", {"train-0.tar": buffer.getvalue()}, "dataset")
    # `datasets` reads such archives with torchcodec alone: refused, with the reason.
    found = begin(hub, tmp_path, "me/web")["me/web"]
    assert found["code"] == "hub-dataset-unreadable"
    assert "torchcodec" in found["error"]


def test_a_folder_above_the_splits_means_nothing(hub: HubServer, tmp_path: Path) -> None:
    names = ["data/train/jazz/0.wav", "data/validation/jazz/1.wav", "data/eval/pop/2.wav"]
    hub.add_repo("me/deep", dict(zip(names, WAVS, strict=False)), "dataset")
    assert begin(hub, tmp_path, "me/deep")["me/deep"]["ids"] == {
        split: [name] for split, name in zip(SPLITS, names, strict=True)
    }
