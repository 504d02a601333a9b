"""Train a separator: the stems of a mixture.

    accelerate launch recipes/separation.py

runs the quickstart: synthetic music and a small pre-trained backbone, both shipped, offline,
in a few minutes on two CPU cores. Your own music, with music2vec:

    accelerate launch recipes/separation.py --data.source songs.csv

A published benchmark: --config configs/separation/musdb18-probe.yaml. Settings come from their
defaults, then the YAML file beside this one (`m2v init` writes it), then each --config file, then
--section.key value. The results are in the run folder.

This file shows all steps of a run whose outputs are the waveforms of stems, to be read and changed.
`m2v train separation` takes the same steps.
"""

import sys
from dataclasses import dataclass, field

from m2v_finetune.backbones import LayerWeighting, load_backbone
from m2v_finetune.config import RecipeConfig
from m2v_finetune.errors import run_command
from m2v_finetune.memory.plan import planned_training
from m2v_finetune.model import TaskModel
from m2v_finetune.parsing import parse_recipe
from m2v_finetune.publishing.publish import publish
from m2v_finetune.shipped import quickstart_file
from m2v_finetune.tasks.separation import Separation, SeparationConfig
from m2v_finetune.training.defaults import complete_settings
from m2v_finetune.training.init_from import start_from, with_start_settings
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.results import evaluate_test
from m2v_finetune.training.run import Run
from m2v_finetune.training.run_tracks import check_run_tracks, load_splits
from m2v_finetune.training.summary import open_task_run
from m2v_finetune.training.trainer import Trainer
from m2v_finetune.training.training_windows import training_windows
from m2v_finetune.tuning import apply_tuning


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a separation run.

    Args:
        task: Stems.
    """

    task: SeparationConfig = field(default_factory=SeparationConfig)


def main() -> None:
    """Read the settings, train, evaluate, publish."""
    config = parse_recipe(
        Config,
        sys.argv[1:],
        description=__doc__,
        quickstart=quickstart_file("separation"),
        recipe=__file__,
    )
    with Run.open(config, task="separation") as run:
        # Tracks and splits; stems and audio of every track are checked.
        by_split, dataset = load_splits(
            config.data,
            label_column=config.task.label_column,
            seed=config.run.seed,
            stratify=False,  # the column has files, not labels
        )
        task, splits = check_run_tracks(by_split, Separation, config, run)
        config = with_start_settings(config, task)  # of training.init_from
        config = complete_settings(config, splits, run)

        # Backbone, its trainable part, layer weighting, head: the model.
        backbone = load_backbone(
            config.backbone.source,
            revision=config.backbone.revision,
            num_layers=config.backbone.layers_in_use,
            spec_augment=config.backbone.spec_augment,
        )
        fingerprint = backbone.fingerprint()  # of the weights before tuning
        apply_tuning(backbone, config.tuning)
        model = TaskModel(
            backbone=backbone,
            layer_weighting=LayerWeighting(
                config.backbone.layer_weighting, backbone.num_hidden_states
            ),
            head=task.build_head(
                config.head, hidden_size=backbone.hidden_size, grid=backbone.frame_grid
            ),
            head_config=config.head,
            task=task,
            tuning=config.tuning,
            window_seconds=config.data.window_seconds,
            hop_seconds=config.data.hop_seconds,
            base_fingerprint=fingerprint,
        )
        start_from(model, config.training.init_from, run)

        # Training set: mixtures as the sum of their stems. There is no feature cache, as the head needs the
        # waveform of the mixture.
        windows = training_windows(model, splits["train"], config)
        training, plan = planned_training(config, task, run.accelerator)

        # Training; the weights of the best epoch on the validation tracks are kept.
        trainer = Trainer(
            model,
            windows,
            loss=task.loss,
            objective=TaskObjective(model, splits["validation"]),
            run=run,
            training=training,
            optimization=config.optimizer,
            num_workers=config.data.num_workers,
            plan=plan,
        )
        open_task_run(config, trainer=trainer, splits=splits, dataset=dataset)
        fitted = trainer.fit()

        # Evaluation on the test split, once; then pictures, model, card and Hub.
        with run.writing_results(model):
            results, evaluated, test = evaluate_test(
                trainer,
                fitted,
                test=splits["test"],
                dataset=dataset,
                seed=config.run.seed,
            )
            if run.is_main_process:
                publish(
                    model, run.folder, results, config.publish, evaluated=evaluated, tracks=test
                )


if __name__ == "__main__":
    run_command(main)
