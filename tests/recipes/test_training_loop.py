"""The loop on real audio: accumulation, resuming, and a model that is told the answer."""

import errno
import logging
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from sklearn.preprocessing import StandardScaler
from support import messages, runs
from support.matrix import exhaustive, slow
from support.messages import logged, raises, stops_after
from support.models import without_dropout
from support.runs import read_metrics as lines
from torch.utils._python_dispatch import TorchDispatchMode

from m2v_finetune.audio.label_transform import IDENTITY
from m2v_finetune.config import (
    BackboneConfig,
    HeadConfig,
    OptimizerConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
)
from m2v_finetune.data.checking import check_splits
from m2v_finetune.errors import Stopped, UserError
from m2v_finetune.heads import Standardization
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.tagging import Tagging, TaggingConfig
from m2v_finetune.training.checkpoint_files import BEST_FILE, checkpoints_in, step_of
from m2v_finetune.training.evaluation import evaluate_tracks
from m2v_finetune.training.objective import TaskObjective
from m2v_finetune.training.optimization import learning_rate_factor
from m2v_finetune.training.progress import progress_bar
from m2v_finetune.training.run_folder import RunFolder
from m2v_finetune.training.standardization import measure_standardization
from m2v_finetune.training.trainer import MAX_SKIPPED_IN_A_ROW


def load_splits(source):
    splits = runs.load_splits(source)
    checked, _ = check_splits(splits, on_bad_track="stop", show_progress=False)
    return Tagging.from_tracks(TaggingConfig(), splits), checked


@pytest.fixture(scope="module")
def data(small_manifest):
    task, splits = load_splits(small_manifest)
    return task, {**splits, "validation": splits["validation"][:4]}


def build_trainer(
    data,
    folder: Path,
    *,
    method="lora",
    batch=8,
    accumulation=1,
    epochs=2,
    log_every=1,
    dropout=True,
    spec_augment=False,
    optimizer="adamw",
    compiled=False,
    run=None,
):
    runs.reset_accelerate()
    task, splits = data
    set_seed(0)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(source="random-small", num_layers=2, spec_augment=spec_augment),
        head=HeadConfig(standardize=True),
        tuning=TuningConfig(method=method),
        window_seconds=1.0,
    )
    if not dropout:
        without_dropout(model)
    return runs.build_trainer(
        model,
        splits,
        folder,
        windows_per_track=2,
        training=TrainingConfig(
            epochs=epochs,
            per_device_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            log_every_steps=log_every,
            compile=compiled,
        ),
        optimization=OptimizerConfig(
            name=optimizer, learning_rate=1e-2, backbone_learning_rate=1e-3
        ),
        run=RunConfig(**(run or {})),
    )


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Return a function that gives a run without a break: its result, its log and its model."""
    runs_of = {}

    def fit(**options):
        key = tuple(options.items())
        if key not in runs_of:
            folder = tmp_path_factory.mktemp("straight")
            loop = build_trainer(data, folder, **options)
            runs_of[key] = loop.fit(), lines(folder), loop.model.state_dict()
        return runs_of[key]

    return fit


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", *exhaustive("probe", "full")])
def test_one_by_one_accumulated_equals_one_batch(method, data, tmp_path):
    for batch in (8, 1):
        loop = build_trainer(
            data,
            tmp_path / str(batch),
            method=method,
            batch=batch,
            accumulation=8 // batch,
            epochs=1,
            dropout=False,
        )
        loop.fit()
    whole, ones = lines(tmp_path / "8"), lines(tmp_path / "1")
    assert len(whole) == len(ones) == 4 + 1
    for a, b in zip(whole, ones, strict=True):
        assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], abs=2e-5)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
            assert a["learning_rates"] == b["learning_rates"]
        else:
            assert a["validation"] == pytest.approx(b["validation"], abs=1e-3)


def stop_after_step(loop, last):
    """Send a signal while this step is taken."""
    take = loop.steps.take

    def take_and_signal(batches, *, number, **others):
        result = take(batches, number=number, **others)
        loop.stop.arrived = number == last
        return result

    loop.steps.take = take_and_signal


@pytest.mark.parametrize(
    ("method", "stop_after"),
    [("lora", 4), *exhaustive(("full", 1), ("probe", 6), ("lora", 1), ("lora", 6))],
)
def test_resumed_equals_uninterrupted_to_the_bit(method, stop_after, data, straight, tmp_path):
    fitted, log, weights = straight(method=method, log_every=3)
    stopped = build_trainer(data, tmp_path / "stopped", method=method, log_every=3)
    stop_after_step(stopped, stop_after)
    with stops_after(stop_after, 8):
        stopped.fit()
    resumed = build_trainer(data, tmp_path / "stopped", method=method, log_every=3)
    torch.rand(1000)  # whatever random numbers were drawn before resuming does not matter
    assert resumed.fit() == fitted
    assert lines(tmp_path / "stopped") == log
    for name, value in weights.items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, *exhaustive(signal.SIGINT, signal.SIGUSR1)])
def test_a_signal_in_validation_saves_and_the_validation_is_started_again(
    number, data, straight, tmp_path
):
    fitted, log, _ = straight(method="probe")
    stopped = build_trainer(data, tmp_path / "stopped", method="probe")
    evaluate = TaskObjective.evaluate

    def evaluate_and_signal(objective, run, **options):
        os.kill(os.getpid(), number)
        return evaluate(objective, run, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskObjective, "evaluate", evaluate_and_signal)
        with stops_after(4, 8) as caught:
            stopped.fit()
    assert caught.value.signal_number == number
    assert stopped.checkpoint.name == "epoch-00000-step-00000004"
    resumed = build_trainer(data, tmp_path / "stopped", method="probe")
    assert resumed.fit() == fitted
    assert lines(tmp_path / "stopped") == log


def test_a_signal_before_the_first_step_needs_no_checkpoint(data, tmp_path):
    loop = build_trainer(data, tmp_path, method="probe")

    def start(*_, **__):
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskObjective, "start", start)
        with pytest.raises(Stopped) as caught:
            loop.fit()
    assert caught.value.signal_number == signal.SIGUSR1
    assert loop.checkpoint is None
    assert list(loop.run.folder.checkpoints.iterdir()) == []


@pytest.mark.slow
def test_checkpoints_within_an_epoch_and_the_last_ones_stay(data, tmp_path):
    loop = build_trainer(
        data, tmp_path, method="probe", run={"checkpoint_every_steps": 3, "keep_checkpoints": 3}
    )
    saved = []
    save = loop.checkpoints.save

    def save_and_look(*arguments, **named):
        save(*arguments, **named)
        saved.append(loop.checkpoint)

    loop.checkpoints.save = save_and_look
    loop.fit()
    assert [(path.name[:11], step_of(path)) for path in saved] == [
        ("epoch-00000", 3),
        ("epoch-00001", 4),
        ("epoch-00001", 6),
        ("epoch-00002", 8),
    ]
    assert checkpoints_in(tmp_path / "checkpoints") == saved[1:]
    best = load_file(saved[-1] / BEST_FILE)
    for name, value in loop.model.trained_tensors().items():
        assert torch.equal(best[name], value), name


@pytest.mark.slow
def test_a_finished_run_resumes_with_more_epochs(data, tmp_path, caplog):
    build_trainer(data, tmp_path, method="probe", epochs=1).fit()
    first = lines(tmp_path)
    caplog.set_level(logging.INFO)
    longer = build_trainer(data, tmp_path, method="probe", epochs=3)
    fitted = longer.fit()
    assert (fitted.num_epochs, fitted.num_steps) == (3, 12)
    assert lines(tmp_path)[: len(first)] == first
    learning_rates = [line["learning_rates"] for line in lines(tmp_path) if "loss" in line]
    whole = build_trainer(data, tmp_path / "whole", method="probe", epochs=3)
    whole.fit()
    expected = [line["learning_rates"] for line in lines(tmp_path / "whole") if "loss" in line]
    assert learning_rates[4:] == expected[4:]
    assert learning_rates[:4] != expected[:4]
    factor = learning_rate_factor(4, total_steps=12, warmup_ratio=0.1)
    assert logged(caplog, 12, 4, 0, f"{factor:.3g}") == 1


@pytest.mark.parametrize("what", ["log", "checkpoint"])
def test_a_disk_that_takes_no_more_stops_the_run_with_what_there_is(what, data, straight, tmp_path):
    fitted, log, _ = straight(method="probe")
    loop = build_trainer(data, tmp_path / "run", method="probe")
    take = loop.steps.take
    metrics, folder = loop.run.folder.metrics, loop.run.folder.checkpoints

    def take_and_fill(batches, *, number, **others):
        if number == 5 and what == "log":
            metrics.rename(tmp_path / "metrics")
            metrics.symlink_to("/dev/full")
        result = take(batches, number=number, **others)
        if number == 8 and what == "checkpoint":
            folder.rename(tmp_path / "checkpoints")
        return result

    loop.steps.take = take_and_fill
    with pytest.raises(UserError) as caught:
        loop.fit()
    message = str(caught.value)
    patterns = {
        "log": rf"{os.strerror(errno.ENOSPC)}\. .* [\d,]+ bytes",
        "checkpoint": rf" step 8 .*{os.strerror(errno.ENOENT)}",
    }
    assert re.search(patterns[what], message), message
    assert messages.names(message, "step 4")
    assert f"--run.output_dir {tmp_path / 'run'} --run.resume auto" in message
    if what == "log":
        metrics.unlink()
        (tmp_path / "metrics").rename(metrics)
    else:
        (tmp_path / "checkpoints").rename(folder)
    resumed = build_trainer(data, tmp_path / "run", method="probe")
    assert resumed.fit() == fitted
    assert lines(tmp_path / "run") == log


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_log_that_cannot_be_cut_is_named(is_saved, data, tmp_path):
    loop = build_trainer(data, tmp_path, method="probe", epochs=1)
    if is_saved:
        loop.fit()
        loop.run.folder.metrics.unlink()
    loop.run.folder.metrics.mkdir()
    with raises("run-folder-disk", "Is a directory", loop.run.folder.metrics):
        build_trainer(data, tmp_path, method="probe", epochs=2).fit()


@pytest.mark.slow
def test_what_the_head_reads_is_standardised_by_the_training_windows(data, tmp_path):
    loop = build_trainer(data, tmp_path / "run", method="probe", epochs=1)
    before = loop.model.layer_weighting.weights().detach().clone()
    waveforms = torch.stack([loop.loader.dataset[0, index][0] for index in range(32)])
    loop.fit()
    measured = loop.model.head.standardization
    backbone = loop.model.backbone.eval()
    with torch.no_grad():
        states = torch.stack(backbone(backbone.prepare(waveforms)))
        pooled = torch.einsum("l,lbtd->btd", before, states).mean(dim=1)
    expected = StandardScaler().fit(pooled.double().numpy())
    np.testing.assert_allclose(measured.mean, expected.mean_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(measured.std, expected.scale_, rtol=1e-4)

    loop.model.save_pretrained(tmp_path / "model", weights="trained")
    loaded = TaskModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.head.standardization.mean, measured.mean)
    with torch.no_grad():
        torch.testing.assert_close(loaded(waveforms), loop.model.eval()(waveforms))


def test_a_number_that_never_changes_is_not_divided_by_zero():
    """As where a unit of the network is dead: its rounding errors must not be blown up."""
    constant = torch.full((16, 1), 0.1)
    batches = [
        (torch.cat([constant, torch.randn(16, 1)], dim=1), torch.zeros(16)) for _ in range(3)
    ]
    model = torch.nn.Sequential(Standardization(2))
    model.head, model.micro_batcher = model[0], MicroBatcher()
    accelerator = Accelerator()
    with progress_bar(accelerator) as bar:
        measure_standardization(
            model, batches, accelerator=accelerator, bar=bar, num_batches=len(batches)
        )
    assert model.head.std[0] == 1
    assert model.head.std[1] != 1


@pytest.mark.slow
def test_what_was_logged_after_the_last_checkpoint_is_cut_off(data, tmp_path):
    build_trainer(data, tmp_path, method="probe", epochs=1).fit()
    expected = lines(tmp_path)
    RunFolder(tmp_path).log({"step": 999})
    loop = build_trainer(data, tmp_path, method="probe", epochs=1)
    loop.fit()
    assert lines(tmp_path) == expected


@pytest.mark.slow
def test_training_stops_early_and_the_best_weights_come_back(data, tmp_path, monkeypatch):
    loop = build_trainer(data, tmp_path, method="full", epochs=10)
    loop.training = replace(loop.training, early_stopping_patience=3)
    weights = []

    def scripted(task, evaluated):
        assert len(evaluated) == len(loop.objective.validation)
        weights.append({k: v.clone() for k, v in loop.model.state_dict().items()})
        roc_auc = [0.5, 0.7, 0.6, 0.7, 0.65, 0.9, 0.9][len(weights) - 1]
        return {"roc_auc": roc_auc, "average_precision": 1 - roc_auc}

    monkeypatch.setattr(Tagging, "compute_metrics", scripted)
    fitted = loop.fit()
    # 0.7 in epoch 2 is the best; 0.6, 0.7 and 0.65 are three epochs that are not better.
    assert (fitted.best_epoch, fitted.num_epochs) == (2, 5)
    assert fitted.best_values["roc_auc"] == 0.7
    for name, value in loop.model.state_dict().items():
        assert torch.equal(value, weights[1][name]), name
    assert not torch.equal(weights[1]["head.layers.1.weight"], weights[4]["head.layers.1.weight"])


def test_what_a_run_without_a_checkpoint_logged_is_cut_off(data, tmp_path):
    RunFolder(tmp_path).log({"step": 1, "loss": 0.1})
    build_trainer(data, tmp_path, method="probe", epochs=1).fit()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 4]


def test_learning_that_fails_is_named(data, tmp_path):
    loop = build_trainer(data, tmp_path, method="full")
    for group in loop.optimizer.param_groups:
        group["peak_lr"] = 1e30
    with raises("training-not-finite", "optimizer.learning_rate"):
        loop.fit()


def damage_steps(loop, damaged):
    """Make the logits of these training steps, from 1, not finite."""

    def damage(head, inputs, logits):
        step = loop.progress.step + 1
        return logits * torch.inf if head.training and step in damaged else logits

    loop.model.head.register_forward_hook(damage)


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_and_counted_over_a_resume(data, tmp_path, caplog):
    straight = build_trainer(data, tmp_path / "straight", method="lora")
    damage_steps(straight, {2, 3, 5})
    fitted = straight.fit()
    assert (fitted.num_steps, fitted.num_skipped_steps) == (8, 3)
    steps = [line for line in lines(tmp_path / "straight") if "loss" in line]
    assert [line["num_skipped_steps"] for line in steps] == [0, 1, 2, 2, 3, 3, 3, 3]
    assert [line["loss"] is None for line in steps] == [step in (2, 3, 5) for step in range(1, 9)]
    assert logged(caplog, 5, "nan", 3) == 1

    stopped = build_trainer(data, tmp_path / "stopped", method="lora")
    damage_steps(stopped, {2, 3, 5})
    stop_after_step(stopped, 3)
    with pytest.raises(Stopped):
        stopped.fit()
    resumed = build_trainer(data, tmp_path / "stopped", method="lora")
    damage_steps(resumed, {2, 3, 5})
    assert resumed.fit() == fitted
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")


@pytest.mark.slow
def test_too_many_skipped_steps_in_a_row_stop_the_run(data, tmp_path, monkeypatch):
    assert MAX_SKIPPED_IN_A_ROW == 20
    monkeypatch.setattr("m2v_finetune.training.trainer.MAX_SKIPPED_IN_A_ROW", 3)
    loop = build_trainer(data, tmp_path, method="lora")
    damage_steps(loop, {2, 3, 5, 6, 7})
    with raises("training-not-finite", "3 steps in a row", "step 7") as stopped:
        loop.fit()
    assert str(loop.checkpoint) in str(stopped.value)
    assert step_of(loop.checkpoint) == 7
    # What was learned before is kept, and a run that goes on may try as many steps again.
    kept = build_trainer(data, tmp_path, method="lora")
    progress = kept.checkpoints.resume(warmup_ratio=0.1).progress
    assert (progress.step, progress.num_skipped_steps) == (7, 5)
    assert progress.skipped_in_a_row == 0
    for name, tensor in kept.model.trained_tensors().items():
        assert torch.equal(tensor, loop.model.trained_tensors()[name])
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == list(range(1, 8))


def test_a_metric_that_validation_does_not_define_is_named_once(data, tmp_path, caplog):
    log = build_trainer(data, tmp_path, method="probe").log
    names = {"roc_auc": "ROC-AUC", "average_precision": "average precision"}

    def warned(roc_auc, average_precision):
        caplog.clear()
        values = {"roc_auc": roc_auc, "average_precision": average_precision}
        log.warn_undefined(values, selection="roc_auc", metric_names=names)
        return [record.getMessage().partition(" is not defined")[0] for record in caplog.records]

    assert warned(math.nan, math.nan) == ["ROC-AUC", "average precision"]
    assert warned(math.nan, math.nan) == []
    assert warned(0.5, math.nan) == []
    assert warned(math.nan, 0.5) == ["ROC-AUC"]


def test_validation_that_is_not_finite_is_named(data, tmp_path, monkeypatch):
    loop = build_trainer(data, tmp_path, method="probe")
    evaluate = TaskObjective.evaluate

    def damage_and_evaluate(*arguments, **named):
        with torch.no_grad():
            loop.model.head.layers[-1].bias.fill_(torch.nan)
        return evaluate(*arguments, **named)

    monkeypatch.setattr(TaskObjective, "evaluate", damage_and_evaluate)
    with raises("training-not-finite", "validation tracks", "step 4", "There is no checkpoint yet"):
        loop.fit()


def run_out_of_memory(loop, *, above: int, at_step: int = 0):
    """Let the device hold batches of ``above`` windows only, from a step on.

    A CPU does not say that its memory is used up, so the error that a card raises is raised by a hook, in
    the middle of the forward pass.
    """

    def refuse(module, inputs):
        if loop.progress.step >= at_step and loop.model.training and len(inputs[0]) > above:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    loop.model.backbone.network.encoder.layers[1].register_forward_pre_hook(refuse)


@pytest.mark.parametrize(
    ("method", "spec_augment"), [*exhaustive(("probe", False)), *slow(("full", True))]
)
def test_out_of_memory_continues_in_smaller_batches_as_if_it_had_started_so(
    method, spec_augment, data, tmp_path, caplog
):
    options = {"method": method, "spec_augment": spec_augment, "epochs": 1}
    loop = build_trainer(data, tmp_path / "fell", batch=8, **options)
    run_out_of_memory(loop, above=2)
    with caplog.at_level("WARNING"):
        fitted = loop.fit()
    message = [
        record.getMessage() for record in caplog.records if "out of memory" in record.message
    ]
    assert [messages.names(text, 1, size) for text, size in zip(message, (8, 4), strict=True)] == [
        True
    ] * 2
    assert messages.names(message[1], 2, 4, 8)
    small = build_trainer(data, tmp_path / "small", batch=2, accumulation=4, **options)
    assert small.fit() == fitted
    assert lines(tmp_path / "fell") == lines(tmp_path / "small")
    for name, value in small.model.state_dict().items():
        assert torch.equal(loop.model.state_dict()[name], value), name


@pytest.mark.exhaustive
def test_out_of_memory_later_loses_no_step(data, tmp_path, caplog):
    options = {"method": "lora", "batch": 4, "accumulation": 2, "dropout": False, "log_every": 3}
    options["epochs"] = 1
    whole = build_trainer(data, tmp_path / "whole", **options)
    whole.fit()
    fell = build_trainer(data, tmp_path / "fell", **options)
    run_out_of_memory(fell, above=3, at_step=2)
    fell.fit()
    assert logged(caplog, 3, 4) == 1
    for a, b in zip(lines(tmp_path / "whole"), lines(tmp_path / "fell"), strict=True):
        assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), abs=2e-5)


@pytest.mark.slow
def test_out_of_memory_with_one_window_ends_the_run_with_its_steps_saved(data, tmp_path):
    options = {"method": "probe", "batch": 2, "accumulation": 4, "epochs": 1}
    loop = build_trainer(data, tmp_path, **options)
    run_out_of_memory(loop, above=0, at_step=2)
    with raises("step-out-of-memory", "Step 3", "after step 2 of"):
        loop.fit()
    build_trainer(data, tmp_path, **options).fit()
    build_trainer(data, tmp_path / "straight", **options).fit()
    assert lines(tmp_path) == lines(tmp_path / "straight")


@pytest.mark.exhaustive
@pytest.mark.parametrize("optimizer", ["adafactor", *exhaustive("adamw")])
def test_out_of_memory_for_what_the_optimizer_keeps_continues_in_smaller_batches(
    optimizer, data, tmp_path, monkeypatch
):
    """Of the last of several parameter groups, when those before have been stepped."""
    options = {"method": "full", "epochs": 1, "optimizer": optimizer}
    loop = build_trainer(data, tmp_path / "fell", batch=4, **options)
    assert len(loop.optimizer.param_groups) > 1
    number = len([p for group in loop.optimizer.param_groups for p in group["params"]])

    def refusing(make):
        def refuse(*arguments, **others):
            if loop.steps.oom_retry.size == 4 and len(loop.optimizer.state) == number:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return make(*arguments, **others)

        return refuse

    for made_by in ("zeros", "zeros_like"):
        monkeypatch.setattr(torch, made_by, refusing(getattr(torch, made_by)))
    loop.fit()
    assert loop.steps.oom_retry.size == 2
    small = build_trainer(data, tmp_path / "small", batch=2, accumulation=2, **options)
    small.fit()
    assert lines(tmp_path / "fell") == lines(tmp_path / "small")
    for name, value in small.model.state_dict().items():
        assert torch.equal(loop.model.state_dict()[name], value), name


@pytest.mark.slow
def test_out_of_memory_outside_of_training_changes_no_result(data, tmp_path, caplog):
    """Before the first step, when the head's scale is measured, and when tracks are judged."""
    whole = build_trainer(data, tmp_path / "whole", method="probe", epochs=1)
    whole.fit()
    loop = build_trainer(data, tmp_path / "fell", method="probe", epochs=1)
    seen = []

    def refuse(module, inputs):
        seen.append(len(inputs[0]))
        if not loop.model.training and seen[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    loop.model.backbone.network.encoder.layers[1].register_forward_pre_hook(refuse)
    loop.fit()
    assert seen[:5] == [8, 4, 2, 2, 2]
    assert (logged(caplog, 8, 4), logged(caplog, 4, 2)) == (1, 1)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "fell"), strict=True):
        for name in {"loss", "gradient_norm", "validation"} & set(one):
            assert one[name] == pytest.approx(other[name], abs=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("where", ["before", "evaluation"])
def test_a_window_that_cannot_be_evaluated_ends_the_run(where, data, tmp_path):
    loop = build_trainer(data, tmp_path, method="probe", epochs=1)

    def refuse(*_):
        if where == "before" or (loop.progress.step and not loop.model.training):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    loop.model.backbone.network.encoder.layers[1].register_forward_pre_hook(refuse)
    expected = {
        "before": ("standardization-out-of-memory", "first step"),
        "evaluation": ("evaluation-out-of-memory", "after step 4 of 4"),
    }
    with raises(*expected[where]):
        loop.fit()


def test_out_of_memory_while_weights_change_ends_the_run(data, tmp_path):
    loop = build_trainer(data, tmp_path, method="probe")

    def refuse(optimizer, *_):
        if optimizer.param_groups[0]["lr"] == 0:  # the rehearsal
            return
        raise torch.OutOfMemoryError("CUDA out of memory.")

    loop.optimizer.register_step_pre_hook(refuse)
    with raises("step-out-of-memory", "Step 1", "batches of 8"):
        loop.fit()


class Oracle(TaskModel):
    """Answers with the true labels of the track that a waveform was cut from."""

    def learn_by_heart(self, tracks):
        windows = self.track_windows(tracks)
        self.outputs = {}
        for index, (waveform,) in (windows[i] for i in range(len(windows))):
            number, _ = windows.locations[index]
            targets = torch.from_numpy(self.task.targets(tracks[number].track, IDENTITY))
            self.outputs[waveform.numpy().tobytes()] = 4 * targets - 2

    def forward(self, waveforms):
        return torch.stack([self.outputs[w.numpy().tobytes()] for w in waveforms])


@pytest.mark.exhaustive
def test_a_model_that_is_given_the_answer_is_perfect_on_the_quickstart_data():
    task, splits = load_splits("quickstart")
    oracle = Oracle.build(
        task=task,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(),
        window_seconds=5.0,
    )
    test = splits["test"]
    oracle.learn_by_heart(test)
    accelerator = Accelerator()
    with progress_bar(accelerator) as bar:
        evaluated = evaluate_tracks(
            oracle, test, accelerator=accelerator, batch_size=7, num_workers=2, bar=bar
        ).own
    report = task.summarize(evaluated, seed=0)
    assert len(evaluated) == 72
    assert {one.scores.shape for one in evaluated} == {(24,)}
    assert report["labels_left_out"] == []
    for entry in report["metrics"].values():
        assert entry == {"value": 1.0, "low": 1.0, "high": 1.0}
    # The same answers, told to the wrong tracks, are worth nothing.
    wrong_tracks = [
        replace(one, scores=other.scores)
        for one, other in zip(evaluated, evaluated[-1:] + evaluated[:-1], strict=True)
    ]
    wrong = task.compute_metrics(wrong_tracks)
    assert wrong["roc_auc"] < 0.6


@pytest.mark.exhaustive
def test_a_run_states_how_long_it_waits_for_data(data, tmp_path, monkeypatch, caplog):
    loop = build_trainer(data, tmp_path, method="probe", log_every=1)
    read_step = loop.steps.reader.read_step

    def read_slowly(*arguments):
        time.sleep(0.3)
        return read_step(*arguments)

    monkeypatch.setattr(loop.steps.reader, "read_step", read_slowly)
    monkeypatch.setattr(
        "m2v_finetune.training.step_timer.SIGNIFICANT_SECONDS", 1.5
    )  # an epoch has 1.2
    with caplog.at_level("INFO"):
        loop.fit()
    assert 0.1 < loop.steps.timer.run.share < 1.0
    assert loop.steps.timer.run.waited_seconds >= 7 * 0.3
    epochs = [line for line in caplog.messages if line.startswith("Epoch ")]
    assert len(epochs) == 2
    assert all(re.search(r"\d+ %", line) for line in epochs)
    [advice] = [line for line in caplog.messages if "wait for audio" in line]
    assert "m2v data convert" in advice
    assert "data.num_workers, now 0" in advice
    assert "wait" not in (tmp_path / "metrics.jsonl").read_text()


class DeviceReads(TorchDispatchMode):
    """Counts the values that are read from the device, each of which waits for it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket is torch.ops.aten._local_scalar_dense
        return function(*args, **(kwargs or {}))


@pytest.mark.exhaustive
def test_an_epoch_reads_the_device_once_a_step_and_once_a_line(data, tmp_path, monkeypatch):
    """Losses stay on the device until a line of the log is written."""
    loop = build_trainer(data, tmp_path, log_every=1000)
    train_epoch, counts = loop._train_epoch, []

    def count():
        with DeviceReads() as reads:
            train_epoch()
        counts.append(reads.count)

    monkeypatch.setattr(loop, "_train_epoch", count)
    loop.fit()
    # The norm of the gradients; and once the mean loss and what is logged with it.
    assert counts[1] == loop.batches.steps_per_epoch + 1 == 5


@pytest.mark.exhaustive
def test_a_compiled_run_reports_its_warm_up(data, tmp_path, caplog):
    """That compiled layers give the same losses is asserted with the step; here nothing is compiled."""
    loop = build_trainer(data, tmp_path, compiled=True)
    with caplog.at_level("INFO"), torch.compiler.set_stance("force_eager"):
        loop.fit()
    layers = loop.model.backbone.network.encoder.layers
    assert all(layer._compiled_call_impl is not None for layer in layers)
    [message] = [
        line for line in caplog.messages if "compiling the layers included; the second" in line
    ]
    seconds = [float(number) for number in re.findall(r"took ([\d.]+) s", message)]
    assert seconds == pytest.approx(loop.steps.timer.first_seconds, abs=0.06)
