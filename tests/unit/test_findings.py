"""Signs that a run did not learn."""

from random import Random

import pytest

from m2v_finetune.config import HeadConfig, TuningConfig
from m2v_finetune.training.evaluation import chance_orders
from m2v_finetune.training.findings import RunFacts, chance_level, find_signs, has_fallen
from m2v_finetune.tuning import Rates

FALLING = [2.0 - 0.02 * i for i in range(60)]
NOISE = [Random(i).gauss(2.0, 0.3) for i in range(60)]


def facts(**changes: object) -> RunFacts:
    learned: dict[str, object] = {
        "losses": FALLING,
        "metric": "accuracy",
        "value": {"value": 0.8, "low": 0.7, "high": 0.9},
        "chance": 0.1,
        "best_step": 500,
        "warmup_steps": 60,
        "num_steps": 640,
        "total_steps": 640,
        "head": HeadConfig(),
        "tuning": TuningConfig(method="full"),
        "learning_rates": Rates(head=1e-3, backbone=1e-4),
    }
    return RunFacts(**{**learned, **changes})  # type: ignore[arg-type]


def test_a_run_that_learned_has_no_sign() -> None:
    assert find_signs(facts()) == []


@pytest.mark.parametrize(
    ("changes", "word", "settings"),
    [
        ({"losses": NOISE}, "loss", ["backbone_learning_rate to 0.0003", "learning_rate to 0.003"]),
        (
            {"losses": [1.1, 3606.0, 64844.0, 152.0]},
            "rose",
            ["lower optimizer.learning_rate to 0.0001", "backbone_learning_rate to 1e-05"],
        ),
        (
            {"losses": [1.0 + 0.01 * i for i in range(60)]},
            "rose from 1 to 1.59",
            ["lower optimizer.learning_rate to 0.0001", "backbone_learning_rate to 1e-05"],
        ),
        (
            {
                "losses": [*FALLING, *[900.0] * 40],
                "tuning": TuningConfig(method="probe"),
                "learning_rates": Rates(head=1e30, backbone=0.0),
            },
            "rose",
            ["lower optimizer.learning_rate to 1e+29"],
        ),
        (
            {"value": {"low": 0.05, "high": 0.2}},
            "includes",
            ["tuning.method to probe", "training tracks"],
        ),
        ({"value": {"low": 0.01, "high": 0.05}}, "below", ["tuning.method to probe"]),
        ({"best_step": 12, "num_steps": 72}, "warm-up", ["early_stopping_patience"]),
        (
            {
                "losses": NOISE,
                "tuning": TuningConfig(method="probe"),
                "head": HeadConfig(standardize=False),
            },
            "loss",
            ["head.standardize", "optimizer.learning_rate to 0.003"],
        ),
    ],
)
def test_each_sign_is_named_with_settings_that_help(
    changes: dict[str, object], word: str, settings: list[str]
) -> None:
    signs = find_signs(facts(**changes))
    assert len(signs) == 2
    assert word in signs[0]
    assert all(setting in signs[1] for setting in settings)


def test_nothing_is_concluded_from_losses_that_are_too_few() -> None:
    assert has_fallen(FALLING[:12]) is None
    assert find_signs(facts(losses=NOISE[:12])) == []


def test_unknown_chance_and_missing_values_are_no_sign() -> None:
    assert find_signs(facts(chance=None, value={"low": 0.0, "high": 0.1})) == []
    assert find_signs(facts(value={"value": None, "low": None, "high": None})) == []


def test_chance_of_a_regression_is_at_least_the_mean_of_all_tracks() -> None:
    assert chance_level("r2", [-1.0, -0.9]) == 0.0
    assert chance_level("accuracy", [0.1, 0.3]) == pytest.approx(0.2)
    assert chance_level("accuracy", [float("nan")]) is None


@pytest.mark.parametrize("num_tracks", [2, 3, 6, 50])
def test_orders_give_each_track_another_ones_prediction(num_tracks: int) -> None:
    orders = chance_orders(num_tracks, seed=3)
    assert len(orders) == min(5, num_tracks - 1)
    for order in orders:
        assert sorted(order) == list(range(num_tracks))
        assert all(other != track for track, other in enumerate(order))
    assert len({tuple(order) for order in orders}) == len(orders)


def test_a_single_track_has_no_order() -> None:
    assert chance_orders(1, seed=0) == []
