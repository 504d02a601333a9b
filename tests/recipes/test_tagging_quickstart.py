"""The README's main command as it is printed, and a run that is stopped by a signal."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from support.forked import Forked, run_forked
from support.matrix import exhaustive
from support.messages import names, resumed_after
from support.processes import cpu_environment, options

from m2v_finetune.model import TaskModel
from m2v_finetune.training.checkpoint_files import find_checkpoint

pytestmark = pytest.mark.slow

FILES = {
    "checkpoints/epoch-00011-step-00000220/best.safetensors",
    "checkpoints/epoch-00011-step-00000220/manifest.json",
    "checkpoints/epoch-00011-step-00000220/state.pt",
    "checkpoints/epoch-00012-step-00000240/best.safetensors",
    "checkpoints/epoch-00012-step-00000240/manifest.json",
    "checkpoints/epoch-00012-step-00000240/state.pt",
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "model/README.md",
    "model/config.json",
    "model/model.safetensors",
    "model/plots/layer_weights.png",
    "model/plots/per_label_average_precision.png",
    "model/plots/per_label_roc_auc.png",
    "model/plots/reliability.png",
    "model/plots/training.png",
    "plots/layer_weights.png",
    "plots/per_label_average_precision.png",
    "plots/per_label_roc_auc.png",
    "plots/reliability.png",
    "plots/training.png",
    "predictions.csv",
    "report.html",
    "results.json",
    "test_tracks.jsonl",
    "start.json",
    ".lock",
    "tracks.json",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="module")
def quickstart(repository, tmp_path_factory):
    """`accelerate launch recipes/tagging.py`, nothing else, in a folder of its own, offline."""
    location = tmp_path_factory.mktemp("quickstart")
    accelerate = Path(sys.executable).with_name("accelerate")
    done = subprocess.run(
        [accelerate, "launch", repository / "recipes" / "tagging.py"],
        cwd=location,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [folder] = (location / "runs").iterdir()
    return folder, done.stderr


def test_the_run_folder_holds_what_is_promised(quickstart):
    folder, _ = quickstart
    assert folder.name.startswith("tagging-")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {name for name in found if not name.startswith("tensorboard/")} == FILES
    assert any(name.startswith("tensorboard/") for name in found)


def test_the_tagger_is_better_than_chance_beyond_its_interval(quickstart):
    folder, log = quickstart
    results = json.loads((folder / "results.json").read_text())
    assert (results["task"], results["split"], results["num_tracks"]) == ("tagging", "test", 72)
    roc_auc = results["metrics"]["roc_auc"]
    assert 0.5 < roc_auc["low"] < roc_auc["value"] < roc_auc["high"] < 1
    assert results["num_skipped_tracks"] == {"train": 0, "validation": 0, "test": 0}
    assert len(results["layer_weights"]) == 5
    assert sum(results["layer_weights"]) == pytest.approx(1, abs=1e-5)
    assert f"Test ROC-AUC of 72 tracks: {roc_auc['value']:.4f}" in " ".join(log.split())


def test_the_run_summary_states_what_trains_on_what_at_which_cost(quickstart):
    _, log = quickstart
    log = " ".join(log.split())
    for words in (
        "train 160 tracks",
        "test 72 tracks",
        "filterbank-small (cc-by-sa-4.0)",
        "probe (a probe on the frozen backbone)",
        "parameters are trainable",
        "LayerDrop off, SpecAugment off",
        "= 8",
        "240 steps",
        "MB on disk",
    ):
        assert words in log, words
    assert "RANDOM WEIGHTS" not in log


def test_the_model_loads_and_predicts(quickstart, repository):
    folder, _ = quickstart
    model = TaskModel.from_pretrained(folder / "model")
    song = repository / "m2v_finetune/data/quickstart/audio/test-003.ogg"
    prediction = model.predict(song)
    assert set(prediction.scores) == set(model.task.labels)
    assert [(w.start_seconds, w.end_seconds) for w in prediction.timeline] == [(0, 4), (4, 8)]
    # What predict says of a file is what the run wrote of the track.
    lines = (folder / "predictions.csv").read_text().splitlines()
    header, row = (line.split(",") for line in (lines[0], lines[4]))
    assert row[0] == "test-003"
    for label, score in zip(header[1:], row[1:], strict=True):
        assert prediction.scores[label] == pytest.approx(float(score), abs=1e-5)


def test_the_card_carries_licence_results_and_pictures(quickstart):
    folder, _ = quickstart
    card = ModelCard.load(folder / "model" / "README.md")
    results = json.loads((folder / "results.json").read_text())["metrics"]
    assert card.data.license == "cc-by-sa-4.0"
    assert card.text.count("cc-by-sa-4.0") > 0
    shown = {r.metric_type: (r.metric_value, r.metric_args) for r in card.data.eval_results}
    for name, entry in results.items():
        assert shown[name][0] == pytest.approx(entry["value"], abs=1e-4)
        assert shown[name][1]["low"] == pytest.approx(entry["low"], abs=1e-4)
        assert shown[name][1]["high"] == pytest.approx(entry["high"], abs=1e-4)
    assert "random weights" not in card.text
    assert "plots/layer_weights.png" in card.text


def long_run(manifest, folder):
    """Return the options of a run that ends when it is stopped."""
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.windows_per_track": 1,
        "data.num_workers": 1,
        "backbone.source": "random-small",
        "backbone.num_layers": 2,
        "tuning.method": "lora",
        "training.per_device_batch_size": 8,
        "training.epochs": 500,
        "training.early_stopping_patience": 500,
        "training.log_every_steps": 1,
        "run.output_dir": folder,
    }
    return options(settings)


def wait_for_steps(process, metrics):
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 2):
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), *exhaustive((signal.SIGINT, 130), (signal.SIGUSR1, 143))],
)
def test_a_signal_saves_and_states_how_to_resume(
    number, code, repository, small_manifest, tmp_path
):
    folder = tmp_path / "run"
    recipe = repository / "recipes" / "tagging.py"
    process = Forked([recipe, *long_run(small_manifest, folder)])
    metrics = folder / "metrics.jsonl"
    wait_for_steps(process, metrics)
    process.send_signal(number)
    _, log = process.communicate(timeout=300)
    assert process.returncode == code, log
    assert "Traceback" not in log
    assert names(log, number.name)
    assert f"--config {folder}/config.yaml --run.output_dir {folder} --run.resume auto" in log
    assert find_checkpoint(folder / "checkpoints") is not None
    before = metrics.read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["tuning"]["method"] == "lora"

    # The printed arguments go on where it stopped (with fewer epochs, of two steps, to come to an end).
    steps = len([line for line in before.splitlines() if "loss" in line])
    epochs = str(steps // 2 + 1)
    command = [f"--config={folder}/config.yaml", f"--run.output_dir={folder}", "--run.resume=auto"]
    done = run_forked([recipe, *command, "--training.epochs", epochs])
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics.read_text().startswith(before)
    assert resumed_after(done.stderr) is not None
    assert (folder / "results.json").is_file()


M2V = "import sys; from m2v_finetune.cli import main; sys.exit(main())"
PROGRAMS = {
    "m2v": ["m2v", "train", "tagging"],
    "python -m": [sys.executable, "-m", "m2v_finetune", "train", "tagging"],
    "recipe": [sys.executable, "recipes/tagging.py"],
    "accelerate launch -m": ["accelerate", "launch", "-m", "m2v_finetune", "train", "tagging"],
}


@pytest.mark.exhaustive  # the test before takes the printed arguments
@pytest.mark.parametrize("case", PROGRAMS)
def test_the_printed_command_resumes_the_run(
    case, repository, small_manifest, tmp_path, monkeypatch
):
    monkeypatch.chdir(repository)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "m2v").write_text(f"#!{sys.executable}\n{M2V}\n")  # as pip writes it
    (commands / "m2v").chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    folder = tmp_path / "my run"
    metrics = folder / "metrics.jsonl"

    process = subprocess.Popen(
        [*PROGRAMS[case], *long_run(small_manifest, folder)],
        stderr=subprocess.PIPE,
        text=True,
        env=cpu_environment(),
    )
    wait_for_steps(process, metrics)
    if process.poll() is None:  # the process that trains, not its launcher
        number = int((folder / ".lock").read_text().split()[1])
        os.kill(number, signal.SIGTERM)
    _, log = process.communicate(timeout=300)
    before = metrics.read_text()
    [command] = [line for line in log.splitlines() if line.startswith("  accelerate launch ")]
    done = subprocess.run(
        f"{command} --training.epochs {len(before.splitlines()) // 2 + 1}",
        shell=True,
        env=cpu_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert metrics.read_text().startswith(before)
    assert (folder / "results.json").is_file()
