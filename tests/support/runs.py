"""Runs in this process: their loop, their log, and Accelerate's global state."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from m2v_finetune.config import OptimizerConfig, RunConfig, TrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.training.loop import TrainingLoop
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.run_folder import RunFolder


def reset_accelerate() -> None:
    """Forget Accelerate's global state, as in a new process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def load_splits(source: str | Path) -> dict[str, list[Track]]:
    """Return the tracks of a data source with tags, by split."""
    tracks, _ = load_tracks(str(source), label_column="tags")
    return split_tracks(
        tracks, group_columns=[], validation_fraction=0.1, test_fraction=0.2, seed=0
    )


def build_loop(
    model: TaskModel,
    splits: Mapping[str, Sequence[CheckedTrack]],
    folder: Path,
    *,
    training: TrainingConfig,
    optimization: OptimizerConfig,
    accelerator: Accelerator | None = None,
    example: Any = None,
    windows_per_track: int = 1,
    num_workers: int = 0,
    run: RunConfig | None = None,
    **options: Any,
) -> TrainingLoop[TaskModel]:
    """Return the loop of a run, without a cache. Call `reset_accelerate` before.

    Args:
        model: A model of a task.
        splits: Has train and validation.
        folder: The run folder; made if needed.
        training: Settings of the loop.
        optimization: Settings of the optimiser.
        accelerator: A new one if None.
        example: How a window is read; as the task does if None.
        windows_per_track: In an epoch.
        num_workers: Processes that read.
        run: Settings of the run.
        **options: More arguments of `TrainingLoop`.
    """
    run_folder = RunFolder(folder)
    run_folder.checkpoints.mkdir(parents=True, exist_ok=True)
    return TrainingLoop(
        model,
        windows=TrainingWindows(
            tracks=splits["train"],
            example=example or model.task.example,
            grid=model.backbone.frame_grid,
            window_samples=model.window_samples,
            windows_per_track=windows_per_track,
            augmentation=None,
            seed=0,
        ),
        objective=TaskObjective(model, splits["validation"]),
        accelerator=accelerator or Accelerator(),
        training=training,
        optimization=optimization,
        folder=run_folder,
        num_workers=num_workers,
        run=run or RunConfig(),
        **options,
    )
