"""The objective of MERT against plain, slow versions of it."""

import json
import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.messages import raises

from m2v_finetune.audio.frames import FrameGrid
from m2v_finetune.backbones import init_backbone
from m2v_finetune.config import MaskedPredictionConfig
from m2v_finetune.pretraining.masked_prediction.cqt import (
    NUM_BINS,
    Cqt,
    cqt_frequencies,
    cqt_kernel,
)
from m2v_finetune.pretraining.masked_prediction.model import MaskedPredictionModel
from m2v_finetune.pretraining.masking import span_mask
from m2v_finetune.pretraining.watch import conv_statistics
from m2v_finetune.training.optimization import allocate_optimizer_state

SETTINGS = {
    "model_type": "hubert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 12],
    "conv_kernel": [40, 16],
    "conv_stride": [20, 16],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.05,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "layerdrop": 0.0,
}
SECONDS = 0.5
SMALL = {"log_mel_clusters": 7, "chroma_clusters": 5, "projection_size": 6}


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    path = tmp_path_factory.mktemp("architecture") / "config.json"
    path.write_text(json.dumps(SETTINGS))
    return path


def build(architecture, *, seed=0, **settings):
    torch.manual_seed(seed)
    backbone = init_backbone(architecture, licence="")
    config = MaskedPredictionConfig(**{**SMALL, **settings})
    return MaskedPredictionModel(backbone, config, window_seconds=SECONDS).train()


def draw_batch(model, size=3, seed=0, num_waveforms=1):
    generator = np.random.default_rng(seed)
    sizes = list(model.config.label_sizes().values())
    frames = model.num_frames
    waveforms = 0.3 * generator.standard_normal((size, num_waveforms, model.window_samples))
    labels = np.stack([generator.integers(0, n, (size, frames)) for n in sizes], axis=1)
    masks = [
        span_mask(frames, probability=0.8, span_frames=5, generator=generator, min_spans=2)
        for _ in range(size)
    ]
    return (
        torch.from_numpy(waveforms).float(),
        torch.from_numpy(labels.astype(np.int16)),
        torch.from_numpy(np.stack(masks)),
    )


@lru_cache
def slow_kernels(sample_rate):
    return [cqt_kernel(frequency, sample_rate) for frequency in cqt_frequencies()]


def slow_cqt(samples, centre, sample_rate):
    """One frame: the sum of samples times each kernel, in double precision."""
    magnitudes = []
    for kernel, start in slow_kernels(sample_rate):
        at = centre + start + np.arange(len(kernel))
        inside = (at >= 0) & (at < len(samples))
        magnitudes.append(abs(samples[at[inside]].astype(np.float64) @ kernel[inside]))
    return np.array(magnitudes)


def slow_windows(model, waveforms, labels, masks):
    """Terms of each window, frame after frame, from the network's own modules."""
    network = model.backbone.network
    for of_input, of_window, mask in zip(waveforms, labels, masks, strict=True):
        noisy, clean = of_input[0], of_input[-1]
        centred = noisy - noisy.mean()
        input_values = centred / (centred.square().mean() + 1e-7).sqrt()
        features = network.feature_extractor(input_values[None])
        last = network(input_values[None], mask_time_indices=mask[None]).last_hidden_state[0]
        frames = [t for t in range(len(mask)) if mask[t] and of_window[0, t] >= 0]
        terms = {"feature_penalty": float(features.double().square().mean())}
        for name, of_set in zip(model.heads, of_window.tolist(), strict=True):
            head = model.heads[name]
            losses, right = [], 0
            for t in frames:
                projected = (head.projection.weight @ last[t] + head.projection.bias).double()
                scores = [
                    float(projected @ vector / projected.norm() / vector.norm()) / 0.1
                    for vector in head.embeddings.double()
                ]
                losses.append(math.log(sum(map(math.exp, scores))) - scores[of_set[t]])
                right += scores[of_set[t]] == max(scores)
            shares = [sum(of_set[t] == one for t in frames) / len(frames) for one in set(of_set)]
            terms[f"cross_entropy_{name}"] = sum(losses) / len(frames)
            terms[f"accuracy_{name}"] = right / len(frames)
            terms[f"label_entropy_{name}"] = -sum(p * math.log(p) for p in shares if p)
        head = model.cqt_head.projection
        errors = []
        for t in frames:
            predicted = (head.weight @ last[t] + head.bias).double().numpy()
            target = slow_cqt(clean.numpy(), 320 * t + 170, 16_000)
            errors.append(((predicted - target) ** 2).mean())
        terms["cqt_error"] = sum(errors) / len(frames)
        yield terms


@pytest.mark.parametrize("num_waveforms", [1, 2])
def test_loss_and_terms(architecture, num_waveforms):
    model = build(architecture, mix_probability=0.5 if num_waveforms == 2 else 0)
    assert model.backbone.frame_grid.receptive_field_samples == 340
    batch = draw_batch(model, size=2, num_waveforms=num_waveforms)
    batch[1][1, :, 15:] = -1  # a shorter track
    outputs = model(*batch)
    metrics = model.window_metrics(outputs, batch[-1]).double()
    with torch.no_grad():
        expected = list(slow_windows(model, *batch))
    for found, terms in zip(metrics, expected, strict=True):
        named = dict(zip(model.metric_names, found.tolist(), strict=True))
        assert {name: named[name] for name in terms} == pytest.approx(terms, rel=1e-6, abs=1e-6)
        loss = terms["cross_entropy_log_mel"] + terms["cross_entropy_chroma"]
        loss += 10 * terms["feature_penalty"] + terms["cqt_error"]
        assert named["loss"] == pytest.approx(loss, rel=1e-6)
    assert model.loss(outputs, batch[-1]).item() == pytest.approx(
        metrics[:, 0].mean().item(), rel=1e-6
    )


def test_windows_count_the_same_and_may_be_divided(architecture):
    model = build(architecture)
    waveforms, labels, masks = draw_batch(model, size=4)
    masks[0, 5:] = False
    masks[0, :4] = True
    whole = model.loss(model(waveforms, labels, masks), masks).item()
    parts = [
        model.loss(model(waveforms[i], labels[i], masks[i]), masks[i]).item()
        for i in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    assert (parts[0] + parts[1] + 2 * parts[2]) / 4 == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("sample_rate", [16_000, 24_000])
def test_the_cqt_of_a_window(sample_rate):
    grid = FrameGrid(sample_rate=sample_rate, stride_samples=320, receptive_field_samples=400)
    generator = np.random.default_rng(0)
    times = np.arange(sample_rate // 2) / sample_rate
    samples = 0.1 * generator.standard_normal(len(times)) + np.sin(2 * np.pi * 440 * times)
    cqt = Cqt(grid, len(samples))
    found = cqt(torch.from_numpy(np.stack([samples, samples[::-1].copy()])))
    assert found.shape == (2, grid.num_frames(len(samples)), NUM_BINS)
    assert found.dtype == torch.float64
    for frame in (0, 11, found.shape[1] - 1):
        expected = slow_cqt(samples, 320 * frame + 200, sample_rate)
        error = np.abs(found[0, frame].numpy() - expected).max()
        assert error < 1e-6 * float(found.max())
    single = cqt(torch.from_numpy(samples[None]).float())
    assert (single[0] - found[0]).abs().max() < 1e-6 * float(found.max())
    # The bin of the tone: A4 is 45 semitones above the lowest bin.
    assert int(found[0, 12].argmax()) in (179, 180, 181)
    assert not cqt.state_dict()


@pytest.mark.slow
def test_kernels_are_those_of_librosa():
    wavelet = pytest.importorskip("librosa").filters.wavelet
    for index in (100, 250, 335):
        frequency = cqt_frequencies()[index]
        kernel, start = cqt_kernel(frequency, 16_000)
        assert start == -len(kernel) // 2
        # Of the same length: librosa derives it from the neighbours of a frequency, nnAudio from Q.
        alpha = 16_000 / (frequency * len(kernel))
        [theirs], _ = wavelet(
            freqs=np.array([frequency]),
            sr=16_000,
            alpha=np.array([alpha]),
            pad_fft=False,
            norm=1,
            dtype=np.complex128,
        )
        theirs = theirs[np.abs(theirs) > 0] if len(theirs) != len(kernel) else theirs
        assert len(theirs) == len(kernel)
        error = np.abs(theirs * np.sqrt(len(kernel)) - kernel).max()
        assert error < 1e-6 * np.abs(kernel).max()


def test_a_rate_too_low_for_the_cqt():
    grid = FrameGrid(sample_rate=8000, stride_samples=320, receptive_field_samples=400)
    with raises("cqt-above-nyquist", "8000 Hz", "masked_prediction.cqt_weight"):
        Cqt(grid, 8000)


def test_gradients_reach_all_that_is_trained(architecture):
    model = build(architecture)
    batch = draw_batch(model)
    model.loss(model(*batch), batch[-1]).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in without if "k_proj.bias" not in name} == {"_sums"}
    assert "backbone.network.masked_spec_embed" not in without


def test_new_heads_are_trained_alone_in_the_first_steps(architecture):
    model = build(architecture, freeze_backbone_steps=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batch = draw_batch(model)
    states = [copy_of(model)]
    for number in (1, 2, 3):
        model.start_step(number)
        model.loss(model(*batch), batch[-1]).backward()
        moments = {p: s["exp_avg"].clone() for p, s in optimizer.state.items()}
        allocate_optimizer_state(optimizer)
        # Older moments are as they were, new ones are zero.
        for parameter, state in optimizer.state.items():
            expected = moments.get(parameter, torch.zeros_like(parameter))
            assert torch.equal(state["exp_avg"], expected)
            assert float(state["step"]) == (number - 1 if parameter in moments else 0)
        optimizer.step()
        optimizer.zero_grad()
        states.append(copy_of(model))
    for step, (before, after) in enumerate(pairwise(states), start=1):
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert any(name.startswith("heads.") for name in moved)
        assert any(name.startswith("cqt_head.") for name in moved)
        assert any(name.startswith("backbone.") for name in moved) is (step == 3)


def test_gradient_checkpointing_changes_nothing(architecture):
    found = []
    for checkpointed in (False, True):
        model = build(architecture)
        batch = draw_batch(model)
        model.backbone.gradient_checkpointing = checkpointed
        calls = []
        for layer in model.backbone.network.encoder.layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = model.loss(model(*batch), batch[-1])
        loss.backward()
        # Forward, and once more in the backward pass.
        assert len(calls) == 2 * (1 + checkpointed)
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (loss, gradients), (loss_again, gradients_again) = found
    assert torch.equal(loss, loss_again)
    for name, gradient in gradients.items():
        assert (gradient is None) == (gradients_again[name] is None), name
        assert gradient is None or torch.equal(gradient, gradients_again[name]), name


def test_a_step_in_bfloat16_is_near_one_in_float32(architecture):
    found = []
    for is_half in (False, True):
        model = build(architecture)
        batch = draw_batch(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            outputs = model(*batch)
            loss = model.loss(outputs, batch[-1])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
        optimizer.step()
        after = model.loss(model(*batch), batch[-1])
        found.append((loss.item(), norm.item(), after.item()))
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert found[0] != found[1]  # the products were in bfloat16
    assert found[1] == pytest.approx(found[0], rel=0.02)


def copy_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_rank_and_variance_are_those_of_the_covariance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, 40, generator=generator)
    features[1] = features[1, :1] * torch.arange(1, 7)[:, None]  # one vector, scaled
    features[2] = 5.0  # constant
    for one in (features, 1e-4 * features, features.transpose(1, 2)[:, :, :6].contiguous()):
        found = conv_statistics(one)
        for window, (rank, variance) in zip(one.double(), found.tolist(), strict=True):
            covariance = torch.cov(window, correction=0)
            values = torch.linalg.eigvalsh(covariance)
            expected = values.sum() ** 2 / values.square().sum() if values.any() else 0.0
            assert variance == pytest.approx(float(covariance.trace()) / len(window), rel=1e-5)
            assert rank == pytest.approx(float(expected), rel=1e-4)
    assert conv_statistics(features)[1, 0] == pytest.approx(1.0, abs=1e-5)


def test_the_least_number_of_spans():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        mask = span_mask(100, probability=0.01, span_frames=5, generator=generator, min_spans=2)
        assert 6 <= mask.sum() <= 10
    shares = [
        span_mask(
            249, probability=0.8, span_frames=5, generator=np.random.default_rng(seed), min_spans=2
        ).mean()
        for seed in range(200)
    ]
    # 1 - (1 - 39.84 / 245) ** 5 = 0.588, less near the borders.
    assert np.mean(shares) == pytest.approx(0.585, abs=0.01)


def test_labels_that_are_all_the_same_are_reported(architecture, caplog):
    model = build(architecture, watch_after_steps=1)
    waveforms, labels, masks = draw_batch(model)
    labels[:, 0] = 3
    for step in range(3):
        model.start_step(step + 1)
        model.loss(model(waveforms, labels, masks), masks)
        model.end_step(step)
        metrics = {name: float(value) for name, value in model.pop_metrics().items()}
        assert metrics["label_entropy_log_mel"] == pytest.approx(0, abs=1e-6)
        assert metrics["label_entropy_chroma"] > 1
        model.check_collapse(metrics, num_updates=step + 1)
    assert len(caplog.records) == 1
    assert "0.1" in caplog.text
    assert "chroma" not in caplog.text


@pytest.mark.parametrize(
    ("trains", "penalty", "warns"), [(True, 50.0, True), (True, 2.0, False), (False, 50.0, False)]
)
def test_a_penalty_that_is_most_of_the_loss_is_reported_once(
    architecture, trains, penalty, warns, caplog
):
    config = MaskedPredictionConfig(train_conv_encoder=trains)
    model = MaskedPredictionModel(
        init_backbone(architecture, licence=""), config, window_seconds=1.0
    )
    metrics = dict.fromkeys(model.metric_names, 1.0) | {"feature_penalty": penalty}
    for step in (10, 20):
        model.check_collapse(metrics, num_updates=step)
    assert [one.levelname for one in caplog.records] == ["WARNING"] * warns
    assert ("masked_prediction.train_conv_encoder" in caplog.text) is warns


def test_what_cannot_be_trained_is_refused(architecture):
    backbone = init_backbone(architecture, licence="")
    with raises("window-too-short", "masked_prediction.mask_span_frames"):
        MaskedPredictionModel(backbone, MaskedPredictionConfig(), window_seconds=0.1)
    with raises("window-too-short", "20 spans of 5", "at least 2.04, ", "min_mask_spans"):
        config = MaskedPredictionConfig(min_mask_spans=20)
        MaskedPredictionModel(backbone, config, window_seconds=1.0)
    with raises("settings-conflict", "masked_prediction.codes"):
        MaskedPredictionConfig(log_mel_clusters=0, chroma_clusters=0)
    for settings in ({"chroma_clusters": 1}, {"mix_probability": 1.5}, {"mix_max_seconds": 0.1}):
        [name] = settings
        with raises("settings-range", f"masked_prediction.{name}"):
            MaskedPredictionConfig(**settings)
