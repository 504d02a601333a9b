"""Judging whole tracks, on one process or many."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from rich.progress import Progress

from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrackWindows, track_loader
from m2v_finetune.model import TaskModel


def score_tracks(
    model: TaskModel,
    tracks: Sequence[CheckedTrack],
    *,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    bar: Progress,
) -> NDArray[np.float32]:
    """Return the scores of each track, in their order, on every process.

    Each track is judged by exactly one process, over all its windows, by the task's own aggregation.

    Args:
        model: On the process's device, not wrapped.
        tracks: The tracks of a split.
        accelerator: Knows the processes.
        batch_size: Windows at once.
        num_workers: Processes that read audio.
        bar: Shows how many batches of windows are done.

    Returns:
        (tracks, num_outputs).
    """
    own = range(accelerator.process_index, len(tracks), accelerator.num_processes)
    windows = TrackWindows(
        [tracks[i] for i in own],
        sample_rate=model.backbone.sample_rate,
        window_samples=model.window_samples,
        hop_samples=model.hop_samples,
    )
    loader = track_loader(windows, batch_size=batch_size, num_workers=num_workers)
    per_track: dict[int, list[NDArray[np.float32]]] = {i: [] for i in own}
    model.eval()
    bar_task = bar.add_task("Judging tracks", total=len(loader))
    with torch.inference_mode(), accelerator.autocast():
        for numbers, waveforms in loader:
            logits = model(waveforms.to(accelerator.device, non_blocking=True))
            scores = model.task.scores(logits.float()).cpu().numpy()
            for number, row in zip(numbers.tolist(), scores, strict=True):
                per_track[own[number]].append(row)
            bar.advance(bar_task)
    bar.remove_task(bar_task)
    judged = [(i, model.task.aggregate(np.stack(rows))) for i, rows in per_track.items()]
    return np.stack(
        [scores for _, scores in sorted(gather_object(judged), key=lambda pair: pair[0])]
    )


def track_targets(model: TaskModel, tracks: Sequence[CheckedTrack]) -> NDArray[np.float32]:
    """Return the targets of tracks, (tracks, num_outputs)."""
    return np.stack([model.task.targets(checked.track) for checked in tracks])
