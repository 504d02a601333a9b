"""The recipes that show all their steps, beside `m2v train`, which takes the same ones."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from support.matrix import exhaustive

from m2v_finetune.runs import main
from m2v_finetune.shipped import recipe_file

# Few tracks of the data that ship, as `m2v_finetune/data/quickstart` has them.
QUICKSTART = Path(__file__).parents[2] / "m2v_finetune" / "data" / "quickstart"
NUM_TRACKS = {"train": 6, "validation": 3, "test": 3}
SHORT = {
    "data.num_workers": 0,
    "data.windows_per_track": 1,
    "data.window_seconds": 1,
    "backbone.source": "random-small",
    "training.epochs": 2,
    "training.per_device_batch_size": 3,
}


def manifest(task: str, folder: Path) -> Path:
    """Write a manifest of a few tracks with absolute paths; return it."""
    name = "stems.jsonl" if task == "separation" else "manifest.jsonl"
    rows = [json.loads(line) for line in (QUICKSTART / name).read_text().splitlines()]
    lines = []
    for split, count in NUM_TRACKS.items():
        for row in [row for row in rows if row["split"] == split][:count]:
            named = ("path", "beats", "chords", "notes", "stems")
            paths = {key: str(QUICKSTART / row[key]) for key in named if key in row}
            lines.append(json.dumps({**row, **paths}))
    path = folder / "tracks.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("tagging", {"task.ignore_unknown_labels": "true"}),
        *exhaustive(("tagging", {"task.ignore_unknown_labels": "true", "tuning.method": "lora"})),
        *exhaustive(
            ("pretrain", {"pretrain.num_target_layers": 2, "pretrain.mask_span_frames": 4}),
            ("beats", {"tuning.method": "full"}),
            (
                "separation",
                {
                    "task.stems": "[drums, bass, chords, melody]",
                    "task.sample_rate": 24000,
                    "task.num_channels": 1,
                },
            ),
        ),
    ],
)
def test_recipe_and_command_give_the_same_metrics(task, options, tmp_path, monkeypatch):
    settings = {"data.source": manifest(task, tmp_path), **SHORT, **options}
    compare(task, settings, tmp_path, monkeypatch)


def test_a_subset_of_the_training_tracks_has_the_same_windows(tmp_path, monkeypatch):
    """Their length is that of all tracks: of 1.5 s are those that are not in the subset's training split."""
    path = manifest("tagging", tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["split"] != "train":
            samples, rate = soundfile.read(row["path"])
            row["path"] = str(tmp_path / f"{row['id']}.wav")
            soundfile.write(row["path"], samples[: rate * 3 // 2], rate)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data.source": path, **SHORT, "task.ignore_unknown_labels": "true"}
    del settings["data.window_seconds"]
    compare("tagging", settings | {"data.num_train_tracks": 4}, tmp_path, monkeypatch)
    config = yaml.safe_load((tmp_path / "recipe" / "config.yaml").read_text())
    assert config["data"]["window_seconds"] == 1.5


def compare(task, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    words = [f"--{key}={value}" for key, value in settings.items()]

    monkeypatch.setattr(
        sys, "argv", [f"{task}.py", *words, f"--run.output_dir={tmp_path / 'recipe'}"]
    )
    recipe = runpy.run_path(str(recipe_file(task)), run_name="recipe")
    recipe["main"]()
    main([task, *words, f"--run.output_dir={tmp_path / 'command'}"])

    written = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("recipe", "command")]
    assert written[0] == written[1]
    assert written[0].count(b"\n") >= 4
    results = [
        json.loads((tmp_path / n / "results.json").read_text()) for n in ("recipe", "command")
    ]
    for one in results:
        del one["seconds"], one["waiting_share"]
    assert results[0] == results[1]
