"""Complete pre-training, from its settings to a published backbone, as in recipes/pretrain.py."""

from collections.abc import Mapping
from typing import Any

from m2v_finetune.config import PretrainingConfig
from m2v_finetune.memory.plan import planned_training
from m2v_finetune.pretraining.building import build_pretraining_model, pretraining_windows
from m2v_finetune.pretraining.model import start_backbone
from m2v_finetune.pretraining.replay import replay_split
from m2v_finetune.publishing.backbone import publish_backbone
from m2v_finetune.settings import PRETRAIN
from m2v_finetune.training.objective import PretrainingObjective
from m2v_finetune.training.optimization import with_pretraining_rates
from m2v_finetune.training.pretraining_labels import keep_clusters, prepare_labels
from m2v_finetune.training.pretraining_results import warn_of_collapse, write_pretraining
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_tracks import (
    check_run_audio,
    keep_run_tracks,
    load_splits,
    with_run_copies,
)
from m2v_finetune.training.sizes import pretraining_bytes
from m2v_finetune.training.summary import describe_pretraining, open_run
from m2v_finetune.training.trainer import Trainer


def pretrain(config: PretrainingConfig) -> Mapping[str, Any]:
    """Build the model of the objective, pre-train, and publish the backbone.

    Args:
        config: All settings.

    Returns:
        Content of results.json.

    Raises:
        UserError: Settings, data or machine must be fixed, or the representations collapsed.
        Stopped: A signal arrived; a checkpoint was saved.
    """
    with Run.open(config, task=PRETRAIN) as run:
        # Tracks and their splits; no labels.
        tracks_by_split, dataset = load_splits(config.data, label_column=None, seed=config.run.seed)
        replayed, replay_dataset = replay_split(config.data)
        tracks_by_split |= replayed
        splits = check_run_audio(tracks_by_split, config.data, run)

        # Model of the objective; random windows with masks and labels, and fixed ones for validation.
        model = build_pretraining_model(start_backbone(config.backbone), config)
        splits = with_run_copies(splits, model.backbone.sample_rate, run)
        labels, splits = prepare_labels(config, splits, model.backbone.frame_grid, run)
        windows, validation = pretraining_windows(model, splits, config, labels)

        # Training; the weights of the last epoch are kept.
        training, plan = planned_training(config, None, run.accelerator)
        trainer = Trainer(
            model,
            windows,
            loss=model.loss,
            objective=PretrainingObjective(model, validation),
            run=run,
            training=training,
            optimization=with_pretraining_rates(config.optimizer),
            num_workers=config.data.num_workers,
            plan=plan,
        )
        open_run(
            config,
            trainer=trainer,
            task=PRETRAIN,
            run_summary=describe_pretraining(
                config, trainer=trainer, splits=splits, dataset=dataset
            ),
            needed_bytes=pretraining_bytes(model, keep_checkpoints=config.run.keep_checkpoints),
        )
        keep_run_tracks(splits, run)
        keep_clusters(labels, run)
        fitted = trainer.fit()
        warn_of_collapse(model, fitted)

        results = write_pretraining(
            trainer,
            fitted,
            splits=splits,
            dataset=dataset,
            replay_dataset=replay_dataset,
            config=config,
            labels=labels,
        )
        if run.is_main_process:
            publish_backbone(model.backbone, run.folder, results, config)
    return results
