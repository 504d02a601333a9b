"""The documentation against the package: commands run, names and links exist, tables are current.

Every shell and Python block is run (`doc_runner`), or says in a comment on the line before why not:
`<!-- needs a download -->`, or `<!-- tested by: tests/path.py::test_name -->`. Blocks of most pages run with
`make exhaustive`; the commands of all pages are parsed each time. The blocks of a page run
in their order in a folder with `songs.csv`, `music/`, `annotations/`, `song.mp3` and a finished run
`runs/songs`. The Hub is one on the loopback; there `m-a-p/music2vec-v1` and `m-a-p/MERT-v1-95M` are
stand-ins, tiny and with random weights, and `me/my-tagger` is a model already.
"""

import argparse
import ast
import csv
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import yaml
from doc_blocks import (
    COMMAND_LANGUAGES,
    DATA_LANGUAGES,
    NEEDS_A_DOWNLOAD,
    RUN_LANGUAGES,
    TESTED_BY,
    Block,
    anchors,
    pages,
    read_blocks,
    without_blocks,
)
from support.matrix import exhaustive

from m2v_finetune import __version__, cli
from m2v_finetune.audio.augmentation import Effect, build_augmentation
from m2v_finetune.backbones.checkpoints import CHECKPOINTS, SHIPPED_DIR
from m2v_finetune.data.manifest import read_dataset_info, read_manifest
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.errors import UserError
from m2v_finetune.parsing import OBJECTIVE
from m2v_finetune.settings import config_class, read_command, read_config
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.classification import Classification
from m2v_finetune.training.sizes import count_parameters
from m2v_finetune.tuning import METHODS

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PACKAGE = REPOSITORY / "m2v_finetune"
sys.path.insert(0, str(HERE.parent / "hub"))
from hub_server import HubServer  # noqa: E402

# Blocks of each page: run here, needing a download, tested elsewhere. Change it with the page.
NUM_BLOCKS = {
    "CONTRIBUTING.md": (0, 0, 2),
    "README.md": (5, 2, 7),
    "docs/adding-a-checkpoint.md": (2, 0, 0),
    "docs/adding-a-data-set.md": (1, 1, 0),
    "docs/adding-a-task.md": (1, 0, 0),
    "docs/augmentation.md": (1, 0, 0),
    "docs/benchmarking.md": (0, 3, 0),
    "docs/catalogue.md": (5, 0, 2),
    "docs/changing-a-recipe.md": (0, 0, 2),
    "docs/data-formats.md": (1, 0, 0),
    "docs/distilling.md": (0, 0, 1),
    "docs/exporting.md": (4, 0, 2),
    "docs/few-labels.md": (0, 0, 3),
    "docs/imbalance.md": (0, 0, 1),
    "docs/report.md": (0, 0, 2),
    "docs/demo.md": (0, 0, 2),
    "docs/output-files.md": (2, 0, 0),
    "docs/own-data.md": (10, 0, 0),
    "docs/own-loop.md": (2, 0, 0),
    "docs/own-task.md": (1, 0, 0),
    "docs/memory.md": (1, 0, 0),
    "docs/pretraining.md": (2, 0, 4),
    "docs/cluster.md": (0, 2, 2),
    "docs/several-gpus.md": (0, 0, 2),
    "docs/similar.md": (4, 0, 0),
    "docs/probabilities.md": (0, 0, 4),
    "docs/starting.md": (0, 0, 3),
    "docs/publishing.md": (6, 0, 0),
    "docs/python.md": (6, 0, 0),
    "docs/search.md": (0, 0, 1),
    "docs/troubleshooting.md": (1, 0, 0),
}
# Run in each run of the tests; the others by `make exhaustive`.
FIRST_PAGES = ("README.md",)
STAND_INS = ("music2vec-v1", "MERT-v1-95M")
NUM_SONGS = {"train": 8, "validation": 4, "test": 4}
TAGS = ("drums", "minor", "fast", "piano")
TOP_FOLDERS = (
    "benchmarks",
    "configs",
    "docs",
    "examples",
    "m2v_finetune",
    "recipes",
    "scripts",
    "tests",
)

BLOCKS = {page: read_blocks(page) for page in pages()}
ALL_BLOCKS = [block for blocks in BLOCKS.values() for block in blocks]


def is_run(block: Block) -> bool:
    return block.language in RUN_LANGUAGES and not is_marked(block)


def is_marked(block: Block) -> bool:
    return block.marker == NEEDS_A_DOWNLOAD or block.marker.startswith(TESTED_BY)


def write_songs(folder: Path) -> None:
    """Write songs.csv, music/song-01.ogg and so on, their annotations, and song.mp3, of quickstart clips."""
    (folder / "music").mkdir(parents=True)
    (folder / "annotations").mkdir()
    left = dict(NUM_SONGS)
    rows = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        clip = json.loads(line)
        if left[clip["split"]] == 0:
            continue
        left[clip["split"]] -= 1
        path = f"music/song-{len(rows) + 1:02d}.ogg"
        shutil.copy(QUICKSTART_DIR / clip["path"], folder / path)
        tags = ";".join(tag for tag in clip["tags"] if tag in TAGS)
        row = {"path": path, "tags": tags, "split": clip["split"], "key": clip["key"]}
        for column in ("beats", "chords"):
            row[column] = clip[column]
            shutil.copy(QUICKSTART_DIR / clip[column], folder / clip[column])
        rows.append(row)
    with (folder / "songs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    samples, sample_rate = soundfile.read(folder / "music" / "song-01.ogg")
    soundfile.write(folder / "song.mp3", samples, sample_rate)
    for name in ("recipes", "configs"):
        (folder / name).symlink_to(REPOSITORY / name)


def files_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def train(folder: Path, environment: dict[str, str]) -> None:
    """Make runs/songs by the recipe, started as users start it."""
    settings = {"data.source": "songs.csv", "run.output_dir": "runs/songs", "data.num_workers": "0"}
    settings |= {
        "training.epochs": "1",
        "data.windows_per_track": "1",
        "training.per_device_batch_size": "4",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    launcher = Path(sys.executable).parent / "accelerate"
    process = subprocess.run(
        [launcher, "launch", "recipes/tagging.py", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_every_block_is_run_or_states_why_not() -> None:
    unmarked = [
        b for b in ALL_BLOCKS if b.marker.startswith(("needs", "tested")) and not is_marked(b)
    ]
    assert not unmarked, f"comments that are no marker: {[(b.name, b.marker) for b in unmarked]}"


def test_each_way_to_use_a_model_has_a_block_that_is_tested() -> None:
    """The section that a row of the README's table links to has each call of the row in such a block."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Ways to use a model")[2].partition("## ")[0]
    row = r"^\| .+ \| (.+) \| .+\]\((docs/[\w-]+\.md)(?:#([\w-]+))?\) \|$"
    links = re.findall(row, table, flags=re.MULTILINE)
    assert len(links) == sum(line.startswith("| ") for line in table.splitlines()) - 1
    for how, page, anchor in links:
        lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
        starts = [n for n, line in enumerate(lines) if re.match("##? ", line)]
        named = [
            re.sub(r"[^\w\- ]", "", lines[n].lstrip("# ").lower()).replace(" ", "-") for n in starts
        ]
        first = starts[named.index(anchor)] if anchor else 0
        last = next((n for n in starts if n > first and anchor), len(lines))
        tested = [
            block
            for block in BLOCKS[page]
            if first < block.line <= last
            and block.language in RUN_LANGUAGES
            and block.marker != NEEDS_A_DOWNLOAD
        ]
        code = "\n".join(block.text for block in tested)
        for shown in re.findall(r"`(.+?)`", how):
            call = re.match(r"m2v(?: [a-z]+)+|python \S+|--\S+|.*?(\w+\()", shown)
            assert call, shown
            assert (call[1] or call[0]) in code, f"{shown}: {page}#{anchor}"


@pytest.mark.parametrize("which", ["first page", *exhaustive("other pages")])
def test_the_blocks_of_pages_run(which: str, tmp_path: Path) -> None:
    runnable = [
        block
        for block in ALL_BLOCKS
        if is_run(block) and (block.page in FIRST_PAGES) is (which == "first page")
    ]
    assert runnable

    with HubServer() as hub:
        for name in STAND_INS:
            files = files_of(SHIPPED_DIR / "random_small")
            hub.add_repo(CHECKPOINTS[name].hub_id or "", files)
        # One thread: on a busy machine more of them wait for each other.
        environment = os.environ | hub.environment(tmp_path / "hub") | {"OMP_NUM_THREADS": "1"}
        environment["M2V_CACHE"] = str(tmp_path / "cache")
        songs = tmp_path / "songs"
        write_songs(songs)
        train(songs, environment)
        hub.add_repo("me/my-tagger", files_of(songs / "runs" / "songs" / "model"))

        folders = {}
        for page in {block.page for block in runnable}:
            folders[page] = tmp_path / "pages" / page.replace("/", "-").removesuffix(".md")
            shutil.copytree(songs, folders[page], symlinks=True)
            for block in BLOCKS[page]:
                if block.language == "yaml" and block.file_name:
                    (folders[page] / block.file_name).write_text(block.text)
        jobs = [
            {
                "name": block.name,
                "language": block.language,
                "text": block.text,
                "commands": block.commands if block.language in COMMAND_LANGUAGES else [],
                "folder": str(folders[block.page]),
            }
            for block in runnable
        ]
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        runner = subprocess.run(
            [
                sys.executable,
                HERE / "doc_runner.py",
                tmp_path / "jobs.json",
                tmp_path / "done.json",
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert runner.returncode == 0, runner.stderr
        print(runner.stdout)  # how long each block took

    results = json.loads((tmp_path / "done.json").read_text())
    assert results.keys() == {block.name for block in runnable}
    failed = {name: problem for name, problem in results.items() if problem}
    assert not failed, "\n\n".join(f"{name}: {problem}" for name, problem in failed.items())


def test_every_command_of_a_page_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks, also those that need a download or run with `make exhaustive`, without their work."""
    monkeypatch.setenv("COLUMNS", "200")
    parser = cli.build_parser()
    num_commands: Counter[str] = Counter()
    for page, blocks in BLOCKS.items():
        folder = tmp_path / page.replace("/", "-")
        folder.mkdir()
        for name in ("recipes", "configs", "benchmarks"):
            (folder / name).symlink_to(REPOSITORY / name)
        monkeypatch.chdir(folder)
        for made in ("runs/songs/config.yaml", "search/config.yaml"):
            Path(made).parent.mkdir(parents=True)
            Path(made).write_text("data:\n  source: songs.csv\n")
        for block in blocks:
            if block.language == "yaml" and block.file_name:
                Path(block.file_name).write_text(block.text)
        for block in blocks:
            if block.language not in COMMAND_LANGUAGES:
                continue
            for command in block.commands:
                words = shlex.split(command, comments=True)
                scripts = [word for word in words if word.startswith("recipes/")]
                try:
                    if words[:1] == ["m2v"]:
                        parse_command(parser, words[1:])
                        num_commands["m2v"] += 1
                    elif scripts:
                        task = Path(scripts[0]).stem
                        read_config(task, words[words.index(scripts[0]) + 1 :])
                        num_commands["recipe"] += 1
                except (SystemExit, UserError) as error:
                    raise AssertionError(f"{block.name}: {command}: {error}") from error
    assert num_commands["m2v"] > 60
    assert num_commands["recipe"] > 10


def parse_command(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Parse a command of `m2v`; its settings too, if it has some."""
    arguments, settings = parser.parse_known_args(words)
    if not arguments.takes_settings:
        assert not settings, settings
    elif words[0] == "train":
        read_command(arguments.words + settings)
    elif task := getattr(arguments, "task", None):
        read_config(task, settings)


def test_as_many_blocks_as_the_pages_had() -> None:
    seen = {
        page: (
            sum(map(is_run, blocks)),
            sum(b.language in RUN_LANGUAGES and b.marker == NEEDS_A_DOWNLOAD for b in blocks),
            sum(b.language in RUN_LANGUAGES and b.marker.startswith(TESTED_BY) for b in blocks),
        )
        for page, blocks in BLOCKS.items()
    }
    assert {page: counts for page, counts in seen.items() if any(counts)} == NUM_BLOCKS


def commands_of(*targets: str) -> list[str]:
    """Return the commands of targets of the Makefile, with its variables filled in."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    settings = dict(
        re.findall(r"^(INSTALL|PIP|VENV|PYTHON) \??= (.+)$", makefile, flags=re.MULTILINE)
    )
    recipes = {
        target: [line.strip() for line in lines.splitlines() if not line.startswith("\ttouch")]
        for target, lines in re.findall(r"^(\S+):.*\n((?:\t.*\n?)*)", makefile, flags=re.MULTILINE)
    }
    text = "\n".join(line for target in targets for line in recipes[target])
    for name in ("INSTALL", "PIP", "VENV", "PYTHON"):
        text = text.replace(f"$({name})", settings[name])
    return [line.partition(" || ")[0] for line in text.splitlines()]  # without what is for failures


def printed_commands(page: str) -> list[list[str]]:
    return [block.commands for block in BLOCKS[page] if block.language == "bash"]


def test_the_makefile_runs_what_the_readme_prints() -> None:
    printed = printed_commands("README.md")
    assert ["make quickstart"] in printed
    assert ["make test"] in printed
    environment = ["$(VENV)/bin/python", "$(VENV)/bin/uv"]
    assert commands_of(*environment, "$(VENV)/.runtime", "quickstart") in printed
    assert commands_of(*environment, "$(VENV)/.development", "checks", "tests") in printed


def test_make_fast_is_the_first_part_of_make_test() -> None:
    assert printed_commands("CONTRIBUTING.md") == [["make fast"], ["make test"]]
    at_once = "$(MAKE) --no-print-directory --jobs 2 checks "
    assert commands_of("test", "fast") == [f"{at_once}tests", f"{at_once}unit-tests"]
    [tests], [unit_tests] = commands_of("tests"), commands_of("unit-tests")
    command, _, ignored = unit_tests.partition(" --dist worksteal tests/unit ")
    assert tests.startswith(f"{command} --dist loadfile")
    assert ignored == "$(LONGER:%=--ignore tests/unit/%)"
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    [longer] = re.findall(r"^LONGER = ((?:.*\\\n)*.*)$", makefile, flags=re.MULTILINE)
    for name in longer.replace("\\\n", "").split():
        assert (REPOSITORY / "tests" / "unit" / name).exists(), name


def test_the_citation_is_that_of_the_package() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == "m2v-finetune"
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["message"]
    assert all(author["name"] for author in citation["authors"])


def test_languages_of_blocks() -> None:
    known = {*RUN_LANGUAGES, *DATA_LANGUAGES, "", "text", "diff", "mermaid", "toml"}
    unknown = [f"{b.name}: {b.language}" for b in ALL_BLOCKS if b.language not in known]
    assert not unknown, "a block of these languages would be neither run nor read"


def test_named_tests_exist() -> None:
    for block in ALL_BLOCKS:
        if block.marker.startswith(TESTED_BY):
            path, _, name = block.marker.removeprefix(TESTED_BY).partition("::")
            text = (REPOSITORY / path).read_text(encoding="utf-8")
            assert re.search(rf"^def {re.escape(name)}\(", text, re.MULTILINE), (
                f"{block.name}: {path} has no test {name!r}"
            )


def test_blocks_of_data_are_what_the_package_reads(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    for block in ALL_BLOCKS:
        path = tmp_path / f"songs.{block.language}"
        path.write_text(block.text + "\n")
        if block.language in ("csv", "jsonl"):
            assert read_manifest(path), block.name
        elif block.language == "json":
            (tmp_path / "dataset.json").write_text(block.text)
            assert read_dataset_info(tmp_path, name="").name, block.name
        elif block.language == "yaml":
            argv = ["--data.source", "quickstart", "--config", str(path)]
            config = read_config("tagging", argv)
            build_augmentation(
                config.augmentation.transforms,
                sample_rate=16000,
                allowed_effects=frozenset(Effect),
                task="tagging",
            )
        else:
            continue
        seen[block.language] += 1
    assert seen["csv"] >= 2
    assert seen["jsonl"] >= 1
    assert seen["json"] >= 1
    assert seen["yaml"] >= 4


def test_the_example_of_each_task_is_what_it_reads(tmp_path: Path) -> None:
    import task_tables

    page = (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert list(sections) == list(TASKS)
    assert set(sections) == set(TASKS)
    for name, text in sections.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(re.findall(r"^```csv\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[0])
        tracks = read_manifest(path)
        for column in task_tables.default_columns(name):
            assert all(track.columns[column] for track in tracks), (name, column)
        if issubclass(TASKS[name], Classification):
            assert all(TASKS[name].read_label(track, name) for track in tracks), name


def test_no_other_module_names_a_task() -> None:
    """What docs/adding-a-task.md promises: a task is a module or package of its own, and its line in `TASKS`.

    Tasks are named by the table of published numbers, which needs no row for a new one, and by the public
    names of the package, for classes of predictions.
    """
    shared = {"annotation_files", "clip_prediction", "clips", "classification", "frames"}
    shared |= {"label_names", "labelled", "losses", "shown", "task"}
    modules = {path.stem for path in (PACKAGE / "tasks").glob("[a-z]*")}
    own = modules - shared
    assert len(own) == len(TASKS)
    for path in PACKAGE.rglob("*.py"):
        naming = (PACKAGE / "benchmarking" / "rows.py", PACKAGE / "__init__.py")
        if PACKAGE / "tasks" in path.parents or path in naming:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not named & {f"m2v_finetune.tasks.{one}" for one in own}, path


def test_links_lead_somewhere() -> None:
    num_links = 0
    for page in BLOCKS:
        folder = (REPOSITORY / page).parent
        for target in re.findall(r"\]\(<?([^)>\s]+)>?\)", without_blocks(page)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            linked = folder / path if path else REPOSITORY / page
            assert linked.exists(), f"{page}: no {target}"
            assert not anchor or anchor in anchors(linked), f"{page}: no heading for {target}"
            num_links += 1
    assert num_links >= 20


def test_files_in_backticks_exist() -> None:
    num_paths = 0
    for page in BLOCKS:
        for code in re.findall(r"`([^`\n]+)`", without_blocks(page)):
            for word in code.split():
                if re.fullmatch(rf"({'|'.join(TOP_FOLDERS)})/[\w./-]*", word):
                    assert (REPOSITORY / word).exists(), f"{page}: no {word}"
                    num_paths += 1
    assert num_paths >= 20


def test_settings_in_the_text_exist() -> None:
    sections: dict[str, set[str]] = {}
    for name in (*TASKS, "pretrain"):
        # Types are classes here: config and the recipes do not postpone annotations.
        for section in config_class(name).__dataclass_fields__.values():
            if section.name == OBJECTIVE:  # in no section
                continue
            keys = sections.setdefault(section.name, set())
            keys.update(section.type.__dataclass_fields__)
    num_settings = 0
    for page in BLOCKS:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        settings = re.findall(rf"--({'|'.join(sections)})\.(\w+)", text)
        settings += re.findall(rf"`({'|'.join(sections)})\.(\w+)`", text)
        for section, key in settings:
            if key in ("json", "png", "safetensors", "yaml"):  # a file
                continue
            assert key in sections[section], f"{page}: there is no setting {section}.{key}"
            num_settings += 1
    assert num_settings >= 20


def test_messages_in_the_tables_are_those_of_the_package() -> None:
    source_text = "\n".join(message_texts())
    listed = []
    for page in ("docs/troubleshooting.md", "docs/publishing.md"):
        rows = re.findall(r"^\| (`.*?) \|", without_blocks(page), flags=re.MULTILINE)
        listed += [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    messages = [message for message in listed if message not in ("trained", "all", "auto")]
    # Where the page has "...", the package puts in a value.
    patterns = {
        m: r"[^\n]*".join(re.escape(p.strip(" '")) for p in m.split("...")) for m in messages
    }
    missing = [
        message for message, pattern in patterns.items() if not re.search(pattern, source_text)
    ]
    assert not missing, "the package says none of these"
    assert len(messages) >= 30


def message_texts() -> list[str]:
    """Every string of the package in one line, with "..." for what is put in."""
    found = []
    for path in sorted((REPOSITORY / "m2v_finetune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [text.replace("\n", " ") for text in found]


def test_reference_tables_are_current() -> None:
    import reference_tables

    for page in reference_tables.TABLES:
        text = page.read_text(encoding="utf-8")
        current = reference_tables.with_tables(page)
        assert current == text, f"{page}: run python docs/tables/reference_tables.py"
    assert len(reference_tables.TABLES) == 6


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_has_the_members_that_the_table_lists(name: str) -> None:
    import reference_tables

    members = reference_tables.task_members()
    assert len(members) > 20
    assert all(members.values())
    task = TASKS[name]
    fields = (
        task.__dataclass_fields__.keys()
    )  # those without a default are no attributes of the class
    assert not [member for member in members if not hasattr(task, member) and member not in fields]
    assert task.name == name


def test_the_quickstart_table_is_what_was_measured():
    script = runpy.run_path(
        str(REPOSITORY / "benchmarks" / "quickstart_tasks.py"), run_name="table"
    )
    results = REPOSITORY / "benchmarks" / "results" / "quickstart_tasks.json"
    measured = json.loads(results.read_text(encoding="utf-8"))["tasks"]
    assert set(measured) <= set(TASKS)  # a new task need not be measured
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = readme.split("<!-- quickstart table: begin -->\n")[1].split("\n<!-- quickstart")[0]
    assert shown == script["table"](measured)


def test_the_table_of_heads_is_what_was_measured():
    import default_head

    page = (REPOSITORY / "docs" / "defaults.md").read_text(encoding="utf-8")
    found = json.loads(default_head.RESULT.read_text(encoding="utf-8"))
    assert default_head.table(found) in page


def test_the_table_of_onnx_speed_is_what_was_measured():
    import onnx_speed

    page = (REPOSITORY / "docs" / "exporting.md").read_text(encoding="utf-8")
    found = json.loads(onnx_speed.RESULT.read_text(encoding="utf-8"))
    assert onnx_speed.table(found["backbones"]) in page


def test_the_table_of_nearest_tracks_is_what_was_measured():
    import similar

    page = (REPOSITORY / "docs" / "similar.md").read_text(encoding="utf-8")
    shown = page.split("<!-- measured: begin -->\n")[1].split("\n<!-- measured: end")[0]
    assert shown == similar.table(json.loads(similar.RESULT.read_text(encoding="utf-8")))


def test_the_table_of_tuning_methods_is_what_was_measured():
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "tuning_methods.py"), run_name="table")
    results = REPOSITORY / "benchmarks" / "results" / "tuning_methods.json"
    measured = json.loads(results.read_text(encoding="utf-8"))["methods"]
    assert set(measured) == set(METHODS)
    page = (REPOSITORY / "docs" / "tuning.md").read_text(encoding="utf-8")
    shown = page.split("<!-- measured: begin -->\n")[1].split("\n<!-- measured: end")[0]
    assert shown == script["table"](measured)
    # Of the quickstart as it is now.
    backbone = json.loads(results.read_text(encoding="utf-8"))["backbone"]
    assert f"backbone is `{backbone}`" in page.replace("\n", " ")
    for method in METHODS:
        config = script["settings"](method)
        assert config.backbone.source == backbone
        trained = count_parameters(script["build"](config).backbone, trained_only=True)
        assert trained == measured[method]["of_the_backbone"], method


def test_the_table_of_speed_is_what_was_measured():
    script = runpy.run_path(
        str(REPOSITORY / "benchmarks" / "performance_table.py"), run_name="table"
    )
    page = script["PAGE"].read_text(encoding="utf-8")
    assert page.split(script["START_MARKER"])[1].split(script["END"])[0] == script["table"]()


def test_the_tables_of_the_small_backbone_are_what_was_measured():
    script = runpy.run_path(
        str(REPOSITORY / "benchmarks" / "small_backbone_tables.py"), run_name="tables"
    )
    tables = script["all_tables"]()
    assert len(tables) == 4
    for (page, name), table in tables.items():
        assert script["with_table"](page, name, table) == page.read_text(encoding="utf-8"), name
    runs, _ = script["read"](script["EARLIER_RESULT"])
    assert all(len(seeds) == 3 for rows in runs.values() for seeds in rows.values())


def test_the_table_of_held_out_sound_is_what_was_measured():
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "held_out_table.py"), run_name="table")
    page = script["PAGE"].read_text(encoding="utf-8")
    table = script["all_tables"](REPOSITORY / "benchmarks" / "results" / "held_out_sound.jsonl")
    assert script["with_table"](script["PAGE"], "held-out sound", table) == page
    short = script["short_table"](REPOSITORY / "benchmarks" / "results" / "held_out_sound.jsonl")
    readme = script["README"].read_text(encoding="utf-8")
    assert script["with_table"](script["README"], "held-out sound", short) == readme


def test_the_table_of_trials_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    script = runpy.run_path(
        str(REPOSITORY / "benchmarks" / "small_backbone_trials.py"), run_name="trials"
    )
    page = script["PAGE"].read_text(encoding="utf-8")
    table = script["table"](script["RESULT"])
    assert script["with_table"](script["PAGE"], "objective trials", table) == page


def test_the_table_of_objectives_is_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    script = runpy.run_path(
        str(REPOSITORY / "benchmarks" / "small_backbone_objectives.py"), run_name="objectives"
    )
    page = script["PAGE"].read_text(encoding="utf-8")
    table = script["tables"](script["RESULT"])
    assert script["with_table"](script["PAGE"], "objectives", table) == page


def test_the_authors_of_the_pretraining_music_are_on_their_page(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    script = runpy.run_path(
        str(REPOSITORY / "scripts" / "gather_pretraining_music.py"), run_name="gather"
    )
    page = (REPOSITORY / "docs" / "pretraining-music.md").read_text(encoding="utf-8")
    assert f"<!-- authors: begin -->\n{script['authors_page']()}\n<!-- authors: end -->" in page
    card = SHIPPED_DIR / "filterbank_small" / "README.md"
    assert f"\n\n{script['authors_page']()}\n\n" in card.read_text(encoding="utf-8")


def test_the_memory_tables_are_what_was_counted():
    script = runpy.run_path(str(REPOSITORY / "benchmarks" / "memory_table.py"), run_name="tables")
    found = json.loads(script["RESULT"].read_text(encoding="utf-8"))
    cells = {
        (cell["checkpoint"], cell["method"], cell["window_seconds"]) for cell in found["cells"]
    }
    assert cells == set(
        itertools.product(script["CHECKPOINTS"], script["METHODS"], script["WINDOWS_SECONDS"])
    )
    page = script["PAGE"].read_text(encoding="utf-8")
    for name, table in script["tables"](found).items():
        assert page == script["replaced"](page, name, table)
        assert table in page
    again = script["cell"]("MERT-v0", "probe", 5.0)
    [known] = (
        cell
        for cell in found["cells"]
        if (cell["checkpoint"], cell["method"], cell["window_seconds"]) == ("MERT-v0", "probe", 5.0)
    )
    assert {**known, **again} == known


def test_the_seconds_of_plans_are_what_was_measured(monkeypatch):
    benchmarks = REPOSITORY / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    script = runpy.run_path(str(benchmarks / "plan_seconds.py"), run_name="tables")
    table = script["table"](json.loads(script["RESULT"].read_text(encoding="utf-8")))
    assert f"<!-- seconds -->\n{table}\n<!-- end of seconds -->" in script["PAGE"].read_text(
        "utf-8"
    )
