"""A run that is trained and evaluated, without training: random weights, random scores."""

import numpy as np
import torch
from run_facts import backbone_facts, results_of_tracks, training_facts

from m2v_finetune.config import BackboneConfig, DataConfig, HeadConfig, RecipeConfig, TuningConfig
from m2v_finetune.data.manifest import DatasetInfo
from m2v_finetune.files import write_json
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.clips import EvaluatedClip
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.run_folder import RunFolder


def finished_run(folder, labels, *, num_tracks=8, paths=(), seed=0, **changes):
    """Return what a run has when all is trained and evaluated, as `publish` takes it."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=Genre(labels=tuple(labels), label_column="genre"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(kind="linear"),
        tuning=TuningConfig(),
        window_seconds=1.0,
    ).eval()
    rng = np.random.default_rng(seed)
    evaluated = [
        EvaluatedClip(
            target=np.asarray(number % len(labels), dtype=np.float32),
            scores=rng.random(len(labels), dtype=np.float32),
        )
        for number in range(num_tracks)
    ]
    run = RunFolder(folder / "run")
    config = RecipeConfig(
        data=DataConfig(source="songs.csv", window_seconds=5.0, windows_per_track=1),
        backbone=BackboneConfig(source="random-small"),
    )
    run.create(config)
    run.log({"step": 1, "epoch": 1, "loss": 2.5})
    run.log({"step": 1, "epoch": 1, "validation": {"accuracy": 0.5, "macro_f1": 0.4}})
    results = {
        "task": "genre",
        "split": "test",
        "num_tracks": num_tracks,
        "num_skipped_tracks": {},
        "lost_tracks": {},
        "warnings": [],
        "outputs_hardly_vary": False,
        **model.task.summarize(evaluated, seed=0),
        "metric_names": dict(model.task.metric_names),
        "selection_metric": "accuracy",
        "hop_seconds": 1.0,
        "head": model.task.describe_head(model.head_config),
        "validation": {"accuracy": 0.5, "macro_f1": 0.4},
        "best_epoch": 1,
        "num_epochs": 1,
        "num_steps": 1,
        "layer_weights": model.layer_weighting.weights().tolist(),
        "num_trained_parameters": 10,
        "num_parameters": 100,
        "num_skipped_steps": 0,
        "num_tracks_of_splits": {"train": 8, "validation": 4, "test": num_tracks},
        "tuning": "probe",
        "training": training_facts(config),
        "dataset": vars(DatasetInfo(name="songs")),
        "backbone": backbone_facts(config, licence="apache-2.0"),
        "seconds": {"training": 1.0, "test": 1.0},
        **changes,
    }
    write_json(run.results, results)
    results_of_tracks(run, evaluated, paths=paths)
    return model, run, results, evaluated
