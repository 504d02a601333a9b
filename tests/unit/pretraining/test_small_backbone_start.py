"""The bank of filters that pre-training of a small backbone starts from, on tones with known answers."""

import math
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from m2v_finetune.backbones import init_backbone, load_backbone
from m2v_finetune.backbones.backbone import Backbone

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def script(repository) -> Iterator[ModuleType]:
    """The script, imported, with `scripts/` on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "scripts"))
        import start_small_backbone

        yield start_small_backbone


@pytest.fixture(scope="module")
def bank(script) -> Backbone:
    """The architecture with its start."""
    backbone = init_backbone(script.ARCHITECTURES / "log-bank", licence="").eval()
    script.start_log_weights(backbone)
    return backbone


def channels(backbone: Backbone, script: ModuleType, waveform: torch.Tensor) -> torch.Tensor:
    """Return magnitudes, then the steps of each level, (kinds, filters, frames)."""
    with torch.no_grad():
        features = backbone.encode(backbone.prepare(waveform[None]))[0]
    return features.unflatten(0, (1 + len(script.LEVELS), -1))


def test_a_tone_is_loudest_in_its_filter_and_hardly_varies(script, bank) -> None:
    frequencies = script.log_frequencies(88)
    assert frequencies[12] == pytest.approx(110.0)
    assert frequencies[-1] == pytest.approx(7400.0)
    times = torch.arange(RATE_HZ) / RATE_HZ
    for index in (12, 36, 60, 72, 80):
        tone = torch.sin(2 * math.pi * frequencies[index] * times)
        magnitudes = channels(bank, script, tone)[0]
        assert magnitudes.mean(dim=1).argmax() == index
        # Three phases, rectified: a ripple of 7 % from peak to mean.
        assert magnitudes[index].std() < 0.05 * magnitudes[index].mean()


def test_steps_are_how_far_a_magnitude_is_below_each_level(script, bank) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(RATE_HZ, generator=generator) * torch.linspace(0, 1, RATE_HZ) ** 6
    magnitudes, *steps = channels(bank, script, noise)
    assert magnitudes.max() > 1.0
    for level, of_level in zip(script.LEVELS, steps, strict=True):
        expected = (1 - magnitudes / level).clamp(min=0)
        torch.testing.assert_close(of_level, expected, rtol=0, atol=0.01)
        assert of_level.max() > 0.5


def test_the_backbone_that_ships_has_kept_the_bank(bank) -> None:
    shipped = load_backbone("filterbank-small").network.feature_extractor.state_dict()
    for name, weights in bank.network.feature_extractor.state_dict().items():
        torch.testing.assert_close(shipped[name], weights, rtol=0, atol=1e-7)
