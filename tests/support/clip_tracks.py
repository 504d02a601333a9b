"""Tracks of a manifest for tests of clip tasks, and what a model said of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from m2v_finetune.data.manifest import Track
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.tasks.clips import EvaluatedClip


def make_track(columns: Mapping[str, Any], *, line: int = 2, split: str = "train") -> Track:
    """Return a track by its cells, in a line of songs.csv; there is no such file."""
    path = Path(f"/music/{line}.mp3")
    return Track(
        id=path.name,
        path=path,
        split=split,
        columns=columns,
        origin=f"songs.csv:{line}",
        folder=path.parent,
    )


def make_splits(column: str, **cells: Sequence[Any]) -> dict[str, list[Track]]:
    """One track a cell, in the order of the splits; line 2 of songs.csv is the first."""
    splits: dict[str, list[Track]] = {}
    line = 2
    for split, members in cells.items():
        splits[split] = []
        for cell in members:
            splits[split].append(make_track({column: cell}, line=line, split=split))
            line += 1
    return splits


def listed_problems(message: str) -> list[str]:
    """What stands in a message's list."""
    return [line.removeprefix("  - ") for line in message.splitlines() if line.startswith("  - ")]


def evaluated_clips(targets: np.ndarray, scores: np.ndarray) -> list[EvaluatedClip]:
    return [
        EvaluatedClip(target=np.asarray(t, np.float32), scores=np.asarray(s, np.float32))
        for t, s in zip(targets, scores, strict=True)
    ]


def draw_classes(
    num_tracks: int, num_classes: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """True classes (tracks,), each there once at least, and probabilities that are often right."""
    generator = np.random.default_rng(seed)
    classes = np.resize(np.arange(num_classes), num_tracks)
    scores = generator.random((num_tracks, num_classes))
    scores[np.arange(num_tracks), classes] += 0.5
    return classes, scores / scores.sum(axis=1, keepdims=True)


def write_styles(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write tracks of 1 s of three styles of the quickstart, and return their manifest.

    Args:
        folder: Folder that exists.
        counts: Number of tracks of each style, by split.
    """
    left = {
        (split, style): n for split, n in counts.items() for style in ("rock", "waltz", "ballad")
    }
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if left.get((row["split"], row["style"]), 0) == 0:
            continue
        left[row["split"], row["style"]] -= 1
        samples, rate = soundfile.read(QUICKSTART_DIR / row["path"])
        soundfile.write(folder / f"{len(rows)}.wav", samples[:rate], rate)
        rows.append({"path": f"{len(rows)}.wav", "split": row["split"], "style": row["style"]})
    manifest = folder / "songs.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest
