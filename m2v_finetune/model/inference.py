"""Inference of a `TaskModel` on the windows of tracks and on audio files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrackWindows, Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.reading import track_loader
from m2v_finetune.data.workers import read_batches
from m2v_finetune.errors import AudioError, UserError
from m2v_finetune.variation import OutputVariation

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

ScoredWindow = tuple[int, Window, NDArray[np.float32] | AudioError]
"""Number of a track, window of it, and the scores of the window or the reason why it cannot be read."""


class NotFiniteError(UserError):
    """The model output for a track holds nan or infinity."""

    code = "model-output-not-finite"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"The model output for {origin} is not finite. Check the model weights and the audio file."
        )


def require_audio_input(model: "TaskModel") -> None:
    """Raise `UserError` where the model reads vectors in place of audio."""
    if isinstance(model.backbone, PrecomputedBackbone):
        raise UserError(
            "This model does not read audio files: it was trained on vectors that were computed elsewhere "
            f"({model.backbone.source}, {model.backbone.hidden_size} numbers a clip), without the "
            "network that computes them. Train a model with a backbone, without --data.features.",
            code="model-reads-vectors",
        )


def score_windows(
    model: "TaskModel",
    windows: TrackWindows,
    *,
    batch_size: int,
    num_workers: int = 0,
    timeout_seconds: float = 0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    variation: OutputVariation | None = None,
) -> Iterator[ScoredWindow]:
    """Yield the number of the track, the window and its scores, window after window.

    The model is left in evaluation mode. An error takes the place of the scores of a window that cannot be
    read. Batches are divided, with a warning, where memory runs out.

    Args:
        model: On the device that computes.
        windows: The windows, from `TaskModel.track_windows`.
        batch_size: Windows of a batch.
        num_workers: Number of processes that read audio.
        timeout_seconds: Longest time of one of them for a batch; 0 for no limit.
        autocast: Context of each forward pass.
        variation: Counter of the outputs of the head.

    Raises:
        NotFiniteError: The scores hold nan or infinity.
        WorkerError: A process that reads audio failed.
        torch.OutOfMemoryError: A single window does not fit into memory.
    """
    device = next(model.parameters()).device

    def run(*parts: Tensor) -> Tensor:
        with torch.inference_mode(), autocast():
            outputs: Tensor = model(*(part.to(device, non_blocking=True) for part in parts))
            return outputs.float().cpu()

    model.eval()
    loader = track_loader(
        windows,
        batch_size=batch_size,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
    )
    for indices, parts, bad in read_batches(loader):
        rows: dict[int, NDArray[np.float32] | AudioError] = dict(bad)
        if len(indices):
            outputs = model.micro_batcher.run(run, parts)
            if variation is not None:
                variation.add(outputs)
            scores = model.task.activate(outputs).numpy()
            rows |= zip(indices.tolist(), scores, strict=True)
        for index, one in sorted(rows.items(), key=lambda pair: pair[0]):
            number, window = windows.locations[index]
            if not isinstance(one, AudioError) and not np.isfinite(one).all():
                raise NotFiniteError(windows.tracks[number].track.origin)
            yield number, window, one


def scored(rows: Iterable[ScoredWindow]) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield the windows of one track with their scores.

    Raises:
        AudioError: A window cannot be read.
    """
    for _, window, scores in rows:
        if isinstance(scores, AudioError):
            raise scores
        yield window, scores


def check_file(path: Path) -> CheckedTrack:
    """Return an audio file as a track without labels.

    Raises:
        AudioError: The file cannot be read.
    """
    audio = inspect_audio(path)
    track = Track(
        id=str(path), path=path, split=None, columns={}, origin=str(path), folder=path.parent
    )
    return CheckedTrack(track=track, audio=audio)
