"""The conv encoder with frames last computes what the modules of transformers compute."""

import pytest
import torch
from transformers import HubertConfig, HubertModel

from m2v_finetune.backbones.cpu import as_elsewhere, frames_last
from m2v_finetune.backbones.cpu.frames_last import convolve
from m2v_finetune.backbones.encoders.hubert import HUBERT

SIZES = {"conv_dim": (24, 16, 20, 8), "conv_kernel": (10, 3, 2, 5), "conv_stride": (5, 2, 2, 2)}


def network(norm, *, bias=False, activation="gelu"):
    torch.manual_seed(0)
    built = HubertModel(
        HubertConfig(
            **SIZES,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            feat_extract_norm=norm,
            feat_extract_activation=activation,
            conv_bias=bias,
        )
    )
    for parameter in built.feature_extractor.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return built.eval()


def both(built, waveforms, **options):
    """Return what transformers computes, and what frames last compute."""
    with torch.no_grad():
        expected = built.feature_extractor(waveforms)
        with torch.autocast("cpu", **options) if options else torch.no_grad():
            return expected, HUBERT.convolve(built, waveforms)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_features_are_those_of_transformers(norm, bias, activation):
    built = network(norm, bias=bias, activation=activation).double()
    noise = torch.randn(3, 1234, dtype=torch.float64)
    # Quiet, with an offset, and with a part that is silent.
    waveforms = torch.stack([noise[0], 1e-4 * noise[1] + 0.5, noise[2] * (noise[2] > 0.5)])
    expected, found = both(built, waveforms)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("samples", [1600, 1601, 1607, 200])
def test_features_in_float32(norm, samples):
    expected, found = both(network(norm), torch.randn(2, samples))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_silence_has_the_features_of_transformers():
    expected, found = both(network("group"), torch.zeros(2, 1600))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_autocast_runs_the_products_in_bfloat16(norm):
    expected, found = both(network(norm), torch.randn(2, 1600), dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 2e-2


def test_autocast_leaves_the_first_layer_in_float32():
    layers, waveforms = network("group").feature_extractor.conv_layers[:1], torch.randn(2, 1600)
    with torch.no_grad():
        exact = convolve(layers, waveforms)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(convolve(layers, waveforms), exact)


def test_a_window_has_the_same_features_in_any_batch():
    built, waveforms = network("group"), torch.randn(5, 1600)
    with torch.no_grad():
        together = HUBERT.convolve(built, waveforms)
        alone = [HUBERT.convolve(built, one[None]) for one in waveforms]
    assert torch.equal(together, torch.cat(alone))


def test_with_gradients_the_modules_run():
    built, waveforms = network("group"), torch.randn(2, 1600)
    assert not frames_last.is_usable(waveforms)
    HUBERT.convolve(built, waveforms).sum().backward()
    assert built.feature_extractor.conv_layers[0].conv.weight.grad is not None
    with torch.no_grad(), as_elsewhere():
        assert not frames_last.is_usable(waveforms)
    with torch.no_grad():
        assert frames_last.is_usable(waveforms)
