"""What keeps a step fast: one reading of the device, one kernel for the optimizer."""

import numpy as np
import pytest
import torch
from support.models import TAGGING, build_tagger, random_batch
from torch.utils._python_dispatch import TorchDispatchMode

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import (
    ObjectiveConfig,
    OptimizerConfig,
)
from m2v_finetune.pretraining.data2vec.model import Data2vecModel
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.chords import ChordRecognition
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.transcription import Transcription
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.step import take_step

# Operations that wait for a card: values, or sizes that depend on values, read from it, or put there.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero")


class Waits(TorchDispatchMode):
    """Notes the operations that would wait for the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITING:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def build(num_layers=1, method="full"):
    return build_tagger(method=method, num_layers=num_layers).train()


def step(model, optimizer, parts, loss):
    return take_step(model, optimizer, [parts], loss=loss, max_grad_norm=1.0)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_reads_the_device_once(method):
    model = build(method=method)
    optimizer = build_optimizer(model, OptimizerConfig())
    parts = random_batch(2)
    step(model, optimizer, parts, TAGGING.loss)
    with Waits() as waits:
        step(model, optimizer, parts, TAGGING.loss)
    assert waits.names == ["_local_scalar_dense"]  # the gradient norm


def test_a_step_of_pretraining_reads_the_device_once():
    torch.manual_seed(0)
    backbone = load_backbone("random-small", spec_augment=True)
    model = Data2vecModel(backbone, ObjectiveConfig(num_target_layers=2), window_seconds=0.5)
    model.train()
    optimizer = build_optimizer(model, OptimizerConfig())
    masks = torch.from_numpy(np.arange(24) % 3 == 0).expand(2, -1)[:, : backbone.num_frames(8000)]
    with Waits() as waits:
        for number in range(2):
            model.start_step(1)
            step(model, optimizer, (random_batch(2)[0], masks, masks), model.loss)
            model.end_step(number)
    # Beside the gradient norms: the optimizer's counters, which it makes once.
    assert waits.names.count("_local_scalar_dense") == 2
    assert not set(waits.names) & {"nonzero", "masked_select", "is_nonzero"}


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (TAGGING, torch.randn(2, 3), torch.ones(2, 3)),
        (
            BeatTracking(label_column="beats"),
            torch.randn(2, 9, 2),
            torch.tensor([1.0, float("nan")]).expand(2, 9, 2),
        ),
        (
            ChordRecognition(label_column="chords"),
            torch.randn(2, 9, 25),
            torch.tensor([3.0, -1.0, 0.0]).repeat(2, 3),
        ),
        (
            Transcription(label_column="notes", sustain=True),
            torch.randn(2, 9, 176),
            torch.zeros(2, 9, 176),
        ),
        (
            Emotion(labels=("x", "y"), means=(1.0, -2.0), stds=(0.5, 3.0)),
            torch.zeros(2, 2),
            torch.tensor([[1.5, -2.0], [1.0, 4.0]]),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_loss_waits_for_the_device(task, outputs, targets):
    with Waits() as waits:
        value = task.loss(outputs, targets)
    assert waits.names == []
    assert torch.isfinite(value)
    if task.name == "emotion":
        assert float(value) == pytest.approx((1.0**2 + 2.0**2) / 4)


def test_one_kernel_of_adamw_equals_many():
    """Wherever PyTorch has one, also on a CPU."""
    models = [build(), build()]
    optimizers = [build_optimizer(model, OptimizerConfig()) for model in models]
    assert all(group["fused"] for group in optimizers[0].param_groups)
    for group in optimizers[1].param_groups:
        group["fused"] = False
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for own, other in zip(*(model.parameters() for model in models), strict=True):
            if own.requires_grad:
                own.grad = torch.randn(own.shape, generator=generator)
                other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-7)
