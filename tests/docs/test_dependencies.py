"""What is imported is declared in pyproject.toml, pinned in constraints.txt, and in the docs' table."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
USED = ("cuda", "demo", "onnx", "ray", "s3", "search", "similar")
"""Extras of the package itself."""
GROUPS = {
    "m2v_finetune": [*RUNTIME, *(one for name in USED for one in EXTRAS[name])],
    "recipes": RUNTIME,
    "tests": [*RUNTIME, *EXTRAS["dev"]],
    "benchmarks": [*RUNTIME, *EXTRAS["dev"]],
    "scripts": [*RUNTIME, *EXTRAS["dev"]],
    "docs": [*RUNTIME, *EXTRAS["dev"]],
    "examples": [*RUNTIME, *EXTRAS["onnx"]],
}
# By the package itself: Accelerate imports tensorboard, for the tracker that is always on, and
# huggingface_hub Jinja2, for the model card.
NOT_IMPORTED = {"tensorboard", "jinja2"}
NOT_INSTALLED = {"bitsandbytes": "bitsandbytes"}  # where there is no card


def names(requirements: list[str]) -> set[str]:
    """Return the normalised names of requirements."""
    return {normalised(re.split(r"[\[<>=!~; ]", one)[0]) for one in requirements}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def imported(folder: Path) -> dict[str, str]:
    """Return the distributions that the modules of a folder import, each with one of these modules."""
    distributions = installed()
    found = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names and not is_own(top):
                    name = NOT_INSTALLED.get(top) or distributions.get(top, [f"nothing: {top}"])[0]
                    found[normalised(name)] = str(path.relative_to(REPOSITORY))
    return found


installed = cache(packages_distributions)


@cache
def is_own(name: str) -> bool:
    if (REPOSITORY / name).is_dir():
        return True
    folders = [REPOSITORY / name for name in ("tests", "scripts", "benchmarks", "docs")]
    return any(
        path.stem == name and (path.suffix == ".py" or path.is_dir())
        for folder in folders
        for path in folder.rglob(f"{name}*")
    )


@pytest.mark.parametrize("folder", GROUPS)
def test_what_is_imported_is_declared(folder: str) -> None:
    found = imported(REPOSITORY / folder)
    assert found or folder == "recipes"
    declared = names(GROUPS[folder])
    missing = {name: path for name, path in found.items() if name not in declared}
    assert not missing, "declare them in pyproject.toml"


def test_what_is_declared_is_imported() -> None:
    unused = names(RUNTIME) - set(imported(REPOSITORY / "m2v_finetune")) - NOT_IMPORTED
    assert not unused


def test_what_is_declared_is_pinned_and_in_the_docs() -> None:
    pinned = names((REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert not names(RUNTIME) - pinned
    assert not names(EXTRAS["dev"]) - pinned
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Dependencies")[2]
    cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    listed = names(
        [re.split(r", (?:for|by)", name)[0] for cell in cells for name in cell.split(", ")]
    )
    assert not names(GROUPS["m2v_finetune"]) - listed, "give them a line in docs/architecture.md"
