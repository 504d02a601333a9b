"""Memory that runs out on one of two processes, real ones: both go on in smaller batches."""

import re
from pathlib import Path

import pytest
from support.processes import run_ranks
from support.runs import read_metrics as metrics

# Starts the recipe with a device of the second process that holds few windows at once.
SCRIPT = """
import runpy, sys
import torch
from accelerate import PartialState
from m2v_finetune.backbones import Backbone
from m2v_finetune.memory import plan

# How many windows it holds in a forward pass that learns, in a backward pass, and where nothing learns;
# the second only from the second step on, when there are pieces of two.
forward, backward, evaluation = map(int, sys.argv[1:4])
iterate, differentiate, passes = Backbone.iterate_hidden_states, torch.Tensor.backward, []

def refuse(is_too_much):
    if PartialState().process_index == 1 and is_too_much:
        raise torch.OutOfMemoryError("CUDA out of memory.")

def iterate_refusing(self, input_values):
    global seen
    seen = len(input_values)
    for state in iterate(self, input_values):
        yield state
        refuse(seen > (forward if torch.is_grad_enabled() else evaluation))

def differentiate_refusing(self, *arguments, **others):
    passes.append(seen)
    refuse(len(passes) > 3 and seen > backward)
    differentiate(self, *arguments, **others)

def plan_on_the_first(*arguments, plan_run=plan.plan_run, **others):
    assert PartialState().process_index == 0
    return plan_run(*arguments, **others)

plan.plan_run = plan_on_the_first
Backbone.iterate_hidden_states = iterate_refusing
torch.Tensor.backward = differentiate_refusing
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(
    repository, folder: Path, manifest, *, holds=(9, 9, 9), batch=4, accumulation=1, memory="null"
):
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    settings = {
        "data.source": manifest,
        "data.window_seconds": 1,
        "data.num_workers": 0,
        "cache.use": "off",  # else nothing but vectors would be in memory
        "backbone.source": "random-small",
        "backbone.num_layers": 1,
        "head.dropout": 0,
        "head.standardize": "true",
        "tuning.lora_dropout": 0,
        "training.epochs": 1,
        "data.windows_per_track": 1,
        "training.per_device_batch_size": batch,
        "training.gradient_accumulation_steps": accumulation,
        "training.eval_batch_size": 4,
        "training.log_every_steps": 1,
        "run.memory": memory,
        "run.output_dir": folder,
    }
    words = [script, *map(str, holds), repository / "recipes" / "tagging.py"]
    done = run_ranks(2, words, settings, timeout=300)
    return done.returncode, " ".join(done.stderr.split())


@pytest.mark.exhaustive
def test_both_resume_as_if_they_had_started_with_smaller_batches(
    repository, small_manifest, tmp_path
):
    straight, fell = tmp_path / "straight", tmp_path / "fell"
    code, message = launch(repository, straight, small_manifest, batch=2, accumulation=2)
    assert code == 0, message[-3000:]
    code, message = launch(repository, fell, small_manifest, holds=(2, 1, 3))
    assert code == 0, message[-3000:]
    what = "ran out of memory on process 2 of 2 with batches of"
    assert (
        f"Step 1 {what} 4. Continuing with batches of 2, 2 of them accumulated: a total" in message
    )
    assert (
        f"Step 2 {what} 2. Continuing with batches of 1, 4 of them accumulated: a total" in message
    )
    assert message.count("Continuing with batches") == 2
    first, *others = metrics(straight)
    again, *others_again = metrics(fell)
    assert first == again
    for one, other in zip(others, others_again, strict=True):
        for name in {"loss", "gradient_norm", "validation"} & set(one):
            assert one[name] == pytest.approx(other[name], abs=1e-5)


@pytest.mark.slow
def test_a_window_that_does_not_fit_ends_both_with_what_was_learned_saved(
    repository, small_manifest, tmp_path
):
    # The first process plans, and all go by it.
    code, message = launch(
        repository,
        tmp_path / "run",
        small_manifest,
        holds=(0, 9, 9),
        batch=2,
        accumulation=2,
        memory="1GB",
    )
    assert code != 0
    assert re.search(
        r"step 1 .*process 2 of 2 .* 4; .*step 0 ", " ".join(message.split()), re.IGNORECASE
    )
