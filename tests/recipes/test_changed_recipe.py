"""Recipes that a person copied and changed, as docs/changing-a-recipe.md shows."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from m2v_finetune.shipped import copy_recipe

PAGE = Path(__file__).parents[2] / "docs" / "changing-a-recipe.md"
SHORT = (
    *("--backbone.source", "random-small", "--data.num_workers", "0", "--data.window_seconds", "1"),
    *("--training.epochs", "1", "--task.labels", "[drums, minor, fast, piano]"),
)


def block(language: str) -> str:
    """Return the one block of a language of the page."""
    [text] = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return text


def run(recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[dict]:
    """Run a recipe file; return the lines of its metrics.jsonl."""
    monkeypatch.setattr(sys, "argv", [str(recipe), *SHORT, *words, f"--run.output_dir={folder}"])
    runpy.run_path(str(recipe), run_name="recipe")["main"]()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_recipe_with_another_loss(
    tmp_path: Path, small_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's loss lies below the package's at every line: it is that loss, weighted by (1 - p)^2."""
    recipe, _ = copy_recipe("tagging", tmp_path / "mine")
    data = ("--data.source", str(small_manifest))
    first = run(recipe, tmp_path / "first", monkeypatch, *data)

    removed, added = (line[1:] + "\n" for line in block("diff").splitlines())
    text = recipe.read_text()
    assert text.count(removed) == 1
    imports = "import torch\nimport torch.nn.functional as F\n\n"
    text = text.replace(removed, added).replace(
        "from m2v_finetune", imports + "from m2v_finetune", 1
    )
    recipe.write_text(text.replace("def main()", f"{block('python')}\n\ndef main()"))
    changed = run(recipe, tmp_path / "changed", monkeypatch, *data)

    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (first, changed)]
    assert len(losses[0]) == len(losses[1]) >= 1
    assert all(0 < new < 0.6 * old for old, new in zip(*losses, strict=True))
