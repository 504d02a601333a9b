"""Choice of mixed precision by the hardware; models on their device in it."""

from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from m2v_finetune.backbones import Backbone
from m2v_finetune.errors import UserError
from m2v_finetune.micro_batching import unified_out_of_memory
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel

BF16_CAPABILITY = (8, 0)


def choose_precision(
    setting: Literal["auto", "no", "fp16", "bf16"],
    *,
    capability: tuple[int, int] | None,
    bf16_on_cpu: bool = False,
) -> Literal["no", "fp16", "bf16"]:
    """Return the mixed precision to train in.

    Args:
        setting: Precision of the settings, or ``auto``.
        capability: Compute capability of the NVIDIA GPU, or None without one.
        bf16_on_cpu: Whether ``auto`` is bf16 without a GPU (`cpu_precision.uses_bfloat16`).

    Returns:
        For ``auto``: bf16 from capability 8.0 up, where the arithmetic exists; fp16 with loss scaling on
        older GPUs such as an RTX 2080 Ti (7.5); on a CPU bf16 by ``bf16_on_cpu``, else no mixed
        precision.

    Raises:
        UserError: The hardware does not support the precision.
    """
    if setting == "fp16" and capability is None:
        raise UserError(
            "training.mixed_precision is fp16, which needs an NVIDIA GPU, and this run has "
            "none. Set it to no, or to auto.",
            code="precision-needs-gpu",
        )
    if setting == "bf16" and capability is not None and capability < BF16_CAPABILITY:
        raise UserError(
            "training.mixed_precision is bf16, but this GPU has compute capability "
            f"{'.'.join(map(str, capability))}, and bfloat16 needs 8.0. Set it to fp16, or to auto.",
            code="precision-unsupported",
        )
    if setting != "auto":
        return setting
    if capability is None:
        return "bf16" if bf16_on_cpu else "no"
    return "bf16" if capability >= BF16_CAPABILITY else "fp16"


def gpu_capability() -> tuple[int, int] | None:
    """Return the compute capability of the current NVIDIA GPU, or None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def prepare_model(
    model: TaskModel | PretrainingModel,
    accelerator: Accelerator,
    *,
    gradient_checkpointing: bool,
    compile_layers: bool,
) -> None:
    """Move a model to the device in its precision, with the same weights on every process.

    Args:
        model: The model.
        accelerator: Device, precision and processes.
        gradient_checkpointing: Whether the layers compute their activations again in the backward pass.
        compile_layers: Whether torch compiles the layers.

    Raises:
        UserError: The weights do not fit into the memory of the device.
    """
    model.backbone.gradient_checkpointing = gradient_checkpointing
    if compile_layers:
        assert isinstance(model.backbone, Backbone)  # vectors have no layers; settings refuse that
        model.backbone.compile_layers()
    # Gradients of processes are exchanged by `take_step`.
    try:
        with unified_out_of_memory():
            accelerator.prepare_model(model, evaluation_mode=True)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The weights of the model do not fit into the memory of {accelerator.device}. Stop other "
            "programs that use it, choose a smaller backbone.source, or set backbone.num_layers.",
            code="memory-weights-too-large",
        ) from error
    if accelerator.num_processes > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            broadcast(tensor.data)
