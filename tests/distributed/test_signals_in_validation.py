"""A signal to one of two real processes while both evaluate: both stop, and what resumes is the same run."""

from pathlib import Path

import pytest
from support.messages import resumed_after
from support.processes import run_ranks

# Starts the recipe; where asked, the second process gets a signal at its second validation track.
SCRIPT = """
import os, runpy, signal, sys
from accelerate import PartialState
from m2v_finetune.tasks.tagging import Tagging

evaluate_track, evaluated = Tagging.evaluate_track, []

def evaluate_and_signal(self, checked, prediction):
    if PartialState().process_index == 1:
        evaluated.append(checked.track.id)
        if len(evaluated) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
            raise RuntimeError("the signal did not come at once")
    return evaluate_track(self, checked, prediction)

if sys.argv[1] == "signal":
    Tagging.evaluate_track = evaluate_and_signal
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(repository, folder: Path, manifest, *, mode: str, resume: str = "never"):
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": 4,
        "training.log_every_steps": 1,
        "run.output_dir": folder,
        "run.resume": resume,
    }
    recipe = repository / "recipes" / "tagging.py"
    done = run_ranks(2, [script, mode, recipe], settings, timeout=300)
    return done.returncode, " ".join(done.stderr.split())


@pytest.mark.exhaustive
def test_both_stop_at_once_and_resume_as_if_nothing_had_been(repository, small_manifest, tmp_path):
    straight = tmp_path / "straight"
    code, message = launch(repository, straight, small_manifest, mode="plain")
    assert code == 0, message[-2000:]
    folder = tmp_path / "run"
    code, message = launch(repository, folder, small_manifest, mode="signal")
    assert code != 0
    assert resumed_after(message) == (2, 2), message[-2000:]
    assert "validation" not in (folder / "metrics.jsonl").read_text()
    code, message = launch(repository, folder, small_manifest, mode="plain", resume="auto")
    assert code == 0, message[-2000:]
    for name in ("metrics.jsonl", "predictions.csv"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()
