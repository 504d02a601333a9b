"""Data sets of the Hub, read by `load_tracks` from a Hub on the loopback.

The clients read their settings when they are imported, so `load_tracks` runs in a process of its
own and prints what it found.
"""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hub_server import HubServer
from support.forked import run_forked

REPOSITORY = Path(__file__).parents[2]

LOAD = """
import dataclasses, json, sys
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.errors import UserError

try:
    share = float(sys.argv[2])
    tracks, info = load_tracks(sys.argv[1], label_column="tags", max_failing_fraction=share)
except UserError as error:
    print(json.dumps({"error": str(error), "code": error.code}))
else:
    rows = [
        dataclasses.asdict(track) | {"path": str(track.path), "folder": str(track.folder)}
        for track in tracks
    ]
    print(json.dumps({"tracks": rows, "info": dataclasses.asdict(info)}))
"""


def load(hub: HubServer, home: Path, repo_id: str, *, share: float = 0.0, **variables: str) -> Any:
    """Run `load_tracks`, of whose audio a share may fail; return what it found, or its error."""
    process = run_forked(
        ["-c", LOAD, repo_id, str(share)],
        environment=os.environ | hub.environment(home) | variables,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def refused(
    hub: HubServer, home: Path, repo_id: str, code: str, *values: object, **options: Any
) -> None:
    """Assert that `load_tracks` raises an error of this code, whose message names these values."""
    found = load(hub, home, repo_id, **options)
    assert found.get("code") == code, found
    for value in values:
        assert str(value) in found["error"]


def make_wav(value: float, num_samples: int = 1600) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(num_samples, value), 16_000, format="WAV")
    return buffer.getvalue()


STRING = datasets.Value("string")
WAVS = [make_wav(n / 10) for n in range(6)]


def parquet(rows: list[dict[str, Any]], **kinds: Any) -> bytes:
    """A table with the types of `datasets` in its metadata."""
    table = pyarrow.Table.from_pylist(rows, schema=datasets.Features(kinds).arrow_schema)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def audio(number: int) -> dict[str, Any]:
    return {"bytes": WAVS[number], "path": f"{number}.wav"}


CARD = b"---\nlicense: cc-by-4.0\n---\n# Songs\n"


def test_audio_files_with_a_table(hub: HubServer, tmp_path: Path) -> None:
    table = "file_name,tags,split\naudio/0.wav,rock;pop,train\naudio/1.wav,pop,valid\n"
    files = {"audio/0.wav": WAVS[0], "audio/1.wav": WAVS[1]}
    hub.add_repo("me/songs", files | {"metadata.csv": table.encode(), "README.md": CARD}, "dataset")
    found = load(hub, tmp_path, "me/songs")
    assert [(t["id"], t["split"], t["columns"]) for t in found["tracks"]] == [
        ("audio/0.wav", "train", {"tags": "rock;pop"}),
        ("audio/1.wav", "validation", {"tags": "pop"}),
    ]
    assert [Path(t["path"]).read_bytes() for t in found["tracks"]] == WAVS[:2]
    assert found["info"]["name"] == "me/songs"
    assert found["info"]["licence"] == "cc-by-4.0"
    assert found["info"]["homepage"].endswith("/datasets/me/songs")

    # Once fetched, it is read without the network.
    unplugged = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    assert load(hub, tmp_path, "me/songs", **unplugged) == found


def test_a_folder_per_split_and_label(hub: HubServer, tmp_path: Path) -> None:
    names = ["train/jazz/0.wav", "train/pop/1.WAV", "validation/pop/2.wav", "test/jazz/3.wav"]
    hub.add_repo("me/folders", dict(zip(names, WAVS, strict=False)), "dataset")
    found = load(hub, tmp_path, "me/folders")
    assert {t["id"]: (t["split"], t["columns"]["tags"]) for t in found["tracks"]} == {
        "train/jazz/0.wav": ("train", ["jazz"]),
        "train/pop/1.WAV": ("train", ["pop"]),
        "validation/pop/2.wav": ("validation", ["pop"]),
        "test/jazz/3.wav": ("test", ["jazz"]),
    }
    assert all(Path(t["path"]).is_file() for t in found["tracks"])
    assert found["info"]["licence"] == ""


def test_tables_with_audio_and_classes(hub: HubServer, tmp_path: Path) -> None:
    genre = datasets.ClassLabel(names=["jazz", "pop"])
    kinds = {
        "audio": datasets.Audio(),
        "genre": genre,
        "tags": datasets.List(datasets.ClassLabel(names=["loud", "sung", "live"])),
        "id": datasets.Value("int64"),
        "artist": datasets.Value("string"),
    }
    # The numbers of rows start anew in each split, as they often do.
    rows = [
        {"audio": audio(n), "genre": n % 2, "tags": tags, "id": n % 2, "artist": f"artist {n}"}
        for n, tags in enumerate([[0, 2], [], [1], [0]])
    ]
    splits = {"train": rows[:2], "validation": rows[2:3], "test": rows[3:]}
    files = {
        f"data/{name}-00000-of-00001.parquet": parquet(members, **kinds)
        for name, members in splits.items()
    }
    hub.add_repo("me/tables", files | {"README.md": CARD}, "dataset")
    found = load(hub, tmp_path, "me/tables")
    tracks = sorted(found["tracks"], key=lambda track: track["columns"]["artist"])
    assert [t["split"] for t in tracks] == ["train", "train", "validation", "test"]
    assert [t["columns"]["genre"] for t in tracks] == ["jazz", "pop", "jazz", "pop"]
    assert [t["columns"]["tags"] for t in tracks] == [["loud", "live"], [], ["sung"], ["loud"]]
    assert [Path(t["path"]).read_bytes() for t in tracks] == WAVS[:4]
    assert [t["id"] for t in tracks] == ["train/0", "train/1", "validation/0", "test/1"]
    assert "audio" not in tracks[0]["columns"]
    assert found["info"]["licence"] == "cc-by-4.0"
    # The audio is written once, and in the home of the Hub's data.
    assert all(Path(t["path"]).is_relative_to(tmp_path) for t in tracks)
    assert load(hub, tmp_path, "me/tables") == found
    assert load(hub, tmp_path, "me/tables", HF_HUB_OFFLINE="1") == found


@pytest.mark.slow
def test_one_table_has_no_split_unless_it_has_the_column(hub: HubServer, tmp_path: Path) -> None:
    kinds = {"audio": datasets.Audio(), "tags": datasets.List(datasets.Value("string"))}
    rows = [{"audio": audio(n), "tags": ["a"], "split": s} for n, s in enumerate(["dev", "test"])]
    hub.add_repo("me/bare", {"train.parquet": parquet(rows, **kinds)}, "dataset")
    assert [t["split"] for t in load(hub, tmp_path, "me/bare")["tracks"]] == [None, None]

    kinds["split"] = datasets.Value("string")
    hub.add_repo("me/own", {"train.parquet": parquet(rows, **kinds)}, "dataset")
    splits = [t["split"] for t in load(hub, tmp_path, "me/own")["tracks"]]
    assert splits == ["validation", "test"]


@pytest.mark.parametrize("name", ["me/text", "me/two"])
def test_tables_without_one_audio_column_are_refused(
    hub: HubServer, tmp_path: Path, name: str
) -> None:
    if name == "me/text":
        table = parquet([{"tags": "a", "lyrics": "b"}], tags=STRING, lyrics=STRING)
        columns = "tags, lyrics"
    else:
        row = {"mix": audio(0), "vocals": audio(1)}
        table = parquet([row], mix=datasets.Audio(), vocals=datasets.Audio())
        columns = "mix, vocals"
    hub.add_repo(name, {"train.parquet": table}, "dataset")
    count = 0 if name == "me/text" else 2
    refused(hub, tmp_path, name, "hub-audio-columns", name, f" {count} ", "'train'", columns)


def test_a_data_set_without_data_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/empty", {"README.md": CARD}, "dataset")
    refused(hub, tmp_path, "me/empty", "hub-dataset-unreadable", "me/empty")


def test_a_missing_data_set_is_named(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/songs", {"config.json": b"{}"}, "model")  # a model is no data set
    for token in ({}, {"HF_TOKEN": ""}):
        values = ("me/songs", "hf auth login")
        refused(hub, tmp_path, "me/songs", "hub-not-found", *values, **token)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_no_network_is_reported(hub: HubServer, tmp_path: Path, offline: str) -> None:
    hub.add_repo("me/songs", {"jazz/0.wav": WAVS[0]}, "dataset")
    unplugged = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    values = ("me/songs", "HF_HUB_OFFLINE")
    refused(hub, tmp_path, "me/songs", "hub-unreachable", *values, **unplugged)


@pytest.mark.slow
def test_a_request_that_fails_for_a_moment_is_repeated(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/songs", {"jazz/0.wav": WAVS[0]}, "dataset")
    info = hub.fail_next("GET /api/datasets/me/songs", status=503, times=2)
    file = hub.fail_next("GET /datasets/me/songs/resolve", status=503, times=1)
    found = load(hub, tmp_path, "me/songs")
    assert len(found.get("tracks", [])) == 1, found
    assert info.remaining == file.remaining == 0


@pytest.mark.exhaustive
def test_a_failing_server_is_reported(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("me/songs", {"jazz/0.wav": WAVS[0]}, "dataset")
    hub.fail_next("GET /api/datasets/me/songs", status=507, times=9)
    refused(hub, tmp_path, "me/songs", "hub-server-error", "me/songs", "507")


@pytest.mark.slow
def test_a_file_that_fails_is_reported_and_the_next_try_resumes(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.add_repo("me/songs", {"jazz/0.wav": WAVS[0], "jazz/1.wav": WAVS[1]}, "dataset")
    hub.fail_next(lambda line: "/resolve/" in line and "1.wav" in line, status=507, times=5)
    # The first try and four more.
    refused(hub, tmp_path, "me/songs", "hub-too-many-failing", "jazz/1.wav of me/songs", "507")
    assert len(load(hub, tmp_path, "me/songs")["tracks"]) == 2


@pytest.mark.slow
def test_audio_that_fails_is_left_out_up_to_a_share(hub: HubServer, tmp_path: Path) -> None:
    names = [f"{split}/jazz/{n}.wav" for split in ("train", "validation", "test") for n in range(2)]
    files = dict(zip(names, WAVS, strict=True)) | {"README.md": CARD}
    hub.add_repo("me/songs", files, "dataset")
    hub.fail_next(lambda line: line.endswith(("train/jazz/0.wav", "test/jazz/1.wav")), status=507)
    many = hub.fail_next(lambda line: "/1.wav" in line, status=403, times=99)

    # Half of the files: that they fail for ever is known at once, as 403 does not pass.
    values = (" 3 ", "me/songs", "data.max_bad_fraction allows 2", "test/jazz/1.wav: ", "(403)")
    refused(hub, tmp_path, "me/songs", "hub-too-many-failing", *values, share=0.4)

    # As many as may: their tracks are there, and their files are not. What failed once was fetched.
    tracks = load(hub, tmp_path, "me/songs", share=0.5)["tracks"]
    assert [track["id"] for track in tracks] == sorted(names)
    missing = [track["id"] for track in tracks if not Path(track["path"]).is_file()]
    assert missing == [name for name in sorted(names) if "1.wav" in name]

    # Under the other policy one is enough; and what is no audio has to be there.
    refused(hub, tmp_path, "me/songs", "hub-too-many-failing", "/1.wav of me/songs", "(403)")
    many.remaining = 0
    assert all(Path(t["path"]).is_file() for t in load(hub, tmp_path, "me/songs")["tracks"])


def test_a_table_that_fails_is_no_bad_track(hub: HubServer, tmp_path: Path) -> None:
    table = b"file_name,tags\n0.wav,rock\n1.wav,pop\n"
    files = {"0.wav": WAVS[0], "1.wav": WAVS[1], "metadata.csv": table}
    hub.add_repo("me/songs", files, "dataset")
    fault = hub.fail_next(lambda line: line.endswith("metadata.csv"), status=403, times=99)
    values = ("metadata.csv of me/songs", "(403)")
    refused(hub, tmp_path, "me/songs", "hub-fetch-failed", *values, share=1.0)
    fault.remaining = 0
    lost = hub.fail_next(lambda line: line.endswith("/0.wav"), status=403, times=99)
    tracks = load(hub, tmp_path / "anew", "me/songs", share=0.5)["tracks"]
    assert {t["id"]: Path(t["path"]).is_file() for t in tracks} == {"0.wav": False, "1.wav": True}
    assert lost.remaining < 99


@pytest.mark.slow
def test_a_run_continues_without_audio_that_the_hub_does_not_give(
    hub: HubServer, tmp_path: Path
) -> None:
    locations = [("train", 4), ("validation", 2), ("test", 2)]
    names = [
        f"{s}/{g}/{n}.wav" for s, count in locations for g in ("jazz", "pop") for n in range(count)
    ]
    files = {name: make_wav(number / 20, 16_000) for number, name in enumerate(names)}
    hub.add_repo("me/songs", files, "dataset")
    hub.fail_next(
        lambda line: line.endswith(("train/pop/3.wav", "test/jazz/0.wav")), status=403, times=99
    )
    settings = {
        "data.source": "me/songs",
        "data.window_seconds": 0.5,
        "data.num_workers": 0,
        "data.on_bad_track": "skip",
        "data.max_bad_fraction": 0.2,
        "backbone.source": "random-small",
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "run.output_dir": tmp_path / "run",
    }
    done = run_forked(
        [
            REPOSITORY / "recipes" / "genre.py",
            *(f"--{key}={value}" for key, value in settings.items()),
        ],
        environment=os.environ | hub.environment(tmp_path / "home"),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    message = " ".join(done.stderr.split())
    for name in ("train/pop/3.wav", "test/jazz/0.wav"):
        assert re.search(rf"\b{name} of me/songs: [^:]*\(403\)", message)
    assert message.count("Skipped ") == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_skipped_tracks"] == {"train": 1, "validation": 0, "test": 1}
    assert results["num_tracks"] == 3
