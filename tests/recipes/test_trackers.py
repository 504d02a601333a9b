"""Weights & Biases goes on in the same run; needs its package, which this one does not."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("wandb")


def test_a_run_that_resumes_is_the_same_run(repository, small_manifest, tmp_path):
    for epochs in (1, 2):
        settings = {
            "data.source": small_manifest,
            "data.window_seconds": 1,
            "data.num_workers": 0,
            "backbone.source": "random-small",
            "backbone.num_layers": 1,
            "training.epochs": epochs,
            "data.windows_per_track": 1,
            "training.trackers": '["wandb"]',
            "run.output_dir": tmp_path / "run",
            "run.resume": "auto",
        }
        subprocess.run(
            [sys.executable, repository / "recipes" / "tagging.py"]
            + [f"--{key}={value}" for key, value in settings.items()],
            env=os.environ
            | {"ACCELERATE_USE_CPU": "true", "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
            timeout=120,
        )
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 2
    assert len({name.rpartition("-")[2] for name in runs}) == 1
