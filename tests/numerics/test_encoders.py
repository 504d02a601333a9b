"""What holds for every family of networks: small ones with random weights, beside transformers' own code."""

import copy
import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from small_networks import FAMILIES, HIDDEN, LAYERS, NETWORKS, save_network, without_dropout
from support.messages import raises
from transformers import CONFIG_MAPPING, WavLMConfig, WavLMModel

from m2v_finetune.backbones import build_architecture, load_backbone
from m2v_finetune.backbones.encoders import ENCODERS
from m2v_finetune.config import ObjectiveConfig, TuningConfig
from m2v_finetune.pretraining.data2vec.model import Data2vecModel
from m2v_finetune.tuning import METHODS, apply_tuning

CONV_LAYER_NORM = (
    "data2vec",
    "hubert, conv layer norm",
    "wav2vec2, pre-norm",
    "conformer, None positions",
)
BATCH_NORMS = ("conformer", "hubert, batch norm of positions")


def build(name, folder, *, tuning=None, spec_augment=False, **settings):
    save_network(name, folder, **settings)
    backbone = load_backbone(folder, spec_augment=spec_augment)
    apply_tuning(backbone, tuning or TuningConfig(method="full", train_conv_encoder=True))
    return backbone


def gradients(backbone, x, *, seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - SpecAugment of transformers draws from it
    backbone.zero_grad()
    torch.stack(backbone(x)).square().mean().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*FAMILIES, "hubert, pre-norm", "conformer, rotary positions"])
def test_a_truncated_network_has_the_lower_states(name, tmp_path):
    save_network(name, tmp_path)
    x = torch.randn(2, 4000)
    with torch.no_grad():
        whole = load_backbone(tmp_path)(x)
        for kept in range(LAYERS):
            states = load_backbone(tmp_path, num_layers=kept)(x)
            assert len(states) == kept + 1
            assert all(map(torch.equal, states, whole))


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_drop_never_drops_a_state(name, tmp_path):
    backbone = build(name, tmp_path, **without_dropout(layerdrop=0.9))
    x = torch.randn(1, 4000)
    for ours, expected in zip(backbone.train()(x), backbone.eval()(x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("spec_augment", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_changes_no_gradient(name, spec_augment, tmp_path):
    settings = {"mask_time_prob": 0.5, "mask_time_length": 2} if spec_augment else {}
    backbone = build(name, tmp_path, spec_augment=spec_augment, **settings).train()
    x, found = torch.randn(2, 4000), []
    for checkpointing in (False, True):
        backbone.gradient_checkpointing = checkpointing
        found.append(gradients(backbone, x))
    assert found[0].keys() == {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert ("network.masked_spec_embed" in found[0]) is spec_augment
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_is_close_and_keeps_states_in_float32(name, dtype, tmp_path):
    save_network(name, tmp_path)
    backbone = load_backbone(tmp_path)
    x = torch.randn(2, 8000)
    with torch.no_grad():
        expected = backbone(x)
        with torch.autocast("cpu", dtype):
            states = backbone(x)
    for state, exact in zip(states, expected, strict=True):
        assert state.dtype == torch.float32
        assert (state - exact).norm() / exact.norm() < (0.04 if dtype is torch.bfloat16 else 0.005)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_frames_have_the_vector_of_transformers(name, tmp_path):
    reference = save_network(name, tmp_path)
    backbone = load_backbone(tmp_path, spec_augment=True)
    x = torch.randn(2, 8000)
    masks = torch.rand(2, backbone.num_frames(8000)) < 0.4
    with torch.no_grad():
        expected = reference(x, mask_time_indices=masks).last_hidden_state
        projected = backbone.project(backbone.encode(x))
        masked = torch.where(masks.unsqueeze(-1), backbone.mask_vector, projected)
        *_, last = backbone.iterate_layers(masked)
        torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)
        assert not torch.allclose(backbone(x)[-1], last, atol=1e-2)


@pytest.mark.parametrize("name", FAMILIES)
def test_spec_augment_masks_in_training_mode_alone(name, tmp_path):
    settings = without_dropout(mask_time_prob=0.5, mask_time_length=2)
    x = torch.randn(1, 8000)
    for spec_augment in (False, True):
        backbone = build(name, tmp_path, spec_augment=spec_augment, **settings)
        trained, evaluated = backbone.train()(x)[0], backbone.eval()(x)[0]
        assert torch.allclose(trained, evaluated, atol=1e-6) is not spec_augment
        assert hasattr(backbone.network, "masked_spec_embed") is spec_augment


@pytest.mark.parametrize("name", CONV_LAYER_NORM)
def test_a_frame_sees_the_samples_of_the_grid(name, tmp_path):
    """Frames by the gradient: the samples that one depends on, their centre and the distance to the next."""
    save_network(name, tmp_path)
    backbone = load_backbone(tmp_path)
    grid, num_samples = backbone.frame_grid, 2000
    x = torch.randn(1, num_samples, requires_grad=True)
    features = backbone.network.feature_extractor(x)
    assert features.shape[-1] == grid.num_frames(num_samples) == backbone.num_frames(num_samples)
    centres = []
    for frame in range(features.shape[-1]):
        [gradient] = torch.autograd.grad(features[..., frame].square().sum(), x, retain_graph=True)
        seen = gradient[0].nonzero().flatten()
        assert len(seen) == grid.receptive_field_samples
        centres.append(Fraction(int(seen[0]) + int(seen[-1]), 2 * backbone.sample_rate))
    assert centres[0] == grid.first_centre_seconds == Fraction(399, 32000)
    assert {b - a for a, b in pairwise(centres)} == {1 / backbone.frame_rate}
    assert grid.times(len(centres)).tolist() == [float(centre) for centre in centres]


def test_the_grid_follows_the_convolutions(tmp_path):
    save_network("conformer", tmp_path, conv_kernel=(8, 4), conv_stride=(4, 3), conv_dim=(8, 8))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 24000}))
    grid = load_backbone(tmp_path).frame_grid
    assert (grid.stride_samples, grid.receptive_field_samples) == (12, 8 + 3 * 4)
    assert grid.frame_rate == 2000
    assert grid.first_centre_seconds == Fraction(19, 48000)


@pytest.mark.parametrize(
    "model_type",
    [
        "audio-spectrogram-transformer",
        "clap",
        "data2vec-text",
        "data2vec-vision",
        "encodec",
        "mimi",
        "moshi",
        "seamless_m4t",
        "sew",
        "sew-d",
        "speecht5",
        "unispeech",
        "unispeech-sat",
        "univnet",
        "wav2vec2-bert",
        "wavlm",
        "whisper",
        "conformer",
        "wav2vec2_conformer",
        "WAV2VEC2",
        "",
        None,
        ["wav2vec2"],
    ],
)
def test_families_that_look_alike_are_refused_by_name(model_type, tmp_path):
    settings = {"model_type": model_type}
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        settings = CONFIG_MAPPING[model_type]().to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings, default=str))
    for load in (load_backbone, build_architecture):
        with raises("architecture-unsupported") as caught:
            load(tmp_path)
        message = str(caught.value)
        assert repr(model_type) in message
        assert all(name in message for name in (*ENCODERS, "adding-an-architecture.md"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_size", "wide"),
        ("use_weighted_layer_sum", 3),
        ("num_attention_heads", 0),
        ("conv_dim", [8]),
        ("hidden_act", "none such"),
        ("mask_time_prob", None),
        ("hidden_dropout", 1.5),
        ("attention_dropout", 1.5),
        ("attention_dropout", -0.1),
        ("attention_dropout", math.nan),
        ("layerdrop", 2),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_value_that_is_not_legal_is_refused(name, setting, value, tmp_path):
    save_network(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    for load in (load_backbone, build_architecture):
        with raises("architecture-invalid", path):
            load(tmp_path)


def test_another_network_under_the_name_of_a_family_is_refused_by_its_tensors(tmp_path):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"intermediate_size": 64, "conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 4}
    WavLMModel(WavLMConfig(**small)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "wav2vec2"}))
    with raises("checkpoint-tensors-mismatch", "unexpected encoder.layers.0.attention.gru_rel_pos"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("saved", ["relative", "rotary"])
def test_a_conformer_with_the_wrong_positions_in_its_config_is_refused(saved, tmp_path):
    save_network(f"conformer, {saved} positions", tmp_path)
    path = tmp_path / "config.json"
    for other in {"relative", "rotary", "relative_key", None} - {saved}:
        settings = json.loads(path.read_text()) | {"position_embeddings_type": other}
        path.write_text(json.dumps(settings))
        with raises("checkpoint-tensors-mismatch"):
            load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["data2vec", "wav2vec2", "conformer"])
def test_an_adapter_above_the_layers_is_refused(name, tmp_path):
    """Its convolutions change the last state and its frame rate; without a word they would be left out."""
    save_network(name, tmp_path, add_adapter=True)
    with raises("architecture-setting-unsupported", "add_adapter"):
        load_backbone(tmp_path)


LEFT_ALONE = {
    "adapter_layer.norm",
    "adapter_layer.linear_1",
    "adapter_layer.linear_2",
    "self_attn.linear_pos",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_linear_layer_and_norm_has_a_role(name, tmp_path):
    """So no method leaves one out that nobody has decided to leave out."""
    save_network(name, tmp_path)
    backbone = load_backbone(tmp_path)
    roles = {role: set(names) for role, names in backbone.encoder.roles.items()}
    named = set().union(*roles.values())
    for layer in backbone.layers:
        modules = dict(layer.named_modules())
        linear = {n for n, m in modules.items() if isinstance(m, torch.nn.Linear)} - LEFT_ALONE
        norms = {n for n, m in modules.items() if isinstance(m, torch.nn.LayerNorm)} - LEFT_ALONE
        ends = {n for n in roles["residual_end"] if isinstance(modules[n], torch.nn.Dropout)}
        assert named <= modules.keys()
        assert norms == roles["norm"]
        assert ends == roles["residual_end"]
        others = roles["norm"] | roles["residual_end"] | roles["last_feed_forward"]
        assert linear == named - others


ATTENTION = {"query", "key", "value", "attention_output"}
LINEAR = ATTENTION | {"feed_forward_input", "feed_forward_output"}
NEEDED = {
    "probe": set(),
    "lora": LINEAR,
    "dora": LINEAR,
    "ia3": {"key", "value", "feed_forward_output"},
    "bitfit": LINEAR | {"norm"},
    "layernorm": {"norm"},
    "adapter": {"residual_end", "norm"},
    "ssf": LINEAR | {"norm"},
    "top_layers": set(),
    "full": set(),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_role_that_matches_nothing_is_an_error(name, tmp_path):
    save_network(name, tmp_path)
    backbone = load_backbone(tmp_path, spec_augment=True)
    encoder, before = backbone.encoder, list(backbone.state_dict())
    family = encoder.config_class.model_type
    assert NEEDED.keys() == METHODS.keys()
    for method, roles in NEEDED.items():
        for role in roles:
            for names in ((), (*encoder.roles[role], "no.such")):
                backbone.encoder = replace(encoder, roles={**encoder.roles, role: names})
                with raises("backbone-role-missing", "adding-an-architecture") as caught:
                    apply_tuning(backbone, TuningConfig(method=method))
                message = str(caught.value)
                assert all(word in message for word in (method, f"'{role}'", family, "Layer 0"))
    assert list(backbone.state_dict()) == before
    backbone.encoder = replace(encoder, roles={**encoder.roles, "last_feed_forward": ("no.such",)})
    with raises("backbone-role-missing", "Pre-training", "'last_feed_forward'"):
        Data2vecModel(backbone, ObjectiveConfig(num_target_layers=1), window_seconds=1.0)


def test_a_layer_that_lacks_what_the_others_have_is_named(tmp_path):
    save_network("conformer", tmp_path)
    backbone = load_backbone(tmp_path)
    backbone.layers[2].ffn1.output_dense = torch.nn.Identity()
    del backbone.layers[1].ffn2
    with raises("backbone-role-missing", "Layer 1 ", "no ffn2.intermediate_dense"):
        apply_tuning(backbone, TuningConfig(method="lora"))


@pytest.mark.parametrize("method", [method for method, roles in NEEDED.items() if roles])
def test_a_method_for_layers_that_are_not_there_is_refused(method, tmp_path):
    save_network("hubert", tmp_path)
    with raises("backbone-without-layers", method, "num_layers"):
        apply_tuning(load_backbone(tmp_path, num_layers=0), TuningConfig(method=method))


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_batch_norms_keep_their_statistics(name, tmp_path):
    """So windows do not depend on the others of their batch, and a batch may be divided in any way."""
    backbone = build(name, tmp_path, **without_dropout()).train()
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert norms
    before = copy.deepcopy(backbone.state_dict())
    x = torch.randn(4, 4000)
    together = gradients(backbone, x)
    apart = [gradients(backbone, window[None]) for window in x]
    for parameter, gradient in together.items():
        mean = torch.stack([one[parameter] for one in apart]).mean(dim=0)
        torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(before[n], value) for n, value in backbone.state_dict().items())
    for norm in norms:
        assert norm.weight.grad.any()
    with torch.no_grad():
        for trained, evaluated in zip(backbone(x), backbone.eval()(x), strict=True):
            torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["relative", "rotary"])
def test_positions_serve_training_after_inference(kind, tmp_path):
    """Transformers keeps embeddings of the last length; those of inference mode have no gradient."""
    name = f"conformer, {kind} positions"
    backbone = build(name, tmp_path, max_source_positions=8).train()
    x = torch.randn(1, 8000)  # more frames than positions: they are extended
    expected = gradients(copy.deepcopy(backbone), x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        backbone(x)
    found = gradients(backbone, x)
    for parameter, gradient in expected.items():
        assert torch.equal(found[parameter], gradient), parameter


@pytest.mark.parametrize("kind", ["relative", "rotary"])
def test_positions_are_of_the_device_of_the_state(kind, tmp_path):
    save_network(f"conformer, {kind} positions", tmp_path)
    backbone, state = load_backbone(tmp_path), torch.randn(1, 12, HIDDEN)
    for device in ("cpu", "meta"):
        [positions] = backbone.encoder.layer_inputs(
            backbone.network.to(device), state.to(device)
        ).values()
        assert positions.device.type == device


def test_full_tuning_leaves_alone_what_no_state_depends_on(tmp_path):
    backbone = build("conformer", tmp_path)
    frozen = {name for name, p in backbone.network.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith("encoder.pos_conv_embed.") for name in frozen)
