"""The documentation site: the strict build, its links, and the notebooks."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.forked import run_forked

from m2v_finetune.data.quickstart import QUICKSTART_DIR

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
# Settings that make a run short; the rest of a notebook is run as it is.
SHORT = """
import m2v_finetune.runs

whole = m2v_finetune.runs.read_config
short = ["--data.source", {manifest!r}, "--training.epochs", "1", "--data.windows_per_track", "1"]
short += ["--data.num_workers", "0", "--backbone.source", "filterbank-small"]
m2v_finetune.runs.read_config = lambda task, words: whole(task, [*words, *short])
"""


def code_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    site = tmp_path / "site"
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}
    missing = [page for page in pages if not (site / page / "index.html").is_file()]
    assert not missing
    # Links out of docs/ lead to copies, and docstrings are on the reference page.
    assert (site / "repository" / "benchmarks" / "kills.py").is_file()
    assert (
        'href="../repository/benchmarks/training_step.py"'
        in (site / "performance" / "index.html").read_text()
    )
    assert "predict_many" in (site / "reference" / "index.html").read_text()
    for notebook in NOTEBOOKS:
        page = (site / "notebooks" / notebook.stem / "index.html").read_text()
        assert notebook.name in page
    # The site loads nothing from other servers.
    home = (site / "index.html").read_text()
    assert "fonts.googleapis.com" not in home


def test_every_page_is_in_the_navigation() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.name for path in (REPOSITORY / "docs").glob("*.md")]
    assert len(pages) > 20
    assert not [page for page in pages if f": {page}\n" not in text]


def test_notebooks_have_no_outputs() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                ast.parse("".join(cell["source"]))


def run_notebook(name: str, folder: Path, manifest: Path | None = None) -> str:
    """Run the code of a notebook in a process of its own; return what it prints."""
    path = REPOSITORY / "docs" / "notebooks" / f"{name}.ipynb"
    code = code_of(path)
    if manifest is not None:
        code = SHORT.format(manifest=str(manifest)) + code
    (folder / "notebook.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = run_forked([folder / "notebook.py"], environment=environment, folder=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.exhaustive
def test_the_notebook_of_a_tagger(tmp_path: Path, small_manifest: Path) -> None:
    printed = run_notebook("own-tagger", tmp_path, small_manifest)
    assert "roc_auc: " in printed
    assert "0.0 s: " in printed


@pytest.mark.slow
def test_the_notebook_of_nearest_songs(tmp_path: Path) -> None:
    printed = run_notebook("nearest-songs", tmp_path)
    [shape, nearest, *others] = printed.splitlines()
    assert shape == "(12, 192)"
    assert nearest == "1.00  test-000.ogg"  # itself
    assert len(others) == 3


@pytest.mark.exhaustive
def test_the_notebook_of_beats(tmp_path: Path) -> None:
    printed = run_notebook("beats-of-a-folder", tmp_path, beats_manifest(tmp_path))
    found = re.findall(r"^(test-\d+\.ogg): (\S+) bpm, (\d+) beats$", printed, re.MULTILINE)
    assert len(found) == len(set(found)) == 6
    for name, _, num_beats in found:
        lines = (tmp_path / "found" / f"{name}.beats").read_text().splitlines()
        assert len(lines) == int(num_beats)
    assert any(num_beats != "0" for _, _, num_beats in found)


def beats_manifest(folder: Path) -> Path:
    """Write a manifest of a few clips that ship, with their beats."""
    left = {"train": 8, "validation": 4, "test": 4}
    path = folder / "beats.jsonl"
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        clip = json.loads(line)
        if left[clip["split"]] > 0:
            left[clip["split"]] -= 1
            (folder / "annotations").mkdir(exist_ok=True)
            shutil.copy(QUICKSTART_DIR / clip["beats"], folder / clip["beats"])
            audio = str(QUICKSTART_DIR / clip["path"])
            rows.append({"path": audio, "split": clip["split"], "beats": clip["beats"]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
