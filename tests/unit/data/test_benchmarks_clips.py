"""Public data sets of the clip tasks: official label files, layouts on disk, and every message."""

import dataclasses
import functools
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from support.messages import raises

from m2v_finetune.data.benchmarks import (
    BENCHMARKS,
    Benchmark,
    emomusic,
    giantsteps,
    gtzan,
    jukemir,
    nsynth,
    prepare_benchmark,
    vocalset,
)
from m2v_finetune.data.benchmarks.benchmark import RemoteFile, Row, require_counts
from m2v_finetune.data.benchmarks.fetching import fetch
from m2v_finetune.data.manifest import SPLITS, read_dataset_info, read_manifest
from m2v_finetune.labels.keys import KEYS, parse_key

Rows = Callable[[Path], list[Row]]

RECIPES = {
    "magnatagatune": ("tagging",),
    "mtg-jamendo": ("tagging",),
    "gtzan": ("genre",),
    "giantsteps": ("key",),
    "emomusic": ("emotion",),
    "nsynth": ("instrument", "pitch"),
    "vocalset": ("singer", "technique"),
}


def write_audio(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    container = {".mp3": "MP3", ".au": "AU", ".wav": "WAV"}[path.suffix]
    soundfile.write(path, tone, 16_000, format=container)


def write_labels(root: Path, labels: RemoteFile, clips: dict[str, dict[str, Any]]) -> None:
    target = root / labels.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(json.dumps(clips).encode()))


def small(module: ModuleType, counts: dict[str, int]) -> Benchmark:
    """The data set with other counts, and label files that are there already."""
    benchmark: Benchmark = module.BENCHMARK
    return dataclasses.replace(
        benchmark,
        remote_files=(),
        manifests=functools.partial(module.manifests, counts=counts),
    )


ONE_EACH = {"train": 1, "validation": 1, "test": 1}


@pytest.mark.parametrize("name", RECIPES)
def test_a_benchmark_names_its_recipes(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.recipes == RECIPES[name]
    assert all(dataclasses.asdict(benchmark.info).values())
    assert benchmark.info.citation.count("{") == benchmark.info.citation.count("}")
    assert "/data/here" in benchmark.instructions.format(root="/data/here")
    assert all(remote.url.startswith("https://") for remote in benchmark.remote_files)


def test_counts_that_differ_are_named() -> None:
    rows = [{"split": "train"}, {"split": "train"}, {"split": "test"}]
    require_counts(rows, {"train": 2, "validation": 0, "test": 1}, source=Path("labels"))
    with raises("benchmark-count-mismatch", "labels", "2 / 0 / 1", "1 / 1 / 1", "Do it."):
        require_counts(rows, ONE_EACH, source=Path("labels"), advice="Do it.")


# --- label files of jukemir

OFFICIAL = [
    (gtzan, (443, 197, 290)),
    (giantsteps, (923, 236, 604)),
    (emomusic, (504, 115, 125)),
]


def official_rows(module: ModuleType, shared_dir: Path, root: Path) -> list[Row]:
    target = root / module.LABELS.path
    target.parent.mkdir()
    shutil.copyfile(shared_dir / "splits" / target.name, target)
    fetch(module.LABELS, root)  # in place, with the right sum
    return list(module.rows(root))


@pytest.mark.parametrize(("module", "counts"), OFFICIAL, ids=lambda value: str(value)[-40:])
def test_the_official_counts_and_sums(
    module: ModuleType, counts: tuple[int, ...], shared_dir: Path, tmp_path: Path
) -> None:
    rows = official_rows(module, shared_dir, tmp_path)
    splits = Counter(row["split"] for row in rows)
    assert tuple(splits[split] for split in SPLITS) == counts
    assert len({row["id"] for row in rows}) == len({row["path"] for row in rows}) == sum(counts)
    table = (shared_dir / "splits/README.md").read_text()
    assert " / ".join(str(count) for count in counts) in table
    assert module.LABELS.url == (
        "https://raw.githubusercontent.com/p-lambda/jukemir/"
        f"241555645682d18fb909775c54014edfc3a03163/metadata/{Path(module.LABELS.path).name}"
    )


def test_the_official_gtzan_split(shared_dir: Path, tmp_path: Path) -> None:
    rows = official_rows(gtzan, shared_dir, tmp_path)
    by_id = {row["id"]: row for row in rows}
    assert len({row["genre"] for row in rows}) == 10
    assert by_id["jazz.00054"]["split"] == "train"
    assert by_id["blues.00000"]["path"] == "genres/blues/blues.00000.wav"
    assert all(row["id"].startswith(row["genre"] + ".") for row in rows)


def test_the_official_giantsteps_keys(shared_dir: Path, tmp_path: Path) -> None:
    rows = official_rows(giantsteps, shared_dir, tmp_path)
    assert {parse_key(row["key"]) for row in rows} == set(KEYS)
    assert len({row["key"] for row in rows}) == 24
    by_id = {row["id"]: row for row in rows}
    assert by_id["5061"] == {
        "id": "5061",
        "path": "audio/5061.LOFI.mp3",
        "split": "train",
        "key": "Eb minor",
        "genre": "trance",
        "clips": ["0005061-0", "0005061-1", "0005061-2", "0005061-3"],
        "artist": "Philippe Van Mullem",
    }
    assert {row["split"] for row in rows if "artist" not in row} == {"test"}
    artists = {
        split: {
            artist.strip()
            for row in rows
            if row["split"] == split
            for artist in row["artist"].split(",")
        }
        for split in ("train", "validation")
    }
    assert not artists["train"] & artists["validation"]


def test_the_official_emomusic_units_and_artists(shared_dir: Path, tmp_path: Path) -> None:
    rows = official_rows(emomusic, shared_dir, tmp_path)
    values = [row[column] for row in rows for column in ("arousal", "valence")]
    assert (min(values), max(values)) == (1.6, 8.4)
    assert {row["id"]: (row["arousal"], row["valence"]) for row in rows}["2"] == (3.1, 3.0)
    artists = {split: {row["artist"] for row in rows if row["split"] == split} for split in SPLITS}
    assert not artists["train"] & artists["validation"]
    assert len(artists["test"]) == 112
    assert len(artists["test"] & (artists["train"] | artists["validation"])) == 52
    # The label file's own numbers are these, standardised on what is not test.
    clips = jukemir.read_labels(tmp_path, emomusic.LABELS).values()
    development = [row for row in rows if row["split"] != "test"]
    for location, column in enumerate(("arousal", "valence")):
        known = np.array([row[column] for row in development])
        wanted = [(row[column] - known.mean()) / known.std() for row in rows]
        np.testing.assert_allclose([clip["y"][location] for clip in clips], wanted, atol=1e-12)


def gtzan_clip(name: str, split: str) -> dict[str, Any]:
    return {"extra": {"id": name, "uid": "?"}, "split": split, "y": name.split(".")[0]}


GTZAN_CLIPS = {
    "a": gtzan_clip("blues.00001", "train"),
    "b": gtzan_clip("jazz.00054", "valid"),
    "c": gtzan_clip("rock.00002", "test"),
}


def test_gtzan_takes_wav_and_au(tmp_path: Path) -> None:
    write_labels(tmp_path, gtzan.LABELS, GTZAN_CLIPS)
    for name in ("blues/blues.00001.au", "jazz/jazz.00054.wav", "rock/rock.00002.wav"):
        write_audio(tmp_path / "genres" / name)
    write_audio(tmp_path / "genres/rock/rock.00002.au")
    (prepared,) = prepare_benchmark(small(gtzan, ONE_EACH), tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert tracks["blues.00001"].path == tmp_path / "genres/blues/blues.00001.au"
    assert tracks["rock.00002"].path == tmp_path / "genres/rock/rock.00002.wav"
    assert tracks["jazz.00054"].split == "validation"
    assert tracks["jazz.00054"].columns == {"genre": "jazz", "clips": ["b"]}
    assert read_dataset_info(tmp_path, name="?") == gtzan.INFO


def test_gtzan_without_audio_or_with_a_damaged_clip(tmp_path: Path) -> None:
    write_labels(tmp_path, gtzan.LABELS, GTZAN_CLIPS)
    benchmark = small(gtzan, ONE_EACH)
    missing = f"{tmp_path}/genres/blues/blues.00000.wav"
    with raises("benchmark-audio-missing", "none of 3 files", missing):
        prepare_benchmark(benchmark, tmp_path)
    for name in ("blues/blues.00001.wav", "rock/rock.00002.wav"):
        write_audio(tmp_path / "genres" / name)
    damaged = tmp_path / "genres/jazz/jazz.00054.wav"
    damaged.parent.mkdir()
    damaged.write_bytes(b"RIFF but no more")
    with raises("benchmark-bad-tracks", "(1)", "genres/jazz/jazz.00054.wav: "):
        prepare_benchmark(benchmark, tmp_path)
    (prepared,) = prepare_benchmark(benchmark, tmp_path, on_bad_track="skip")
    assert (prepared.num_tracks, prepared.num_skipped) == (2, 1)


def giantsteps_clip(number: int, split: str, key: str, index: int = 0) -> dict[str, Any]:
    extra: dict[str, Any] = {"id": number, "genre": "house\n"}
    if split != "test":
        extra["beatport_metadata"] = {"ARTIST": "One, Two"}
    return {
        "clip": {"audio_uid": f"{number:07d}", "clip_idx": index},
        "extra": extra,
        "split": split,
        "y": key,
    }


GIANTSTEPS_CLIPS = {
    "0005061-0": giantsteps_clip(5061, "train", "Eb minor"),
    "0005061-1": giantsteps_clip(5061, "train", "Eb minor", index=1),
    "0014720-0": giantsteps_clip(14720, "valid", "D minor"),
    "0010089-0": giantsteps_clip(10089, "test", "D major"),
}


def test_giantsteps_has_one_row_a_track_under_either_name(tmp_path: Path) -> None:
    write_labels(tmp_path, giantsteps.LABELS, GIANTSTEPS_CLIPS)
    for name in ("5061", "14720", "0010089"):
        write_audio(tmp_path / f"audio/{name}.LOFI.mp3")
    (prepared,) = prepare_benchmark(small(giantsteps, ONE_EACH), tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {track.id: track.path.name for track in tracks.values()} == {
        "5061": "5061.LOFI.mp3",
        "14720": "14720.LOFI.mp3",
        "10089": "0010089.LOFI.mp3",
    }
    assert tracks["5061"].columns == {
        "key": "Eb minor",
        "genre": "house",
        "clips": ["0005061-0", "0005061-1"],
        "artist": "One, Two",
    }
    assert tracks["10089"].columns == {
        "key": "D major",
        "genre": "house",
        "clips": ["0010089-0"],
    }


def test_giantsteps_without_audio_states_where_it_is(tmp_path: Path) -> None:
    write_labels(tmp_path, giantsteps.LABELS, GIANTSTEPS_CLIPS)
    values = ("none of 3 files", "audio_dl.sh", f"{tmp_path}/audio")
    with raises("benchmark-audio-missing", *values):
        prepare_benchmark(small(giantsteps, ONE_EACH), tmp_path)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    clips = GIANTSTEPS_CLIPS | {"0014720-0": giantsteps_clip(14720, "valid", "D dorian")}
    write_labels(tmp_path, giantsteps.LABELS, clips)
    with raises("benchmark-labels-malformed", "(1):", "track 14720: 'D dorian'"):
        giantsteps.rows(tmp_path, ONE_EACH)


def emomusic_clip(number: int, split: str) -> dict[str, Any]:
    song = {"song_id": str(number), "file_name": f"{number}.mp3", "Artist": f"Artist {number}"}
    ratings = {"mean_arousal": "3.1", "mean_valence": "5"}
    return {
        "extra": {"songs_info": song, "static_annotations": ratings},
        "split": split,
        "y": [-1.2, -1.6],
    }


EMOMUSIC_CLIPS = {
    "0002": emomusic_clip(2, "valid"),
    "0003": emomusic_clip(3, "test"),
    "0010": emomusic_clip(10, "train"),
}


def test_emomusic_keeps_the_ratings(tmp_path: Path) -> None:
    write_labels(tmp_path, emomusic.LABELS, EMOMUSIC_CLIPS)
    benchmark = small(emomusic, ONE_EACH)
    with raises("benchmark-audio-missing", "none of 3 files", f"-C {tmp_path}"):
        prepare_benchmark(benchmark, tmp_path)
    for number in (2, 3, 10):
        write_audio(tmp_path / f"clips_45seconds/{number}.mp3")
    (prepared,) = prepare_benchmark(benchmark, tmp_path)
    tracks = {track.id: track for track in read_manifest(prepared.path)}
    assert {track.id: track.split for track in tracks.values()} == {
        "2": "validation",
        "3": "test",
        "10": "train",
    }
    assert tracks["2"].path == tmp_path / "clips_45seconds/2.mp3"
    assert tracks["2"].columns == {
        "arousal": 3.1,
        "valence": 5.0,
        "artist": "Artist 2",
        "clips": ["0002"],
    }


@pytest.mark.parametrize(
    ("module", "clips"),
    [(gtzan, GTZAN_CLIPS), (giantsteps, GIANTSTEPS_CLIPS), (emomusic, EMOMUSIC_CLIPS)],
)
def test_label_files_without_the_published_counts_are_refused(
    module: ModuleType, clips: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    write_labels(tmp_path, module.LABELS, clips)
    with raises("benchmark-count-mismatch", ".json.gz", "1 / 1 / 1"):
        module.manifests(tmp_path)


# --- NSynth


def write_notes(root: Path, folder: str, names: dict[str, tuple[str, int]]) -> None:
    (root / folder).mkdir(parents=True)
    notes = {
        name: {"instrument_family_str": family, "pitch": pitch, "velocity": 25}
        for name, (family, pitch) in names.items()
    }
    (root / folder / "examples.json").write_text(json.dumps(notes))


@pytest.fixture
def nsynth_root(tmp_path: Path) -> Path:
    write_notes(tmp_path, "nsynth-train", {"synth_lead_synthetic_001-060-127": ("synth_lead", 60)})
    write_notes(tmp_path, "nsynth-valid", {"bass_electronic_018-022-100": ("bass", 22)})
    write_notes(tmp_path, "nsynth-test", {"bass_synthetic_009-010-025": ("bass", 10)})
    return tmp_path


def test_nsynth_reads_the_labels_of_its_archives(nsynth_root: Path) -> None:
    for folder, name in (
        ("nsynth-train", "synth_lead_synthetic_001-060-127"),
        ("nsynth-valid", "bass_electronic_018-022-100"),
        ("nsynth-test", "bass_synthetic_009-010-025"),
    ):
        write_audio(nsynth_root / folder / "audio" / f"{name}.wav")
    (prepared,) = prepare_benchmark(small(nsynth, ONE_EACH), nsynth_root)
    tracks = {track.split: track for track in read_manifest(prepared.path)}
    assert set(tracks) == set(SPLITS)
    assert tracks["train"].columns == {"instrument": "synth_lead", "pitch": 60}
    assert tracks["validation"].id == "bass_electronic_018-022-100"
    wanted = nsynth_root / "nsynth-valid/audio/bass_electronic_018-022-100.wav"
    assert tracks["validation"].path == wanted


def test_nsynth_states_what_is_missing(nsynth_root: Path, tmp_path_factory: Any) -> None:
    with raises("benchmark-audio-missing", "none of 3 files", f"{nsynth_root}/nsynth-train/audio"):
        prepare_benchmark(small(nsynth, ONE_EACH), nsynth_root)
    with raises("benchmark-count-mismatch", "289205 / 12678 / 4096"):
        nsynth.manifests(nsynth_root)
    (nsynth_root / "nsynth-valid/examples.json").write_text("{")
    with raises("benchmark-labels-malformed", "nsynth-valid/examples.json"):
        nsynth.rows(nsynth_root, ONE_EACH)
    (nsynth_root / "nsynth-valid/examples.json").unlink()
    values = ("(1):", f"{nsynth_root}/nsynth-valid", "nsynth-valid.jsonwav.tar.gz")
    with raises("benchmark-labels-missing", *values):
        prepare_benchmark(small(nsynth, ONE_EACH), nsynth_root)
    empty = tmp_path_factory.mktemp("empty")
    with raises("benchmark-labels-missing", "(3)"):
        prepare_benchmark(nsynth.BENCHMARK, empty)


# --- VocalSet


def vocalset_names() -> list[str]:
    """Return three recordings of every technique, one that is not of the ten among them, by every singer."""
    return [
        f"{folder}/scales/{technique}/{singer}_scales_{technique}_{vowel}.wav"
        for folder, singer in vocalset.SINGERS.items()
        for technique in (*vocalset.TECHNIQUES, "forte")
        for vowel in "aei"
    ]


def write_vocalset(root: Path, names: list[str], folder: str = "FULL") -> None:
    tone = root / "tone.wav"
    write_audio(tone)
    content = tone.read_bytes()
    for name in names:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


ODD_NAMES = {
    "male8/excerpts/vibrato/m9_caro_vibrato.wav": ("m8", "vibrato"),
    "male9/excerpts/vibrato/m9_caro_vibrato.wav": ("m9", "vibrato"),
    "male10/excerpts/vibrato/caro_vibrato.wav": ("m10", "vibrato"),
    "female2/arpeggios/vibrado/f2_arpeggios_vibrato_a.wav": ("f2", "vibrato"),
}
LEFT_OUT = (
    "female2/scales/vibrato/f2_scales_vibrato_a(1).wav",
    "female2/scales/vibrato/._f2_scales_vibrato_a.wav",
)


def test_vocalset_becomes_two_manifests(tmp_path: Path) -> None:
    names = vocalset_names()
    write_vocalset(tmp_path, [*names, *ODD_NAMES, *LEFT_OUT])
    prepared = prepare_benchmark(vocalset.BENCHMARK, tmp_path)
    assert [one.path.name for one in prepared] == ["singer.jsonl", "technique.jsonl"]
    singers = {track.id: track for track in read_manifest(tmp_path / "singer.jsonl")}
    techniques = {track.id: track for track in read_manifest(tmp_path / "technique.jsonl")}
    assert len(singers) == len(names) + len(ODD_NAMES)
    assert {track.columns["singer"] for track in singers.values()} == set(vocalset.SINGERS.values())
    assert {track.columns["technique"] for track in techniques.values()} == set(vocalset.TECHNIQUES)
    assert set(singers) - set(techniques) == {
        name.removesuffix(".wav") for name in names if "/forte/" in name
    }
    for name, (singer, technique) in ODD_NAMES.items():
        track = singers[name.removesuffix(".wav")]
        assert track.columns == {"singer": singer}
        assert track.path == tmp_path / "FULL" / name
        assert techniques[track.id].columns == {"technique": technique}

    shares = Counter(track.split for track in singers.values())
    assert shares["test"] / len(singers) == pytest.approx(0.2, abs=0.04)
    assert shares["validation"] / len(singers) == pytest.approx(0.32, abs=0.04)
    test_singers = {
        singers[track.id].columns["singer"]
        for track in techniques.values()
        if track.split == "test"
    }
    assert test_singers == {"f2", "f8", "m3", "m5", "m10"}
    learned = [track for track in techniques.values() if track.split != "test"]
    assert not test_singers & {singers[track.id].columns["singer"] for track in learned}
    validation = sum(track.split == "validation" for track in learned)
    assert validation / len(learned) == pytest.approx(0.4, abs=0.05)


SINGER_SPLITS = ["train", "validation", "train", "validation", "train", "test", "train", "train"]
TECHNIQUE_SPLITS = [
    "train",
    "train",
    "validation",
    "train",
    "validation",
    "train",
    "validation",
    "validation",
]


def test_vocalset_splits_do_not_depend_on_anything_but_the_name(tmp_path: Path) -> None:
    # Written down once: another split would make older numbers incomparable.
    first = "female1/arpeggios/belt/f1_arpeggios_belt_c_a"
    assert [vocalset.singer_split(f"{first}{number}") for number in range(8)] == SINGER_SPLITS
    assert [vocalset.technique_split(f"{first}{n}", "f1") for n in range(8)] == TECHNIQUE_SPLITS
    assert vocalset.technique_split(first, "m10") == "test"
    names = vocalset_names()
    write_vocalset(tmp_path / "small", names)
    write_vocalset(tmp_path / "large", names, folder="data_by_singer")
    small_rows, large_rows = (
        {row["id"]: row["split"] for row in vocalset.manifests(tmp_path / folder)["singer.jsonl"]}
        for folder in ("small", "large")
    )
    assert small_rows == large_rows
    assert len(small_rows) == len(names)


def test_vocalset_states_what_is_missing(tmp_path: Path) -> None:
    values = ("FULL", "data_by_singer", f"VocalSet11.zip -d {tmp_path}")
    with raises("benchmark-audio-missing", *values):
        prepare_benchmark(vocalset.BENCHMARK, tmp_path)
    names = vocalset_names()
    write_vocalset(tmp_path, [name for name in names if not name.startswith("male11/")])
    with raises("benchmark-audio-missing", "(1):", "FULL/male11"):
        prepare_benchmark(vocalset.BENCHMARK, tmp_path)
    write_vocalset(tmp_path, [name for name in names if name.startswith("male11/")])
    shutil.rmtree(tmp_path / "FULL/female1")
    write_vocalset(tmp_path, [name for name in names if name.startswith("female1/scales/belt")])
    prepare_benchmark(vocalset.BENCHMARK, tmp_path)
    for folder in (tmp_path / "FULL").glob("*/scales/trillo"):
        if vocalset.SINGERS[folder.parts[-3]] in vocalset.TECHNIQUE_TEST_SINGERS:
            shutil.rmtree(folder)
    with raises("benchmark-audio-missing", "(1):", "trillo, test"):
        prepare_benchmark(vocalset.BENCHMARK, tmp_path)
