"""Runs of melody and structure on a few clips that ship: results, card, and what the saved model writes."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.matrix import exhaustive
from support.runs import reset_accelerate

from m2v_finetune.cli import main
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.labels.melody import read_melody
from m2v_finetune.labels.sections import read_sections
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import train_task
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import TASKS

# The column, the format of its own, its suffix and the picture.
FORMATS = {
    "melody": ("melody", "f0", ".csv", "melody.png"),
    "structure": ("sections", "txt", ".txt", "structure.png"),
}
NUM_CLIPS = {"train": 4, "validation": 2, "test": 2}


def few_clips(name: str, folder: Path) -> Path:
    column = FORMATS[name][0]
    lines = (QUICKSTART_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = []
    for split, count in NUM_CLIPS.items():
        for row in [row for row in rows if row["split"] == split][:count]:
            paths = {key: str(QUICKSTART_DIR / row[key]) for key in ("path", column)}
            chosen.append({"id": row["id"], "split": split, **paths})
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["melody", *exhaustive("structure")])
def test_a_run_and_its_model(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, kind, suffix, picture = FORMATS[name]
    source = few_clips(name, tmp_path)
    reset_accelerate()
    config = read_config(
        name,
        [
            *("--data.source", str(source), "--data.window_seconds", "2.0"),
            *("--data.num_workers", "0", "--backbone.source", "random-small"),
            *("--training.epochs", "1", "--data.windows_per_track", "1"),
            *("--head.kind", "linear", "--run.output_dir", str(tmp_path / "run")),
        ],
    )
    results = train_task(config, TASKS[name]).results
    assert results["metrics"].keys() == TASKS[name].metric_names.keys()
    assert all(entry["value"] is not None for entry in results["metrics"].values())
    model = tmp_path / "run" / "model"
    assert (model / "plots" / picture).read_bytes().startswith(b"\x89PNG")
    card = (model / "README.md").read_text(encoding="utf-8")
    assert TASKS[name].usage_example in card

    song = json.loads(source.read_text().splitlines()[-1])["path"]
    words = ["predict", str(model), song, "--format", kind, "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0, capsys.readouterr().err
    [written] = (tmp_path / "out").iterdir()
    assert written.suffix == suffix
    prediction = TaskModel.from_pretrained(model).predict(song)
    if name == "melody":
        expected = prediction.frequencies_hz.clip(min=0)
        np.testing.assert_allclose(read_melody(written).frequencies_hz, expected, atol=1e-3)
    else:
        assert read_sections(written).labels == prediction.sections.labels
    # The metrics of the run are those of the saved model.
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["evaluate", str(model), str(source)])
    measured = json.loads(capsys.readouterr().out)
    for metric, entry in results["metrics"].items():
        assert measured["metrics"][metric]["value"] == pytest.approx(entry["value"], abs=1e-6)
