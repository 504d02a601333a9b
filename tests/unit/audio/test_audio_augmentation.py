"""Augmentation: determinism, label safety, and what a configuration may not say."""

import doctest
import pickle
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import names, raises

from m2v_finetune.audio import label_transform
from m2v_finetune.audio.augmentation import TRANSFORMS, Effect, build_augmentation
from m2v_finetune.audio.label_transform import IDENTITY, LabelTransform

SAMPLE_RATE = 16000
ALL_EFFECTS = frozenset(Effect)
LABEL_TRANSFORMS = {"shift", "time_stretch", "pitch_shift"}
SHIFT = {"name": "shift", "p": 1.0, "rollover": False}
STRETCH = {"name": "time_stretch", "p": 1.0}
PITCH = {"name": "pitch_shift", "p": 1.0}


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


def build(
    *transforms,
    allowed_effects=ALL_EFFECTS,
    transformed_effects=frozenset(),
    task="tagging",
    sample_rate=SAMPLE_RATE,
):
    return build_augmentation(
        transforms,
        sample_rate=sample_rate,
        allowed_effects=allowed_effects - transformed_effects,
        transformed_effects=transformed_effects,
        task=task,
    )


def settings_of(name, impulse_responses):
    settings = {"name": name, "p": 1.0}
    if name == "impulse_response":
        settings["ir_path"] = str(impulse_responses)
    return settings


@pytest.mark.slow
def test_every_transform_keeps_the_form_and_depends_on_the_generator_alone(
    samples, impulse_responses
):
    visited = 0
    for name in TRANSFORMS:
        augmentation = build(settings_of(name, impulse_responses))
        original = samples.copy()
        random.seed(7)
        np.random.seed(7)  # noqa: NPY002
        first, label_transform = augmentation(samples, generator=np.random.default_rng(3))
        random.seed(8)
        np.random.seed(8)  # noqa: NPY002
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        second, same_transform = augmentation(samples, generator=np.random.default_rng(3))

        np.testing.assert_array_equal(first, second, err_msg=name)
        assert label_transform == same_transform, name
        is_identity = (
            replace(label_transform, source_start_seconds=0.0, source_end_seconds=np.inf)
            == IDENTITY
        )
        assert is_identity is (name not in LABEL_TRANSFORMS), name
        assert random.getstate() == python_state, name
        np.testing.assert_equal(np.random.get_state(), numpy_state, err_msg=name)  # noqa: NPY002
        np.testing.assert_array_equal(samples, original, err_msg=name)
        assert not np.array_equal(first, samples), name
        assert first.shape == samples.shape, name
        assert first.dtype == np.float32, name
        assert np.isfinite(first).all(), name
        silence, _ = augmentation(np.zeros_like(samples), generator=np.random.default_rng(3))
        assert np.isfinite(silence).all(), name
        if name != "polarity_inversion":
            other, _ = augmentation(samples, generator=np.random.default_rng(4))
            assert not np.array_equal(first, other), name
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LRU cache.*")
            copied = pickle.loads(pickle.dumps(augmentation))
        if name != "impulse_response":
            again, _ = copied(samples, generator=np.random.default_rng(3))
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
    augmented, _ = build(quieter, {"name": "polarity_inversion", "p": 1})(
        samples, generator=np.random.default_rng(0)
    )
    np.testing.assert_allclose(augmented, -0.1 * samples, rtol=1e-5)


def test_probability_is_kept(samples):
    augmentation = build({"name": "polarity_inversion", "p": 0.3})
    generator = np.random.default_rng(0)
    short = samples[:10]
    count = sum(
        bool((augmentation(short, generator=generator)[0] == -short).all()) for _ in range(1000)
    )
    assert 250 < count < 350


def test_no_transforms_is_none():
    assert build() is None


def test_effects_that_labels_do_not_survive_are_refused():
    allowed = frozenset({Effect.LEVEL, Effect.TIMBRE, Effect.NOISE, Effect.TIME})
    with raises("transform-changes-labels") as caught:
        build({"name": "pitch_shift"}, allowed_effects=allowed, task="key")
    message = str(caught.value)
    assert names(message, "pitch_shift", "'key'")
    assert "time_stretch" in message
    assert "time_mask" not in message
    assert build({"name": "time_stretch"}, allowed_effects=allowed, task="key") is not None
    assert build({"name": "polarity_inversion"}, allowed_effects=frozenset()) is not None


def test_effects_are_true_of_the_sound(samples):
    """A transform without LEVEL, TIMBRE, NOISE or SILENCE keeps the sorted magnitudes."""
    for name, (_, effects) in TRANSFORMS.items():
        if effects <= {Effect.TIME} and name != "time_stretch":
            settings = {"name": name, "p": 1.0} | ({"fade_duration": 0.0} if effects else {})
            augmented, _ = build(settings)(samples, generator=np.random.default_rng(0))
            np.testing.assert_array_equal(np.sort(np.abs(augmented)), np.sort(np.abs(samples)))


@pytest.mark.parametrize(
    ("settings", "code", "values"),
    [
        (
            {"name": "gian"},
            "transform-unknown",
            ["'gian'", "gain_transition", "polarity_inversion"],
        ),
        ({"p": 0.5}, "transform-unknown", ["None", "gain"]),
        ({"name": ["gain"]}, "transform-unknown", ["['gain']"]),
        (
            {"name": "gain", "min_gain": 3},
            "transform-parameter-unknown",
            ["'min_gain'", "min_gain_db (default -12.0)"],
        ),
        (
            {"name": "gain", "p": 1.5},
            "transform-probability-out-of-range",
            ["p=1.5", "from 0 to 1"],
        ),
        (
            {"name": "gain", "p": "often"},
            "transform-parameter-type",
            ["p must be a number", "'often'"],
        ),
        ({"name": "gain", "p": True}, "transform-parameter-type", ["p must be a number"]),
        (
            {"name": "gain", "min_gain_db": 20},
            "transform-range-reversed",
            ["min_gain_db=20", "max_gain_db=12.0"],
        ),
        (
            {"name": "shift", "rollover": 1},
            "transform-parameter-type",
            ["rollover must be true or false"],
        ),
        ({"name": "shift", "shift_unit": "bars"}, "transform-refused", ["shift_unit", "'bars'"]),
        (
            {"name": "low_pass", "max_cutoff_freq": 9000},
            "transform-frequency-out-of-range",
            ["max_cutoff_freq=9000", "8000 Hz"],
        ),
        (
            {"name": "low_pass", "min_rolloff": 7},
            "transform-refused",
            ["low_pass", "min_rolloff=7", "multiple"],
        ),
        (
            {"name": "clipping_distortion", "max_percentile_threshold": 200},
            "transform-refused",
            ["max_percentile_threshold=200"],
        ),
        (
            {"name": "time_stretch", "leave_length_unchanged": False},
            "transform-parameter-unknown",
            ["'leave_length_unchanged'"],
        ),
        ({"name": "impulse_response"}, "transform-parameter-missing", ["needs ir_path"]),
        (
            {"name": "impulse_response", "ir_path": "/nowhere"},
            "transform-refused",
            ["No impulse response files"],
        ),
    ],
)
def test_bad_settings_are_one_clear_message(settings, code, values):
    with raises(code, "augmentation: ", *values):
        build(settings)


def test_a_damaged_impulse_response_is_named(impulse_responses, tmp_path):
    (tmp_path / "good.wav").write_bytes((impulse_responses / "a.wav").read_bytes())
    (tmp_path / "bad.wav").write_bytes(b"")
    with raises("audio-empty", "bad.wav: "):
        build({"name": "impulse_response", "ir_path": str(tmp_path)})


def test_importing_the_module_does_not_import_audiomentations():
    code = "import sys, m2v_finetune.audio.augmentation; sys.exit('audiomentations' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- where labels have to go ----------------------------------------------------------------------


def test_examples_in_docstrings():
    results = doctest.testmod(label_transform)
    assert (results.attempted, results.failed) == (3, 0)


CLICK_WINDOW_SECONDS = 3.0


def click(time_seconds, *, sample_rate=SAMPLE_RATE):
    samples = np.zeros(round(CLICK_WINDOW_SECONDS * sample_rate), dtype=np.float32)
    samples[round(time_seconds * sample_rate)] = 1.0
    return samples


def click_time(samples, sample_rate=SAMPLE_RATE):
    """The centre of the energy of a click, in seconds."""
    energy = np.square(samples, dtype=np.float64)
    return energy @ np.arange(len(samples)) / energy.sum() / sample_rate


@pytest.mark.parametrize(
    ("transforms", "tolerance_seconds", "sample_rate"),
    [
        ([SHIFT], 1e-6, 16000),
        ([SHIFT | {"shift_unit": "seconds", "min_shift": -2, "max_shift": 2}], 1e-6, 24000),
        ([SHIFT | {"shift_unit": "samples", "min_shift": -30000, "max_shift": 9000}], 1e-6, 16000),
        ([STRETCH], 1e-3, 16000),
        ([STRETCH | {"min_rate": 0.5, "max_rate": 2.0}], 1e-3, 24000),
        ([SHIFT, STRETCH], 1e-3, 16000),
        ([STRETCH, SHIFT], 1e-3, 24000),
        ([STRETCH, SHIFT, STRETCH], 2e-3, 16000),
        ([PITCH], 1e-3, 16000),
        ([SHIFT | {"p": 0.5}, STRETCH | {"p": 0.5}, PITCH], 1e-3, 16000),
    ],
    ids=lambda value: "+".join(v["name"] for v in value) if isinstance(value, list) else str(value),
)
def test_a_click_sounds_where_its_label_goes(transforms, tolerance_seconds, sample_rate):
    transforms = [t | ({"fade_duration": 0.0} if t["name"] == "shift" else {}) for t in transforms]
    augmentation = build(*transforms, transformed_effects=ALL_EFFECTS, sample_rate=sample_rate)
    num_inside = num_lost = 0
    for seed, time in enumerate(np.random.default_rng(0).uniform(0.2, 2.8, size=10)):
        samples = click(time, sample_rate=sample_rate)
        augmented, label_transform = augmentation(samples, generator=np.random.default_rng(seed))
        source = np.array([round(time * sample_rate) / sample_rate])
        goes_to = label_transform.times(source)
        np.testing.assert_allclose(label_transform.sources(goes_to), source, atol=1e-9)
        if label_transform.is_inside(source):
            assert 0 <= goes_to < CLICK_WINDOW_SECONDS
            if (
                0.05 < goes_to < CLICK_WINDOW_SECONDS - 0.05
            ):  # nearer to an edge a stretched click is cut
                assert click_time(augmented, sample_rate) == pytest.approx(
                    float(goes_to[0]), abs=tolerance_seconds
                )
                num_inside += 1
        else:
            assert (augmented**2).sum() < 1e-3
            num_lost += 1
    assert num_inside >= 3
    assert num_lost > 0 or "shift" not in {t["name"] for t in transforms}


def test_what_was_cut_off_is_not_inside_though_its_position_came_back():
    later = SHIFT | {"min_shift": 0.3, "max_shift": 0.3}
    faster = STRETCH | {"min_rate": 1.25, "max_rate": 1.25}
    augmentation = build(later, faster, transformed_effects=ALL_EFFECTS)
    augmented, label_transform = augmentation(click(2.4), generator=np.random.default_rng(0))
    assert not augmented.any()
    assert label_transform.times(np.array([2.4])) == pytest.approx(
        [2.64]
    )  # (2.4 + 0.9) / 1.25, within 3 s
    assert label_transform.is_inside(np.array([0.0, 2.0, 2.2, 2.4])).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_transforms_that_were_not_applied_change_no_label(samples):
    augmentation = build(SHIFT | {"p": 0.0}, STRETCH | {"p": 0.0}, PITCH | {"p": 0.0})
    augmented, label_transform = augmentation(samples, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(augmented, samples)
    assert label_transform == IDENTITY
    # Neither do those of the window before.
    augmentation = build(PITCH | {"p": 0.5}, STRETCH | {"p": 0.5}, transformed_effects=ALL_EFFECTS)
    seen = set()
    for seed in range(12):
        augmented, label_transform = augmentation(samples, generator=np.random.default_rng(seed))
        seen.add((label_transform.semitones != 0, label_transform.rate != 1))
        if (label_transform.semitones, label_transform.rate) == (0, 1):
            np.testing.assert_array_equal(augmented, samples)
    assert len(seen) >= 3


finite = {"allow_nan": False, "allow_infinity": False}


@settings(max_examples=100, deadline=None)
@given(
    rate=st.floats(0.25, 4, **finite),
    offset=st.floats(-9, 9, **finite),
    times=st.lists(st.floats(0, 30, **finite), min_size=1),
)
def test_sources_are_the_inverse_of_times(rate, offset, times):
    label_transform = LabelTransform(rate=rate, offset_seconds=offset)
    there = label_transform.times(np.array(times))
    np.testing.assert_allclose(label_transform.sources(there), times, atol=1e-9)
    assert label_transform.is_inside(np.array(times)).all()


def tone(pitch, sample_rate=SAMPLE_RATE):
    """A second of a MIDI pitch with three overtones."""
    frequency = 440 * 2 ** ((pitch - 69) / 12)
    phase = 2 * np.pi * frequency * np.arange(sample_rate) / sample_rate
    return sum(0.2 / k * np.sin(k * phase) for k in range(1, 5)).astype(np.float32)


def pitch_of(samples, sample_rate=SAMPLE_RATE):
    """The MIDI pitch of the strongest partial, in semitones; the tones' first one is the strongest."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), n=2**18))
    return 69 + 12 * np.log2(spectrum.argmax() * sample_rate / 2**18 / 440)


@pytest.mark.parametrize("semitones", [-12, -5, 1, 7, 12])
def test_a_shifted_tone_has_the_pitch_that_its_label_moves_to(semitones):
    shift = PITCH | {"min_semitones": semitones, "max_semitones": semitones}
    augmentation = build(shift, transformed_effects=frozenset({Effect.PITCH}), task="key")
    augmented, label_transform = augmentation(tone(64), generator=np.random.default_rng(0))
    assert label_transform.semitones == semitones
    assert pitch_of(augmented) == pytest.approx(64 + semitones, abs=0.1)


def test_a_label_that_follows_pitch_has_it_moved_by_whole_semitones():
    wide = PITCH | {"min_semitones": -6, "max_semitones": 6}
    following = build(wide, transformed_effects=frozenset({Effect.PITCH}), task="key")
    free = build(wide)
    drawn = []
    for seed in range(8):
        augmented, label_transform = following(tone(60), generator=np.random.default_rng(seed))
        assert pitch_of(augmented) == pytest.approx(60 + label_transform.semitones, abs=0.1)
        _, unrounded = free(tone(60), generator=np.random.default_rng(seed))
        assert label_transform.semitones == round(unrounded.semitones)
        assert unrounded.semitones % 1
        drawn.append(label_transform.semitones)
    assert all(semitones.is_integer() for semitones in drawn)
    assert len(set(drawn)) > 4
    assert min(drawn) < 0 < max(drawn)


def test_two_shifts_of_pitch_add_up():
    up = PITCH | {"min_semitones": 3, "max_semitones": 3}
    _, label_transform = build(up, up)(tone(60), generator=np.random.default_rng(0))
    assert label_transform.semitones == 6


@pytest.mark.parametrize("name", ["gain", "polarity_inversion", *sorted(LABEL_TRANSFORMS)])
def test_rows_get_the_same_transform(name):
    generator = np.random.default_rng(0)
    row = generator.normal(scale=0.1, size=SAMPLE_RATE).astype(np.float32)
    setting = {"name": name, "p": 1.0} | (SHIFT if name == "shift" else {})
    augmentation = build(setting, transformed_effects=frozenset({Effect.TIME}))
    alone, label_transform = augmentation(row, generator=np.random.default_rng(5))
    together, same_transform = augmentation(np.stack([row] * 3), generator=np.random.default_rng(5))
    assert together.shape == (3, SAMPLE_RATE)
    assert same_transform == label_transform
    for one in together:
        np.testing.assert_allclose(one, together[0], atol=1e-6)
    np.testing.assert_allclose(together[0], alone, atol=0.01)
    assert np.abs(alone - row).max() > 0.05


def test_different_rows_stay_together_in_time():
    rows = np.stack([click(time) for time in (0.5, 1.0, 1.5)])
    augmentation = build(STRETCH, SHIFT | {"min_shift": 0.1, "max_shift": 0.1}, PITCH)
    augmented, label_transform = augmentation(rows, generator=np.random.default_rng(0))
    for row, time in zip(augmented, label_transform.times(np.array([0.5, 1.0, 1.5])), strict=True):
        assert click_time(row) == pytest.approx(time, abs=1e-3)


def test_a_rollover_is_refused_where_labels_follow_time():
    with raises("transform-rollover") as caught:
        build({"name": "shift"}, transformed_effects=frozenset({Effect.TIME}), task="beats")
    message = str(caught.value)
    assert names(message, "shift", "rollover")
    assert "'beats'" in message
    assert "Set rollover: false" in message
    assert build(SHIFT, transformed_effects=frozenset({Effect.TIME})) is not None
    assert build({"name": "shift"}, transformed_effects=frozenset({Effect.PITCH})) is not None


@pytest.mark.parametrize("name", ["time_stretch", "pitch_shift"])
def test_a_method_that_is_inexact_in_time_is_refused_where_labels_follow_time(name):
    vocoder = {"name": name, "method": "librosa_phase_vocoder"}
    with raises("transform-method-inexact") as caught:
        build(vocoder, transformed_effects=frozenset({Effect.TIME}), task="beats")
    message = str(caught.value)
    assert f"{name} by librosa_phase_vocoder" in message
    assert "'beats'" in message
    assert "Set method: signalsmith_stretch" in message
    assert build(vocoder) is not None


def test_what_labels_follow_needs_not_be_allowed():
    only = {"allowed_effects": frozenset({Effect.TIMBRE}), "task": "key"}
    with raises("transform-changes-labels", "pitch_shift moves pitch") as caught:
        build(PITCH, **only)
    assert "pitch_shift" not in str(caught.value).partition("Legal for this task")[2]
    assert build(PITCH, transformed_effects=frozenset({Effect.PITCH}), **only) is not None
    with raises("transform-changes-labels", "time_stretch") as caught:
        build(STRETCH, transformed_effects=frozenset({Effect.PITCH}), **only)
    assert "pitch_shift" in str(caught.value).partition("Legal for this task")[2]
