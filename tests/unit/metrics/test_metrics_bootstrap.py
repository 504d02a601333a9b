"""Bootstrap intervals agree with scikit-learn, resample by resample, and behave as intervals."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from support.messages import fails

from m2v_finetune.metrics import bootstrap
from m2v_finetune.metrics import intervals as intervals_module
from m2v_finetune.metrics.bootstrap import bootstrap_intervals, check_references_and_scores
from m2v_finetune.metrics.intervals import resample_counts


def draw_data(num_tracks, num_labels, *, seed=0, prevalence=0.2, separation=1.0):
    """References and scores whose true macro ROC-AUC is 0.76 at a separation of 1."""
    rng = np.random.default_rng(seed)
    references = rng.random((num_tracks, num_labels)) < prevalence
    scores = rng.normal(size=references.shape) + separation * references
    return references.astype(int), scores


def macro_by_scikit_learn(references, scores, counts):
    """The slow way for one resample: each label with two drawn classes by `sample_weight`."""
    drawn = counts > 0
    values = [
        (
            roc_auc_score(reference, score, sample_weight=counts),
            average_precision_score(reference, score, sample_weight=counts),
        )
        for reference, score in zip(references.T, scores.T, strict=True)
        if len(np.unique(reference[drawn])) == 2
    ]
    return np.mean(values, axis=0) if values else np.full(2, np.nan)


@pytest.mark.parametrize(
    ("prevalence", "num_score_levels"),
    [(0.2, None), (0.2, 5), (0.2, 1), (0.02, None), (0.02, 3), (0.9, 4)],
    ids=["no ties", "many ties", "all tied", "rare labels", "rare labels, ties", "few negatives"],
)
def test_resamples_equal_scikit_learn_with_counts_as_weights(prevalence, num_score_levels):
    references, scores = draw_data(80, 4, prevalence=prevalence)
    if num_score_levels is not None:
        scores = np.digitize(scores, np.linspace(-1, 1, num_score_levels)[1:])
    num_resamples = 12
    counts = np.concatenate(
        list(resample_counts(len(references), seed=3, num_resamples=num_resamples))
    )
    expected = np.array([macro_by_scikit_learn(references, scores, row) for row in counts])
    if prevalence == 0.02:
        num_drawn = ((counts[:, :, np.newaxis] * references).sum(axis=1) > 0).sum(axis=1)
        assert len(np.unique(num_drawn)) > 1, "no resample dropped a label: the case shows nothing"

    intervals = bootstrap_intervals(references, scores, num_resamples=num_resamples, seed=3)

    roc_auc, average_precision = (np.nanquantile(v, [0.025, 0.975]) for v in expected.T)
    value = macro_by_scikit_learn(references, scores, np.ones(len(references), dtype=int))[1]
    basic = np.clip(2 * value - average_precision[::-1], 0, 1)
    np.testing.assert_allclose(intervals["roc_auc"], roc_auc, rtol=0, atol=1e-12)
    np.testing.assert_allclose(intervals["average_precision"], basic, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    tracks=st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=10
    )
)
def test_any_weights_and_ties_equal_scikit_learn(tracks):
    reference, levels, weights = (np.array(column) for column in zip(*tracks, strict=True))
    if len(np.unique(reference)) < 2:
        return  # such labels are never ranked
    # Weights of real resamples sum to the number of tracks; the rest goes to a further negative.
    total = int(weights.sum()) + 1
    reference = np.concatenate([reference, np.zeros(total, dtype=bool)])
    levels = np.concatenate([levels, np.full(total, 1)])
    weights = np.concatenate([weights, np.zeros(total, dtype=int)])
    weights[len(tracks)] = len(weights) - weights.sum()

    ranking = bootstrap.rank_scores(reference, levels.astype(float))
    roc_auc, average_precision, is_defined = bootstrap.label_values(
        ranking, weights[np.newaxis].astype(np.int32)
    )

    assert is_defined[0] == bool(weights[reference].sum())
    if is_defined[0]:
        expected_roc_auc = roc_auc_score(reference, levels, sample_weight=weights)
        expected_precision = average_precision_score(reference, levels, sample_weight=weights)
        assert roc_auc[0] == pytest.approx(expected_roc_auc, abs=1e-12)
        assert average_precision[0] == pytest.approx(expected_precision, abs=1e-12)


def test_draws_are_with_replacement_and_uniform():
    counts = np.concatenate(list(resample_counts(50, seed=0, num_resamples=2000)))
    assert (counts.sum(axis=1) == 50).all()
    # Multinomial: each count has mean 1 and variance 1 - 1/50; the errors here are about 0.02.
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(counts.var(axis=0), 1 - 1 / 50, atol=0.15)


def test_interval_does_not_depend_on_chunks_and_repeats_with_its_seed(monkeypatch):
    references, scores = draw_data(100, 3)
    intervals = bootstrap_intervals(references, scores, num_resamples=50, seed=1)
    assert intervals == bootstrap_intervals(references, scores, num_resamples=50, seed=1)
    assert intervals != bootstrap_intervals(references, scores, num_resamples=50, seed=2)
    monkeypatch.setattr(intervals_module, "_CHUNK_WEIGHTS", 7 * len(references))
    assert intervals == bootstrap_intervals(references, scores, num_resamples=50, seed=1)
    monkeypatch.setattr(intervals_module, "_CHUNK_WEIGHTS", 1)
    assert intervals == bootstrap_intervals(references, scores, num_resamples=50, seed=1)


def test_interval_contains_the_value_and_narrows_with_tracks():
    widths = {}
    for num_tracks in (300, 4800):
        references, scores = draw_data(num_tracks, 8)
        intervals = bootstrap_intervals(references, scores)
        values = {
            "roc_auc": roc_auc_score(references, scores, average="macro"),
            "average_precision": average_precision_score(references, scores, average="macro"),
        }
        for name, value in values.items():
            low, high = intervals[name]
            assert low < value < high
            widths[name, num_tracks] = high - low
    for name in ("roc_auc", "average_precision"):
        # 16 times the tracks: a quarter of the width.
        assert widths[name, 300] / widths[name, 4800] == pytest.approx(4, rel=0.25)


def test_interval_widens_with_confidence():
    references, scores = draw_data(200, 3)
    narrow = bootstrap_intervals(references, scores, confidence=0.5)["roc_auc"]
    wide = bootstrap_intervals(references, scores, confidence=0.99)["roc_auc"]
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_shuffled_labels_give_an_interval_around_chance():
    references, scores = draw_data(1000, 10, prevalence=0.2)
    shuffled = np.random.default_rng(5).permutation(references)
    intervals = bootstrap_intervals(shuffled, scores)
    assert intervals["roc_auc"][0] < 0.5 < intervals["roc_auc"][1]
    assert intervals["roc_auc"][1] - intervals["roc_auc"][0] < 0.06
    # The average precision of chance is the share of positives.
    assert intervals["average_precision"] == pytest.approx((0.2, 0.2), abs=0.04)


def test_roc_auc_interval_covers_the_true_value_about_as_often_as_it_states():
    # Two normals one standard deviation apart: ROC-AUC = Phi(1 / sqrt(2)) = 0.7602.
    reference = 0.5 * (1 + math.erf(0.5))
    covered = 0
    for seed in range(200):
        references, scores = draw_data(100, 2, seed=seed)
        low, high = bootstrap_intervals(references, scores, num_resamples=200)["roc_auc"]
        covered += low <= reference <= high
    # 95 % of 200 are 190, with a standard deviation of 3.1.
    assert 178 <= covered <= 199


def test_perfect_scores_give_one():
    references, _ = draw_data(60, 5)
    intervals = bootstrap_intervals(references, references.astype(float), num_resamples=100)
    assert intervals == {"roc_auc": (1.0, 1.0), "average_precision": (1.0, 1.0)}


def test_labels_of_one_class_change_nothing_and_alone_give_nan():
    references, scores = draw_data(60, 3)
    only_zeros, only_ones = np.zeros((60, 1), dtype=int), np.ones((60, 1), dtype=int)
    extended = bootstrap_intervals(
        np.hstack([only_zeros, references, only_ones]),
        np.hstack([scores[:, :1], scores, scores[:, :1]]),
        num_resamples=50,
    )
    assert extended == bootstrap_intervals(references, scores, num_resamples=50)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = bootstrap_intervals(only_zeros, scores[:, :1], num_resamples=50)
        # One positive track: 37 % of the resamples do not draw it and are left out.
        rare = only_zeros.copy()
        rare[7] = 1
        rare_interval = bootstrap_intervals(rare, scores[:, :1], num_resamples=50)["roc_auc"]
    assert all(math.isnan(end) for ends in intervals.values() for end in ends)
    assert 0 <= rare_interval[0] < rare_interval[1] <= 1


@pytest.mark.parametrize(
    ("references", "scores", "named"),
    [
        ([[0, 1]], [[0.1]], ("(1, 2)", "(1, 1)")),
        ([0, 1], [0.1, 0.2], ("(2,)", "(tracks, labels)")),
        (np.zeros((0, 3)), np.zeros((0, 3)), ("(0, 3)",)),
        (np.zeros((3, 0)), np.zeros((3, 0)), ("(3, 0)",)),
        ([[0], [2]], [[0.1], [0.2]], ("reference", 1, 0, "2.0")),
        ([[0, 0.5]], [[0.1, 0.2]], ("reference", 0, 1, "0.5")),
        ([[0], [float("nan")]], [[0.1], [0.2]], ("reference", 1, 0, "nan")),
        ([[0], [1]], [[0.1], [float("nan")]], ("score", 1, 0, "nan")),
        ([[0], [1]], [[float("inf")], [0.1]], ("score", 0, "inf")),
        ([[0, 1], [1]], [[0.1, 0.2], [0.3, 0.4]], ("references",)),
        ([[0], [1]], [["a"], ["b"]], ("scores",)),
    ],
)
def test_bad_input_is_refused_with_what_was_found(references, scores, named):
    with fails(ValueError, *named):
        check_references_and_scores(references, scores)
    with fails(ValueError, *named):
        bootstrap_intervals(references, scores)


@pytest.mark.parametrize("setting", [{"num_resamples": 0}, {"confidence": 95}, {"confidence": 0}])
def test_settings_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with fails(ValueError, name, value):
        bootstrap_intervals([[0], [1]], [[0.1], [0.2]], **setting)
