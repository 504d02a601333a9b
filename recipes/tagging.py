"""Train a music tagger: any number of labels for a track, each with a probability.

    accelerate launch recipes/tagging.py

runs the quickstart: synthetic music and a small backbone with random weights, both shipped, offline,
in about two minutes on two CPU cores. Your own music, with music2vec:

    accelerate launch recipes/tagging.py --data.source songs.csv

and a published benchmark: --config configs/tagging/magnatagatune-probe.yaml. Settings come from their
defaults, then each --config file, then --section.key value. The results are in the run folder.
"""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from m2v_finetune.audio.augmentation import build_augmentation
from m2v_finetune.config import RecipeConfig
from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.errors import run_command
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.publishing.publish import publish
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.loop import TrainingLoop
from m2v_finetune.training.results import judge_test, log_results
from m2v_finetune.training.setup import open_run, start

QUICKSTART = Path(__file__).parent.parent / "configs" / "tagging" / "quickstart.yaml"

logger = logging.getLogger("m2v_finetune.recipes.tagging")


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a tagging run.

    Args:
        task: What is learned from which labels.
    """

    task: TaggingConfig = field(default_factory=TaggingConfig)


def main() -> None:
    """Read the settings, build the parts, train, judge the test tracks once, publish."""
    config = parse_recipe(Config, sys.argv[1:], description=__doc__, quickstart=QUICKSTART)
    accelerator, folder = start(config, task="tagging")

    # The tracks, their splits, their labels.
    tracks, dataset = load_tracks(config.data.source, label_column=config.task.label_column)
    split = split_tracks(
        tracks,
        group_columns=config.data.group_columns,
        validation_fraction=config.data.validation_fraction,
        test_fraction=config.data.test_fraction,
        seed=config.run.seed,
    )
    task = Tagging.from_tracks(config.task, split)
    splits, num_skipped = check_splits(
        split,
        on_bad_track=config.data.on_bad_track,
        show_progress=accelerator.is_main_process,
    )

    # Backbone, layer weighting, head; and random windows to train them on.
    model = TaskModel.build(
        task=task,
        backbone=config.backbone,
        head=config.head,
        tuning=config.tuning,
        window_seconds=config.data.window_seconds,
        hop_seconds=config.data.hop_seconds,
    )
    windows = TrainingWindows(
        tracks=splits["train"],
        targets=task.targets,
        sample_rate=model.backbone.sample_rate,
        window_samples=model.window_samples,
        windows_per_track=config.data.windows_per_track,
        augmentation=build_augmentation(
            config.augmentation.transforms,
            sample_rate=model.backbone.sample_rate,
            allowed_effects=task.allowed_effects(),
            task=task.name,
        ),
        seed=config.run.seed,
    )

    # Train; the weights of the best epoch by the track-level validation metric stay.
    loop = TrainingLoop(
        model,
        windows=windows,
        validation=splits["validation"],
        accelerator=accelerator,
        training=config.training,
        optimization=config.optimizer,
        folder=folder,
        num_workers=config.data.num_workers,
        seed=config.run.seed,
    )
    open_run(config, loop=loop, splits=splits, dataset=dataset)
    began = time.monotonic()
    fitted = loop.run()

    # The test split, once.
    results = judge_test(
        loop,
        fitted,
        test=splits["test"],
        num_skipped=num_skipped,
        dataset=dataset,
        seed=config.run.seed,
        seconds=time.monotonic() - began,
    )
    log_results(results)
    if accelerator.is_main_process:
        publish(model, folder, results, config.publish)
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
