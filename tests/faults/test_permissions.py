"""Files and folders without permission: a message and exit code 2, or a run that does without its caches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.forked import run_forked
from support.matrix import exhaustive
from support.models import build_tagger
from support.processes import cpu_environment

from m2v_finetune.backbones.checkpoints import SHIPPED_DIR

SETPRIV = shutil.which("setpriv")
# Permissions count for root, too, once it has no capabilities.
UNPRIVILEGED = [SETPRIV, "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
COMMAND = [sys.executable, "-c", "from m2v_finetune.cli import main; main()"]
pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and SETPRIV is None,
    reason="permissions do not count for root; needs setpriv (util-linux)",
)


def m2v(*words, **variables):
    return run_forked(
        ["m2v", *words],
        environment=cpu_environment(COLUMNS="1000", **variables),
        prefix=UNPRIVILEGED,
    )


def m2v_without_home(folder, *words):
    """Run `m2v` from the start, as the libraries look for the home of their caches when they are imported."""
    homes = {"XDG_CACHE_HOME": folder, "HOME": folder, "HF_HOME": folder / "hf"}
    return subprocess.run(
        [*UNPRIVILEGED, *COMMAND, *map(str, words)],
        env=cpu_environment(
            COLUMNS="1000", HF_HUB_OFFLINE="1", **{name: str(path) for name, path in homes.items()}
        ),
        capture_output=True,
        text=True,
        check=False,
    )


def forbidden(path, mode=0o555):
    """Make a folder without permission to write, or what else the mode says."""
    path.mkdir()
    path.chmod(mode)
    return path


@pytest.fixture(autouse=True)
def permissions_at_the_end(tmp_path):
    """Let pytest delete what the test left."""
    yield
    for folder, _, _ in os.walk(tmp_path):
        Path(folder).chmod(0o755)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Tones of a second, with two tags."""
    folder = tmp_path_factory.mktemp("songs")
    times = np.arange(16_000) / 16_000
    rows = []
    for number in range(12):
        soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(900 * number * times), 16_000)
        tags = ["low"] if number % 2 else ["high", "loud"]
        split = ("train", "train", "train", "validation", "validation", "test")[number // 2]
        rows.append({"path": f"{number}.wav", "split": split, "tags": tags})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture
def probe(songs):
    """The words of a short run."""
    return [
        "train",
        "tagging",
        f"--data.source={songs}",
        "--backbone.source=random-small",
        "--data.window_seconds=1",
        "--data.windows_per_track=1",
        "--training.epochs=2",
        "--data.num_workers=0",
    ]


def losses(folder):
    """What a run logged of its training, as text."""
    return (folder / "metrics.jsonl").read_text()


@pytest.mark.exhaustive
def test_a_run_is_the_same_without_a_cache_that_cannot_be_written_and_reads_one_that_is_whole(
    probe, tmp_path
):
    cache, unwritable = tmp_path / "cache", forbidden(tmp_path / "unwritable")
    done = m2v(*probe, f"--run.output_dir={tmp_path}/with", f"--cache.folder={cache}")
    assert done.returncode == 0, done.stderr
    done = m2v_without_home(unwritable, *probe, f"--run.output_dir={tmp_path}/without")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--cache.folder") == 1
    assert str(unwritable) in done.stderr
    assert losses(tmp_path / "without") == losses(tmp_path / "with")
    for folder, _, files in os.walk(cache):
        for name in files:
            (Path(folder) / name).chmod(0o444)
        Path(folder).chmod(0o555)
    done = m2v(*probe, f"--run.output_dir={tmp_path}/reading", f"--cache.folder={cache}")
    assert done.returncode == 0, done.stderr
    assert "--cache.folder" not in done.stderr
    assert losses(tmp_path / "reading") == losses(tmp_path / "with")


@pytest.fixture
def place(request, tmp_path):
    """A place where nothing can be made."""
    if request.param == "file":
        path = tmp_path / "file"
        path.write_text("of somebody")
        return path
    return forbidden(tmp_path / "folder", 0o555 if request.param == "unwritable" else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("run", "unwritable"),
        ("run", "file"),
        ("convert", "unreadable"),
        ("init", "unwritable"),
        *exhaustive(
            ("run", "unreadable"),
            ("convert", "unwritable"),
            ("convert", "file"),
            ("init", "unreadable"),
            ("init", "file"),
        ),
    ],
    indirect=["place"],
)
def test_a_place_that_takes_nothing_is_named(what, place, probe, songs):
    commands = {
        "run": [*probe, "--cache.use=off", f"--run.output_dir={place}/run"],
        "convert": ["data", "convert", songs, "--processes=1"],
        "init": ["init", "tagging", place / "mine"],
    }
    done = m2v(*commands[what], M2V_CACHE=str(place))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(place) in done.stderr


@pytest.mark.exhaustive
@pytest.mark.parametrize("what", ["checkpoint", "checkpoints", "metrics.jsonl", "tracks.json"])
def test_a_run_names_what_it_may_not_read_or_write_and_resumes_with_permission(
    what, probe, tmp_path
):
    folder = tmp_path / "run"
    words = [*probe, "--cache.use=off", f"--run.output_dir={folder}"]
    done = m2v(*words)
    assert done.returncode == 0, done.stderr
    before = losses(folder)
    [last] = folder.glob("checkpoints/epoch-00002-*")
    path, mode = {
        "checkpoints": (folder / "checkpoints", 0o555),
        "metrics.jsonl": (folder / "metrics.jsonl", 0o444),
        "checkpoint": (last / "manifest.json", 0),
        "tracks.json": (folder / "tracks.json", 0),
    }[what]
    path.chmod(mode)
    resumed = [*words, "--run.resume=auto", "--training.epochs=3"]
    done = m2v(*resumed)
    assert done.returncode == 2, done.stderr
    assert str(path) in done.stderr
    assert "Permission denied" in done.stderr
    for word in ("Traceback", "bytes free", "Free ", "damaged"):
        assert word not in done.stderr
    path.chmod(0o755)
    assert not list(folder.glob("checkpoints/damaged-*"))
    done = m2v(*resumed)
    assert done.returncode == 0, done.stderr
    assert losses(folder).startswith(before)


@pytest.mark.slow
def test_a_folder_of_checkpoints_that_may_not_be_read_is_not_empty(probe, tmp_path):
    folder = tmp_path / "run"
    words = [*probe, "--cache.use=off", f"--run.output_dir={folder}"]
    assert m2v(*words).returncode == 0
    before = losses(folder)
    (folder / "checkpoints").chmod(0o300)
    done = m2v(*words, "--run.resume=auto")
    assert done.returncode == 2, done.stderr
    assert f"{folder}/checkpoints" in done.stderr
    assert losses(folder) == before


@pytest.mark.parametrize("name", ["model.safetensors", "", *exhaustive("config.json", "README.md")])
def test_a_model_that_cannot_be_read_is_not_pushed(name, model, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(model, own)
    (own / name).chmod(0)
    done = m2v("push", own, "me/tagger")
    assert done.returncode == 2, done.stderr
    assert f"{own / name}" in done.stderr
    assert "Permission denied" in done.stderr
    for word in ("damaged", "No such file", "resume", "checkpoints"):
        assert word not in done.stderr


@pytest.mark.parametrize(
    "name", ["model.safetensors", *exhaustive("config.json", "preprocessor_config.json")]
)
def test_a_backbone_that_cannot_be_read_is_named(name, probe, tmp_path):
    own = tmp_path / "backbone"
    shutil.copytree(SHIPPED_DIR / "random_small", own)
    (own / name).chmod(0)
    done = m2v(*probe, f"--backbone.source={own}", f"--run.output_dir={tmp_path}/run")
    assert done.returncode == 2, done.stderr
    assert f"{own / name}" in done.stderr
    assert "Permission denied" in done.stderr
    for word in ("Traceback", "corrupt", "Download"):
        assert word not in done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    build_tagger().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "what", ["weights", "settings", "folder", "audio", "manifest", "config", "output"]
)
def test_what_cannot_be_read_is_named(what, model, songs, tmp_path):
    music = songs.parent / "0.wav"
    audio = tmp_path / f"song{music.suffix}"
    shutil.copyfile(music, audio)
    own = tmp_path / "model"
    shutil.copytree(model, own)
    manifest, config = tmp_path / "songs.jsonl", tmp_path / "settings.yaml"
    shutil.copyfile(songs, manifest)
    config.write_text("training: {epochs: 1}\n")
    path = {
        "weights": own / "model.safetensors",
        "settings": own / "config.json",
        "folder": own,
        "audio": audio,
        "manifest": manifest,
        "config": config,
        "output": tmp_path / "output",
    }[what]
    if what == "output":
        forbidden(path)
    else:
        path.chmod(0)
    words = ["predict", own, audio]
    if what == "output":
        words.append(f"--output={path}/said.csv")
    elif what == "manifest":
        words = ["evaluate", own, manifest]
    elif what == "config":
        words = ["train", "tagging", f"--config={config}"]
    done = m2v(*words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert str(path) in done.stderr
