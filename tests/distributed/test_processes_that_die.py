"""Real processes, most started by torchrun: one is killed, and few tracks are shared by many."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from support.forked import Forked
from support.messages import names, resumed_after
from support.processes import cpu_environment, options, run_ranks, run_recipe, torchrun
from support.runs import read_metrics

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def settings_of(folder, manifest, **settings):
    return {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "training.per_device_batch_size": 2,
        "training.log_every_steps": 1,
        "training.early_stopping_patience": 1000,
        "run.output_dir": folder,
    } | settings


def wait_for(condition, *, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


def ranks_of(launched):
    """Return the processes that a launcher started, by their rank."""
    ranks = [
        p for p in psutil.Process(launched.pid).children(recursive=True) if "RANK" in p.environ()
    ]
    return {int(process.environ()["RANK"]): process for process in ranks}


def num_validations(metrics):
    return metrics.read_text().count("validation") if metrics.is_file() else 0


@pytest.mark.exhaustive
def test_a_stopped_run_resumes_by_its_printed_command_and_a_killed_process_ends_it(
    repository, small_manifest, tmp_path
):
    folder, log = tmp_path / "run", tmp_path / "output"
    metrics = folder / "metrics.jsonl"
    settings = settings_of(
        folder, small_manifest, **{"training.epochs": 500, "data.windows_per_track": 1}
    )
    with log.open("wb") as output:
        launched = subprocess.Popen(
            [
                *(sys.executable, *torchrun(2), repository / "recipes" / "tagging.py"),
                *options(settings),
            ],
            env=cpu_environment(),
            stdout=output,
            stderr=output,
        )
        wait_for(metrics.is_file, seconds=180)
        for process in ranks_of(launched).values():
            process.send_signal(signal.SIGTERM)
        launched.wait(timeout=120)
    *_, command = re.findall(r"Resume with:\n(.*?--run.resume auto)", log.read_text(), re.DOTALL)

    before = num_validations(metrics)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with log.open("wb") as output:
        launched = subprocess.Popen(
            " ".join(command.split()),
            shell=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": programs},
            stdout=output,
            stderr=output,
        )
        wait_for(lambda: num_validations(metrics) > before + 1, seconds=180)
        ranks = ranks_of(launched)
        start_time = time.monotonic()
        ranks[1].kill()
        assert launched.wait(timeout=90) != 0
    assert time.monotonic() - start_time < 90
    assert not any(process.is_running() for process in ranks.values())
    text = " ".join(log.read_text().split())
    assert resumed_after(text)
    assert re.search(r"error: \S+ 0 of 2 ", text)

    # What was saved is whole: one process goes on from it, with the same total batch.
    epochs = num_validations(metrics) + 1
    more = {"training.epochs": epochs, "training.per_device_batch_size": 4, "run.resume": "auto"}
    done = run_recipe([repository / "recipes" / "tagging.py"], settings | more)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((folder / "results.json").read_text())["num_epochs"] == epochs


@pytest.mark.exhaustive
def test_processes_that_see_other_run_folders_are_refused(repository, small_manifest, tmp_path):
    """As on two machines with a relative run folder: the first would go on, the second begin."""
    locations = [tmp_path / "first", tmp_path / "second"]
    for location in locations:
        location.mkdir()
    settings = {
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": 2,
    }
    recipe = repository / "recipes" / "tagging.py"
    initial = run_recipe([recipe], settings_of(locations[0] / "run", small_manifest, **settings))
    assert initial.returncode == 0, initial.stderr[-2000:]
    resumed = {
        "config": locations[0] / "run" / "config.yaml",
        "run.output_dir": "run",
        "run.resume": "auto",
        "training.epochs": 2,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": 1,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        Forked(
            [recipe, *options(resumed)],
            environment=cpu_environment(**processes, RANK=str(rank), LOCAL_RANK=str(rank)),
            folder=location,
        )
        for rank, location in enumerate(locations)
    ]
    for process in started:
        _, log = process.communicate(timeout=180)
        assert process.returncode == 2, log
        assert names(log, "run/checkpoints")


@pytest.mark.exhaustive
def test_three_processes_evaluate_every_track_once(repository, small_manifest, tmp_path):
    """Four tracks to validate and one to test: some processes have none."""
    left = {"train": 6, "validation": 4, "test": 1}
    rows = []
    for line in small_manifest.read_text().splitlines():
        row = json.loads(line)
        if left[row["split"]] > 0:
            left[row["split"]] -= 1
            rows.append(row | {"id": f"{row['split']}-{left[row['split']]}"})
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    settings = {"training.epochs": 1, "data.windows_per_track": 1}
    done = run_ranks(
        3,
        [repository / "recipes" / "tagging.py"],
        settings_of(tmp_path / "run", manifest, **settings),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "run" / "predictions.csv").open() as file:
        assert [row[0] for row in list(csv.reader(file))[1:]] == ["test-0"]
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 1]  # once each: a step and a validation
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_tracks"] == 1
    assert done.stderr.count("Test ROC-AUC") == 1


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_read_by_accelerate(path):
    config = load_config_from_file(str(path))
    assert config.num_processes > 1
    given = yaml.safe_load(path.read_text())
    assert config.distributed_type.value == given["distributed_type"]


def test_there_are_configs():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"cpu", "ddp"}


APART = """
import json, os
from pathlib import Path
from types import SimpleNamespace

from accelerate import PartialState

from m2v_finetune.errors import UserError
from m2v_finetune.training.faults import usable_to_all

rank = PartialState(cpu=True).process_index
out = Path(os.environ["OUT"])


def tracks(*names):
    return [SimpleNamespace(track=SimpleNamespace(id=name)) for name in names]


readable = {"train": tracks(*("acd" if rank else "abc")), "test": tracks("e")}
usable, skipped = usable_to_all(readable, {"train": 1, "test": 0})
ids = {split: [one.track.id for one in members] for split, members in usable.items()}
try:
    usable_to_all({"train": tracks("ab"[rank])}, {"train": 1})
except UserError as error:
    message = str(error)
(out / f"{rank}.json").write_text(json.dumps([ids, skipped, message]))
"""


def test_a_track_that_one_process_cannot_read_is_left_out_by_all(tmp_path):
    script = tmp_path / "apart.py"
    script.write_text(APART)
    run_ranks(2, [script], {}, timeout=180, OUT=str(tmp_path)).check_returncode()
    gathered = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    none = "None of the tracks of the split 'train' can be read by all processes."
    assert gathered == 2 * [[{"train": ["a", "c"], "test": ["e"]}, {"train": 2, "test": 0}, none]]
