"""Runs in this process: their loop, their log, and Accelerate's global state."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from m2v_finetune.config import OptimizerConfig, RunConfig, TrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.manifest import Track
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.training.faults import BadTrackPolicy
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.oom_retry import PlannedMemory
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.step_policy import StepPolicy
from m2v_finetune.training.trainer import Trainer


def reset_accelerate() -> None:
    """Forget Accelerate's global state, as in a new process."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def signal_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGTERM, as a cluster does, when a run has taken this step."""
    take = StepPolicy.take

    def take_and_signal(steps: StepPolicy, *arguments: Any, number: int, **others: Any) -> Any:
        result = take(steps, *arguments, number=number, **others)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    patch.setattr(StepPolicy, "take", take_and_signal)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def load_splits(source: str | Path) -> dict[str, list[Track]]:
    """Return the tracks of a data source with tags, by split."""
    tracks, _ = load_tracks(str(source), label_column="tags")
    return split_tracks(
        tracks, group_columns=[], validation_fraction=0.1, test_fraction=0.2, seed=0
    )


def build_trainer(
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
    bad_tracks: BadTrackPolicy | None = None,
    plan: PlannedMemory | None = None,
) -> Trainer[TaskModel]:
    """Return the trainer of a run, without a cache. Call `reset_accelerate` before.

    Args:
        model: A model of a task.
        splits: Has train and validation.
        folder: The run folder; made if needed.
        training: Settings of the trainer.
        optimization: Settings of the optimizer.
        accelerator: A new one if None.
        example: Function that reads a window; that of the task if None.
        windows_per_track: Windows of a track in an epoch.
        num_workers: Number of processes that read.
        run: Settings of the run.
        bad_tracks: Policy for tracks that cannot be read; to stop if None.
        plan: Planned memory.
    """
    run_folder = RunFolder(folder)
    run_folder.checkpoints.mkdir(parents=True, exist_ok=True)
    return Trainer(
        model,
        TrainingWindows(
            tracks=splits["train"],
            example=example or model.task.example,
            grid=model.backbone.frame_grid,
            window_samples=model.window_samples,
            windows_per_track=windows_per_track,
            augmentation=None,
            seed=0,
        ),
        loss=model.task.loss,
        objective=TaskObjective(model, splits["validation"]),
        run=Run(
            accelerator=accelerator or Accelerator(),
            folder=run_folder,
            settings=run or RunConfig(),
            bad_tracks=bad_tracks or BadTrackPolicy(),
        ),
        training=training,
        optimization=optimization,
        num_workers=num_workers,
        plan=plan,
    )
