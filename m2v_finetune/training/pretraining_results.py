"""Results of a pre-training run: results.json, and a warning of collapsed representations."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from m2v_finetune.config import PretrainingConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.files import json_number, write_json
from m2v_finetune.pretraining.masked_prediction.labels import TrackLabels
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.pretraining.replay import REPLAY
from m2v_finetune.training.results import skipped_tracks
from m2v_finetune.training.run_progress import FitResult
from m2v_finetune.training.sizes import count_parameters
from m2v_finetune.training.trainer import Trainer

logger = logging.getLogger(__name__)


def write_pretraining(
    trainer: Trainer[PretrainingModel],
    fitted: FitResult,
    *,
    splits: Mapping[str, Sequence[CheckedTrack]],
    dataset: DatasetInfo,
    replay_dataset: DatasetInfo | None,
    config: PretrainingConfig,
    labels: TrackLabels | None,
) -> dict[str, Any]:
    """Write results.json of a pre-training run, and return its content.

    Args:
        trainer: Trainer after `Trainer.fit`.
        fitted: Result of `Trainer.fit`.
        splits: Training tracks, held-out tracks, and replayed ones.
        dataset: Name and licence of the data.
        replay_dataset: The same of the replayed tracks; None without any.
        config: All settings.
        labels: Labels of the tracks; None if the objective has none.
    """
    backbone = trainer.model.backbone
    results = {
        "task": "pretrain",
        "objective": config.objective,
        "split": "validation",
        "num_tracks": {name: len(members) for name, members in splits.items()},
        **skipped_tracks(trainer.run.bad_tracks),
        "hours": {
            name: sum(checked.audio.duration_seconds for checked in members) / 3600
            for name, members in splits.items()
        },
        "metric_names": dict(trainer.objective.metric_names),
        "validation": {k: json_number(v) for k, v in fitted.best_values.items()},
        "num_epochs": fitted.num_epochs,
        "num_steps": fitted.num_steps,
        "device": trainer.accelerator.device.type,
        "total_batch_size": trainer.batches.total_batch_size,
        "num_parameters": count_parameters(backbone),
        "dataset": asdict(dataset),
        **({} if replay_dataset is None else {"replay_dataset": asdict(replay_dataset)}),
        "backbone": {
            "source": backbone.source,
            "revision": backbone.revision,
            "licence": backbone.licence,
            "is_new": config.backbone.architecture is not None,
            "num_layers": backbone.num_layers,
            "hidden_size": backbone.hidden_size,
            "sample_rate": backbone.sample_rate,
            "frame_rate": float(backbone.frame_rate),
        },
        **(
            {}
            if labels is None
            else {
                "label_sets": dict(labels.sizes),
                "label_entropies": labels.entropies([*splits["train"], *splits.get(REPLAY, [])]),
            }
        ),
        "seconds": {"training": fitted.seconds},
        "waiting_share": trainer.steps.timer.run.share,
    }
    if trainer.accelerator.is_main_process:
        write_json(trainer.run.folder.results, results)
    return results


def warn_of_collapse(model: PretrainingModel, fitted: FitResult) -> None:
    """Warn if representations or labels of held-out music hardly vary over the time of a window."""
    found = model.below_floors(fitted.best_values)
    if found:
        logger.warning(
            "Held-out music, over the time of a window: %s. The run had too few steps, the music "
            "hardly changes within a window, or the representations have collapsed. A run watches "
            "for a collapse only after %s.watch_after_steps (%d); this one had %d.",
            found,
            model.section,
            model.watch_after_steps,
            fitted.num_steps,
        )
