"""Settings of trials: those that a trial's method or head does not use are left out."""

import optuna

from m2v_finetune.parsing import flat_settings, to_dict
from m2v_finetune.search.space import parse_space, suggest
from m2v_finetune.settings import read_config


def suggested(over: list[str], *settings: str) -> list[dict]:
    base = flat_settings(to_dict(read_config("genre", ["--data.source=songs.csv", *settings])))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    dimensions = parse_space(over, base)
    return [suggest(study.ask(), dimensions, base, seed=0) for _ in range(8)]


def test_a_hidden_size_is_of_trials_with_a_hidden_layer():
    found = suggested(["head.hidden_size=16,32", "head.kind=linear,mlp"])
    assert {one["head.kind"] for one in found} == {"linear", "mlp"}
    for one in found:
        assert ("head.hidden_size" in one) == (one["head.kind"] == "mlp")
    # Searched alone, it stays: a run with a linear head refuses it, and names it.
    assert all("head.hidden_size" in one for one in suggested(["head.hidden_size=16,32"]))


def test_settings_of_steps_are_of_heads_that_are_trained_by_steps():
    over = ["head.kind=linear,logistic", "head.dropout=uniform(0,0.5)", "training.ema_decay=0,0.99"]
    over += ["task.label_smoothing=0,0.1", "augmentation.mixup_alpha=0,0.2"]
    for one in suggested(over):
        names = {text.partition("=")[0] for text in over}
        assert one.keys() == (names if one["head.kind"] == "linear" else {"head.kind"})


def test_rates_of_the_optimizer_are_of_heads_that_it_trains():
    found = suggested(["optimizer.learning_rate=log(1e-4,1e-2)", "head.kind=linear,logistic"])
    assert {one["head.kind"] for one in found} == {"linear", "logistic"}
    for one in found:
        assert ("optimizer.learning_rate" in one) == (one["head.kind"] == "linear")
