"""Models that share layers: each common layer runs once, and the outputs are those of each model alone."""

from collections import Counter

import pytest
import torch

from m2v_finetune.backbones.backbone import CONV_ENCODER
from m2v_finetune.catalogue.shared_pass import SharedPass, shared_depth
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.model.novelty import Novelty
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.tagging import Tagging

CLIPS = Tagging(labels=("drums", "piano"), label_column="tags")
FRAMES = BeatTracking(label_column="beats")
NUM_LAYERS = 2


def build(method: str, *, task=CLIPS, layers=None, source="random-small", pooling="mean", **tuning):
    """Return a model whose trainable weights differ from those that it started with."""
    torch.manual_seed(0)
    model = TaskModel.build(
        task=task,
        backbone=BackboneConfig(
            source=source,
            num_layers=NUM_LAYERS,
            layer_weighting="softmax" if layers is None else layers,
        ),
        head=HeadConfig(kind="mlp", hidden_size=16, pooling=pooling),
        tuning=TuningConfig(method=method, **tuning),
        window_seconds=0.5,
    )
    generator = torch.Generator().manual_seed(len(method))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def counts(models, waveforms):
    """Return the outputs of a shared pass, and how often conv encoders and layers ran."""
    calls = Counter()

    def count(name, function):
        def counted(*inputs, **others):
            calls[name] += 1
            return function(*inputs, **others)

        return counted

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for model in models:
            patch.setattr(model.backbone, "encode", count("encode", model.backbone.encode))
            for index, layer in enumerate(model.backbone.layers):
                patch.setattr(layer, "forward", count(index, layer.forward))
        outputs = SharedPass(models)(waveforms)
    return outputs, [calls[name] for name in ("encode", 0, 1)]


TOP_LAYER = ("top_layers", {"num_top_layers": 1})
MEMBERS = {
    "probes": ([("probe", {}), ("probe", {"pooling": "mean_std"})], [1, 1, 1]),
    "probes that pool alike": ([("probe", {}), ("probe", {"layers": 1})], [1, 1, 1]),
    "a low layer first": (
        [("probe", {"layers": 0}), ("probe", {}), ("probe", {"layers": "last"})],
        [1, 1, 1],
    ),
    "top layer tuned": ([("probe", {}), TOP_LAYER], [1, 1, 2]),
    "top layer first": ([TOP_LAYER, ("probe", {}), ("probe", {"layers": 1})], [1, 1, 2]),
    "LoRA": ([("lora", {}), ("probe", {}), ("lora", {"r": 4})], [1, 3, 3]),
    "added scales": ([("ssf", {}), ("adapter", {}), ("ia3", {})], [1, 3, 3]),
    "all but the conv encoder": (
        [("probe", {}), ("full", {"train_conv_encoder": False})],
        [1, 2, 2],
    ),
    "frames and clips": (
        [("probe", {"task": FRAMES}), ("bitfit", {}), TOP_LAYER],
        [1, 2, 3],
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_common_layers_run_once_and_change_nothing(name: str):
    members, expected = MEMBERS[name]
    models = [build(method, **options) for method, options in members]
    if models[0].task is CLIPS:
        models[0].novelty = Novelty.fit(torch.randn(60, models[0].backbone.hidden_size))
    waveforms = torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))
    outputs, calls = counts(models, waveforms)
    assert calls == expected
    with torch.inference_mode():
        for model, output in zip(models, outputs, strict=True):
            torch.testing.assert_close(output, model.score(waveforms), rtol=1e-6, atol=1e-6)


def test_models_share_what_is_equal():
    probe, lora, top = build("probe"), build("lora"), build("top_layers", num_top_layers=1)
    frozen_conv = build("full", train_conv_encoder=False)
    assert shared_depth(probe, build("probe")) == probe.backbone.num_layers == NUM_LAYERS
    assert shared_depth(probe, top) == shared_depth(top, probe) == NUM_LAYERS - 1
    assert shared_depth(probe, lora) == 0
    assert shared_depth(lora, build("lora")) == NUM_LAYERS
    assert shared_depth(probe, frozen_conv) == CONV_ENCODER
    assert shared_depth(probe, build("full", train_conv_encoder=True)) is None
    assert shared_depth(probe, build("probe", source="filterbank-small")) is None


def test_the_scale_of_equal_adapters_counts():
    some, others = build("lora", lora_alpha=4.0), build("lora", lora_alpha=8.0)
    for one, other in zip(some.parameters(), others.parameters(), strict=True):
        assert torch.equal(one, other)
    assert shared_depth(some, others) == 0
    others.backbone.settings = {**others.backbone.settings, "layer_norm_eps": 0.1}
    assert shared_depth(some, others) is None
