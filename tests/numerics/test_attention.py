"""Dropout and attention of the layers on a CPU, beside PyTorch's."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from m2v_finetune.backbones import build_architecture
from m2v_finetune.backbones.cpu import as_elsewhere, attention
from m2v_finetune.backbones.cpu.attention import attend
from m2v_finetune.backbones.cpu.dropout import Dropout, drop, use_own_dropout
from m2v_finetune.backbones.encoders import ENCODERS

LAYER = SimpleNamespace(is_causal=False)


def states(dtype=torch.float64):
    """Query, key and value, (batch, heads, frames, size), laid out as layers have them."""
    torch.manual_seed(1)
    drawn = (3 * torch.randn(3, 2, 50, 4, 16)).to(dtype).transpose(2, 3)
    return [one.clone() for one in drawn]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_a_share_of_the_elements_is_dropped_and_the_mean_stays(probability):
    torch.manual_seed(0)
    count = 400_003  # no multiple of 4
    dropped = drop(torch.ones(count), probability)
    share = (dropped == 0).double().mean().item()
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs(share - probability) < 4 * deviation
    [scale] = dropped[dropped != 0].unique().tolist()
    assert scale == pytest.approx(1 / (1 - probability), abs=1e-3)
    assert dropped.mean().item() == pytest.approx(1, abs=4 * deviation * scale)


def test_elements_are_dropped_independently():
    """Four neighbours share a number of the generator."""
    torch.manual_seed(0)
    kept = (drop(torch.ones(100_000, 4), 0.5) != 0).double()
    shares = [(kept * torch.tensor(pattern)).sum(1) for pattern in ([1, 1, 0, 0], [1, 0, 0, 1])]
    for both in shares:
        assert (both == 2).double().mean().item() == pytest.approx(0.25, abs=0.006)
    correlations = torch.corrcoef(torch.cat([kept[:-1], kept[1:]], dim=1).T) - torch.eye(8)
    assert correlations.abs().max() < 0.015


def test_draws_follow_the_seed_and_gradients_the_draws():
    state = torch.randn(7, 33, requires_grad=True)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        output = drop(state, 0.3)
        [gradient] = torch.autograd.grad(output.sum(), state)
        torch.testing.assert_close(gradient * state, output, rtol=0, atol=0)
        found.append(output)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_probabilities_at_the_ends():
    state = torch.randn(10)
    before = torch.get_rng_state()
    assert torch.equal(drop(state, 0.0), state)
    assert torch.equal(drop(state, 1.0), torch.zeros(10))
    assert torch.equal(torch.get_rng_state(), before)
    assert drop(torch.empty(0, 4), 0.5).shape == (0, 4)


def test_only_training_on_a_cpu_that_is_not_compiled_uses_it(monkeypatch):
    layer, state = Dropout(0.5), torch.ones(1000)
    assert layer.eval()(state) is state
    layer.train()

    def drawn():
        torch.manual_seed(0)
        return layer(state)

    torch.manual_seed(0)
    own = drop(state, 0.5)
    torch.manual_seed(0)
    of_pytorch = F.dropout(state, 0.5)
    assert torch.equal(drawn(), own)
    with as_elsewhere():
        assert torch.equal(drawn(), of_pytorch)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(drawn(), of_pytorch)


def of_pytorch(network):
    return [one for one in network.modules() if isinstance(one, nn.Dropout)]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_network_has_it_with_its_own_probabilities(name):
    encoder = ENCODERS[name]
    config = encoder.config_class(
        **{"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2},
        **{"intermediate_size": 8, "num_conv_pos_embedding_groups": 2},
    )
    network = encoder.network_class(config)
    for number, one in enumerate(of_pytorch(network)):
        one.p = number / 100
    expected = [one.p for one in of_pytorch(network)]
    use_own_dropout(network)
    assert [one.p for one in of_pytorch(network)] == expected
    assert len(set(expected)) > 2
    kinds = set(map(type, of_pytorch(network)))
    assert kinds == {Dropout}
    assert type(build_architecture("random-small").network.encoder.dropout) is Dropout


@pytest.mark.parametrize("scaling", [None, 0.2])
def test_products_equal_the_fused_kernel(scaling):
    """With a dropout so rare that it is none: values and gradients."""
    found = []
    for way in ("fused", "products"):
        query, key, value = (one.requires_grad_() for one in states())
        if way == "fused":
            output = F.scaled_dot_product_attention(query, key, value, scale=scaling)
            output = output.transpose(1, 2)
        else:
            output, _ = attend(LAYER, query, key, value, None, dropout=1e-9, scaling=scaling)
            assert output.is_contiguous()
        output.square().sum().backward()
        found.append([output.detach(), query.grad, key.grad, value.grad])
    for fused, products in zip(*found, strict=True):
        torch.testing.assert_close(products, fused, rtol=1e-9, atol=1e-9)


def test_weights_are_dropped_as_in_attention_written_out():
    query, key, value = states()
    torch.manual_seed(0)
    output, _ = attend(LAYER, query, key, value, None, dropout=0.2)
    torch.manual_seed(0)
    weights = (query @ key.transpose(2, 3) / 4).softmax(-1)
    expected = (drop(weights, 0.2) @ value).transpose(1, 2)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_bfloat16_is_as_exact_as_the_fused_kernel(dropout):
    query, key, value = states(torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(LAYER, query, key, value, None, dropout=dropout)
    assert found.dtype == torch.bfloat16
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    fused = F.scaled_dot_product_attention(query, key, value)
    errors = [
        (one.double() - exact.transpose(1, 2)).norm() / exact.norm()
        for one in (found, fused.transpose(1, 2))
    ]
    assert 0 < errors[0] < 1.5 * errors[1] < 0.01


def test_parts_of_a_window_equal_the_whole(monkeypatch):
    query, key, value = states(torch.bfloat16)
    found = []
    for logits in (attention.PART_LOGITS, 4 * 50 * 7):
        monkeypatch.setattr(attention, "PART_LOGITS", logits)
        shapes = []
        products = attention._products
        monkeypatch.setattr(
            attention,
            "_products",
            lambda part, *rest, shapes=shapes, products=products: (
                shapes.append(part.shape[2]) or products(part, *rest)
            ),
        )
        with torch.inference_mode():
            found.append(attend(LAYER, query, key, value, None)[0])
        monkeypatch.setattr(attention, "_products", products)
        assert shapes == ([50, 50] if logits > 10_000 else 2 * [*7 * [7], 1])
    torch.testing.assert_close(found[1], found[0], rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_a_position_bias_and_a_mask_count(dropout):
    query, key, value = states()
    bias = torch.randn(2, 4, 50, 50, dtype=torch.float64)
    for arguments in ({"position_bias": bias}, {"attention_mask": bias}):
        given = {"attention_mask": None, **arguments}
        found, _ = attend(LAYER, query, key, value, **given, dropout=dropout)
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_draws_the_same_dropout(precision):
    torch.manual_seed(0)
    backbone = build_architecture("random-small").train()
    waveforms, direction, found = torch.randn(2, 8000), torch.randn(128), []
    for checkpointing, seed in itertools.product((False, True), (3, 4)):
        backbone.gradient_checkpointing = checkpointing
        backbone.zero_grad()
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            (backbone(waveforms)[-1] @ direction).square().mean().backward()
        found.append(backbone.network.encoder.layers[0].attention.q_proj.weight.grad.clone())
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[3], found[1], rtol=1e-4, atol=1e-6)
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()
