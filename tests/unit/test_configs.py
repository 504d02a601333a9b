"""Every file of configs/ is a legal run of its recipe, and its header says how to start it."""

import json
import re
from pathlib import Path

import pytest
import torch

from m2v_finetune.audio.augmentation import Effect, build_augmentation
from m2v_finetune.backbones import init_backbone
from m2v_finetune.backbones.checkpoints import CHECKPOINTS
from m2v_finetune.backbones.loading import build_network
from m2v_finetune.data.benchmarks import BENCHMARKS
from m2v_finetune.data.quickstart import QUICKSTARTS
from m2v_finetune.settings import read_config
from m2v_finetune.shipped import config_file
from m2v_finetune.tasks import TASKS

REPOSITORY = Path(__file__).parents[2]
FILES = sorted(
    path
    for path in (REPOSITORY / "configs").rglob("*.y*ml")
    if path.parent
    not in (REPOSITORY / "configs" / "accelerate", REPOSITORY / "configs" / "pretrain")
)
PRETRAINING_FILES = sorted((REPOSITORY / "configs" / "pretrain").glob("*.yaml"))
METHODS = ("probe", "lora", "full")
# Data sets (or tag sets of one) with a config for each method, by task; each task has a quickstart too.
# A task without a row has none.
DATA_SETS = {
    "beats": 4,
    "chords": 2,
    "emotion": 1,
    "genre": 1,
    "instrument": 1,
    "key": 1,
    "pitch": 1,
    "separation": 1,
    "singer": 1,
    "tagging": 5,
    "technique": 1,
    "transcription": 1,
}


def test_every_task_has_a_recipe_and_configs_for_every_method() -> None:
    assert set(DATA_SETS) <= set(TASKS)
    recipes = {path.stem for path in (REPOSITORY / "recipes").glob("*.py")}
    assert recipes == {*TASKS, "pretrain"}
    for task in TASKS:
        data_sets = DATA_SETS.get(task, 0)
        found = [path for path in FILES if path.parent.name == task]
        assert len(found) == 1 + data_sets * len(METHODS), task
    assert len(FILES) == len(TASKS) + len(METHODS) * sum(DATA_SETS.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_config(path: Path) -> None:
    task = path.parent.name
    config = read_config(task, ["--config", str(path)])
    build_augmentation(
        config.augmentation.transforms,
        sample_rate=16000,
        allowed_effects=frozenset(Effect),
        transformed_effects=frozenset(Effect),
        task=task,
    )

    header = path.read_text(encoding="utf-8").partition("\ndata:")[0]
    own_name = path.relative_to(REPOSITORY).as_posix()
    if path == config_file(task):
        assert f"accelerate launch recipes/{task}.py\n" in header
        assert config.data.source in QUICKSTARTS
        return
    launched = re.findall(r"^# +accelerate launch (\S+) --config (\S+)$", header, re.MULTILINE)
    assert launched == [(f"recipes/{task}.py", own_name)]
    [(benchmark, root)] = re.findall(
        r"^# +m2v data prepare (\S+) --root (\S+)$", header, re.MULTILINE
    )
    assert task in BENCHMARKS[benchmark].recipes
    assert "not run by this project" in header.lower()
    assert config.data.source.startswith(f"{root}/")

    name, _, method = path.stem.rpartition("-")
    assert method in METHODS
    assert config.tuning.method == method
    manifest = Path(config.data.source).stem
    assert name in (benchmark, f"{benchmark}-{manifest}")


@pytest.mark.parametrize("path", PRETRAINING_FILES, ids=lambda path: path.stem)
def test_a_config_of_pretraining(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config("pretrain", ["--config", str(path)])
    header = path.read_text(encoding="utf-8").partition("\ndata:")[0]
    if path == config_file("pretrain"):
        assert "accelerate launch recipes/pretrain.py\n" in header
        assert config.data.source in QUICKSTARTS
    else:
        own_name = path.relative_to(REPOSITORY).as_posix()
        assert f"accelerate launch recipes/pretrain.py --config {own_name}" in header
    if config.backbone.architecture is not None:
        monkeypatch.chdir(REPOSITORY)
        backbone = init_backbone(config.backbone.architecture, licence="")
        assert backbone.sample_rate == 16000
        assert backbone.frame_rate == 50
        if config.objective == "data2vec":
            assert config.pretrain.num_target_layers <= backbone.num_layers


def test_the_configs_of_pretraining() -> None:
    assert {path.stem for path in PRETRAINING_FILES} == {
        "adaptation",
        "filterbank-small",
        "masked-small",
        "mert",
        "music2vec",
        "quickstart",
        "small",
    }


def test_the_architecture_of_music2vec_has_its_size() -> None:
    folder = REPOSITORY / "configs" / "pretrain" / "music2vec"
    with torch.device("meta"):
        network = build_network(json.loads((folder / "config.json").read_text()), where="")
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert round(millions, 1) == CHECKPOINTS["music2vec-v1"].parameters_millions
