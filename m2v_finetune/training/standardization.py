"""Mean and standard deviation of the head's input features over the windows of the first epoch."""

from collections.abc import Iterable, Sequence

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor, nn

from m2v_finetune.errors import UserError
from m2v_finetune.heads import Standardization
from m2v_finetune.model import TaskModel
from m2v_finetune.training.faults import gather_errors

TOO_LITTLE_MEMORY = UserError(
    "Measuring the mean and standard deviation of the head's input, before the first step, ran out of memory "
    "with a batch of a single window. Set shorter windows (data.window_seconds) or fewer layers "
    "(backbone.num_layers).",
    code="standardization-out-of-memory",
)


def measure_standardization(
    model: TaskModel,
    batches: Iterable[Sequence[Tensor]],
    *,
    accelerator: Accelerator,
    bar: Progress,
    num_batches: int,
) -> None:
    """Set mean and standard deviation of a model's `Standardization` in place, if it has one.

    The layer weights are the initial ones. Processes exchange their features, so the result is the same on
    each. A standard deviation of 0 counts as 1.

    Source: scikit-learn's StandardScaler, as in the probes of jukemir.

    Args:
        model: Model on the device; it stays in evaluation mode.
        batches: Inputs and targets of an epoch, the share of this process.
        accelerator: Accelerator of the run.
        bar: Progress bar.
        num_batches: Number of batches.

    Raises:
        DataError: A single window does not fit into the memory of a process.
    """
    modules = [module for module in model.head.modules() if isinstance(module, Standardization)]
    if not modules:
        return
    [module] = modules
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    captured: dict[str, Tensor] = {}

    def keep(_: nn.Module, read: tuple[Tensor]) -> None:
        captured["rows"] = read[0].double()

    def run_model(*inputs: Tensor) -> Tensor:
        """Return the input features of the head, (batch, ..., size)."""
        with torch.inference_mode(), accelerator.autocast():
            model(*(part.to(accelerator.device, non_blocking=True) for part in inputs))
        return captured.pop("rows")

    hook = module.register_forward_pre_hook(keep)
    task = bar.add_task("Measuring the head's input", total=num_batches)
    model.eval()
    for *inputs, _ in batches:
        rows, failure = torch.empty(0), None
        try:
            rows = model.micro_batcher.run(run_model, inputs).flatten(0, -2)
        except torch.OutOfMemoryError:
            failure = TOO_LITTLE_MEMORY
        gather_errors(
            accelerator, failure, {}
        )  # else the others would wait for rows of this process
        scaler.partial_fit(accelerator.gather(rows).cpu().numpy())
        bar.advance(task)
    hook.remove()
    bar.remove_task(task)
    module.mean.copy_(torch.from_numpy(scaler.mean_))
    module.std.copy_(torch.from_numpy(scaler.scale_))
