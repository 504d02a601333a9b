"""Manifests with numbers, booleans, nulls, blanks and nested values in every column, for every task.

`M2V_FUZZ_INPUTS` sets how many manifests are made.
"""

import csv
import json
import logging
import math
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.manifest import SPLIT_WORDS
from m2v_finetune.data.rows import read_rows
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.data.values import as_texts
from m2v_finetune.errors import UserError
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.labelled import labelled_tracks

NUM_MANIFESTS = int(os.environ.get("M2V_FUZZ_INPUTS", "0")) or 40
NUM_ROWS = 9
NAN = float("nan")
ANY = [
    *(
        0,
        1,
        -1,
        0.0,
        1.0,
        0.5,
        1e300,
        10**400,
        NAN,
        float("inf"),
        True,
        False,
        None,
        "",
        " ",
        "\t",
        "0",
        "1",
    ),
    *(
        "1.0",
        "no",
        *("late.beats", "late.lab"),
        "null",
        "true",
        "é",
        "e\u0301",
        "\udce9",
        "a;b",
        ";",
        "x" * 300,
        "9" * 5000,
        "@long",
        "\0",
        "..",
        "/",
    ),
    *([], {}, [0], [None], ["a", 1, None], [[]], {"a": 1}, ["a", {"b": None}]),
]
# Good cells of each column; some rows get others.
GOOD = {
    "path": [f"{n}.wav" for n in range(NUM_ROWS)],
    "id": [0, "0.wav", 2.5, "x", None, "", "y", "z", "w"],
    "split": ["train", "Training", "train", "dev", "val", "validation", "test", "EVAL", "testing"],
    "artist": [0, 0, "0", 1, 1.0, "b", "b", None, ["c", "b"]],
    "tags": [["a"], "a;b", ["b"]] * 3,
    "genre": [0, "1", 1] * 3,
    "instrument": ["a", "b", "a"] * 3,
    "singer": [True, False, "true"] * 3,
    "technique": ["x", "y", " x"] * 3,
    "key": ["A minor", "C:maj", "Ebm"] * 3,
    "pitch": [60, "61", 62.0] * 3,
    "arousal": [0, 1, 0.5] * 3,
    "valence": ["0.1", -1, 3] * 3,
    "beats": ["good.beats"] * NUM_ROWS,  # `ANY` has late.beats, which continues after the audio
    "chords": ["good.lab"] * NUM_ROWS,
    "sections": ["good.txt"] * NUM_ROWS,
    "melody": ["good.csv"] * NUM_ROWS,
    "notes": ["good.mid"] * NUM_ROWS,
    "stems": ["stems"] * NUM_ROWS,
}


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    from m2v_finetune.data.quickstart import QUICKSTART_DIR

    folder = tmp_path_factory.mktemp("fuzzed")
    for number in range(NUM_ROWS):
        soundfile.write(folder / f"{number}.wav", np.zeros(16_000 * 9), 16_000)
    for suffix in ("beats", "lab", "mid"):
        content = (QUICKSTART_DIR / "annotations" / f"test-000.{suffix}").read_bytes()
        (folder / f"good.{suffix}").write_bytes(content)
    (folder / "good.txt").write_text("0 verse\n3.5 chorus\n8 end\n")
    (folder / "good.csv").write_text("".join(f"{n / 10},{220 * (n % 2)}\n" for n in range(80)))
    (folder / "late.beats").write_text("8.5\n9.6\n")
    (folder / "late.lab").write_text("0 8.5 N\n8.5 9.6 N\n")
    (folder / "stems").mkdir()
    for stem in ("vocals", "drums", "bass", "other"):
        soundfile.write(folder / "stems" / f"{stem}.wav", np.zeros(16_000 * 9), 16_000)
    return folder


def make_rows(rng: random.Random, *, has_splits: bool) -> list[dict]:
    columns = [name for name in GOOD if has_splits or name != "split"]
    rows = [{name: GOOD[name][n] for name in columns} for n in range(NUM_ROWS)]
    # Mostly in the columns of labels: elsewhere one bad cell refuses the whole manifest.
    for _ in range(rng.choice([0, 1, 2, 6])):
        name = rng.choice(columns if rng.random() < 0.4 else columns[3:])
        rng.choice(rows)[name] = rng.choice(ANY)
    if rng.random() < 0.1:
        name, value = rng.choice(columns), rng.choice(ANY)
        for row in rows:
            row[name] = value
    if rng.random() < 0.1:
        del rng.choice(rows)[rng.choice(columns)]
    return rows


def add_namesake(rows: list[dict], rng: random.Random) -> bool:
    """Sometimes add a column that differs from another in case only; True if both have values."""
    if rng.random() > 0.2:
        return False
    name = rng.choice(list(GOOD))
    is_filled = rng.random() < 0.5 and not all(means_missing(row.get(name)) for row in rows)
    twin = rng.choice([name.upper(), name.capitalize()])
    for row, value in zip(rows, GOOD[name], strict=True):
        row[twin] = value if is_filled else rng.choice([None, "", " "])
    return is_filled and not all(map(means_missing, GOOD[name]))


def write(rows: list[dict], path: Path) -> None:
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text.replace('"@long"', "9" * 5000), encoding="utf-8")
        return
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in names])


def _cell(value) -> object:
    return ";".join(map(str, value)) if isinstance(value, list) else value


def means_missing(value) -> bool:
    """What the documents say, written once more."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip() == "")


def texts(value) -> list[str]:
    parts = value.split(";") if isinstance(value, str) else value
    parts = parts if isinstance(parts, list) else [parts]
    found = []
    for part in parts:
        if not means_missing(part):
            whole = isinstance(part, float) and part.is_integer()
            found.append(str(int(part)) if whole else str(part).strip())
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_of_any_values_end_in_a_result_or_a_message(music, suffix, caplog, record_property):
    caplog.set_level(logging.WARNING)
    outcomes: Counter[str] = Counter()
    path = music / f"songs{suffix}"
    for seed in range(NUM_MANIFESTS):
        rng = random.Random(f"{suffix}-{seed}")
        rows = make_rows(rng, has_splits=rng.random() < 0.6)
        is_refused = add_namesake(rows, rng)
        write(rows, path)
        caplog.clear()
        try:
            outcome = run(path, rows, rng, caplog)
            assert outcome == "messages" or not is_refused
            outcomes[outcome] += 1
            outcomes["namesakes"] += is_refused
        except BaseException as error:
            error.add_note(f"seed {seed}: {rows}")
            raise
    assert outcomes["results"] > NUM_MANIFESTS / 4, outcomes
    assert outcomes["messages"] > NUM_MANIFESTS / 20, outcomes
    assert outcomes["namesakes"] > NUM_MANIFESTS / 40, outcomes
    assert not outcomes["silence"]
    record_property(f"fuzzed rows{suffix}", f"{NUM_MANIFESTS} manifests, {dict(outcomes)}")


def run(path: Path, rows: list[dict], rng: random.Random, caplog) -> str:
    """Do what a run does before it trains, and judge it; return how it ended."""
    name = rng.choice(list(TASKS))
    config = TASKS[name].settings_class()
    policy = rng.choice(["stop", "skip"])
    seed = rng.randrange(100)
    try:
        tracks, _ = load_tracks(str(path), label_column=config.label_column)
        splits = split_tracks(
            tracks, group_columns=["artist"], validation_fraction=0.2, test_fraction=0.2, seed=seed
        )
        task = TASKS[name].from_training(config, splits["train"])
        usable, skipped = check_splits(splits, on_bad_track=policy, show_progress=False)
        labelled = labelled_tracks(task, usable, on_bad_track=policy)
    except UserError as error:
        return "messages" if str(error) else "silence"
    # No row is lost: each is in one split, or skipped and named.
    assert len(tracks) == len(rows)
    left = [one.track for members in labelled.values() for one in members]
    assert len({track.id for track in left}) == len(left)
    num_lost = sum(skipped.values()) + sum(
        len(usable[split]) - len(labelled[split]) for split in usable
    )
    assert len(left) + num_lost == len(rows)
    assert policy == "skip" or num_lost == 0
    lines = {message.split(":")[1] for message in caplog.messages if message.startswith("Skipped")}
    origins = {track.origin.split(":")[1] for track in tracks} - {
        track.origin.split(":")[1] for track in left
    }
    assert len(origins) == num_lost
    if name not in (
        "beats",
        "chords",
        "structure",
        "melody",
        "transcription",
    ):  # whose lines name the annotation's file
        assert origins <= lines
    # Splits are those that were written, and groups stay on one side.
    if any("split" in row and not means_missing(row["split"]) for row in rows):
        for track, row in zip(tracks, rows, strict=True):
            assert track.split == SPLIT_WORDS[row["split"].strip().lower()]
    else:
        sides: dict[str, set[str]] = {}
        for track in left:
            for text in texts(track.columns.get("artist")):
                sides.setdefault(text, set()).add(track.split)
        assert all(len(names) == 1 for names in sides.values()), sides
    # Every label that is left can be learned.
    assert not any(task.label_problems(left))
    for track in left:
        track.id.encode()
        assert track.columns.get(config.label_column) not in ("late.beats", "late.lab") or name in (
            "tagging",
            *("genre", "instrument", "singer", "technique"),
        )
        if not isinstance(track.columns.get(config.label_column), str):
            assert not means_missing(track.columns.get(config.label_column)) or name == "tagging"
    return "results"


def test_quotes_at_any_place_hide_no_row(tmp_path: Path) -> None:
    """A row is read, or it is in a cell with a line break, which is no label, or the file is refused."""
    outcomes: Counter[str] = Counter()
    for seed in range(20 * NUM_MANIFESTS):
        random_ = random.Random(seed)
        text = "path,genre\n" + "".join(f"{n}.wav,rock\n" for n in range(NUM_ROWS))
        for _ in range(random_.randint(1, 4)):
            place = random_.randrange(len(text))
            text = text[:place] + '"' + text[place:]
        path = tmp_path / "m.csv"
        path.write_text(text, encoding="utf-8")
        try:
            rows = read_rows(path, path_columns=("path",))
        except UserError:
            outcomes["refused"] += 1
            continue
        broken = [cell for _, row in rows for cell in row.values() if "\n" in cell]
        assert len(rows) + sum(cell.count("\n") for cell in broken) == NUM_ROWS
        for cell in broken:
            with pytest.raises(ValueError, match="line break"):
                as_texts(cell)
        outcomes["a cell with a line break" if broken else "read"] += 1
    assert len(outcomes) == 3, outcomes
