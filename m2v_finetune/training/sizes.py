"""Numbers of parameters, sizes of a run's files, and the space for them."""

from pathlib import Path

from torch import nn

from m2v_finetune.errors import UserError
from m2v_finetune.files import free_bytes
from m2v_finetune.model import TaskModel
from m2v_finetune.model.metadata import is_adapter_enough
from m2v_finetune.pretraining.model import PretrainingModel

BYTES_PER_NUMBER = 4
# Plots, log, TensorBoard, predictions and settings: an upper estimate.
OTHER_BYTES = 20_000_000


def run_bytes(model: TaskModel, *, keep_checkpoints: int) -> int:
    """Return the estimated size of a run's files: checkpoints, the model, and the rest."""
    trained = count_parameters(model, trained_only=True)
    num_saved = trained if is_adapter_enough(model) else count_parameters(model)
    checkpoints = _checkpoint_numbers(trained, trained=trained) * (keep_checkpoints + 1)
    return BYTES_PER_NUMBER * (checkpoints + num_saved) + OTHER_BYTES


def results_bytes(model: TaskModel) -> int:
    """Return the estimated size of the files that a run writes after training."""
    trained_only = is_adapter_enough(model)
    return BYTES_PER_NUMBER * count_parameters(model, trained_only=trained_only) + OTHER_BYTES


def _checkpoint_numbers(saved: int, *, trained: int) -> int:
    """Return the number of values in a checkpoint: current and best weights, and AdamW's two moments."""
    return 2 * saved + 2 * trained


def count_parameters(model: nn.Module, *, trained_only: bool = False) -> int:
    """Return the number of parameters, of all or of the trainable ones."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)


def pretraining_bytes(model: PretrainingModel, *, keep_checkpoints: int) -> int:
    """Return the estimated size of a pre-training run's files; its checkpoints include the teacher."""
    trained, total = count_parameters(model, trained_only=True), count_parameters(model)
    checkpoints = _checkpoint_numbers(total, trained=trained) * (keep_checkpoints + 1)
    return BYTES_PER_NUMBER * (checkpoints + trained) + OTHER_BYTES


def require_space(folder: Path, needed_bytes: int) -> None:
    """Check that a run's files will fit on the disk.

    Args:
        folder: Run folder, which may not exist yet.
        needed_bytes: Estimated size of all files of the run.

    Raises:
        UserError: The disk has less space.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise UserError(
            f"The disk of {folder} has {free / 1e6:,.0f} MB free; this run needs about "
            f"{needed_bytes / 1e6:,.0f} MB for checkpoints and the model. Free some, or choose another disk "
            "with --run.output_dir.",
            code="disk-space-too-small",
        )


def gigabytes(number: int) -> str:
    """Return a size as text in decimal gigabytes, or in megabytes below 0.1 GB."""
    return f"{number / 1e9:.2f} GB" if number >= 10**8 else f"{number / 1e6:.1f} MB"


def divisors(number: int) -> list[int]:
    """Return the divisors of a number in descending order.

    >>> divisors(12)
    [12, 6, 4, 3, 2, 1]
    """
    return [size for size in range(number, 0, -1) if number % size == 0]


def megabytes(num_bytes: int) -> str:
    """Return bytes in decimal megabytes, as text."""
    return f"{num_bytes / 1e6:,.1f} MB"
