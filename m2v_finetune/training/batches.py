"""Order of the training windows of a run, for each of its processes."""

import logging
from collections.abc import Sequence

from m2v_finetune.config import TrainingConfig
from m2v_finetune.data.loader import TrainingBatches
from m2v_finetune.training.run import Run

logger = logging.getLogger(__name__)


def training_batches(
    num_windows: int, training: TrainingConfig, run: Run, *, item_classes: Sequence[int] = ()
) -> TrainingBatches:
    """Return the batches of this process; warn if an epoch has fewer windows than a total batch.

    Args:
        num_windows: Number of windows in an epoch.
        training: Sizes of the batches.
        run: Seed and processes.
        item_classes: Class of each window, each then equally often; empty for each window once.
    """
    batches = TrainingBatches(
        num_items=num_windows,
        per_device_batch_size=training.per_device_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        process_index=run.accelerator.process_index,
        num_processes=run.accelerator.num_processes,
        seed=run.settings.seed,
        item_classes=item_classes,
    )
    if num_windows < batches.total_batch_size:
        logger.warning(
            "A total batch holds %d windows, but an epoch only %d: they are repeated to fill it. Lower "
            "training.per_device_batch_size or gradient_accumulation_steps.",
            batches.total_batch_size,
            num_windows,
        )
    return batches
