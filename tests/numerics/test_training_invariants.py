"""What is equal in theory is equal here."""

import copy
import math

import numpy as np
import pytest
import torch
from support.models import TAGGING as TASK
from support.models import build_tagger, random_batch, without_dropout

from m2v_finetune.backbones import load_backbone
from m2v_finetune.backbones.layer_weighting import LayerWeighting
from m2v_finetune.config import BackboneConfig, HeadConfig, OptimizerConfig, TuningConfig
from m2v_finetune.heads import ClipHead
from m2v_finetune.model import TaskModel
from m2v_finetune.training.optimization import (
    build_optimizer,
    learning_rate_factor,
    set_learning_rates,
)
from m2v_finetune.training.precision import choose_precision
from m2v_finetune.tuning import LORA_TARGETS, merge_adapters

METHODS = ("probe", "lora", "full")


def build(method="full", *, seed=0, weighting="softmax", train_conv=False, **head):
    return build_tagger(
        method=method,
        seed=seed,
        head=HeadConfig(**head),
        train_conv_encoder=train_conv,
        layer_weighting=weighting,
    )


def batch(size, seed=0):
    return random_batch(size, seed=seed)


def gradients(model, waveforms, targets):
    model.zero_grad()
    TASK.loss(model(waveforms), targets).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", ["lora", "full", "full, conv encoder too"])
def test_checkpointing_changes_no_gradient(method):
    model = build(method.split(",")[0], train_conv="conv" in method).train()
    found = {}
    for checkpointing in (False, True):
        model.backbone.gradient_checkpointing = checkpointing
        torch.manual_seed(7)  # the same dropout masks
        found[checkpointing] = gradients(model, *batch(2))
    assert found[True].keys() == found[False].keys()
    assert ("backbone.network.feature_extractor.conv_layers.0.conv.weight" in found[True]) is (
        "conv" in method
    )
    for name, value in found[False].items():
        torch.testing.assert_close(found[True][name], value, rtol=0, atol=1e-7)


def test_checkpointing_keeps_less():
    """The bytes that autograd keeps for the backward pass, with and without."""
    model = build("full").train()
    kept = {}
    for checkpointing in (False, True):
        model.backbone.gradient_checkpointing = checkpointing
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            TASK.loss(*((model(batch(2)[0])), batch(2)[1]))
        kept[checkpointing] = total
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.parametrize("targets", list(LORA_TARGETS))
def test_lora_changes_nothing_at_its_start(targets):
    waveforms, _ = batch(2)
    plain = load_backbone("random-small")
    torch.manual_seed(0)
    model = TaskModel.build(
        task=TASK,
        backbone=BackboneConfig(source="random-small"),
        head=HeadConfig(),
        tuning=TuningConfig(method="lora", lora_targets=targets),
        window_seconds=0.5,
    ).eval()
    with torch.no_grad():
        for ours, theirs in zip(model.backbone(waveforms), plain(waveforms), strict=True):
            assert torch.equal(ours, theirs)
    trained = [n for n, p in model.backbone.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 4 * len(LORA_TARGETS[targets])
    assert all("lora_" in name for name in trained)


def train_steps(model, steps=3):
    optimizer = build_optimizer(
        model, OptimizerConfig(learning_rate=1e-2, backbone_learning_rate=1e-2)
    )
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        TASK.loss(*reversed((batch(4, step)[1], model(batch(4, step)[0])))).backward()
        optimizer.step()
    return model.eval()


def test_merged_equals_unmerged():
    model = train_steps(build("lora"))
    waveforms, _ = batch(3, 9)
    untouched = build("lora").eval()
    with torch.no_grad():
        expected = model(waveforms)
        assert not torch.allclose(model.backbone(waveforms)[-1], untouched.backbone(waveforms)[-1])
        merged = copy.deepcopy(model)
        merge_adapters(merged.backbone)
        torch.testing.assert_close(merged(waveforms), expected, rtol=0, atol=1e-5)
    assert not [name for name in merged.state_dict() if "lora_" in name]
    assert (
        merged.backbone.network.state_dict().keys()
        == load_backbone("random-small").network.state_dict().keys()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", ["trained", "all"])
def test_saved_and_loaded_gives_the_same_logits(method, weights, tmp_path):
    model = train_steps(build(method, weighting="conv1d", pooling="attention"))
    model.save_pretrained(tmp_path, weights=weights)
    loaded = TaskModel.from_pretrained(tmp_path)
    waveforms, _ = batch(3, 9)
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(waveforms), model(waveforms), rtol=0, atol=1e-5 if weights == "all" else 0
        )
    assert loaded.task == model.task
    assert not loaded.training


@pytest.mark.parametrize("method", METHODS)
def test_one_by_one_accumulated_equals_one_batch(method):
    waveforms, targets = batch(8)
    results = []
    for size in (8, 1):
        model = without_dropout(build(method)).train()
        optimizer = build_optimizer(model, OptimizerConfig())
        for i in range(0, 8, size):
            loss = TASK.loss(model(waveforms[i : i + size]), targets[i : i + size])
            (loss * size / 8).backward()
        optimizer.step()
        results.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-3, atol=1e-6)


def test_what_is_trainable_by_each_method():
    parts = {}
    for method in METHODS:
        names = [n for n, p in build(method).named_parameters() if p.requires_grad]
        parts[method] = {
            "conv": any("feature_extractor" in n for n in names),
            "layers": any("encoder.layers" in n for n in names),
            "head": any(n.startswith("head.") for n in names),
            "weighting": "layer_weighting.layer_weights" in names,
        }
    assert parts["probe"] == {"conv": False, "layers": False, "head": True, "weighting": True}
    assert parts["lora"] == {"conv": False, "layers": True, "head": True, "weighting": True}
    assert parts["full"] == {"conv": False, "layers": True, "head": True, "weighting": True}
    everything = build("full", train_conv=True)
    assert all(p.requires_grad for p in everything.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_every_trained_weight_gets_a_gradient_and_a_rate(method):
    model = without_dropout(build(method, train_conv=method == "full")).train()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(model, OptimizerConfig())
    in_groups = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(in_groups) == len({id(p) for p in in_groups}) == len(trained)
    assert gradients(model, *batch(4)).keys() == trained


def test_layer_decay_and_separate_learning_rates():
    model = build("full", train_conv=True)
    config = OptimizerConfig(learning_rate=1e-3, backbone_learning_rate=1e-4, layer_decay=0.5)
    learning_rate_of = {
        id(p): (group["peak_lr"], group["weight_decay"])
        for group in build_optimizer(model, config).param_groups
        for p in group["params"]
    }
    seen = 0
    for name, parameter in model.named_parameters():
        rate, decay = learning_rate_of[id(parameter)]
        if name.startswith("backbone.network.encoder.layers."):
            expected = 1e-4 * 0.5 ** (3 - int(name.split(".")[4]))
        elif name.startswith("backbone."):
            expected = 1e-4 * 0.5**4
        else:
            expected = 1e-3
        assert rate == pytest.approx(expected), name
        # original0 is the magnitude of a convolution's normalised weight, one number a tap.
        is_matrix = parameter.ndim > 1 and not name.endswith("original0")
        assert decay == (config.weight_decay if is_matrix else 0.0), name
        seen += 1
    assert seen == len(learning_rate_of)


def test_the_probe_keeps_its_backbone_in_evaluation_mode():
    model = build("probe").train()
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    assert build("lora").train().backbone.training


def test_running_sum_equals_the_stack():
    states = [torch.randn(2, 7, 5) for _ in range(4)]
    weighting = LayerWeighting("softmax", 4)
    torch.nn.init.normal_(weighting.layer_weights)
    stacked = torch.einsum("l,lbtd->btd", weighting.layer_weights.softmax(0), torch.stack(states))
    torch.testing.assert_close(weighting(iter(states)), stacked)
    assert float(weighting.weights().sum().detach()) == pytest.approx(1.0)


def test_conv1d_is_that_of_the_model_card():
    states = torch.randn(4, 2, 7, 5)
    weighting = LayerWeighting("conv1d", 4)
    conv = torch.nn.Conv1d(in_channels=4, out_channels=1, kernel_size=1)
    with torch.no_grad():
        conv.weight.copy_(weighting.layer_weights[None, :, None])
        conv.bias.copy_(weighting.offset[None])
    # The card's own use: time-averaged states (layers, hidden), here for each window.
    for window in range(2):
        expected = conv(states[:, window].mean(dim=1)[None])[0, 0]
        ours = weighting(states[:, window].unbind(0)).mean(dim=0)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("kind", "chosen"), [("last", 3), (0, 0), (2, 2)])
def test_one_layer(kind, chosen):
    states = [torch.randn(2, 5) for _ in range(4)]
    weighting = LayerWeighting(kind, 4)
    assert torch.equal(weighting(iter(states)), states[chosen])
    assert weighting.weights().tolist() == [float(i == chosen) for i in range(4)]


def test_layers_above_the_chosen_one_are_not_there():
    model = build("probe", weighting=2)
    assert model.backbone.num_layers == 2
    assert model.layer_weighting.weights().tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("weighting", ["softmax", "conv1d", "last"])
def test_the_mean_over_time_may_come_first(weighting):
    """The clip head averages each state before weighting: nothing but the memory changes."""
    model = build("probe", weighting=weighting).eval()
    waveforms, _ = batch(2)
    with torch.no_grad():
        states = model.backbone(model.backbone.prepare(waveforms))
        late = model.head(model.layer_weighting(iter(states)))
        torch.testing.assert_close(model(waveforms), late, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "mean_std", "attention"])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_heads(pooling, kind):
    head = ClipHead(input_size=6, num_outputs=3, pooling=pooling, kind=kind, hidden_size=512)
    features = torch.randn(2, 9, 6)
    assert head.eval()(features).shape == (2, 3)
    assert torch.allclose(head(features), head(features.flip(1)), atol=1e-6)
    linears = [m for m in head.layers if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linears] == ([512, 3] if kind == "mlp" else [3])


def test_mean_and_standard_deviation_are_numpys():
    head = ClipHead(input_size=4, num_outputs=8, pooling="mean_std", kind="linear").eval()
    with torch.no_grad():
        head.layers[-1].weight.copy_(torch.eye(8))
        head.layers[-1].bias.zero_()
        features = torch.randn(3, 50, 4)
        pooled = head(features).numpy()
    expected = np.concatenate([features.numpy().mean(1), features.numpy().std(1)], axis=-1)
    np.testing.assert_allclose(pooled, expected, atol=1e-4)


def test_attention_pooling_can_pick_a_frame():
    head = ClipHead(input_size=2, num_outputs=2, pooling="attention", kind="linear").eval()
    with torch.no_grad():
        head.attention.score.weight.copy_(torch.tensor([[100.0, 0.0]]))
        head.layers[-1].weight.copy_(torch.eye(2))
        head.layers[-1].bias.zero_()
        features = torch.tensor([[[0.0, 5.0], [1.0, 7.0], [0.0, 9.0]]])
        torch.testing.assert_close(head(features), torch.tensor([[1.0, 7.0]]))


def test_learning_rates_warm_up_and_follow_a_cosine():
    factors = [learning_rate_factor(step, total_steps=100, warmup_ratio=0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:] == pytest.approx(
        [0.5 * (1 + math.cos(math.pi * i / 90)) for i in range(90)]
    )
    assert learning_rate_factor(0, total_steps=10, warmup_ratio=0.0) == 1.0
    optimizer = build_optimizer(build("probe"), OptimizerConfig(learning_rate=4e-3))
    set_learning_rates(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


@pytest.mark.parametrize(
    ("setting", "capability", "on_cpu", "chosen"),
    [
        ("auto", None, False, "no"),
        ("auto", None, True, "bf16"),
        ("no", None, True, "no"),
        ("auto", (7, 5), True, "fp16"),  # RTX 2080 Ti
        ("auto", (7, 0), False, "fp16"),
        ("auto", (8, 0), False, "bf16"),
        ("auto", (9, 0), False, "bf16"),
        ("no", (9, 0), False, "no"),
        ("bf16", None, False, "bf16"),
    ],
)
def test_precision_by_the_hardware(setting, capability, on_cpu, chosen):
    assert choose_precision(setting, capability=capability, bf16_on_cpu=on_cpu) == chosen
