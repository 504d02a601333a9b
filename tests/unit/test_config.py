"""Settings: strict keys and types, ranges, the order of sources, and the way there and back."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import error_message as message_of
from support.messages import names, raises

from m2v_finetune.config import (
    DataConfig,
    HeadConfig,
    OptimizerConfig,
    RecipeConfig,
    RunConfig,
    TrainingConfig,
    TuningConfig,
    parse_bytes,
)
from m2v_finetune.parsing import parse_recipe, save_config
from m2v_finetune.settings import read_config
from m2v_finetune.tasks import TASKS
from m2v_finetune.tasks.frames import FrameTask
from m2v_finetune.tasks.tagging import TaggingConfig


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """All settings of a tagging run.

    Args:
        task: What is learned from which labels.
    """

    task: TaggingConfig = field(default_factory=TaggingConfig)


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    path = tmp_path / "quickstart.yaml"
    path.write_text("data: {source: quickstart}\nhead: {kind: linear}\n")
    return path


@pytest.fixture
def parse(quickstart):
    def parse_words(*argv: str) -> Config:
        return parse_recipe(Config, argv, description="Train.", quickstart=quickstart)

    return parse_words


@pytest.fixture
def parse_yaml(parse, tmp_path):
    def parse_text(text: str | bytes, *argv: str) -> Config:
        path = tmp_path / "settings.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parse("--config", str(path), *argv)

    return parse_text


# -- where a value comes from ---------------------------------------------------------------------


def test_the_quickstart_is_read_when_no_data_are_named(parse):
    config = parse("--training.epochs", "2")
    assert (config.data.source, config.head.kind, config.training.epochs) == (
        "quickstart",
        "linear",
        2,
    )


@pytest.mark.parametrize(
    "argv",
    [
        ("--data.source", "songs.csv"),
        ("--data.source=songs.csv",),
        ("--data", '{"source": "songs.csv"}'),
    ],
)
def test_the_quickstart_is_not_read_when_data_are_named(parse, argv):
    config = parse(*argv)
    assert config == Config(data=DataConfig(source="songs.csv"))


def test_the_quickstart_is_not_read_when_a_config_is_given(parse_yaml):
    assert parse_yaml("data: {source: songs.csv}\n") == Config(data=DataConfig(source="songs.csv"))


def test_later_files_win_and_options_win_over_files_wherever_they_stand(parse, tmp_path):
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(
        "data: {source: one, window_seconds: 3}\ntraining: {epochs: 3, trackers: [a]}\n"
    )
    second.write_text("data: {source: two}\ntraining: {epochs: 4}\n")
    argv = ("--training.epochs=5", "--config", str(first), f"--config={second}")
    config = parse(*argv)
    assert config.data == DataConfig(source="two", window_seconds=3.0)
    assert config.training == TrainingConfig(epochs=5, trackers=["a"])


@pytest.mark.parametrize("written", ["3e-4", "3.0e-4", "0.0003", "3E-4"])
def test_exponents_are_numbers(parse, parse_yaml, written):
    from_words = parse("--optimizer.learning_rate", written).optimizer.learning_rate
    text = f"data: {{source: x}}\noptimizer: {{learning_rate: {written}}}\n"
    from_yaml = parse_yaml(text).optimizer.learning_rate
    assert from_words == from_yaml == 3e-4
    assert isinstance(from_yaml, float)


def test_values_of_every_kind_are_read(parse):
    config = parse(
        "--backbone.layer_weighting=4",
        "--task.labels=[rock, 'hip hop']",
        "--augmentation.transforms=[{name: gain, p: 0.5, min_gain_db: -6}]",
        "--publish.private=true",
        "--data.hop_seconds=2.5",
        "--run.output_dir=null",
    )
    assert config.backbone.layer_weighting == 4
    assert config.task.labels == ["rock", "hip hop"]
    assert config.augmentation.transforms == [{"name": "gain", "p": 0.5, "min_gain_db": -6}]
    assert config.publish.private is True
    assert config.data.hop_seconds == 2.5
    assert config.run.output_dir is None


# -- there and back -------------------------------------------------------------------------------


def test_a_saved_config_gives_an_equal_config(parse, tmp_path):
    gain = {"name": "gain", "p": 0.5}
    config = parse(
        "--optimizer.learning_rate=3e-4",
        "--optimizer.weight_decay=1e-12",
        "--backbone.layer_weighting=3",
        "--task.labels=['no', 'null', '1e5', '.5e-3', '1_0e+5', 'döner: #1']",
        f"--augmentation.transforms=[{gain}, {gain}]",
        "--backbone.revision=12e4567",
    )
    save_config(config, tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == config


def test_the_default_head_is_linear_for_clips_and_an_mlp_for_frames() -> None:
    for name, task in TASKS.items():
        config = read_config(name, ["--data.source=songs.csv", "--head.dropout=0.3"])
        frames = issubclass(task, FrameTask)
        assert config.head == HeadConfig(kind="mlp" if frames else "linear", dropout=0.3), name


name = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1)
rate = st.floats(min_value=1e-30, max_value=1e30)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(source=name, labels=st.lists(name), rate=rate, seed=st.integers(0, 2**32 - 1))
def test_any_saved_config_gives_an_equal_config(tmp_path_factory, source, labels, rate, seed):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    config = Config(
        data=DataConfig(source=source),
        optimizer=OptimizerConfig(learning_rate=rate),
        run=RunConfig(seed=seed),
        task=TaggingConfig(labels=labels),
    )
    save_config(config, path)
    assert parse_recipe(Config, ["--config", str(path)], description="", quickstart=path) == config


def test_a_saved_config_is_complete(tmp_path):
    config = Config(data=DataConfig(source="x"))
    save_config(config, tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert {f"{section}.{key}" for section, keys in saved.items() for key in keys} == {
        f"{section.name}.{key.name}"
        for section in fields(Config)
        for key in fields(getattr(config, section.name))
    }


# -- help -----------------------------------------------------------------------------------------


def test_help_states_what_every_key_means(parse, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out.replace("``", "").split("\n  --")
    config = Config(data=DataConfig(source="x"))
    seen = 0
    for section in fields(Config):
        part = getattr(config, section.name)
        documented = [base.__doc__ for base in type(part).__mro__ if is_dataclass(base)]
        entries = "".join(doc.split("Args:")[1] for doc in documented)
        for key in fields(part):
            meaning = (
                entries.split(f"\n        {key.name}: ")[1].split("\n")[0].replace("``", "")[:40]
            )
            (entry,) = (e for e in printed if e.startswith(f"{section.name}.{key.name} "))
            assert meaning in " ".join(entry.split())
            seen += 1
    assert seen == 82  # a key more or less is meant, and seen here


def test_print_config_prints_settings_that_can_be_read(parse, parse_yaml, capsys):
    with pytest.raises(SystemExit):
        parse("--training.epochs=7", "--print_config")
    printed = capsys.readouterr().out
    assert parse_yaml(printed) == parse("--training.epochs=7")


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "unknown", "meant"),
    [
        ("data: {source: x, sorce: y}", "data.sorce", "data.source"),
        ("data: {source: x}\noptimzer: {learning_rate: 1}", "optimzer", "optimizer.learning_rate"),
        ("data: {source: x}\ntask: {label: [a]}", "task.label", "task.labels"),
        ("data: {source: x}\ntraining: {epoch: 3}", "training.epoch", "training.epochs"),
    ],
)
def test_an_unknown_key_of_a_file_is_refused(parse_yaml, text, unknown, meant):
    message = message_of(parse_yaml, text)
    assert f"'{unknown}" in message
    assert names(message, meant)
    assert "--help" in message


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--trainig.epochs=3", "training.epochs"),
        ("--training.epoch=3", "training.epochs"),
        ("--optimizer.learningrate=1", "optimizer.learning_rate"),
        ("--backbone.sorce=x", "backbone.source"),
    ],
)
def test_an_unknown_option_is_refused(parse, word, meant):
    message = message_of(parse, word)
    assert word in message
    assert names(message, meant)


def test_what_is_like_no_key_gets_no_suggestion(parse):
    message = message_of(parse, "--zzz=1")
    assert "--zzz=1" in message
    assert "?" not in message


@pytest.mark.parametrize("word", ["stray", "--conf=x.yaml", "--training.epo=3"])
def test_stray_and_shortened_words_are_refused(parse, word):
    assert word in message_of(parse, word)


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("training.epochs", "three", "int"),
        ("training.epochs", "2.5", "int"),
        ("optimizer.learning_rate", "fast", "float"),
        ("optimizer.warmup_ratio", "[1]", "float"),
        ("head.pooling", "max", "'mean', 'mean_std', 'attention'"),
        ("backbone.layer_weighting", "softmx", "'softmax', 'conv1d', 'last'"),
        ("backbone.spec_augment", "perhaps", "bool"),
        ("task.labels", "rock", "list"),
        ("augmentation.transforms", "[gain]", "dict"),
        ("run.resume", "always", "'never', 'auto'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(parse, parse_yaml, key, value, legal):
    section, name = key.split(".")
    data = "" if section == "data" else "data: {source: x}\n"
    for message in (
        message_of(parse, f"--{key}={value}"),
        message_of(parse_yaml, f"{data}{section}: {{{name}: {value}}}\n"),
    ):
        assert key in message
        assert legal in message
        assert value.strip("[]") in message


NO_TEXT_IN_YAML = ["no", "yes", "On", "OFF", "null", "~", "1980", "1.5", "1e3", "-7", "12:30"]


@pytest.mark.parametrize(
    ("key", "word"),
    [*(("task.labels", word) for word in NO_TEXT_IN_YAML), ("data.group_columns", "1980")],
)
def test_a_label_that_yaml_does_not_read_as_text_is_refused_with_a_hint(
    parse, parse_yaml, key, word
):
    section, name = key.split(".")
    more = ", source: x" if section == "data" else "}\ndata: {source: x"
    for message in (
        message_of(parse, "--data.source=x", f"--{key}=[rock, {word}]"),
        message_of(parse_yaml, f"{section}: {{{name}: [rock, {word}]{more}}}\n"),
    ):
        assert key in message
        assert """'["no", "1980"]'""" in message
    quoted = parse("--data.source=x", f'--{key}=["rock", "{word}"]')
    assert getattr(getattr(quoted, section), name) == ["rock", word]


@pytest.mark.parametrize("key", ["training.epochs", "head.pooling"])
def test_other_mistakes_get_no_hint_of_quotes(parse, key):
    assert "quotes" not in message_of(parse, f"--{key}=no")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.num_layers", "0"),
        ("backbone.layer_weighting", "-1"),
        ("head.hidden_size", "0"),
        ("head.dropout", "1.0"),
        ("head.dropout", "-0.1"),
        ("tuning.r", "0"),
        ("tuning.lora_alpha", "0"),
        ("tuning.lora_dropout", "1"),
        ("data.window_seconds", "0"),
        ("data.window_seconds", ".nan"),
        ("data.window_seconds", "80000"),
        ("data.window_seconds", ".inf"),
        ("data.hop_seconds", "-1"),
        ("data.hop_seconds", "5.5"),
        ("data.windows_per_track", "0"),
        ("data.num_workers", "-1"),
        ("data.validation_fraction", "0"),
        ("data.test_fraction", "1"),
        ("data.test_fraction", "0.95"),
        ("optimizer.learning_rate", "0"),
        ("optimizer.backbone_learning_rate", "-1e-3"),
        ("optimizer.layer_decay", "0"),
        ("optimizer.layer_decay", "1.1"),
        ("optimizer.weight_decay", "-0.1"),
        ("optimizer.warmup_ratio", "1"),
        ("optimizer.max_grad_norm", "0"),
        ("training.epochs", "0"),
        ("training.per_device_batch_size", "0"),
        ("training.gradient_accumulation_steps", "0"),
        ("training.eval_batch_size", "-4"),
        ("training.early_stopping_patience", "0"),
        ("training.log_every_steps", "0"),
        ("run.seed", "-1"),
        ("run.seed", "4294967296"),
    ],
)
def test_a_value_out_of_range_is_refused(parse, key, value):
    message = message_of(parse, f"--{key}={value}")
    assert key in message
    assert str(float(value.strip("."))).rstrip("0").rstrip(".") in message


@pytest.mark.parametrize("value", ["0", "-1e-3", ".nan", ".inf"])
def test_a_value_out_of_range_is_refused_in_a_file(parse_yaml, value):
    message = message_of(parse_yaml, f"data: {{source: x, window_seconds: {value}}}\n")
    assert "data.window_seconds" in message
    assert str(float(value.strip("."))).rstrip("0").rstrip(".") in message


def test_a_hop_equal_to_the_window_and_no_dropout_are_legal(parse):
    config = parse("--data.window_seconds=4", "--data.hop_seconds=4", "--head.dropout=0")
    assert (config.data.hop_seconds, config.head.dropout) == (4.0, 0.0)


@pytest.mark.parametrize("text", ["training: {epochs: null}", "training:\n  epochs:", "training:"])
def test_a_key_without_a_value_is_refused(parse_yaml, text):
    message = message_of(parse_yaml, f"{text}\ndata: {{source: x}}\n")
    assert "no value" in message
    assert "training.epochs" in message


@pytest.mark.parametrize(
    ("text", "name", "line"),
    [
        (
            "training: {epochs: 3}\ndata: {source: x}\ntraining: {log_every_steps: 5}\n",
            "training",
            3,
        ),
        ("data:\n  source: x\ntraining:\n  epochs: 3\n  epochs: 5\n", "epochs", 5),
        (
            "data: {source: x}\naugmentation:\n  transforms:\n  - name: gain\n    p: 1.0\n    p: 0.5\n",
            "p",
            6,
        ),
    ],
)
def test_a_key_that_is_there_twice_is_refused(parse_yaml, text, name, line):
    with raises("config-repeated-key", f"'{name}'", f"line {line}:"):
        parse_yaml(text)


@pytest.mark.parametrize("value", ["[1, 2]", "[]", "3", "text"])
def test_a_section_that_is_none_is_refused(parse_yaml, value):
    assert "training" in message_of(parse_yaml, f"data: {{source: x}}\ntraining: {value}\n")


def test_null_is_the_default_where_it_is_legal(parse_yaml):
    text = "data: {source: x, hop_seconds: null}\nrun: {output_dir: null}\n"
    assert parse_yaml(text) == Config(data=DataConfig(source="x"))


def test_the_data_must_be_named(parse_yaml):
    assert "data.source" in message_of(parse_yaml, "training: {epochs: 2}\n")


# -- files that are no settings -------------------------------------------------------------------


def test_a_missing_file_is_named(parse, tmp_path):
    missing = tmp_path / "none.yaml"
    for location in (missing, tmp_path):
        message = message_of(parse, "--config", str(location))
        assert str(location) in message
        assert "YAML file" in message
    assert "--config FILE" in message_of(parse, "--training.epochs=3", "--config")


@pytest.mark.parametrize("text", ["- a\n- b\n", "some words\n", "", "# nothing\n", "3\n"])
def test_a_file_that_is_no_mapping_is_refused(parse_yaml, tmp_path, text):
    message = message_of(parse_yaml, text)
    assert str(tmp_path / "settings.yaml") in message
    assert "sections" in message


@pytest.mark.parametrize("text", ["data: {source: x\n", "data:\n\tsource: x\n", "a: b: c\n"])
def test_a_file_that_is_not_yaml_is_refused(parse_yaml, tmp_path, text):
    message = message_of(parse_yaml, text)
    assert str(tmp_path / "settings.yaml") in message
    assert "not YAML" in message
    assert "line" in message


def test_a_file_that_is_not_text_is_refused(parse_yaml, tmp_path):
    message = message_of(parse_yaml, b"data: {source: caf\xe9}\n")
    assert str(tmp_path / "settings.yaml") in message
    assert "UTF-8" in message


def test_a_bomb_of_aliases_is_refused_before_it_goes_off(parse_yaml):
    # Ten levels of nine: 3,486,784,401 words in 400 bytes.
    levels = "abcdefghij"
    lines = ["a: &a [" + ", ".join(["lol"] * 9) + "]"]
    for below, level in pairwise(levels):
        lines.append(f"{level}: &{level} [{', '.join([f'*{below}'] * 9)}]")
    message = message_of(parse_yaml, "\n".join(lines))
    assert "line 2" in message
    assert "alias" in message


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:pathlib.Path.touch", "!!python/name:os.system", "!!set"]
)
def test_tags_are_refused_and_nothing_is_executed(parse_yaml, tmp_path, tag):
    made = tmp_path / "made"
    text = f"data: {{source: x}}\nrun: {tag} [!!python/object/apply:pathlib.Path [{made}]]\n"
    message = message_of(parse_yaml, text)
    assert f"{tmp_path / 'settings.yaml'}, line 2" in message
    assert tag.removeprefix("!!") in message
    assert not made.exists()


def test_a_config_cannot_be_changed():
    config = Config(data=DataConfig(source="x"))
    with pytest.raises(AttributeError):
        config.data.source = "y"
    assert replace(config, run=RunConfig(seed=3)).run.seed == 3


def test_memory_of_vectors_is_not_planned():
    with raises("settings-conflict", "run.memory", "11GB"):
        RecipeConfig(
            data=DataConfig(source="x", features="vectors.npz"),
            tuning=TuningConfig(method="probe"),
            run=RunConfig(memory="11GB"),
        )


@pytest.mark.parametrize("text", ["11", "11.5", "999999"])
def test_a_plain_number_of_few_bytes_is_refused(text):
    with raises("settings-range", f"{text}GB"):
        RunConfig(memory=text)
    assert RunConfig(memory="1000000").memory == "1000000"


@pytest.mark.parametrize("size", ["1e400", "1e400GB", "lots", "0GB", "11"])
def test_what_is_no_amount_of_memory_is_refused(size):
    with raises("settings-range", "run.memory", size):
        parse_bytes("run.memory", size)
