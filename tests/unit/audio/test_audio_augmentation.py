"""Augmentation: determinism, label safety, and what a configuration may not say."""

import pickle
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import soundfile

from m2v_finetune.audio.augmentation import TRANSFORMS, Effect, build_augmentation
from m2v_finetune.errors import AudioError, UserError

SAMPLE_RATE = 16000
ALL_EFFECTS = frozenset(Effect)


@pytest.fixture(scope="module")
def samples():
    generator = np.random.default_rng(0)
    return generator.normal(scale=0.1, size=SAMPLE_RATE).astype(np.float32)


@pytest.fixture(scope="module")
def impulse_responses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("impulse_responses")
    generator = np.random.default_rng(1)
    for name in ("a", "b"):
        decay = np.exp(-np.arange(2000) / 300) * generator.normal(size=2000)
        soundfile.write(folder / f"{name}.wav", decay, SAMPLE_RATE)
    return folder


def build(*transforms, allowed_effects=ALL_EFFECTS, task="tagging"):
    return build_augmentation(
        transforms, sample_rate=SAMPLE_RATE, allowed_effects=allowed_effects, task=task
    )


def settings_of(name, impulse_responses):
    settings = {"name": name, "p": 1.0}
    if name == "impulse_response":
        settings["ir_path"] = str(impulse_responses)
    return settings


def test_every_transform_keeps_the_form_and_depends_on_the_generator_alone(
    samples, impulse_responses
):
    visited = 0
    for name in TRANSFORMS:
        augmentation = build(settings_of(name, impulse_responses))
        original = samples.copy()
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        first = augmentation(samples, generator=np.random.default_rng(3))
        random.seed(8)
        np.random.seed(8)  # noqa: NPY002
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        second = augmentation(samples, generator=np.random.default_rng(3))

        np.testing.assert_array_equal(first, second, err_msg=name)
        assert random.getstate() == python_state, name
        np.testing.assert_equal(np.random.get_state(), numpy_state, err_msg=name)  # noqa: NPY002
        np.testing.assert_array_equal(samples, original, err_msg=name)
        assert not np.array_equal(first, samples), name
        assert first.shape == samples.shape, name
        assert first.dtype == np.float32, name
        assert np.isfinite(first).all(), name
        silence = augmentation(np.zeros_like(samples), generator=np.random.default_rng(3))
        assert np.isfinite(silence).all(), name
        if name != "polarity_inversion":
            other = augmentation(samples, generator=np.random.default_rng(4))
            assert not np.array_equal(first, other), name
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LRU cache.*")
            copied = pickle.loads(pickle.dumps(augmentation))
        if name != "impulse_response":
            again = copied(samples, generator=np.random.default_rng(3))
            np.testing.assert_array_equal(first, again, err_msg=name)
        visited += 1
    assert visited == len(TRANSFORMS) == 20


def test_states_are_restored_when_a_transform_fails(samples):
    augmentation = build({"name": "low_pass", "p": 1.0})
    state = random.getstate()
    with pytest.raises(AssertionError):
        augmentation(samples.astype(np.int16), generator=np.random.default_rng(0))
    assert random.getstate() == state


def test_transforms_apply_in_order_and_with_their_parameters(samples):
    quieter = {"name": "gain", "p": 1.0, "min_gain_db": -20, "max_gain_db": -20}
    augmented = build(quieter, {"name": "polarity_inversion", "p": 1})(
        samples, generator=np.random.default_rng(0)
    )
    np.testing.assert_allclose(augmented, -0.1 * samples, rtol=1e-5)


def test_probability_is_kept(samples):
    augmentation = build({"name": "polarity_inversion", "p": 0.3})
    generator = np.random.default_rng(0)
    short = samples[:10]
    count = sum(
        bool((augmentation(short, generator=generator) == -short).all()) for _ in range(1000)
    )
    assert 250 < count < 350


def test_no_transforms_is_none():
    assert build() is None


def test_effects_that_labels_do_not_survive_are_refused():
    allowed = frozenset({Effect.LEVEL, Effect.TIMBRE, Effect.NOISE, Effect.TIME})
    with pytest.raises(UserError) as caught:
        build({"name": "pitch_shift"}, allowed_effects=allowed, task="key")
    message = str(caught.value)
    assert "pitch_shift moves pitch, which the labels of the task 'key' depend on" in message
    assert "time_stretch" in message
    assert "time_mask" not in message
    assert build({"name": "time_stretch"}, allowed_effects=allowed, task="key") is not None
    assert build({"name": "polarity_inversion"}, allowed_effects=frozenset()) is not None


def test_effects_are_true_of_the_sound(samples):
    """A transform without LEVEL, TIMBRE, NOISE or SILENCE keeps the sorted magnitudes."""
    for name, (_, effects) in TRANSFORMS.items():
        if effects <= {Effect.TIME} and name != "time_stretch":
            settings = {"name": name, "p": 1.0} | ({"fade_duration": 0.0} if effects else {})
            augmented = build(settings)(samples, generator=np.random.default_rng(0))
            np.testing.assert_array_equal(np.sort(np.abs(augmented)), np.sort(np.abs(samples)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "gian"}, ["'gian'", "gain_transition", "polarity_inversion"]),
        ({"p": 0.5}, ["unknown transform None", "gain"]),
        ({"name": ["gain"]}, ["unknown transform ['gain']"]),
        ({"name": "gain", "min_gain": 3}, ["'min_gain'", "min_gain_db (default -12.0)"]),
        ({"name": "gain", "p": 1.5}, ["p=1.5", "from 0 to 1"]),
        ({"name": "gain", "p": "often"}, ["p must be a number", "'often'"]),
        ({"name": "gain", "p": True}, ["p must be a number"]),
        ({"name": "gain", "min_gain_db": 20}, ["min_gain_db=20 is above max_gain_db=12.0"]),
        ({"name": "shift", "rollover": 1}, ["rollover must be true or false"]),
        ({"name": "shift", "shift_unit": "bars"}, ["shift_unit", "'bars'"]),
        ({"name": "low_pass", "max_cutoff_freq": 9000}, ["max_cutoff_freq=9000", "8000 Hz"]),
        ({"name": "low_pass", "min_rolloff": 7}, ["low_pass refuses min_rolloff=7", "multiple"]),
        ({"name": "clipping_distortion", "max_percentile_threshold": 200}, ["refuses"]),
        ({"name": "time_stretch", "leave_length_unchanged": False}, ["no parameter"]),
        ({"name": "impulse_response"}, ["needs ir_path"]),
        ({"name": "impulse_response", "ir_path": "/nowhere"}, ["No impulse response files"]),
    ],
)
def test_bad_settings_are_one_clear_message(settings, words):
    with pytest.raises(UserError) as caught:
        build(settings)
    for word in ["augmentation: ", *words]:
        assert word in str(caught.value)


def test_a_damaged_impulse_response_is_named(impulse_responses, tmp_path):
    (tmp_path / "good.wav").write_bytes((impulse_responses / "a.wav").read_bytes())
    (tmp_path / "bad.wav").write_bytes(b"")
    with pytest.raises(AudioError, match=r"bad\.wav: empty file"):
        build({"name": "impulse_response", "ir_path": str(tmp_path)})


def test_importing_the_module_does_not_import_audiomentations():
    code = "import sys, m2v_finetune.audio.augmentation; sys.exit('audiomentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
