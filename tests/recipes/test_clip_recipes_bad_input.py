"""Labels that a clip task cannot use: its recipe ends with one message and exit code 2, and leaves nothing.

The recipes run as a user runs them, from their files with a command line, but in this process, because
their imports take most of the time. What is common to all recipes is in test_tagging_bad_input.py.
"""

import json
import logging
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from support.messages import names

from m2v_finetune.data.quickstart import QUICKSTART_DIR

SPLITS = ("train", "train", "train", "train", "validation", "validation", "test", "test")
# The smallest run there is.
SMALL = {
    "backbone.source": "random-small",
    "data.window_seconds": "1.0",
    "data.num_workers": "0",
    "head.kind": "linear",
    "training.epochs": "1",
    "data.windows_per_track": "1",
    "training.per_device_batch_size": "2",
}
PITCHES = [60, 62, 60, 62, 62, 60, 60, 62]


class Recipes:
    """Runs a recipe on a manifest in `folder`, with `folder / "run"` as the run folder."""

    def __init__(
        self,
        folder: Path,
        repository: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder = folder
        self.run_folder = folder / "run"
        self.repository = repository
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def run(self, name: str, labels: dict[str, Sequence[Any]], *arguments: str) -> tuple[int, str]:
        """Run on eight clips with these columns; return the exit code and stderr."""
        numbered: dict[str, int] = dict.fromkeys(SPLITS, 0)
        lines = []
        for number, split in enumerate(SPLITS):
            audio = QUICKSTART_DIR / "audio" / f"{split}-{numbered[split]:03d}.ogg"
            cells = {column: values[number] for column, values in labels.items()}
            lines.append(json.dumps({"path": str(audio), "split": split, **cells}) + "\n")
            numbered[split] += 1
        manifest = self.folder / "songs.jsonl"
        manifest.write_text("".join(lines), encoding="utf-8")
        settings = SMALL | {"data.source": str(manifest), "run.output_dir": str(self.run_folder)}
        words = [word for key, value in settings.items() for word in (f"--{key}", value)]
        recipe = str(self.repository / "recipes" / f"{name}.py")
        self.monkeypatch.setattr(sys, "argv", [recipe, *words, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(recipe, run_name="__main__")
        return int(ended.value.code or 0), self.capsys.readouterr().err

    def refuses(self, name: str, labels: dict[str, Sequence[Any]], *arguments: str) -> str:
        """Assert that the run is refused with one message, and return that."""
        code, stderr = self.run(name, labels, *arguments)
        assert code == 2, stderr
        assert "Traceback" not in stderr
        assert stderr.count("error: ") == 1, stderr
        assert [path.name for path in self.folder.iterdir()] == ["songs.jsonl"]
        return stderr[stderr.index("error: ") :]


@pytest.fixture
def recipes(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Recipes]:
    """The recipes, run in this process; afterwards logging and Accelerate are as they were."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    yield Recipes(tmp_path, repository, monkeypatch, capsys)
    root.handlers[:], root.level = before
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def problems(message: str) -> list[str]:
    return [line.removeprefix("  - ") for line in message.splitlines() if line.startswith("  - ")]


def test_keys_that_are_none(recipes: Recipes) -> None:
    keys = ["C major", "C dorian", "C major / A minor", "A minor", None, "F", "H minor", "Bb major"]
    message = recipes.refuses("key", {"key": keys})
    assert "(5):" in message
    listed = problems(message)
    assert [problem.split(": ")[0] for problem in listed] == [
        f"songs.jsonl:{line}" for line in (2, 3, 5, 6, 7)
    ]
    reasons = ("dorian", "more than one key", "found None", "names no mode", "names no key")
    for problem, reason in zip(listed, reasons, strict=True):
        assert reason in problem


def test_pitches_that_are_none(recipes: Recipes) -> None:
    message = recipes.refuses("pitch", {"pitch": [60, 128, "A4", 62, 61, -1, 60.5, 60]})
    needed = "a MIDI number from 0 to 127 is needed, found"
    assert problems(message) == [
        f"songs.jsonl:2: {needed} 128",
        f"songs.jsonl:3: {needed} 'A4'",
        "songs.jsonl:5: unknown class '61'",
        f"songs.jsonl:6: {needed} -1",
        f"songs.jsonl:7: {needed} 60.5",
    ]


def test_numbers_that_are_none(recipes: Recipes) -> None:
    arousal = [0.1, "calm", 0.3, float("nan"), 0.2, float("inf"), 0.1, 0.2]
    message = recipes.refuses("emotion", {"arousal": arousal, "valence": [*range(7), ""]})
    assert problems(message) == [
        "songs.jsonl:2: arousal is 'calm', which is not a finite number",
        "songs.jsonl:4: arousal is nan, which is not a finite number",
        "songs.jsonl:6: arousal is inf, which is not a finite number",
        "songs.jsonl:8: valence is '', which is not a finite number",
    ]


def test_numbers_that_never_change(recipes: Recipes) -> None:
    labels = {"arousal": [0.1] * 8, "valence": range(8)}
    message = recipes.refuses("emotion", labels)
    assert "arousal" in message
    assert "valence" not in message
    assert "task.target_columns" in message


def test_columns_of_numbers_that_nobody_has(recipes: Recipes) -> None:
    message = recipes.refuses(
        "emotion", {"arousal": range(8)}, "--task.target_columns", "[arousal, energy]"
    )
    assert "'energy'" in message
    assert ": arousal." in message
    assert "--task.target_columns" in message


def test_classes_that_no_training_track_has(recipes: Recipes) -> None:
    genres = ["rock", "jazz", "rock", ["jazz", "rock"], "polka", "jazz", "", "ska"]
    message = recipes.refuses("genre", {"genre": genres})
    assert problems(message) == [
        "songs.jsonl:4: one class is needed, found ['jazz', 'rock']",
        "songs.jsonl:5: unknown class 'polka'",
        "songs.jsonl:7: one class is needed, found ''",
        "songs.jsonl:8: unknown class 'ska'",
    ]
    assert ": jazz, rock." in message


def test_classes_to_learn_that_nobody_has(recipes: Recipes) -> None:
    message = recipes.refuses(
        "singer", {"singer": ["f1", "m1"] * 4}, "--task.labels", "[f1, m1, m2, m3]"
    )
    assert "task.labels" in message
    assert "(2):" in message
    assert problems(message) == ["m2", "m3"]
    assert ": f1, m1." in message


def test_a_setting_of_another_task(recipes: Recipes) -> None:
    message = recipes.refuses("key", {"key": ["C major"] * 8}, "--task.labels", "[C major]")
    assert "task.labels" in message
    assert "--help" in message


@pytest.mark.parametrize(
    ("name", "labels", "transform", "reason"),
    [
        ("instrument", {"instrument": ["a", "b"] * 4}, "pitch_shift", "moves pitch"),
        ("singer", {"singer": ["a", "b"] * 4}, "low_pass", "changes the timbre"),
        ("technique", {"technique": ["a", "b"] * 4}, "time_stretch", "changes the tempo"),
        ("emotion", {"arousal": range(8), "valence": range(8)}, "gain", "changes the level"),
    ],
)
def test_augmentation_that_the_labels_cannot_follow(
    recipes: Recipes, name: str, labels: dict[str, Sequence[Any]], transform: str, reason: str
) -> None:
    message = recipes.refuses(
        name, labels, "--augmentation.transforms", f"[{{name: {transform}, p: 0.5}}]"
    )
    assert f"augmentation: {transform} " in message
    assert reason in message
    assert names(message, f"'{name}'")


def test_the_run_that_the_cases_break_is_valid(recipes: Recipes) -> None:
    """With good labels and augmentation that moves them, the run goes through to its results."""
    shift = "[{name: pitch_shift, p: 1.0, min_semitones: -3, max_semitones: 3}]"
    code, stderr = recipes.run(
        "pitch", {"pitch": PITCHES}, "--augmentation.transforms", shift, "--task.labels", "[60, 62]"
    )
    assert code == 0, stderr
    results = json.loads((recipes.run_folder / "results.json").read_text())
    assert set(results["metrics"]) == set(results["metric_names"])
    assert list(results["per_label"]) == ["60", "62"]
    assert "RANDOM WEIGHTS, a demonstration" in stderr
    for metric in results["metric_names"].values():
        assert f"Test {metric} of 2 tracks" in stderr
