"""Report of a run: one page that opens offline, from the run's files. Its text is in report.html.jinja."""

import base64
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from m2v_finetune.errors import UserError
from m2v_finetune.files import parse_json, write_atomically
from m2v_finetune.model.description import read_config
from m2v_finetune.publishing.card import (
    LAYER_PICTURE,
    RELIABILITY_PICTURE,
    TRAINING_PICTURE,
    fold_facts,
)
from m2v_finetune.publishing.method import is_random, method_rows, tuning_name
from m2v_finetune.publishing.report_tracks import track_lists
from m2v_finetune.publishing.text import shown_number
from m2v_finetune.tasks import Task
from m2v_finetune.training.calibrating import describe_calibration
from m2v_finetune.training.novelty import describe_novelty
from m2v_finetune.training.results import POOLED_SPLIT
from m2v_finetune.training.run_folder import RunFolder, read_resumes
from m2v_finetune.training.track_results import TrackResult, read_track_results


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a finished run's folder, from its files; return its path.

    Args:
        run_dir: Run folder with results.json, test_tracks.jsonl, config.yaml, model/ and plots/.

    Raises:
        UserError: It is no finished run of a task.
    """
    folder = RunFolder(run_dir)
    results, task, tracks = read_finished_run(run_dir)
    text = render(
        "report.html.jinja",
        title=run_dir.resolve().name,
        task=task.name,
        backbone=results["backbone"]["source"],
        tuning=tuning_name(results),
        has_random_weights=is_random(results),
        warnings=results["warnings"],
        outputs_hardly_vary=results["outputs_hardly_vary"],
        skipped={split: n for split, n in results["num_skipped_tracks"].items() if n},
        lost=results["lost_tracks"],
        num_tracks_of_splits=results["num_tracks_of_splits"],
        num_tracks=results["num_tracks"],
        **fold_facts(results),
        about_metrics=results["about_metrics"],
        metrics=_metric_rows(results),
        **_label_table(results),
        calibration=describe_calibration(results),
        novelty=describe_novelty(results),
        threshold_rows=_threshold_rows(results),
        pictures=_pictures(folder),
        data_address=_data_address,
        lists=track_lists(task, tracks, folder.path) if tracks else [],
        method_rows=_method_rows(folder, results),
        settings=folder.config.read_text(encoding="utf-8"),
    )
    write_page(folder.report, text)
    return folder.report


def read_finished_run(run_dir: Path) -> tuple[dict[str, Any], Task, list[TrackResult]]:
    """Return results.json, the task with its labels, and the result of each test track.

    Raises:
        UserError: It is no finished run of a task, or a file is missing or damaged.
    """
    folder = RunFolder(run_dir)
    model_config = folder.model / "config.json"
    if not model_config.is_file():  # a cross-validation
        model_config = RunFolder(run_dir / "fold-0").model / "config.json"
    try:
        results = parse_json(folder.results.read_bytes())
        if results["split"] not in ("test", POOLED_SPLIT):
            raise KeyError("split")
        _, task = read_config(model_config)
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(
            f"{run_dir} is not the folder of a finished run of a task: it needs results.json with test "
            f"metrics, and model/ ({type(error).__name__}: {error}). Name a folder of runs/.",
            code="run-not-finished",
        ) from error
    return results, task, read_track_results(folder.test_tracks)


def render(template: str, **facts: Any) -> str:
    """Return a page; all facts are escaped, so names of users are text, never HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**facts)


def write_page(path: Path, text: str) -> None:
    """Write a page; bytes of a name that are not UTF-8 are escaped."""
    content = text.encode(errors="backslashreplace")
    write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def _metric_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key, metric in results["metrics"].items():
        ends = [metric[name] for name in ("value", "low", "high")]
        is_share = all(end is not None and 0 <= end <= 1 for end in ends)
        rows.append(
            {
                "name": results["metric_names"][key],
                "is_selection": key == results["selection_metric"],
                "value": shown_number(metric["value"]),
                "low": shown_number(metric["low"]),
                "high": shown_number(metric["high"]),
                "chance": metric.get("chance"),
                "validation": shown_number(results["validation"].get(key)),
                "bar": [100 * end for end in ends] if is_share else None,
            }
        )
    return rows


def _label_table(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns and rows of the labels; each cell has its text and its value to sort by."""
    per_label: Mapping[str, Mapping[str, Any]] = results.get("per_label") or {}
    keys = list(next(iter(per_label.values()), {}))
    names = {"num_positive": "tracks"} | results["metric_names"]
    return {
        "label_columns": [names.get(key, key) for key in keys],
        "label_rows": [
            (label, [_cell(own[key]) for key in keys]) for label, own in per_label.items()
        ],
        "labels_left_out": results.get("labels_left_out") or [],
    }


def _threshold_rows(results: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return threshold, precision and recall of each label, and the number of tracks above it."""
    thresholds: Mapping[str, Mapping[str, Any]] = results.get("thresholds") or {}
    return [(label, [_cell(value) for value in own.values()]) for label, own in thresholds.items()]


def _cell(value: float | None) -> tuple[str, float]:
    """Return a number as text, and the number to sort by; one that is undefined sorts lowest."""
    if value is None or math.isnan(value):
        return "-", -math.inf
    return (f"{value:,}" if isinstance(value, int) else f"{value:.3f}"), value


def _data_address(path: Path) -> str:
    """Return a picture as an address that has its content."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pictures(folder: RunFolder) -> dict[str, Any]:
    """Return the plots as data addresses: of training, layers and reliability, and of the task by name."""
    found = {path.name: path for path in sorted(folder.plots.glob("*.png"))}
    encoded = {name: _data_address(path) for name, path in found.items()}
    return {
        "training": encoded.pop(TRAINING_PICTURE, None),
        "layers": encoded.pop(LAYER_PICTURE, None),
        "reliability": encoded.pop(RELIABILITY_PICTURE, None),
        "task": {Path(name).stem.replace("_", " "): data for name, data in encoded.items()},
    }


def _method_rows(folder: RunFolder, results: Mapping[str, Any]) -> list[list[str]]:
    """Return the card's rows about the method, as plain text in place of Markdown."""
    settings = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    rows = method_rows(results, {}, settings, read_resumes(folder))
    return [[re.sub(r"\\(.)|`", r"\1", cell) for cell in row] for row in rows]
