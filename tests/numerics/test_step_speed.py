"""What keeps a step fast: one reading of the device, one kernel for the optimiser."""

import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch.utils._python_dispatch import TorchDispatchMode

from m2v_finetune.backbones import load_backbone
from m2v_finetune.config import (
    BackboneConfig,
    HeadConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
)
from m2v_finetune.data.checking import check_splits
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.sources import load_tracks
from m2v_finetune.data.splitting import split_tracks
from m2v_finetune.model import TaskModel
from m2v_finetune.pretraining.model import PretrainingModel
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.chords import ChordRecognition
from m2v_finetune.tasks.emotion import Emotion
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.tasks.transcription import Transcription
from m2v_finetune.training.loop import TrainingLoop
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.optimization import build_optimizer
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.step import take_step

TAGGING = Tagging(labels=("a", "b", "c"), label_column="tags")
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
    torch.manual_seed(0)
    model = TaskModel.build(
        task=TAGGING,
        backbone=BackboneConfig(source="random-small", num_layers=num_layers),
        head=HeadConfig(),
        tuning=TuningConfig(method=method),
        window_seconds=0.5,
    )
    return model.train()


def batch():
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(2, 8000, generator=generator), torch.ones(2, 3)


def step(model, optimizer, parts, loss):
    return take_step(model, optimizer, [parts], loss=loss, max_grad_norm=1.0)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_step_reads_the_device_once(method):
    model = build(method=method)
    optimizer = build_optimizer(model, OptimizerConfig())
    parts = batch()
    step(model, optimizer, parts, TAGGING.loss)
    with Waits() as waits:
        step(model, optimizer, parts, TAGGING.loss)
    assert waits.names == ["_local_scalar_dense"]  # the gradient norm


def build_loop(manifest, folder, *, compiled=False):
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    tracks, _ = load_tracks(str(manifest), label_column="tags")
    split = split_tracks(
        tracks, group_columns=[], validation_fraction=0.1, test_fraction=0.2, seed=0
    )
    splits, _ = check_splits(split, on_bad_track="stop", show_progress=False)
    task = Tagging.from_tracks(TaggingConfig(), split)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small", num_layers=2),
        head=HeadConfig(),
        tuning=TuningConfig(method="lora"),
        window_seconds=0.5,
    )
    run_folder = RunFolder(folder)
    run_folder.checkpoints.mkdir(parents=True)
    return TrainingLoop(
        model,
        windows=TrainingWindows(
            tracks=splits["train"],
            example=task.example,
            grid=model.backbone.frame_grid,
            window_samples=model.window_samples,
            windows_per_track=2,
            augmentation=None,
            seed=0,
        ),
        objective=TaskObjective(model, splits["validation"]),
        accelerator=Accelerator(cpu=True),
        training=TrainingConfig(
            epochs=2, per_device_batch_size=2, log_every_steps=1000, compile=compiled
        ),
        optimization=OptimizerConfig(),
        folder=run_folder,
        num_workers=0,
        run=RunConfig(),
    )


def test_an_epoch_reads_the_device_once_a_step_and_once_a_line(
    small_manifest, tmp_path, monkeypatch
):
    """Losses stay on the device until a line of the log is written."""
    loop = build_loop(small_manifest, tmp_path / "run")
    counts = []
    train_epoch = loop._train_epoch

    def count():
        with Waits() as waits:
            train_epoch()
        # Windows are read in this process here, so that making tensors of them is noted too.
        counts.append(waits.names.count("_local_scalar_dense"))

    monkeypatch.setattr(loop, "_train_epoch", count)
    loop.run()
    steps = loop.batches.steps_per_epoch
    assert steps >= 4
    # The norm of the gradients; and once the mean loss and what is logged with it.
    assert counts[1] == steps + 1


def test_a_compiled_run_tells_its_warm_up_apart(small_manifest, tmp_path, caplog):
    """That compiled layers give the same losses is asserted with the step; here nothing is compiled."""
    loop = build_loop(small_manifest, tmp_path / "run", compiled=True)
    with caplog.at_level("INFO"), torch.compiler.set_stance("force_eager"):
        loop.run()
    layers = loop.model.backbone.network.encoder.layers
    assert all(layer._compiled_call_impl is not None for layer in layers)
    said = [line for line in caplog.messages if "compiling the layers included; the second" in line]
    assert len(said) == 1
    first, second = re.findall(r"took ([\d.]+) s", said[0])
    assert [float(first), float(second)] == pytest.approx(loop.clock.first_seconds, abs=0.06)


def test_a_step_of_pretraining_reads_the_device_once():
    torch.manual_seed(0)
    backbone = load_backbone("random-small", spec_augment=True)
    model = PretrainingModel(backbone, PretrainConfig(num_target_layers=2), window_seconds=0.5)
    model.train()
    optimizer = build_optimizer(model, OptimizerConfig())
    masks = torch.from_numpy(np.arange(24) % 3 == 0).expand(2, -1)[:, : backbone.num_frames(8000)]
    with Waits() as waits:
        for number in range(2):
            model.begin_step()
            step(model, optimizer, (batch()[0], masks, masks), model.loss)
            model.end_step(number)
    # Beside the gradient norms: the optimiser's counters, which it makes once.
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
            Emotion(labels=("x", "y"), means=(1.0, -2.0), deviations=(0.5, 3.0)),
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
