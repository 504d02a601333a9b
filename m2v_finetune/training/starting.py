"""Start of a run: processes, run folder, logging and seeds."""

import logging
import os

from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import (
    LoggerType,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
    set_seed,
)
from rich.console import Console
from rich.logging import RichHandler

from m2v_finetune.allocation import keep_freed_memory
from m2v_finetune.config import AnyRecipeConfig
from m2v_finetune.cpu_precision import uses_bfloat16
from m2v_finetune.errors import UserError
from m2v_finetune.training.precision import choose_precision, gpu_capability
from m2v_finetune.training.run_folder import RunFolder, choose_folder


def start(config: AnyRecipeConfig, *, task: str) -> tuple[Accelerator, RunFolder]:
    """Start the processes and choose the run folder; nothing is written yet.

    Raises:
        UserError: The run folder may not be used, or the processes do not find each other.
    """
    legal = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    unknown = [name for name in config.training.trackers if name not in legal]
    if unknown:
        raise UserError(
            f"training.trackers has {', '.join(unknown)}, which Accelerate does not support. It supports "
            f"{', '.join(legal)}.",
            code="settings-trackers",
        )
    _refuse_sharding()
    AcceleratorState._reset_state()  # a run before it in this process may have another precision
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise UserError(
            f"{started} processes were started, but they would train as {state.num_processes}, each by "
            "itself. On CPU set ACCELERATE_USE_CPU=true: ACCELERATE_USE_CPU=true torchrun --standalone "
            f"--nproc_per_node {started} recipes/{task}.py ...",
            code="processes-apart",
        )
    start_logging(is_main_process=state.is_main_process)
    # One process decides, as the name of a new folder contains the time.
    folder = choose_folder(config.run.output_dir, task=task, resume=config.run.resume)
    problem = _lock(folder) if state.is_main_process else None
    [folder, problem] = broadcast_object_list([folder, problem])
    if problem:
        raise UserError(problem, code="run-folder-in-use")
    precision = choose_precision(
        config.training.mixed_precision,
        capability=gpu_capability() if state.device.type == "cuda" else None,
        bf16_on_cpu=uses_bfloat16(task),
    )
    [precision] = broadcast_object_list([precision])  # machines of a run may have other processors
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=["tensorboard", *config.training.trackers],
        project_config=ProjectConfiguration(
            project_dir=str(folder.path), logging_dir=str(folder.path / "tensorboard")
        ),
    )
    keep_freed_memory(accelerator.device)
    set_seed(config.run.seed)
    return accelerator, folder


def _refuse_sharding() -> None:
    """Raise `UserError` if Accelerate is configured to shard the model, which is not supported."""
    for variable, name in (("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")):
        if parse_flag_from_env(f"ACCELERATE_USE_{variable}"):
            raise UserError(
                f"Accelerate is configured to shard the model by {name}. This is not supported: each process "
                "has the complete model. The largest checkpoint fits on one GPU of 11 GB. Use "
                "configs/accelerate/ddp.yaml.",
                code="accelerate-sharding",
            )


def _lock(folder: RunFolder) -> str | None:
    """Lock an existing run folder; return the error if another run has it. `create` locks a new one."""
    try:
        if folder.is_a_run:
            folder.lock()
    except UserError as error:
        return str(error)
    return None


def start_logging(*, is_main_process: bool = True) -> None:
    """Log to standard error: all messages of this package on the main process, only errors on others."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("m2v_finetune").setLevel(logging.INFO if is_main_process else logging.ERROR)
