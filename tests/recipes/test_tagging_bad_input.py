"""What a person can get wrong when starting a run: one message, exit code 2, nothing written.

The recipe runs as a user runs it, from its file with its command line, but in this process, because
its imports take most of the time. What depends on the environment runs in a process of its own: the
network, and a full disk, which is a real one, a small tmpfs of that process alone.
"""

import json
import logging
import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from support.forked import run_forked
from support.messages import raises
from support.processes import cpu_environment

from m2v_finetune.audio.augmentation import TRANSFORMS
from m2v_finetune.backbones.checkpoints import SHIPPED_DIR
from m2v_finetune.data.quickstart import QUICKSTART_DIR
from m2v_finetune.training.sizes import require_space

RECIPE = Path(__file__).parents[2] / "recipes" / "tagging.py"
SPLITS = ("train", "train", "train", "train", "validation", "validation", "test", "test")
TAGS = [["drums"], ["piano", "drums"], ["piano"], ["flute"]] * 2
# The smallest run there is; each case breaks one thing of it.
SMALL = {
    "backbone.source": "random-small",
    "data.window_seconds": "1.0",
    "data.num_workers": "0",
    "head.kind": "linear",
    "training.epochs": "1",
    "data.windows_per_track": "1",
    "training.per_device_batch_size": "2",
}

Rows = list[dict[str, Any]]


class Outcome(NamedTuple):
    """How a run ended."""

    code: int
    stderr: str

    @property
    def message(self) -> str:
        """All from the one line that begins with `error: `."""
        assert self.stderr.count("error: ") == 1, self.stderr
        return self.stderr[self.stderr.index("error: ") :]


@pytest.fixture
def songs(tmp_path: Path) -> Rows:
    """Rows of a manifest of eight quickstart clips, four of them for training."""
    audio = QUICKSTART_DIR / "audio"
    numbered: dict[str, int] = dict.fromkeys(SPLITS, 0)
    rows = []
    for split, tags in zip(SPLITS, TAGS, strict=True):
        path = audio / f"{split}-{numbered[split]:03d}.ogg"
        rows.append({"path": str(path), "split": split, "tags": tags})
        numbered[split] += 1
    return rows


@pytest.fixture
def recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator["Recipe"]:
    """The recipe, run in this process; afterwards logging and Accelerate are as they were."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    yield Recipe(tmp_path, monkeypatch, capsys)
    root.handlers[:], root.level = before
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


class Recipe:
    """Runs the recipe on a manifest in `folder`, with `folder / "run"` as the run folder."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder = folder
        self.run_folder = folder / "run"
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def command(self, rows: Rows, *arguments: str) -> list[str]:
        """Write the manifest and return the command line."""
        write_manifest(self.folder / "songs.jsonl", rows)
        return command_line(self.folder, *arguments)

    def run(self, rows: Rows, *arguments: str) -> Outcome:
        """Run to the end."""
        self.monkeypatch.setattr(sys, "argv", [str(RECIPE), *self.command(rows, *arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(RECIPE), run_name="__main__")
        return Outcome(int(ended.value.code or 0), self.capsys.readouterr().err)

    def refuses(self, rows: Rows, *arguments: str, expected: Sequence[str]) -> str:
        """Assert that the run is refused with one message that holds all of `says`."""
        self.command(rows)
        before = tree(self.folder)
        outcome = self.run(rows, *arguments)
        assert_refused(outcome, expected)
        assert tree(self.folder) == before
        return outcome.message


def assert_refused(outcome: Outcome, expected: Sequence[str]) -> None:
    assert outcome.code == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    missing = [words for words in expected if words not in outcome.message]
    assert not missing, f"{missing} not in: {outcome.message}"


def write_manifest(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def command_line(folder: Path, *arguments: str) -> list[str]:
    settings = SMALL | {
        "data.source": str(folder / "songs.jsonl"),
        "run.output_dir": str(folder / "run"),
    }
    return [word for key, value in settings.items() for word in (f"--{key}", value)] + [*arguments]


def tree(folder: Path) -> dict[str, int]:
    """Every file and folder below, with its size."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*")}


def start(
    arguments: Sequence[str], *, prefix: Sequence[str] = (), cwd: Path, **variables: str
) -> Outcome:
    """Run the recipe in a process of its own."""
    process = subprocess.run(
        [*prefix, sys.executable, str(RECIPE), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(RECIPE.parents[1]), "COLUMNS": "300"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(process.returncode, process.stderr)


# -- audio ----------------------------------------------------------------------------------------


def break_files(folder: Path, songs: Rows) -> dict[str, str]:
    """Point five of eight rows at files that cannot be used; return what is wrong with each."""
    whole = Path(songs[0]["path"]).read_bytes()
    (folder / "empty.ogg").write_bytes(b"")
    (folder / "text.wav").write_text("this is no music")
    (folder / "cut.ogg").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "nan.wav", np.full(48000, np.nan), 24000, subtype="FLOAT")
    reasons = {
        "absent.ogg": "no such file",
        "empty.ogg": "empty file (0 bytes)",
        "text.wav": "no audio that can be read",
        "cut.ogg": "truncated",
        "nan.wav": "NaN or infinite samples",
    }
    for row, name in zip((songs[i] for i in (0, 1, 2, 4, 6)), reasons, strict=True):
        row["path"] = name
    return reasons


def test_all_bad_tracks_are_listed_at_once(recipe: Recipe, songs: Rows) -> None:
    reasons = break_files(recipe.folder, songs)
    message = recipe.refuses(
        songs, expected=["Of 8 tracks, these cannot be used (5)", "--data.on_bad_track skip"]
    )
    lines = [line for line in message.splitlines() if line.startswith("  - ")]
    assert len(lines) == len(reasons)
    for number, (name, reason) in zip((1, 2, 3, 5, 7), reasons.items(), strict=True):
        [line] = [line for line in lines if name in line]
        assert f"songs.jsonl:{number}: " in line
        assert str(recipe.folder / name) in line
        assert reason in line


def test_bad_tracks_are_skipped_and_counted_on_request(recipe: Recipe, songs: Rows) -> None:
    reasons = break_files(recipe.folder, songs)
    outcome = recipe.run(songs, "--data.on_bad_track", "skip")
    assert outcome.code == 0, outcome.stderr
    results = json.loads((recipe.run_folder / "results.json").read_text())
    assert results["num_skipped_tracks"] == {"train": 3, "validation": 1, "test": 1}
    assert results["num_tracks"] == 1
    for name in reasons:
        assert f"{recipe.folder / name}: " in outcome.stderr.replace("\n", "")


def test_a_split_without_a_usable_track_stops_even_when_bad_tracks_are_skipped(
    recipe: Recipe, songs: Rows
) -> None:
    for row in songs:
        if row["split"] == "test":
            row["path"] = f"absent-{row['path'].rpartition('/')[2]}"
    recipe.refuses(
        songs,
        "--data.on_bad_track",
        "skip",
        expected=["None of the 2 tracks of the split 'test' can be used", "Repair or replace"],
    )


# -- the manifest ---------------------------------------------------------------------------------


def test_unknown_label(recipe: Recipe, songs: Rows) -> None:
    songs[6]["tags"] = ["drums", "theremin"]
    songs[4]["tags"] = ["kazoo"]
    recipe.refuses(
        songs,
        expected=[
            "songs.jsonl:7: unknown label 'theremin'",
            "songs.jsonl:5: unknown label 'kazoo'",
            "on no training track",
            "--task.ignore_unknown_labels true",
        ],
    )


def test_label_that_is_not_among_those_to_learn(recipe: Recipe, songs: Rows) -> None:
    recipe.refuses(
        songs,
        "--task.labels",
        "[drums, piano]",
        expected=[
            "not in task.labels",
            "songs.jsonl:4: unknown label 'flute'",
            "--task.ignore_unknown_labels true",
        ],
    )


def test_label_that_nobody_has(recipe: Recipe, songs: Rows) -> None:
    recipe.refuses(
        songs,
        "--task.labels",
        "[drums, piano, flute, zither]",
        expected=["task.labels that no training track has", "zither", "drums, flute, piano"],
    )


def test_no_column_of_labels(recipe: Recipe, songs: Rows) -> None:
    recipe.refuses(
        songs,
        "--task.label_column",
        "genre",
        expected=["No track has a column 'genre'", "There are: tags", "--task.label_column"],
    )


def test_duplicate_path_and_track_in_two_splits(recipe: Recipe, songs: Rows) -> None:
    songs[1]["path"] = songs[0]["path"]
    # The same file by another name.
    songs[7]["path"] = str(Path(songs[4]["path"]).parent / "." / Path(songs[4]["path"]).name)
    message = recipe.refuses(
        songs,
        expected=[
            "songs.jsonl:2: duplicate path",
            "already at songs.jsonl:1",
            "songs.jsonl:8: ",
            "is in two splits: test here, validation at songs.jsonl:5",
            "Correct these lines",
        ],
    )
    assert message.count("  - ") == 2


def test_unknown_split(recipe: Recipe, songs: Rows) -> None:
    songs[2]["split"] = "holdout"
    recipe.refuses(songs, expected=["songs.jsonl:3", "'holdout'", "train, validation, test"])


def test_split_without_a_track(recipe: Recipe, songs: Rows) -> None:
    recipe.refuses(songs[:6], expected=["no track in test", "Or remove the splits"])


def test_line_that_is_not_json(recipe: Recipe, songs: Rows) -> None:
    (recipe.folder / "broken.jsonl").write_text('{"path": "a.ogg"}\n{"path": \n')
    source = str(recipe.folder / "broken.jsonl")
    recipe.refuses(songs, "--data.source", source, expected=["broken.jsonl:2", "not JSON"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere.csv", ["There is no data at 'nowhere.csv'", "manifest", "quickstart"]),
        ("empty.jsonl", ["empty.jsonl lists no track", "one line a track"]),
        ("folder", ["The folder folder holds no manifest", "no audio in folders named by label"]),
    ],
)
def test_no_data_at_the_source(
    recipe: Recipe, songs: Rows, source: str, expected: Sequence[str]
) -> None:
    (recipe.folder / "empty.jsonl").touch()
    (recipe.folder / "folder").mkdir()
    recipe.refuses(songs, "--data.source", source, expected=expected)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--optimizer.learning_rat", "0.1"],
            ["learning_rat", "optimizer.learning_rate", "--help"],
        ),
        (["--optimiser.learning_rate", "0.1"], ["optimiser", "optimizer.learning_rate", "--help"]),
        (["--training.epochs", "many"], ["training.epochs", "many", "int"]),
        (["--training.epochs", "1.5"], ["training.epochs", "1.5", "int"]),
        (["--training.epochs", "0"], ["training.epochs is 0", "at least 1"]),
        (["--tuning.method", "magic"], ["tuning.method", "magic", "probe", "lora", "full"]),
        (["--data.hop_seconds", "9"], ["data.hop_seconds is 9", "at most the window"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--run.resume", "auto", "--run.output_dir=null"], ["run.output_dir must name the run"]),
        (["--backbone.num_layers", "9"], ["random-small has 4 transformer layers", "0 to 4"]),
        (["--backbone.source", "nowhere"], ["no backbone 'nowhere'", "music2vec-v1", "MERT-v0"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_setting_that_cannot_be_used(
    recipe: Recipe, songs: Rows, arguments: list[str], expected: Sequence[str]
) -> None:
    recipe.refuses(songs, *arguments, expected=expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {epoch: 3}", ["epoch", "training.epochs", "--help"]),
        ("trainings: {epochs: 3}", ["trainings", "--help"]),
        ("training: {epochs: three}", ["training.epochs", "three", "int"]),
        ("training: [epochs", ["settings.yaml"]),
    ],
)
def test_config_file_that_cannot_be_used(
    recipe: Recipe, songs: Rows, text: str, expected: Sequence[str]
) -> None:
    (recipe.folder / "settings.yaml").write_text(text)
    recipe.refuses(songs, "--config", "settings.yaml", expected=expected)


def test_window_too_short(recipe: Recipe, songs: Rows) -> None:
    recipe.refuses(
        songs,
        "--data.window_seconds",
        "0.01",
        expected=["A window of 0.01 s gives 0 frames", "data.window_seconds to at least"],
    )


def test_augmentation_that_the_labels_do_not_survive(recipe: Recipe, songs: Rows) -> None:
    songs[0]["tags"] = ["drums", "fast"]
    message = recipe.refuses(
        songs,
        "--augmentation.transforms",
        "[{name: time_stretch, p: 0.5}]",
        expected=["time_stretch", "changes the tempo", "labels of the task 'tagging'", "Remove it"],
    )
    legal = message.rpartition("Legal for this task: ")[2].strip(" .\n").split(", ")
    assert set(legal) == set(TRANSFORMS) - {"shift", "time_stretch"}


# -- checkpoints ----------------------------------------------------------------------------------


def copy_backbone(folder: Path, **settings: Any) -> Path:
    """Copy the shipped backbone with other settings than its weights have."""
    shutil.copytree(SHIPPED_DIR / "random_small", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_checkpoint_of_another_shape(recipe: Recipe, songs: Rows) -> None:
    folder = copy_backbone(recipe.folder / "wide", intermediate_size=256)
    recipe.refuses(
        songs,
        "--backbone.source",
        str(folder),
        expected=[
            f"tensors of {folder / 'model.safetensors'} do not match its config.json",
            "encoder.layers.0.feed_forward.intermediate_dense.weight has shape (512, 128), not (256, 128)",
            "nothing was loaded",
        ],
    )


def test_checkpoint_with_missing_and_unexpected_tensors(recipe: Recipe, songs: Rows) -> None:
    folder = copy_backbone(recipe.folder / "odd")
    tensors = load_file(folder / "model.safetensors")
    del tensors["feature_projection.projection.bias"]
    save_file(tensors | {"surprise": torch.zeros(1)}, folder / "model.safetensors")
    recipe.refuses(
        songs,
        "--backbone.source",
        str(folder),
        expected=["missing feature_projection.projection.bias", "unexpected surprise"],
    )


def test_checkpoint_of_another_architecture(recipe: Recipe, songs: Rows) -> None:
    folder = copy_backbone(recipe.folder / "text", model_type="bert")
    recipe.refuses(
        songs,
        "--backbone.source",
        str(folder),
        expected=["is of model_type 'bert'", "data2vec-audio, hubert, mert_model, wav2vec2"],
    )


# -- the run folder and the disk ------------------------------------------------------------------


def test_run_folder_that_is_not_empty(recipe: Recipe, songs: Rows) -> None:
    recipe.run_folder.mkdir()
    (recipe.run_folder / "precious.txt").write_text("keep me")
    recipe.refuses(
        songs,
        expected=[
            f"The run folder {recipe.run_folder} is not empty",
            "nothing in it is overwritten",
            "--run.output_dir",
            "--run.resume auto",
        ],
    )


def test_run_folder_that_is_a_file(recipe: Recipe, songs: Rows) -> None:
    recipe.run_folder.write_text("a file")
    recipe.refuses(
        songs, expected=[f"run.output_dir {recipe.run_folder} is a file", "Name a folder"]
    )


def test_less_space_than_a_run_needs(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "not" / "yet", free // 2)
    with raises("disk-space-too-small", "MB free", "--run.output_dir"):
        require_space(tmp_path / "not" / "yet", 2 * free)
    assert not (tmp_path / "not").exists()


@pytest.mark.exhaustive
def test_full_disk(tmp_path: Path, songs: Rows) -> None:
    # A disk of 4 MB that only this process and its children see; it goes with them.
    disk = tmp_path / "disk"
    disk.mkdir()
    after = tmp_path / "after.txt"
    script = (
        'mount -t tmpfs -o size=4m tmpfs "$0" && "$@"; code=$?; find "$0" >"$AFTER"; exit $code'
    )
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    write_manifest(tmp_path / "songs.jsonl", songs)
    arguments = ["--run.output_dir", str(disk / "run"), "--tuning.method", "full"]
    outcome = start(
        command_line(tmp_path, *arguments), prefix=prefix, cwd=tmp_path, AFTER=str(after)
    )
    assert_refused(
        outcome,
        [f"The disk of {disk / 'run'} has 4 MB free", "needs about", "MB", "--run.output_dir"],
    )
    assert after.read_text().splitlines() == [str(disk)]


# -- the network ----------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> Iterator[str]:
    """The address of a port that refuses connections while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_no_network_for_a_backbone_of_the_hub(
    tmp_path: Path, songs: Rows, closed_port: str
) -> None:
    write_manifest(tmp_path / "songs.jsonl", songs)
    done = run_forked(
        [RECIPE, *command_line(tmp_path, "--backbone.source", "m-a-p/MERT-v0")],
        folder=tmp_path,
        environment=cpu_environment(
            COLUMNS="300",
            HF_ENDPOINT=closed_port,
            HF_HOME=str(tmp_path / "home"),
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_TELEMETRY="1",
            NO_PROXY="127.0.0.1",
        ),
    )
    outcome = Outcome(done.returncode, done.stderr)
    assert_refused(
        outcome,
        [
            "Could not fetch m-a-p/MERT-v0",
            "the Hub cannot be reached",
            "HF_HUB_OFFLINE",
            "local folder",
        ],
    )
    assert not (tmp_path / "run").exists()


def test_the_run_that_the_cases_break_is_valid(recipe: Recipe, songs: Rows) -> None:
    """Without its fault every case above would train: the refusals have no other cause."""
    outcome = recipe.run(songs)
    assert outcome.code == 0, outcome.stderr
    settings = yaml.safe_load((recipe.run_folder / "config.yaml").read_text())
    assert settings["training"]["epochs"] == 1
    results = json.loads((recipe.run_folder / "results.json").read_text())
    assert results["num_skipped_tracks"] == {"train": 0, "validation": 0, "test": 0}
    assert (recipe.run_folder / "model" / "model.safetensors").is_file()
