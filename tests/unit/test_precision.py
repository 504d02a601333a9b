"""The model on its device, before the first step."""

import torch
from accelerate import Accelerator
from support.messages import raises

from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.genre import Genre
from m2v_finetune.training.precision import prepare_model


class FullDevice(Accelerator):
    """A device that has no memory for the weights; the error is that of torch's allocator."""

    def prepare_model(self, model, **options):
        return torch.empty(2**50)


def test_weights_that_do_not_fit_are_an_error_with_advice() -> None:
    model = TaskModel.build(
        task=Genre(labels=("a", "b"), label_column="genre"),
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="probe"),
        window_seconds=1.0,
    )
    with raises("memory-weights-too-large", "cpu", "backbone.num_layers"):
        prepare_model(
            model, FullDevice(cpu=True), gradient_checkpointing=False, compile_layers=False
        )
