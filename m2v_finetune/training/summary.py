"""Run summary before training: model, data and cost; then the run folder and the trackers."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2v_finetune.backbones import PrecomputedBackbone
from m2v_finetune.config import AnyRecipeConfig, PretrainingConfig, RecipeConfig
from m2v_finetune.cpu_precision import has_fast_bfloat16
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.data.values import printable
from m2v_finetune.errors import UserError
from m2v_finetune.hub import check_login
from m2v_finetune.model import TaskModel, require_native
from m2v_finetune.parsing import flat_settings, to_dict
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.training.checkpoint_files import step_of
from m2v_finetune.training.facts import peak_learning_rates
from m2v_finetune.training.run_tracks import Splits, keep_run_tracks
from m2v_finetune.training.sizes import (
    count_parameters,
    pretraining_bytes,
    require_space,
    run_bytes,
)
from m2v_finetune.training.solved_head import PENALTIES
from m2v_finetune.training.start_record import keep_start, require_same_start
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
    """Print the run summary, create the run folder and start the trackers.

    Args:
        config: All settings.
        trainer: Trainer before `Trainer.fit`.
        task: Name of the run for trackers.
        run_summary: Result of `describe` or `describe_pretraining`.
        needed_bytes: Estimated size of all files of the run.

    Raises:
        UserError: A resumed run has another backbone; the disk is too full, the folder cannot be created, or
            ``publish.native`` is set and transformers cannot express the model.
    """
    require_same_start(config, trainer.model, trainer.run)
    accelerator, folder = trainer.accelerator, trainer.run.folder
    if config.publish.native:
        require_native(trainer.model, is_trained=False)
    if accelerator.is_main_process:
        Console(stderr=True).print(run_summary)
        require_space(folder.path, needed_bytes)
        folder.create(
            config,
            num_processes=accelerator.num_processes,
            num_threads=trainer.num_threads,
            precision=accelerator.mixed_precision,
        )
        keep_start(config.training.init_from or config.training.teacher, trainer.run)
        if config.publish.repo_id is not None:
            _try_login(config.publish.repo_id)
    accelerator.wait_for_everyone()
    flat = {name: printable(str(value)) for name, value in flat_settings(to_dict(config)).items()}
    # Steps after the checkpoint are logged again, so TensorBoard has to purge them.
    next_step = 0 if trainer.checkpoint is None else step_of(trainer.checkpoint) + 1
    accelerator.init_trackers(
        task,
        config=flat,
        init_kwargs={
            "tensorboard": {"purge_step": next_step},
            # The same run on resume; Weights & Biases skips steps that it already has.
            "wandb": {"id": folder.tracker_id(), "resume": "allow"},
        },
    )
    set_seed(config.run.seed, device_specific=True)


def open_task_run(
    config: RecipeConfig,
    *,
    trainer: Trainer[TaskModel],
    splits: Splits,
    dataset: DatasetInfo,
    cache_note: str = "",
) -> None:
    """Open a run of a task (`open_run`), and keep its tracks for a resume.

    Args:
        config: All settings.
        trainer: Trainer before `Trainer.fit`.
        splits: Tracks by split.
        dataset: Name and licence of the data.
        cache_note: Row for the feature cache; none if empty.

    Raises:
        UserError: The disk is too full, or the folder cannot be created.
    """
    model = trainer.model
    open_run(
        config,
        trainer=trainer,
        task=model.task.name,
        run_summary=describe(
            config, trainer=trainer, splits=splits, dataset=dataset, cache_note=cache_note
        ),
        needed_bytes=run_bytes(model, keep_checkpoints=config.run.keep_checkpoints),
    )
    keep_run_tracks(splits, trainer.run)


def _try_login(repo_id: str) -> None:
    """Warn before training if the Hub will not accept the model; training continues."""
    try:
        check_login(repo_id)
    except UserError as problem:
        logger.warning("%s The run continues. Push its model later with `m2v push`.", problem)


def describe(
    config: RecipeConfig,
    *,
    trainer: Trainer[TaskModel],
    splits: Mapping[str, Sequence[CheckedTrack]],
    dataset: DatasetInfo,
    cache_note: str = "",
) -> Table:
    """Return the run summary as a table: data, model, trainable parameters and cost.

    Args:
        config: All settings.
        trainer: Trainer before `Trainer.fit`.
        splits: Tracks by split.
        dataset: Name and licence of the data.
        cache_note: Row for the feature cache; none if empty.
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
    is_solved = model.head_config.is_solved
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        # As Text: square brackets in the user's titles and paths are not markup.
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
            f"{backbone.source}, precomputed: {backbone.hidden_size} numbers per clip, standardised over the "
            f"training clips; {len(trainer.loader.dataset)} per epoch",  # type: ignore[arg-type]
        )
    else:
        row(
            "windows",
            f"{model.window_seconds:g} s, {backbone.num_frames(model.window_samples)} frames at "
            f"{backbone.frame_rate} Hz; {len(trainer.loader.dataset)} per epoch"  # type: ignore[arg-type]
            + (f"; {padded} tracks are shorter and padded with silence" if padded else "")
            + _resampled_note(splits),
        )
        row(
            "backbone",
            f"{backbone.source} ({backbone.licence or 'licence unknown'}), {backbone.num_layers} layers, "
            f"{backbone.sample_rate} Hz; {_weights_note(backbone.source)}LayerDrop off, "
            f"SpecAugment {'on' if backbone.spec_augment else 'off'}, "
            f"windows {'normalised' if backbone.normalize else 'not normalised'}",
        )
    row(
        "tuning",
        f"{model.tuning.method} ({describe_tuning(model.tuning)}); "
        + (
            f"scikit-learn solves the {model.head_config.kind} head: optimizer and epochs have no effect"
            if is_solved
            else "peak learning rates "
            + ", ".join(f"{part} {rate:g}" for part, rate in learning_rates.items())
        ),
    )
    row(
        "trainable",
        f"{trained:,} of {total:,} parameters are trainable ({100 * trained / total:.2f} %): "
        + ", ".join(f"{part} {count:,}" for part, count in model.trained_parts().items()),
    )
    if not is_solved:
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
        f"{len(PENALTIES)} penalties, on {accelerator.device} in {precision_note(accelerator)}"
        if is_solved
        else f"at most {config.training.epochs} epochs of {batches.steps_per_epoch} steps = "
        f"{trainer.total_steps} steps, on {accelerator.device} in "
        f"{precision_note(accelerator)}"
        f"{_threads_note(trainer)}"
        f"{', layers compiled' if config.training.compile else ''}"
        f", with {config.optimizer.name}; "
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
    """Return the run summary of a pre-training run as a table."""
    model, accelerator, batches = trainer.model, trainer.accelerator, trainer.batches
    backbone = model.backbone
    initial_weights = (
        "random weights" if config.backbone.source is None else "continues from its weights"
    )
    licence = f", {dataset.licence}" if dataset.licence else ""
    needed_bytes = pretraining_bytes(model, keep_checkpoints=config.run.keep_checkpoints)
    learning_rates = sorted({group["peak_lr"] for group in trainer.optimizer.param_groups})
    num_windows = len(trainer.loader.dataset)  # type: ignore[arg-type]
    rows = {
        "task": f"pre-training without labels; objective {config.objective}",
        "data": f"{dataset.title or dataset.name}{licence}: "
        + ", ".join(
            f"{name} {len(own)} tracks ({_amount(own, 'h')})" for name, own in splits.items()
        ),
        "windows": f"{config.data.window_seconds:g} s, {backbone.num_frames(model.window_samples)} frames at "
        f"{backbone.frame_rate} Hz; {num_windows} per epoch" + _resampled_note(splits),
        "backbone": f"{backbone.source} ({backbone.licence or 'licence unknown'}), {initial_weights}, "
        f"{backbone.num_layers} layers, {backbone.sample_rate} Hz; "
        f"{count_parameters(backbone):,} parameters, peak learning rates "
        f"{', '.join(f'{rate:g}' for rate in learning_rates)}",
        **model.describe(),
        "batch": f"{batches.per_device_batch_size} windows x {batches.gradient_accumulation_steps} "
        f"accumulated x {batches.num_processes} processes = {batches.total_batch_size}",
        **({} if trainer.plan is None else {"memory": trainer.plan.summary()}),
        "cost": f"{config.training.epochs} epochs of {batches.steps_per_epoch} steps = "
        f"{trainer.total_steps} steps, on {accelerator.device} in "
        f"{precision_note(accelerator)}{_threads_note(trainer)}; "
        f"up to {needed_bytes / 1e6:,.0f} MB on disk",
        "run folder": str(trainer.run.folder.path),
    }
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        # As Text: square brackets in the user's titles and paths are not markup.
        table.add_row(name, Text(text))
    return table


def _resampled_note(splits: Mapping[str, Sequence[CheckedTrack]]) -> str:
    """Return a note on the tracks that are read from resampled copies; empty if there are none."""
    tracks = [checked for members in splits.values() for checked in members]
    num_resampled = sum(checked.resampled is not None for checked in tracks)
    return (
        f"; {num_resampled} of {len(tracks)} tracks are read from resampled copies"
        if num_resampled
        else ""
    )


def _amount(members: Sequence[CheckedTrack], unit: str) -> str:
    """Return the length of tracks in hours, or in clips for vectors, where a clip counts as a second."""
    seconds = sum(checked.audio.duration_seconds for checked in members)
    return f"{seconds:.0f} clips" if unit == "clips" else f"{seconds / 3600:.2f} h"


def _threads_note(trainer: Trainer[Any]) -> str:
    if trainer.accelerator.device.type != "cpu":
        return ""
    return f", on {trainer.num_threads} thread{'s' if trainer.num_threads > 1 else ''}"


def _weights_note(source: str) -> str:
    return "RANDOM WEIGHTS, a demonstration; " if source.startswith("random") else ""


def precision_note(accelerator: Accelerator) -> str:
    """Return the precision of a run, on a CPU with the reason of ``auto``."""
    name = "float32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    if accelerator.device.type != "cpu":
        return name
    return f"{name} (CPU {'with' if has_fast_bfloat16() else 'without'} fast bfloat16)"
