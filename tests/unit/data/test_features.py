"""Vectors that were computed elsewhere: every bad file is listed, clips belong to their tracks."""

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.messages import raises

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.data.benchmarks import (
    BENCHMARKS,
    emomusic,
    giantsteps,
    gtzan,
    jukemir,
    magnatagatune,
    prepare_benchmark,
)
from m2v_finetune.data.features import read_vector, read_vector_splits
from m2v_finetune.data.loader import TrackWindows
from m2v_finetune.data.manifest import Track, read_manifest

SIZE = 6
Write = Callable[..., None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jukebox").mkdir()
    return tmp_path / "jukebox"


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a vector by the name of its clip: random numbers, or those given."""

    def write(clip: str, values: object = None, size: int = SIZE) -> None:
        generator = np.random.default_rng(len(clip) + ord(clip[-1]))
        given = generator.normal(size=size).astype(np.float32) if values is None else values
        np.save(folder / f"{clip}.npy", given, allow_pickle=True)

    return write


def track(name: str, split: str = "train", **columns: object) -> Track:
    path = Path("none") / name  # the audio is not needed
    origin = f"songs.csv:{name}"
    return Track(id=name, path=path, split=split, columns=columns, origin=origin, folder=Path())


def splits(train: list[Track]) -> dict[str, list[Track]]:
    others = {"validation": [track("v", "validation")], "test": [track("t", "test")]}
    return {"train": train, **others}


def test_a_track_has_the_vectors_of_its_clips(folder: Path, write: Write) -> None:
    rows = np.arange(3 * SIZE, dtype=np.float64).reshape(3, SIZE)
    for number, row in enumerate(rows):
        write(f"x-{number}", row)
    write("whole", rows)
    for name in ("alone", "v", "t"):
        write(name)
    read, num_skipped = read_vector_splits(
        splits(
            [
                track("listed", clips=["x-0", "x-1", "x-2"]),
                track("from_csv", clips="x-2;x-0"),
                track("alone"),
                track("whole"),
            ]
        ),
        folder,
        on_bad_track="stop",
    )
    listed, from_csv, alone, whole = read["train"]
    assert num_skipped == {"train": 0, "validation": 0, "test": 0}
    np.testing.assert_array_equal(listed.vectors, rows)
    np.testing.assert_array_equal(from_csv.vectors, rows[[2, 0]])
    np.testing.assert_array_equal(alone.vectors, [np.load(folder / "alone.npy")])
    np.testing.assert_array_equal(whole.vectors, rows)
    assert {checked.vectors.dtype for checked in read["train"]} == {np.dtype(np.float32)}


def test_each_clip_is_a_window_of_its_track(folder: Path, write: Write) -> None:
    for name in ("a-0", "a-1", "v", "t"):
        write(name)
    tracks = splits([track("a", clips=["a-0", "a-1"])])
    read, _ = read_vector_splits(tracks, folder, on_bad_track="stop")
    vectors = PrecomputedBackbone(SIZE, source="vectors in jukebox")
    windows = TrackWindows(
        [*read["train"], *read["test"]],
        inputs=read_vector,
        grid=vectors.frame_grid,
        window_samples=1,
        hop_samples=1,
        on_frames=False,
    )
    assert [(number, location.start_sample) for number, location in windows.locations] == [
        (0, 0),
        (0, 1),
        (1, 0),
    ]
    for index, name in enumerate(("a-0", "a-1", "t")):
        number, (vector,) = windows[index]
        assert number == index
        np.testing.assert_array_equal(vector, np.load(folder / f"{name}.npy"))


BAD = {
    "missing": "is missing",
    "text": "holds no vector",
    "cut": "holds no vector",
    "objects": "holds no vector",
    "archive": "it is no .npy file of real numbers",
    "words": "it is no .npy file of real numbers",
    "complex": "it is no .npy file of real numbers",
    "cube": "its shape is (1, 2, 3), not (size,) or (count, size)",
    "scalar": "its shape is ()",
    "empty": "its shape is (0, 6)",
    "nan": "nan or infinity",
    "huge": "nan or infinity",  # in float32
    "short": "5 numbers, where most clips have 6",
}


def write_bad(folder: Path, write: Write) -> list[Track]:
    write("cut")
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-4])
    (folder / "text.npy").write_text("0.1 0.2")
    write("objects", np.array([{"a": 1}], dtype=object))
    np.savez(folder / "archive.npz", a=np.zeros(SIZE))
    (folder / "archive.npz").rename(folder / "archive.npy")
    write("words", np.array(["a", "b"]))
    write("complex", np.zeros(SIZE, dtype=complex))
    write("cube", np.zeros((1, 2, 3)))
    write("scalar", np.float32(1))
    write("empty", np.zeros((0, SIZE)))
    write("nan", np.array([0, 1, np.nan, 3, 4, 5]))
    write("huge", np.full(SIZE, 1e300))
    write("short", np.zeros(SIZE - 1))
    return [track(name) for name in BAD]


def test_every_bad_file_is_listed_with_its_track(folder: Path, write: Write) -> None:
    bad = write_bad(folder, write)
    for name in ("good", "v", "t"):
        write(name)
    two = track("two", clips=["good", "gone-1", "gone-2"])
    with raises("data-bad-tracks", f"({len(BAD) + 2})") as raised:
        read_vector_splits(splits([*bad, track("good"), two]), folder, on_bad_track="stop")
    message = str(raised.value)
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    for name, problem in BAD.items():
        (line,) = (line for line in lines if f"{folder / name}.npy" in line)
        assert line.startswith(f"  - songs.csv:{name}, track {name}: ")
        assert problem in line
    assert sum("track two: " in line for line in lines) == 2
    assert "track good" not in message


def test_skipping_counts_what_is_left_out(
    folder: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    bad = write_bad(folder, write)
    for name in ("good", "v", "t"):
        write(name)
    with caplog.at_level("WARNING"):
        read, num_skipped = read_vector_splits(
            splits([*bad, track("good")]), folder, on_bad_track="skip"
        )
    assert [checked.track.id for checked in read["train"]] == ["good"]
    assert num_skipped == {"train": len(BAD), "validation": 0, "test": 0}
    assert caplog.text.count("Skipped songs.csv:") == len(BAD)
    with raises("data-no-usable-track", "13", "'train'"):
        read_vector_splits(splits(bad), folder, on_bad_track="skip")


def test_no_folder_and_no_file_at_all(folder: Path) -> None:
    with raises("vectors-no-folder", folder / "gone"):
        read_vector_splits(splits([]), folder / "gone", on_bad_track="stop")
    with raises("data-bad-tracks", "2 tracks", "(2)"):
        read_vector_splits(splits([]), folder, on_bad_track="skip")


@pytest.mark.parametrize("module", [gtzan, giantsteps, emomusic, magnatagatune])
def test_the_manifests_name_every_clip_of_the_archives(
    module: ModuleType, shared_dir: Path, tmp_path: Path
) -> None:
    target = tmp_path / module.LABELS.path
    target.parent.mkdir()
    shutil.copyfile(shared_dir / "splits" / target.name, target)
    clips = jukemir.read_labels(tmp_path, module.LABELS)
    by_clip = [(clip, row) for row in module.rows(tmp_path) for clip in row["clips"]]
    listed = Counter(clip for clip, _ in by_clip)
    assert listed == Counter(uid for uid, clip in clips.items() if clip["split"] is not None)
    for uid, row in by_clip:
        assert jukemir.SPLITS[clips[uid]["split"]] == row["split"]


def test_manifests_of_the_labels_alone(tmp_path: Path) -> None:
    target = tmp_path / gtzan.LABELS.path
    target.parent.mkdir()
    clips = {
        uid: {"extra": {"id": f"jazz.0000{uid}"}, "split": split, "y": "jazz"}
        for uid, split in (("1", "train"), ("2", "valid"), ("3", "test"))
    }
    target.write_bytes(gzip.compress(json.dumps(clips).encode()))
    counts = {"train": 1, "validation": 1, "test": 1}
    benchmark = BENCHMARKS["gtzan"].__class__(
        info=gtzan.INFO,
        remote_files=(),
        instructions=gtzan.INSTRUCTIONS,
        recipes=("genre",),
        manifests=lambda root: gtzan.manifests(root, counts),
    )
    with raises("benchmark-audio-missing", "none of 3 files"):
        prepare_benchmark(benchmark, tmp_path)
    (prepared,) = prepare_benchmark(benchmark, tmp_path, with_audio=False)
    assert (prepared.num_tracks, prepared.num_skipped) == (3, 0)
    tracks = read_manifest(prepared.path)
    assert [track.columns["clips"] for track in tracks] == [["1"], ["2"], ["3"]]
    assert [track.split for track in tracks] == ["train", "validation", "test"]
    assert not (tmp_path / "bad-tracks.tsv").exists()
