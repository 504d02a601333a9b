"""Every file of configs/ is a legal run, and its header says how to start it."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from m2v_finetune.audio.augmentation import Effect, build_augmentation
from m2v_finetune.data.benchmarks import BENCHMARKS
from m2v_finetune.parsing import parse_recipe

REPOSITORY = Path(__file__).parents[2]
FILES = sorted((REPOSITORY / "configs" / "tagging").rglob("*.yaml"))
ACCELERATE_FILES = sorted((REPOSITORY / "configs" / "accelerate").rglob("*.yaml"))
NUM_FILES = 1 + 3 * (1 + 4)  # quickstart; probe, lora, full for MagnaTagATune and four tag sets
METHODS = ("probe", "lora", "full")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "recipes" / "tagging.py"), run_name="recipe")


def test_no_file_is_left_out() -> None:
    assert len(FILES) == NUM_FILES
    everything = set((REPOSITORY / "configs").rglob("*.y*ml"))
    assert everything == {*FILES, *ACCELERATE_FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config(path: Path, recipe: dict[str, Any]) -> None:
    config = parse_recipe(
        recipe["Config"], ["--config", str(path)], description="", quickstart=recipe["QUICKSTART"]
    )
    build_augmentation(
        config.augmentation.transforms,
        sample_rate=16000,
        allowed_effects=frozenset(Effect),
        task="tagging",
    )

    header = path.read_text(encoding="utf-8").partition("\ndata:")[0]
    own_name = path.relative_to(REPOSITORY).as_posix()
    if path == recipe["QUICKSTART"]:
        assert "accelerate launch recipes/tagging.py\n" in header
        assert config.data.source == "quickstart"
        return
    launched = re.findall(r"^# +accelerate launch (\S+) --config (\S+)$", header, re.MULTILINE)
    assert launched == [("recipes/tagging.py", own_name)]
    [(benchmark, root)] = re.findall(
        r"^# +m2v data prepare (\S+) --root (\S+)$", header, re.MULTILINE
    )
    assert benchmark in BENCHMARKS
    assert config.data.source.startswith(f"{root}/")
    assert path.stem.startswith(benchmark)

    name, _, method = path.stem.rpartition("-")
    assert method in METHODS
    assert config.tuning.method == method
    manifest = Path(config.data.source).stem
    assert name == (benchmark if manifest == "manifest" else f"{benchmark}-{manifest}")
