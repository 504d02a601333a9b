"""Results of each test track.

predictions.csv is for people; test_tracks.jsonl for the report, and to compare runs on the same tracks.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json, write_atomically
from m2v_finetune.tasks.clip_prediction import WindowPrediction
from m2v_finetune.tasks.clips import EvaluatedClip


@dataclass(frozen=True, kw_only=True)
class TrackResult:
    """Result of a test track.

    Attributes:
        id: Id of the track.
        path: Its audio file, absolute, at the time of the run.
        seconds: Its duration.
        evaluated: Output of the task's `evaluate_track`.
    """

    id: str
    path: Path
    seconds: float
    evaluated: Any


def write_track_results(
    path: Path, tracks: Sequence[CheckedTrack], evaluated: Sequence[Any]
) -> None:
    """Write one line of JSON for each track; numbers are exact.

    Args:
        path: File to write, atomically.
        tracks: Test tracks.
        evaluated: Output of the task's `evaluate_track` for each: targets and scores, or metrics.
    """
    results = [
        TrackResult(
            id=checked.track.id,
            path=checked.track.path,
            seconds=checked.audio.duration_seconds,
            evaluated=one,
        )
        for checked, one in zip(tracks, evaluated, strict=True)
    ]
    save_track_results(path, results)


def save_track_results(path: Path, results: Sequence[TrackResult]) -> None:
    """Write one line of JSON for each result; numbers are exact."""

    def write(unfinished: Path) -> None:
        with unfinished.open("w", encoding="utf-8") as file:
            for one in results:
                line = {
                    "id": one.id,
                    "path": str(one.path),
                    "seconds": one.seconds,
                    **_as_json(one.evaluated),
                }
                file.write(json.dumps(line) + "\n")

    write_atomically(path, write)


def read_track_results(path: Path) -> list[TrackResult]:
    """Read the file of `write_track_results`.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        rows = [parse_json(line) for line in path.read_bytes().splitlines()]
        return [
            TrackResult(
                id=row["id"],
                path=Path(row["path"]),
                seconds=row["seconds"],
                evaluated=_from_json(row),
            )
            for row in rows
        ]
    except FileNotFoundError as error:
        raise UserError(
            f"There is no file {path}, which a run writes when it evaluates its test tracks. "
            "Name the folder of a finished run.",
            code="run-no-track-results",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Resume the run with --run.resume auto: it writes the file "
            "again.",
            code="run-file-damaged",
        ) from error


def _as_json(evaluated: Any) -> dict[str, Any]:
    if isinstance(evaluated, EvaluatedClip):
        timeline = [[one.start_seconds, one.end_seconds, one.scores] for one in evaluated.timeline]
        return {
            "target": evaluated.target.tolist(),
            "scores": evaluated.scores.tolist(),
            **({"timeline": timeline} if timeline else {}),
        }
    return {"metrics": _without_nan(evaluated)}


def _from_json(row: Mapping[str, Any]) -> Any:
    if "target" in row:
        target, scores = (np.array(row[key], dtype=np.float32) for key in ("target", "scores"))
        timeline = tuple(
            WindowPrediction(start_seconds=start, end_seconds=end, scores=dict(best))
            for start, end, best in row.get("timeline", ())
        )
        return EvaluatedClip(target=target, scores=scores, timeline=timeline)
    return _with_nan(row["metrics"])


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return None if math.isnan(value) else float(value)


def _with_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nan(one) for key, one in value.items()}
    return math.nan if value is None else value


def write_predictions(
    path: Path, tracks: Sequence[CheckedTrack], rows: Sequence[Mapping[str, str | float]]
) -> None:
    """Write one line for each track: its id and its `Task.prediction_row`."""

    def write(unfinished: Path) -> None:
        # Bytes of a name that are not UTF-8 are escaped as in JSON.
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *rows[0]])
            for checked, row in zip(tracks, rows, strict=True):
                cells = (f"{v:.7g}" if isinstance(v, float) else v for v in row.values())
                writer.writerow([checked.track.id, *cells])

    write_atomically(path, write)
