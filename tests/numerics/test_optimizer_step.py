"""One optimizer step: float16, steps that are skipped, optimizers, compiled layers."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from support.matrix import exhaustive
from support.messages import fails, raises
from support.models import PUBLISHED, SAMPLES, TAGGING, build_tagger, random_batch, without_dropout
from torch.overrides import TorchFunctionMode

from m2v_finetune.config import HeadConfig, OptimizerConfig
from m2v_finetune.micro_batching import MicroBatcher
from m2v_finetune.training.checkpoint import RunState, load_checkpoint, save_checkpoint
from m2v_finetune.training.checkpoint_files import STATE_FILE
from m2v_finetune.training.optimization import (
    _bitsandbytes,
    allocate_optimizer_state,
    build_optimizer,
)
from m2v_finetune.training.precision import choose_precision
from m2v_finetune.training.run_progress import Progress
from m2v_finetune.training.step import StepOutOfMemoryError, take_step

INITIAL_STATE = RunState(
    progress=Progress(), best={}, unlogged_losses=[], metrics_bytes=0, total_steps=4, seconds=1.5
)


def build(source="random-small", method="full", seconds=0.5, **backbone):
    model = build_tagger(
        source=source,
        method=method,
        seconds=seconds,
        head=HeadConfig(dropout=0.0),
        train_conv_encoder=method == "full",
        **backbone,
    )
    return without_dropout(model).train()


def batch(seed=0, size=4):
    return random_batch(size, seed=seed)


def step(model, optimizer, *batches, **options):
    return take_step(
        model,
        optimizer,
        batches or (batch(),),
        loss=TAGGING.loss,
        gradient_accumulation_steps=max(1, len(batches)),
        max_grad_norm=1.0,
        **options,
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def half():
    """Autocast and loss scaling as on a card that has no bfloat16."""
    return {
        "autocast": partial(torch.autocast, "cpu", dtype=torch.float16),
        "scaler": torch.amp.GradScaler("cpu"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gain"),
    [*((name, 1.0) for name in PUBLISHED), ("MERT-v0", 1e-3), ("music2vec-v1", 1e-3)],
)
def test_float16_trains_as_float32_does(name, gain, shared_dir):
    """Everything learns, from loud and from quiet music; the first steps find the loss scale."""
    folder = shared_dir / "golden" / "checkpoints" / name
    x = gain * torch.from_numpy(np.load(folder / "input_values.npy")[:, :SAMPLES])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    losses = []
    for options in ({}, half()):
        model = build(folder)
        model.backbone.gradient_checkpointing = True
        optimizer = build_optimizer(model, OptimizerConfig(backbone_learning_rate=1e-4))
        results = [step(model, optimizer, (x, targets), **options) for _ in range(10)]
        done = [r for r in results if not r.is_skipped]
        assert len(done) >= 6
        losses.append([float(r.losses[0]) for r in done[:6]])
        assert all(math.isfinite(r.gradient_norm) for r in done)
        assert weights(model).isfinite().all()
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("name", ["music2vec-v1", "MERT-v1-95M", "MERT-v1-330M"])
def test_hidden_states_are_float32_whatever_the_layers_compute_in(name, shared_dir):
    model = build(shared_dir / "golden" / "checkpoints" / name)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert {state.dtype for state in model.backbone(batch()[0])} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_with_gradients_that_are_not_finite_changes_nothing(precision):
    model = build()
    optimizer = build_optimizer(model, OptimizerConfig())
    options = half() if precision == "float16" else {}
    damaged = [batch(0), (torch.full((4, SAMPLES), torch.inf), batch()[1])]
    before = weights(model)
    skipped = step(model, optimizer, *damaged, **options)
    assert skipped.is_skipped
    assert not math.isfinite(skipped.gradient_norm)
    assert torch.equal(weights(model), before)
    assert not optimizer.state
    if precision == "float16":
        assert options["scaler"].get_scale() == 2.0**15
    results = [step(model, optimizer, batch(size=1), **options) for _ in range(8)]
    assert not results[-1].is_skipped
    assert not torch.equal(weights(model), before)
    assert weights(model).isfinite().all()


def test_no_gradient_outlives_a_step_that_breaks_off():
    """As when memory runs out: the step can be taken again."""
    model, other = build(), build()
    optimizer = build_optimizer(model, OptimizerConfig())
    with fails(ValueError, 4, 7):
        step(model, optimizer, batch(), (batch()[0], torch.zeros(4, 7)))
    assert all(p.grad is None for p in model.parameters())
    step(model, optimizer, batch())
    step(other, build_optimizer(other, OptimizerConfig()), batch())
    assert torch.equal(weights(model), weights(other))


def test_a_scaled_step_that_breaks_off_after_unscaling_can_be_taken_again():
    scaler, other_scaler = (torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2))
    model, other = build(), build()
    optimizer = build_optimizer(model, OptimizerConfig())

    def refuse(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    refusal = optimizer.register_step_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        step(model, optimizer, scaler=scaler)
    refusal.remove()
    step(model, optimizer, scaler=scaler)
    step(other, build_optimizer(other, OptimizerConfig()), scaler=other_scaler)
    assert torch.equal(weights(model), weights(other))
    assert scaler.state_dict() == other_scaler.state_dict()


def run_out(*_):
    """Ask for more than any machine has, which a CPU's allocator refuses in words of its own."""
    torch.empty(10**15)


def test_a_step_that_runs_out_of_a_cpus_memory_can_be_taken_again():
    model, other = build(), build()
    optimizer = build_optimizer(model, OptimizerConfig())
    refusals = [
        model.head.register_forward_hook(run_out),
        next(model.head.parameters()).register_hook(run_out),
        optimizer.register_step_pre_hook(run_out),
    ]
    for refusal in refusals:
        with pytest.raises(StepOutOfMemoryError) as caught:
            step(model, optimizer, batch())
        assert caught.value.is_undone
        refusal.remove()
    step(model, optimizer, batch())
    step(other, build_optimizer(other, OptimizerConfig()), batch())
    assert torch.equal(weights(model), weights(other))


@pytest.mark.slow
def test_passes_that_run_out_of_a_cpus_memory_are_divided():
    micro_batcher = MicroBatcher()

    def double(windows):
        return run_out() if len(windows) > 2 else 2 * windows

    windows = torch.arange(7.0)
    assert torch.equal(micro_batcher.run(double, [windows]), 2 * windows)
    assert micro_batcher.size == 1  # 7, 3, 1
    with fails(RuntimeError, "1x2", "3x2"):
        micro_batcher.run(lambda windows: windows @ torch.ones(3, 2), [torch.ones(1, 2)])


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_allocating_the_optimizer_state_changes_nothing_else(name):
    """Of a step that runs out of memory for the last weight's state, not even that."""
    model, other = build(), build()
    config = OptimizerConfig(name=name)
    optimizer, straight = (build_optimizer(one, config) for one in (model, other))
    for one in (optimizer, straight):
        for group in one.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
                )
    before, learning_rates = weights(model), [group["lr"] for group in optimizer.param_groups]
    number = sum(len(group["params"]) for group in optimizer.param_groups)

    class FullMemory(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (torch.zeros_like, torch.zeros) and len(optimizer.state) == number:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return func(*args, **(kwargs or {}))

    with FullMemory(), pytest.raises(torch.OutOfMemoryError):
        allocate_optimizer_state(optimizer)
    assert not optimizer.state
    for _ in range(2):  # the second time there is nothing left to make
        allocate_optimizer_state(optimizer)
        assert torch.equal(weights(model), before)
        assert [group["lr"] for group in optimizer.param_groups] == learning_rates
        assert len(optimizer.state) == number
    for _ in range(2):
        optimizer.step()
        straight.step()
    assert torch.equal(weights(model), weights(other))
    assert not torch.equal(weights(model), before)


def test_clipping_scales_the_update_to_the_norm():
    """By max_grad_norm / (norm + 1e-6), as PyTorch does; plain descent changes weights by the gradient."""
    generator = torch.Generator().manual_seed(0)
    x, targets = (torch.randn(5, size, generator=generator).double() for size in (3, 2))
    changes, norms = [], []
    for max_grad_norm in (math.inf, 0.125):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2).double()
        before = weights(model)
        result = take_step(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            [(x, targets)],
            loss=lambda outputs, targets: (outputs - targets).square().mean(),
            max_grad_norm=max_grad_norm,
        )
        changes.append(weights(model) - before)
        norms.append(result.gradient_norm)
    assert norms[0] == norms[1] > 0.5
    torch.testing.assert_close(changes[1], changes[0] * 0.125 / (norms[0] + 1e-6))
    assert float(changes[1].norm()) == pytest.approx(0.125, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_every_optimizer_resumes_to_the_bit(name, tmp_path):
    config = OptimizerConfig(name=name, learning_rate=1e-2, backbone_learning_rate=1e-3)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    straight = build(method="lora")
    optimizer = build_optimizer(straight, config)
    losses = [step(straight, optimizer, batch(0)).losses[0]]
    progress = Progress(step=1, num_skipped_steps=3, skipped_in_a_row=2)
    path = save_checkpoint(
        tmp_path,
        model=straight,
        optimizer=optimizer,
        accelerator=accelerator,
        run=replace(INITIAL_STATE, progress=progress),
        keep=1,
    )
    losses += [step(straight, optimizer, batch(0)).losses[0] for _ in range(3)]
    assert losses[-1] < losses[0]

    resumed = build(method="lora")
    optimizer = build_optimizer(resumed, config)
    found = load_checkpoint(path, model=resumed, optimizer=optimizer, accelerator=accelerator)
    assert found == replace(INITIAL_STATE, progress=progress)
    for _ in range(3):
        step(resumed, optimizer, batch(0))
    assert torch.equal(weights(resumed), weights(straight))


def test_adafactor_keeps_next_to_nothing():
    kept = {}
    for name in ("adamw", "adafactor"):
        model = build()
        optimizer = build_optimizer(model, OptimizerConfig(name=name))
        step(model, optimizer)
        tensors = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
        kept[name] = sum(tensor.nbytes for tensor in tensors)
    trained = 4 * len(weights(model))
    assert kept["adamw"] == pytest.approx(2 * trained, rel=0.01)
    assert kept["adafactor"] < 0.1 * trained


def test_eight_bit_states_survive_a_checkpoint(tmp_path):
    """Tensors of bytes, marked as bitsandbytes marks those that can leave the card."""
    AcceleratorState._reset_state(reset_partial_state=True)
    model = build(method="probe")
    optimizer = build_optimizer(model, OptimizerConfig())
    first = optimizer.param_groups[0]["params"][0]
    paged = torch.arange(256, dtype=torch.uint8)
    paged.is_paged, paged.page_deviceid = True, 0
    optimizer.state[first] = {"step": 3, "state1": paged, "qmap1": torch.rand(256)}
    path = save_checkpoint(
        tmp_path,
        model=model,
        optimizer=optimizer,
        accelerator=Accelerator(cpu=True),
        run=INITIAL_STATE,
        keep=1,
    )
    content = torch.load(path / STATE_FILE, weights_only=True)
    assert torch.equal(content["optimizer"]["state"][0]["state1"], paged)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_optimizers_of_bitsandbytes_need_a_gpu_and_bitsandbytes(name, monkeypatch):
    with raises("optimizer-needs-gpu", name, "adafactor"):
        build_optimizer(build(method="probe"), OptimizerConfig(name=name))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with raises("optimizer-not-installed", name, "pip install 'm2v-finetune[cuda]'"):
        _bitsandbytes(name)


@pytest.mark.parametrize(
    ("setting", "capability", "code", "value"),
    [
        ("fp16", None, "precision-needs-gpu", "fp16"),
        ("bf16", (7, 5), "precision-unsupported", "capability 7.5"),
    ],
)
def test_a_precision_that_the_hardware_lacks_is_refused(setting, capability, code, value):
    with raises(code, value):
        choose_precision(setting, capability=capability)


def has_compiler():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


@pytest.mark.exhaustive
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(
    ("method", "graphs", "checkpointing"),
    # Under lora the input of the first layer needs no gradient; all others share one graph.
    [
        ("lora", 2, True),
        *exhaustive(
            ("probe", 1, False),
            ("probe", 1, True),
            ("lora", 2, False),
            ("full", 1, False),
            ("full", 1, True),
        ),
    ],
)
def test_compiled_layers_give_the_same_losses(method, graphs, checkpointing):
    """And the same names of weights; their graphs are made in the first step alone."""
    counters = torch._dynamo.utils.counters
    plain = build(method=method, num_layers=2)
    names = list(plain.state_dict())
    optimizer = build_optimizer(plain, OptimizerConfig())
    expected = [float(step(plain, optimizer).losses[0]) for _ in range(3)]
    torch._dynamo.reset()
    counters.clear()
    model = build(method=method, num_layers=2)
    model.backbone.gradient_checkpointing = checkpointing
    model.backbone.compile_layers()
    assert list(model.state_dict()) == names
    optimizer = build_optimizer(model, OptimizerConfig())
    losses, num_graphs = [], []
    for _ in range(3):
        losses.append(float(step(model, optimizer).losses[0]))
        num_graphs.append(counters["stats"]["unique_graphs"])
    assert losses == pytest.approx(expected, abs=1e-5)
    assert num_graphs == [graphs] * 3
    assert not counters["graph_break"]
