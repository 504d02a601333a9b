"""Libraries that a command does not import: each takes time at its start."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support.models import SAMPLES, build_tagger

DATA = {"datasets", "evaluate", "pandas", "pyarrow", "sklearn", "audiomentations", "mir_eval"}
COMMANDS = {
    "--help": (["--help"], {"torch", "numpy", "transformers", "jsonargparse", "matplotlib", *DATA}),
    "train TASK --help": (
        ["train", "tagging", "--help"],
        {"transformers", "accelerate", "peft", "scipy", "matplotlib", *DATA},
    ),
    "plan": (
        ["plan", "--config", "configs/tagging/magnatagatune-probe.yaml"],
        {"peft", "matplotlib", "tensorboard", *DATA},
    ),
    "predict": (
        ["predict", "{model}", "{song}"],
        {"peft", "matplotlib", "jsonargparse", "tensorboard", *DATA},
    ),
    # Errors before the first network is needed.
    "plan, wrong setting": (
        ["plan", "--config", "configs/tagging/quickstart.yaml", "--training.epoch", "3"],
        {"transformers", "accelerate", "peft", "matplotlib", *DATA},
    ),
    "predict, no such file": (
        ["predict", "{model}", "{song}", "no-such.wav"],
        {"torch", "transformers", "huggingface_hub", "jsonargparse", *DATA},
    ),
}
SCRIPT = """
import gc, json, sys
from m2v_finetune.cli import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
assert gc.isenabled()
print(code)
print(json.dumps(sorted(sys.modules)))
"""


def write_song(folder):
    path = folder / "song.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, SAMPLES), 16000)
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A saved probe and a song."""
    folder = tmp_path_factory.mktemp("places")
    build_tagger(method="probe").save_pretrained(folder / "model")
    return {"model": folder / "model", "song": write_song(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.exhaustive) if name.startswith("plan") else name
        for name in COMMANDS
    ],
)
def test_what_a_command_does_not_import(name, places):
    words, absent = COMMANDS[name]
    words = [word.format(**places) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], check=True, capture_output=True, text=True
    )
    *_, code, modules = done.stdout.splitlines()
    assert int(code) == (2 if ", " in name else 0), done.stderr
    imported = set(json.loads(modules))
    assert "m2v_finetune.cli" in imported
    assert imported.isdisjoint(absent), imported & absent
