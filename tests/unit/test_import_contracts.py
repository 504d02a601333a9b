"""The contracts of .importlinter cover modules that did not exist when they were written."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# One of each contract.
LIBRARIES = (
    "transformers",
    "peft",
    "accelerate",
    "audiomentations",
    "jsonargparse",
    "matplotlib",
    "soundfile",
    "datasets",
    "mir_eval",
    "gradio",
    "optuna",
)
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))


def lint_imports(folder: Path) -> dict[str, str]:
    """Return KEPT or BROKEN for each contract of the copy in ``folder``."""
    process = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^(.*) (KEPT|BROKEN)\b", process.stdout, re.MULTILINE)
    assert found, process.stdout + process.stderr
    return dict(found)


def test_a_new_module_is_under_every_contract(repository: Path, tmp_path: Path) -> None:
    shutil.copy(repository / ".importlinter", tmp_path)
    shutil.copytree(
        repository / "m2v_finetune",
        tmp_path / "m2v_finetune",
        ignore=lambda folder, names: [
            name for name in names if "." in name and not name.endswith(".py")
        ],
    )
    assert set(lint_imports(tmp_path).values()) == {"KEPT"}

    package = tmp_path / "m2v_finetune"
    (package / "newcomer.py").write_text("".join(f"import {library}\n" for library in LIBRARIES))
    (package / "labels" / "newcomer.py").write_text("import torch\n")
    states = lint_imports(tmp_path)
    # The layers too: they have no place for newcomer.py.
    assert set(states.values()) == {"BROKEN"}
    assert len(states) == 1 + len(LIBRARIES) + 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_import_public_names_only(path: Path) -> None:
    problems = private_uses(ast.parse(path.read_text(encoding="utf-8")))
    assert not problems


def private_uses(tree: ast.Module) -> list[str]:
    """Return what a recipe should not use: private names, and packages other than this one."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [f"m2v_finetune.{node.attr}"]
        else:
            continue
        for name in names:
            first, *others = name.split(".")
            is_known = first == "m2v_finetune" or first in sys.stdlib_module_names
            is_private = any(part.startswith("_") and not part.endswith("__") for part in others)
            if not is_known or is_private:
                problems.append(f"line {node.lineno}: {name}")
    return problems


@pytest.mark.parametrize(
    "line",
    [
        "from m2v_finetune.runs import _run",
        "from m2v_finetune._recipe import run",
        "import m2v_finetune._recipe",
        "from transformers import HubertModel",
        "import torch",
        "from .helpers import anything",
        "recipe._run()",
    ],
)
def test_a_private_name_in_a_recipe_is_found(line: str) -> None:
    assert private_uses(ast.parse(line))
