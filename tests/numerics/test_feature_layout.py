"""What the frozen part of a model says of windows stands for their waveforms, wherever that part ends."""

import pytest
import torch
from small_networks import CONV, HIDDEN, LAYERS, save_network

from m2v_finetune.backbones.backbone import CONV_ENCODER
from m2v_finetune.config import BackboneConfig, HeadConfig, TuningConfig
from m2v_finetune.model import TaskModel
from m2v_finetune.tasks.beats import BeatsConfig, BeatTracking
from m2v_finetune.tasks.tagging import Tagging

CLIPS = Tagging(labels=("drums", "flute", "minor"), label_column="tags")
FRAMES = BeatTracking.from_settings(BeatsConfig())
ARCHITECTURES = ("data2vec", "hubert", "hubert, pre-norm", "conformer")
NUM_FRAMES = 49  # of a second at 16 kHz
# Method, weighting, head, then: depth, rows for a window.
CASES = {
    "probe": ({}, {}, {}, LAYERS, LAYERS + 1),
    "probe, deviation": ({}, {}, {"pooling": "mean_std"}, LAYERS, (LAYERS + 1) * NUM_FRAMES),
    "probe, attention": ({}, {}, {"pooling": "attention"}, LAYERS, (LAYERS + 1) * NUM_FRAMES),
    "probe, conv1d": ({}, {"layer_weighting": "conv1d"}, {}, LAYERS, LAYERS + 1),
    "probe, last": ({}, {"layer_weighting": "last"}, {}, LAYERS, 1),
    "probe, state 2": ({}, {"layer_weighting": 2}, {}, 2, 1),
    "probe, state 0": ({}, {"layer_weighting": 0}, {}, 0, 1),
    "probe, frames": ({}, {}, None, LAYERS, (LAYERS + 1) * NUM_FRAMES),
    "lora": ({"method": "lora"}, {}, {}, 0, 1 + NUM_FRAMES),
    "lora, frames": ({"method": "lora"}, {}, None, 0, NUM_FRAMES),
    "lora, last": ({"method": "lora"}, {"layer_weighting": "last"}, {}, 0, NUM_FRAMES),
    "top layers": ({"method": "top_layers", "num_top_layers": 1}, {}, {}, 2, 3 + NUM_FRAMES),
    "top layers, frames": (
        {"method": "top_layers", "num_top_layers": 2},
        {},
        None,
        1,
        2 * NUM_FRAMES,
    ),
    "adapter": ({"method": "adapter"}, {}, {}, 0, 1 + NUM_FRAMES),
    "full": ({"method": "full"}, {}, {}, CONV_ENCODER, NUM_FRAMES),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {name: tmp_path_factory.mktemp("checkpoint") for name in ARCHITECTURES}
    for name, folder in made.items():
        save_network(name, folder, mask_time_prob=0.5, mask_time_length=2)
    return made


def build(folder, tuning, backbone, head, **options):
    torch.manual_seed(0)
    return TaskModel.build(
        task=FRAMES if head is None else CLIPS,
        backbone=BackboneConfig(source=str(folder), **backbone, **options),
        head=HeadConfig(**(head or {})),
        tuning=TuningConfig(**tuning),
        window_seconds=1.0,
    )


def gradients(model, inputs):
    torch.manual_seed(3)  # the same dropout where there is any
    outputs = model(inputs)
    return outputs, gradients_of(model, outputs)


def gradients_of(model, outputs):
    outputs.float().square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_features_train_as_waveforms_do(folders, architecture, case):
    tuning, backbone, head, depth, num_rows = CASES[case]
    model = build(folders[architecture], tuning, backbone, head).train()
    layout = model.feature_layout
    assert (layout.depth, layout.num_rows) == (depth, num_rows)
    waveforms = torch.randn(2, 16_000)
    with torch.inference_mode():
        features = model.frozen_features(waveforms).clone()
    assert features.shape == (2, num_rows, CONV if depth == CONV_ENCODER else HIDDEN)
    # In training mode, with all the dropout of transformers' defaults, yet the same again.
    torch.testing.assert_close(model.frozen_features(waveforms), features, rtol=0, atol=0)

    computed, of_computed = gradients(model, waveforms)
    read, of_read = gradients(model, features.clone())
    torch.testing.assert_close(read, computed, rtol=0, atol=1e-6)
    assert of_read.keys() == of_computed.keys()
    assert of_read.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in of_computed.items():
        torch.testing.assert_close(of_read[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", [name for name in CASES if "lora" not in name])
@pytest.mark.parametrize(
    ("architecture", "precision"),
    [*((name, "float32") for name in ARCHITECTURES), ("hubert", "bfloat16")],
)
def test_checkpointing_changes_neither_outputs_nor_gradients(
    folders, architecture, case, precision
):
    """Where the frozen states are computed again for the gradient of the layer weights, and elsewhere."""
    model = build(folders[architecture], *CASES[case][:3]).train()
    waveforms, found = torch.randn(2, 16_000), []
    for checkpointing in (False, True):
        model.backbone.gradient_checkpointing = checkpointing
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = model(waveforms)
        found.append((outputs.detach(), gradients_of(model, outputs)))
    # Backward passes of half precision round what they add.
    atol = 1e-6 if precision == "float32" else 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("pooling", ["mean_std", "attention", None])
def test_with_checkpointing_a_probe_keeps_one_state_for_its_layer_weights(folders, pooling):
    case = ({}, {}, None if pooling is None else {"pooling": pooling})
    model, kept = build(folders["hubert"], *case).train(), []
    waveforms = torch.randn(2, 16_000)
    for checkpointing in (False, True):
        model.backbone.gradient_checkpointing = checkpointing
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = model(waveforms)
        kept.append(sum(storages.values()))
        del outputs
    state_bytes = 4 * 2 * NUM_FRAMES * HIDDEN
    assert kept[0] - kept[1] == pytest.approx(LAYERS * state_bytes, rel=0.01)


def test_half_precision_is_read_as_it_is(folders):
    model = build(folders["hubert"], *CASES["top layers"][:3]).eval()
    features = model.frozen_features(torch.randn(2, 16_000))
    torch.testing.assert_close(model(features.half()), model(features.half().float()))


def test_where_the_conv_encoder_is_trainable_nothing_is_frozen(folders):
    tuning = {"method": "full", "train_conv_encoder": True}
    model = build(folders["hubert"], tuning, {}, {}).train()
    assert model.feature_layout is None
    assert all(module.training for module in model.modules())


def test_spec_augment_leaves_the_conv_encoder_alone(folders):
    model = build(folders["data2vec"], {"method": "lora"}, {}, {}, spec_augment=True).train()
    assert (model.feature_layout.depth, model.feature_layout.states) == (CONV_ENCODER, ())
    features = model.frozen_features(torch.randn(2, 16_000))
    with torch.no_grad():
        assert not torch.equal(model(features), model(features))  # masks differ


def test_the_network_below_what_is_trainable_has_no_dropout(folders):
    model = build(folders["hubert"], {"method": "top_layers", "num_top_layers": 1}, {}, {}).train()
    encoder = model.backbone.network.encoder
    below = [model.backbone.network.feature_projection, *encoder.layers[:2], encoder.pos_conv_embed]
    assert not any(module.training for part in below for module in part.modules())
    assert all(module.training for module in encoder.layers[2].modules())
    assert model.head.training


def test_layers_above_the_depth_are_not_computed(folders):
    model = build(folders["hubert"], *CASES["top layers"][:3])
    ran = []
    for index, layer in enumerate(model.backbone.network.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    features = model.frozen_features(torch.randn(1, 16_000))
    assert ran == [0, 1]
    model(features)
    assert ran == [0, 1, 2]
