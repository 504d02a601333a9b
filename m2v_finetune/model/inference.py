"""Inference of a `TaskModel` on the windows of tracks and on audio files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from m2v_finetune.audio.decode import inspect_audio
from m2v_finetune.backbones import Backbone, PrecomputedBackbone
from m2v_finetune.backbones.embedding import Pooled, embed_file, mean_of_state
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrackWindows, Window
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.reading import track_loader
from m2v_finetune.data.workers import read_batches
from m2v_finetune.errors import AudioError, UserError
from m2v_finetune.micro_batching import ForwardPass
from m2v_finetune.model.novelty import NUM_DISTANCES
from m2v_finetune.tasks import Prediction
from m2v_finetune.threads import batches_at_once, in_order
from m2v_finetune.variation import OutputVariation

if TYPE_CHECKING:
    from m2v_finetune.model.task_model import TaskModel

Owner = TypeVar("Owner")
ScoredWindow = tuple[int, Window, "NDArray[np.float32] | AudioError | NotFiniteError"]
"""Number of a track, window of it, and the scores of the window or the reason why it has none."""


class NotFiniteError(UserError):
    """The model output for a track holds nan or infinity."""

    code = "model-output-not-finite"

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"The model output for {origin} is not finite. Check the model weights and the audio file."
        )


def require_inference(model: "TaskModel") -> None:
    """Raise `UserError` where the model reads vectors in place of audio, or its weights are not float32."""
    if isinstance(model.backbone, PrecomputedBackbone):
        raise UserError(
            "This model does not read audio files: it was trained on vectors that were computed elsewhere "
            f"({model.backbone.source}, {model.backbone.hidden_size} numbers a clip), without the "
            "network that computes them. Train a model with a backbone, without --data.features.",
            code="model-reads-vectors",
        )
    others = {one.dtype for one in model.parameters() if one.dtype != torch.float32}
    if others:
        raise UserError(
            f"The weights of the model are {', '.join(sorted(map(str, others)))}. Predictions need float32: "
            "call model.float(). For speed, set model.precision to bfloat16.",
            code="model-weights-not-float32",
        )


def score_windows(
    model: "TaskModel",
    windows: TrackWindows,
    *,
    batch_size: int,
    num_workers: int = 0,
    timeout_seconds: float = 0,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    variation: OutputVariation | None = None,
    raises_not_finite: bool = True,
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
        autocast: Context of each forward pass; that of `TaskModel.precision` if None.
        variation: Counter of the outputs of the head.
        raises_not_finite: Whether scores that hold nan or infinity raise an error; else the error takes
            their place.

    Raises:
        NotFiniteError: The scores hold nan or infinity.
        WorkerError: A process that reads audio failed.
        torch.OutOfMemoryError: A single window does not fit into memory.
    """
    loader = track_loader(
        windows,
        batch_size=batch_size,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
    )
    numbers = range(len(windows.tracks))
    yield from score_batches(
        model,
        ((numbers, windows, batch) for batch in read_batches(loader)),
        at_once=batches_at_once(model) if len(windows) > batch_size else 1,
        autocast=autocast,
        variation=variation,
        raises_not_finite=raises_not_finite,
    )


def score_batches(
    model: "TaskModel",
    batches: Iterable[tuple[Sequence[Owner], TrackWindows, Any]],
    *,
    at_once: int,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    variation: OutputVariation | None = None,
    raises_not_finite: bool = True,
) -> Iterator[tuple[Owner, Window, "NDArray[np.float32] | AudioError | NotFiniteError"]]:
    """Yield the owner of each window, the window and its scores, as `score_windows` does.

    Args:
        model: On the device that computes.
        batches: Batches of a `track_loader`, each with the windows that it was made of and the owner of each
            of their tracks.
        at_once: Number of batches that are computed at once.
        autocast: As for `score_windows`, and the others too.
        variation: Counter of the outputs of the head.
        raises_not_finite: Whether scores that hold nan or infinity raise an error.

    Raises:
        NotFiniteError: The scores hold nan or infinity.
        torch.OutOfMemoryError: A single window does not fit into memory.
    """
    score = ForwardPass(
        model, model.score, autocast=autocast or model.autocast, micro_batcher=model.micro_batcher
    )
    if any(module.training for module in model.modules()):
        model.eval()
    computed = in_order(
        lambda batch: score(*batch[2][1]) if len(batch[2][0]) else None, batches, at_once=at_once
    )
    for (owners, windows, (indices, _, bad)), outputs in computed:
        rows: dict[int, NDArray[np.float32] | AudioError] = dict(bad)
        if outputs is not None:
            scores = activate(model, outputs, variation)
            rows |= zip(indices.tolist(), scores, strict=True)
        for index, one in sorted(rows.items(), key=lambda pair: pair[0]):
            number, window = windows.locations[index]
            if isinstance(one, AudioError) or np.isfinite(one).all():
                yield owners[number], window, one
                continue
            error = NotFiniteError(windows.tracks[number].track.origin)
            if raises_not_finite:
                raise error
            yield owners[number], window, error


def activate(
    model: "TaskModel", outputs: Tensor, variation: OutputVariation | None = None
) -> NDArray[np.float32]:
    """Return the scores of windows from the output of `TaskModel.score`, novelty in their last columns too.

    Args:
        model: Model that computed them.
        outputs: Its output, (windows, ...).
        variation: Counter of the outputs of the head.
    """
    novelty = outputs[:, :0]
    if model.measures_novelty:
        outputs, novelty = outputs[:, :-NUM_DISTANCES], outputs[:, -NUM_DISTANCES:]
    if variation is not None:
        variation.add(outputs)
    scores: NDArray[np.float32] = model.task.activate(outputs).numpy()
    if model.measures_novelty:
        scores = np.concatenate([scores, novelty.numpy()], axis=1)
    return scores


def scored(
    rows: Iterable[tuple[Any, Window, Any]], resources: AbstractContextManager[Any] | None = None
) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """Yield the windows of one track with their scores.

    Args:
        rows: Rows of `score_windows`.
        resources: Resources that the rows need; released after the last one.

    Raises:
        AudioError: A window cannot be read.
        NotFiniteError: The scores of a window are not finite.
    """
    with resources or nullcontext():
        for _, window, scores in rows:
            if isinstance(scores, UserError):
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


def checked_paths(files: Sequence[str | Path]) -> list[Path]:
    """Return paths; raise `UserError` for anything else."""
    is_list = isinstance(files, Iterable) and not isinstance(files, str | bytes | Path)
    paths: list[Any] = list(files) if is_list else [files]
    strange = [type(one).__name__ for one in paths if not isinstance(one, str | Path)]
    if strange or not is_list:
        raise UserError(
            f"predict_many takes a list of paths, not {strange[0] if strange else 'one path'}. For "
            "arrays and file objects, call predict for each.",
            code="audio-input-type",
        )
    return [Path(path) for path in paths]


def predict_many(
    model: "TaskModel",
    files: Sequence[Path],
    *,
    batch_size: int,
    num_workers: int,
    show_progress: bool,
) -> "list[Prediction | UserError]":
    """Return the predictions for files; see `TaskModel.predict_many`."""
    require_inference(model)
    results: dict[int, Prediction | UserError] = {}
    checked: dict[int, CheckedTrack] = {}
    for number, path in enumerate(files):
        try:
            checked[number] = check_file(path)
        except AudioError as error:
            results[number] = error
    numbers = list(checked)
    windows = model.track_windows(list(checked.values()))
    with Progress(console=Console(stderr=True), disable=not show_progress) as bar:
        bar_task = bar.add_task("Predicting", total=len(files), completed=len(results))
        rows = score_windows(
            model,
            windows,
            batch_size=batch_size,
            num_workers=num_workers,
            raises_not_finite=False,
        )
        for position, of_track in groupby(rows, key=itemgetter(0)):
            number = numbers[position]
            try:
                # A list: stems are computed while they are read.
                scores = list(scored(of_track))
                results[number] = model.task.predict(checked[number], iter(scores))
            except (AudioError, NotFiniteError) as error:
                results[number] = error
            bar.advance(bar_task)
    return [results[number] for number in range(len(files))]


def embed(
    model: "TaskModel", path: Path, *, layer: int | None, pool: Pooled, batch_size: int
) -> NDArray[np.float32]:
    """Return the embedding of a file; see `TaskModel.embed`."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)

    def weighted(states: Iterable[Tensor]) -> Tensor:
        combined: Tensor = model.layer_weighting(states)
        return combined.mean(dim=1)

    model.eval()
    return embed_file(
        path,
        backbone,
        combine=weighted if layer is None else mean_of_state(layer, backbone.num_hidden_states),
        window_samples=model.window_samples,
        hop_samples=model.hop_samples,
        pool=pool,
        batch_size=batch_size,
    )
