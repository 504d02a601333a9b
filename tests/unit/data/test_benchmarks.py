"""Preparing public data sets: labels over HTTP, audio on disk, manifests that read back."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import json
import resource
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.messages import fails, raises

from m2v_finetune.data.benchmarks import BENCHMARKS, magnatagatune, mtg_jamendo, prepare_benchmark
from m2v_finetune.data.benchmarks.benchmark import Benchmark, RemoteFile
from m2v_finetune.data.benchmarks.fetching import fetch, fetch_all
from m2v_finetune.data.benchmarks.prepare import BAD_TRACKS_NAME, check_files
from m2v_finetune.data.benchmarks.writing import write_manifest
from m2v_finetune.data.manifest import SPLITS, read_dataset_info, read_manifest

LABELS = b"clip\ttag\n"


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path on the loopback and remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.requests: list[str] = []

    def remote(self, name: str, content: bytes, *, sha256: str | None = "right") -> RemoteFile:
        self.contents[f"/{name}"] = content
        right = hashlib.sha256(content).hexdigest()
        return RemoteFile(
            url=f"http://127.0.0.1:{self.server_port}/{name}",
            path=f"labels/{name}",
            sha256=right if sha256 == "right" else sha256,
        )


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        content = self.server.contents.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:4] if self.path in self.server.broken else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_audio(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    soundfile.write(path, tone, 16_000, format="MP3")


# --- fetching


def test_fetch_saves_the_content_and_does_not_ask_twice(server: Server, tmp_path: Path) -> None:
    remote = server.remote("labels.tsv", LABELS)
    assert fetch(remote, tmp_path) == tmp_path / "labels/labels.tsv"
    assert (tmp_path / "labels/labels.tsv").read_bytes() == LABELS
    fetch(remote, tmp_path)
    assert server.requests == ["/labels.tsv"]
    assert files_below(tmp_path) == ["labels/labels.tsv"]


def test_fetch_refuses_content_with_another_sum(server: Server, tmp_path: Path) -> None:
    expected = "0" * 64
    remote = server.remote("labels.tsv", LABELS, sha256=expected)
    found = hashlib.sha256(LABELS).hexdigest()
    values = (expected, found, remote.url, tmp_path / remote.path)
    with raises("benchmark-checksum-mismatch", *values):
        fetch(remote, tmp_path)
    assert files_below(tmp_path) == []


def test_fetch_refuses_a_wrong_file_in_place_and_keeps_it(server: Server, tmp_path: Path) -> None:
    remote = server.remote("labels.tsv", LABELS)
    target = tmp_path / remote.path
    target.parent.mkdir()
    target.write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with raises("benchmark-checksum-mismatch", target, found, remote.sha256):
        fetch(remote, tmp_path)
    assert target.read_bytes() == b"something else"
    assert server.requests == []


@pytest.mark.parametrize("fault", ["404", "refused", "interrupted"])
@pytest.mark.parametrize("sha256", ["right", None])
def test_fetch_that_fails_leaves_nothing_and_states_where_a_copy_goes(
    server: Server, tmp_path: Path, fault: str, sha256: str | None
) -> None:
    remote = server.remote("labels.tsv", LABELS, sha256=sha256)
    if fault == "404":
        del server.contents["/labels.tsv"]
    elif fault == "refused":
        remote = dataclasses.replace(remote, url=f"http://127.0.0.1:{unused_port()}/labels.tsv")
    else:
        server.broken.add("/labels.tsv")
    reason = {
        "404": "404",
        "refused": "Connection refused",
        "interrupted": "IncompleteRead(4 bytes read",
    }
    values = (remote.url, tmp_path / remote.path, reason[fault])
    with raises("benchmark-download-failed", *values):
        fetch(remote, tmp_path)
    assert files_below(tmp_path) == []
    # A copy put there by hand is taken, without the network.
    (tmp_path / "labels").mkdir(exist_ok=True)
    (tmp_path / remote.path).write_bytes(LABELS)
    assert fetch(remote, tmp_path).read_bytes() == LABELS


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "http://example.org/labels.tsv", "ftp://127.0.0.1/labels.tsv"]
)
def test_fetch_takes_https_only(tmp_path: Path, url: str) -> None:
    with fails(ValueError, "https", url):
        fetch(RemoteFile(url=url, path="labels.tsv", sha256=None), tmp_path)
    assert files_below(tmp_path) == []


def test_fetch_all_lists_every_file_that_fails(server: Server, tmp_path: Path) -> None:
    remotes = [server.remote(name, LABELS) for name in ("a.tsv", "b.tsv", "c.tsv")]
    del server.contents["/a.tsv"], server.contents["/c.tsv"]
    failing = [tmp_path / f"labels/{name}" for name in ("a.tsv", "c.tsv")]
    with raises("benchmark-download-failed", "(2)", *failing) as raised:
        fetch_all(remotes, tmp_path)
    assert "b.tsv" not in str(raised.value)
    assert files_below(tmp_path) == ["labels/b.tsv"]


def test_a_root_that_cannot_be_written_is_one_message(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_text("a file")
    with raises("benchmark-not-writable", root, "Not a directory"):
        fetch(server.remote("labels.tsv", LABELS), root)
    assert root.read_text() == "a file"


# --- checking and writing


def test_check_files_reports_missing_and_damaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["good.mp3", "missing.mp3", "empty.mp3", "text.mp3", "truncated.mp3"]
    paths = [tmp_path / name for name in names]
    write_audio(paths[0])
    paths[2].touch()
    paths[3].write_text("404: Not Found" * 100)
    write_audio(paths[4])
    paths[4].write_bytes(paths[4].read_bytes()[:1_000])
    problems = check_files(paths)
    assert list(problems) == paths[1:]
    assert problems[paths[1]] == "missing"
    assert "0 bytes" in problems[paths[2]]
    assert len(set(problems.values())) == 4
    assert "truncated" in problems[paths[4]]
    out, err = capfd.readouterr()
    assert out == ""
    assert "5/5" in err


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [{"path": "a.mp3", "tags": ["café"]}])
    old = path.read_text(encoding="utf-8")
    assert old == '{"path": "a.mp3", "tags": ["café"]}\n'
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with raises("benchmark-not-writable", path, "File too large"):
            write_manifest(path, ({"path": f"{number:099}.mp3"} for number in range(2_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text(encoding="utf-8") == old
    assert files_below(tmp_path) == ["manifest.jsonl"]


# --- MagnaTagATune


def clip(
    number: int, mp3_path: str, split: str | None, tags: list[str] | None
) -> dict[str, object]:
    extra = {
        "clip_id": str(number),
        "mp3_path": mp3_path,
        "artist": "Artist",
        "album": f"Album {number}",
        "title": "Title",
    }
    return {"clip": {"clip_idx": 0}, "extra": extra, "split": split, "y": tags, "y_all": tags}


CLIPS = {
    "00002": clip(2, "f/a-30-59.mp3", "test", ["classical", "violin"]),
    "00006": clip(6, "0/b-30-59.mp3", "train", []),
    "00010": clip(10, "c/c-30-59.mp3", "valid", ["rock"]),
    "00011": clip(11, "6/empty-117-146.mp3", None, ["rock"]),
    "00215": clip(215, "", None, None),
}
CLIP_FILES = ("f/a-30-59.mp3", "0/b-30-59.mp3", "c/c-30-59.mp3")


@pytest.fixture
def small_magnatagatune(server: Server) -> Benchmark:
    content = gzip.compress(json.dumps(CLIPS).encode())
    return dataclasses.replace(
        magnatagatune.BENCHMARK, remote_files=(server.remote("magnatagatune.json.gz", content),)
    )


def test_magnatagatune_becomes_a_manifest_that_reads_back(
    small_magnatagatune: Benchmark, tmp_path: Path
) -> None:
    for name in CLIP_FILES:
        write_audio(tmp_path / "mp3" / name)
    (prepared,) = prepare_benchmark(small_magnatagatune, tmp_path)
    assert (prepared.path, prepared.num_tracks, prepared.num_skipped) == (
        tmp_path / "manifest.jsonl",
        3,
        0,
    )
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {track.id: track.split for track in tracks.values()} == {
        "2": "test",
        "6": "train",
        "10": "validation",
    }
    assert tracks["2"].path == tmp_path / "mp3/f/a-30-59.mp3"
    assert tracks["2"].columns == {
        "tags": ["classical", "violin"],
        "artist": "Artist",
        "album": "Album 2",
        "clips": ["00002"],
    }
    assert tracks["6"].columns["tags"] == []
    assert read_dataset_info(tmp_path, name="?") == magnatagatune.INFO
    assert files_below(tmp_path)[:3] == [
        "dataset.json",
        "labels/magnatagatune.json.gz",
        "manifest.jsonl",
    ]


@pytest.mark.parametrize("on_bad_track", ["stop", "skip"])
def test_without_audio_the_labels_are_fetched_and_the_instructions_given(
    small_magnatagatune: Benchmark, tmp_path: Path, on_bad_track: str
) -> None:
    values = ("none of 3 files", "mp3.zip.001", "mp3.zip.002", "mp3.zip.003", f"-d {tmp_path}/mp3")
    with raises("benchmark-audio-missing", *values):
        prepare_benchmark(small_magnatagatune, tmp_path, on_bad_track=on_bad_track)
    assert files_below(tmp_path) == ["labels/magnatagatune.json.gz"]


def test_a_root_without_a_track_is_refused(tmp_path: Path) -> None:
    benchmark = dataclasses.replace(
        magnatagatune.BENCHMARK, remote_files=(), manifests=lambda root: {"manifest.jsonl": []}
    )
    for with_audio in (True, False):
        with raises("benchmark-audio-missing", tmp_path, "mp3.zip.001"):
            prepare_benchmark(benchmark, tmp_path, with_audio=with_audio)
    assert files_below(tmp_path) == []


def test_bad_tracks_stop_are_listed_and_can_be_skipped(
    small_magnatagatune: Benchmark, tmp_path: Path
) -> None:
    write_audio(tmp_path / "mp3" / CLIP_FILES[0])
    empty = tmp_path / "mp3" / CLIP_FILES[2]
    empty.parent.mkdir(parents=True)
    empty.touch()
    bad = ("mp3/0/b-30-59.mp3: ", "mp3/c/c-30-59.mp3: ")
    values = (*bad, tmp_path / BAD_TRACKS_NAME, "manifest.jsonl: 2 of 3")
    with raises("benchmark-bad-tracks", "(2)", *values) as raised:
        prepare_benchmark(small_magnatagatune, tmp_path)
    assert "mp3/f/a-30-59.mp3" not in str(raised.value)
    report = (tmp_path / BAD_TRACKS_NAME).read_text().splitlines()
    assert [line.partition("\t")[0] + ": " for line in report] == list(bad)
    assert all(line.partition("\t")[2] for line in report)
    assert not (tmp_path / "manifest.jsonl").exists()

    (prepared,) = prepare_benchmark(small_magnatagatune, tmp_path, on_bad_track="skip")
    assert (prepared.num_tracks, prepared.num_skipped) == (1, 2)
    assert [track.id for track in read_manifest(prepared.path)] == ["2"]

    for name in CLIP_FILES[1:]:
        write_audio(tmp_path / "mp3" / name)
    (prepared,) = prepare_benchmark(small_magnatagatune, tmp_path)
    assert (prepared.num_tracks, prepared.num_skipped) == (3, 0)
    assert not (tmp_path / BAD_TRACKS_NAME).exists()


def test_skipping_every_track_is_refused(small_magnatagatune: Benchmark, tmp_path: Path) -> None:
    for name in CLIP_FILES:
        (tmp_path / "mp3" / name).parent.mkdir(parents=True)
        (tmp_path / "mp3" / name).touch()
    with raises("benchmark-bad-tracks", "3 of 3"):
        prepare_benchmark(small_magnatagatune, tmp_path, on_bad_track="skip")
    assert not (tmp_path / "manifest.jsonl").exists()


def test_the_official_magnatagatune_labels(shared_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / magnatagatune.LABELS.path
    target.parent.mkdir()
    shutil.copyfile(shared_dir / "splits/magnatagatune.json.gz", target)
    fetch(magnatagatune.LABELS, tmp_path)  # in place, with the right sum
    rows = magnatagatune.rows(tmp_path)
    splits = Counter(row["split"] for row in rows)
    with_tag = Counter(row["split"] for row in rows if row["tags"])
    assert splits == {"train": 18_706, "validation": 1_825, "test": 5_329}
    assert with_tag == {"train": 15_247, "validation": 1_529, "test": 4_332}
    assert len({tag for row in rows for tag in row["tags"]}) == 50
    by_folder = {
        split: {row["path"][4] for row in rows if row["split"] == split} for split in SPLITS
    }
    assert by_folder == {"train": set("0123456789ab"), "validation": {"c"}, "test": set("def")}
    assert not {"35644", "55753", "57881"} & {row["id"] for row in rows}
    albums = {split: {row["album"] for row in rows if row["split"] == split} for split in SPLITS}
    assert not albums["train"] & albums["test"]
    artists: dict[str, set[str]] = {}
    for row in rows:
        artists.setdefault(row["artist"], set()).add(row["split"])
    assert (len(artists), sum(len(splits) > 1 for splits in artists.values())) == (230, 56)
    assert len({row["id"] for row in rows}) == len({row["path"] for row in rows}) == 25_860


# --- MTG-Jamendo

HEADER = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
LINE_ENDS = {"train": "\r\n", "validation": "\n", "test": "\n"}
LINES = {
    "genre-train": [
        "track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t124.6\tgenre---punkrock",
        "track_0000215\tartist_000014\talbum_000031\t15/215.mp3\t151.4\tgenre---metal\tgenre---rock",
    ],
    "genre-validation": [
        "track_0000382\tartist_000020\talbum_000046\t82/382.mp3\t211.1\tgenre---rock"
    ],
    "genre-test": [
        "track_0000387\tartist_000021\talbum_000047\t87/387.mp3\t161.0\tgenre---metal\t"
        "genre---punkrock\tgenre---rock"
    ],
    "top50tags-train": [
        "track_0000215\tartist_000014\talbum_000031\t15/215.mp3\t151.4\tgenre---rock\t"
        "instrument---piano\tmood/theme---happy"
    ],
    "top50tags-validation": [
        "track_0000382\tartist_000020\talbum_000046\t82/382.mp3\t211.1\tgenre---rock"
    ],
    "top50tags-test": [
        "track_0000400\tartist_000022\talbum_000048\t00/400.mp3\t99.0\tmood/theme---happy"
    ],
}
SMALL_SETS = (
    mtg_jamendo.TagSet(
        name="genre",
        prefix="genre---",
        num_tracks={"train": 2, "validation": 1, "test": 1},
        num_tags=3,
    ),
    mtg_jamendo.TagSet(
        name="top50tags",
        prefix="",
        num_tracks={"train": 1, "validation": 1, "test": 1},
        num_tags=3,
    ),
)
TRACK_FILES = ("14/214", "15/215", "82/382", "87/387", "00/400")


def label_content(name: str) -> bytes:
    end = LINE_ENDS[name.split("-")[1]]
    return (end.join([HEADER, *LINES[name]]) + end).encode()


@pytest.fixture
def small_jamendo(server: Server) -> Benchmark:
    return dataclasses.replace(
        mtg_jamendo.BENCHMARK,
        remote_files=tuple(
            server.remote(f"autotagging_{name}.tsv", label_content(name), sha256=None)
            for name in LINES
        ),
        manifests=functools.partial(mtg_jamendo.manifests, tag_sets=SMALL_SETS),
    )


def write_labels(root: Path) -> None:
    (root / "labels").mkdir()
    for name in LINES:
        (root / f"labels/autotagging_{name}.tsv").write_bytes(label_content(name))


def test_jamendo_becomes_one_manifest_a_tag_set(small_jamendo: Benchmark, tmp_path: Path) -> None:
    write_audio(tmp_path / "audio/14/214.mp3")
    for name in TRACK_FILES[1:]:
        write_audio(tmp_path / f"audio/{name}.low.mp3")
    prepared = prepare_benchmark(small_jamendo, tmp_path)
    assert [(one.path.name, one.num_tracks, one.num_skipped) for one in prepared] == [
        ("genre.jsonl", 4, 0),
        ("top50tags.jsonl", 3, 0),
    ]
    genre = {track.id: track for track in read_manifest(tmp_path / "genre.jsonl")}
    assert Counter(track.split for track in genre.values()) == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert genre["track_0000214"].path == tmp_path / "audio/14/214.mp3"
    assert genre["track_0000215"].path == tmp_path / "audio/15/215.low.mp3"
    assert genre["track_0000387"].columns == {
        "tags": ["metal", "punkrock", "rock"],
        "artist": "artist_000021",
        "album": "album_000047",
    }
    top = {track.id: track for track in read_manifest(tmp_path / "top50tags.jsonl")}
    assert top["track_0000215"].columns["tags"] == [
        "genre---rock",
        "instrument---piano",
        "mood/theme---happy",
    ]
    assert read_dataset_info(tmp_path, name="?") == mtg_jamendo.INFO


def test_jamendo_prefers_the_full_quality(tmp_path: Path) -> None:
    write_labels(tmp_path)
    write_audio(tmp_path / "audio/14/214.mp3")
    write_audio(tmp_path / "audio/14/214.low.mp3")
    rows = mtg_jamendo.manifests(tmp_path, SMALL_SETS)["genre.jsonl"]
    assert [row["path"] for row in rows[:2]] == ["audio/14/214.mp3", "audio/15/215.mp3"]


def test_jamendo_skips_a_tag_set_without_audio(small_jamendo: Benchmark, tmp_path: Path) -> None:
    for name in ("14/214", "87/387"):
        write_audio(tmp_path / f"audio/{name}.low.mp3")
    with raises("benchmark-bad-tracks", "genre.jsonl: 2 of 4", "top50tags.jsonl: 3 of 3"):
        prepare_benchmark(small_jamendo, tmp_path)
    assert files_below(tmp_path)[-1].startswith("labels/")
    prepared = prepare_benchmark(small_jamendo, tmp_path, on_bad_track="skip")
    assert [(one.path.name, one.num_tracks, one.num_skipped) for one in prepared] == [
        ("genre.jsonl", 2, 2)
    ]
    assert not (tmp_path / "top50tags.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "code", "values"),
    [
        (
            lambda text: text.replace(HEADER, "<!DOCTYPE html>"),
            "benchmark-labels-malformed",
            HEADER.split("\t"),
        ),
        (lambda text: "", "benchmark-labels-malformed", HEADER.split("\t")),
        (lambda text: text.rsplit("track_", 1)[0], "benchmark-count-mismatch", ["1 tracks", "2"]),
        (
            lambda text: text.replace("genre---metal", "piano"),
            "benchmark-labels-malformed",
            ["-train.tsv:3:", "piano"],
        ),
        (
            lambda text: text.replace("\tgenre---punkrock", ""),
            "benchmark-labels-malformed",
            ["-train.tsv:2:"],
        ),
        (
            lambda text: text.replace("genre---rock", "genre---ska"),
            "benchmark-count-mismatch",
            ["4 tags", "3"],
        ),
    ],
)
def test_jamendo_labels_that_are_not_as_published_are_refused(
    tmp_path: Path, change, code: str, values: list[str]
) -> None:
    write_labels(tmp_path)
    assert len(mtg_jamendo.rows(tmp_path, SMALL_SETS[0])) == 4
    path = tmp_path / "labels/autotagging_genre-train.tsv"
    path.write_text(change(path.read_text()))
    with raises(code, *values):
        mtg_jamendo.rows(tmp_path, SMALL_SETS[0])


def test_the_official_jamendo_counts_and_addresses(shared_dir: Path) -> None:
    # The table counts lines, one of which is the header.
    table = (shared_dir / "splits/README.md").read_text()
    for tag_set in mtg_jamendo.TAG_SETS:
        lines = " / ".join(f"{tag_set.num_tracks[split] + 1:,}" for split in SPLITS)
        assert f"{tag_set.name} {lines}" in table
    assert "MTG/mtg-jamendo-dataset @ 1b4fa8c32e076c73b5175c1703ae805b4109309d" in table
    urls = [remote.url for remote in mtg_jamendo.REMOTE_FILES]
    assert len(set(urls)) == 12
    assert urls[0] == (
        "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/"
        "1b4fa8c32e076c73b5175c1703ae805b4109309d/"
        "data/splits/split-0/autotagging_genre-train.tsv"
    )


# --- all of them


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_states_what_it_is(name: str) -> None:
    assert all(name == benchmark.info.name for name, benchmark in BENCHMARKS.items())
    benchmark = BENCHMARKS[name]
    assert all(dataclasses.asdict(benchmark.info).values())
    assert benchmark.info.citation.count("{") == benchmark.info.citation.count("}")
    assert "/data/here" in benchmark.instructions.format(root="/data/here")
    assert all(remote.url.startswith("https://") for remote in benchmark.remote_files)
