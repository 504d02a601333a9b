"""The objective of pre-training against plain, slow versions of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import FAMILIES, LAYERS, save_network, without_dropout
from support.messages import raises
from transformers import Data2VecAudioModel

from m2v_finetune.audio.decode import AudioInfo
from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.backbones import init_backbone, load_backbone
from m2v_finetune.config import ObjectiveConfig
from m2v_finetune.data.checking import CheckedTrack
from m2v_finetune.data.loader import TrainingWindows
from m2v_finetune.data.manifest import Track
from m2v_finetune.pretraining.data2vec.model import Data2vecModel, window_losses
from m2v_finetune.pretraining.data2vec.teacher import ema_decay, instance_normalize, outputs_of
from m2v_finetune.pretraining.masking import span_mask
from m2v_finetune.pretraining.windows import MaskedWindows

SETTINGS = {
    "model_type": "data2vec-audio",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 12],
    "conv_kernel": [40, 16],
    "conv_stride": [20, 16],
    "num_conv_pos_embeddings": 2,
    "conv_pos_kernel_size": 5,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.05,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
}
SECONDS = 0.5


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    path = tmp_path_factory.mktemp("architecture") / "config.json"
    path.write_text(json.dumps(SETTINGS))
    return path


def build(architecture, *, seed=0, **settings):
    torch.manual_seed(seed)
    backbone = init_backbone(architecture, licence="")
    # As after some training: with layers that differ more than at random.
    with torch.no_grad():
        for parameter in backbone.network.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = ObjectiveConfig(**{"num_target_layers": 2, **settings})
    return Data2vecModel(backbone, config, window_seconds=SECONDS).train()


def draw_batch(model, size=3, seed=0):
    generator = np.random.default_rng(seed)
    frames = model.backbone.num_frames(model.window_samples)
    masks = [
        span_mask(frames, probability=0.65, span_frames=10, generator=generator)
        for _ in range(size)
    ]
    waveforms = 0.1 * generator.standard_normal((size, model.window_samples)) + 0.01
    return torch.from_numpy(waveforms).float(), torch.from_numpy(np.stack(masks))


def slow_blocks(network, input_values):
    """What all feed-forward blocks give, by the layers' own modules, one window after the other."""
    windows = []
    for window in input_values:
        features = network.feature_extractor(window[None]).transpose(1, 2)
        state = network.feature_projection(features)[0]
        encoder = network.encoder
        state = encoder.layer_norm(state + encoder.pos_conv_embed(state))
        outputs = []
        for layer in encoder.layers:
            middle = layer.layer_norm(state + layer.attention(state)[0])
            outputs.append(layer.feed_forward(middle))
            state = layer.final_layer_norm(middle + outputs[-1])
        windows.append(torch.stack(outputs)[:, 0])
    return torch.stack(windows, dim=1)


def slow_targets(blocks, num_layers):
    """One window and dimension after the other, in double precision."""
    targets = torch.zeros(blocks.shape[1:], dtype=torch.float64)
    for layer in blocks.double()[len(blocks) - num_layers :]:
        for window, target in zip(layer, targets, strict=True):
            for d in range(window.shape[1]):
                values = window[:, d]
                mean = sum(values) / len(values)
                variance = sum((value - mean) ** 2 for value in values) / len(values)
                target[:, d] += (values - mean) / (variance + 1e-5) ** 0.5
    return targets / num_layers


@pytest.mark.parametrize("averages", ["layers", "all"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_predictions_and_targets(architecture, averages, num_layers):
    model = build(architecture, num_target_layers=num_layers, teacher_averages=averages)
    # A teacher that is not the student.
    with torch.no_grad():
        for parameter in model.teacher.backbone.network.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if averages == "all":
            for parameter in model.teacher.backbone.network.feature_extractor.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    waveforms, masks = draw_batch(model)
    layers = model.teacher.backbone.network.encoder.layers
    with outputs_of([layer.feed_forward for layer in layers]) as blocks:
        predictions, targets = model(waveforms, masks)

    centred = waveforms - waveforms.mean(dim=1, keepdim=True)
    input_values = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-7).sqrt()
    with torch.no_grad():
        theirs = slow_blocks(model.teacher.backbone.network, input_values)
    torch.testing.assert_close(torch.stack(blocks), theirs, rtol=0, atol=1e-6)
    from_ours = slow_targets(torch.stack(blocks), num_layers).float()
    torch.testing.assert_close(targets, from_ours, rtol=0, atol=1e-6)
    # From beginning to end single numbers differ by up to 4e-6 of a deviation of 1: normalising divides the
    # rounding errors of the network by deviations of 0.04 and more.
    errors = targets.double() - slow_targets(theirs, num_layers)
    assert errors.square().mean().sqrt() < 1e-6
    # transformers' own forward pass puts its vector on masked frames.
    student = model.backbone.network
    assert isinstance(student, Data2VecAudioModel)
    last = student(input_values, mask_time_indices=masks).last_hidden_state
    torch.testing.assert_close(predictions, model.head(last), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*FAMILIES, "hubert, pre-norm", "conformer, rotary positions"])
def test_every_family_is_pretrained(name, tmp_path):
    """Predictions and targets by transformers' own forward pass; then a step, and what it made."""
    reference = save_network(name, tmp_path / "start", **without_dropout())
    backbone = load_backbone(tmp_path / "start", spec_augment=True)
    config = ObjectiveConfig(num_target_layers=2, ema_start=0.5, ema_end=0.5)
    model = Data2vecModel(backbone, config, window_seconds=SECONDS).train()
    waveforms, masks = draw_batch(model)
    input_values = backbone.prepare(waveforms)
    outputs = model(waveforms, masks)

    last_blocks = [
        module
        for path, module in reference.named_modules()
        if path.endswith(".ffn2" if "conformer" in name else ".feed_forward")
    ]
    assert len(last_blocks) == LAYERS
    with torch.no_grad():
        with outputs_of(last_blocks) as blocks:
            reference(input_values)
        last = reference(input_values, mask_time_indices=masks).last_hidden_state
        torch.testing.assert_close(outputs[0], model.head(last), rtol=0, atol=1e-5)
    errors = outputs[1].double() - slow_targets(torch.stack(blocks), 2)
    assert errors.square().mean().sqrt() < 1e-5

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.loss(outputs, masks).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    model.end_step(0)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} - {"_sums"}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    # A bias of keys moves all weights of attention alike: its gradient is rounding.
    of_keys = {n for n in before if n.endswith(("k_proj.bias", "linear_k.bias"))}
    assert trainable - of_keys == {n for n in changed - of_keys if not n.startswith("teacher.")}
    # The teacher has followed; no state depends on the positional convolutions of conformers.
    followed = {n.removeprefix("teacher.") for n in changed - of_keys if n.startswith("teacher.")}
    assert followed == {n for n in trainable - of_keys if n.startswith("backbone.")}
    assert any("pos_conv_embed" in n for n in changed) is ("conformer" not in name)

    backbone.save_pretrained(tmp_path / "made")
    made = type(reference).from_pretrained(tmp_path / "made").eval()
    with torch.no_grad():
        last = made(input_values).last_hidden_state
        torch.testing.assert_close(backbone.eval()(input_values)[-1], last, rtol=0, atol=1e-5)


def test_the_loss_and_its_equal_windows(architecture):
    model = build(architecture)
    waveforms, masks = draw_batch(model, size=4)
    masks[0, 5:] = False
    masks[0, 4] = True
    outputs = model(waveforms, masks)
    of_windows = []
    for prediction, target, mask in zip(*outputs.detach(), masks, strict=True):
        errors = [
            float(((prediction[t] - target[t]) ** 2).mean()) for t in range(len(mask)) if mask[t]
        ]
        of_windows.append(sum(errors) / len(errors))
    assert model.loss(outputs, masks).item() == pytest.approx(sum(of_windows) / 4, abs=1e-6)
    halves = [
        model.loss(model(waveforms[i : i + 2], masks[i : i + 2]), masks[i : i + 2]) for i in (0, 2)
    ]
    assert (sum(halves) / 2).item() == pytest.approx(sum(of_windows) / 4, abs=1e-6)
    assert window_losses(outputs, masks).tolist() == pytest.approx(of_windows, abs=1e-6)


def test_gradients_reach_the_student_alone(architecture):
    model = build(architecture)
    waveforms, masks = draw_batch(model)
    model.loss(model(waveforms, masks), masks).backward()
    trainable = {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert {name.split(".")[0] for name in trainable} == {"backbone", "head"}
    expected = {n for n, p in model.named_parameters() if p.requires_grad}
    # A bias of keys moves all weights of attention alike, so that it changes nothing.
    assert {name for name in expected - trainable if "k_proj.bias" not in name} == set()


def test_a_conv_encoder_that_is_to_stay_gets_no_gradient(architecture):
    model = build(architecture, train_conv_encoder=False)
    waveforms, masks = draw_batch(model)
    model.loss(model(waveforms, masks), masks).backward()
    trainable = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any("feature_extractor" in name for name in trainable)
    assert any("feature_projection" in name for name in trainable)


def test_unmasked_music_reaches_the_teacher_and_masked_music_the_student(architecture):
    model = build(architecture)
    waveforms, masks = draw_batch(model, size=1)
    nothing = torch.zeros_like(masks)
    everything = torch.ones_like(masks)
    unmasked, hidden, part = (model(waveforms, m).detach() for m in (nothing, everything, masks))
    assert torch.equal(unmasked[1], part[1])
    assert not torch.allclose(unmasked[0], part[0], atol=1e-3)
    # Where all is masked, the student can tell frames apart by their distance to the borders alone.
    middle = hidden[0][0, 8:-8]
    torch.testing.assert_close(middle, middle[:1].expand_as(middle), rtol=0, atol=1e-5)


def test_the_teacher_stays_in_evaluation_mode(architecture, tmp_path):
    settings = {**SETTINGS, "hidden_dropout": 0.5, "feat_proj_dropout": 0.5}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    model = build(path)
    waveforms, masks = draw_batch(model)
    (one, a), (two, b) = model(waveforms, masks), model(waveforms, masks)
    assert torch.equal(a, b)
    assert not torch.equal(one, two)
    assert model.training
    assert model.backbone.training
    assert not model.teacher.training
    assert not any(module.training for module in model.teacher.modules())


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.9), (1, 0.91), (5, 0.95), (9, 0.99), (10, 1.0), (1000, 1.0)]
)
def test_the_decay_at_given_steps(step, decay):
    assert ema_decay(step, start=0.9, end=1.0, ramp_steps=10) == pytest.approx(decay, abs=1e-12)


@pytest.mark.parametrize("averages", ["layers", "all"])
def test_the_teacher_is_updated(architecture, averages):
    model = build(
        architecture, ema_start=0.5, ema_end=0.9, ema_ramp_steps=2, teacher_averages=averages
    )
    teacher, student = model.teacher.backbone.network, model.backbone.network
    own = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    assert len(own) > 30
    batch = draw_batch(model)
    for step, decay in enumerate((0.5, 0.7, 0.9, 0.9)):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.loss(model(*batch), batch[1])
        model.end_step(step)
        for name, its in student.named_parameters():
            is_averaged = averages == "all" or ".layers." in name.replace(
                "pos_conv_embed.layers", ""
            )
            is_averaged |= name.startswith("encoder.layer_norm")
            own[name] = (
                decay * own[name] + (1 - decay) * its.detach()
                if is_averaged
                else its.detach().clone()
            )
        for name, parameter in teacher.named_parameters():
            torch.testing.assert_close(parameter.detach(), own[name], rtol=1e-6, atol=1e-6)


def test_masks_are_spans_and_cover_about_half():
    shares = []
    for seed in range(300):
        mask = span_mask(
            249, probability=0.65, span_frames=10, generator=np.random.default_rng(seed)
        )
        # The same draws, one span after the other.
        generator = np.random.default_rng(seed)
        count = int(0.65 * 249 / 10 + generator.random())
        slow = np.zeros(249, dtype=bool)
        for start in generator.choice(240, size=count, replace=False):
            for frame in range(start, start + 10):
                slow[frame] = True
        assert np.array_equal(mask, slow)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        assert ((edges[1::2] - edges[::2]) >= 10).all()
        shares.append(mask.mean())
    # 1 - (1 - 16.185 / 240) ** 10 = 0.503, less near the borders.
    assert np.mean(shares) == pytest.approx(0.49, abs=0.01)


def test_masks_differ_by_epoch_and_window_and_come_again():
    track = Track(id="a", path=Path("a.wav"), split=None, columns={}, origin="", folder=Path())
    info = AudioInfo(sample_rate=16_000, num_frames=80_000, num_channels=1)
    windows = MaskedWindows(
        windows=TrainingWindows(
            tracks=[CheckedTrack(track=track, audio=info)],
            example=lambda checked, window, augment: (np.zeros(16_000, dtype=np.float32),),
            grid=FrameGrid(sample_rate=16_000, stride_samples=320, receptive_field_samples=400),
            window_samples=16_000,
            windows_per_track=2,
            augmentation=None,
            seed=0,
        ),
        mask_probability=0.65,
        mask_span_frames=10,
    )
    masks = {location: windows[location][1] for location in ((0, 0), (0, 1), (1, 0))}
    assert len({tuple(mask.tolist()) for mask in masks.values()}) == 3
    for location, mask in masks.items():
        _, again, counted = windows[location]
        assert torch.equal(again, mask)
        assert torch.equal(counted, mask)


def test_a_short_window_still_has_a_span():
    mask = span_mask(11, probability=0.01, span_frames=10, generator=np.random.default_rng(0))
    assert mask.sum() == 10


def test_instance_normalization_leaves_constants_at_zero():
    states = torch.randn(2, 50, 3)
    states[:, :, 1] = 7.0
    normalized = instance_normalize(states)
    assert torch.equal(normalized[:, :, 1], torch.zeros(2, 50))
    assert normalized[:, :, 0].var(dim=1, correction=0).tolist() == pytest.approx([1, 1], abs=1e-3)


def test_collapse_stops_and_states_the_numbers(architecture):
    model = build(architecture, watch_after_steps=2)
    with torch.no_grad():  # the head says the same of every frame
        model.head.weight.zero_()
    waveforms, masks = draw_batch(model)
    for step in range(3):
        model.start_step(1)
        model.loss(model(waveforms, masks), masks)
        model.end_step(step)
        metrics = {name: float(value) for name, value in model.pop_metrics().items()}
        assert metrics["prediction_variance"] < 1e-9
        assert metrics["target_variance"] > 0.1
        if step < 2:
            model.check_collapse(metrics, num_updates=step + 1)
    with raises(
        "pretraining-collapsed", "after 3 steps", "variance of predictions ", "at least 0.0001"
    ):
        model.check_collapse(metrics, num_updates=3)
    lost = {"target_variance": float("nan"), "prediction_variance": 1.0}
    with raises("pretraining-collapsed", "variance of targets nan"):
        model.check_collapse(lost, num_updates=3)


def test_what_is_logged_is_the_variance_over_masked_frames(architecture):
    model = build(architecture)
    expected = []
    for step, seed in enumerate((1, 2)):
        waveforms, masks = draw_batch(model, seed=seed)
        outputs = model(waveforms, masks)
        model.loss(
            2 * outputs, masks
        )  # of a step that is broken off, and taken again window by window
        model.start_step(1)
        for one in range(len(masks)):
            model.loss(outputs[:, one : one + 1], masks[one : one + 1])
        model.end_step(step)
        expected += [
            [one[mask].var(dim=0, correction=0).mean() for one in (target, prediction)]
            for prediction, target, mask in zip(*outputs.detach(), masks, strict=True)
        ]
    found = model.pop_metrics()
    variances = [found[name] for name in ("target_variance", "prediction_variance")]
    for value, slow in zip(variances, torch.tensor(expected).mean(dim=0), strict=True):
        assert float(value) == pytest.approx(float(slow), rel=1e-5)
    model.eval()
    model.loss(model(waveforms, masks), masks)
    assert all(torch.isnan(value) for value in model.pop_metrics().values())


def test_a_saved_backbone_loads_to_equal_states(architecture, tmp_path):
    model = build(architecture)
    model.backbone.save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path), spec_augment=True)
    waveforms, _ = draw_batch(model)
    model.backbone.eval()
    with torch.no_grad():
        pairs = zip(model.backbone(waveforms), loaded(waveforms), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert torch.equal(loaded.network.masked_spec_embed, model.backbone.network.masked_spec_embed)
    assert (loaded.sample_rate, loaded.normalize) == (16000, True)
    theirs = Data2VecAudioModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        last = theirs(waveforms).last_hidden_state
        torch.testing.assert_close(last, model.backbone(waveforms)[-1], rtol=0, atol=1e-5)


def test_what_cannot_be_pretrained_is_refused(architecture, tmp_path):
    backbone = init_backbone(architecture, licence="")
    with raises("num-target-layers-out-of-range", "num_target_layers is 8", "has 3 "):
        Data2vecModel(backbone, ObjectiveConfig(), window_seconds=1)
    with raises("window-too-short", "9 frames", "spans of 10"):
        Data2vecModel(backbone, ObjectiveConfig(num_target_layers=1), window_seconds=0.2)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SETTINGS, "mask_time_prob": 0.0}))
    with raises("spec-augment-without-masks", "mask_time_prob"):
        init_backbone(path, licence="")
    with raises("architecture-missing", tmp_path / "missing"):
        init_backbone(tmp_path / "missing", licence="")
