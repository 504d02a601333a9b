"""Heads that read frames: logits of each, and stems by masks."""

import numpy as np
import pytest
import scipy.signal
import torch
from support.frames import GRID
from support.messages import fails, raises

from m2v_finetune.config import HeadConfig
from m2v_finetune.heads import FrameHead, MaskHead
from m2v_finetune.tasks.beats import BeatTracking
from m2v_finetune.tasks.tagging import Tagging


def mask_head(*, seed=0, num_stems=4, channels=2, sample_rate=8000, n_fft=256, **settings):
    torch.manual_seed(seed)
    return MaskHead(
        input_size=6,
        num_stems=num_stems,
        grid=GRID,
        sample_rate=sample_rate,
        channels=channels,
        n_fft=n_fft,
        hop_samples=settings.pop("hop_samples", n_fft // 4),
        hidden_size=settings.pop("hidden_size", 16),
        **settings,
    ).eval()


# -- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sizes"), [("mlp", [32, 3]), ("linear", [3])])
def test_every_frame_has_logits_of_its_own(kind, sizes):
    head = FrameHead(input_size=6, num_outputs=3, kind=kind, hidden_size=32).eval()
    features = torch.randn(2, 9, 6)
    logits = head(features)
    assert logits.shape == (2, 9, 3)
    torch.testing.assert_close(head(features[:, 4:5]), logits[:, 4:5])
    linears = [m for m in head.layers if isinstance(m, torch.nn.Linear)]
    assert [m.out_features for m in linears] == sizes


def test_dropout_is_where_it_is_documented():
    head = FrameHead(input_size=6, num_outputs=3, kind="mlp", dropout=0.3)
    assert [m.p for m in head.layers if isinstance(m, torch.nn.Dropout)] == [0.3, 0.3]


@pytest.mark.parametrize(
    "task",
    [Tagging(labels=("fast", "slow"), label_column="tags"), BeatTracking(label_column="beats")],
    ids=["clips", "frames"],
)
def test_the_size_of_a_hidden_layer_that_there_is_not_is_refused(task):
    for kind, sizes in (("mlp", [7, task.num_outputs]), ("linear", [task.num_outputs])):
        config = HeadConfig(kind=kind, **({"hidden_size": 7} if kind == "mlp" else {}))
        head = task.build_head(config, hidden_size=6, grid=GRID)
        found = [one.out_features for one in head.layers if isinstance(one, torch.nn.Linear)]
        assert found == sizes
    with raises("head-unsupported-setting", "7", "linear", "mlp"):
        task.build_head(HeadConfig(hidden_size=7), hidden_size=6, grid=GRID)


def test_hidden_states_pass_through_as_they_come():
    states = [torch.randn(2, 9, 6) for _ in range(3)]
    taken = []

    def generate():
        for state in states:
            taken.append(state)
            yield state

    for head in (FrameHead(input_size=6, num_outputs=3), mask_head()):
        taken.clear()
        passed = head.pre_pool(generate())
        assert next(passed) is states[0]
        assert len(taken) == 1, "one at a time"
        assert [state is expected for state, expected in zip(passed, states[1:], strict=True)]


def test_an_unknown_kind_is_an_error():
    with fails(ValueError, "'conv'"):
        FrameHead(input_size=6, num_outputs=3, kind="conv")


# -- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 50, 127, 4096, 5000, 5001])
def test_stems_sum_to_the_mixture_for_any_length(num_samples):
    head = mask_head()
    mixture = torch.rand(3, 2, num_samples) * 2 - 1
    stems = head(torch.randn(3, 12, 6), mixture)
    assert stems.shape == (3, 4, 2, num_samples)
    torch.testing.assert_close(stems.sum(dim=1), mixture, rtol=0, atol=1e-5)
    if num_samples > 1000:
        shares = stems.square().sum(dim=(2, 3)) / mixture.square().sum(dim=(1, 2))[:, None]
        assert (shares > 0.001).all(), "all stems have something"


def test_published_sizes():
    head = MaskHead(input_size=6, num_stems=4, grid=GRID, sample_rate=44100).eval()
    mixture = torch.rand(1, 2, 44100) * 2 - 1
    stems = head(torch.randn(1, 49, 6), mixture)
    torch.testing.assert_close(stems.sum(dim=1), mixture, rtol=0, atol=1e-5)


def sdr(reference, estimate):
    return 10 * np.log10((reference**2).sum() / ((reference - estimate) ** 2).sum())


def test_oracle_masks_reach_the_oracles_sdr(record_property):
    """The oracle is computed by scipy: ideal ratio masks on its own spectrogram."""
    generator = np.random.default_rng(0)
    n_fft, hop, num_samples = 512, 128, 20_000
    seconds = np.arange(num_samples) / 8000
    tone = np.sin(2 * np.pi * (300 + 50 * seconds) * seconds)
    noise = generator.normal(scale=0.3, size=num_samples) * (seconds % 0.5 < 0.1)
    stems = np.stack([[tone, 0.5 * tone], [noise, noise]])
    mixture = stems.sum(axis=0)
    window = scipy.signal.get_window("hann", n_fft)
    layout = {"window": window, "nperseg": n_fft, "noverlap": n_fft - hop}
    pad = {"boundary": "zeros", "padded": True}
    spectra = scipy.signal.stft(stems, **layout, **pad)[2]
    of_mixture = scipy.signal.stft(mixture, **layout, **pad)[2]
    masks = np.abs(spectra) ** 2 / (np.abs(spectra) ** 2).sum(axis=0).clip(1e-12)
    oracle = scipy.signal.istft(masks * of_mixture, **layout)[1][..., :num_samples]

    head = mask_head(num_stems=2, n_fft=n_fft)
    columns = num_samples // hop + 1
    separated = head.apply_masks(
        torch.tensor(mixture, dtype=torch.float32)[None],
        torch.tensor(masks[..., :columns], dtype=torch.float32)[None],
    )
    assert separated.shape == (1, 2, 2, num_samples)
    for stem, estimate, expected in zip(stems, separated[0].numpy(), oracle, strict=True):
        measured = sdr(stem, estimate)
        assert measured == pytest.approx(sdr(stem, expected), abs=0.01)
        assert measured > sdr(stem, mixture) + 10
    record_property("SDR of an oracle mask", f"{measured:.2f} dB")


def test_gradients_reach_the_features_and_every_parameter():
    head = mask_head().train()
    features = torch.randn(2, 12, 6, requires_grad=True)
    mixture = torch.rand(2, 2, 2000) * 2 - 1
    head(features, mixture)[:, 0].square().mean().backward()
    assert features.grad is not None
    # 2000 samples at 8 kHz last 0.25 s: the frames up to there are all used.
    assert (features.grad.abs().sum(dim=-1)[:, :12] > 0).all()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_silence_has_finite_gradients():
    head = mask_head().train()
    features = torch.randn(1, 12, 6, requires_grad=True)
    mixture = torch.zeros(1, 2, 2000, requires_grad=True)
    head(features, mixture).square().mean().backward()
    assert features.grad is not None
    assert mixture.grad is not None
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(mixture.grad).all()


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_features_are_interpolated_at_the_exact_times_of_the_spectrogram(sample_rate):
    head = mask_head(sample_rate=sample_rate)
    times = GRID.times(49)
    # Features that are linear in time interpolate to the time itself.
    features = torch.tensor(times, dtype=torch.float32)[None, :, None].expand(1, 49, 6)
    columns = sample_rate // 64 + 1
    found = head.at_columns(features, columns)
    expected = np.clip(np.arange(columns) * 64 / sample_rate, times[0], times[-1])
    assert found.shape == (1, columns, 6)
    np.testing.assert_allclose(found[0, :, 0].numpy(), expected, atol=1e-5)


def test_one_frame_is_enough():
    head = mask_head()
    features = torch.randn(1, 1, 6)
    torch.testing.assert_close(head.at_columns(features, 3), features.expand(1, 3, 6))


def test_stems_do_not_depend_on_the_rest_of_the_batch():
    head = mask_head().train()
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    features, mixture = torch.randn(3, 12, 6), torch.rand(3, 2, 2000)
    torch.testing.assert_close(
        head(features, mixture)[1:2], head(features[1:2], mixture[1:2]), rtol=0, atol=1e-5
    )


def test_a_head_learns_to_separate_features_that_differ():
    """Two tones; the features say which stem has the low one."""
    head = mask_head(num_stems=2, channels=1, dropout=0.0).train()
    seconds = torch.arange(2000) / 8000
    low, high = torch.sin(2 * torch.pi * 300 * seconds), torch.sin(2 * torch.pi * 2000 * seconds)
    mixture = (low + high).expand(2, 1, -1)
    reference = torch.stack([torch.stack([low, high]), torch.stack([high, low])])[:, :, None]
    features = torch.stack([torch.ones(12, 6), -torch.ones(12, 6)])
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (head(features, mixture) - reference).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 < reference.square().mean() / 10


def test_the_window_is_not_saved():
    assert "window" not in mask_head().state_dict()


@pytest.mark.parametrize("settings", [{"hop_samples": 65}, {"hop_samples": 0}, {"hidden_size": 15}])
def test_sizes_that_cannot_work_are_errors(settings):
    with fails(ValueError, *(f"{name}={value}" for name, value in settings.items())):
        mask_head(**settings)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_prior_is_what_a_new_head_states(kind):
    torch.manual_seed(0)
    head = FrameHead(input_size=8, num_outputs=3, kind=kind, prior=0.02).eval()
    probabilities = head(0.01 * torch.randn(2, 5, 8)).sigmoid()
    torch.testing.assert_close(
        probabilities, torch.full_like(probabilities, 0.02), atol=0.005, rtol=0
    )
