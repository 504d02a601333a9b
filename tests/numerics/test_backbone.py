"""The backbone against transformers' own code, on small networks with random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import FAMILIES, NETWORKS, save_network
from support.messages import names, raises
from support.models import build_tagger
from transformers import Wav2Vec2FeatureExtractor

from m2v_finetune.backbones import load_backbone


@pytest.mark.parametrize("name", NETWORKS)
def test_states_equal_those_of_transformers(name, tmp_path):
    """All hidden states of a second of noise, and then of less: nothing is kept of another length.

    Transformers computes in float64: in float32 its own rounding takes up to half of the tolerance.
    """
    reference = save_network(name, tmp_path).double()
    reference.config._attn_implementation = "eager"
    backbone = load_backbone(tmp_path)
    for num_samples in (16000, 9000):
        x = torch.randn(2, num_samples)
        with torch.no_grad():
            states = backbone(x)
            output = reference(x.double(), output_hidden_states=True)
        expected = [*output.hidden_states[:-1], output.last_hidden_state]
        assert len(states) == backbone.num_hidden_states == 4
        for ours, theirs in zip(states, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)
            assert theirs.std() > 0.1


def test_windows_are_normalised_as_by_the_checkpoints_preprocessor():
    backbone = load_backbone("random-small")
    x = 0.3 * torch.randn(3, 16000) + 0.1
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, sampling_rate=16000)
    expected = extractor(list(x.numpy()), sampling_rate=16000, return_tensors="pt").input_values
    torch.testing.assert_close(backbone.prepare(x), expected, rtol=0, atol=1e-5)


def test_do_normalize_of_the_preprocessor_is_followed(tmp_path):
    save_network("data2vec", tmp_path)
    x = torch.randn(1, 4000) + 1
    for choice in (True, False):
        content = {"do_normalize": choice, "sampling_rate": 22050}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        backbone = load_backbone(tmp_path)
        assert backbone.sample_rate == 22050
        assert torch.equal(backbone.prepare(x), x) is not choice


@pytest.mark.parametrize(
    ("seconds", "rate", "frames"),
    [(5, 16000, 249), (5, 24000, 374), (30, 16000, 1499), (30, 24000, 2249)],
)
def test_frame_counts(seconds, rate, frames):
    # The counts that were measured on the published architectures.
    assert load_backbone("random-small").num_frames(seconds * rate) == frames


def test_the_frame_count_is_that_of_the_states():
    backbone = load_backbone("random-small")
    for num_samples in (400, 719, 720, 16000, 64000):
        with torch.no_grad():
            assert backbone(torch.randn(1, num_samples))[0].shape[1] == backbone.num_frames(
                num_samples
            )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2}, {"spec_augment": True}], ids=str)
def test_a_saved_backbone_is_the_same_network_here_and_in_transformers(name, settings, tmp_path):
    reference = save_network(name, tmp_path / "first")
    backbone = load_backbone(tmp_path / "first", **settings)
    if settings.get("num_layers") and backbone.encoder.has_final_norm(backbone.network.config):
        with raises("backbone-without-norm", "first 2 layers"):
            backbone.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        return
    backbone.save_pretrained(tmp_path / "saved")
    again = load_backbone(tmp_path / "saved", spec_augment=backbone.spec_augment)
    x = torch.randn(1, 16000)
    with torch.no_grad():
        for ours, theirs in zip(backbone(x), again(x), strict=True):
            assert torch.equal(ours, theirs)
    _, info = type(reference).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_saved_backbone_keeps_its_licence_and_a_card_that_is_there(tmp_path):
    backbone = load_backbone("filterbank-small")
    assert backbone.licence == "cc-by-sa-4.0"
    for card in (None, "---\nlicense: mit\n---\n\nMine.\n"):
        if card is not None:
            (tmp_path / "README.md").write_text(card)
        backbone.save_pretrained(tmp_path)
        assert load_backbone(tmp_path).licence == ("mit" if card else "cc-by-sa-4.0")


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_a_backbone_with_modules_of_tuning_is_not_saved_alone(method, tmp_path):
    model = build_tagger(method=method)
    with raises("backbone-has-modules", "merge_and_unload"):
        model.backbone.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    if method == "lora":
        model.merge_and_unload().backbone.save_pretrained(tmp_path / "saved")
        x = torch.randn(1, 8000)
        with torch.no_grad():
            for ours, theirs in zip(
                model.eval().backbone(x), load_backbone(tmp_path / "saved")(x), strict=True
            ):
                assert torch.equal(ours, theirs)


def test_embeddings_are_without_dropout_and_leave_the_mode(tmp_path):
    x = 0.1 * torch.randn(16000)
    backbone = load_backbone("random-small", spec_augment=True)
    expected = backbone.embed(x, sample_rate=16000, window_seconds=0.5)
    backbone.network.config.hidden_dropout = 0.5
    backbone.train()
    backbone.layers[0].eval()  # frozen, as `TaskModel.train` leaves it
    assert (backbone.embed(x, sample_rate=16000, window_seconds=0.5) == expected).all()
    assert backbone.training
    assert backbone.layers[1].training
    assert not backbone.layers[0].training
    backbone.eval()
    assert (backbone.embed(x, sample_rate=16000, window_seconds=0.5) == expected).all()
    assert not backbone.training


def test_spec_augment_is_off_by_default():
    x = torch.randn(1, 16000)
    for asked, masked in ((False, False), (True, True)):
        backbone = load_backbone("random-small", spec_augment=asked)
        backbone.train()
        for module in backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        backbone.network.config.attention_dropout = 0.0
        for layer in backbone.network.encoder.layers:
            layer.attention.dropout = 0.0
        torch.manual_seed(0)
        differs = not torch.equal(backbone(x)[0], backbone.eval()(x)[0])
        assert differs is masked


def test_a_window_too_short_is_named():
    with raises("window-too-short", "0.01 s gives 0 frames", "data.window_seconds"):
        load_backbone("random-small").check_window(160)
    with raises("window-too-short", "SpecAugment", "spans of 10"):
        load_backbone("random-small", spec_augment=True).check_window(2000)
    load_backbone("random-small").check_window(400)


@pytest.mark.parametrize("spec_augment", [False, True])
def test_the_length_that_is_advised_is_enough(spec_augment):
    backbone = load_backbone("filterbank-small", spec_augment=spec_augment)
    with raises("window-too-short") as caught:
        backbone.check_window(1600)
    advised = float(str(caught.value).split()[-1].rstrip("."))
    assert advised > 0.1
    backbone.check_window(round(advised * backbone.sample_rate))
    with raises("window-too-short"):
        backbone.check_window(round((advised - 0.01) * backbone.sample_rate))


def test_missing_unexpected_and_misshapen_tensors_are_named(tmp_path):
    save_network("hubert", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = tensors.pop("encoder.layers.1.attention.q_proj.bias")
    tensors["encoder.layers.1.attention.query.bias"] = bias
    tensors["encoder.layer_norm.weight"] = torch.ones(7)
    save_file(tensors, tmp_path / "model.safetensors")
    with raises("checkpoint-tensors-mismatch") as caught:
        load_backbone(tmp_path)
    message = str(caught.value)
    assert "missing encoder.layers.1.attention.q_proj.bias" in message
    assert "unexpected encoder.layers.1.attention.query.bias" in message
    assert names(message, "encoder.layer_norm.weight", "(7,)", "(32,)")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_with_a_head_on_top_gives_its_backbone(name, tmp_path):
    """As published: under the prefix of the network, with the weight names of an older PyTorch."""
    reference = save_network(name, tmp_path)
    tensors = {}
    for key, value in load_file(tmp_path / "model.safetensors").items():
        old = key.replace("parametrizations.weight.original0", "weight_g")
        old = old.replace("parametrizations.weight.original1", "weight_v")
        tensors[f"{reference.base_model_prefix}.{old}"] = value
    assert any("weight_g" in key for key in tensors) is (name != "data2vec")
    save_file({**tensors, "lm_head.weight": torch.zeros(3, 32)}, tmp_path / "model.safetensors")
    backbone = load_backbone(tmp_path)
    for key, value in reference.state_dict().items():
        if key != "masked_spec_embed":
            assert torch.equal(backbone.network.state_dict()[key], value)


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with raises(
        "architecture-unsupported", "'bert'", "data2vec-audio, hubert, mert_model, wav2vec2"
    ):
        load_backbone(tmp_path)


def test_a_name_that_is_nothing_is_refused():
    with raises("backbone-unknown", "'mert'", "music2vec-v1", "MERT-v1-330M"):
        load_backbone("mert")


def test_num_layers_out_of_range_is_refused():
    with raises("num-layers-out-of-range", "random-small has 4", "so 5", "0 to 4"):
        load_backbone("random-small", num_layers=5)
    for number in (-1, "2", 2.0, True):
        with raises("settings-range", f"num_layers is {number!r}"):
            load_backbone("random-small", num_layers=number)


def test_the_fingerprint_differs_between_backbones():
    first = load_backbone("random-small")
    assert first.fingerprint() == load_backbone("random-small", spec_augment=True).fingerprint()
    with torch.no_grad():
        first.network.encoder.layers[0].final_layer_norm.bias[0] += 1e-6
    assert first.fingerprint() != load_backbone("random-small").fingerprint()
