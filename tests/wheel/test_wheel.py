"""The wheel: what is in it, and a run from it outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip builds it, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    process = subprocess.run(
        [*command, "--wheel-dir", folder, repository], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    [path] = folder.glob("*.whl")
    return path


def files_below(folder: Path) -> set[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder.parent).as_posix()
        for path in files
        if path.parent.name != "__pycache__"
    }


def test_the_wheel_has_package_configs_and_recipes_and_nothing_else(
    wheel: Path, repository: Path
) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = [name for name in names if not name.partition("/")[0].endswith(".dist-info")]
    data = {
        f"m2v_finetune/{name}"
        for folder in ("configs", "recipes")
        for name in files_below(repository / folder)
    }
    assert set(inside) == files_below(repository / "m2v_finetune") | data
    assert len(names) == len(set(names))
    for name in (
        "m2v_finetune/py.typed",
        "m2v_finetune/publishing/model_card.md.jinja",
        "m2v_finetune/data/quickstart/manifest.jsonl",
        "m2v_finetune/backbones/filterbank_small/README.md",
        "m2v_finetune/backbones/filterbank_small/model.safetensors",
        "m2v_finetune/backbones/random_small/model.safetensors",
        "m2v_finetune/configs/pretrain/small/config.json",
        "m2v_finetune/configs/accelerate/ddp.yaml",
        "m2v_finetune/recipes/tagging.py",
    ):
        assert name in inside
    others = {name.partition("/")[2] for name in set(names) - set(inside)}
    assert others == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"),
        "licenses/m2v_finetune/backbones/filterbank_small/README.md",
        "licenses/m2v_finetune/data/quickstart/LICENSES.txt",
    }


OUTSIDE = """
import sys
from pathlib import Path

import m2v_finetune
from m2v_finetune.shipped import config_file, config_files, copy_recipe, find_file, recipe_files

package = Path(sys.argv[1]) / "m2v_finetune"
assert Path(m2v_finetune.__file__).parent == package
files = config_files()
print(len(files), len(recipe_files()))
assert all(file.path.is_relative_to(package / "configs") for file in files)
assert config_file("tagging", "magnatagatune-lora").is_file()
assert find_file(Path("configs/pretrain/small")) == package / "configs" / "pretrain" / "small"
copy_recipe("tagging", Path())
"""


def test_a_wheel_trains_outside_the_checkout(
    wheel: Path, small_manifest: Path, tmp_path: Path
) -> None:
    from m2v_finetune.shipped import config_files, recipe_files

    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    shutil.unpack_archive(wheel, site, format="zip")
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def run(*command: str | Path) -> str:
        process = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    counts = run(sys.executable, "-c", OUTSIDE, site)
    assert counts.split() == [str(len(config_files())), str(len(recipe_files()))]
    settings = {"data.source": small_manifest, "training.epochs": 1, "data.num_workers": 0}
    settings |= {"run.output_dir": "runs/mine"}
    run(
        *(Path(sys.executable).parent / "accelerate", "launch", "tagging.py"),
        *("--config", "tagging.yaml"),
        *(f"--{key}={value}" for key, value in settings.items()),
    )
    assert (folder / "runs" / "mine" / "results.json").is_file()
    assert (folder / "runs" / "mine" / "model" / "config.json").is_file()
