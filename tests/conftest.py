"""Fixtures that every test may use."""

import json
import logging
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Test processes share the cores: one thread each, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Numbers are those of float32 on every machine: without bfloat16.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

# What tests cache stays out of the user's folder, and serves all tests of this process and its own.
_CACHES = tempfile.TemporaryDirectory(prefix="m2v-test-caches-")
os.environ.setdefault(  # fonts, which take seconds to look through
    "MPLCONFIGDIR",
    str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "matplotlib"),
)
os.environ["XDG_CACHE_HOME"] = _CACHES.name

REPOSITORY = Path(__file__).parent.parent


# A process takes a file at a time; with these first, both processes end at about the same time.
LONG_FILES = (
    "recipes/test_tagging_quickstart.py",
    "docs/test_docs.py",
    "wheel/test_wheel.py",
    "recipes/test_training_loop.py",
    "docs/test_site.py",
    "hub/test_hub_native.py",
    "numerics/test_memory_plan.py",
    "faults/test_data_faults.py",
    "faults/test_killed_runs.py",
    "distributed/test_two_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files that take longest come first, and keep the order of the others."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(REPOSITORY / "tests").as_posix()
        return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The shared test data: golden checkpoints and official splits, beside the checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("needs the shared test data (golden/, splits/) beside the checkout")
    return folder


@pytest.fixture(scope="session")
def small_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few clips of the quickstart data: 16 to train on, 8 to validate, 12 to test."""
    from m2v_finetune.data.quickstart import QUICKSTART_DIR

    left = {"train": 16, "validation": 8, "test": 12}
    path = tmp_path_factory.mktemp("small") / "manifest.jsonl"
    lines = []
    for line in (QUICKSTART_DIR / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if left[row["split"]] > 0:
            left[row["split"]] -= 1
            # Tags that are common enough to have both classes in so few clips.
            tags = [tag for tag in row["tags"] if tag in ("drums", "minor", "fast", "piano")]
            path_of_audio = str(QUICKSTART_DIR / row["path"])
            # With an id: windows are drawn by it, and are the same wherever the checkout is.
            track = {"id": row["id"], "path": path_of_audio, "split": row["split"], "tags": tags}
            lines.append(track)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Runs set the level of the package's log; the next test has the default again."""
    yield
    logging.getLogger("m2v_finetune").setLevel(logging.NOTSET)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates, as in names of files that are not UTF-8, and write numbers as text.

    xdist cannot send surrogates, nor numbers of numpy.
    """
    report = yield
    report.user_properties = [(name, str(value)) for name, value in report.user_properties]
    report.sections = [(name, encodable(text)) for name, text in report.sections]
    if report.longrepr is not None and encodable(report.longreprtext) != report.longreprtext:
        report.longrepr = encodable(report.longreprtext)
    return report


def encodable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured (``record_property``), whichever process they ran in."""
    reports = [r for key in ("passed", "failed") for r in terminalreporter.stats.get(key, [])]
    measured = [line for report in reports for line in getattr(report, "user_properties", [])]
    if measured:
        terminalreporter.section("measured")
        for name, value in sorted(measured):
            terminalreporter.write_line(f"{name}: {value}")
