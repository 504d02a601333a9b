"""Tables of predictions: equal to `TaskModel.predict`, complete, and resumed by id after kills."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import soundfile
import torch
from support.forked import Forked

from m2v_finetune.catalogue import NamedModel, Predictions, read_items, track_rows
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.tasks.tagging import Tagging

RATE = 16_000
NUM_FILES = 60
TASKS = {
    "tags": Tagging(labels=("drums", "piano", "slow, sad"), label_column="tags"),
    "genre": Genre(labels=("rock", "jazz"), label_column="genre"),
    "beats": BeatTracking(label_column="beats"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models, whose heads differ and whose backbones are the same."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, task) in enumerate(TASKS.items()):
        torch.manual_seed(seed)
        TaskModel.build(
            task=task,
            backbone=BackboneConfig(source="random-small"),
            head=HeadConfig(hidden_size=16),
            tuning=TuningConfig(),
            window_seconds=0.5,
        ).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of 0.2 to 1.4 s, in two depths."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "album").mkdir()
    for number in range(NUM_FILES):
        place = folder / "album" if number % 3 == 0 else folder
        write_sound(place / f"{number:03d}.wav", number, seconds=0.2 + 0.2 * (number % 7))
    return folder


def write_sound(path: Path, seed: int, *, seconds: float) -> None:
    samples = np.random.default_rng(seed).standard_normal(round(RATE * seconds), dtype=np.float32)
    soundfile.write(path, 0.3 * samples, RATE, subtype="FLOAT")


def m2v(*words: object, code: int = 0, input: object = None) -> str:
    """Run the command line in a fork of a warm process, and return standard error."""
    done = Forked(["m2v", *map(str, words)], input=input)
    _, stderr = done.communicate(300)
    assert done.returncode == code, stderr
    return stderr


def rows_of(folder: Path) -> list[dict]:
    """Read the table as pandas and DuckDB do; each id is there once."""
    rows = parquet.read_table(folder).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return sorted(rows, key=lambda row: row["id"])


def test_predictions_equal_those_of_each_model_alone(models: Path, music: Path, tmp_path: Path):
    output = tmp_path / "out"
    words = [*(models / name for name in TASKS), music, "--output", output]
    stderr = m2v("predict", *words, "--num-workers", 2, "--shard-tracks", 16)
    assert f"{NUM_FILES} computed now" in stderr
    rows = rows_of(output)
    assert [row["id"] for row in rows] == sorted(
        str(path.relative_to(music)) for path in music.rglob("*.wav")
    )
    for name in TASKS:
        model = TaskModel.from_pretrained(models / name)
        for row in rows:
            alone = model.predict(row["path"])
            found = row[f"prediction_{name}"]
            if name == "beats":
                text = alone.render("json", path=Path(), top=1, timeline=False, is_first=True)
                assert {"path": ".", **json.loads(found)} == json.loads(text)
            else:
                # Other neighbours in a batch may change the last bit of a matrix product.
                assert found["scores"] == pytest.approx(alone.scores, abs=1e-6)
                assert found.get("label", alone.label) == alone.label
            assert row["duration"] == pytest.approx(soundfile.info(row["path"]).duration)
            assert row[f"model_{name}"] == str(models / name)
    assert set(rows[0]) >= {"error", *(f"version_{name}" for name in TASKS)}


def test_models_of_one_backbone_share_its_pass(models: Path, music: Path):
    def computed(names: list[str]) -> tuple[Predictions, list[dict]]:
        loaded = [
            NamedModel(name=name, source=name, model=TaskModel.from_pretrained(models / name))
            for name in names
        ]
        analysis = Predictions(loaded)
        calls.clear()
        for one in loaded:
            one.model.backbone.network.feature_extractor.register_forward_hook(
                lambda *_: calls.append(1)
            )
        items = read_items([str(music)], standard_input=io.BytesIO()).items[:20]
        found = sorted(track_rows(analysis, items, batch_size=4))
        return analysis, [row for track in found for row in track.rows]

    calls: list[int] = []
    together, rows = computed(["tags", "genre"])
    assert len(together.passes) == len(together.layouts) == 1
    for name in ("tags", "genre"):
        _, own = computed([name])
        assert [row["prediction"] for row in own] == [row[f"prediction_{name}"] for row in rows]
    both, _ = computed(["tags", "beats"])  # windows of beats overlap
    assert len(both.passes) == len(both.layouts) == 2
