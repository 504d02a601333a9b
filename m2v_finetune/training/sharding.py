"""FSDP2: each process holds a share of the weights, their gradients and the optimiser's moments.

Beside its shards each process keeps the whole model, on the CPU while steps are taken. What was learned is
gathered into it to be judged, saved and published, so that nothing but the loop knows of shards, and a
checkpoint is the same whatever wrote it.
"""

import copy
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from m2v_finetune.backbones import Backbone
from m2v_finetune.config import AnyRecipeConfig, PretrainingConfig
from m2v_finetune.errors import UserError
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel

Model = TypeVar("Model", bound=TaskModel | PretrainingModel)


def check_sharding(config: AnyRecipeConfig) -> None:
    """Check that a run can be sharded, where Accelerate was told to shard.

    Raises:
        UserError: It cannot.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "Accelerate was told to shard the model by DeepSpeed, which this program does not do. Use "
            "configs/accelerate/ddp.yaml, or fsdp2.yaml."
        )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    plugin = _plugin()
    if plugin.fsdp_version != 2:
        raise UserError(
            f"Accelerate was told to shard the model by version {plugin.fsdp_version} of FSDP; this program "
            "does by version 2 alone. Use configs/accelerate/fsdp2.yaml."
        )
    if isinstance(config, PretrainingConfig):
        raise UserError(
            "Accelerate was told to shard the model (FSDP), which pre-training does not do, as its teacher "
            "follows whole weights. Use configs/accelerate/ddp.yaml."
        )
    if (
        config.backbone.layer_weighting == "conv1d"
    ):  # its offset is one number: there are no shares of it
        raise UserError(
            "backbone.layer_weighting is conv1d, which does not go with a sharded model (FSDP). Set it to "
            "softmax, or use configs/accelerate/ddp.yaml."
        )
    given = {
        "optimizer.name": (config.optimizer.name, ("adamw",)),
        "training.mixed_precision": (config.training.mixed_precision, ("auto", "no", "bf16")),
        "training.compile": (config.training.compile, (False,)),
    }
    for name, (value, legal) in given.items():
        if value not in legal:
            raise UserError(
                f"{name} is {value}, which does not go with a sharded model (FSDP). It takes "
                f"{' or '.join(map(str, legal))} there; or use configs/accelerate/ddp.yaml."
            )


def is_sharding(accelerator: Accelerator) -> bool:
    """Tell whether Accelerate was told to shard, and there are processes to share."""
    # Accelerate's own `is_fsdp2` is never true on CPU.
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP")) and accelerator.num_processes > 1


def shard(model: Model, accelerator: Accelerator) -> Model:
    """Return a copy of a model of which each process holds a share; the model stays whole.

    Each transformer layer is gathered when it is needed, and all the rest when a pass begins. Weights are
    sharded and gradients averaged in float32.

    Args:
        model: On the CPU; the same on every process.
        accelerator: Knows the device.

    Raises:
        UserError: The card computes in fp16, which needs loss scaling.
    """
    if accelerator.scaler is not None:
        raise UserError(
            "A sharded model (FSDP) is not trained in fp16, whose loss scale every process would find for "
            "itself. Set training.mixed_precision to bf16 or 'no', or use configs/accelerate/ddp.yaml."
        )
    plugin = _plugin()
    offload = (
        CPUOffloadPolicy() if isinstance(plugin.cpu_offload, CPUOffloadPolicy) else OffloadPolicy()
    )
    sharded = copy.deepcopy(model)
    sharded.to(accelerator.device)
    if isinstance(sharded.backbone, Backbone):
        for layer in sharded.backbone.layers:
            fully_shard(
                layer,
                reshard_after_forward=bool(plugin.reshard_after_forward),
                offload_policy=offload,
            )
    fully_shard(sharded, offload_policy=offload)
    return sharded


def gather(sharded: Model, model: Model) -> None:
    """Bring what was learned from the shards into the whole model; every process has to call this."""
    shares = sharded.state_dict()
    for name, tensor in model.trained_tensors().items():
        tensor.copy_(full_tensor(shares[name]))


def scatter(model: Model, sharded: Model) -> None:
    """Bring what was learned from the whole model, the same on every process, into the shards."""
    shares = sharded.state_dict()
    for name, tensor in model.trained_tensors().items():
        shares[name].copy_(_like(tensor, shares[name]))


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor without its shards; every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def read_norm(norm: Tensor) -> float:
    """Return the norm of gradients over all shards."""
    return float(full_tensor(norm))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimiser without shards; every process has to call this."""
    state = optimizer.state_dict()
    moments = {
        number: {
            name: full_tensor(value).cpu() if isinstance(value, DTensor) else value
            for name, value in of_parameter.items()
        }
        for number, of_parameter in state["state"].items()
    }
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Bring back what `optimizer_state` returned, whether or not the optimiser has shards now."""
    parameters = [own for group in optimizer.param_groups for own in group["params"]]
    moments = {
        number: {
            # AdamW counts the steps of a parameter beside its moments.
            name: value if name == "step" else _like(value, parameters[number])
            for name, value in of_parameter.items()
        }
        for number, of_parameter in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def _like(tensor: Any, other: Tensor) -> Any:
    """Return a whole tensor sharded as another one is; what is no tensor of a shard, as it is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def _plugin() -> FullyShardedDataParallelPlugin:
    """Return what Accelerate was told of FSDP, by its config or the environment."""
    return FullyShardedDataParallelPlugin()
