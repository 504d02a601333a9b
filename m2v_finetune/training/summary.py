"""Summary of a run before it trains: model, data and cost; then its folder and trackers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import (
    set_seed,
)
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
from m2v_finetune.training.run_folder import require_space
from m2v_finetune.training.sizes import count_parameters, pretraining_bytes, run_bytes
from m2v_finetune.training.trainer import Trainer
from m2v_finetune.tuning import describe_tuning

logger = logging.getLogger(__name__)


def open_run(
    config: AnyRecipeConfig,
    *,
    trainer: Trainer[Any],
    task: str,
    run_summary: Table,
    needed_bytes: int,
) -> None:
    """Say what will train, on what, at which cost; then make the run folder and start the trackers.

    Args:
        config: All settings.
        trainer: About to run.
        task: Names the run for trackers.
        run_summary: What `describe` returned.
        needed_bytes: About how many bytes the run writes.

    Raises:
        UserError: The disk is too full, or the folder cannot be made.
    """
    accelerator, folder = trainer.accelerator, trainer.run.folder
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
    next_step = 0 if trainer.checkpoint is None else step_of(trainer.checkpoint) + 1
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


def describe(
    config: RecipeConfig,
    *,
    trainer: Trainer[TaskModel],
    splits: Mapping[str, Sequence[CheckedTrack]],
    dataset: DatasetInfo,
    cache_note: str = "",
) -> Table:
    """Return the first log as a table: what trains, on what data, at which cost.

    Args:
        config: All settings.
        trainer: About to run.
        splits: The tracks.
        dataset: What is known of the data.
        cache_note: What is said of the cache; nothing if empty.
    """
    model, accelerator, batches = trainer.model, trainer.accelerator, trainer.batches
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
    learning_rates = peak_learning_rates(trainer)
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
            f"the training clips; {len(trainer.loader.dataset)} an epoch",  # type: ignore[arg-type]
        )
    else:
        row(
            "windows",
            f"{model.window_seconds:g} s, {backbone.num_frames(model.window_samples)} frames at "
            f"{backbone.frame_rate} Hz; {len(trainer.loader.dataset)} an epoch"  # type: ignore[arg-type]
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
    if trainer.plan is not None:
        row("memory", trainer.plan.summary())
    row(
        "cost",
        f"at most {config.training.epochs} epochs of {batches.steps_per_epoch} steps = {trainer.total_steps} "
        f"steps, on {accelerator.device} in {_precision_name(accelerator.mixed_precision)}"
        f"{', layers compiled' if config.training.compile else ''}"
        f", by {config.optimizer.name}; "
        f"up to {run_bytes(model, keep_checkpoints=config.run.keep_checkpoints) / 1e6:,.0f} MB on disk",
    )
    row("run folder", str(trainer.run.folder.path))
    return table


def describe_pretraining(
    config: PretrainingConfig,
    *,
    trainer: Trainer[PretrainingModel],
    splits: Mapping[str, Sequence[CheckedTrack]],
    dataset: DatasetInfo,
) -> Table:
    """Return the first log of a pre-training run as a table."""
    model, accelerator, batches = trainer.model, trainer.accelerator, trainer.batches
    backbone, objective = model.backbone, config.pretrain
    initial_weights = (
        "random weights" if config.backbone.source is None else "its weights go on learning"
    )
    licence = f", {dataset.licence}" if dataset.licence else ""
    needed_bytes = pretraining_bytes(model, keep_checkpoints=config.run.keep_checkpoints)
    learning_rates = sorted({group["peak_lr"] for group in trainer.optimizer.param_groups})
    num_windows = len(trainer.loader.dataset)  # type: ignore[arg-type]
    shared = "all averaged" if objective.teacher_averages == "all" else "convolutions shared"
    rows = {
        "task": "pre-training: masked prediction of a teacher's representations, without labels",
        "data": f"{dataset.title or dataset.name}{licence}: "
        + ", ".join(
            f"{name} {len(own)} tracks ({_amount(own, 'h')})" for name, own in splits.items()
        ),
        "windows": f"{config.data.window_seconds:g} s, {backbone.num_frames(model.window_samples)} frames at "
        f"{backbone.frame_rate} Hz; {num_windows} an epoch" + _resampled_note(splits),
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
        **({} if trainer.plan is None else {"memory": trainer.plan.summary()}),
        "cost": f"{config.training.epochs} epochs of {batches.steps_per_epoch} steps = "
        f"{trainer.total_steps} steps, on {accelerator.device} in "
        f"{_precision_name(accelerator.mixed_precision)}; up to {needed_bytes / 1e6:,.0f} MB "
        "on disk",
        "run folder": str(trainer.run.folder.path),
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
