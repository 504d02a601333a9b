"""Separation scores equal museval's, whatever the chunks they are computed from."""

import json
import math
import warnings

import numpy as np
import pytest
from support.messages import fails

from m2v_finetune.metrics.separation import (
    SeparationAccumulator,
    separation_report,
)

RATE_HZ = 1000
STEMS = ["drums", "bass"]


def draw_stems(num_samples=4 * RATE_HZ + 300, *, num_channels=2, seed=0):
    """Stems and estimates with some leakage and noise, (stems, channels, samples) each."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(2, num_channels, num_samples))
    noise = rng.normal(size=reference.shape) * np.linspace(0.05, 0.5, num_samples)
    return reference, 0.9 * reference + 0.2 * reference[::-1] + noise


def accumulate(reference, estimate, chunk_samples):
    accumulator = SeparationAccumulator(STEMS, sample_rate_hz=RATE_HZ)
    for start in range(0, reference.shape[-1], chunk_samples):
        chunk = slice(start, start + chunk_samples)
        accumulator.add(reference[..., chunk], estimate[..., chunk])
    return accumulator


def sdr_by_museval(reference, estimate):
    """(stems, windows)."""
    import museval

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stems = [np.moveaxis(stem, 1, 2) for stem in (reference, estimate)]
        return museval.evaluate(*stems, win=RATE_HZ, hop=RATE_HZ)[0]


@pytest.mark.parametrize(
    ("num_samples", "num_windows"), [(2 * RATE_HZ + 300, 2), (RATE_HZ, 1), (RATE_HZ - 250, 1)]
)
def test_sdr_of_each_second_equals_museval(num_samples, num_windows):
    reference, estimate = draw_stems(num_samples)
    sdr = accumulate(reference, estimate, 10**6).window_sdrs_db()
    assert sdr.shape == (2, num_windows)
    np.testing.assert_allclose(sdr, sdr_by_museval(reference, estimate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("which", ["truth", "estimate", "opposite channels"])
def test_a_second_with_a_silent_stem_counts_for_none_as_in_museval(which):
    num_channels = 2 if which == "opposite channels" else 1
    reference, estimate = draw_stems(3 * RATE_HZ, num_channels=num_channels)
    if which == "truth":
        reference[0, :, RATE_HZ : 2 * RATE_HZ] = 0
    elif which == "estimate":
        estimate[1, :, RATE_HZ : 2 * RATE_HZ] = 0
    else:  # their sum is silent
        reference = np.round(reference * 2**10) / 2**10
        reference[0, 1, RATE_HZ : 2 * RATE_HZ] = -reference[0, 0, RATE_HZ : 2 * RATE_HZ]
    sdr = accumulate(reference, estimate, 700).window_sdrs_db()
    assert np.isnan(sdr).tolist() == [[False, True, False]] * 2
    np.testing.assert_allclose(sdr, sdr_by_museval(reference, estimate), rtol=0, atol=1e-6)


def test_track_value_is_the_median_as_in_museval():
    import museval

    reference, estimate = draw_stems(5 * RATE_HZ, num_channels=1)
    reference[0, :, :RATE_HZ] = 0
    expected = np.nanmedian(sdr_by_museval(reference, estimate), axis=1)
    scores = accumulate(reference, estimate, 10**6).scores()
    assert [scores[stem]["sdr"] for stem in STEMS] == pytest.approx(expected, abs=1e-6)
    assert museval.TrackStore("track").frames_agg is np.nanmedian


@pytest.mark.parametrize("chunk_samples", [1, 7, 999, 1000, 1001, 2500])
def test_chunks_equal_the_whole(chunk_samples):
    reference, estimate = draw_stems(2 * RATE_HZ + 300 if chunk_samples == 1 else 4 * RATE_HZ + 300)
    whole = accumulate(reference, estimate, 10**6)
    parts = accumulate(reference, estimate, chunk_samples)
    np.testing.assert_allclose(parts.window_sdrs_db(), whole.window_sdrs_db(), rtol=1e-10)
    for stem in STEMS:
        assert parts.scores()[stem] == pytest.approx(whole.scores()[stem], rel=1e-10)


def si_sdr_by_definition(reference, estimate):
    target = np.vdot(estimate, reference) / np.vdot(reference, reference) * reference
    return 10 * np.log10(np.sum(target**2) / np.sum((estimate - target) ** 2))


def test_si_sdr_equals_its_definition():
    reference, estimate = draw_stems()
    scores = accumulate(reference, estimate, 1234).scores()
    for stem, *signals in zip(STEMS, reference, estimate, strict=True):
        assert scores[stem]["si_sdr"] == pytest.approx(si_sdr_by_definition(*signals), abs=1e-9)


def test_si_sdr_does_not_depend_on_the_scale_but_sdr_does():
    reference, estimate = draw_stems()
    scores = accumulate(reference, estimate, 10**6).scores()
    louder = accumulate(reference, 3 * estimate, 10**6).scores()
    for stem in STEMS:
        assert louder[stem]["si_sdr"] == pytest.approx(scores[stem]["si_sdr"], abs=1e-9)
        assert louder[stem]["sdr"] < scores[stem]["sdr"] - 5


@pytest.mark.parametrize("error_db", [-40, -120])
def test_nearly_perfect_estimates_keep_their_digits(error_db):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(2, 2, 3 * RATE_HZ))
    estimate = reference + 10 ** (error_db / 20) * rng.normal(size=reference.shape)
    for stem, scores in accumulate(reference, estimate, 10**6).scores().items():
        assert scores["sdr"] == pytest.approx(-error_db, abs=1.0), stem
        assert scores["si_sdr"] == pytest.approx(-error_db, abs=1.0), stem


def test_what_has_no_value_is_nan_and_does_not_warn():
    reference, estimate = draw_stems()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing_added = SeparationAccumulator(STEMS, sample_rate_hz=RATE_HZ).scores()
        perfect = accumulate(reference, reference, 10**6).scores()
        scaled = accumulate(reference, 0.7 * reference, 10**6).scores()
        silent_reference = accumulate(reference * [[[0]], [[1]]], estimate, 10**6).scores()
        silent_estimate = accumulate(reference, estimate * [[[0]], [[1]]], 10**6).scores()
    for scores in (nothing_added, perfect):
        assert all(math.isnan(value) for stem in scores.values() for value in stem.values())
    assert math.isnan(scaled["bass"]["si_sdr"])
    assert scaled["bass"]["sdr"] == pytest.approx(-20 * math.log10(0.3))
    for scores in (silent_reference, silent_estimate):
        assert math.isnan(scores["drums"]["sdr"])
        assert math.isnan(scores["bass"]["sdr"])  # as in museval, no second counts for any stem
        assert math.isnan(scores["drums"]["si_sdr"])
        assert scores["bass"]["si_sdr"] > 0


@pytest.mark.parametrize(
    ("reference_shape", "estimate_shape"),
    [
        ((2, 2, 10), (2, 2, 11)),
        ((2, 2, 10), (2, 1, 10)),
        ((1, 2, 10), (1, 2, 10)),
        ((2, 9), (2, 9)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(reference_shape, estimate_shape):
    accumulator = SeparationAccumulator(STEMS, sample_rate_hz=RATE_HZ)
    with fails(ValueError, reference_shape, estimate_shape, 2):
        accumulator.add(np.zeros(reference_shape), np.zeros(estimate_shape))


def test_report_is_the_median_over_tracks_and_the_mean_over_stems():
    rng = np.random.default_rng(0)
    per_track = [
        {stem: {"sdr": rng.normal(5, 2), "si_sdr": rng.normal(4, 2)} for stem in STEMS}
        for _ in range(21)
    ]
    per_track[3]["bass"]["sdr"] = math.nan
    report = separation_report(per_track, STEMS, seed=1)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report["metrics"]) == [
        "sdr", "sdr_drums", "sdr_bass", "si_sdr", "si_sdr_drums", "si_sdr_bass",
    ]  # fmt: skip
    assert report["num_tracks"] == {
        "sdr_drums": 21, "sdr_bass": 20, "si_sdr_drums": 21, "si_sdr_bass": 21,
    }  # fmt: skip
    for score in ("sdr", "si_sdr"):
        medians = [np.nanmedian([track[stem][score] for track in per_track]) for stem in STEMS]
        values = [report["metrics"][f"{score}_{stem}"]["value"] for stem in STEMS]
        assert values == pytest.approx(medians)
        assert report["metrics"][score]["value"] == pytest.approx(np.mean(medians))
    for entry in report["metrics"].values():
        assert entry["low"] < entry["value"] < entry["high"]


def test_report_of_a_stem_without_scores_is_null_and_left_out_of_the_mean():
    track = {"drums": {"sdr": 5.0, "si_sdr": 4.0}, "bass": {"sdr": math.nan, "si_sdr": math.nan}}
    metrics = separation_report([track, track], STEMS)["metrics"]
    assert metrics["sdr_bass"] == {"value": None, "low": None, "high": None}
    assert metrics["sdr"] == {"value": 5.0, "low": 5.0, "high": 5.0}
