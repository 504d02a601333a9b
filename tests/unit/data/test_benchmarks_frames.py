"""Public data sets of the frame tasks: archives, layouts on disk, label files, and every message."""

import csv
import dataclasses
import gzip
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.data.benchmarks import (
    BENCHMARKS,
    Benchmark,
    beat_annotations,
    billboard,
    gtzan,
    gtzan_rhythm,
    isophonics,
    maestro,
    musdb18,
    prepare_benchmark,
)
from m2v_finetune.data.benchmarks.archives import unpack
from m2v_finetune.data.benchmarks.beat_annotations import FoldedSet
from m2v_finetune.data.benchmarks.benchmark import RemoteFile
from m2v_finetune.data.benchmarks.fetching import fetch
from m2v_finetune.data.benchmarks.label_checks import check_notes, check_stems
from m2v_finetune.data.benchmarks.prepare import BAD_TRACKS_NAME
from m2v_finetune.data.manifest import SPLITS, read_dataset_info, read_manifest

NAMES = {
    "gtzan-rhythm": "beats",
    "ballroom": "beats",
    "hainsworth": "beats",
    "smc": "beats",
    "isophonics": "chords",
    "billboard": "chords",
    "maestro": "transcription",
    "musdb18": "separation",
}
BEATS = b"0.5\t1\n1.0\t2\n1.5\t3\n"
BAD_BEATS = b"0.5\t1\n1.0\t2\n0.75\t3\n1.5\tx\n"
LAB = b"0.0\t1.0\tN\n1.0\t2.0\tC:maj\n"


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_audio(
    path: Path, *, num_frames: int = 4_000, rate: int = 8_000, channels: int = 1
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full((num_frames, channels), 0.1), rate)


def member(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


# --- archives


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_unpack_takes_one_folder_whatever_the_compression(tmp_path: Path, mode: str) -> None:
    archive = write_tar(
        tmp_path / "labels/a.tar.gz",
        member("top/a/x.beats", b"1"),
        member("top/a/sub/y.beats", b"2"),
        member("top/ab/z.beats", b"3"),
        mode=mode,
    )
    unpack(archive, tmp_path / "labels/beats/a", inside="top/a")
    assert files_below(tmp_path / "labels/beats") == ["a/sub/y.beats", "a/x.beats"]
    unpack(archive, tmp_path / "labels/all")
    assert len(files_below(tmp_path / "labels/all/top")) == 3


def test_unpack_leaves_a_folder_that_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a/corrected.lab", LAB)
    unpack(tmp_path / "no-archive.tar.gz", tmp_path / "a")
    assert files_below(tmp_path) == ["a/corrected.lab"]


@pytest.mark.parametrize(
    "hostile",
    [
        member("../evil.txt", b"evil"),
        member("a/../../evil.txt", b"evil"),
        member("a/link", type=tarfile.SYMTYPE, linkname="../../../evil.txt"),
        member("a/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("a/link", type=tarfile.LNKTYPE, linkname="../../evil.txt"),
        member("a/device", type=tarfile.CHRTYPE),
    ],
    ids=["parent", "parent inside", "symlink", "absolute symlink", "hard link", "device"],
)
@pytest.mark.parametrize("inside", ["", "good"])
def test_an_archive_that_leaves_its_folder_is_refused(
    tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes], inside: str
) -> None:
    archive = write_tar(tmp_path / "root/a.tar.gz", member("good/x.lab", LAB), hostile)
    with raises("archive-unreadable", archive):
        unpack(archive, tmp_path / "root/labels", inside=inside)
    assert files_below(tmp_path) == ["root/a.tar.gz"]


def test_an_absolute_name_stays_inside(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", member(f"{tmp_path}/evil.txt", b"evil"))
    unpack(archive, tmp_path / "labels")
    assert not (tmp_path / "evil.txt").exists()
    assert [name.split("/")[0] for name in files_below(tmp_path)] == ["a.tar.gz", "labels"]


@pytest.mark.parametrize("inside", ["", "a"])
def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, inside: str) -> None:
    parts = [member(f"a/{number}", b"") for number in range(3)]
    archive = write_tar(tmp_path / "a.tar.gz", *parts, member("b", b""))
    with raises("archive-too-large", "3 files"):
        unpack(archive, tmp_path / "labels", inside=inside, max_entries=3)
    assert files_below(tmp_path) == ["a.tar.gz"]
    unpack(archive, tmp_path / "labels", inside=inside, max_entries=4)


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path) -> None:
    parts = [member(f"{number}", bytes(400)) for number in range(3)]
    archive = write_tar(tmp_path / "a.tar.gz", *parts)
    with raises("archive-too-large", "1,000 bytes"):
        unpack(archive, tmp_path / "labels", max_bytes=1_000)
    assert files_below(tmp_path) == ["a.tar.gz"]
    unpack(archive, tmp_path / "labels", max_bytes=1_200)
    assert len(files_below(tmp_path / "labels")) == 3


def test_an_archive_that_is_damaged_or_another_is_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar.gz", member("top/x.lab", bytes(range(256)) * 400))
    with raises("archive-missing-folder", "'other'"):
        unpack(archive, tmp_path / "labels", inside="other")
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"<html>log in</html>" * 100, b""):
        archive.write_bytes(content)
        with raises("archive-unreadable", archive):
            unpack(archive, tmp_path / "labels")
    assert files_below(tmp_path) == ["a.tar.gz"]


def test_a_file_with_another_md5_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "index.csv", b"abc")
    remote = RemoteFile(
        url="https://example.org/",
        path="index.csv",
        sha256=None,
        md5="900150983cd24fb0d6963f7d28e17f72",
    )
    assert fetch(remote, tmp_path).read_bytes() == b"abc"
    write(tmp_path / "index.csv", b"abcd")
    with raises("benchmark-checksum-mismatch", "md5 is e2fc714c", "900150983c"):
        fetch(remote, tmp_path)


# --- beats

SMALL = FoldedSet(name="small", num_tracks=8, audio_name=lambda track: track.removeprefix("small_"))
FOLDS = b"".join(f"small_{number:03}\t{number}\n".encode() for number in range(8))


def write_beat_archive(root: Path, name: str, tracks: list[str], folds: bytes = FOLDS) -> None:
    """Write an archive as GitHub makes it, but not compressed, to be quick."""
    top = f"{beat_annotations.ARCHIVE_FOLDER}/{name}"
    members = [member(f"{top}/annotations/beats/{track}.beats", BEATS) for track in tracks]
    members.append(member(f"{top}/8-folds.split", folds))
    write_tar(root / beat_annotations.ARCHIVE.path, *members, mode="w")


def small_beats() -> Benchmark:
    return dataclasses.replace(
        BENCHMARKS["ballroom"],
        remote_files=(),
        manifests=partial(beat_annotations.folded_manifests, folded=SMALL),
    )


def test_folds_become_eight_manifests(tmp_path: Path) -> None:
    write_beat_archive(tmp_path, "small", [f"small_{number:03}" for number in range(8)])
    for number in range(4):
        write_audio(tmp_path / f"Data/Waltz/{number:03}.WAV")
    for number in range(4, 8):
        write_audio(tmp_path / f"other/small_{number:03}.flac")
    write_audio(tmp_path / "other/003.flac")  # a second copy: the first by path is taken
    write_audio(tmp_path / "other/unknown.wav")
    prepared = prepare_benchmark(small_beats(), tmp_path)
    assert [one.path.name for one in prepared] == [
        "manifest.jsonl",
        *(f"fold-{fold}.jsonl" for fold in range(1, 8)),
    ]
    assert {(one.num_tracks, one.num_skipped) for one in prepared} == {(8, 0)}
    for fold, one in enumerate(prepared):
        sides = {track.id: track.split for track in read_manifest(one.path)}
        of_split = {split: {id for id in sides if sides[id] == split} for split in SPLITS}
        assert of_split["test"] == {f"small_{fold:03}"}
        assert of_split["validation"] == {f"small_{(fold + 1) % 8:03}"}
        assert len(of_split["train"]) == 6
    tracks = {track.id: track for track in read_manifest(tmp_path / "manifest.jsonl")}
    assert tracks["small_003"].path == tmp_path / "Data/Waltz/003.WAV"
    assert tracks["small_004"].path == tmp_path / "other/small_004.flac"
    beats = tracks["small_003"].columns["beats"]
    assert (tracks["small_003"].folder / beats).read_bytes() == BEATS
    assert read_dataset_info(tmp_path, name="?") == BENCHMARKS["ballroom"].info


def test_bad_beats_are_listed_with_their_lines_and_counted(tmp_path: Path) -> None:
    write_beat_archive(tmp_path, "small", [f"small_{number:03}" for number in range(8)])
    for number in range(1, 8):
        write_audio(tmp_path / f"audio/{number:03}.wav")
    beats = tmp_path / "labels/beats/small/annotations/beats"
    beat_annotations.folded_manifests(tmp_path, SMALL)
    write(beats / "small_005.beats", BAD_BEATS)
    values = (
        "audio/000.wav: ",
        f"audio/005.wav: {beats}/small_005.beats:3: ",
        "0.75",
        f"{beats}/small_005.beats:4: ",
        "'x'",
        "manifest.jsonl: 2 of 8",
    )
    with raises("benchmark-bad-tracks", "(3)", *values):
        prepare_benchmark(small_beats(), tmp_path)
    report = (tmp_path / BAD_TRACKS_NAME).read_text().splitlines()
    assert [line.split("\t")[0] for line in report] == ["audio/000.wav", *2 * ["audio/005.wav"]]
    assert not (tmp_path / "manifest.jsonl").exists()
    prepared = prepare_benchmark(small_beats(), tmp_path, on_bad_track="skip")
    assert {(one.num_tracks, one.num_skipped) for one in prepared} == {(6, 2)}


@pytest.mark.parametrize(
    ("folds", "code", "values"),
    [
        (FOLDS + b"small_009\t3\n", "benchmark-count-mismatch", ["9 tracks", "8"]),
        (FOLDS.replace(b"\t7", b"\t8"), "benchmark-labels-malformed", ["8-folds.split:8:"]),
        (FOLDS.replace(b"\t0", b" 0"), "benchmark-labels-malformed", ["8-folds.split:1:"]),
        (FOLDS + b"small_000\t3\n", "benchmark-labels-malformed", ["8-folds.split:9:"]),
        (FOLDS.replace(b"_007", b"_017"), "benchmark-labels-missing", ["small_017.beats"]),
    ],
)
def test_folds_that_are_not_as_published_are_refused(
    tmp_path: Path, folds: bytes, code: str, values: list[str]
) -> None:
    tracks = [f"small_{number:03}" for number in range(8)]
    write_beat_archive(tmp_path, "small", tracks, folds)
    with raises(code, *values):
        beat_annotations.folded_manifests(tmp_path, SMALL)


def test_folds_that_are_missing_are_a_message(tmp_path: Path) -> None:
    (tmp_path / "labels/beats/small").mkdir(parents=True)
    with raises("benchmark-labels-missing", "8-folds.split"):
        beat_annotations.folded_manifests(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("name", "track", "audio"),
    [
        ("ballroom", "ballroom_Albums-Macumba-01", "Albums-Macumba-01"),
        ("hainsworth", "hainsworth_001", "001"),
        ("smc", "smc_001", "SMC_001"),
    ],
)
def test_audio_has_the_names_of_its_owners(
    tmp_path: Path, name: str, track: str, audio: str
) -> None:
    write_beat_archive(tmp_path, name, [track], f"{track}\t0\n".encode())
    write_audio(tmp_path / f"somewhere/{audio}.wav")
    published = {"ballroom": 685, "hainsworth": 222, "smc": 217}
    folded = BENCHMARKS[name].manifests.keywords["folded"]
    assert folded.num_tracks == published[name]
    (row,) = beat_annotations.folded_manifests(tmp_path, dataclasses.replace(folded, num_tracks=1))[
        "manifest.jsonl"
    ]
    assert row["path"] == f"somewhere/{audio}.wav"


CLIPS = {
    name: {"extra": {"id": name}, "split": split, "y": name.split(".")[0]}
    for name, split in (("blues.00000", "train"), ("jazz.00001", "valid"), ("pop.00002", "test"))
}
CLIP_COUNTS = {"train": 1, "validation": 1, "test": 1}


def test_gtzan_rhythm_has_the_split_of_gtzan(tmp_path: Path) -> None:
    write(tmp_path / gtzan.LABELS.path, gzip.compress(json.dumps(CLIPS).encode()))
    write_beat_archive(
        tmp_path, "gtzan", ["gtzan_blues_00000", "gtzan_jazz_00001", "gtzan_pop_00002"]
    )
    for genre, name in (
        ("blues", "blues.00000.wav"),
        ("jazz", "jazz.00001.au"),
        ("pop", "pop.00002.wav"),
    ):
        write_audio(tmp_path / f"genres/{genre}/{name}")
    benchmark = dataclasses.replace(
        BENCHMARKS["gtzan-rhythm"],
        remote_files=(),
        manifests=partial(gtzan_rhythm.manifests, counts=CLIP_COUNTS),
    )
    (prepared,) = prepare_benchmark(benchmark, tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {id: track.split for id, track in tracks.items()} == {
        "blues.00000": "train",
        "jazz.00001": "validation",
        "pop.00002": "test",
    }
    assert tracks["jazz.00001"].path.suffix == ".au"
    assert tracks["jazz.00001"].columns == {
        "beats": "labels/beats/gtzan/annotations/beats/gtzan_jazz_00001.beats"
    }
    (tmp_path / tracks["jazz.00001"].columns["beats"]).unlink()
    with raises("benchmark-labels-missing", "(1)", "gtzan_jazz_00001.beats"):
        prepare_benchmark(benchmark, tmp_path)


def test_gtzan_rhythm_asserts_the_official_counts(shared_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    shutil.copyfile(shared_dir / "splits/gtzan_ff.json.gz", tmp_path / gtzan.LABELS.path)
    rows = gtzan.rows(tmp_path)
    tracks = [f"gtzan_{row['id'].replace('.', '_')}" for row in rows]
    write_beat_archive(tmp_path, "gtzan", tracks)
    found = gtzan_rhythm.manifests(tmp_path)["manifest.jsonl"]
    assert Counter(row["split"] for row in found) == {"train": 443, "validation": 197, "test": 290}


def test_the_annotations_are_pinned_by_their_commit(shared_dir: Path) -> None:
    table = (shared_dir / "splits/README.md").read_text()
    assert f"CPJKU/beat_this_annotations @ {beat_annotations.COMMIT}" in table
    assert beat_annotations.COMMIT in beat_annotations.ARCHIVE.url


# --- Isophonics

SONGS = (
    "The Beatles/01_-_Please_Please_Me/01_-_Misery",
    "The Beatles/07_-_Revolver/01_-_Taxman",
    "The Beatles/11_-_Abbey_Road/01_-_Come_Together",
    "Queen/Greatest Hits I/01 Bohemian Rhapsody",
    "Queen/Greatest Hits II/02 Under Pressure",
)


def write_isophonics(root: Path) -> None:
    for artist in ("The Beatles", "Queen"):
        members = [member(f"chordlab/{song}.lab", LAB) for song in SONGS if song.startswith(artist)]
        other = member(f"keylab/{artist}/other.lab", b"no chords")
        write_tar(root / f"labels/{artist} Annotations.tar.gz", *members, other)


def small_isophonics() -> Benchmark:
    return dataclasses.replace(
        isophonics.BENCHMARK, manifests=partial(isophonics.manifests, num_beatles_songs=3)
    )


def test_isophonics_is_split_by_album(tmp_path: Path) -> None:
    write_isophonics(tmp_path)
    for song in SONGS[:4]:
        write_audio(tmp_path / f"audio/{song}.flac")
    write_audio(tmp_path / f"audio/{SONGS[4].lower()}.WAV")
    (prepared,) = prepare_benchmark(small_isophonics(), tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {id: track.split for id, track in tracks.items()} == dict(
        zip(SONGS, ("validation", "test", "train", "train", "test"), strict=True)
    )
    taxman = tracks[SONGS[1]]
    assert taxman.path == tmp_path / f"audio/{SONGS[1]}.flac"
    assert taxman.columns["artist"] == "The Beatles"
    assert taxman.columns["album"] == "07_-_Revolver"
    assert (tmp_path / taxman.columns["chords"]).read_bytes() == LAB
    assert tracks[SONGS[4]].path.suffix == ".WAV"


def test_isophonics_needs_the_beatles(tmp_path: Path) -> None:
    values = ("0 songs of the Beatles", "180", f"{tmp_path}/labels")
    with raises("benchmark-count-mismatch", *values):
        prepare_benchmark(isophonics.BENCHMARK, tmp_path)
    write_isophonics(tmp_path)
    with raises("benchmark-count-mismatch", "3 songs"):
        prepare_benchmark(isophonics.BENCHMARK, tmp_path)


def test_a_song_with_two_annotations_is_refused(tmp_path: Path) -> None:
    write_isophonics(tmp_path)
    write(tmp_path / f"labels/mine/chordlab/{SONGS[1]}.lab", LAB)
    with raises("benchmark-duplicate-annotation", "01_-_Taxman'"):
        isophonics.rows(tmp_path, 3)


def test_bad_chords_are_listed_with_their_lines(tmp_path: Path) -> None:
    write_isophonics(tmp_path)
    for song in SONGS:
        write_audio(tmp_path / f"audio/{song}.wav")
    isophonics.rows(tmp_path, 3)
    lab = tmp_path / f"labels/The Beatles Annotations/chordlab/{SONGS[1]}.lab"
    lab.write_bytes(b"0.0 1.0 N\n1.0 2.0 H:maj\n2.0 1.5 C:maj\n")
    with raises("benchmark-bad-tracks", f"{lab}:2: 'H:maj'", f"{lab}:3: the end 1.5"):
        prepare_benchmark(small_isophonics(), tmp_path)
    (prepared,) = prepare_benchmark(small_isophonics(), tmp_path, on_bad_track="skip")
    assert (prepared.num_tracks, prepared.num_skipped) == (4, 1)


# --- Billboard

INDEX_HEADER = "id,chart_date,target_rank,actual_rank,title,artist,peak_rank,weeks_on_chart\n"
INDEX_LINES = (
    "1,1987-07-11,82,,,,,\n",
    "3,1961-07-03,56,57,I Don't Mind,James Brown,47,8\n",
    '4,1971-08-07,32,31,"You\'ve Got a Friend","Roberta Flack,Donny Hathaway",29,12\n',
    "6,1971-08-14,32,31,I don't mind,James Brown,29,12\n",
    "7,1971-08-21,32,31,Hit,Someone,29,12\n",
    "1005,1971-08-28,32,31,Hit,Someone,29,12\n",
)
SLOTS = ("0003", "0004", "0006", "0007", "1005")


def write_billboard(root: Path, index: str = INDEX_HEADER + "".join(INDEX_LINES)) -> None:
    write(root / billboard.INDEX.path, index.encode())
    members = [member(f"McGill-Billboard/{slot}/full.lab", LAB) for slot in SLOTS]
    # The published file is named .tar.gz and is compressed by xz.
    write_tar(root / billboard.ARCHIVE.path, *members, mode="w:xz")


def test_billboard_has_each_song_once(tmp_path: Path) -> None:
    write_billboard(tmp_path)
    for slot in ("0003", "0004", "0007"):
        write_audio(tmp_path / f"audio/{slot}.flac")
    write_audio(tmp_path / "audio/1005.wav")
    benchmark = dataclasses.replace(
        billboard.BENCHMARK, remote_files=(), manifests=partial(billboard.manifests, num_slots=5)
    )
    (prepared,) = prepare_benchmark(benchmark, tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {id: track.path.name for id, track in tracks.items()} == {
        "0003": "0003.flac",
        "0004": "0004.flac",
        "1005": "1005.wav",
    }
    assert tracks["1005"].split == "test"
    assert tracks["0003"].split == billboard.train_or_validation("JAMES BROWN") != "test"
    assert tracks["0004"].columns == {
        "chords": "labels/McGill-Billboard/0004/full.lab",
        "artist": "Roberta Flack,Donny Hathaway",
        "title": "You've Got a Friend",
    }


def test_billboard_draws_one_artist_in_ten_for_validation() -> None:
    sides = Counter(billboard.train_or_validation(f"artist {number}") for number in range(5_000))
    assert sides["validation"] / 5_000 == pytest.approx(0.1, abs=0.02)
    assert set(sides) == {"train", "validation"}
    spellings = ("The Band {}", "THE BAND {}", "the band {}")
    for number in range(50):
        assert len({billboard.train_or_validation(name.format(number)) for name in spellings}) == 1


@pytest.mark.parametrize(
    ("index", "num_slots", "code", "values"),
    [
        (
            INDEX_HEADER + "".join(INDEX_LINES),
            890,
            "benchmark-count-mismatch",
            ["5 annotations", "890"],
        ),
        (INDEX_HEADER + "".join(INDEX_LINES[:4]), 5, "benchmark-count-mismatch", ["2 of them"]),
        ("<html>\n<body>\n", 5, "benchmark-labels-malformed", ["id, artist and title"]),
        (INDEX_HEADER + "x,1,2,3,4,5,6,7\n", 5, "benchmark-labels-malformed", ["'x'"]),
    ],
)
def test_billboard_labels_that_are_not_as_published_are_refused(
    tmp_path: Path, index: str, num_slots: int, code: str, values: list[str]
) -> None:
    write_billboard(tmp_path, index)
    with raises(code, *values):
        billboard.rows(tmp_path, num_slots)


# --- MAESTRO

PERFORMANCES = (
    ("Frédéric Chopin", "Étude, Op. 10", "train", "2018/a.midi", "2018/a.wav"),
    ("Franz Liszt", "Sonata", "validation", "2018/b.midi", "2018/b.wav"),
    ("Franz Liszt", "Waltz", "test", "2004/c.midi", "2004/c.wav"),
)
MAESTRO_COUNTS = {"train": 1, "validation": 1, "test": 1}


def write_midi(path: Path, pitches: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    track = mido.MidiTrack()
    for pitch in pitches:
        track.append(mido.Message("note_on", note=pitch, velocity=64))
        track.append(mido.Message("note_off", note=pitch, time=480))
    mido.MidiFile(tracks=[track]).save(path)


def write_maestro(root: Path, change: Callable[[str], str] = str) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([maestro.COLUMNS, *PERFORMANCES])
    write(root / maestro.LABELS.path, change(table.getvalue()).encode())
    for _, _, _, midi, audio in PERFORMANCES:
        write_midi(root / maestro.FOLDER / midi, (60, 64))
        write_audio(root / maestro.FOLDER / audio)


def small_maestro() -> Benchmark:
    return dataclasses.replace(
        maestro.BENCHMARK, manifests=partial(maestro.manifests, counts=MAESTRO_COUNTS)
    )


def test_maestro_becomes_a_manifest_that_reads_back(tmp_path: Path) -> None:
    write_maestro(tmp_path)
    (prepared,) = prepare_benchmark(small_maestro(), tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {id: track.split for id, track in tracks.items()} == {
        "2018/a": "train",
        "2018/b": "validation",
        "2004/c": "test",
    }
    assert tracks["2018/a"].path == tmp_path / "maestro-v3.0.0/2018/a.wav"
    assert tracks["2018/a"].columns == {
        "notes": "maestro-v3.0.0/2018/a.midi",
        "composer": "Frédéric Chopin",
        "title": "Étude, Op. 10",
    }


def test_bad_notes_are_listed_with_their_events(tmp_path: Path) -> None:
    write_maestro(tmp_path)
    midi = tmp_path / "maestro-v3.0.0/2018/b.midi"
    write_midi(midi, (60, 109, 20))
    row = maestro.rows(tmp_path, MAESTRO_COUNTS)[1]
    assert [problem.split(": ")[0] for problem in check_notes(tmp_path, row)] == 2 * [str(midi)]
    midi.write_bytes(b"RIFF")
    (tmp_path / "maestro-v3.0.0/2004/c.midi").unlink()
    missing = tmp_path / "maestro-v3.0.0/2004/c.midi"
    with raises("benchmark-bad-tracks", "(2)", f"b.wav: {midi}: ", f"c.wav: {missing}: "):
        prepare_benchmark(small_maestro(), tmp_path)
    (prepared,) = prepare_benchmark(small_maestro(), tmp_path, on_bad_track="skip")
    assert (prepared.num_tracks, prepared.num_skipped) == (1, 2)


@pytest.mark.parametrize(
    ("change", "code", "value"),
    [
        (
            lambda text: text.replace("canonical_composer", "composer"),
            "benchmark-labels-malformed",
            "column canonical_composer",
        ),
        (
            lambda text: text.replace("validation", "dev"),
            "benchmark-labels-malformed",
            "csv:3: the split 'dev'",
        ),
        (
            lambda text: text.replace(",test,", ",train,"),
            "benchmark-count-mismatch",
            "2 / 1 / 0",
        ),
        (
            lambda text: "",
            "benchmark-labels-malformed",
            "canonical_composer, canonical_title",
        ),
    ],
)
def test_a_maestro_table_that_is_not_as_published_is_refused(
    tmp_path: Path, change: Callable[[str], str], code: str, value: str
) -> None:
    write_maestro(tmp_path, change)
    with raises(code, value):
        maestro.rows(tmp_path, MAESTRO_COUNTS)


def test_maestro_asserts_the_published_counts(tmp_path: Path) -> None:
    write_maestro(tmp_path)
    with raises("benchmark-count-mismatch", "962 / 137 / 177"):
        maestro.rows(tmp_path)


# --- MUSDB18

FOLDERS = ("train/A - One", "train/B - Two", "test/C - Three")
MUSDB_COUNTS = {"train": 1, "validation": 1, "test": 1}


def write_song(folder: Path) -> None:
    for name in ("mixture", *musdb18.STEMS):
        write_audio(folder / f"{name}.wav", channels=2)


def small_musdb(counts: Mapping[str, int] = MUSDB_COUNTS) -> Benchmark:
    return dataclasses.replace(
        musdb18.BENCHMARK,
        manifests=partial(musdb18.manifests, counts=counts, validation_songs=("B - Two",)),
    )


@pytest.fixture
def musdb_root(tmp_path: Path) -> Path:
    for folder in FOLDERS:
        write_song(tmp_path / folder)
    write(tmp_path / "train/.DS_Store", b"")
    write(tmp_path / "test/.cache/index", b"")
    return tmp_path


def test_musdb_becomes_a_manifest_that_reads_back(musdb_root: Path) -> None:
    (prepared,) = prepare_benchmark(small_musdb(), musdb_root)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {id: track.split for id, track in tracks.items()} == {
        "A - One": "train",
        "B - Two": "validation",
        "C - Three": "test",
    }
    assert tracks["B - Two"].path == musdb_root / "train/B - Two/mixture.wav"
    assert tracks["B - Two"].columns == {"stems": "train/B - Two", "artist": "B"}


def test_stems_that_do_not_fit_are_all_listed(musdb_root: Path) -> None:
    song = musdb_root / FOLDERS[0]
    write_audio(song / "bass.wav", num_frames=3_999, channels=2)
    write_audio(song / "drums.wav", channels=1)
    write_audio(song / "other.wav", rate=16_000, channels=2)
    (song / "vocals.wav").unlink()
    write(musdb_root / FOLDERS[2] / "bass.wav", b"RIFF")
    values = (
        f"{song}/bass.wav: 3999 frames at 8000 Hz, 2 channels",
        f"{song}/drums.wav: 4000 frames at 8000 Hz, 1 channels",
        f"{song}/other.wav: 4000 frames at 16000 Hz",
        f"{song}/vocals.wav: ",
        f"{musdb_root / FOLDERS[2]}/bass.wav: ",
    )
    with raises("benchmark-bad-tracks", "(5)", *values):
        prepare_benchmark(small_musdb(), musdb_root)
    (prepared,) = prepare_benchmark(small_musdb(), musdb_root, on_bad_track="skip")
    assert (prepared.num_tracks, prepared.num_skipped) == (1, 2)


def test_a_mixture_that_is_damaged_is_listed_once(musdb_root: Path) -> None:
    row = musdb18.rows(musdb_root, MUSDB_COUNTS, ("B - Two",))[0]
    write(musdb_root / row["path"], b"RIFF")
    assert check_stems(musdb_root, row, stems=musdb18.STEMS) == []
    with raises("benchmark-bad-tracks", "(1):"):
        prepare_benchmark(small_musdb(), musdb_root)


def test_a_musdb_layout_that_is_not_as_published_is_refused(musdb_root: Path) -> None:
    with raises("benchmark-audio-missing", "(14)"):
        prepare_benchmark(musdb18.BENCHMARK, musdb_root)
    counts = {"train": 86, "validation": 1, "test": 50}
    values = ("1 / 1 / 1", "86 / 1 / 50", "musdb18hq.zip")
    with raises("benchmark-count-mismatch", *values):
        prepare_benchmark(small_musdb(counts), musdb_root)
    shutil.rmtree(musdb_root / "test")
    with raises("benchmark-audio-missing", musdb_root / "test"):
        prepare_benchmark(small_musdb(), musdb_root)


def test_musdb_has_the_published_counts() -> None:
    assert musdb18.COUNTS == {"train": 86, "validation": 14, "test": 50}
    assert len(musdb18.VALIDATION_SONGS) == musdb18.COUNTS["validation"]


# --- all of them


@pytest.mark.parametrize("name", NAMES)
def test_a_frame_benchmark_states_what_it_is(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.recipes == (NAMES[name],)
    assert benchmark.check_labels is not None
    assert all(dataclasses.asdict(benchmark.info).values())
    assert benchmark.info.citation.count("{") == benchmark.info.citation.count("}")
    assert "/data/here" in benchmark.instructions.format(root="/data/here")
    assert "{root}" not in benchmark.instructions.format(root="/data/here")
    assert all(remote.url.startswith("https://") for remote in benchmark.remote_files)
