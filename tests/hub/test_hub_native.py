"""One repository for both: a run pushes a model that `TaskModel` and transformers' pipeline load by its
id."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from support.forked import run_forked

TRAIN = """
import json, sys
import numpy as np
from m2v_finetune.model import TaskModel
from m2v_finetune.runs import main

main(["tagging", *sys.argv[2:]])
model = TaskModel.from_pretrained("me/native")
samples = np.random.default_rng(0).standard_normal(model.window_samples).astype("float32") / 10
np.save("input.npy", samples)
print(json.dumps(model.predict(samples, sample_rate=16000).scores))
"""
PIPELINE = """
import json, sys
import numpy as np

sys.modules["m2v_finetune"] = None
from transformers import AutoModelForAudioClassification, pipeline

classify = pipeline("audio-classification", model="me/native", top_k=None, device="cpu")
print(json.dumps({one["label"]: one["score"] for one in classify(np.load("input.npy"))}))
model = AutoModelForAudioClassification.from_pretrained("me/native")
assert model.config.problem_type == "multi_label_classification"
"""


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the last line that a program printed, as JSON."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_one_repository_serves_both(tmp_path: Path, small_manifest: Path) -> None:
    settings = {
        "data.source": small_manifest,
        "data.num_workers": 0,
        "data.windows_per_track": 1,
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "head.kind": "linear",
        "tuning.method": "lora",
        "training.epochs": 1,
        "run.output_dir": tmp_path / "run",
        "publish.native": "true",
        "publish.repo_id": "me/native",
    }
    with HubServer() as hub:
        environment = os.environ | hub.environment(tmp_path / "hub") | {"OMP_NUM_THREADS": "1"}
        words = [f"--{key}={value}" for key, value in settings.items()]
        trained = run_forked(["-c", TRAIN, "", *words], environment=environment, folder=tmp_path)
        by_package = last_line(trained)
        # A process of its own, in which this package cannot be imported.
        by_pipeline = last_line(
            subprocess.run(
                [sys.executable, "-c", PIPELINE],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        )
    assert by_pipeline == pytest.approx(by_package, abs=1e-5)
    assert len(set(np.round(list(by_package.values()), 4))) > 1
    assert "ROC-AUC" in (tmp_path / "run" / "report.html").read_text()
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert 'model="me/native", top_k=None, function_to_apply="sigmoid"' in card
    assert 'TaskModel.from_pretrained("me/native")' in card
