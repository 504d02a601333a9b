"""Files from elsewhere that would run a program, read what is not theirs, or carry a secret away."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from support.forked import run_forked
from support.messages import raises
from support.processes import run_recipe

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.features import read_vector_splits
from m2v_finetune.data.manifest import Track, read_manifest, tracks_from_rows
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.training.checkpoint_files import (
    BEST_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    checkpoints_in,
)

RANDOM_SMALL = Path(__file__).parents[2] / "m2v_finetune" / "backbones" / "random_small"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self):
        return Path.touch, (self.trap,)


@pytest.fixture
def trap(tmp_path):
    location = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(location)))
    assert location.exists()  # the payload works
    location.unlink()
    return location


def save_torch(path, trap):
    torch.save({"weight": torch.zeros(1), "evil": Payload(trap)}, path)


def save_bare(path, trap):
    path.write_bytes(pickle.dumps(Payload(trap)))


@pytest.mark.parametrize("save", [save_torch, save_bare])
def test_weights_that_are_a_program_are_refused(tmp_path, trap, save):
    folder = tmp_path / "backbone"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((RANDOM_SMALL / name).read_bytes())
    save(folder / "pytorch_model.bin", trap)
    with raises("weights-unreadable", folder / "pytorch_model.bin"):
        load_backbone(str(folder))
    assert not trap.exists()


def test_safetensors_are_taken_before_a_pickle(tmp_path, trap):
    folder = tmp_path / "backbone"
    folder.mkdir()
    for path in RANDOM_SMALL.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    save_bare(folder / "pytorch_model.bin", trap)
    load_backbone(str(folder))
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["object array", "pickle"])
def test_vectors_that_are_a_program_are_refused(tmp_path, trap, kind):
    if kind == "pickle":
        save_bare(tmp_path / "a.npy", trap)
    else:
        np.save(tmp_path / "a.npy", np.array([Payload(trap)], dtype=object), allow_pickle=True)
    track = Track(id="a", path=Path("a"), split="train", columns={}, origin="m:1", folder=tmp_path)
    with raises("data-bad-tracks", "a.npy", "vector"):
        read_vector_splits({"train": [track]}, tmp_path, on_bad_track="stop")
    assert not trap.exists()


def test_checkpoints_that_are_a_program_are_refused(small_manifest, tmp_path, trap):
    """Whatever files a run goes on from, each of them in turn replaced by a program."""
    script = Path(__file__).parents[2] / "recipes" / "tagging.py"
    command = [script, f"--data.source={small_manifest}"]
    command += ["--backbone.source=random-small", "--data.window_seconds=1", "--data.num_workers=0"]
    command += ["--training.epochs=1", f"--run.output_dir={tmp_path / 'run'}", "--run.resume=auto"]

    def run():
        return run_forked(command)

    assert run().returncode == 0
    [checkpoint] = checkpoints_in(tmp_path / "run" / "checkpoints")
    for name in (BEST_FILE, STATE_FILE):
        whole = (checkpoint / name).read_bytes()
        save_torch(checkpoint / name, trap)
        mark_as_valid(checkpoint, name)
        done = run()
        assert done.returncode == 2, done.stderr[-2000:]
        assert str(checkpoint) in done.stderr.replace("\n", "")
        assert "Traceback" not in done.stderr
        assert not trap.exists()
        (checkpoint / name).write_bytes(whole)
        mark_as_valid(checkpoint, name)


def mark_as_valid(checkpoint, name):
    """Let the manifest of a checkpoint fit what a file is now."""
    content = (checkpoint / name).read_bytes()
    manifest = json.loads((checkpoint / MANIFEST_FILE).read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (checkpoint / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_yaml_that_makes_objects_is_refused(tmp_path, trap):
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"data: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trap}']]\n"
    )
    with raises("config-not-plain", path, "tags"):
        parse_recipe(
            RecipeConfig, [f"--config={path}"], description="", quickstart=tmp_path / "none.yaml"
        )
    assert not trap.exists()


def rows(*paths):
    return [(number, {"path": path}) for number, path in enumerate(paths, start=1)]


def test_relative_paths_stay_in_the_folder_of_the_manifest(tmp_path):
    for path in ("../a.wav", "b/../../a.wav", ".."):
        with raises("manifest-path-outside", "m:1: ", path, "allow_outside"):
            tracks_from_rows(rows(path), folder=tmp_path, name="m")
        assert tracks_from_rows(rows(path), folder=tmp_path, name="m", path_rule="any")
    kept = tracks_from_rows(rows("b/../a.wav", "/x/a.wav"), folder=tmp_path, name="m")
    assert [track.path for track in kept] == [tmp_path / "a.wav", Path("/x/a.wav")]
    (tmp_path / "m.csv").write_text("path\n../a.wav\n")
    assert read_manifest(tmp_path / "m.csv", allow_outside=True)


def test_a_data_set_of_the_hub_reads_nothing_outside_of_itself(tmp_path):
    cache = tmp_path / "datasets--me--songs"
    folder = cache / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "abc").write_bytes(b"RIFF")
    (tmp_path / "secret.wav").write_bytes(b"RIFF")
    (folder / "cached.wav").symlink_to("../../blobs/abc")
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    for path in ("/etc/passwd", "../x.wav", "link.wav", str(tmp_path / "secret.wav")):
        with raises("manifest-path-outside", path, folder):
            tracks_from_rows(rows(path), folder=folder, name="m", path_rule="foreign")
    (track,) = tracks_from_rows(rows("cached.wav"), folder=folder, name="m", path_rule="foreign")
    assert track.path_rule == "foreign"
    # What its columns name is held to the same rule.
    from m2v_finetune.tasks.beats import BeatTracking

    row = {"path": "cached.wav", "beats": "/etc/passwd"}
    tracks = tracks_from_rows([(1, row)], folder=folder, name="m", path_rule="foreign")
    with raises("labels-unusable", "'/etc/passwd'"):
        BeatTracking(label_column="beats").check_labels(tracks)


def test_a_token_is_in_no_file_and_no_output(small_manifest, tmp_path):
    """A whole run with a token in its environment; every byte that it wrote is searched."""
    token = "hf_" + "SecretOfTheTest0123456789abcdefgh"
    script = Path(__file__).parents[2] / "recipes" / "tagging.py"
    settings = {
        "data.source": small_manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "run.output_dir": tmp_path / "run",
        "publish.repo_id": "me/tagger",
    }
    done = run_recipe(
        [script],
        settings,
        HF_TOKEN=token,
        WANDB_API_KEY=token,
        HF_ENDPOINT="http://127.0.0.1:9",  # nobody answers
        HF_HOME=str(tmp_path / "home"),
    )
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in written}
    assert {
        "config.yaml",
        "environment.json",
        "README.md",
        "metrics.jsonl",
        "results.json",
    } <= names
    assert any("tfevents" in name for name in names)
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["packages"]
    printed = (done.stdout.encode(), done.stderr.encode())
    for content in (*printed, *(path.read_bytes() for path in written)):
        assert token.encode() not in content
