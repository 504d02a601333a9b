"""Mean and deviation of what a head reads, over the windows of the first epoch."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from rich.progress import Progress
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from m2v_finetune.heads import Standardization
from m2v_finetune.model import TaskModel
from m2v_finetune.training.faults import gather_errors

TOO_LITTLE_MEMORY = (
    "Measuring what the head reads, before the first step, ran out of memory with a single window at once. "
    "Take shorter windows (data.window_seconds) or fewer layers (backbone.num_layers)."
)


def measure_standardization(
    model: TaskModel,
    batches: Iterable[Sequence[Tensor]],
    *,
    accelerator: Accelerator,
    bar: Progress,
    num_batches: int,
) -> None:
    """Set mean and deviation of a model's `Standardization`, in place; without one do nothing.

    The layer weights are those that training begins with. Every process sees what all have read, so all
    come to the same. A deviation of 0 counts as 1.

    Source: scikit-learn's StandardScaler, as in the probes of jukemir.

    Args:
        model: On the device; left in evaluation mode.
        batches: What the model takes, and last the targets; this process's share of an epoch.
        accelerator: Knows the precision and the processes.
        bar: Shows how far it is.
        num_batches: Of ``batches``.

    Raises:
        DataError: On a process a single window does not fit in memory.
    """
    modules = [module for module in model.head.modules() if isinstance(module, Standardization)]
    if not modules:
        return
    [module] = modules
    scaler = StandardScaler()
    captured: dict[str, Tensor] = {}

    def keep(_: nn.Module, read: tuple[Tensor]) -> None:
        captured["rows"] = read[0].double()

    def run_model(*inputs: Tensor) -> Tensor:
        """Return what the head reads of windows, (batch, ..., size)."""
        with torch.inference_mode(), accelerator.autocast():
            model(*(part.to(accelerator.device, non_blocking=True) for part in inputs))
        return captured.pop("rows")

    hook = module.register_forward_pre_hook(keep)
    task = bar.add_task("Measuring what the head reads", total=num_batches)
    model.eval()
    for *inputs, _ in batches:
        rows, failure = torch.empty(0), None
        try:
            rows = model.micro_batcher.run(run_model, inputs).flatten(0, -2)
        except torch.OutOfMemoryError:
            failure = TOO_LITTLE_MEMORY
        gather_errors(accelerator, failure, {})  # else the others would wait for this one's rows
        scaler.partial_fit(accelerator.gather(rows).cpu().numpy())
        bar.advance(task)
    hook.remove()
    bar.remove_task(task)
    module.mean.copy_(torch.from_numpy(scaler.mean_))
    module.std.copy_(torch.from_numpy(scaler.scale_))
