"""Random trees of folders, links and strange names: a track is read once, or counted and named.

`M2V_FUZZ_INPUTS` sets how many trees are made.
"""

import logging
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.folders import AUDIO_SUFFIXES, SYSTEM_FOLDERS
from m2v_finetune.data.manifest import SPLIT_WORDS
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.errors import UserError

NUM_TREES = int(os.environ.get("M2V_FUZZ_INPUTS", "0")) or 60
LABELS = ["jazz", "pop", "rock"]
STRANGE = [
    "new\nline",
    "-rf",
    "🎵",
    " space ",
    "a;b",
    "%20",
    "back\\slash",
    '"',
    "caf\udce9",
    "NUL",
]
SUFFIXES = [".wav", ".WAV", ".mp3", ".flac", ".mid", ".txt", "", ".wav.part", ".json"]


def grow(folder: Path, rng: random.Random) -> list[Path]:
    """Fill a folder; return what links may lead to."""
    kinds = {
        "labels": [LABELS],
        "splits": [["train", "valid", "Testing"], LABELS],
        "other words": [["training", "dev", "eval"], LABELS],
        "sets": [["train_set", "val_set", "test_set"], LABELS],
        "mixture": [["train", "test", "unlabelled", *LABELS[:1]], LABELS],
        "above": [["data"], ["train", "validation", "evaluation"], LABELS],
        "strange": [rng.sample(STRANGE, 3)],
        "below": [LABELS, ["train", "test"]],
        "mixture below": [LABELS, ["train", "test", "other"]],
        "far above": [["a"], ["b"], ["trainset", "devData", "test"], LABELS],
        "above labels": [["music"], LABELS],
    }
    levels = kinds[rng.choice(list(kinds))]
    folders = [folder]
    for names in levels:
        folders = [above / name for above in folders for name in names if rng.random() < 0.9]
    folders += [
        below / rng.choice(["album", "lost+found", ".hidden", *STRANGE]) for below in folders[:2]
    ]
    folders += [folder] if rng.random() < 0.2 else []
    for number, location in enumerate(folders):
        location.mkdir(parents=True, exist_ok=True)
        for count in range(rng.randint(0, 2)):
            name = rng.choice(["a", "b", ".dot", *STRANGE])
            (location / f"{name}{number}{count}{rng.choice(SUFFIXES)}").write_bytes(b"x")
    return folders


def link(folder: Path, targets: list[Path], rng: random.Random) -> None:
    """Add links: to folders and files inside and outside, upwards, to each other, to nothing."""
    for number in range(rng.randint(0, 3)):
        location = rng.choice(targets)
        files = [path for path in folder.rglob("*") if path.is_file()] or [folder]
        target = rng.choice(
            [rng.choice(targets), rng.choice(files), folder, folder.parent, Path("/nowhere/at/all")]
        )
        name = f"link{number}{rng.choice(['', '.wav', target.suffix])}"
        if not os.path.lexists(location / name):
            (location / name).symlink_to(target)


def is_seen(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    return not any(part.startswith(".") or part in SYSTEM_FOLDERS for part in parts)


def files_in(folder: Path, above: tuple[str, ...] = ()) -> set[str]:
    """All audio that can be reached, without links; written otherwise than the package does it."""
    real = os.path.realpath(folder)
    if real in above:
        return set()
    found: set[str] = set()
    for name in os.listdir(folder):  # noqa: PTH208
        path = folder / name
        if name.startswith(".") or name in SYSTEM_FOLDERS:
            continue
        if path.is_dir():
            found |= files_in(path, (*above, real))
        elif path.suffix.lower() in AUDIO_SUFFIXES:
            found.add(os.path.realpath(path))
    return found


@pytest.mark.parametrize("label_column", ["tags", None])
def test_no_track_of_a_tree_is_lost_in_silence(tmp_path, label_column, caplog, record_property):
    outcomes: Counter[str] = Counter()
    for seed in range(NUM_TREES):
        rng = random.Random(seed)
        top = tmp_path / str(seed)
        folder = top / "music"
        folder.mkdir(parents=True)
        (top / "outside" / "inner").mkdir(parents=True)
        for name in ("x.wav", "inner/y.mp3"):
            (top / "outside" / name).write_bytes(b"x")
        targets = [*grow(folder, rng)]
        link(folder, [*targets, top / "outside"], rng)
        caplog.clear()
        try:
            tracks, _ = load_tracks(str(folder), label_column=label_column)
        except UserError as error:
            outcomes["messages"] += bool(str(error))
        except BaseException as error:
            error.add_note(f"seed {seed}: {sorted(map(str, folder.rglob('*')))}")
            raise
        else:
            outcomes["results"] += 1
            try:
                judge(folder, tracks, caplog, label_column)
            except AssertionError as error:
                error.add_note(f"seed {seed}: {sorted(map(str, folder.rglob('*')))}\n{caplog.text}")
                raise
        shutil.rmtree(top)
    assert outcomes["results"] > NUM_TREES / 5
    assert outcomes["messages"] > 0
    record_property("fuzzed folder trees", f"{NUM_TREES} trees, {dict(outcomes)}")


def judge(folder, tracks, caplog, label_column) -> None:
    """Compare what was found with what is there."""
    real = [os.path.realpath(track.path) for track in tracks]
    assert len(set(real)) == len(real)  # once
    assert len({track.id for track in tracks}) == len(tracks)
    lost = files_in(folder) - set(real)
    loose = re.findall(r"(\d+) audio files? beside", caplog.text)
    assert len(lost) == sum(map(int, loose)), lost
    splits = {track.split for track in tracks}
    assert splits == {None} or None not in splits
    for track in tracks:
        track.id.encode()
        if label_column:
            [label] = track.columns[label_column]
            label.encode()
            if track.split:
                assert label.strip().lower() not in SPLIT_WORDS
    others = Counter(
        path.suffix.lower()
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and is_seen(path, folder)
        and path.suffix.lower() not in AUDIO_SUFFIXES
    )
    for suffix in others:
        assert suffix[1:] == "" or f"{suffix} (" in caplog.text, suffix


SPLIT_NAMES = [
    {"train": "train", "validation": "dev", "test": "test"},
    {"train": "trainset", "validation": "valset", "test": "testset"},
    {"train": "trainData", "validation": "validData", "test": "evalData"},
    {"train": "Training", "validation": "Validation", "test": "Testing"},
    {"train": "train-split", "validation": "val-split", "test": "test-split"},
]


@pytest.mark.parametrize("label_column", ["tags", None])
def test_splits_and_labels_are_found_or_refused_at_any_level(
    tmp_path, label_column, record_property
):
    """Single folders above, between and below them; a folder beside the splits is refused at any level."""
    outcomes: Counter[str] = Counter()
    for seed in range(NUM_TREES):
        rng = random.Random(f"levels {seed}")
        words = rng.choice(SPLIT_NAMES)
        kind = rng.choice(["splits", "no splits", "beside splits", "splits below labels"])
        above = ["data", "a b"][: rng.randint(0, 2)]
        between = ["audio", "wav"][: rng.randint(0, 2)]
        folder = tmp_path / str(seed)
        expected = {}
        for number, (split, word) in enumerate(words.items()):
            for label in LABELS:
                levels = {
                    "no splits": [*above, label],
                    "splits below labels": [*above, label, word],
                }.get(kind, [*above, word, *between, label])
                levels += [f"album {number}"] if rng.random() < 0.5 else []
                name = "/".join([*levels, f"{number}.wav"])
                expected[name] = (None if kind == "no splits" else split, label)
        strangers = []
        if kind == "beside splits":
            strangers = ["/".join([*above, "unlabelled", "x.wav"])]
        elif kind == "splits below labels" and rng.random() < 0.5:
            strangers = ["/".join([*above, "jazz", "other", "x.wav"])]
        for name in (*expected, *strangers):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
        code = {
            "beside splits": "folder-mixed-splits",
            "splits below labels": "folder-splits-below-labels",
        }.get(kind)
        try:
            tracks, _ = load_tracks(str(folder), label_column=label_column)
        except UserError as error:
            found = error.code
            outcomes["messages"] += 1
        else:
            found = None
            outcomes["results"] += 1
        assert found == code, (seed, sorted(expected))
        if code is None:
            columns = {track.id: track.columns for track in tracks}
            splits = {track.id: track.split for track in tracks}
            assert splits == {name: split for name, (split, _) in expected.items()}, seed
            if label_column:
                labels = {name: cells[label_column] for name, cells in columns.items()}
                assert labels == {name: [label] for name, (_, label) in expected.items()}, seed
        shutil.rmtree(folder)
    assert min(outcomes["results"], outcomes["messages"]) > NUM_TREES / 4
    record_property("fuzzed levels of folders", f"{NUM_TREES} trees, {dict(outcomes)}")


def test_a_tree_of_real_files_goes_all_the_way(tmp_path, caplog):
    """Load, split, check: every track is in one split, or counted and named."""
    caplog.set_level(logging.WARNING)
    refused = []
    num_trees = max(20, NUM_TREES // 20)
    for seed in range(num_trees):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        made = 0
        for label in (*LABELS, rng.choice(STRANGE)):
            (folder / label).mkdir(parents=True)
            for number in range(rng.randint(2, 4)):
                path = folder / label / f"{rng.choice(['a', *STRANGE[:6]])}{number}.wav"
                samples = np.zeros(rng.choice([0, 800, 1600]))
                soundfile.write(os.fsencode(path), samples, 16_000, format="WAV")
                made += 1
        (folder / LABELS[0] / "gone.wav").symlink_to("/nowhere.wav")
        caplog.clear()
        tracks, _ = load_tracks(str(folder), label_column="tags")
        splits = split_tracks(
            tracks, group_columns=["artist"], validation_fraction=0.2, test_fraction=0.2, seed=seed
        )
        try:
            usable, skipped = check_splits(splits, on_bad_track="skip", show_progress=False)
        except UserError as error:
            refused.append(error.code)
            continue
        left = [one.track.id for members in usable.values() for one in members]
        assert len(set(left)) == len(left)
        assert len(left) + sum(skipped.values()) == made + 1
        assert caplog.text.count("Skipped ") == sum(skipped.values())
    assert set(refused) <= {"data-no-usable-track"}
    assert len(refused) < num_trees / 2
