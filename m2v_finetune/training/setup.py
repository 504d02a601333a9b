"""The beginning of a run: processes, logging, seeds, and the first log."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import (
    LoggerType,
    ProjectConfiguration,
    broadcast_object_list,
    parse_flag_from_env,
    set_seed,
)
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text
from torch import nn

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.config import AnyRecipeConfig, PretrainingConfig, RecipeConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError
from m2v_finetune.hub import check_login
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import to_dict
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.training.checkpoint_files import step_of
from m2v_finetune.training.facts import peak_learning_rates
from m2v_finetune.training.loop import TrainingLoop
from m2v_finetune.training.precision import choose_precision, gpu_capability
from m2v_finetune.training.run_folder import RunFolder, choose_folder, require_space
from m2v_finetune.tuning import describe_tuning

logger = logging.getLogger(__name__)

BYTES_PER_NUMBER = 4
# Plots, log, TensorBoard, predictions and settings, generously.
OTHER_BYTES = 20_000_000

Started = tuple[Accelerator, RunFolder]
"""What `start` returns."""


def start(config: AnyRecipeConfig, *, task: str) -> Started:
    """Start the processes and choose the run folder; nothing is written yet.

    Raises:
        UserError: The run folder may not be used, or the processes do not find each other.
    """
    legal = [kind.value for kind in LoggerType if kind is not LoggerType.ALL]
    unknown = [name for name in config.training.trackers if name not in legal]
    if unknown:
        raise UserError(
            f"training.trackers has {', '.join(unknown)}, which Accelerate does not know. It knows "
            f"{', '.join(legal)}."
        )
    _refuse_sharding()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != state.num_processes:
        raise UserError(
            f"{started} processes were started, but they would train as {state.num_processes}, each by "
            "itself. On CPU set ACCELERATE_USE_CPU=true: ACCELERATE_USE_CPU=true torchrun --standalone "
            f"--nproc_per_node {started} recipes/{task}.py ..."
        )
    start_logging(is_main_process=state.is_main_process)
    # One process decides: the name of a new folder holds the time.
    folder = choose_folder(config.run.output_dir, task=task, resume=config.run.resume)
    problem = _lock(folder) if state.is_main_process else None
    [folder, problem] = broadcast_object_list([folder, problem])
    if problem:
        raise UserError(problem)
    accelerator = Accelerator(
        mixed_precision=choose_precision(
            config.training.mixed_precision,
            capability=gpu_capability() if state.device.type == "cuda" else None,
        ),
        log_with=["tensorboard", *config.training.trackers],
        project_config=ProjectConfiguration(
            project_dir=str(folder.path), logging_dir=str(folder.path / "tensorboard")
        ),
    )
    set_seed(config.run.seed)
    return accelerator, folder


def _refuse_sharding() -> None:
    """Raise `UserError` where Accelerate was told to shard the model, which is not done here."""
    for variable, name in (("FSDP", "FSDP"), ("DEEPSPEED", "DeepSpeed")):
        if parse_flag_from_env(f"ACCELERATE_USE_{variable}"):
            raise UserError(
                f"Accelerate was told to shard the model by {name}. Each process holds the whole model here: "
                "the largest checkpoint fits on one GPU of 11 GB. Use configs/accelerate/ddp.yaml.",
                code="accelerate-sharding",
            )


def _lock(folder: RunFolder) -> str | None:
    """Return why a run may not go on in its folder; a new one is locked when it is made."""
    try:
        if folder.is_a_run:
            folder.lock()
    except UserError as error:
        return str(error)
    return None


def start_logging(*, is_main_process: bool = True) -> None:
    """Log to standard error: all of this program on the main process, only errors elsewhere."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("m2v_finetune").setLevel(logging.INFO if is_main_process else logging.ERROR)


def open_run(
    config: AnyRecipeConfig,
    *,
    loop: TrainingLoop[Any],
    task: str,
    run_summary: Table,
    needed_bytes: int,
) -> None:
    """Say what will train, on what, at which cost; then make the run folder and start the trackers.

    Args:
        config: All settings.
        loop: About to run.
        task: Names the run for trackers.
        run_summary: What `describe` returned.
        needed_bytes: About how many bytes the run writes.

    Raises:
        UserError: The disk is too full, or the folder cannot be made.
    """
    accelerator, folder = loop.accelerator, loop.folder
    if accelerator.is_main_process:
        Console(stderr=True).print(run_summary)
        require_space(folder.path, needed_bytes)
        folder.create(config, num_processes=accelerator.num_processes)
        if config.publish.repo_id is not None:
            _try_login(config.publish.repo_id)
    accelerator.wait_for_everyone()
    flat = {
        f"{section}.{key}": printable(str(value))
        for section, values in to_dict(config).items()
        for key, value in values.items()
    }
    # What was logged after the checkpoint will be logged again: TensorBoard is told to forget it.
    next_step = 0 if loop.checkpoint is None else step_of(loop.checkpoint) + 1
    accelerator.init_trackers(
        task,
        config=flat,
        init_kwargs={
            "tensorboard": {"purge_step": next_step},
            # The same run again; Weights & Biases leaves out the steps that it knows.
            "wandb": {"id": folder.tracker_id(), "resume": "allow"},
        },
    )
    set_seed(config.run.seed, device_specific=True)


def _try_login(repo_id: str) -> None:
    """Warn now, not after a night, if the Hub will not take the model; training goes on."""
    try:
        check_login(repo_id)
    except UserError as problem:
        logger.warning("%s The run goes on; its model can be pushed later by `m2v push`.", problem)


def run_bytes(model: TaskModel, *, keep_checkpoints: int) -> int:
    """Return about how many bytes a run writes: checkpoints, the model, and the rest."""
    trained = count_parameters(model, trained_only=True)
    num_saved = trained if model.is_adapter_enough() else count_parameters(model)
    checkpoints = _checkpoint_numbers(trained, trained=trained) * (keep_checkpoints + 1)
    return BYTES_PER_NUMBER * (checkpoints + num_saved) + OTHER_BYTES


def results_bytes(model: TaskModel) -> int:
    """Return about how many bytes a run writes after training."""
    trained_only = model.is_adapter_enough()
    return BYTES_PER_NUMBER * count_parameters(model, trained_only=trained_only) + OTHER_BYTES


def _checkpoint_numbers(saved: int, *, trained: int) -> int:
    """Return the numbers in a checkpoint: what is saved and its best, and AdamW's two moments."""
    return 2 * saved + 2 * trained


def count_parameters(model: nn.Module, *, trained_only: bool = False) -> int:
    """Return the number of weights, of all or of those that learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained_only)


def describe(
    config: RecipeConfig,
    *,
    loop: TrainingLoop[TaskModel],
    splits: Mapping[str, Sequence[CheckedTrack]],
    dataset: DatasetInfo,
    cache_note: str = "",
) -> Table:
    """Return the first log as a table: what trains, on what data, at which cost.

    Args:
        config: All settings.
        loop: About to run.
        splits: The tracks.
        dataset: What is known of the data.
        cache_note: What is said of the cache; nothing if empty.
    """
    model, accelerator, batches = loop.model, loop.accelerator, loop.batches
    backbone = model.backbone
    trained, total = count_parameters(model, trained_only=True), count_parameters(model)
    is_of_vectors = isinstance(backbone, PrecomputedBackbone)
    amounts = {
        name: _amount(members, "clips" if is_of_vectors else "h")
        for name, members in splits.items()
    }
    padded = sum(
        checked.audio.num_samples(backbone.sample_rate) < model.window_samples
        for members in splits.values()
        for checked in members
    )
    learning_rates = peak_learning_rates(loop)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        # As Text: titles and paths are the user's, and square brackets in them are no markup.
        table.add_row(name, Text(text))

    licence = f", {dataset.licence}" if dataset.licence else ""
    row("task", f"{model.task.name}, {model.task.num_outputs} outputs")
    row(
        "data",
        f"{dataset.title or dataset.name}{licence}: "
        + ", ".join(f"{name} {len(splits[name])} tracks ({amounts[name]})" for name in splits),
    )
    if is_of_vectors:
        row(
            "vectors",
            f"{backbone.source}, computed elsewhere: {backbone.hidden_size} numbers a clip, standardised by "
            f"the training clips; {len(loop.loader.dataset)} an epoch",  # type: ignore[arg-type]
        )
    else:
        row(
            "windows",
            f"{model.window_seconds:g} s, {backbone.num_frames(model.window_samples)} frames at "
            f"{backbone.frame_rate} Hz; {len(loop.loader.dataset)} an epoch"  # type: ignore[arg-type]
            + (f"; {padded} tracks are shorter and padded with silence" if padded else "")
            + _resampled_note(splits),
        )
        row(
            "backbone",
            f"{backbone.source} ({backbone.licence or 'licence unknown'}), {backbone.num_layers} layers, "
            f"{backbone.sample_rate} Hz; {_weights_note(backbone.source)}LayerDrop off, "
            f"SpecAugment {'on' if backbone.spec_augment else 'off'}, "
            f"windows {'normalised' if backbone.normalize else 'as they are'}",
        )
    row(
        "tuning",
        f"{model.tuning.method} ({describe_tuning(model.tuning)}); peak rates "
        + ", ".join(f"{part} {rate:g}" for part, rate in learning_rates.items()),
    )
    row(
        "learning",
        f"{trained:,} of {total:,} weights learn ({100 * trained / total:.2f} %): "
        + ", ".join(f"{part} {count:,}" for part, count in model.trained_parts().items()),
    )
    row(
        "batch",
        f"{batches.per_device_batch_size} windows x {batches.gradient_accumulation_steps} accumulated x "
        f"{batches.num_processes} processes = {batches.total_batch_size}",
    )
    if cache_note:
        row("cache", cache_note)
    if loop.plan is not None:
        row("memory", loop.plan.summary())
    row(
        "cost",
        f"at most {config.training.epochs} epochs of {batches.steps_per_epoch} steps = {loop.total_steps} "
        f"steps, on {accelerator.device} in {_precision_name(accelerator.mixed_precision)}"
        f"{', layers compiled' if config.training.compile else ''}"
        f", by {config.optimizer.name}; "
        f"up to {run_bytes(model, keep_checkpoints=config.run.keep_checkpoints) / 1e6:,.0f} MB on disk",
    )
    row("run folder", str(loop.folder.path))
    return table


def pretraining_bytes(model: PretrainingModel, *, keep_checkpoints: int) -> int:
    """Return about how many bytes a pre-training run writes; its checkpoints hold the teacher too."""
    trained, total = count_parameters(model, trained_only=True), count_parameters(model)
    checkpoints = _checkpoint_numbers(total, trained=trained) * (keep_checkpoints + 1)
    return BYTES_PER_NUMBER * (checkpoints + trained) + OTHER_BYTES


def describe_pretraining(
    config: PretrainingConfig,
    *,
    loop: TrainingLoop[PretrainingModel],
    splits: Mapping[str, Sequence[CheckedTrack]],
    dataset: DatasetInfo,
) -> Table:
    """Return the first log of a pre-training run as a table."""
    model, accelerator, batches = loop.model, loop.accelerator, loop.batches
    backbone, objective = model.backbone, config.pretrain
    initial_weights = (
        "random weights" if config.backbone.source is None else "its weights go on learning"
    )
    licence = f", {dataset.licence}" if dataset.licence else ""
    needed_bytes = pretraining_bytes(model, keep_checkpoints=config.run.keep_checkpoints)
    learning_rates = sorted({group["peak_lr"] for group in loop.optimizer.param_groups})
    shared = "all averaged" if objective.teacher_averages == "all" else "convolutions shared"
    rows = {
        "task": "pre-training: masked prediction of a teacher's representations, without labels",
        "data": f"{dataset.title or dataset.name}{licence}: "
        + ", ".join(
            f"{name} {len(own)} tracks ({_amount(own, 'h')})" for name, own in splits.items()
        ),
        "windows": f"{config.data.window_seconds:g} s, {backbone.num_frames(model.window_samples)} frames at "
        f"{backbone.frame_rate} Hz; {len(loop.loader.dataset)} an epoch" + _resampled_note(splits),  # type: ignore[arg-type]
        "backbone": f"{backbone.source} ({backbone.licence or 'licence unknown'}), {initial_weights}, "
        f"{backbone.num_layers} layers, {backbone.sample_rate} Hz; "
        f"{count_parameters(backbone):,} weights, peak rates "
        f"{', '.join(f'{rate:g}' for rate in learning_rates)}",
        "masks": f"spans of {objective.mask_span_frames} frames, probability "
        f"{objective.mask_probability:g}",
        "teacher": f"mean of {objective.num_target_layers} layers; decay {objective.ema_start:g} to "
        f"{objective.ema_end:g} in {objective.ema_ramp_steps} steps; {shared}",
        "batch": f"{batches.per_device_batch_size} windows x {batches.gradient_accumulation_steps} "
        f"accumulated x {batches.num_processes} processes = {batches.total_batch_size}",
        **({} if loop.plan is None else {"memory": loop.plan.summary()}),
        "cost": f"{config.training.epochs} epochs of {batches.steps_per_epoch} steps = "
        f"{loop.total_steps} steps, on {accelerator.device} in "
        f"{_precision_name(accelerator.mixed_precision)}; up to {needed_bytes / 1e6:,.0f} MB "
        "on disk",
        "run folder": str(loop.folder.path),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        # As Text: titles and paths are the user's, and square brackets in them are no markup.
        table.add_row(name, Text(text))
    return table


def _resampled_note(splits: Mapping[str, Sequence[CheckedTrack]]) -> str:
    """Return how many tracks are read from what `m2v data convert` wrote; nothing where none is."""
    tracks = [checked for members in splits.values() for checked in members]
    num_resampled = sum(checked.resampled is not None for checked in tracks)
    return (
        f"; {num_resampled} of {len(tracks)} tracks are read from converted copies"
        if num_resampled
        else ""
    )


def _amount(members: Sequence[CheckedTrack], unit: str) -> str:
    """Return the length of tracks in hours; of tracks of vectors, where a clip is a second, in clips."""
    seconds = sum(checked.audio.duration_seconds for checked in members)
    return f"{seconds:.0f} clips" if unit == "clips" else f"{seconds / 3600:.2f} h"


def _weights_note(source: str) -> str:
    return "RANDOM WEIGHTS, a demonstration; " if source.startswith("random") else ""


def _precision_name(mixed_precision: str) -> str:
    return "float32" if mixed_precision == "no" else mixed_precision
