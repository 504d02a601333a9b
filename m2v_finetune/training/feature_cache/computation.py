"""Computation of features: the output of the frozen layers for windows, written to a store."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from m2v_finetune.data.cached_windows import SampledWindows
from m2v_finetune.data.feature_store import FeatureStore
from m2v_finetune.data.reading import track_loader
from m2v_finetune.data.workers import read_batches
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import ForwardPass
from m2v_finetune.model import NotFiniteError, TaskModel
from m2v_finetune.threads import batches_at_once, in_order
from m2v_finetune.training.progress import progress_bar


def compute_features(
    model: TaskModel,
    store: FeatureStore,
    windows: SampledWindows,
    *,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    timeout_seconds: float,
    title: str,
) -> dict[str, str]:
    """Compute the features of windows and write them.

    Args:
        model: Model with frozen layers.
        store: Store of the features.
        windows: Windows to compute, with their rows in the store.
        accelerator: Device, precision and progress bar.
        batch_size: Batch size in windows.
        num_workers: Number of worker processes that read audio.
        timeout_seconds: Longest wait for a worker.
        title: Title of the progress bar.

    Returns:
        Reason for each track that cannot be read, by its id.

    Raises:
        OSError: The disk refuses to write.
        WorkerError: A worker failed.
        UserError: A single window does not fit into memory, or features exceed the range of the precision.
        NotFiniteError: Features are not finite.
    """
    bad_tracks: dict[str, str] = {}
    frozen_features = ForwardPass(model, model.frozen_features, autocast=accelerator.autocast)

    def features_of(batch: Any) -> Tensor | None:
        indices, parts, _ = batch
        if not len(indices):
            return None
        try:
            return frozen_features(parts[0])
        except torch.OutOfMemoryError as error:
            raise UserError(
                "Caching ran out of memory with a single window. Lower data.window_seconds. Features that "
                "are already cached stay.",
                code="cache-out-of-memory",
            ) from error

    model.eval()
    if not windows.rows:
        return bad_tracks
    loader = track_loader(
        windows, batch_size=batch_size, num_workers=num_workers, timeout_seconds=timeout_seconds
    )
    sampled = [windows.sampled_windows[row] for row in windows.rows]
    with progress_bar(accelerator) as bar:
        task = bar.add_task(title, total=len(windows))
        computed = in_order(features_of, read_batches(loader), at_once=batches_at_once(model))
        for (indices, parts, bad), features in computed:
            for index, error in bad.items():
                bad_tracks[sampled[index].checked.track.id] = str(error)
            if features is not None:
                label_transform = parts[1]
                origins = [sampled[index].checked.track.origin for index in indices.tolist()]
                store.write(
                    [windows.rows[index] for index in indices.tolist()],
                    _in_precision(features.numpy(), store.dtype, origins),
                    label_transform.numpy(),
                )
            bar.advance(task, len(indices) + len(bad))
    return bad_tracks


def _in_precision(values: Any, dtype: str, names: Sequence[str]) -> Any:
    """Return values in the precision of the store.

    Raises:
        NotFiniteError: A value is nan or infinite.
        UserError: A value exceeds the range of float16.
    """
    is_finite = np.isfinite(values).all(axis=(1, 2))
    if not is_finite.all():
        raise NotFiniteError(names[int(np.argmin(is_finite))])
    with np.errstate(over="ignore"):
        cast_values = values.astype(dtype)
    if not np.isfinite(cast_values).all():
        raise UserError(
            f"Hidden states of up to {np.abs(values).max():.4g} exceed 65504, the limit of float16. Set "
            "cache.precision to float32.",
            code="cache-precision",
        )
    return cast_values
