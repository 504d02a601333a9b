"""Evaluation of tracks, on one process or many."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from rich.progress import Progress

from m2v_finetune.allocation import keep_freed_memory
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import Inputs
from m2v_finetune.data.workers import WorkerError
from m2v_finetune.errors import AudioError, Stopped, UserError
from m2v_finetune.model import TaskModel, score_windows, scored
from m2v_finetune.training.faults import BadTrackPolicy, gather_errors
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.signals import Interruptible
from m2v_finetune.variation import (
    OutputVariation,
    explain_constant_outputs,
    outputs_hardly_vary,
)

logger = logging.getLogger(__name__)

NUM_ORDERS = 5
"""Number of permutations of the predictions over tracks, to estimate the level of chance."""
TOO_LITTLE_MEMORY = UserError(
    "Evaluation ran out of memory with a batch of a single window. Set shorter windows "
    "(data.window_seconds) or fewer layers (backbone.num_layers).",
    code="evaluation-out-of-memory",
)


def chance_orders(num_tracks: int, *, seed: int) -> list[list[int]]:
    """Return permutations that move every track, at most `NUM_ORDERS`.

    Args:
        num_tracks: Number of tracks.
        seed: Seed of the orders.

    Returns:
        Permutations: the index of the other track for each track.

    >>> chance_orders(2, seed=0)
    [[1, 0]]
    """
    drawn = np.random.default_rng(seed).permutation(num_tracks)
    orders = []
    for shift in range(1, min(NUM_ORDERS, num_tracks - 1) + 1):
        order = np.empty(num_tracks, dtype=int)
        order[drawn] = np.roll(drawn, shift)
        orders.append(order.tolist())
    return orders


@dataclass(frozen=True, kw_only=True)
class TrackEvaluations:
    """Results of `Task.evaluate_track` for the tracks of a split, in their order.

    Attributes:
        own: Results with the labels of the track itself, one for each track.
        shuffled: For each order, the results with the labels of the other track.
    """

    own: list[Any]
    shuffled: list[list[Any]]


def evaluate_tracks(
    model: TaskModel,
    tracks: Sequence[CheckedTrack],
    *,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    bar: Progress,
    bad_track_policy: BadTrackPolicy | None = None,
    split: str = "test",
    inputs: Inputs | None = None,
    interruptible: Interruptible = nullcontext,
    variation: OutputVariation | None = None,
    orders: Sequence[Sequence[int]] = (),
) -> TrackEvaluations:
    """Return the evaluation of each track, the same on every process.

    A track that can no longer be read is left out if ``bad_track_policy`` allows that; it is then in
    ``bad_track_policy.found``.

    Exactly one process evaluates a track, over all its windows, by the task's `predict` and
    `evaluate_track`. It keeps the scores of one track at a time.

    Args:
        model: Model on the process's device, not wrapped.
        tracks: Tracks of a split.
        accelerator: Accelerator of the run.
        batch_size: Batch size in windows.
        num_workers: Number of worker processes that read audio.
        bar: Progress bar of the tracks.
        bad_track_policy: Policy for tracks that can no longer be read; the default is to stop.
        split: Split of the tracks.
        inputs: Function that reads a window, in place of the task.
        interruptible: Context in which a signal raises `Stopped`.
        variation: Statistics of the head's outputs, updated with those of all processes.
        orders: Result of `chance_orders`, to compare each prediction with the labels of other tracks too.

    Raises:
        Stopped: A process received a signal; the same on every process.
        DataError: A track can no longer be read, a worker failed, or a single window does not fit into
            memory.
        NotFiniteError: The model output for a track is not finite.
    """
    own = range(accelerator.process_index, len(tracks), accelerator.num_processes)
    windows = model.track_windows([tracks[i] for i in own], inputs=inputs)
    bar_task = bar.add_task("Evaluating tracks", total=len(own))
    bad_track_policy = bad_track_policy or BadTrackPolicy()
    own_variation = None if variation is None else OutputVariation()
    rows = score_windows(
        model,
        windows,
        batch_size=batch_size,
        num_workers=num_workers,
        timeout_seconds=bad_track_policy.timeout_seconds,
        autocast=accelerator.autocast,
        variation=own_variation,
    )
    evaluated = []
    failure: str | UserError | None = None
    stopped = None
    bad_tracks: dict[str, str] = {}
    try:
        with interruptible():
            for number, of_track in groupby(rows, key=lambda row: row[0]):
                checked = windows.tracks[number]
                try:
                    prediction = model.task.predict(checked, scored(of_track))
                    others = [tracks[order[own[number]]] for order in orders]
                    compared = [
                        model.task.evaluate_track(one, prediction) for one in (checked, *others)
                    ]
                    evaluated.append((own[number], compared))
                except AudioError as error:
                    bad_tracks[checked.track.id] = str(error)
                bar.advance(bar_task)
    except Stopped as signalled:
        stopped = signalled
    except WorkerError as error:
        failure = error
    except torch.OutOfMemoryError:
        failure = TOO_LITTLE_MEMORY
    bar.remove_task(bar_task)
    bad_track_policy.take(split, gather_errors(accelerator, failure, bad_tracks, stopped=stopped))
    if variation is not None:
        for counted in gather_object([own_variation]):  # every process has one
            variation.merge(counted)
    in_order = [one for _, one in sorted(gather_object(evaluated), key=lambda pair: pair[0])]
    own_labels, *other_labels = (
        [one[number] for one in in_order] for number in range(1 + len(orders))
    )
    return TrackEvaluations(own=own_labels, shuffled=other_labels)


def output_variation(
    model: TaskModel, variation: OutputVariation, *, num_tracks: int
) -> dict[str, Any]:
    """Return the variation of the head's outputs over tracks; warn if they hardly vary."""
    hardly_vary = outputs_hardly_vary(variation, num_tracks=num_tracks)
    if hardly_vary:
        logger.warning(
            explain_constant_outputs(
                variation,
                num_tracks=num_tracks,
                is_probe=model.tuning.method == "probe",
                is_standardized=model.head_config.standardize,
            )
        )
    largest = float(variation.stds.max()) if variation.num_rows else None
    return {"output_std": largest, "outputs_hardly_vary": hardly_vary}


def measure(
    model: TaskModel, tracks: Sequence[CheckedTrack], *, batch_size: int = 16, seed: int = 0
) -> dict[str, Any]:
    """Return the metrics of a trained model on labelled tracks in float32, in the format of results.json."""
    AcceleratorState._reset_state()  # a run before it in this process may have another precision
    accelerator = Accelerator(mixed_precision="no")  # whatever a launcher's variable has
    keep_freed_memory(accelerator.device)
    variation = OutputVariation()
    with progress_bar(accelerator) as bar:
        evaluations = evaluate_tracks(
            model.to(accelerator.device),
            tracks,
            accelerator=accelerator,
            batch_size=batch_size,
            num_workers=0,
            bar=bar,
            variation=variation,
        )
    return {
        "task": model.task.name,
        "num_tracks": len(tracks),
        **model.task.summarize(evaluations.own, seed=seed),
        **output_variation(model, variation, num_tracks=len(tracks)),
    }
