"""Novelty after training: fitted on training windows, its bounds set on validation tracks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from m2v_finetune.model import TaskModel
from m2v_finetune.model.novelty import MAX_WINDOWS, MIN_TRACKS, MIN_WINDOWS, RATE, Novelty
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.training.evaluation import TOO_LITTLE_MEMORY
from m2v_finetune.training.faults import gather_errors
from m2v_finetune.training.trainer import Trainer


def fit_novelty(trainer: Trainer[TaskModel], *, num_validation: int) -> None:
    """Add `Novelty` with bounds of 1 to a trained model, from the windows of the first epoch.

    Nothing is added if there are too few windows, or too few validation tracks for a bound. The
    result is the same on every process, and after a resume.

    Raises:
        DataError: Windows cannot be read, or a single one does not fit into memory.
    """
    model, accelerator = trainer.model, trainer.accelerator
    model.novelty = None
    if num_validation < MIN_TRACKS:
        return

    def features(*inputs: Tensor) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            states = model.head_input(inputs[0].to(accelerator.device, non_blocking=True))
            return states.float().mean(dim=1)

    model.eval()
    trainer.batches.epoch, trainer.batches.first_step = 0, 0
    rows: list[Tensor] = []
    batches = trainer.steps.reader.read()
    for inputs, *_ in batches:
        own, failure = torch.empty(0), None
        try:
            own = model.micro_batcher.run(features, [inputs])
        except torch.OutOfMemoryError:
            failure = TOO_LITTLE_MEMORY
        gather_errors(accelerator, failure, {})
        rows.append(accelerator.gather(own).cpu())
        if sum(map(len, rows)) >= MAX_WINDOWS:
            break
    trainer.steps.reader.sync()
    measured = torch.cat(rows)[:MAX_WINDOWS]
    if len(measured) >= MIN_WINDOWS:
        model.novelty = Novelty.fit(measured).to(accelerator.device)


def bound_novelty(model: TaskModel, validation: Sequence[EvaluatedClip]) -> None:
    """Set the bounds by validation tracks, evaluated with bounds of 1; remove novelty if they are few."""
    distances = [one.distances for one in validation if one.distances]
    if model.novelty is None or len(distances) < MIN_TRACKS:
        model.novelty = None
        return
    model.novelty.set_bounds(torch.tensor(distances))


def novelty_results(
    model: TaskModel, *, validation: Sequence[EvaluatedClip], test: Sequence[EvaluatedClip]
) -> dict[str, Any]:
    """Return the section ``novelty`` of results.json; empty for tasks without classes or tags."""
    if not validation:
        return {}
    if model.novelty is None:
        about = (
            f"Unknown tracks are not found: that needs {MIN_WINDOWS} training windows in an epoch, and "
            f"{MIN_TRACKS} validation tracks; of these there are {len(validation)}."
        )
        return {"novelty": {"about": about, "test_share": None}}
    above = sum(one.novelty is not None and one.novelty > 1 for one in test)
    about = (
        "Tracks of a novelty above 1 are unlike the training tracks. The bounds are set for false alarms on "
        f"about {100 * RATE:g} % of tracks like the {len(validation)} of validation. Test tracks above one: "
        f"{above} of {len(test)}."
    )
    return {"novelty": {"about": about, "test_share": above / len(test)}}


def describe_novelty(results: Mapping[str, Any]) -> str:
    """Return what was fitted, and the share of test tracks above the bound; empty without it."""
    return str(results.get("novelty", {}).get("about", ""))
